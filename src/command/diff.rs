//! `kubeweir diff`.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::input::{self, object_name};
use super::{CommandError, print, print_json};
use crate::cli::people::{DiffArgs, Output};
use crate::inspect::diff::{FamilyDiff, Names, Words, compare};
use crate::inspect::listing::{Listing, parse};
use crate::inspect::view::View;
use crate::inspect::wanted::wanted;
use crate::kernel::Kernel;
use crate::model::{Families, Family, Object};
use crate::netlink::NetlinkKernel;
use crate::node::addresses;
use crate::node::families::Ipv6State;
use crate::node::nodeport::Hint;
use crate::text::tell;

/// Compares, prints, and answers with the exit code.
pub fn run(args: &DiffArgs) -> Result<ExitCode, CommandError> {
    let service = args.service.as_deref().map(object_name).transpose()?;
    let (mut diffs, names) = match &args.renders[..] {
        [found, wanted] => (files(found, wanted)?, file_names(found, wanted)),
        _ => (kernel(args)?, kernel_names()),
    };
    if let Some(service) = service {
        diffs = diffs.into_iter().map(|diff| diff.of_service(&service.to_string())).collect();
    }
    let equal = diffs.iter().all(FamilyDiff::is_empty);
    match args.output {
        Output::Json => print_json(&json!({
            "equal": equal,
            "found": names.found,
            "wanted": names.wanted,
            "families": diffs,
        }))?,
        Output::Text if equal => print("no difference\n")?,
        Output::Text => print(&Words { diffs: &diffs, names: &names }.to_string())?,
    }
    if args.renders.is_empty() && !args.source.agent && diffs.iter().any(FamilyDiff::is_of_set_up) {
        tell(
            "note: the rules themselves differ; does diff have the agent's flags or its --config, and its version?\n",
        );
    }
    Ok(ExitCode::from(u8::from(!equal)))
}

fn file_names(found: &Path, wanted: &Path) -> Names {
    Names { found: found.display().to_string(), wanted: wanted.display().to_string() }
}

fn kernel_names() -> Names {
    Names { found: "the kernel".to_owned(), wanted: "the objects".to_owned() }
}

fn files(found: &Path, wanted: &Path) -> Result<Vec<FamilyDiff>, CommandError> {
    let (found, wanted) = (listing(found)?, listing(wanted)?);
    let of = |tables: &[Listing], family: &str| {
        tables.iter().find(|table| table.family == family).map(Listing::view)
    };
    let compare = |family: Family| {
        let family = family.nft();
        compare(family, of(&found, family).as_ref(), of(&wanted, family).as_ref())
    };
    Ok(Family::BOTH.map(compare).to_vec())
}

fn listing(path: &Path) -> Result<Vec<Listing>, CommandError> {
    parse(&input::read(path)?)
        .map_err(|source| CommandError::Listing { path: path.to_owned(), source })
}

/// Objects, addresses and rules are read one after the other, and the agent needs its time for a
/// change: what differs is looked at again.
const LOOKS: usize = 3;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

fn kernel(args: &DiffArgs) -> Result<Vec<FamilyDiff>, CommandError> {
    let setup = input::setup(&args.node, &args.source)?;
    let read = || input::objects(&args.source, &setup.node, setup.allow_external_ips());
    let mut objects = read()?;
    let mut kernel = NetlinkKernel::open()?;
    let (mut diffs, hints) = look(&mut kernel, &setup, &objects)?;
    input::tell_hints(&hints);
    for _ in 1..LOOKS {
        if diffs.iter().all(FamilyDiff::is_empty) {
            break;
        }
        std::thread::sleep(PAUSE);
        // Files are not on their way, and stdin is at its end.
        if args.source.filenames.is_empty() {
            objects = read()?;
        }
        let (later, _) = look(&mut kernel, &setup, &objects)?;
        diffs =
            later.into_iter().zip(&diffs).map(|(later, earlier)| later.after(earlier)).collect();
    }
    Ok(diffs)
}

/// Both families of this network namespace as they are, against what the objects ask for.
fn look(
    kernel: &mut NetlinkKernel,
    setup: &input::Setup,
    objects: &[Object],
) -> Result<(Vec<FamilyDiff>, Vec<Hint>), CommandError> {
    let assigned = super::block_on(addresses::read())??;
    let ipv6 = Ipv6State::read(Path::new("/")) == Ipv6State::Enabled;
    let families = Families { v4: true, v6: ipv6 };
    let (node, hints) = setup.for_objects(objects, Some(assigned), families, true);
    let wanted = wanted(objects, node)?;
    let mut diffs = Vec::new();
    for family in families.iter() {
        let found = View::of(&kernel.dump(family)?);
        let wanted = View::of(&wanted.rulesets[family]);
        diffs.push(compare(family.nft(), found.as_ref(), wanted.as_ref()));
    }
    Ok((diffs, hints))
}
