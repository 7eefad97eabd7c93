//! IPVS virtual services over generic netlink.
//!
//! Place in the flow: called with the addresses of `kube-ipvs0`. Services on other addresses and
//! firewall-mark services may belong to another program and stay; kube-proxy's own NodePort
//! services are among them, because they sit on the node's addresses.
//! Source: linux/ip_vs.h, linux/genetlink.h.

use std::io;
use std::net::IpAddr;

use crate::node::nfnetlink::{Attributes, Netlink, Request, attribute};

const CONTROLLER: u16 = 0x10; // GENL_ID_CTRL
const GET_FAMILY: u8 = 3; // CTRL_CMD_GETFAMILY
const FAMILY_ID: u16 = 1; // CTRL_ATTR_FAMILY_ID
const FAMILY_NAME: u16 = 2; // CTRL_ATTR_FAMILY_NAME

const DELETE: u8 = 3; // IPVS_CMD_DEL_SERVICE
const GET: u8 = 4; // IPVS_CMD_GET_SERVICE
const SERVICE: u16 = 1; // IPVS_CMD_ATTR_SERVICE
const AF: u16 = 1; // IPVS_SVC_ATTR_AF
const PROTOCOL: u16 = 2; // IPVS_SVC_ATTR_PROTOCOL
const ADDRESS: u16 = 3; // IPVS_SVC_ATTR_ADDR
const PORT: u16 = 4; // IPVS_SVC_ATTR_PORT

/// How many services went, and how many are not on the addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Deleted {
    pub(super) deleted: usize,
    pub(super) foreign: usize,
}

/// Deletes the services on these addresses; without IPVS in the kernel there are none.
pub(super) fn delete(netlink: &mut Netlink, addresses: &[IpAddr]) -> io::Result<Deleted> {
    let Some(kind) = family_id(netlink)? else { return Ok(Deleted::default()) };
    let mut outcome = Deleted::default();
    let mut doomed = Vec::new();
    netlink.dump(&request(kind, GET, Attributes::default()), |attributes| {
        let service = attribute(attributes, SERVICE).unwrap_or_default();
        match on_address(service, addresses) {
            Some(key) => doomed.push(key),
            None => outcome.foreign += 1,
        }
    })?;
    for key in doomed {
        netlink
            .execute(&request(kind, DELETE, Attributes::default().nest(SERVICE, key)), |_| {})?;
        outcome.deleted += 1;
    }
    Ok(outcome)
}

/// The number under which IPVS is registered; `None` if it is not.
fn family_id(netlink: &mut Netlink) -> io::Result<Option<u16>> {
    let name = Attributes::default().put_str(FAMILY_NAME, "IPVS");
    let mut id = None;
    let answer = netlink.execute(&request(CONTROLLER, GET_FAMILY, name), |attributes| {
        let bytes = attribute(attributes, FAMILY_ID).and_then(|bytes| bytes.try_into().ok());
        id = bytes.map(u16::from_ne_bytes);
    });
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|()| id),
    }
}

/// What names the service in a deletion, if it is on one of the addresses.
fn on_address(service: &[u8], addresses: &[IpAddr]) -> Option<Attributes> {
    let family = attribute(service, AF)?;
    let bytes = attribute(service, ADDRESS)?;
    let address: IpAddr = match i32::from(u16::from_ne_bytes(family.try_into().ok()?)) {
        libc::AF_INET => (*bytes.first_chunk::<4>()?).into(),
        libc::AF_INET6 => (*bytes.first_chunk::<16>()?).into(),
        _ => return None,
    };
    let key = Attributes::default()
        .put(AF, family)
        .put(PROTOCOL, attribute(service, PROTOCOL)?)
        .put(ADDRESS, bytes)
        .put(PORT, attribute(service, PORT)?);
    addresses.contains(&address).then_some(key)
}

fn request(kind: u16, command: u8, attributes: Attributes) -> Request {
    let version = if kind == CONTROLLER { 2 } else { 1 }; // IPVS_GENL_VERSION is 1
    Request { kind, flags: 0, fixed: [command, version, 0, 0], attributes }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(address: [u8; 16], family: i32) -> Attributes {
        let family = u16::try_from(family).unwrap_or_default();
        Attributes::default()
            .put(AF, &family.to_ne_bytes())
            .put(PROTOCOL, &6u16.to_ne_bytes())
            .put(ADDRESS, &address)
            .put(PORT, &80u16.to_be_bytes())
    }

    // B-206, Q-20: only services on the link's addresses.
    #[test]
    fn services_are_recognised_by_address() {
        let v4 = [10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let v6 = [0xfd, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let link: [IpAddr; 2] = [IpAddr::from([10, 96, 0, 1]), IpAddr::from(v6)];
        for (address, family) in [(v4, libc::AF_INET), (v6, libc::AF_INET6)] {
            let written = service(address, family);
            assert_eq!(on_address(written.as_bytes(), &link), Some(written.clone()));
            assert_eq!(on_address(written.as_bytes(), &[]), None);
        }
        let mark = Attributes::default().put(5, &7u32.to_ne_bytes());
        assert_eq!(on_address(mark.as_bytes(), &link), None, "a firewall mark service");
    }

    // B-206: a kernel without IPVS, as this test's, is no error. With IPVS nothing is on no address.
    #[test]
    fn ipvs_may_be_missing() {
        let mut netlink = Netlink::open(netlink_sys::protocols::NETLINK_GENERIC).expect("a socket");
        let outcome = delete(&mut netlink, &[]).expect("no error without IPVS");
        assert_eq!(outcome.deleted, 0);
    }
}
