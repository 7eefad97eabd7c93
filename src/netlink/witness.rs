//! Tells whether a table changed while it was read.
//!
//! Place in the flow: beside [`super::dump`]. The kernel counts the transactions of the whole
//! namespace; a neighbour's say nothing about our table, and a busy one makes them all the time. So
//! the transactions are listened to while the table is read, each of which ends with its number.

use std::io;
use std::time::Duration;

use super::attribute::Messages;
use super::decode::{Object, decode, family, table_name};
use super::socket::{RECEIVE_BUFFER, Socket};
use super::uapi::*;
use crate::model::Family;
use crate::ruleset::Table;

/// Room for the notifications of a large transaction.
const RECEIVE_ROOM: usize = 4 << 20;

/// How long the notifications of a transaction may come after the transaction itself.
const LAG: Duration = Duration::from_secs(5);

/// Listens from when it is opened.
pub(super) struct Witness {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Witness {
    pub fn open() -> io::Result<Witness> {
        let mut socket = Socket::netfilter()?;
        socket.grow_receive(RECEIVE_ROOM)?;
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
