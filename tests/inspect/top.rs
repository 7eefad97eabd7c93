//! `kubeweir top`: only with counters, and then what was dialled.

use kubeweir::model::Protocol;
use kubeweir::testing::lab::{Dial, Outcome, Place};

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
    assert_eq!(words, ["shop/web:http/tcp", "0.0", "7", "0.0", "0"]);
}

#[test]
fn what_is_refused_is_told_by_reason() {
    let scene = Scene::with_agent(&["--service-counters"]);
    let to = "10.96.0.11:80".parse().expect("an address");
    let (mut packets, mut last_minute) = (0, 0);
    // The agent has looked before, as soon as some are of the last minute.
    scene.wait_for("something in the last minute", |scene| {
        let refused = scene.lab.dial(Place::Pod(2), Dial::new(Protocol::Tcp, to), 3);
        assert_eq!(refused, vec![Outcome::Refused; 3]);
        packets += 3;
        let status = scene.kubeweir(&["status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
        let dropped = &status["families"]["IPv4"]["dropped"];
        assert_eq!(dropped["no-endpoints"]["packets"], packets, "{dropped}");
        assert_eq!(dropped["unused-port"], serde_json::json!({ "packets": 0, "last_minute": 0 }));
        last_minute = dropped["no-endpoints"]["last_minute"].as_u64().expect("a number");
        last_minute > 0
    });
    assert!(last_minute <= packets, "{last_minute} of {packets}");

    let row = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("refused, no usable endpoint"));
        let words = line.unwrap_or_else(|| panic!("no row in\n{text}")).split_whitespace();
        words.map(str::to_owned).collect::<Vec<String>>()
    };
    let status = row(&scene.kubeweir(&["status"]).stdout);
    assert_eq!((&*status[5], &*status[7]), ("IPv4", &*packets.to_string()), "{status:?}");
    let top = scene.kubeweir(&["top", "--once"]).stdout;
    let cart = top.lines().find(|line| line.starts_with("shop/cart:http/tcp"));
    let words: Vec<&str> = cart.expect("the service is listed").split_whitespace().collect();
    assert_eq!(words[3..], ["0.0", &*packets.to_string()], "{top}");
    let top = row(&top);
    assert_eq!(top[5..], ["0.0".to_owned(), packets.to_string()]);
    let explained = scene.kubeweir(&["explain", "10.244.0.12", "10.96.0.11:80"]).stdout;
    for sentence in [
        format!("\n  refused {packets} times so far, "),
        " times in the last minute: packets of all clients".to_owned(),
        format!("\n  {packets} times to shop/cart:http since it is so\n"),
    ] {
        assert!(explained.contains(&sentence), "{sentence:?} in {explained}");
    }
}

#[test]
fn without_counters_it_says_how_to_get_them() {
    let scene = Scene::with_agent(&[]);
    let top = scene.kubeweir(&["top", "--once"]);
    assert_eq!(top.code, 2);
    assert!(top.stderr.contains("with --service-counters"), "{}", top.stderr);
}
