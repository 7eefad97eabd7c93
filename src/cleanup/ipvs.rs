//! What ipvs mode leaves besides chains: virtual services, the link `kube-ipvs0`, ipsets.
//!
//! Place in the flow: after [`super::iptables`], because rules hold ipsets in use; services before
//! the link, because the link's addresses say which services are kube-proxy's. A kernel
//! without IPVS or ipset has no such remains (B-206).

mod service;

use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use futures::TryStreamExt;
use netlink_packet_core::NLM_F_EXCL;
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_NETFILTER};
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;

use super::owned::{IPSETS, LINK};
use super::{CleanupError, Removed};
use crate::node::nfnetlink::{Attributes, Netlink, Request};

const IPSET_SUBSYSTEM: u8 = 6; // NFNL_SUBSYS_IPSET
const IPSET_DESTROY: u8 = 3; // IPSET_CMD_DESTROY
const IPSET_PROTOCOL: u16 = 1; // IPSET_ATTR_PROTOCOL
const IPSET_NAME: u16 = 2; // IPSET_ATTR_SETNAME
/// The oldest protocol that kernels of today understand (`IPSET_PROTOCOL_MIN`).
const IPSET_VERSION: u8 = 6;
/// `IPSET_ERR_BUSY` of linux/netfilter/ipset/ip_set.h: rules still refer to the set.
const IPSET_BUSY: i32 = 4100;

/// nf_tables frees deleted rules, and with them their hold on ipsets, a moment after the commit.
const BUSY_TRIES: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Removes services, link and ipsets; errors are collected in `removed`.
pub fn remove(removed: &mut Removed) {
    // rtnetlink is async; a runtime of its own carries it, and here nobody else has to wait.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(remove_link(removed)));
    if let Err(source) = outcome {
        removed.errors.push(CleanupError::Open { what: "links", source });
    }
    remove_sets(removed);
}

async fn remove_link(removed: &mut Removed) -> io::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let task = tokio::spawn(connection);
    if let Err(error) = remove_link_and_services(&handle, removed).await {
        removed.errors.push(CleanupError::Link(error));
    }
    task.abort();
    Ok(())
}

async fn remove_link_and_services(
    handle: &Handle,
    removed: &mut Removed,
) -> Result<(), rtnetlink::Error> {
    let links = handle.link().get().match_name(LINK.to_owned()).execute();
    let index = match links.try_collect::<Vec<_>>().await {
        Ok(links) => links.first().map(|link| link.header.index),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => None,
        Err(error) => return Err(error),
    };
    let Some(index) = index else { return Ok(()) };
    let messages = handle.address().get().set_link_index_filter(index).execute();
    let addresses: Vec<IpAddr> = messages
        .try_collect::<Vec<_>>()
        .await?
        .into_iter()
        .flat_map(|message| message.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(ip),
            _ => None,
        })
        .collect();
    remove_services(&addresses, removed);
    handle.link().del(index).execute().await?;
    removed.link = true;
    Ok(())
}

/// Deletes the virtual services on these addresses.
fn remove_services(addresses: &[IpAddr], removed: &mut Removed) {
    let outcome = Netlink::open(NETLINK_GENERIC)
        .and_then(|mut netlink| service::delete(&mut netlink, addresses));
    match outcome {
        Ok(service::Deleted { deleted, foreign }) => {
            removed.services += deleted;
            if foreign > 0 {
                removed.errors.push(CleanupError::ForeignServices(foreign));
            }
        }
        Err(error) => removed.errors.push(CleanupError::Services(error)),
    }
}

fn remove_sets(removed: &mut Removed) {
    let mut netlink = match Netlink::open(NETLINK_NETFILTER) {
        Ok(netlink) => netlink,
        Err(source) => {
            removed.errors.push(CleanupError::Open { what: "ipset", source });
            return;
        }
    };
    for family in ["", "6-"] {
        for set in IPSETS {
            let set = format!("KUBE-{family}{set}");
            match destroy(&mut netlink, &set) {
                Ok(()) => removed.sets += 1,
                // No such set, or a kernel without ipset.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                }
                Err(source) => removed.errors.push(CleanupError::IpSet { set, source }),
            }
        }
    }
}

fn destroy(netlink: &mut Netlink, set: &str) -> io::Result<()> {
    let attributes =
        Attributes::default().put(IPSET_PROTOCOL, &[IPSET_VERSION]).put_str(IPSET_NAME, set);
    let family = 2; // ignored when a set is destroyed
    let request = Request {
        flags: NLM_F_EXCL, // a set that does not exist is reported as such
        ..Request::nfnetlink(IPSET_SUBSYSTEM, IPSET_DESTROY, family, attributes)
    };
    for _ in 1..BUSY_TRIES {
        match netlink.execute(&request, |_| {}) {
            Err(error) if error.raw_os_error() == Some(IPSET_BUSY) => sleep(BUSY_PAUSE),
            other => return other,
        }
    }
    netlink.execute(&request, |_| {})
}
