//! The addresses of the node's interfaces, and their changes.
//!
//! Place in the flow: [`watch()`] keeps a channel at the current [`NodeAddresses`]; the shell hands
//! them to [`super::nodeport`] and to conntrack. Source: rtnetlink, of the network namespace of the
//! thread that starts it. Decides nothing: which addresses count is decided elsewhere.

use std::net::IpAddr;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::watch;

use crate::model::NodeAddresses;

/// Why addresses could not be read or followed.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("opening an rtnetlink socket")]
    Open(#[source] std::io::Error),
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

// On which interface packets of an address arrive.
//
// Source: the kernel's
// routing, as with `ip route get`: without asymmetric routes the way back is the way in.

/// Why the route is not known.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    #[error("opening an rtnetlink socket")]
    Open(#[source] std::io::Error),
    #[error("asking for the route to {address}")]
    Route {
        address: IpAddr,
        #[source]
        source: rtnetlink::Error,
    },
}

/// The interface towards an address; `None` if it is the host's own.
pub async fn interface_towards(address: IpAddr) -> Result<Option<String>, RouteError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(RouteError::Open)?;
    let task = tokio::spawn(connection);
    let found = look_up(&handle, address).await;
    task.abort();
    found.map_err(|source| RouteError::Route { address, source })
}

async fn look_up(
    handle: &rtnetlink::Handle,
    address: IpAddr,
) -> Result<Option<String>, rtnetlink::Error> {
    let length = if address.is_ipv4() { 32 } else { 128 };
    let mut builder = RouteMessageBuilder::<IpAddr>::new();
    builder = builder.destination_prefix(address, length).expect("whole addresses are prefixes");
    let routes = handle.route().get(builder.build()).execute();
    let Some(route) = std::pin::pin!(routes).try_next().await? else { return Ok(None) };
    let index = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let (Some(index), RouteType::Unicast) = (index, route.header.kind) else { return Ok(None) };
    let links = handle.link().get().match_index(index).execute();
    let link = std::pin::pin!(links).try_next().await?;
    Ok(link.into_iter().flat_map(|link| link.attributes).find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    }))
}
