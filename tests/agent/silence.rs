//! Connections to the API server that died without a word.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kubeweir::model::Kind;
use kubeweir::testing::lab::{Agent, NODE_NAME};

use crate::objects::service;
use crate::site::Site;

/// Passes bytes on until it is told to swallow them; what is connected then stays so for ever, what is
/// connected later works.
struct Swallower {
    address: SocketAddr,
    swallows: Arc<AtomicBool>,
}

impl Swallower {
    fn start(site: &Site) -> Swallower {
        let server = site.server.address();
        let listener = site.node().run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let swallows = Arc::new(AtomicBool::new(false));
        let now = Arc::clone(&swallows);
        // Sockets are of the namespace of the thread that makes them.
        site.node().spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let server = TcpStream::connect(server).unwrap();
                let is_old = !now.load(Ordering::Relaxed);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let now = Arc::clone(&now);
                    std::thread::spawn(move || {
                        carry(from, to, || is_old && now.load(Ordering::Relaxed))
                    });
                }
            }
        });
        Swallower { address, swallows }
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, swallows: impl Fn() -> bool) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if !swallows() && to.write_all(&bytes[..length]).is_err() {
            return;
        }
    }
}

// A firewall forgets the connection: bytes are taken, and nothing comes. The pings of HTTP/2 tell.
#[test]
fn pings_reveal_a_dead_connection() {
    let site = Site::bare();
    let between = Swallower::start(&site);
    let config = site.config(|_| {});
    let kubeconfig = site.path("kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let through = format!("https://{}", between.address);
    std::fs::write(&kubeconfig, text.replace(&site.server.url(), &through)).unwrap();
    let name = format!("--hostname-override={NODE_NAME}");
    let program = site.path("kube-proxy");
    let arguments = [
        "HTTP2_READ_IDLE_TIMEOUT_SECONDS=1",
        "HTTP2_PING_TIMEOUT_SECONDS=1",
        program.to_str().unwrap(),
        &config,
        &name,
    ];
    let arguments: Vec<_> = arguments.iter().map(Into::into).collect();
    let proxy = site.launch_by("/usr/bin/env".as_ref(), &arguments);
    site.wait(&proxy, "the first sync", || site.is_synced());
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    let connections = site.server.connections();
    between.swallows.store(true, Ordering::Relaxed);
    site.server.put(&service("web", 1));
    site.wait(&proxy, "the service", || {
        site.table(kubeweir::model::Family::V4).contains("default/web")
    });
    assert!(site.server.connections() > connections, "over a new connection");
}

// A balancer of long ago: what it wants is not spoken, and the log says so.
#[test]
fn a_server_with_cbc_alone_is_refused_with_a_reason() {
    let site = Site::bare();
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/certificates");
    let shown = certificates.join("server-rsa2048").display().to_string();
    let directory = site.directory.path().display().to_string();
    let text = format!(
        "daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.log;\n\
         events {{}}\nhttp {{ access_log off; server {{ listen 127.0.0.1:8443 ssl; ssl_protocols TLSv1.2;\n\
         ssl_ciphers ECDHE-RSA-AES128-SHA; ssl_certificate {shown}/shown; ssl_certificate_key {shown}/key; }} }}\n"
    );
    std::fs::write(site.path("nginx.conf"), text).unwrap();
    let log = std::fs::File::create(site.path("nginx.out")).unwrap();
    let arguments = ["-c".into(), site.path("nginx.conf").into_os_string()];
    let _nginx = Agent::start(site.node(), "/usr/sbin/nginx".as_ref(), &arguments, &log).unwrap();
    let config = site.config(|_| {});
    let kubeconfig = site.path("kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    std::fs::write(&kubeconfig, text.replace(&site.server.url(), "https://127.0.0.1:8443"))
        .unwrap();
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    proxy.wait_log(&["no suite with CBC", "HandshakeFailure"]);
}
