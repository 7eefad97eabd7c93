//! Cuts the body of a watch into frames, one per event, as its chunks arrive.
//!
//! JSON: one event per line. Protobuf: a 4-byte big-endian length before each event. Knows nothing
//! of what a frame contains, nor where chunks come from.

use bytes::{Buf, Bytes, BytesMut};

use super::{Encoding, WireError};

/// The longest frame that is accepted by default, in bytes: well above etcd's 1.5 MiB per object,
/// which can grow when it is printed as JSON.
pub const MAX_FRAME: usize = 16 << 20;

/// Bytes of a protobuf frame's length.
const LENGTH: usize = 4;

/// Splits one stream. Holds at most one incomplete frame and the chunks not yet taken.
#[derive(Debug)]
pub struct Frames {
    encoding: Encoding,
    limit: usize,
    buffer: BytesMut,
    /// Bytes at the buffer's start that hold no newline; not searched again.
    searched: usize,
}

impl Frames {
    /// A splitter for a stream that has just begun. `limit`: the longest frame, in bytes.
    pub fn new(encoding: Encoding, limit: usize) -> Frames {
        Frames { encoding, limit, buffer: BytesMut::new(), searched: 0 }
    }

    /// Adds the next chunk of the body. Take all frames before adding another one.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The next complete frame; `None` until more chunks arrive. Empty lines are passed over.
    ///
    /// Errors: [`WireError::FrameTooLong`]; the stream is of no use after it.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, WireError> {
        match self.encoding {
            Encoding::Json => self.next_line(),
            Encoding::Protobuf => self.next_delimited(),
        }
    }

    /// Whether nothing is left over: false at the end of a body means that it was cut off.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    fn next_line(&mut self) -> Result<Option<Bytes>, WireError> {
        loop {
            let rest = &self.buffer[self.searched..];
            let Some(found) = rest.iter().position(|&byte| byte == b'\n') else {
                self.searched = self.buffer.len();
                self.check(self.searched)?;
                return Ok(None);
            };
            let length = self.searched + found;
            self.check(length)?;
            let line = self.buffer.split_to(length + 1).freeze().slice(..length);
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn next_delimited(&mut self) -> Result<Option<Bytes>, WireError> {
        let Some(prefix) = self.buffer.first_chunk::<LENGTH>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*prefix) as usize;
        self.check(length)?;
        if self.buffer.len() - LENGTH < length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    fn check(&self, length: usize) -> Result<(), WireError> {
        if length > self.limit {
            return Err(WireError::FrameTooLong { length, limit: self.limit });
        }
        Ok(())
    }
}
