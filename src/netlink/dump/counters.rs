//! The counters of a table, read again and again through one socket.
//!
//! Place in the flow: behind the agent's metrics. Each value is of its moment, so nobody has to hold
//! still. Elements go one by one to whoever asks, as they arrive: of ten thousand nothing is kept here.

use std::collections::BTreeMap;

use super::{Failure, RECEIVE_ROOM, ask, error, named_counters};
use crate::kernel::DumpError;
use crate::model::Family;
use crate::netlink::OpenError;
use crate::netlink::decode::counted;
use crate::netlink::element::Counted;
use crate::netlink::request::{Dump, Requests};
use crate::netlink::socket::Socket;
use crate::netlink::uapi::*;
use crate::ruleset::{Counter, Name, Table};

/// A socket for one question after the other. After a failure it is of no use any more: part of the
/// answer may still come.
pub struct Counters(Requests);

impl Counters {
    /// Opens the socket, in the network namespace of this thread.
    ///
    /// Errors: as [`crate::netlink::NetlinkKernel::open`], or without CAP_NET_ADMIN.
    pub fn open() -> Result<Counters, OpenError> {
        let mut socket = Socket::netfilter().map_err(OpenError)?;
        socket.grow_receive(RECEIVE_ROOM).map_err(OpenError)?;
        Ok(Counters(Requests::through(socket)))
    }

    /// The named counters of a family's table; empty without a table.
    ///
    /// Errors: if the kernel refuses, or its answer makes no sense.
    pub fn named(&mut self, family: Family) -> Result<BTreeMap<Name, Counter>, DumpError> {
        named_counters(&mut self.0, family).map_err(|failure| error("counters", family, failure))
    }

    /// Hands each element of a set to `each`, none without the set. Whether nobody changed anything
    /// meanwhile: otherwise elements may be missing, or come twice. They may also come twice while the
    /// set grows in the background, of which the kernel says nothing.
    ///
    /// Errors: as [`Counters::named`].
    pub fn elements(
        &mut self,
        family: Family,
        set: &Name,
        mut each: impl FnMut(Counted<'_>),
    ) -> Result<bool, DumpError> {
        let names =
            [(NFTA_SET_ELEM_LIST_TABLE, Table::NAME), (NFTA_SET_ELEM_LIST_SET, set.as_str())];
        let dump = ask(&mut self.0, family, NFT_MSG_GETSETELEM, NLM_F_DUMP, &names, |message| {
            counted(message).for_each(&mut each);
        });
        match dump {
            Ok(dump) => Ok(dump == Dump::Complete),
            Err(Failure::Absent) => Ok(true),
            Err(failure) => Err(error("elements", family, failure)),
        }
    }
}
