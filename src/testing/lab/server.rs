//! Servers that answer with who they are and whom they saw.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::oneshot;

use super::{LabError, Netns};
use crate::model::Protocol;

/// What a server told, and the client's own end for comparison.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Answer {
    pub server: String,
    /// Address and port that the server was reached at: the endpoint.
    pub endpoint: SocketAddr,
    /// The client as the server saw it.
    pub seen: SocketAddr,
    /// The client as it sees itself.
    pub client: SocketAddr,
}

impl Answer {
    /// Whether the source was translated on the way. A masquerade to the very same address shows in
    /// the port, as it is chosen at random.
    pub fn masqueraded(&self) -> bool {
        self.seen != self.client
    }

    pub(super) fn parse(text: &[u8], client: SocketAddr) -> io::Result<Answer> {
        let malformed = || io::Error::from(io::ErrorKind::InvalidData);
        let text = std::str::from_utf8(text).map_err(|_| malformed())?;
        let mut words = text.split_whitespace();
        let mut next = || words.next().ok_or_else(malformed);
        Ok(Answer {
            server: next()?.to_owned(),
            endpoint: next()?.parse().map_err(|_| malformed())?,
            seen: next()?.parse().map_err(|_| malformed())?,
            client,
        })
    }
}

/// Servers on some addresses of one namespace; they end when this is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves these protocols on every address, all under one name, and returns once all listen.
    pub fn start(
        netns: &Netns,
        name: &str,
        protocols: &[Protocol],
        addresses: &[SocketAddr],
    ) -> Result<Server, LabError> {
        let (stop, stopped) = oneshot::channel();
        let (ready, is_ready) = mpsc::channel();
        let name: Arc<str> = name.into();
        let (thread_name, protocols) = (Arc::clone(&name), protocols.to_vec());
        let addresses = addresses.to_vec();
        let thread = netns.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .expect("a runtime needs only descriptors");
            runtime.block_on(async {
                let listening = listen(&thread_name, &protocols, &addresses).await;
                let failed = listening.is_err();
                // The other side waits for exactly this message.
                ready.send(listening).expect("the starter waits");
                if !failed {
                    // An error means that the sender was dropped: stop as well.
                    stopped.await.ok();
                }
            });
        });
        let server = Server { stop: Some(stop), thread: Some(thread) };
        match is_ready.recv().expect("the thread reports before it ends") {
            Ok(()) => Ok(server),
            Err((address, source)) => {
                Err(LabError::Listen { server: name.to_string(), address, source })
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

async fn listen(
    name: &Arc<str>,
    protocols: &[Protocol],
    addresses: &[SocketAddr],
) -> Result<(), (SocketAddr, io::Error)> {
    for &address in addresses {
        let failed = |source| (address, source);
        for protocol in protocols {
            let name = Arc::clone(name);
            match protocol {
                Protocol::Tcp => {
                    let listener = TcpListener::bind(address).await.map_err(failed)?;
                    tokio::spawn(serve_streams(name, listener));
                }
                Protocol::Sctp => {
                    let listener = listen_sctp(address).map_err(failed)?;
                    tokio::spawn(serve_streams(name, listener));
                }
                Protocol::Udp => {
                    let udp = UdpSocket::bind(address).await.map_err(failed)?;
                    tokio::spawn(serve_udp(name, udp, address));
                }
            }
        }
    }
    Ok(())
}

/// A one-to-one SCTP socket takes the calls of a TCP socket.
fn listen_sctp(address: SocketAddr) -> io::Result<TcpListener> {
    let protocol = Some(socket2::Protocol::from(libc::IPPROTO_SCTP));
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, protocol)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

async fn serve_streams(name: Arc<str>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(talk(Arc::clone(&name), stream, peer))),
            // The client was gone before it was accepted.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// One answer per question until the client goes; its reset is the normal end.
async fn talk(name: Arc<str>, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let text = format!("{name} {} {peer}\n", stream.local_addr()?);
    let mut question = [0; 64];
    while stream.read(&mut question).await? > 0 {
        stream.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

async fn serve_udp(name: Arc<str>, socket: UdpSocket, address: SocketAddr) {
    let mut question = [0; 64];
    loop {
        // Errors are ICMP messages about clients that have left.
        if let Ok((_, peer)) = socket.recv_from(&mut question).await {
            let text = format!("{name} {address} {peer}\n");
            socket.send_to(text.as_bytes(), peer).await.ok();
        }
    }
}
