// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Mappings and notifications about them that need not make sense.

use fuse_iomap::Connection;
use fuse_iomap::wire::{
    ADDR_NULL, IomapInvalMappingsOut, IomapIo, IomapUpsertMappingsOut, Range, iomap_type, notify,
};
use serde::{Deserialize, Serialize};
use std::io;
use zerocopy::IntoBytes;

/// The fields of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawIo {
    /// File offset.
    pub offset: u64,
    /// Length.
    pub length: u64,
    /// Device address.
    pub addr: u64,
    /// Type.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Backing id.
    pub dev: u32,
}

impl RawIo {
    /// A mapping without address.
    pub const fn without(kind: u16, offset: u64, length: u64) -> Self {
        Self {
            offset,
            length,
            addr: ADDR_NULL,
            kind,
            flags: 0,
            dev: 0,
        }
    }

    /// What leaves a side of the kernel's cache alone.
    pub const fn no_cache(offset: u64, length: u64) -> Self {
        Self::without(iomap_type::NOCACHE, offset, length)
    }

    /// Data on a device.
    pub const fn mapped(offset: u64, length: u64, addr: u64, dev: u32) -> Self {
        Self {
            addr,
            dev,
            ..Self::without(iomap_type::MAPPED, offset, length)
        }
    }

    /// The bytes.
    pub const fn to_wire(self) -> IomapIo {
        IomapIo {
            offset: self.offset,
            length: self.length,
            addr: self.addr,
            kind: self.kind,
            flags: self.flags,
            dev: self.dev,
        }
    }
}

/// What is said about the mappings of an inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Notice {
    /// Put these mappings, to read and to write, into the cache.
    Upsert(RawIo, RawIo),
    /// Forget these ranges (offset and length), to read and to write.
    Inval((u64, u64), (u64, u64)),
}

impl Notice {
    /// Sends it; with `size`, so many bytes of it, or zeroes behind it.
    pub fn send(
        &self,
        connection: &Connection,
        nodeid: u64,
        attr_ino: u64,
        size: Option<usize>,
    ) -> io::Result<()> {
        let (code, mut bytes) = match self {
            Self::Upsert(read, write) => {
                let body = IomapUpsertMappingsOut {
                    nodeid,
                    attr_ino,
                    read: read.to_wire(),
                    write: write.to_wire(),
                };
                (notify::IOMAP_UPSERT_MAPPINGS, body.as_bytes().to_vec())
            }
            Self::Inval(read, write) => {
                let range = |(offset, length)| Range { offset, length };
                let body = IomapInvalMappingsOut {
                    nodeid,
                    attr_ino,
                    read: range(*read),
                    write: range(*write),
                };
                (notify::IOMAP_INVAL_MAPPINGS, body.as_bytes().to_vec())
            }
        };
        if let Some(size) = size {
            bytes.resize(size, 0);
        }
        connection.notify(code, &[&bytes])
    }
}
