//! `make demo`: a shop's Services on a node made of network namespaces, dialled from everywhere.
//!
//! Runs the real binary on a directory of manifests, prints who answered whom, changes two objects
//! live, and shows parts of the ruleset. Whatever comes out otherwise than expected makes it fail,
//! so it is also run with the tests.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod dials;
mod live;
mod scene;

use std::process::ExitCode;
use std::time::Instant;

use scene::Scene;

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("{wrong} results were not as expected");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("the demo cannot run (it needs root, ip, nft and setpriv): {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// How many results were not as expected.
fn run() -> anyhow::Result<usize> {
    let start = Instant::now();
    heading("A node, its pods, a second node, and a client outside");
    let mut scene = Scene::build()?;
    println!("{}", scene::PICTURE);
    println!("built in {:.0?}; nothing of it is visible outside this process", start.elapsed());

    heading("kubeweir run --manifests DIR --node node-a --cluster-cidr ...");
    scene.start_agent()?;
    let served = scene.wait_until_served()?;
    println!("{} files; the first answer through a Service after {served:.0?}", scene.files()?);

    heading("Who dials what, who answers, and which client it sees");
    let wrong = dials::show(&scene);

    heading("Changes while it runs");
    let late = live::show(&scene)?;

    heading("What the kernel holds now (parts of: nft list ruleset)");
    for part in [
        "chain ip kube-proxy nat-prerouting",
        "chain ip kube-proxy frontends",
        "chain ip kube-proxy frontends",
        "chain ip kube-proxy masquerading",
        "map ip kube-proxy endpoints-1",
        "map ip kube-proxy endpoints-4",
        "set ip kube-proxy refused-services",
    ] {
        println!("{}\n", scene.nft_list(part)?);
    }
    scene.stop_agent()?;
    println!("all of it took {:.1?}", start.elapsed());
    Ok(wrong + late)
}

fn heading(text: &str) {
    println!("\n== {text}\n");
}
