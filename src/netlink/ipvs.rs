//! What kube-proxy's ipvs mode leaves: virtual services over generic netlink, ipsets over nfnetlink.
//! Source: linux/ip_vs.h, linux/genetlink.h, linux/netfilter/ipset/ip_set.h.

use std::io;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::Duration;

use super::attribute::{Attributes, Message, begin_nest, end_nest, put, put_str};
use super::request::{Request, Requests};
use super::uapi::*;

/// How many services went, and how many are not on the addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    pub deleted: usize,
    /// Left: on another address, or of a firewall mark.
    pub foreign: usize,
}

/// Deletes the services on these addresses; without IPVS in the kernel there are none.
pub fn delete_services(addresses: &[IpAddr]) -> io::Result<Deleted> {
    let mut requests = Requests::to_generic()?;
    let Some(kind) = family_id(&mut requests)? else { return Ok(Deleted::default()) };
    let mut outcome = Deleted::default();
    let mut doomed = Vec::new();
    requests.dump(&ipvs(kind, IPVS_CMD_GET_SERVICE, Vec::new()), |message| {
        match on_address(message.attributes().nest(IPVS_CMD_ATTR_SERVICE), addresses) {
            Some(service) => doomed.push(service),
            None => outcome.foreign += 1,
        }
    })?;
    for service in doomed {
        requests.execute(&ipvs(kind, IPVS_CMD_DEL_SERVICE, service), |_| {})?;
        outcome.deleted += 1;
    }
    Ok(outcome)
}

/// The number under which IPVS is registered; `None` if it is not.
fn family_id(requests: &mut Requests) -> io::Result<Option<u16>> {
    let mut attributes = Vec::new();
    put_str(&mut attributes, CTRL_ATTR_FAMILY_NAME, "IPVS");
    let fixed = [CTRL_CMD_GETFAMILY, CTRL_VERSION, 0, 0];
    let request = Request { kind: GENL_ID_CTRL, flags: 0, fixed, attributes };
    let mut id = None;
    let answer = requests.execute(&request, |message: &Message<'_>| {
        let bytes = message.attributes().get(CTRL_ATTR_FAMILY_ID);
        id = bytes.and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    });
    match answer {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        other => other.map(|()| id),
    }
}

/// What names the service in a deletion, if it is on one of the addresses.
fn on_address(service: Attributes<'_>, addresses: &[IpAddr]) -> Option<Vec<u8>> {
    let family = service.get(IPVS_SVC_ATTR_AF)?;
    let bytes = service.get(IPVS_SVC_ATTR_ADDR)?;
    let address: IpAddr = match i32::from(u16::from_ne_bytes(family.try_into().ok()?)) {
        libc::AF_INET => (*bytes.first_chunk::<4>()?).into(),
        libc::AF_INET6 => (*bytes.first_chunk::<16>()?).into(),
        _ => return None,
    };
    let mut key = Vec::new();
    let nest = begin_nest(&mut key, IPVS_CMD_ATTR_SERVICE);
    for kind in [IPVS_SVC_ATTR_AF, IPVS_SVC_ATTR_PROTOCOL, IPVS_SVC_ATTR_ADDR, IPVS_SVC_ATTR_PORT] {
        put(&mut key, kind, service.get(kind)?);
    }
    end_nest(&mut key, nest);
    addresses.contains(&address).then_some(key)
}

fn ipvs(kind: u16, command: u8, attributes: Vec<u8>) -> Request {
    Request { kind, flags: 0, fixed: [command, IPVS_GENL_VERSION, 0, 0], attributes }
}

/// nf_tables frees deleted rules, and with them their hold on ipsets, a moment after the commit.
const BUSY_TRIES: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The ipsets of the calling thread's network namespace.
pub struct IpSets(Requests);

impl IpSets {
    pub fn open() -> io::Result<Self> {
        Requests::to_netfilter().map(IpSets)
    }

    /// Destroys a set; false if there is none, or no ipset in the kernel.
    pub fn destroy(&mut self, set: &str) -> io::Result<bool> {
        for _ in 1..BUSY_TRIES {
            match self.try_destroy(set) {
                Err(error) if error.raw_os_error() == Some(IPSET_ERR_BUSY) => sleep(BUSY_PAUSE),
                outcome => return outcome,
            }
        }
        self.try_destroy(set)
    }

    fn try_destroy(&mut self, set: &str) -> io::Result<bool> {
        let mut attributes = Vec::new();
        put(&mut attributes, IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL_MIN]);
        put_str(&mut attributes, IPSET_ATTR_SETNAME, set);
        // The family is ignored. The flag makes a set that does not exist an error.
        let request = Request::nfnetlink(NFNL_SUBSYS_IPSET, IPSET_CMD_DESTROY, 2, attributes);
        let request = Request { flags: NLM_F_EXCL, ..request };
        match self.0.execute(&request, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(address: [u8; 16], family: i32) -> Vec<u8> {
        let mut written = Vec::new();
        let nest = begin_nest(&mut written, IPVS_CMD_ATTR_SERVICE);
        let family = u16::try_from(family).unwrap_or_default();
        put(&mut written, IPVS_SVC_ATTR_AF, &family.to_ne_bytes());
        put(&mut written, IPVS_SVC_ATTR_PROTOCOL, &6u16.to_ne_bytes());
        put(&mut written, IPVS_SVC_ATTR_ADDR, &address);
        put(&mut written, IPVS_SVC_ATTR_PORT, &80u16.to_be_bytes());
        end_nest(&mut written, nest);
        written
    }

    // B-206, Q-20: only services on the link's addresses.
    #[test]
    fn services_are_recognised_by_address() {
        let v4 = [10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let v6 = [0xfd, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let link: [IpAddr; 2] = [IpAddr::from([10, 96, 0, 1]), IpAddr::from(v6)];
        for (address, family) in [(v4, libc::AF_INET), (v6, libc::AF_INET6)] {
            let written = service(address, family);
            let read = Attributes::new(&written).nest(IPVS_CMD_ATTR_SERVICE);
            assert_eq!(on_address(read, &link), Some(written.clone()));
            assert_eq!(on_address(read, &[]), None);
        }
        let mut mark = Vec::new();
        put(&mut mark, 5, &7u32.to_ne_bytes());
        assert_eq!(on_address(Attributes::new(&mark), &link), None, "a firewall mark service");
    }

    // B-206: a kernel without IPVS, as this test's, is no error. With IPVS nothing is on no address.
    #[test]
    fn ipvs_may_be_missing() {
        let outcome = delete_services(&[]).expect("no error without IPVS");
        assert_eq!(outcome.deleted, 0);
    }
}
