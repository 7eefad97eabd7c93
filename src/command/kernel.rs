//! `kubeweir check` and `kubeweir release`: what the kernel can do, and what a crashed agent left in it.

use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use super::{CommandError, print, print_json};
use crate::cli::people::{CheckArgs, Output};
use crate::inspect::features::{Feature, features};
use crate::kernel::{DumpError, Kernel};
use crate::model::{Families, Family};
use crate::netlink::{NetlinkKernel, rehearse};
use crate::node::families::{Ipv6State, SKIP_KERNEL_CHECK, check_kernel};
use crate::program::SetId;
use crate::ruleset::{Ownership, Table};
use crate::sync;
use crate::text::with_causes;
use crate::text::{red, table};

#[derive(Debug, Serialize)]
struct Finding {
    feature: &'static str,
    /// Empty for what has no family.
    family: &'static str,
    ok: bool,
    required: bool,
    reason: Option<String>,
}

/// Tries everything; 1 if something that is needed is missing.
pub fn check(args: &CheckArgs) -> Result<ExitCode, CommandError> {
    let mut findings = vec![release_of_kernel(), conntrack()];
    let ipv6 = Ipv6State::read(Path::new("/")) == Ipv6State::Enabled;
    privileged()?;
    for family in (Families { v4: true, v6: ipv6 }).iter() {
        for feature in features(family) {
            findings.push(attempt(family, feature)?);
        }
    }
    let missing = findings.iter().any(|finding| finding.required && !finding.ok);
    match args.output {
        Output::Json => print_json(&findings)?,
        Output::Text => print(&text(findings))?,
    }
    Ok(ExitCode::from(u8::from(missing)))
}

/// Without CAP_NET_ADMIN every attempt would fail, and tell nothing of the kernel.
fn privileged() -> Result<(), CommandError> {
    match NetlinkKernel::open()?.dump_set(Family::V4, &SetId::ClusterIps.name()) {
        Err(DumpError::Io { what, family, source })
            if source.kind() == ErrorKind::PermissionDenied =>
        {
            Err(DumpError::Io { what, family, source }.into())
        }
        _ => Ok(()),
    }
}

fn release_of_kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let skip = std::env::var(SKIP_KERNEL_CHECK).ok();
    let reason = check_kernel(&release, skip.as_deref()).err().map(|error| error.to_string());
    Finding {
        feature: "kernel 5.13 or newer",
        family: "",
        ok: reason.is_none(),
        required: true,
        reason,
    }
}

fn conntrack() -> Finding {
    let path = "/proc/sys/net/netfilter/nf_conntrack_max";
    let reason = std::fs::metadata(path).err().map(|error| format!("{path}: {error}"));
    // Loaded with the first rule that needs it.
    Finding {
        feature: "conntrack sysctls",
        family: "",
        ok: reason.is_none(),
        required: false,
        reason,
    }
}

fn attempt(family: Family, feature: Feature) -> Result<Finding, CommandError> {
    let reason = rehearse(family, feature.table, feature.ops)?.err().map(|e| with_causes(&e));
    Ok(Finding {
        feature: feature.name,
        family: family.nft(),
        ok: reason.is_none(),
        required: feature.required,
        reason,
    })
}

fn text(findings: Vec<Finding>) -> String {
    let rows = findings.into_iter().map(|finding| {
        let result = match (finding.ok, finding.required) {
            (true, _) => "yes".to_owned(),
            (false, true) => red("NO"),
            (false, false) => "no (not needed)".to_owned(),
        };
        let family = finding.family.to_owned();
        vec![finding.feature.to_owned(), family, result, finding.reason.unwrap_or_default()]
    });
    table(&["FEATURE", "FAMILY", "THERE", "REASON"], rows)
}

/// Makes persistent tables plain; 1 if an agent still owns one.
pub fn release() -> Result<ExitCode, CommandError> {
    let mut kernel = NetlinkKernel::open()?;
    let (mut text, mut owned) = (String::new(), false);
    for family in Family::BOTH {
        let state = match kernel.table(family)? {
            None => "not there",
            Some(Table { owner: Ownership::Ours | Ownership::Other(_), .. }) => {
                owned = true;
                "owned by an agent that runs: end it with SIGTERM, and it does the same"
            }
            Some(table) if table.persist => {
                sync::release(&mut kernel, family)
                    .map_err(|source| CommandError::Release { family, source })?;
                "plain now, its rules are in force as before"
            }
            Some(_) => "plain already",
        };
        text += &format!("table {} kube-proxy: {state}\n", family.nft());
    }
    print(&text)?;
    Ok(ExitCode::from(u8::from(owned)))
}
