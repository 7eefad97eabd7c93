//! A netlink socket, to netfilter, to sock_diag or to generic netlink.
//!
//! Place in the flow: the only part of [`super`] that makes system calls. It knows neither messages
//! nor what they are about. The socket is libmnl's; that library sends and receives without flags, and
//! forces no buffers, so these calls are made on its descriptor. It belongs to the thread that made it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use mnl::Bus;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, NetlinkAddr, getsockopt, recv, sendmsg, setsockopt, sockopt};
use rustix::thread::{CapabilitySet, capabilities};

/// Size of a receive buffer: the kernel fills dumps with up to 32 KiB at a time, replies to a batch
/// are shorter still, and a single element or rule is far below 64 KiB.
pub(super) const RECEIVE_BUFFER: usize = 1 << 16;

/// Buffers never grow beyond what the kernel can double in an `int`.
const LARGEST_BUFFER: usize = (i32::MAX / 2) as usize;

/// Forcing a socket's buffers failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot grow the netlink socket's buffers to {bytes} bytes: CAP_NET_ADMIN is needed")]
pub(super) struct NotPermitted {
    bytes: usize,
}

/// A bound netlink socket of the network namespace it was opened in.
pub(super) struct Socket {
    mnl: mnl::Socket,
    send_buffer: usize,
    receive_buffer: usize,
    largest_message: usize,
}

/// What the kernel keeps of a send buffer when it compares a message's length with it.
const SEND_RESERVE: usize = 32;

impl Socket {
    /// Opens a socket to netfilter that receives answers only.
    pub fn netfilter() -> io::Result<Socket> {
        Socket::open(Bus::Netfilter)
    }

    pub fn diagnosis() -> io::Result<Socket> {
        Socket::open(Bus::SockDiag)
    }

    pub fn generic() -> io::Result<Socket> {
        Socket::open(Bus::Generic)
    }

    fn open(bus: Bus) -> io::Result<Socket> {
        let mnl = mnl::Socket::new(bus)?;
        let socket = Socket { mnl, send_buffer: 0, receive_buffer: 0, largest_message: usize::MAX };
        // A program that is started meanwhile (a credential plugin) may inherit it until it ends.
        fcntl(socket.fd(), FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        // Errors tell the offending attribute, and do not quote the whole request.
        socket.set_option(libc::NETLINK_EXT_ACK, 1)?;
        socket.set_option(libc::NETLINK_CAP_ACK, 1)?;
        Ok(socket)
    }

    /// Also receive the notifications of a multicast group.
    pub fn join(&self, group: u32) -> io::Result<()> {
        self.set_option(libc::NETLINK_ADD_MEMBERSHIP, group)
    }

    /// The port the kernel gave the socket; unique among the namespace's netfilter sockets.
    pub fn portid(&self) -> u32 {
        self.mnl.portid()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is libmnl's and open as long as `self.mnl`, which is borrowed as long
        // as what is returned.
        unsafe { BorrowedFd::borrow_raw(self.mnl.as_raw_fd()) }
    }

    fn set_option(&self, option: libc::c_int, value: u32) -> io::Result<()> {
        let len = size_of::<u32>() as libc::socklen_t;
        // SAFETY: the descriptor is open as long as `self`; the value is 4 bytes, as `len` says, and
        // lives through the call. All options used are integers.
        let result = unsafe {
            let value = (&raw const value).cast();
            libc::setsockopt(self.mnl.as_raw_fd(), libc::SOL_NETLINK, option, value, len)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Makes the buffers at least this big, beyond the system's limits if that is allowed. They never
    /// shrink: growing costs nothing until the room is used.
    pub fn grow(&mut self, send: usize, receive: usize) -> io::Result<()> {
        let (send, receive) = (send.min(LARGEST_BUFFER), receive.min(LARGEST_BUFFER));
        if send > self.send_buffer {
            match setsockopt(&self.fd(), sockopt::SndBufForce, &send) {
                Err(nix::Error::EPERM) if owns_namespace_only() => {
                    setsockopt(&self.fd(), sockopt::SndBuf, &send)?;
                    let granted = getsockopt(&self.fd(), sockopt::SndBuf)?;
                    self.largest_message = granted.saturating_sub(SEND_RESERVE);
                }
                result => result.map_err(|errno| refused(errno, send))?,
            }
            self.send_buffer = send;
        }
        self.grow_receive(receive)
    }

    /// The longest batch that can be sent: without bound, unless the system's limits hold.
    pub fn largest_message(&self) -> usize {
        self.largest_message
    }

    /// Sends no longer batches from now on, as where the system's limits hold.
    #[cfg(any(test, feature = "testing"))]
    pub fn confine(&mut self, largest_message: usize) {
        self.largest_message = largest_message;
    }

    /// Makes only the receive buffer at least this big.
    pub fn grow_receive(&mut self, receive: usize) -> io::Result<()> {
        if receive > self.receive_buffer {
            match setsockopt(&self.fd(), sockopt::RcvBufForce, &receive) {
                Err(nix::Error::EPERM) if owns_namespace_only() => {
                    setsockopt(&self.fd(), sockopt::RcvBuf, &receive)?;
                }
                result => result.map_err(|errno| refused(errno, receive))?,
            }
            self.receive_buffer = receive;
        }
        Ok(())
    }

    /// Sends to the kernel, whole, with one system call.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        let iov = [IoSlice::new(bytes)];
        let fd = self.mnl.as_raw_fd();
        sendmsg(fd, &iov, &[], MsgFlags::empty(), Some(&kernel))?;
        Ok(())
    }

    /// Receives a datagram if there is one.
    pub fn try_receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        match recv(self.mnl.as_raw_fd(), buffer, flags) {
            Ok(len) if len > buffer.len() => Err(io::Error::from_raw_os_error(libc::EMSGSIZE)),
            Ok(len) => Ok(Some(&buffer[..len])),
            Err(nix::Error::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for a datagram; false if none came in time. A signal starts the time anew.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, timeout) {
                Err(nix::Error::EINTR) => {}
                ready => return Ok(ready? > 0),
            }
        }
    }

    /// Receives a datagram, waiting for it; a time-out is an error.
    pub fn receive<'a>(&self, buffer: &'a mut [u8], timeout: Duration) -> io::Result<&'a [u8]> {
        if !self.wait(timeout)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.try_receive(buffer)?.ok_or_else(|| io::ErrorKind::TimedOut.into())
    }
}

/// Whether this thread may administer a network, though the kernel lets it not force buffers: in a
/// user namespace, where the system's limits hold.
fn owns_namespace_only() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

fn refused(errno: nix::Error, bytes: usize) -> io::Error {
    match errno {
        nix::Error::EPERM => {
            io::Error::new(io::ErrorKind::PermissionDenied, NotPermitted { bytes })
        }
        errno => errno.into(),
    }
}
