// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Parts of replies, and changing them.

use super::HEADER;
use fuse_iomap::wire::{IomapBeginOut, IomapConfigOut, IomapIo, IomapIoendOut, OutHeader};
use std::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes};

/// Changes the header of a reply.
pub(super) fn edit_header(reply: &mut [u8], edit: impl FnOnce(&mut OutHeader)) {
    if let Ok((mut header, _)) = OutHeader::read_from_prefix(reply) {
        edit(&mut header);
        reply[..HEADER].copy_from_slice(header.as_bytes());
    }
}

/// Where a field of a reply is.
#[derive(Clone, Copy)]
pub(super) struct Field {
    at: usize,
    len: usize,
}

impl Field {
    pub(super) fn set(self, reply: &mut [u8], value: u64) {
        let start = HEADER + self.at;
        if let Some(bytes) = reply.get_mut(start..start + self.len) {
            match self.len {
                1 => bytes.copy_from_slice(&[value as u8]),
                2 => bytes.copy_from_slice(&(value as u16).to_ne_bytes()),
                4 => bytes.copy_from_slice(&(value as u32).to_ne_bytes()),
                _ => bytes.copy_from_slice(&value.to_ne_bytes()),
            }
        }
    }

    pub(super) fn get(self, reply: &[u8]) -> u64 {
        let mut value = 0;
        let start = HEADER + self.at;
        for byte in reply
            .get(start..start + self.len)
            .unwrap_or(&[])
            .iter()
            .rev()
        {
            value = value << 8 | u64::from(*byte);
        }
        if cfg!(target_endian = "big") {
            value = value.swap_bytes() >> (64 - 8 * self.len);
        }
        value
    }
}

/// Names of the fields of a mapping.
pub(super) const FIELDS: [&str; 6] = ["offset", "length", "addr", "type", "flags", "dev"];

/// The field with a name.
pub(super) fn field(name: &str) -> Result<Field, String> {
    let unknown = || format!("rule: no reply has a field {name}");
    if name == "ioend.newsize" {
        let at = offset_of!(IomapIoendOut, newsize);
        return Ok(Field { at, len: 8 });
    }
    if let Some(name) = name.strip_prefix("config.") {
        let (at, len) = match name {
            "flags" => (offset_of!(IomapConfigOut, flags), 8),
            "s_uuid_len" => (offset_of!(IomapConfigOut, s_uuid_len), 1),
            "s_blocksize" => (offset_of!(IomapConfigOut, s_blocksize), 4),
            "s_max_links" => (offset_of!(IomapConfigOut, s_max_links), 4),
            "s_time_gran" => (offset_of!(IomapConfigOut, s_time_gran), 4),
            "s_time_min" => (offset_of!(IomapConfigOut, s_time_min), 8),
            "s_time_max" => (offset_of!(IomapConfigOut, s_time_max), 8),
            "s_maxbytes" => (offset_of!(IomapConfigOut, s_maxbytes), 8),
            "cache_maxbytes" => (offset_of!(IomapConfigOut, cache_maxbytes), 4),
            _ => return Err(unknown()),
        };
        return Ok(Field { at, len });
    }
    let (side, field) = name.split_once('.').ok_or_else(unknown)?;
    let base = match side {
        "read" => offset_of!(IomapBeginOut, read),
        "write" => offset_of!(IomapBeginOut, write),
        _ => return Err(unknown()),
    };
    let (at, len) = match field {
        "offset" => (offset_of!(IomapIo, offset), 8),
        "length" => (offset_of!(IomapIo, length), 8),
        "addr" => (offset_of!(IomapIo, addr), 8),
        "type" => (offset_of!(IomapIo, kind), 2),
        "flags" => (offset_of!(IomapIo, flags), 2),
        "dev" => (offset_of!(IomapIo, dev), 4),
        _ => return Err(unknown()),
    };
    Ok(Field { at: base + at, len })
}
