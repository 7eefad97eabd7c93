//! What is secret shows up nowhere: not in the log, however much is logged, and on no page.

use std::fs;

use kubeweir::testing::lab::NODE_NAME;
use serde_json::{Value, json};

use crate::site::{HEALTHZ, METRICS, Site};

const SECRET: &str = "wire-me-not-8f3a";
/// The same as basic authentication and key data write it.
const ENCODED: [&str; 2] = ["dTp3aXJlLW1lLW5vdC04ZjNh", "d2lyZS1tZS1ub3QtOGYzYQ=="];

/// Everything logged and shown so far has none of it.
fn assert_secret_kept(title: &str, text: &str) {
    for secret in [SECRET, ENCODED[0], ENCODED[1]] {
        let line = text.lines().find(|line| line.contains(secret));
        assert!(line.is_none(), "{title}: {}", line.unwrap_or_default());
    }
}

/// Starts the agent with a kubeconfig of this user, logging all there is.
fn launch(site: &Site, user: &Value) -> crate::site::Proxy {
    let config = site.config(|config| {
        config["logging"]["verbosity"] = 10.into();
        config["enableProfiling"] = true.into();
    });
    let path = site.path("kubeconfig");
    let mut kubeconfig: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    kubeconfig["users"][0]["user"] = user.clone();
    fs::write(path, kubeconfig.to_string()).unwrap();
    site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")])
}

fn log(site: &Site) -> String {
    fs::read_to_string(site.path("log")).unwrap()
}

#[test]
fn credentials_are_neither_logged_nor_shown() {
    let site = Site::bare();
    site.server.demand_token(SECRET);
    let users = [
        ("a token", json!({ "token": SECRET }), true),
        ("a token's file", json!({ "tokenFile": "token" }), true),
        ("a password", json!({ "username": "u", "password": SECRET }), false),
        ("another token", json!({ "token": format!("{SECRET}-old") }), false),
    ];
    for (title, user, admitted) in users {
        let proxy = launch(&site, &user);
        if admitted {
            site.wait(&proxy, title, || {
                let loopback = std::net::Ipv4Addr::LOCALHOST.into();
                [METRICS, HEALTHZ].iter().all(|port| site.listens(loopback, *port))
            });
            proxy.wait_log(&["Synced", "IPv6"]);
            for path in ["/metrics", "/configz", "/flagz", "/statusz", "/kubeweir/status"] {
                let answer = site.get(METRICS, path);
                assert_eq!(answer.status, 200, "{path}");
                assert_secret_kept(path, answer.text());
            }
            assert_secret_kept("/healthz", site.get(HEALTHZ, "/healthz").text());
        } else {
            proxy.wait_log(&["nauthorized"]);
        }
        proxy.terminate();
        assert_secret_kept(title, &log(&site));
    }
    assert!(log(&site).lines().count() > 100, "much is logged:\n{}", log(&site));
}

// What cannot be read is not quoted either.
#[test]
fn a_malformed_kubeconfig_is_not_quoted() {
    let site = Site::bare();
    for (title, user) in [
        ("a text in place of a user", json!(SECRET)),
        ("a list in place of a token", json!({ "token": [SECRET] })),
        ("a text in place of a plugin", json!({ "exec": SECRET })),
        (
            "a key that is none",
            json!({ "client-key-data": ENCODED[1],
                                       "client-certificate-data": ENCODED[1] }),
        ),
        (
            "a key that is not base64",
            json!({ "client-key-data": format!("{SECRET}!"),
                                             "client-certificate-data": format!("{SECRET}!") }),
        ),
    ] {
        let (code, text) = launch(&site, &user).end();
        assert_eq!(code, Some(1), "{title}: {text}");
        assert!(text.contains("kubeconfig") || text.contains("credentials"), "{title}: {text}");
        assert_secret_kept(title, &log(&site));
    }
}
