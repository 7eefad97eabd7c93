//! Changes of our tables by others, as they happen.
//!
//! Place in the flow: a thread of its own waits here; what it hears makes the engine read the table
//! back (kernels that cannot give tables an owner, design notes on the life of the table). It knows
//! nothing of what the table should hold.
//!
//! Whose change it is tells `nlmsg_pid`, the port of the socket that sent the batch: the kernel
//! assigns it and nobody can claim another's. The process name in `NFT_MSG_NEWGEN`, which ends each
//! batch's notifications, is only a hint for people: any program may call itself anything, and its
//! process id belongs to the initial pid namespace, so it is not used at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use super::attribute::{Attributes, Message, Messages};
use super::decode::{Object, decode, family, table_name};
use super::socket::{RECEIVE_BUFFER, Socket};
use super::uapi::*;
use crate::model::Family;
use crate::ruleset::Table;

/// Room for notifications that arrive while nobody reads.
const RECEIVE_ROOM: usize = 4 << 20;

/// Listening to changes failed.
#[derive(Debug, thiserror::Error)]
#[error("listening to changes of nf_tables")]
pub struct MonitorError(#[from] io::Error);

/// Something happened to a table of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Somebody else committed a change.
    Foreign {
        /// The family of the changed table.
        family: Family,
        /// What was changed, in the words of nft: `add rule services`. Sorted, no duplicates.
        changes: BTreeSet<String>,
        /// Name of the process that did it, as it calls itself.
        by: Option<String>,
    },
    /// Notifications were lost: anything may have changed.
    Overflow,
}

/// Listens to changes of nf_tables in the network namespace it was opened in.
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    collector: Collector,
}

impl Monitor {
    /// Starts listening; `own_portid` is the port of the socket whose changes are expected
    /// ([`super::NetlinkKernel::portid`]).
    ///
    /// Errors: the socket cannot be opened or its buffer not be grown (CAP_NET_ADMIN).
    pub fn open(own_portid: u32) -> Result<Monitor, MonitorError> {
        let mut socket = Socket::netfilter()?;
        socket.grow_receive(RECEIVE_ROOM)?;
        socket.join(NFNLGRP_NFTABLES)?;
        let buffer = vec![0; RECEIVE_BUFFER];
        Ok(Monitor { socket, buffer, collector: Collector::new(own_portid) })
    }

    /// The next notice; `None` if there is none within `timeout`.
    ///
    /// Errors: reading fails for another reason than lost notifications, which are a notice.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Notice>, MonitorError> {
        loop {
            if let Some(notice) = self.collector.ready.pop_front() {
                return Ok(Some(notice));
            }
            match self.socket.receive(&mut self.buffer, timeout) {
                Ok(datagram) => self.collector.add(datagram),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(None),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    self.collector.overflow();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Gathers the notifications of each batch. Pure.
struct Collector {
    own_portid: u32,
    /// Changes of the batch whose notifications are arriving.
    pending: BTreeMap<Family, BTreeSet<String>>,
    ready: VecDeque<Notice>,
}

impl Collector {
    fn new(own_portid: u32) -> Self {
        Collector { own_portid, pending: BTreeMap::new(), ready: VecDeque::new() }
    }

    fn add(&mut self, datagram: &[u8]) {
        for message in Messages::new(datagram) {
            match message {
                Ok(message) if message.portid == self.own_portid => {}
                Ok(message) => self.add_message(&message),
                Err(_) => self.overflow(),
            }
        }
    }

    fn add_message(&mut self, message: &Message<'_>) {
        if let Some(Object::Generation(_, by)) = decode(message) {
            for (family, changes) in std::mem::take(&mut self.pending) {
                self.ready.push_back(Notice::Foreign { family, changes, by: by.clone() });
            }
            return;
        }
        if table_name(message) != Some(Table::NAME) {
            return;
        }
        if let (Some(family), Some(change)) = (family(message), describe(message)) {
            self.pending.entry(family).or_default().insert(change);
        }
    }

    fn overflow(&mut self) {
        self.pending.clear();
        self.ready.push_back(Notice::Overflow);
    }
}

/// A change in the words of nft. In every message the object's table, and then its own name or its
/// chain's or set's, are among the first attributes.
fn describe(message: &Message<'_>) -> Option<String> {
    let attributes = message.attributes();
    let named = |what: &str, name: u16| format!("{what} {}", text(attributes, name));
    Some(match message.nft()? {
        NFT_MSG_NEWTABLE => "add table".into(),
        NFT_MSG_DELTABLE => "delete table".into(),
        NFT_MSG_NEWCHAIN => named("add chain", NFTA_CHAIN_NAME),
        NFT_MSG_DELCHAIN => named("delete chain", NFTA_CHAIN_NAME),
        NFT_MSG_NEWRULE => named("add rule", NFTA_RULE_CHAIN),
        NFT_MSG_DELRULE => named("delete rule", NFTA_RULE_CHAIN),
        NFT_MSG_NEWSET => named("add set", NFTA_SET_NAME),
        NFT_MSG_DELSET => named("delete set", NFTA_SET_NAME),
        NFT_MSG_NEWSETELEM => named("add element", NFTA_SET_ELEM_LIST_SET),
        NFT_MSG_DELSETELEM => named("delete element", NFTA_SET_ELEM_LIST_SET),
        NFT_MSG_NEWOBJ | NFT_MSG_NEWFLOWTABLE => "add object".into(),
        NFT_MSG_DELOBJ | NFT_MSG_DELFLOWTABLE => "delete object".into(),
        _ => return None,
    })
}

fn text<'a>(attributes: Attributes<'a>, name: u16) -> &'a str {
    attributes.str(name).unwrap_or("?")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::{begin_message, end_message, nft_type, put_str, put_u32};

    fn message(kind: u8, portid: u32, family: u8, texts: &[(u16, &str)]) -> Vec<u8> {
        let mut buf = Vec::new();
        let start = begin_message(&mut buf, nft_type(kind), 0, 0, [family, 0, 0, 0]);
        buf[12..16].copy_from_slice(&portid.to_ne_bytes());
        for &(attribute, text) in texts {
            put_str(&mut buf, attribute, text);
        }
        if kind == NFT_MSG_NEWGEN {
            put_u32(&mut buf, NFTA_GEN_ID, 1);
        }
        end_message(&mut buf, start);
        buf
    }

    fn generation(portid: u32) -> Vec<u8> {
        message(NFT_MSG_NEWGEN, portid, 0, &[(NFTA_GEN_PROC_NAME, "nft")])
    }

    fn rule(portid: u32, table: &str) -> Vec<u8> {
        let texts = [(NFTA_RULE_TABLE, table), (NFTA_RULE_CHAIN, "services")];
        message(NFT_MSG_NEWRULE, portid, 2, &texts)
    }

    #[test]
    fn notices() {
        let foreign = Notice::Foreign {
            family: Family::V4,
            changes: ["add rule services".to_owned()].into(),
            by: Some("nft".to_owned()),
        };
        let cases = [
            ("ours", [rule(7, "kube-proxy"), generation(7)].concat(), vec![]),
            ("another table", [rule(8, "filter"), generation(8)].concat(), vec![]),
            ("not committed yet", rule(8, "kube-proxy"), vec![]),
            ("foreign", [rule(8, "kube-proxy"), generation(8)].concat(), vec![foreign.clone()]),
            (
                "twice the same",
                [rule(8, "kube-proxy"), rule(8, "kube-proxy"), generation(8)].concat(),
                vec![foreign],
            ),
            ("garbage", vec![0xff; 40], vec![Notice::Overflow]),
        ];
        for (name, datagram, notices) in cases {
            let mut collector = Collector::new(7);
            collector.add(&datagram);
            assert_eq!(Vec::from(collector.ready), notices, "{name}");
        }
    }
}
