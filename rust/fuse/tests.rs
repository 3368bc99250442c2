// SPDX-License-Identifier: GPL-2.0

//! KUnit tests, by subject, and the mappings that they start from.
#![deny(unsafe_code)]

use crate::{
    mapping::{
        DeviceLimits,
        Devices,
        Limits,
        Mapping,
        Place,
        Purpose,
        Refusal,
        Side,
        Token,
        NO_ADDR, //
    },
    rule::Rule, //
};
use kernel::{
    bindings::{self, fuse_iomap_io},
    fs::iomap::{MapFlag, MapFlags},
    page::PAGE_SIZE,
    prelude::*, //
};

mod config;
mod mapping;
mod write_mapping;

/// Two devices: number 1 with logical blocks of 512 bytes, and number 2 with 4096.
struct TwoDevices;

/// Size of both.
const DEVICE_BYTES: u64 = 1 << 30;

impl Devices for TwoDevices {
    type Device = u32;

    fn find(&self, id: u32) -> Result<Option<u32>> {
        match id {
            1 | 2 => Ok(Some(id)),
            99 => Err(ENOMEM),
            _ => Ok(None),
        }
    }

    fn limits(device: u32) -> DeviceLimits {
        DeviceLimits {
            logical_block: if device == 1 { 512 } else { 4096 },
            bytes: DEVICE_BYTES,
        }
    }
}

/// An inode with blocks of 1 KiB in a filesystem with files up to 1 TiB.
const LIMITS: Limits = Limits {
    block_size: 1024,
    may_cache: false,
    max_bytes: 1 << 40,
};

/// Shorthand for the types of the protocol.
const HOLE: u32 = bindings::FUSE_IOMAP_TYPE_HOLE;
const DELALLOC: u32 = bindings::FUSE_IOMAP_TYPE_DELALLOC;
const MAPPED: u32 = bindings::FUSE_IOMAP_TYPE_MAPPED;
const UNWRITTEN: u32 = bindings::FUSE_IOMAP_TYPE_UNWRITTEN;
const INLINE: u32 = bindings::FUSE_IOMAP_TYPE_INLINE;
const NOCACHE: u32 = bindings::FUSE_IOMAP_TYPE_NOCACHE;
const RETRY_CACHE: u32 = bindings::FUSE_IOMAP_TYPE_RETRY_CACHE;
const PURE_OVERWRITE: u32 = bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE;

/// A mapping of 8 KiB at 4 KiB that keeps all rules.
fn good(kind: u32) -> fuse_iomap_io {
    let blocks = kind == MAPPED || kind == UNWRITTEN;

    fuse_iomap_io {
        offset: if kind == INLINE { 0 } else { 4096 },
        length: if kind == INLINE { 1024 } else { 8192 },
        addr: if blocks { 1 << 20 } else { NO_ADDR },
        type_: kind as u16,
        flags: 0,
        dev: if blocks { 1 } else { 0 },
    }
}

/// Checks a mapping on a side, as for an operation at the start of its range.
fn parse(wire: &fuse_iomap_io, side: Side) -> Result<Mapping<u32>, Refusal> {
    Mapping::parse(wire, side, &LIMITS, &TwoDevices)
}

/// Whether a mapping is refused, on both sides, because of this rule.
fn refused(wire: &fuse_iomap_io, rule: Rule) -> bool {
    [Side::Read, Side::Write]
        .iter()
        .all(|&side| matches!(parse(wire, side), Err(Refusal::Rule(found)) if found == rule))
}

/// Changes a good mapping and says whether that breaks this rule.
fn breaks(kind: u32, rule: Rule, change: impl FnOnce(&mut fuse_iomap_io)) -> bool {
    let mut wire = good(kind);
    let was_good = parse(&wire, Side::Write).is_ok();

    change(&mut wire);
    was_good && refused(&wire, rule)
}
