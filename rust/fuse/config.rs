// SPDX-License-Identifier: GPL-2.0

//! What kernel and server agree upon after INIT (`FUSE_IOMAP_CONFIG`).
#![deny(unsafe_code)]

use core::{mem::offset_of, ops::RangeInclusive};
use kernel::{
    bindings::{self, fuse_iomap_config_in, fuse_iomap_config_out},
    fs::Offset,
    prelude::*, //
};

/// A field of an answer that a server may set: its flag, where it ends, and what to say if the
/// answer ends before.
struct Field(u64, usize, &'static CStr);

/// What the fields are in.
type Answer = fuse_iomap_config_out;

/// All of them.
#[rustfmt::skip]
const FIELDS: [Field; 7] = [
    Field(SID, offset_of!(Answer, s_uuid), c"s_id: set but missing"),
    Field(UUID, offset_of!(Answer, s_pad), c"s_uuid: set but missing"),
    Field(BLOCKSIZE, offset_of!(Answer, s_max_links), c"s_blocksize: set but missing"),
    Field(MAX_LINKS, offset_of!(Answer, s_time_gran), c"s_max_links: set but missing"),
    Field(TIME, offset_of!(Answer, s_maxbytes), c"s_time_*: set but missing"),
    Field(MAXBYTES, offset_of!(Answer, cache_maxbytes), c"s_maxbytes: set but missing"),
    Field(CACHE_MAXBYTES, offset_of!(Answer, zero), c"cache_maxbytes: set but missing"),
];

const SID: u64 = bindings::FUSE_IOMAP_CONFIG_SID as u64;
const UUID: u64 = bindings::FUSE_IOMAP_CONFIG_UUID as u64;
const BLOCKSIZE: u64 = bindings::FUSE_IOMAP_CONFIG_BLOCKSIZE as u64;
const MAX_LINKS: u64 = bindings::FUSE_IOMAP_CONFIG_MAX_LINKS as u64;
const TIME: u64 = bindings::FUSE_IOMAP_CONFIG_TIME as u64;
const MAXBYTES: u64 = bindings::FUSE_IOMAP_CONFIG_MAXBYTES as u64;
const CACHE_MAXBYTES: u64 = bindings::FUSE_IOMAP_CONFIG_CACHE_MAXBYTES as u64;

/// The coarsest granularity of times that the VFS knows: a second, in nanoseconds.
const MAX_TIME_GRAN: u32 = 1_000_000_000;

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

/// What a server has answered, checked.  What it has not set is `None`, and stays as it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) extensions: Extensions,
    /// Largest size of an inode's mapping cache, in bytes.
    pub(crate) cache_bytes: u32,
    /// What the filesystem is called in the log, with a NUL at the end.
    pub(crate) name: Option<[u8; 32]>,
    /// The UUID, and how many bytes of it count.
    pub(crate) uuid: Option<([u8; 16], u8)>,
    /// A power of two, in bytes.
    pub(crate) block_size: Option<u32>,
    /// How many names an inode may have; 0 for any number.
    pub(crate) max_links: Option<u32>,
    /// What times of inodes can be.
    pub(crate) times: Option<Times>,
    /// The size of the largest file.
    pub(crate) max_bytes: Option<Offset>,
}

/// The times that inodes can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// In nanoseconds, a second at most.
    pub(crate) granularity: u32,
    /// The first one, in seconds since 1970.
    pub(crate) first: i64,
    /// The last one.
    pub(crate) last: i64,
}

/// What the kernel says of itself, with its default bound of an inode's mapping cache in bytes.
pub(crate) fn offer(cache_bytes: u32) -> fuse_iomap_config_in {
    fuse_iomap_config_in {
        flags: FIELDS.iter().fold(EXTENSIONS, |all, field| all | field.0),
        maxbytes: Offset::MAX,
        cache_maxbytes: cache_bytes,
        ..Default::default()
    }
}

/// Checks an answer of `length` bytes, given what was offered and what the block size can
/// be.  Fails with the name of the field that is wrong, and why.
///
/// What lies beyond `length` in `answer` must be zero.
pub(crate) fn parse(
    offered: &fuse_iomap_config_in,
    answer: &fuse_iomap_config_out,
    length: usize,
    block_sizes: &RangeInclusive<u32>,
) -> Result<Config, &'static CStr> {
    if answer.flags & !offered.flags != 0 {
        return Err(c"unknown flags");
    }
    if answer.s_pad != [0; 3] || answer.zero != 0 {
        return Err(c"padding is not zero");
    }
    let has = |field| answer.flags & field != 0;
    if let Some(Field(_, _, missing)) = FIELDS
        .iter()
        .find(|Field(flag, end, _)| has(*flag) && *end > length)
    {
        return Err(missing);
    }

    let mut config = Config {
        extensions: Extensions::from_bits(answer.flags),
        cache_bytes: offered.cache_maxbytes,
        ..Default::default()
    };
    if has(SID) {
        config.name = Some(name(answer)?);
    }
    if has(UUID) {
        config.uuid = Some(uuid(answer)?);
    }
    if has(BLOCKSIZE) {
        config.block_size = Some(block_size(answer.s_blocksize, block_sizes)?);
    }
    if has(MAX_LINKS) {
        config.max_links = Some(answer.s_max_links);
    }
    if has(TIME) {
        config.times = Some(times(answer)?);
    }
    if has(MAXBYTES) {
        // All that is not negative is below the VFS's own limit.
        if answer.s_maxbytes <= 0 {
            return Err(c"s_maxbytes: not positive");
        }
        config.max_bytes = Some(answer.s_maxbytes);
    }
    if has(CACHE_MAXBYTES) {
        config.cache_bytes = answer.cache_maxbytes;
    }
    Ok(config)
}

/// The name, which may fill its field, cut so that a NUL has room.
fn name(answer: &fuse_iomap_config_out) -> Result<[u8; 32], &'static CStr> {
    let mut name = [0; 32];

    for (to, from) in name.iter_mut().zip(&answer.s_id) {
        match *from {
            0 => break,
            // It goes to the log, and must not look like something else there.
            c if c.is_ascii_graphic() => *to = c,
            _ => return Err(c"s_id: not a word of printable characters"),
        }
    }
    if name.starts_with(&[0]) {
        return Err(c"s_id: empty");
    }
    if let Some(last) = name.last_mut() {
        *last = 0;
    }
    Ok(name)
}

/// The UUID and its length.
fn uuid(answer: &fuse_iomap_config_out) -> Result<([u8; 16], u8), &'static CStr> {
    let length = usize::from(answer.s_uuid_len);
    let mut uuid = [0; 16];

    if !(1..=uuid.len()).contains(&length) {
        return Err(c"s_uuid_len: not from 1 to 16");
    }
    for (to, from) in uuid.iter_mut().zip(&answer.s_uuid).take(length) {
        *to = *from;
    }
    Ok((uuid, answer.s_uuid_len))
}

/// The block size.
fn block_size(bytes: u32, possible: &RangeInclusive<u32>) -> Result<u32, &'static CStr> {
    if !bytes.is_power_of_two() {
        return Err(c"s_blocksize: not a power of two");
    }
    if bytes < *possible.start() {
        return Err(c"s_blocksize: less than 512 or the logical block size of a device");
    }
    if bytes > *possible.end() {
        return Err(c"s_blocksize: more than the page cache supports");
    }
    Ok(bytes)
}

/// The range of times.
fn times(answer: &fuse_iomap_config_out) -> Result<Times, &'static CStr> {
    if !(1..=MAX_TIME_GRAN).contains(&answer.s_time_gran) {
        return Err(c"s_time_gran: not from 1 to 1000000000");
    }
    if answer.s_time_min > answer.s_time_max {
        return Err(c"s_time_min: after s_time_max");
    }
    Ok(Times {
        granularity: answer.s_time_gran,
        first: answer.s_time_min,
        last: answer.s_time_max,
    })
}
