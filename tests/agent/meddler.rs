//! A program that runs whenever the agent is about to commit, and decides what becomes of the batch.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kubeweir::testing::lab::NODE_NAME;
use serde_json::Value;

use crate::site::{Proxy, Site};

/// Exit code of a script: the batch cannot be sent.
pub const UNSENT: u8 = 75;
/// Exit code of a script: the kernel's answer is lost.
pub const UNANSWERED: u8 = 76;

/// Starts the agent with this shell script before each of its batches, once [`begin`] was called.
/// Tables are not owned, so that the script may change them. A file `$MEDDLED` that the script makes
/// is gone when the agent has read elements of IPv4 since.
pub fn launch(site: &Site, script: &str, change: impl FnOnce(&mut Value)) -> Proxy {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agent/meddler.c");
    let library = site.path("meddler.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    let built = compiler.status().expect("cc; see DEBIAN_BUILD_PACKAGES in the Makefile");
    assert!(built.success());
    let program = site.path("meddler");
    fs::write(&program, format!("[ -e {} ] || exit 0\n{script}\n", switch(site).display()))
        .unwrap();
    let config = site.config(|config| {
        config["kubeweir"]["tableOwnership"] = false.into();
        change(config);
    });
    let arguments = [
        format!("LD_PRELOAD={}", library.display()),
        format!("MEDDLER={}", program.display()),
        format!("MEDDLED={}", site.path("meddled").display()),
        site.path("kube-proxy").display().to_string(),
        config,
        format!("--hostname-override={NODE_NAME}"),
    ];
    site.launch_by(Path::new("env"), &arguments.map(OsString::from))
}

/// From now on the script runs.
pub fn begin(site: &Site) {
    fs::write(switch(site), "").unwrap();
}

/// From now on it does not.
pub fn end(site: &Site) {
    fs::remove_file(switch(site)).unwrap();
}

fn switch(site: &Site) -> PathBuf {
    site.path("meddling")
}
