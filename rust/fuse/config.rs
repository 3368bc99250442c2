// SPDX-License-Identifier: GPL-2.0

//! What kernel and server agree upon after INIT (`FUSE_IOMAP_CONFIG`).
#![deny(unsafe_code)]

use kernel::{
    bindings::{self, fuse_iomap_config_in, fuse_iomap_config_out},
    fs::Offset,
    prelude::*, //
};

/// The fields of an answer that a server may set.
const FIELDS: u64 = (bindings::FUSE_IOMAP_CONFIG_SID
    | bindings::FUSE_IOMAP_CONFIG_UUID
    | bindings::FUSE_IOMAP_CONFIG_BLOCKSIZE
    | bindings::FUSE_IOMAP_CONFIG_MAX_LINKS
    | bindings::FUSE_IOMAP_CONFIG_TIME
    | bindings::FUSE_IOMAP_CONFIG_MAXBYTES
    | bindings::FUSE_IOMAP_CONFIG_CACHE_MAXBYTES) as u64;

/// The field that is the bound of an inode's cache.
const CACHE_MAXBYTES: u64 = bindings::FUSE_IOMAP_CONFIG_CACHE_MAXBYTES as u64;

/// The extensions that the kernel offers.
const EXTENSIONS: u64 = bindings::FUSE_IOMAP_CONFIG_CACHE_REPLIES
    | bindings::FUSE_IOMAP_CONFIG_BATCH_MAPPINGS
    | bindings::FUSE_IOMAP_CONFIG_BATCH_IOEND;

/// Extensions that are in use on a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extensions(u64);

impl Extensions {
    /// As the C side keeps them.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits & EXTENSIONS)
    }

    /// What the C side keeps.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// Whether flagged mappings of a BEGIN reply are cached.
    pub(crate) fn cache_replies(self) -> bool {
        self.0 & bindings::FUSE_IOMAP_CONFIG_CACHE_REPLIES != 0
    }

    /// Whether a BEGIN reply may have more mappings.
    pub(crate) fn batch_mappings(self) -> bool {
        self.0 & bindings::FUSE_IOMAP_CONFIG_BATCH_MAPPINGS != 0
    }

    /// Whether an IOEND may be about several ranges.
    pub(crate) fn batch_ioend(self) -> bool {
        self.0 & bindings::FUSE_IOMAP_CONFIG_BATCH_IOEND != 0
    }
}

/// What a server has answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) extensions: Extensions,
    /// Largest size of an inode's mapping cache, in bytes.
    pub(crate) cache_bytes: u32,
}

/// What the kernel says of itself, with its default bound of an inode's mapping cache in bytes.
pub(crate) fn offer(cache_bytes: u32) -> fuse_iomap_config_in {
    fuse_iomap_config_in {
        flags: FIELDS | EXTENSIONS,
        maxbytes: Offset::MAX,
        cache_maxbytes: cache_bytes,
        ..Default::default()
    }
}

/// Checks an answer, given what was offered.  Fails with the name of what is wrong.
pub(crate) fn parse(
    offered: &fuse_iomap_config_in,
    answer: &fuse_iomap_config_out,
) -> Result<Config, &'static CStr> {
    if answer.flags & !offered.flags != 0 {
        return Err(c"unknown flags");
    }
    if answer.s_pad != [0; 3] || answer.zero != 0 {
        return Err(c"padding is not zero");
    }

    Ok(Config {
        extensions: Extensions::from_bits(answer.flags),
        cache_bytes: if answer.flags & CACHE_MAXBYTES != 0 {
            answer.cache_maxbytes
        } else {
            offered.cache_maxbytes
        },
    })
}
