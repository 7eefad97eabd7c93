//! What ipvs mode leaves besides chains: virtual services, the link `kube-ipvs0`, ipsets.
//!
//! Place in the flow: after [`super::iptables`], because rules hold ipsets in use; services before
//! the link, because the link's addresses say which services are kube-proxy's. A kernel
//! without IPVS or ipset has no such remains (B-206). Services on other addresses and firewall-mark
//! services may belong to another program and stay; kube-proxy's own NodePort services are among them,
//! because they sit on the node's addresses.

use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::AddressAttribute;

use super::{CleanupError, IPSETS, LINK, Removed};
use crate::netlink::ipvs::{Deleted, IpSets, delete_services};

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
    match delete_services(addresses) {
        Ok(Deleted { deleted, foreign }) => {
            removed.services += deleted;
            if foreign > 0 {
                removed.errors.push(CleanupError::ForeignServices(foreign));
            }
        }
        Err(error) => removed.errors.push(CleanupError::Services(error)),
    }
}

fn remove_sets(removed: &mut Removed) {
    let mut sets = match IpSets::open() {
        Ok(sets) => sets,
        Err(source) => {
            removed.errors.push(CleanupError::Open { what: "ipset", source });
            return;
        }
    };
    for family in ["", "6-"] {
        for set in IPSETS {
            let set = format!("KUBE-{family}{set}");
            match sets.destroy(&set) {
                Ok(destroyed) => removed.sets += usize::from(destroyed),
                Err(source) => removed.errors.push(CleanupError::IpSet { set, source }),
            }
        }
    }
}
