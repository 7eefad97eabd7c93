//! Handshakes with a server that is not rustls: nginx, which has OpenSSL, in front of a scripted one.
//!
//! Keys and certificates are made by `tests/data/certificates/make`.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kubeweir::testing::api_server::reserve;
use kubeweir::testing::{ApiServer, slowed};
use serde_json::json;
use socket2::Socket;

use super::setup::*;

/// What is usable of OpenSSL's is what a test says, not what Debian thinks of it.
const ANY_KEY: &str = ":@SECLEVEL=0";

fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/certificates")
}

/// One way to speak TLS.
struct Case {
    name: String,
    /// Whose certificate and key are shown: a directory `server-…`.
    server: &'static str,
    /// nginx's settings.
    settings: String,
    /// Whose certificate and key the client has: a directory `client-…`.
    client: Option<&'static str>,
}

/// nginx, with a port for each case; ends with the test.
struct Front {
    nginx: Child,
    ports: Vec<u16>,
    _reserved: Vec<(Socket, SocketAddr)>,
    setup: Setup,
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.nginx.kill();
        let _ = self.nginx.wait();
    }
}

impl Front {
    fn new(cases: &[Case]) -> Front {
        let server = ApiServer::start_plain(LOOPBACK).unwrap();
        server.put(&service("a"));
        let setup = Setup { server, ..Setup::new() };
        let directory = setup.directory.path().display().to_string();
        // Nobody else is given one before nginx has it.
        let reserved: Vec<_> = cases.iter().map(|_| reserve(LOOPBACK).unwrap()).collect();
        let ports: Vec<u16> = reserved.iter().map(|(_, address)| address.port()).collect();
        let mut text = format!(
            "daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;\n\
             events {{}}\nhttp {{ access_log off; proxy_buffering off; proxy_http_version 1.1;\n"
        );
        for place in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(text, "{place}_temp_path {directory}/{place};").unwrap();
        }
        for (case, port) in cases.iter().zip(&ports) {
            let shown = certificates().join(case.server);
            let shown = shown.display();
            let clients = match case.client {
                Some(_) => format!(
                    "ssl_verify_client on; ssl_client_certificate {};",
                    certificates().join("clients/trusted").display()
                ),
                None => String::new(),
            };
            writeln!(
                text,
                "server {{ listen 127.0.0.1:{port} ssl; {} {clients} ssl_certificate {shown}/shown;\n\
                 ssl_certificate_key {shown}/key; location / {{ proxy_pass http://{}; }} }}",
                case.settings,
                setup.server.address()
            )
            .unwrap();
        }
        let config = setup.directory.path().join("nginx.conf");
        fs::write(&config, text + "}\n").unwrap();
        let nginx = Command::new("/usr/sbin/nginx")
            .arg("-c")
            .arg(config)
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx is installed");
        Front { nginx, ports, _reserved: reserved, setup }
    }

    /// Writes a kubeconfig for a case.
    fn kubeconfig(&self, case: &Case, port: u16) -> PathBuf {
        let file = |name: &str| certificates().join(name).display().to_string();
        let user = match case.client {
            Some(client) => json!({
                "client-certificate": file(&format!("{client}/shown")),
                "client-key": file(&format!("{client}/key")),
            }),
            None => json!({}),
        };
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "default",
            "clusters": [{ "name": "default", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": file(&format!("{}/trusted", case.server)),
            } }],
            "users": [{ "name": "default", "user": user }],
            "contexts": [{ "name": "default", "context": { "cluster": "default", "user": "default" } }],
        });
        let path = self.setup.directory.path().join(format!("kubeconfig-{port}"));
        fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    /// Lists through nginx; what the log of a program says if that fails.
    fn list(&self, case: &Case, port: u16) -> Result<(), String> {
        let end = Instant::now() + slowed(SOON);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let log = fs::read_to_string(self.setup.directory.path().join("nginx.log"));
            assert!(Instant::now() < end, "{}: {log:?}", case.name);
            std::thread::sleep(Duration::from_millis(5));
        }
        let before = self.setup.server.requests().len();
        let output = Command::new(env!("CARGO_BIN_EXE_kubeweir"))
            .args(["render", "--node=node-a", "--kubeconfig"])
            .arg(self.kubeconfig(case, port))
            .env_clear()
            .output()
            .unwrap();
        let asked = self.setup.server.requests().len() > before;
        match asked && output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }
}

/// Every case that did not go as Go's client has it.
fn complaints(cases: &[Case]) -> Vec<String> {
    let front = Front::new(cases);
    let each = cases.iter().zip(&front.ports);
    let failed = each.filter_map(|(case, &port)| {
        front.list(case, port).err().map(|said| format!("{}: {said}", case.name))
    });
    failed.collect()
}

const VERSIONS: [&str; 2] = ["TLSv1.2", "TLSv1.3"];

fn settings(version: &str, ciphers: &str) -> String {
    format!("ssl_protocols {version}; ssl_ciphers {ciphers}{ANY_KEY};")
}

// P-521, and RSA below 2048 bits with the padding that TLS 1.3 asks for: no connection.
#[test]
fn servers_with_keys_of_every_sort_are_served() {
    let mut cases = Vec::new();
    for server in [
        "server-prime256v1",
        "server-secp384r1",
        "server-secp521r1",
        "server-ed25519",
        "server-rsa1024",
        "server-rsa2048",
        "server-rsa8192",
    ] {
        for version in VERSIONS {
            let name = format!("{server}, {version}");
            cases.push(Case { name, server, settings: settings(version, "ALL"), client: None });
        }
    }
    assert_eq!(complaints(&cases), Vec::<String>::new());
}

// P-521, RSA beyond 2048 to 4096 bits, EC keys without their public half, certificates of
// version 1: "cannot use the credentials".
#[test]
fn clients_with_keys_of_every_sort_are_known() {
    let mut cases = Vec::new();
    for client in [
        "client-prime256v1",
        "client-prime256v1-without-public",
        "client-secp384r1",
        "client-secp384r1-without-public",
        "client-secp521r1",
        "client-secp521r1-pkcs8",
        "client-ed25519",
        "client-rsa1024",
        "client-rsa2048",
        "client-rsa2048-pkcs1",
        "client-rsa2048-mislabelled",
        "client-rsa2048-e3",
        "client-rsa3000",
        "client-rsa4608",
        "client-version1",
    ] {
        for version in VERSIONS {
            cases.push(Case {
                name: format!("{client}, {version}"),
                server: "server-prime256v1",
                settings: settings(version, "ALL"),
                client: Some(client),
            });
        }
    }
    assert_eq!(complaints(&cases), Vec::<String>::new());
}

// Whatever Go offers by itself. Suites with CBC and HMAC are left out: see tests/deviations.md.
#[test]
fn every_group_and_cipher_of_go_is_spoken() {
    let mut cases = Vec::new();
    for version in VERSIONS {
        for group in ["X25519", "prime256v1", "secp384r1", "secp521r1"] {
            cases.push(Case {
                name: format!("{group}, {version}"),
                server: "server-rsa2048",
                settings: format!("{} ssl_ecdh_curve {group};", settings(version, "ALL")),
                client: None,
            });
        }
    }
    for (server, cipher) in [
        ("server-rsa2048", "ECDHE-RSA-AES128-GCM-SHA256"),
        ("server-rsa2048", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("server-rsa2048", "ECDHE-RSA-CHACHA20-POLY1305"),
        ("server-prime256v1", "ECDHE-ECDSA-AES128-GCM-SHA256"),
        ("server-prime256v1", "ECDHE-ECDSA-AES256-GCM-SHA384"),
        ("server-prime256v1", "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ] {
        let settings = settings("TLSv1.2", cipher);
        cases.push(Case { name: cipher.to_owned(), server, settings, client: None });
    }
    for suite in
        ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
    {
        let settings =
            format!("{} ssl_conf_command Ciphersuites {suite};", settings("TLSv1.3", "ALL"));
        cases.push(Case {
            name: suite.to_owned(),
            server: "server-rsa2048",
            settings,
            client: None,
        });
    }
    assert_eq!(complaints(&cases), Vec::<String>::new());
}
