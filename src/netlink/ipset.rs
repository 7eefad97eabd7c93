//! Destroys ipsets. Source: linux/netfilter/ipset/ip_set.h.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use super::attribute::{put, put_str};
use super::request::{Request, Requests};
use super::uapi::*;

/// nf_tables frees deleted rules, and with them their hold on ipsets, a moment after the commit.
const BUSY_TRIES: usize = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// The ipsets of the calling thread's network namespace.
pub struct IpSets(Requests);

impl IpSets {
    /// Opens a socket.
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
