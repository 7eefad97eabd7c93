//! The `kubeweir` binary: parse, start, exit code.

fn main() {}
