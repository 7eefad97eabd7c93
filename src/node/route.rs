//! On which interface packets of an address arrive.
//!
//! Place in the flow: `kubeweir explain` asks when nobody named the interface. Source: the kernel's
//! routing, as with `ip route get`: without asymmetric routes the way back is the way in.

use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{RouteAttribute, RouteType};

/// Why the route is not known.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No rtnetlink socket.
    #[error("opening an rtnetlink socket")]
    Open(#[source] std::io::Error),
    /// The kernel has no route, or refuses to tell.
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
