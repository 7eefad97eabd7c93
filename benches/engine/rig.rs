//! Engine and kernel on one side; on the other the same bytes, sent by a bare loop.
//!
//! Both sides have a network namespace of their own with the same table in it. After each step the
//! batches of our side are sent to the other, so both see the same kernel at the same time.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kubeweir::engine::Engine;
use kubeweir::kernel::{CommitError, Committed, DumpError, Kernel, Transaction};
use kubeweir::model::{Change, Families, Family, PerFamily};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::ruleset::{Element, Name, Ruleset};
use kubeweir::sync::Synchronizer;
use kubeweir::testing::lab::Netns;
use kubeweir::topology::NodeTopology;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg,
    setsockopt, socket, sockopt,
};

use crate::cluster::{NODE, Size};

/// Room for the largest batch, and for its answer.
const BUFFER: usize = 256 << 20;

/// What one step took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// From the change in hand to the acknowledged commit.
    pub total: Duration,
    /// Of that, in the system calls of commits.
    pub kernel: Duration,
    /// The same batches, sent by the bare loop.
    pub floor: Duration,
    /// Netlink messages.
    pub messages: usize,
    /// Bytes of all batches.
    pub bytes: usize,
    /// Elements added and deleted.
    pub elements: usize,
}

/// The real kernel, keeping what it sent.
pub struct Recording {
    kernel: NetlinkKernel,
    batches: Vec<Vec<u8>>,
    /// Time spent on keeping them.
    copying: Duration,
}

impl Kernel for Recording {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        let committed = self.kernel.commit(transaction)?;
        let start = Instant::now();
        self.batches.push(self.kernel.last_batch().to_vec());
        self.copying += start.elapsed();
        Ok(committed)
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        self.kernel.dump(family)
    }

    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        self.kernel.dump_set(family, set)
    }
}

/// The bare loop: a socket, and nothing else.
struct Bare {
    fd: OwnedFd,
    answer: Vec<u8>,
}

impl Bare {
    fn open() -> Bare {
        let protocol = SockProtocol::NetlinkNetFilter;
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol).expect("a socket");
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).expect("a free port");
        setsockopt(&fd, sockopt::SndBufForce, &BUFFER).expect("CAP_NET_ADMIN");
        setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).expect("CAP_NET_ADMIN");
        Bare { fd, answer: vec![0; 1 << 16] }
    }

    /// Sends a batch and waits for its acknowledgement.
    fn send(&mut self, batch: &[u8]) -> Duration {
        let start = Instant::now();
        let kernel = NetlinkAddr::new(0, 0);
        let fd = self.fd.as_raw_fd();
        sendmsg(fd, &[IoSlice::new(batch)], &[], MsgFlags::empty(), Some(&kernel)).expect("sent");
        recv(fd, &mut self.answer, MsgFlags::empty()).expect("an answer");
        let elapsed = start.elapsed();
        let errno = i32::from_ne_bytes(self.answer[16..20].try_into().expect("four bytes"));
        assert_eq!(errno, 0, "the bare loop's batch is accepted as ours was");
        elapsed
    }
}

/// Asks for the elements of a set of the IPv4 table as a bare loop does, and counts the bytes of the
/// answer.
pub fn bare_dump(set: &str) -> usize {
    let mut request = vec![0; 20];
    let kind = libc::NFNL_SUBSYS_NFTABLES << 8 | GET_ELEMENTS;
    request[4..6].copy_from_slice(&(kind as u16).to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16).to_ne_bytes());
    request[16] = libc::AF_INET as u8;
    for (kind, name) in [(1_u16, "kube-proxy"), (2, set)] {
        request.extend_from_slice(&(name.len() as u16 + 5).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(name.as_bytes());
        request.resize((request.len() + 1).next_multiple_of(4), 0);
    }
    let length = (request.len() as u32).to_ne_bytes();
    request[..4].copy_from_slice(&length);
    let mut bare = Bare::open();
    let fd = bare.fd.as_raw_fd();
    let kernel = NetlinkAddr::new(0, 0);
    sendmsg(fd, &[IoSlice::new(&request)], &[], MsgFlags::empty(), Some(&kernel)).expect("sent");
    let mut bytes = 0;
    loop {
        let received = recv(fd, &mut bare.answer, MsgFlags::empty()).expect("an answer");
        let kind = u16::from_ne_bytes([bare.answer[4], bare.answer[5]]);
        assert_ne!(kind, libc::NLMSG_ERROR as u16, "the kernel answers");
        bytes += received;
        // It stands alone, or as the last of a datagram, of 20 bytes.
        let last = &bare.answer[received - 20..received];
        if u16::from_ne_bytes([last[4], last[5]]) == libc::NLMSG_DONE as u16 {
            return bytes;
        }
    }
}

/// `NFT_MSG_GETSETELEM`.
const GET_ELEMENTS: i32 = 13;

/// Both sides.
pub struct Rig {
    synchronizer: Synchronizer<Recording>,
    bare: Bare,
    _namespaces: [Netns; 2],
}

impl Rig {
    /// Empty tables and an engine without objects. Runs in the calling thread's namespaces only as
    /// far as files go; both sockets are in namespaces of their own.
    pub fn new() -> Rig {
        let ours = Netns::new("engine").expect("a network namespace (root is needed)");
        let other = Netns::new("floor").expect("a network namespace");
        let kernel = ours.visit(NetlinkKernel::open).expect("nf_tables");
        let bare = other.visit(Bare::open);
        let recording = Recording { kernel, batches: Vec::new(), copying: Duration::ZERO };
        let synchronizer = Synchronizer::new(engine(), recording);
        Rig { synchronizer, bare, _namespaces: [ours, other] }
    }

    /// With a cluster loaded.
    pub fn loaded(size: Size) -> (Rig, Sample) {
        let mut rig = Rig::new();
        let lists = size.lists();
        let sample = rig.step(lists);
        (rig, sample)
    }

    /// Applies changes, syncs both families, then sends the same to the other side.
    pub fn step(&mut self, changes: impl IntoIterator<Item = Change>) -> Sample {
        let changes: Vec<Change> = changes.into_iter().collect();
        self.step_with(|engine| {
            for change in changes {
                engine.apply(change);
            }
        })
    }

    /// The same for whatever else may happen to an engine.
    pub fn step_with(&mut self, happens: impl FnOnce(&mut Engine)) -> Sample {
        let mut sample = self.ours(happens);
        for batch in self.synchronizer.kernel.batches.drain(..) {
            sample.floor += self.bare.send(&batch);
        }
        sample
    }

    /// Our side alone: a cluster is loaded into an empty namespace. Returns what was sent, too.
    pub fn load(size: Size) -> (Sample, Vec<Vec<u8>>) {
        let mut rig = Rig::new();
        let lists = size.lists();
        let sample = rig.ours(|engine| lists.into_iter().for_each(|list| drop(engine.apply(list))));
        (sample, std::mem::take(&mut rig.synchronizer.kernel.batches))
    }

    /// The other side alone: batches into an empty namespace.
    pub fn floor(batches: &[Vec<u8>]) -> Duration {
        let mut rig = Rig::new();
        batches.iter().map(|batch| rig.bare.send(batch)).sum()
    }

    fn ours(&mut self, happens: impl FnOnce(&mut Engine)) -> Sample {
        let mut sample = Sample::default();
        let start = Instant::now();
        happens(&mut self.synchronizer.engine);
        let mut reports = Vec::with_capacity(2);
        for family in Family::BOTH {
            reports.extend(self.synchronizer.sync(family, Duration::ZERO));
        }
        let copying = std::mem::take(&mut self.synchronizer.kernel.copying);
        sample.total = start.elapsed() - copying;
        for report in &reports {
            assert!(report.result.is_ok() && report.refused.is_empty(), "{:?}", report.troubles);
            for commit in &report.commits {
                sample.kernel += commit.committed.elapsed;
                sample.messages += commit.committed.messages;
                sample.bytes += commit.committed.bytes;
                sample.elements += commit.counts.elements_added + commit.counts.elements_deleted;
            }
        }
        sample
    }
}

/// The engine as the agent sets it up on a node with a pod CIDR.
pub fn engine() -> Engine {
    let options = RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("100.64.0.0/10".parse().expect("a network")),
            v6: LocalPods::InterfacePrefix("veth".to_owned()),
        },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec!["192.168.0.1".parse().expect("an address")]),
            v6: NodePortMatch::AnyLocal,
        },
        ..RuleOptions::nftables()
    };
    let node_topology = NodeTopology { node: NODE.into(), zone: None };
    Engine::new(options, node_topology, Families::DUAL, true)
}
