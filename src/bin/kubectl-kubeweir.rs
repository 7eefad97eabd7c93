//! The `kubectl-kubeweir` binary, which kubectl finds by its name: parse, ask, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    kubeweir::desk::run(std::env::args_os())
}
