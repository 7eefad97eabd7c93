//! Reading tables back.
//!
//! Place in the flow: behind [`super::NetlinkKernel`]. Each reading uses a socket of its own, so that
//! one broken off leaves nothing behind. The kernel answers object kind by object kind; a reading is
//! consistent if nobody changed the table meanwhile ([`Witness`]). What others do to other tables
//! marks answers as interrupted, too, but rules, sets and elements of a table are found by its name
//! and come out the same. Chains cannot be asked for by table (`nf_tables_dump_chains`): the kernel
//! counts through those of all tables, so a marked answer is asked for again.

mod counters;

use std::collections::BTreeMap;
use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::attribute::{Message, Messages, Truncated, put_str};
use super::decode::{Object, decode, family, parts, table_name};
use super::element::{Part, assemble, repeats};
use super::request::{Dump, Request, Requests};
use super::socket::{RECEIVE_BUFFER, Socket};
use super::uapi::*;
use crate::kernel::DumpError;
use crate::model::Family;
use crate::ruleset::{Counter, Element, Key, Name, Ownership, Rule, Ruleset, Set, Table};

pub use counters::Counters;

/// How often a table that changes is read, and how often an answer that is marked as interrupted is
/// asked for.
const ATTEMPTS: usize = 5;

/// How long a reading that others disturb is started again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Pause before that.
const PAUSE: Duration = Duration::from_millis(5);

/// Room for the answers to one request: the kernel sends the next part as the last is read.
const RECEIVE_ROOM: usize = 1 << 20;

/// Why one request failed.
#[derive(Debug)]
enum Failure {
    /// The table changed.
    Changed,
    /// The answer is worth nothing for another reason that passes.
    Interrupted,
    Absent,
    Io(io::Error),
    Malformed,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ENOBUFS) => Failure::Interrupted,
            Some(libc::ENOENT) => Failure::Absent,
            None if error.kind() == io::ErrorKind::InvalidData => Failure::Malformed,
            _ => Failure::Io(error),
        }
    }
}

/// A failure and the kind of objects that were being read.
type Failed = (&'static str, Failure);

pub(super) fn ruleset(family: Family, own_portid: u32) -> Result<Ruleset, DumpError> {
    consistently(family, |reader| {
        let Some(table) = reader.table(own_portid).map_err(|f| ("the table", f))? else {
            return Ok(Ruleset::empty(family));
        };
        let mut ruleset = Ruleset { table: Some(table), ..Ruleset::empty(family) };
        reader.chains(&mut ruleset).map_err(|f| ("chains", f))?;
        reader.rules(&mut ruleset).map_err(|f| ("rules", f))?;
        ruleset.counters =
            named_counters(&mut reader.requests, family).map_err(|f| ("counters", f))?;
        for set in reader.sets().map_err(|f| ("sets", f))? {
            let elements = reader.elements(&set).map_err(|f| ("elements", f))?;
            let elements: BTreeMap<Key, Element> =
                elements.into_iter().map(|element| (element.key, element)).collect();
            ruleset.sets.insert(set.name.clone(), (set, elements));
        }
        Ok(ruleset)
    })
}

/// Reads the elements of one set; empty if the set or the table is missing.
pub(super) fn set(family: Family, name: &Name) -> Result<Vec<Element>, DumpError> {
    consistently(family, |reader| match reader.set(name) {
        Ok(Some(set)) => reader.elements(&set).map_err(|f| ("elements", f)),
        Ok(None) | Err(Failure::Absent) => Ok(Vec::new()),
        Err(failure) => Err(("a set", failure)),
    })
}

/// Reads the table itself, without its content.
pub(super) fn table(family: Family, own_portid: u32) -> Result<Option<Table>, DumpError> {
    consistently(family, |reader| reader.table(own_portid).map_err(|f| ("the table", f)))
}

/// A failure that waiting does not mend.
fn error(what: &'static str, family: Family, failure: Failure) -> DumpError {
    match failure {
        Failure::Io(source) => DumpError::Io { what, family: family.nft(), source },
        Failure::Malformed => {
            let reason = Truncated.to_string();
            DumpError::Malformed { what, family: family.nft(), reason }
        }
        Failure::Changed | Failure::Interrupted | Failure::Absent => {
            DumpError::Interrupted(family.nft())
        }
    }
}

fn consistently<T>(
    family: Family,
    mut read: impl FnMut(&mut Reader) -> Result<T, Failed>,
) -> Result<T, DumpError> {
    let start = Instant::now();
    let mut changes = 0;
    while changes < ATTEMPTS && start.elapsed() < PATIENCE {
        match attempt(family, &mut read) {
            Ok(value) => return Ok(value),
            // An object that was listed and is gone now.
            Err((_, Failure::Changed | Failure::Absent)) => changes += 1,
            Err((_, Failure::Interrupted)) => sleep(PAUSE),
            Err((what, failure)) => return Err(error(what, family, failure)),
        }
    }
    Err(DumpError::Interrupted(family.nft()))
}

fn attempt<T>(
    family: Family,
    read: &mut impl FnMut(&mut Reader) -> Result<T, Failed>,
) -> Result<T, Failed> {
    let generation = |failure| ("the generation", failure);
    let mut reader = Reader::open(family).map_err(|f| ("the table", f))?;
    let mut witness = Witness::open().map_err(|error| generation(error.into()))?;
    let before = reader.generation().map_err(generation)?;
    let value = read(&mut reader)?;
    let after = reader.generation().map_err(generation)?;
    match witness.saw_change(family, before, after).map_err(|error| generation(error.into()))? {
        false => Ok(value),
        true => Err(generation(Failure::Changed)),
    }
}

/// One attempt at a consistent reading.
struct Reader {
    family: Family,
    requests: Requests,
}

impl Reader {
    fn open(family: Family) -> Result<Reader, Failure> {
        let mut socket = Socket::netfilter()?;
        socket.grow_receive(RECEIVE_ROOM)?;
        Ok(Reader { family, requests: Requests::through(socket) })
    }

    /// Changes with every transaction of anybody in the namespace.
    fn generation(&mut self) -> Result<u32, Failure> {
        let mut generation = None;
        self.request(NFT_MSG_GETGEN, 0, &[], |message| {
            if let Some(Object::Generation(id, _)) = decode(message) {
                generation = Some(id);
            }
        })?;
        generation.ok_or(Failure::Malformed)
    }

    /// The table itself; `own_portid` is the port of the socket whose tables are ours.
    fn table(&mut self, own_portid: u32) -> Result<Option<Table>, Failure> {
        let mut found = None;
        let name = [(NFTA_TABLE_NAME, Table::NAME)];
        let result = self.request(NFT_MSG_GETTABLE, 0, &name, |message| {
            if let Some(Object::Table(_, mut table)) = decode(message) {
                if table.owner == Ownership::Other(own_portid) {
                    table.owner = Ownership::Ours;
                }
                found = Some(table);
            }
        });
        match result {
            Ok(_) => found.map(Some).ok_or(Failure::Malformed),
            Err(Failure::Absent) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    fn chains(&mut self, ruleset: &mut Ruleset) -> Result<(), Failure> {
        let name = [(NFTA_CHAIN_TABLE, Table::NAME)];
        for _ in 0..ATTEMPTS {
            ruleset.chains.clear();
            let dump = self.request(NFT_MSG_GETCHAIN, NLM_F_DUMP, &name, |message| {
                if table_name(message) != Some(Table::NAME) {
                    return;
                }
                if let Some(Object::Chain(chain)) = decode(message) {
                    ruleset.chains.insert(chain.name.clone(), (chain, Vec::new()));
                }
            })?;
            if dump == Dump::Complete {
                return Ok(());
            }
        }
        Err(Failure::Interrupted)
    }

    fn rules(&mut self, ruleset: &mut Ruleset) -> Result<(), Failure> {
        let name = [(NFTA_RULE_TABLE, Table::NAME)];
        self.request(NFT_MSG_GETRULE, NLM_F_DUMP, &name, |message| {
            if table_name(message) != Some(Table::NAME) {
                return;
            }
            let Some(Object::Rule(chain, rule)) = decode(message) else { return };
            let rules: Option<&mut (_, Vec<Rule>)> = ruleset.chains.get_mut(&chain);
            if let Some((_, rules)) = rules {
                rules.push(rule);
            }
        })?;
        Ok(())
    }

    fn sets(&mut self) -> Result<Vec<Set>, Failure> {
        let mut sets = Vec::new();
        let name = [(NFTA_SET_TABLE, Table::NAME)];
        self.request(NFT_MSG_GETSET, NLM_F_DUMP, &name, |message| {
            if let (Some(Table::NAME), Some(Object::Set(set))) =
                (table_name(message), decode(message))
            {
                sets.push(set);
            }
        })?;
        Ok(sets)
    }

    /// One set; `None` if it is of a type we never use.
    fn set(&mut self, name: &Name) -> Result<Option<Set>, Failure> {
        let mut found = None;
        let names = [(NFTA_SET_TABLE, Table::NAME), (NFTA_SET_NAME, name.as_str())];
        self.request(NFT_MSG_GETSET, 0, &names, |message| {
            if let Some(Object::Set(set)) = decode(message) {
                found = Some(set);
            }
        })?;
        Ok(found)
    }

    /// A set without a declared size grows in the background, and then the kernel goes on at the
    /// wrong place of it and says nothing (seen on 6.18). Whatever is left out that way has pushed
    /// something else into its place twice, so a repetition means: read again. No kernel is known
    /// that makes this needless.
    fn elements(&mut self, set: &Set) -> Result<Vec<Element>, Failure> {
        for _ in 0..ATTEMPTS {
            let found = self.parts(set)?;
            if !repeats(&found) {
                return Ok(assemble(set, found));
            }
        }
        Err(Failure::Interrupted)
    }

    fn parts(&mut self, set: &Set) -> Result<Vec<Part>, Failure> {
        let mut found = Vec::new();
        let names =
            [(NFTA_SET_ELEM_LIST_TABLE, Table::NAME), (NFTA_SET_ELEM_LIST_SET, set.name.as_str())];
        self.request(NFT_MSG_GETSETELEM, NLM_F_DUMP, &names, |message| {
            found.append(&mut parts(message, set.timeout));
        })?;
        Ok(found)
    }

    /// As [`ask`].
    fn request(
        &mut self,
        message: u8,
        flags: u16,
        names: &[(u16, &str)],
        each: impl FnMut(&Message<'_>),
    ) -> Result<Dump, Failure> {
        ask(&mut self.requests, self.family, message, flags, names, each)
    }
}

/// Each named counter once, in a table that changes meanwhile too; empty without a table.
fn named_counters(
    requests: &mut Requests,
    family: Family,
) -> Result<BTreeMap<Name, Counter>, Failure> {
    let mut counters = BTreeMap::new();
    let name = [(NFTA_OBJ_TABLE, Table::NAME)];
    ask(requests, family, NFT_MSG_GETOBJ, NLM_F_DUMP, &name, |message| {
        if let (Some(Table::NAME), Some(Object::Counter(name, counter))) =
            (table_name(message), decode(message))
        {
            counters.insert(name, counter);
        }
    })?;
    Ok(counters)
}

/// Sends a request and hands every answer to `each`: with [`NLM_F_DUMP`] all objects, else one.
fn ask(
    requests: &mut Requests,
    family: Family,
    message: u8,
    flags: u16,
    names: &[(u16, &str)],
    each: impl FnMut(&Message<'_>),
) -> Result<Dump, Failure> {
    let mut attributes = Vec::new();
    for &(attribute, name) in names {
        put_str(&mut attributes, attribute, name);
    }
    let request = Request::nfnetlink(NFNL_SUBSYS_NFTABLES, message, nfproto(family), attributes);
    match flags & NLM_F_DUMP {
        0 => requests.execute(&request, each)?,
        _ => return Ok(requests.dump(&request, each)?),
    }
    Ok(Dump::Complete)
}

/// Room for the notifications of a large transaction.
const NOTIFICATION_ROOM: usize = 4 << 20;

/// How long the notifications of a transaction may come after the transaction itself.
const LAG: Duration = Duration::from_secs(5);

/// Tells whether a table changed while it was read, listening from when it is opened.
///
/// The kernel counts the transactions of the whole namespace; a neighbour's say nothing about our table,
/// and a busy one makes them all the time. So the transactions are listened to while the table is read,
/// each of which ends with its number.
struct Witness {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Witness {
    pub fn open() -> io::Result<Witness> {
        let mut socket = Socket::netfilter()?;
        socket.grow_receive(NOTIFICATION_ROOM)?;
        socket.join(NFNLGRP_NFTABLES)?;
        Ok(Witness { socket, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Whether anybody changed our table of this family after generation `since`, up to `until`.
    /// ENOBUFS if too much happened to tell.
    pub fn saw_change(&mut self, of: Family, since: u32, until: u32) -> io::Result<bool> {
        if since == until {
            return Ok(false);
        }
        let mut touched = false;
        loop {
            let datagram = self.socket.receive(&mut self.buffer, LAG)?;
            for message in Messages::new(datagram) {
                let message = message.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                if let Some(Object::Generation(id, _)) = decode(&message) {
                    // What was committed before is only heard late. Numbers wrap around.
                    if touched && id.wrapping_sub(since).cast_signed() > 0 {
                        return Ok(true);
                    }
                    if id == until {
                        return Ok(false);
                    }
                    touched = false;
                } else {
                    touched |=
                        table_name(&message) == Some(Table::NAME) && family(&message) == Some(of);
                }
            }
        }
    }
}
