//! Whom we trust: certificates of clusters as they are, each shown by a real server.
//!
//! The certificates are made by `tests/data/certificates/make`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubeweir::model::Kind;
use kubeweir::testing::ApiServer;
use kubeweir::testing::api_server::{Break, Chain, Signal};
use serde_json::{Value, json};

use super::setup::*;

fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/certificates")
}

/// The certificates of a case.
pub fn chain(name: &str) -> Chain {
    let read = |path: &str| fs::read_to_string(certificates().join(path)).unwrap();
    Chain {
        trusted: read(&format!("{name}/trusted")),
        shown: read(&format!("{name}/shown")),
        key: read("server.key"),
    }
}

fn cases(verdict: &str) -> Vec<String> {
    let entries = fs::read_dir(certificates()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(verdict)).collect();
    names.sort();
    names
}

/// A server with these certificates and one Service.
pub fn showing(chain: Chain) -> Setup {
    let setup = Setup { server: ApiServer::start_with(LOOPBACK, chain).unwrap(), ..Setup::new() };
    setup.server.put(&service("a"));
    setup
}

/// A case, until its server was read or a try has failed.
fn shown(name: &str) -> Setup {
    let setup = showing(chain(name));
    setup.watch(&setup.client(setup.options()), Kind::Service);
    setup.wait(name, || setup.failures() > 0 || setup.names(Kind::Service).len() == 1);
    setup
}

// The server's own certificate as CA, P-256 with SHA-512, P-521: no connection.
#[test]
fn what_go_trusts_is_trusted() {
    let names = cases("good-");
    assert!(names.len() > 25, "{names:?}");
    for name in names {
        let setup = shown(&name);
        assert_eq!(setup.failures(), 0, "{name}");
    }
}

#[test]
fn what_go_does_not_trust_is_not_trusted() {
    let names = cases("bad-");
    assert!(names.len() > 9, "{names:?}");
    for name in names {
        let setup = shown(&name);
        assert!(setup.names(Kind::Service).is_empty(), "{name}");
        assert!(setup.server.requests().is_empty(), "{name}: nothing is told");
    }
}

#[test]
fn rubbish_beside_good_certificates_costs_nothing() {
    let good = chain("good-ca-flag");
    let other = chain("good-ed25519").trusted;
    let lines = good.trusted.lines().collect::<Vec<_>>();
    let without_end = lines[..lines.len() - 1].join("\n");
    let cut = lines[..3].join("\n");
    let key = &good.key;
    let no_base64 = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----";
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----";
    let trusted = &good.trusted;
    let bundles = [
        format!("subject=/CN=ca\n# what this is\n{trusted}"),
        format!("{no_base64}\n{trusted}"),
        format!("{trusted}{no_base64}\n"),
        format!("{no_certificate}\n{trusted}{no_certificate}"),
        format!("{cut}\n{trusted}"),
        format!("{without_end}\n{trusted}"),
        format!("{trusted}{cut}"),
        format!("{key}{other}{trusted}"),
        format!("\u{feff}{trusted}"),
        trusted.replace('\n', "\r\n"),
        trusted.trim_end().to_owned(),
    ];
    for bundle in bundles {
        for inline in [false, true] {
            let setup = showing(Chain { trusted: bundle.clone(), ..good.clone() });
            let options = setup.options();
            if inline {
                change(&setup, |cluster, _| {
                    cluster.as_object_mut().unwrap().remove("certificate-authority");
                    let data = k8s_openapi::ByteString(bundle.clone().into_bytes());
                    cluster["certificate-authority-data"] = json!(data);
                });
            }
            setup.watch(&setup.client(options), Kind::Service);
            setup.wait_for(Kind::Service, &["shop/a"]);
            assert_eq!(setup.failures(), 0, "{bundle}");
        }
    }
    let setup = showing(Chain { trusted: no_base64.to_owned(), ..good });
    let error = kubeweir::api::Client::new(setup.options(), std::sync::Arc::new(|_| {}));
    assert!(error.unwrap_err().to_string().contains("ca.crt"), "nothing to trust is an error");
}

/// Changes cluster and user of the kubeconfig.
fn change(setup: &Setup, change: impl FnOnce(&mut Value, &mut Value)) {
    let path = setup.directory.path().join("kubeconfig");
    let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let mut cluster = value["clusters"][0]["cluster"].take();
    change(&mut cluster, &mut value["users"][0]["user"]);
    value["clusters"][0]["cluster"] = cluster;
    fs::write(&path, value.to_string()).unwrap();
}

// "No CA certificates were loaded from the system" where none was needed.
#[test]
fn without_a_system_store_everything_works_that_needs_none() {
    let setup = showing(chain("bad-name"));
    for name in ["insecure", "by its name"] {
        setup.options();
        change(&setup, |cluster, _| match name {
            "insecure" => {
                cluster.as_object_mut().unwrap().remove("certificate-authority");
                cluster["insecure-skip-tls-verify"] = true.into();
            }
            _ => cluster["tls-server-name"] = "192.0.2.1".into(),
        });
        let before = setup.server.requests().len();
        // A process of its own, with a store that is empty.
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_kubeweir"))
            .args(["render", "--node=node-a", "--kubeconfig"])
            .arg(setup.directory.path().join("kubeconfig"))
            .env_clear()
            .env("SSL_CERT_FILE", "/dev/null")
            .env("SSL_CERT_DIR", "/nonexistent")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(setup.server.requests().len() > before, "{name}: {said}");
    }
}

// The system's store where no CA is named; an empty one ends nothing.
#[test]
fn the_systems_store_stands_in_for_a_ca_that_is_not_named() {
    let setup = showing(chain("good-secp521r1-sha512"));
    setup.options();
    change(&setup, |cluster, _| {
        cluster.as_object_mut().unwrap().remove("certificate-authority");
    });
    let client = setup.client(options(Some(setup.directory.path().join("kubeconfig")), None));
    setup.watch(&client, Kind::Service);
    setup.wait("a refused handshake", || setup.failures() > 0);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kubeweir"))
        .args(["render", "--node=node-a", "--kubeconfig"])
        .arg(setup.directory.path().join("kubeconfig"))
        .env("SSL_CERT_FILE", setup.directory.path().join("ca.crt"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!setup.server.requests().is_empty(), "{said}");
}

#[test]
fn client_certificates_are_shown_and_rotate() {
    for inline in [false, true] {
        let setup = Setup::new();
        setup.server.put(&service("a"));
        setup.options();
        let write = |certificate: &str, key: &str| {
            let place = |name: &str| setup.directory.path().join(name);
            // openssl writes the parameters of a curve in front of its key.
            let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n\
                              -----END EC PARAMETERS-----\n";
            fs::write(place("client.key"), format!("{parameters}{key}")).unwrap();
            fs::write(place("client.crt"), format!("of the node\n{certificate}")).unwrap();
            change(&setup, |_, user| {
                let data = |text: &str| json!(k8s_openapi::ByteString(text.as_bytes().to_vec()));
                *user = match inline {
                    true => json!({
                        "client-certificate-data": data(certificate), "client-key-data": data(key),
                    }),
                    false => json!({
                        "client-certificate": "client.crt", "client-key": "client.key",
                    }),
                };
            });
        };
        let (certificate, key) = setup.server.demand_certificate();
        write(&certificate, &key);
        let kubeconfig = setup.directory.path().join("kubeconfig");
        setup.watch(&setup.client(options(Some(kubeconfig), None)), Kind::Service);
        setup.wait_for(Kind::Service, &["shop/a"]);
        assert_eq!(setup.failures(), 0);
        let (certificate, key) = setup.server.demand_certificate();
        write(&certificate, &key);
        setup.server.break_connections(Break::Cut);
        setup.server.put(&service("b"));
        setup.wait_for(Kind::Service, &["shop/a", "shop/b"]);
        assert_eq!(setup.lists(Kind::Service), 1, "inline {inline}");
    }
}

// A file that ends in a newline was read again only after a refusal.
#[test]
fn a_token_file_is_read_again_without_a_refusal_whatever_it_ends_with() {
    let setup = Setup::new();
    setup.options();
    let file = setup.directory.path().join("token");
    fs::write(&file, "first\n").unwrap();
    change(&setup, |_, user| user["tokenFile"] = "token".into());
    let kubeconfig = setup.directory.path().join("kubeconfig");
    let client = setup.client(options(Some(kubeconfig), None));
    setup.watch(&client, Kind::Service);
    setup.wait("a watch", || setup.server.open_streams(Kind::Service) == 1);
    let sent = || setup.server.requests().last().unwrap().headers["authorization"].clone();
    assert_eq!(sent(), "Bearer first");
    for (text, want) in [("second\r\n", "Bearer second"), (" third \n\n", "Bearer third")] {
        // An empty file is one that is just being written.
        fs::write(&file, "").unwrap();
        fs::write(&file, text).unwrap();
        let asked = std::cell::Cell::new(0);
        setup.wait(want, || {
            let requests = setup.server.requests();
            let is_old = requests.last().unwrap().at.elapsed() > Duration::from_secs(2);
            if requests.len() > asked.get() && is_old {
                asked.set(requests.len());
                setup.server.signal(Kind::Service, Signal::End);
            }
            sent() == want
        });
    }
    let requests = setup.server.requests();
    assert!(requests.iter().all(|request| request.answered != Some(401)));
    let spread = requests.last().unwrap().at - requests[0].at;
    assert!(spread < Duration::from_secs(45), "{spread:?}");
}
