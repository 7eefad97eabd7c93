//! nft and commits in the calling thread's namespace.

use std::process::Command;

use kubeweir::kernel::{CommitError, Committed, Kernel, Op, Transaction};
use kubeweir::model::Family;
use kubeweir::netlink::NetlinkKernel;

/// Runs nft in the calling thread's namespace: standard output if it succeeds, else its complaint.
pub fn nft(arguments: &str) -> Result<String, String> {
    let output = Command::new("nft").args(arguments.split(' ')).output().expect("nft is installed");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() && output.stderr.is_empty() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

/// Commits operations on a family's table.
pub fn commit(
    kernel: &mut NetlinkKernel,
    family: Family,
    ops: Vec<Op>,
) -> Result<Committed, CommitError> {
    kernel.commit(&Transaction { family, ops })
}
