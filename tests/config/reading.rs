//! What writers of YAML and JSON make of a file: documents, numbers, bools, nulls.

use kubeweir::config::decode::{DecodeError, decode};
use kubeweir::config::{KubeProxyConfiguration, NoteLevel};
use serde_json::Value;

use crate::{HEAD, completed};

/// The object of a file, and its notes of level warning.
fn read(text: &str) -> (KubeProxyConfiguration, Vec<String>) {
    let completed = completed(&["--config=x"], Some(text));
    let warnings = completed.notes.iter().filter(|note| note.level == NoteLevel::Warning);
    let warnings = warnings.map(|note| note.text.clone()).collect();
    (completed.object, warnings)
}

// N1: the first document is the configuration, whatever separates it from nothing.
#[test]
fn separators_without_a_second_document_say_nothing() {
    let body = format!("{HEAD}mode: nftables\n");
    let (expected, _) = read(&body);
    let json = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":"nftables"}"#;
    for text in [
        format!("---\n{body}"),
        format!("--- # a comment\n{body}"),
        format!("# a comment\n\n---\n{body}"),
        format!("%YAML 1.1\n---\n{body}"),
        format!("\u{feff}{body}"),
        format!("{body}---\n"),
        format!("{body}---"),
        format!("{body}...\n"),
        format!("{body}...\n---\n# nothing\n"),
        format!("{body}---\n---\n\n---\n"),
        format!("{body}--- ~\n"),
        format!("{body}---\nnull\n"),
        format!("---\n{body}...\n# the end\n"),
        body.replace('\n', "\r\n") + "---\r\n",
        json.to_owned(),
        format!("{json}\n---\n"),
        format!("---\n{json}\n"),
        format!("\n\t {json}\n\t\n"),
    ] {
        let (object, warnings) = read(&text);
        assert_eq!(object, expected, "{text:?}");
        assert_eq!(warnings, Vec::<String>::new(), "{text:?}");
    }
}

// N1: what follows is left out, and said, also if it is no YAML at all.
#[test]
fn a_second_document_is_warned_about() {
    let body = format!("{HEAD}mode: nftables\n");
    let (expected, _) = read(&body);
    let json = r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","mode":"nftables"}"#;
    for text in [
        format!("{body}---\n{HEAD}mode: ipvs\n"),
        format!("{body}---\n---\nkind: Config\n"),
        format!("{body}---\n[unfinished\n"),
        format!("{body}...\n---\ntext\n"),
        format!("{body}---\n{json}\n"),
        format!("{json}\n---\n{body}"),
        format!("{json}\n{json}\n"),
        format!("{json}{}", json.replace("nftables", "ipvs")),
        format!("{}\n{json}", json.replace(',', ",\n\t")),
    ] {
        let (object, warnings) = read(&text);
        assert_eq!(object, expected, "{text:?}");
        assert_eq!(warnings.len(), 1, "{text:?}: {warnings:?}");
        assert!(warnings[0].contains("first document"), "{warnings:?}");
    }
}

// N1: as upstream, a first document that is empty is no configuration, whatever follows.
#[test]
fn the_first_document_counts_also_if_it_is_empty() {
    let error = decode(&format!("---\n---\n{HEAD}")).expect_err("nothing in it");
    assert!(matches!(error, DecodeError::Missing(_)), "{error:?}");
}

/// A number field of the object: its path, and whether it takes fractions.
type Number = (Vec<String>, bool);

/// Every field that holds a number, from the object itself: what is absent by default is written
/// out by completing, and the list of the log gets an entry.
fn numbers() -> Vec<Number> {
    fn walk(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
        let mut below = |name: String, value: &Value| {
            path.push(name);
            walk(value, path, found);
            path.pop();
        };
        match value {
            Value::Number(_) => found.push(path.clone()),
            Value::Object(fields) => fields.iter().for_each(|(n, v)| below(n.clone(), v)),
            Value::Array(items) => items.iter().for_each(|v| below("[]".to_owned(), v)),
            _ => {}
        }
    }
    let (object, _) =
        read(&format!("{HEAD}logging: {{vmodule: [{{filePattern: a, verbosity: 1}}]}}\n"));
    let mut found = Vec::new();
    walk(&serde_json::to_value(object).unwrap(), &mut Vec::new(), &mut found);
    // Durations are texts, but this one takes nanoseconds too.
    found.push(vec!["logging".to_owned(), "flushFrequency".to_owned()]);
    found.into_iter().map(|path| (path.clone(), decode(&file(&path, "2.5")).is_ok())).collect()
}

/// A file that says one thing, in YAML's flow form.
fn file(path: &[String], value: &str) -> String {
    let nested = path.iter().rev().fold(value.to_owned(), |inner, name| match name.as_str() {
        "[]" => format!("[{inner}]"),
        name => format!("{{ {name}: {inner} }}"),
    });
    let body = nested.strip_prefix("{ ").and_then(|text| text.strip_suffix(" }")).unwrap();
    format!("{HEAD}{body}\n")
}

/// The same in JSON.
fn json(path: &[String], value: &str) -> String {
    let nested = path.iter().rev().fold(value.to_owned(), |inner, name| match name.as_str() {
        "[]" => format!("[{inner}]"),
        name => format!("{{\"{name}\":{inner}}}"),
    });
    let head =
        r#"{"apiVersion":"kubeproxy.config.k8s.io/v1alpha1","kind":"KubeProxyConfiguration","#;
    format!("{head}{}", nested.strip_prefix('{').unwrap())
}

// N2: whatever Go's reader of YAML takes for a whole number is one, in each field.
#[test]
fn whole_numbers_in_every_spelling() {
    const SPELLINGS: [(&str, &str); 32] = [
        ("8", "8"),
        ("+8", "8"),
        ("8.0", "8"),
        ("8.", "8"),
        ("8.000000e+00", "8"),
        ("8e0", "8"),
        ("8E0", "8"),
        ("80e-1", "8"),
        (".8e1", "8"),
        ("0.8e+1", "8"),
        ("1.6e+01", "16"),
        ("1E3", "1000"),
        ("1e3", "1000"),
        ("1e+3", "1000"),
        ("1e03", "1000"),
        ("1.000000e+03", "1000"),
        ("1_000", "1000"),
        ("1_0_0_0", "1000"),
        ("1__000", "1000"),
        ("1000_", "1000"),
        ("1_000.0", "1000"),
        ("0x10", "16"),
        ("0X1f", "31"),
        ("0x1_0", "16"),
        ("0o17", "15"),
        ("017", "15"),
        ("0_17", "15"),
        ("08", "8"),
        ("0b11", "3"),
        ("+0x10", "16"),
        ("!!int 8", "8"),
        ("!!int \"8\"", "8"),
    ];
    let numbers = numbers();
    assert!(numbers.len() >= 10, "{numbers:?}");
    for (path, _) in &numbers {
        for (spelling, plain) in SPELLINGS {
            let text = file(path, spelling);
            let expected = decode(&file(path, plain)).unwrap_or_else(|e| panic!("{path:?}: {e:?}"));
            let decoded = decode(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(decoded, expected, "{text}");
            assert_eq!(decoded.ignored, Vec::<String>::new(), "{text}");
        }
        for (spelling, plain) in [("8.0", "8"), ("1E3", "1000"), ("1.6e+01", "16"), ("-0.0", "0")] {
            let text = json(path, spelling);
            let decoded = decode(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(decoded.object, decode(&file(path, plain)).unwrap().object, "{text}");
        }
    }
}

// N2: what is no whole number, or does not fit, stays an error that names the field.
#[test]
fn what_is_no_whole_number_is_refused_in_every_field() {
    for (path, fractions) in numbers() {
        let mut refused =
            vec!["\"8\"", "'8'", "8x", "1:30", "0x", "09x", "true", "[8]", "yes", "!!str 8"];
        if !fractions {
            refused.extend(["8.5", "1e-1", "0.1", ".inf", ".nan", "1e30", "99999999999999999999"]);
        }
        // A text is a duration there, and a wrong one.
        for spelling in refused {
            let text = file(&path, spelling);
            let error = decode(&text).map(|decoded| decoded.object).expect_err(&text);
            assert!(matches!(&error, DecodeError::Type { .. }), "{text}: {error:?}");
        }
    }
}

// N2: a quantity of Kubernetes, as a number and as a text.
#[test]
fn quantities_in_every_spelling() {
    let read = |text: &str| {
        decode(&format!("{HEAD}logging: {{options: {{json: {{infoBufferSize: {text}}}}}}}\n"))
            .map(|decoded| decoded.object.logging.options.json.info_buffer_size)
    };
    for text in [
        "1.5",
        ".5",
        "5.",
        "1e-3",
        "1.5e3",
        "1e3",
        "1E3",
        "999999999999999999999",
        "1e1000",
        "64Ki",
        "0.5Mi",
        "1.5Gi",
        "1Ei",
        "1E",
        "1500m",
        "100u",
        "5n",
        "+5",
        "-5",
        "12e6",
        "'1e+3'",
        "' 64Ki '",
    ] {
        assert!(!read(text).expect(text).is_zero(), "{text}");
    }
    for text in ["0", "0.0", "'0'", "0Ki", "-0", "0e5", "000m", "~"] {
        assert!(read(text).expect(text).is_zero(), "{text}");
    }
    for text in [
        "''", "'1 Ki'", "1ki", "1K", "1KB", "1e2Ki", "'1e'", "1.2.3", "Ki", "'.'", "+-5", "true",
        "[1]",
    ] {
        assert!(matches!(read(text), Err(DecodeError::Type { .. })), "{text}");
    }
}

// Every spelling of nothing leaves the default, in each field.
#[test]
fn nulls_leave_every_default() {
    let expected = decode(HEAD).unwrap().object;
    for (path, _) in numbers().into_iter().filter(|(path, _)| !path.contains(&"[]".to_owned())) {
        for null in ["~", "null", "Null", "NULL", "", "!!null ''"] {
            let text = file(&path, null);
            let decoded = decode(&text).unwrap_or_else(|e| panic!("{text}: {e:?}"));
            assert_eq!(decoded.object, expected, "{text}");
        }
    }
}

// N2: bools as YAML 1.1 has them, in the letters that Go's reader knows, and no others.
#[test]
fn bools_in_every_spelling() {
    let read = |spelling: &str| {
        decode(&format!("{HEAD}iptables: {{masqueradeAll: {spelling}}}\n"))
            .map(|decoded| decoded.object.iptables.masquerade_all)
    };
    for spelling in ["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"] {
        assert!(read(spelling).expect(spelling), "{spelling}");
    }
    for spelling in
        ["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF", "~"]
    {
        assert!(!read(spelling).expect(spelling), "{spelling}");
    }
    for spelling in ["yEs", "oN", "tRUE", "\"yes\"", "'true'", "1", "0", "t", "!!str true"] {
        assert!(matches!(read(spelling), Err(DecodeError::Type { .. })), "{spelling}");
    }
    // A text that no reader takes for a bool is one, and what they take for one is none.
    let name = |text: &str| {
        decode(&format!("{HEAD}hostnameOverride: {text}\n")).map(|d| d.object.hostname_override)
    };
    for text in ["yEs", "nO", "nuLL", "1:30", "2026-01-01", "0x", "1e999", "host"] {
        assert_eq!(name(text).expect(text), text);
    }
    assert_eq!(name("!!str 12").expect("a text"), "12");
    assert!(name("no").is_err() && name("12").is_err());
}

// Anchors, aliases and merges, as people keep two sections alike.
#[test]
fn aliases_and_merges() {
    let text = format!(
        "{HEAD}iptables: &both {{syncPeriod: 7s, masqueradeAll: true}}\nnftables:\n  <<: *both\n  masqueradeAll: false\n\
         ipvs: {{syncPeriod: *period}}\n"
    );
    assert!(matches!(decode(&text), Err(DecodeError::Syntax(_))), "no such anchor");
    let decoded = decode(&text.replace("syncPeriod: *period", "<<: [*both]")).expect("valid");
    assert_eq!(decoded.object.nftables.sync_period.to_string(), "7s");
    assert!(decoded.object.iptables.masquerade_all && !decoded.object.nftables.masquerade_all);
    assert_eq!(decoded.object.ipvs.sync_period.to_string(), "7s");
    assert_eq!(decoded.ignored, ["unknown field \"ipvs.masqueradeAll\""]);
    let bomb = (0..9).fold(String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n"), |text, n| {
        let items = vec![format!("*a{n}"); 9].join(", ");
        format!("{text}a{0}: &a{0} [{items}]\n", n + 1)
    });
    assert!(matches!(decode(&format!("{HEAD}{bomb}")), Err(DecodeError::Syntax(_))));
    let deep = format!("{HEAD}a: {}{}\n", "[".repeat(50_000), "]".repeat(50_000));
    assert!(matches!(decode(&deep), Err(DecodeError::Syntax(_))));
}

// `::ffff:` addresses are IPv4 ones, as Go has them.
#[test]
fn mapped_addresses_are_ipv4() {
    let config = crate::from_file(
        "bindAddress: ::ffff:192.0.2.1\nclusterCIDR: ::ffff:10.244.0.0/112,fd00::/64\n\
         nodePortAddresses: ['::ffff:192.0.2.0/120', '::/0']\nmetricsBindAddress: '[::ffff:127.0.0.1]:10249'\n",
    );
    assert_eq!(config.bind_address.to_string(), "192.0.2.1");
    assert_eq!(crate::healthz(&config).as_deref(), Some("0.0.0.0:10256"));
    assert_eq!(crate::metrics(&config), "127.0.0.1:10249");
    assert_eq!(config.cluster_cidrs.v4, crate::parse_cidr("10.244.0.0/16"));
    assert_eq!(config.cluster_cidrs.v6, crate::parse_cidr("fd00::/64"));
    assert_eq!(config.nodeport_addresses, crate::cidrs(&["192.0.2.0/24", "::/0"]));
    let pair = "--cluster-cidr=::ffff:10.0.0.0/104,10.0.0.0/8";
    assert_eq!(crate::violations(&[pair], None).0.len(), 1, "both are IPv4");
    let flags = ["--healthz-bind-address=::ffff:192.0.2.1", "--bind-address=::ffff:192.0.2.1"];
    let config = crate::config(&flags, None);
    assert_eq!(crate::healthz(&config).as_deref(), Some("192.0.2.1:10256"));
}
