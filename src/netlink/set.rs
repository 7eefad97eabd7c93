//! Set declarations: from [`Set`] to a libnftnl object that `nftnl` can write.
//!
//! Place in the flow: used by [`super::batch`]. `nftnl`'s own set type knows neither maps nor flags.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

use nftnl::{MsgType, NlMsg};
use nftnl_sys as sys;

use super::expr::{Object, c_string};
use super::uapi::*;
use super::userdata;
use crate::ruleset::{Field, Set, SetKind};

/// Bits of a field's type in the type of a concatenation (`TYPE_BITS` of nft).
const TYPE_BITS: u32 = 6;

/// Byte orders as nft keeps them (`enum byteorder`); concatenations have none.
const BYTE_ORDER_NONE: u32 = 0;
const BYTE_ORDER_HOST: u32 = 1;
const BYTE_ORDER_NETWORK: u32 = 2;

/// A libnftnl set without elements.
pub(super) struct Declaration {
    raw: NonNull<sys::nftnl_set>,
    family: u8,
}

impl Declaration {
    /// Only the name, as deletion wants it.
    pub fn named(family: u8, table: &CStr, name: &str) -> Self {
        // SAFETY: no preconditions.
        let raw = unsafe { sys::nftnl_set_alloc() };
        let raw = NonNull::new(raw).expect("memory for a set object");
        let declaration = Declaration { raw, family };
        declaration.str(sys::NFTNL_SET_TABLE, table);
        declaration.str(sys::NFTNL_SET_NAME, &c_string(name));
        declaration
    }

    /// The whole declaration. `id` tells the sets of a batch apart.
    pub fn new(family: u8, table: &CStr, set: &Set, id: u32) -> Self {
        let declaration = Declaration::named(family, table, set.name.as_str());
        declaration.u32(sys::NFTNL_SET_FAMILY, u32::from(family));
        declaration.u32(sys::NFTNL_SET_ID, id);
        declaration.u32(sys::NFTNL_SET_FLAGS, flags(set));
        declaration.u32(sys::NFTNL_SET_KEY_TYPE, type_of(&set.key));
        declaration.u32(sys::NFTNL_SET_KEY_LEN, length_of(&set.key));
        match &set.kind {
            SetKind::Set => {}
            SetKind::Map(fields) => {
                declaration.u32(sys::NFTNL_SET_DATA_TYPE, type_of(fields));
                declaration.u32(sys::NFTNL_SET_DATA_LEN, length_of(fields));
            }
            SetKind::VerdictMap => {
                declaration.u32(sys::NFTNL_SET_DATA_TYPE, NFT_DATA_VERDICT);
                // Any length up to 64 will do: the kernel puts its own in place of it.
                declaration.u32(sys::NFTNL_SET_DATA_LEN, 16);
            }
        }
        if let Some(size) = set.size {
            declaration.u32(sys::NFTNL_SET_DESC_SIZE, size);
        }
        if let Some(timeout) = set.timeout.filter(|&t| t > 0) {
            declaration.u64(sys::NFTNL_SET_TIMEOUT, timeout);
        }
        if set.counter {
            declaration.expr(Object::new(c"counter"));
        }
        declaration.userdata(set);
        declaration
    }

    fn u32(&self, attribute: u32, value: u32) {
        // SAFETY: the pointer is a live set owned by `self`; the value is copied.
        unsafe { sys::nftnl_set_set_u32(self.raw.as_ptr(), attribute as u16, value) };
    }

    fn u64(&self, attribute: u32, value: u64) {
        // SAFETY: as in `u32`; the only caller passes NFTNL_SET_TIMEOUT, 8 bytes wide.
        unsafe { sys::nftnl_set_set_u64(self.raw.as_ptr(), attribute as u16, value) };
    }

    fn str(&self, attribute: u32, text: &CStr) {
        // SAFETY: the pointer is a live set; `text` is NUL-terminated and libnftnl duplicates it.
        unsafe { sys::nftnl_set_set_str(self.raw.as_ptr(), attribute as u16, text.as_ptr()) };
    }

    fn expr(&self, expr: Object) {
        // SAFETY: both are live; the set takes the expression over and frees it with itself.
        unsafe { sys::nftnl_set_add_expr(self.raw.as_ptr(), expr.into_raw().as_ptr()) };
    }

    fn userdata(&self, set: &Set) {
        let mut data = Vec::new();
        userdata::put_u32(&mut data, userdata::SET_KEY_BYTE_ORDER, byte_order(&set.key));
        if let SetKind::Map(fields) = &set.kind {
            userdata::put_u32(&mut data, userdata::SET_DATA_BYTE_ORDER, byte_order(fields));
        }
        if let Some(comment) = &set.comment {
            userdata::put_comment(&mut data, userdata::SET_COMMENT, comment);
        }
        // SAFETY: the pointer is a live set; `data` is valid for its length, at most 254, during the
        // call, and libnftnl copies it.
        unsafe {
            sys::nftnl_set_set_data(
                self.raw.as_ptr(),
                sys::NFTNL_SET_USERDATA as u16,
                data.as_ptr().cast(),
                data.len() as u32,
            );
        }
    }
}

// SAFETY: what is written is names of at most 255 bytes, a few numbers, one expression without
// attributes and at most 254 bytes of user data: far less than the largest netlink message.
unsafe impl NlMsg for Declaration {
    unsafe fn write(&self, buf: *mut c_void, seq: u32, msg_type: MsgType) {
        let (message, flags) = match msg_type {
            MsgType::Add => (NFT_MSG_NEWSET, NLM_F_CREATE),
            MsgType::Del => (NFT_MSG_DELSET, 0),
        };
        let (message, family) = (u16::from(message), u16::from(self.family));
        // SAFETY: the caller promises room for the largest netlink message at `buf`, which the impl's
        // argument says is enough; the header that is returned lies within it.
        unsafe {
            let header = sys::nftnl_nlmsg_build_hdr(buf.cast(), message, family, flags, seq);
            sys::nftnl_set_nlmsg_build_payload(header, self.raw.as_ptr());
        }
    }
}

impl Drop for Declaration {
    fn drop(&mut self) {
        // SAFETY: `self` owns the set and nobody else has the pointer.
        unsafe { sys::nftnl_set_free(self.raw.as_ptr()) };
    }
}

fn flags(set: &Set) -> u32 {
    let flag = |set: bool, flag: u32| if set { flag } else { 0 };
    flag(set.interval, NFT_SET_INTERVAL)
        | flag(set.kind != SetKind::Set, NFT_SET_MAP)
        | flag(set.timeout.is_some(), NFT_SET_TIMEOUT)
        | flag(set.dynamic, NFT_SET_EVAL)
}

fn type_of(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |id, field| id << TYPE_BITS | field.type_id())
}

/// The fields of a type number; `None` if there is one we never use.
pub(super) fn fields_of(mut id: u32) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while id != 0 {
        fields.push(Field::from_type_id(id & ((1 << TYPE_BITS) - 1))?);
        id >>= TYPE_BITS;
    }
    fields.reverse();
    (!fields.is_empty()).then_some(fields)
}

/// Bytes of a key: a lone field has its own length, in concatenations each is padded.
fn length_of(fields: &[Field]) -> u32 {
    let len = match fields {
        [field] => field.byte_len(),
        fields => fields.iter().map(|field| field.padded_len()).sum(),
    };
    u32::try_from(len).expect("a handful of fields")
}

fn byte_order(fields: &[Field]) -> u32 {
    match fields {
        [Field::Mark] => BYTE_ORDER_HOST,
        [_] => BYTE_ORDER_NETWORK,
        _ => BYTE_ORDER_NONE,
    }
}
