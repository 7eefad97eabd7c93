//! What kubectl may complete: it runs `kubectl_complete-kubeweir`, which is this program by another name,
//! with the words so far.

use clap::{Arg, Command};

/// kubectl's word for "and no names of files".
const NO_FILES: &str = ":4";

/// The program's name when kubectl asks.
pub const NAME: &str = "kubectl_complete-kubeweir";

/// A line for each candidate, with what it is, and kubectl's directive. `words`: the last one is not
/// complete, and may be empty.
pub fn candidates(program: &Command, words: &[String]) -> String {
    let (last, before) = words.split_last().map_or(("", words), |(last, rest)| (last, rest));
    let value_of = before.last().and_then(|flag| long(program, flag));
    let sub = before.iter().find_map(|word| program.find_subcommand(word));
    let mut found: Vec<(String, String)> = Vec::new();
    if let Some(arg) = value_of.filter(|arg| arg.get_action().takes_values()) {
        let values = arg.get_possible_values();
        found.extend(values.iter().map(|value| (value.get_name().to_owned(), String::new())));
    } else if last.starts_with('-') {
        let of_sub = sub.into_iter().flat_map(Command::get_arguments);
        found.extend(of_sub.chain(program.get_arguments()).filter_map(flag));
    } else if sub.is_none() {
        let about = |sub: &Command| sub.get_about().map(ToString::to_string).unwrap_or_default();
        found.extend(program.get_subcommands().map(|sub| (sub.get_name().to_owned(), about(sub))));
    }
    found.retain(|(word, _)| word.starts_with(last));
    let mut text: String = found.iter().map(|(word, about)| format!("{word}\t{about}\n")).collect();
    text += NO_FILES;
    text + "\n"
}

fn long<'a>(program: &'a Command, word: &str) -> Option<&'a Arg> {
    let named = |arg: &&Arg| {
        arg.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long))
            || arg.get_short().is_some_and(|short| word == format!("-{short}"))
    };
    let subs = program.get_subcommands().flat_map(Command::get_arguments);
    program.get_arguments().chain(subs).find(named)
}

fn flag(arg: &Arg) -> Option<(String, String)> {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    arg.get_long().map(|long| (format!("--{long}"), help))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::cli::Desk;
    use super::*;

    #[test]
    fn kubectl_gets_commands_flags_and_values() {
        let complete = |words: &str| {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let text = candidates(&Desk::command(), &words);
            let words =
                text.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned());
            words.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(complete("st"), "status :4");
        assert_eq!(complete("explain --from"), "--from-node :4");
        assert_eq!(complete("status --from"), ":4");
        assert_eq!(complete("status --conte"), "--context :4");
        assert_eq!(complete("diff -o "), "wide json yaml :4");
        assert_eq!(complete("status "), ":4");
        assert!(complete("").starts_with("status diff "));
    }
}
