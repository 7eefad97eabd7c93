//! The addresses of the node's interfaces, and their changes.
//!
//! Place in the flow: [`watch()`] keeps a channel at the current [`NodeAddresses`]; the shell hands
//! them to [`super::nodeport`] and to conntrack. Source: rtnetlink, of the network namespace of the
//! thread that starts it. Decides nothing: which addresses count is decided elsewhere.

use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;

use crate::model::NodeAddresses;

/// Why addresses could not be read or followed.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// No rtnetlink socket.
    #[error("opening an rtnetlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel refused the list.
    #[error("listing interface addresses")]
    List(#[source] rtnetlink::Error),
    /// The stream of changes ended; the caller starts anew.
    #[error("the stream of interface address changes ended")]
    Ended,
}

/// Reads the addresses once.
pub async fn read() -> Result<NodeAddresses, AddressError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(AddressError::Open)?;
    let task = tokio::spawn(connection);
    let addresses = list(&handle).await;
    task.abort();
    addresses
}

/// Delivers the addresses now and after every change, until the receivers are gone.
///
/// Changes that arrive while a list is read are drained and answered by one further list. Equal
/// lists are not delivered twice. Subscribes before the first list, so that nothing is missed.
pub async fn watch(deliver: watch::Sender<NodeAddresses>) -> Result<(), AddressError> {
    let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
    let (connection, handle, mut changes) =
        rtnetlink::new_multicast_connection(&groups).map_err(AddressError::Open)?;
    let task = AbortOnDrop(tokio::spawn(connection));
    loop {
        let addresses = list(&handle).await?;
        deliver.send_if_modified(|current| {
            let differs = *current != addresses;
            *current = addresses;
            differs
        });
        tokio::select! {
            () = deliver.closed() => break,
            change = changes.next() => change.map(drop).ok_or(AddressError::Ended)?,
        }
        while changes.try_recv().is_ok() {}
    }
    drop(task);
    Ok(())
}

/// Ends the connection's task with the watch.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn list(handle: &Handle) -> Result<NodeAddresses, AddressError> {
    let messages = handle.address().get().execute();
    let mut addresses: Vec<IpAddr> = messages
        .try_filter_map(|message| async move { Ok(address(&message)) })
        .try_collect()
        .await
        .map_err(AddressError::List)?;
    addresses.sort_unstable();
    addresses.dedup();
    Ok(NodeAddresses(addresses))
}

/// The interface's own address: on point-to-point links IFA_ADDRESS is the peer's and IFA_LOCAL ours
/// (linux/if_addr.h).
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}
