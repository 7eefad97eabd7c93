//! `kubeweir top`: only with counters, and then what was dialled.

use kubeweir::model::Protocol;
use kubeweir::testing::lab::{Dial, Place};

use super::scene::Scene;

#[test]
fn connections_are_counted_by_service_port() {
    let scene = Scene::with_agent(&["--service-counters"]);
    let to = "10.96.0.10:80".parse().expect("an address");
    assert_eq!(scene.lab.dial(Place::Pod(2), Dial::new(Protocol::Tcp, to), 7).len(), 7);
    let top = scene.kubeweir(&["top", "--once"]);
    assert_eq!(top.code, 0, "{}", top.stderr);
    let line = top.stdout.lines().find(|line| line.starts_with("shop/web:http/tcp"));
    let words: Vec<&str> = line.expect("the service is listed").split_whitespace().collect();
    assert_eq!(words, ["shop/web:http/tcp", "0.0", "7"]);
}

#[test]
fn without_counters_it_says_how_to_get_them() {
    let scene = Scene::with_agent(&[]);
    let top = scene.kubeweir(&["top", "--once"]);
    assert_eq!(top.code, 2);
    assert!(top.stderr.contains("with --service-counters"), "{}", top.stderr);
}
