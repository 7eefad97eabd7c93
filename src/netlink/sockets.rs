//! TCP sockets of this host: ended over sock_diag.
//!
//! Place in the flow: beside [`super::conntrack`], which ends what others hold. In the network
//! namespace of the thread that opens it. Source: linux/sock_diag.h, linux/inet_diag.h.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::request::{Request, Requests};
use super::socket::Socket;
use super::uapi::*;
use crate::model::Protocol;

/// The kernel's sockets.
pub struct Sockets(Requests);

impl Sockets {
    /// Opens a socket to ask through.
    ///
    /// Errors: the system's.
    pub fn open() -> io::Result<Self> {
        Socket::diagnosis().map(|socket| Sockets(Requests::through(socket)))
    }

    /// Ends the connection of a socket of this host, which gets `ECONNABORTED`.
    ///
    /// Errors: `ENOENT`: no such socket; `EOPNOTSUPP`: the kernel cannot (`INET_DIAG_DESTROY`).
    pub fn destroy(&mut self, local: SocketAddr, peer: SocketAddr) -> io::Result<()> {
        // Where no connection is, the kernel finds whoever listens on the port: it is asked first, and
        // told to end exactly what it found.
        let mut found = None;
        self.0.execute(&request(SOCK_DIAG_BY_FAMILY, local, peer, ANY_COOKIE), |message| {
            found = message.payload.get(..INET_DIAG_COOKIE + 8).map(<[u8]>::to_vec);
        })?;
        let found = found.ok_or(io::ErrorKind::NotFound)?;
        if found[1] == TCP_LISTEN {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut cookie = ANY_COOKIE;
        cookie.copy_from_slice(&found[INET_DIAG_COOKIE..]);
        self.0.execute(&request(SOCK_DESTROY, local, peer, cookie), |_| {})
    }
}

/// `struct inet_diag_req_v2`.
fn request(kind: u16, local: SocketAddr, peer: SocketAddr, cookie: [u8; 8]) -> Request {
    let family = if local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let mut rest = Vec::new();
    rest.extend(u32::MAX.to_ne_bytes()); // every state
    rest.extend(local.port().to_be_bytes());
    rest.extend(peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        let mut bytes = [0; 16];
        match address {
            IpAddr::V4(ip) => bytes[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.copy_from_slice(&ip.octets()),
        }
        rest.extend(bytes);
    }
    rest.extend(0u32.to_ne_bytes()); // any interface
    rest.extend(cookie);
    Request { kind, flags: 0, fixed: [family, Protocol::Tcp.number(), 0, 0], attributes: rest }
}
