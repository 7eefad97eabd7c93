//! A program that packets wait for: one queue of nfnetlink_queue.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use kubeweir::testing::slowed;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::node::PATIENCE;

// linux/netfilter/nfnetlink.h, linux/netfilter/nfnetlink_queue.h
const NFNL_SUBSYS_QUEUE: u16 = 3;
const NFQNL_MSG_PACKET: u16 = 0;
const NFQNL_MSG_VERDICT: u16 = 1;
const NFQNL_MSG_CONFIG: u16 = 2;
const NFQA_CFG_CMD: u16 = 1;
const NFQA_CFG_PARAMS: u16 = 2;
const NFQA_PACKET_HDR: u16 = 1;
const NFQA_VERDICT_HDR: u16 = 2;
/// `NFQNL_CFG_CMD_BIND`, padding, no protocol family.
const BIND: [u8; 4] = [1, 0, 0, 0];
/// As many bytes of a packet as its headers take, `NFQNL_COPY_META`.
const COPY_META: [u8; 5] = [0, 0, 0, 0, 1];
const NF_ACCEPT: u32 = 1;
const NLM_F_REQUEST: u16 = 1;
/// `nlmsghdr` and `nfgenmsg`.
const HEADERS: usize = 20;

/// The queue, bound in the namespace of the thread that made it.
pub struct Queue {
    socket: OwnedFd,
    number: u16,
}

impl Queue {
    pub fn bind(number: u16) -> io::Result<Queue> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let family = AddressFamily::Netlink;
        let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let timeout = i64::try_from(slowed(PATIENCE).as_secs()).expect("some minutes");
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(timeout))?;
        let queue = Queue { socket, number };
        queue.send(NFQNL_MSG_CONFIG, NFQA_CFG_CMD, &BIND)?;
        queue.send(NFQNL_MSG_CONFIG, NFQA_CFG_PARAMS, &COPY_META)?;
        Ok(queue)
    }

    /// The number of the next packet that waits.
    pub fn next(&self) -> io::Result<u32> {
        let mut buffer = [0; 4096];
        loop {
            let read = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let message = &buffer[..read];
            if message[4..6] != (NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_PACKET).to_ne_bytes() {
                continue;
            }
            let mut rest = &message[HEADERS..];
            while let Some((header, _)) = rest.split_first_chunk::<4>() {
                let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
                if u16::from_ne_bytes([header[2], header[3]]) == NFQA_PACKET_HDR {
                    return Ok(u32::from_be_bytes(*rest[4..].first_chunk().expect("a number")));
                }
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
            }
        }
    }

    /// Lets a packet go on.
    pub fn accept(&self, packet: u32) -> io::Result<()> {
        let verdict = [NF_ACCEPT.to_be_bytes(), packet.to_be_bytes()].concat();
        self.send(NFQNL_MSG_VERDICT, NFQA_VERDICT_HDR, &verdict)
    }

    fn send(&self, kind: u16, attribute: u16, value: &[u8]) -> io::Result<()> {
        let length = 4 + value.len();
        let mut message = Vec::new();
        let total = HEADERS + length.next_multiple_of(4);
        message.extend(u32::try_from(total).expect("short").to_ne_bytes());
        message.extend((NFNL_SUBSYS_QUEUE << 8 | kind).to_ne_bytes());
        message.extend(NLM_F_REQUEST.to_ne_bytes());
        message.extend([0; 8]);
        message.extend([0, 0]);
        message.extend(self.number.to_be_bytes());
        message.extend(u16::try_from(length).expect("short").to_ne_bytes());
        message.extend(attribute.to_ne_bytes());
        message.extend(value);
        message.resize(total, 0);
        send(self.socket.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }
}
