// SPDX-License-Identifier: GPL-2.0

//! Mappings from a server, checked.
//!
//! [`Mapping::parse`] is the only way to make a [`Mapping`] of what a server sent, and what uses
//! one takes no less.  The rules are those of the protocol, see
//! `Documentation/filesystems/fuse/fuse-iomap.rst`.
#![deny(unsafe_code)]

use crate::rule::Rule;
use kernel::{
    bindings::{self, fuse_iomap_io},
    fs::{
        iomap::{MapFlag, MapFlags},
        Offset, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// The address that means that there is none.
pub(crate) const NO_ADDR: u64 = u64::MAX;

/// The flags that a server may set, each with what it means to fs/iomap, if anything.
const FLAGS: [(u32, Option<MapFlag>); 8] = [
    (bindings::FUSE_IOMAP_F_NEW, Some(MapFlag::New)),
    (bindings::FUSE_IOMAP_F_DIRTY, Some(MapFlag::Dirty)),
    (bindings::FUSE_IOMAP_F_SHARED, Some(MapFlag::Shared)),
    (bindings::FUSE_IOMAP_F_MERGED, Some(MapFlag::Merged)),
    (bindings::FUSE_IOMAP_F_BOUNDARY, Some(MapFlag::Boundary)),
    // With IOMAP_F_ANON_WRITE fs/iomap takes no address from the mapping: a read must not see it,
    // and a write is refused. ATOMIC_BIO is added for atomic writes only: with it fs/iomap never
    // splits the I/O.
    (bindings::FUSE_IOMAP_F_ANON_WRITE, None),
    (bindings::FUSE_IOMAP_F_ATOMIC_BIO, None),
    (bindings::FUSE_IOMAP_F_WANT_IOMAP_END, None),
];

/// The side of a reply that a mapping is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// Where data is now.
    Read,
    /// Where to write.
    Write,
}

/// What a mapping to write to is needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Making the page cache dirty.
    Write,
    /// Writing past the page cache.
    Direct,
    /// The same, where there are blocks with data; whether there are is to be found out.
    Overwrite,
    /// Making the page cache dirty through the memory of a task.
    Fault,
    /// Making shared blocks dirty in the page cache, where there are any.
    Unshare,
    /// Zeroing in the page cache, where there is something to zero.
    Zero,
    /// Writing dirty folios back.
    Writeback,
}

/// What the rules need to know of an inode.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Block size, in bytes; not 0.
    pub(crate) block_size: u64,
    /// Largest file size, in bytes.
    pub(crate) max_bytes: u64,
    /// Whether a server may say that a mapping is to be cached.
    pub(crate) may_cache: bool,
}

/// What the rules need to know of a device.
#[derive(Clone, Copy)]
pub(crate) struct DeviceLimits {
    /// Size of a logical block, in bytes; not 0.
    pub(crate) logical_block: u64,
    /// Size, in bytes.
    pub(crate) bytes: u64,
}

/// The devices that a mapping may refer to.
pub(crate) trait Devices {
    /// One of them.
    type Device: Copy;

    /// Finds a device by the id that the server has for it.
    ///
    /// Fails for another reason than that there is none, for example `ENOMEM`.
    fn find(&self, id: u32) -> Result<Option<Self::Device>>;

    /// What the rules need to know of a device.
    fn limits(device: Self::Device) -> DeviceLimits;
}

/// Why there is no mapping.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It breaks a rule.
    Rule(Rule),
    /// It could not be checked.
    Error(Error),
}

impl From<Rule> for Refusal {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// What a mapping says of its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place<D> {
    /// No blocks.
    Hole,
    /// Space is reserved.
    Delalloc,
    /// Blocks with data, at an address in bytes.
    Mapped(D, u64),
    /// Blocks that read as zeroes, at an address in bytes.
    Unwritten(D, u64),
    /// Data is in the inode.
    Inline,
    /// Write where the read side points.
    PureOverwrite,
}

/// A mapping that keeps all rules.
///
/// # Invariants
///
/// Offset and length are multiples of the inode's block size, the length is not 0, and their sum
/// does not overflow.  The blocks of [`Place::Mapped`] and [`Place::Unwritten`] are on the device
/// and start at one of its logical blocks.
#[derive(Clone, Debug)]
pub(crate) struct Mapping<D> {
    offset: u64,
    length: u64,
    place: Place<D>,
    flags: u16,
    dev: u32,
}

impl<D: Copy> Mapping<D> {
    /// Checks what a server sent.
    ///
    /// May sleep if finding a device does.
    pub(crate) fn parse<L: Devices<Device = D>>(
        wire: &fuse_iomap_io,
        side: Side,
        limits: &Limits,
        devices: &L,
    ) -> Result<Self, Refusal> {
        let kind = u32::from(wire.type_);
        match kind {
            bindings::FUSE_IOMAP_TYPE_HOLE
            | bindings::FUSE_IOMAP_TYPE_DELALLOC
            | bindings::FUSE_IOMAP_TYPE_MAPPED
            | bindings::FUSE_IOMAP_TYPE_UNWRITTEN
            | bindings::FUSE_IOMAP_TYPE_INLINE => (),
            bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE if side == Side::Write => (),
            bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE => {
                return Err(Rule::PureOverwriteInRead.into())
            }
            bindings::FUSE_IOMAP_TYPE_NOCACHE => return Err(Rule::NocacheInReply.into()),
            bindings::FUSE_IOMAP_TYPE_RETRY_CACHE => return Err(Rule::RetryWithoutCache.into()),
            _ => return Err(Rule::UnknownType.into()),
        }

        let known = FLAGS.iter().fold(0, |known, &(bit, _)| known | bit);
        let flags = if limits.may_cache {
            u32::from(wire.flags) & !bindings::FUSE_IOMAP_F_CACHE
        } else {
            u32::from(wire.flags)
        };
        if flags & !known != 0 {
            return Err(Rule::UnknownFlags.into());
        }

        Self::check_range(wire, limits)?;

        let place = match kind {
            bindings::FUSE_IOMAP_TYPE_MAPPED | bindings::FUSE_IOMAP_TYPE_UNWRITTEN => {
                let device = Self::check_blocks(wire, limits, devices)?;

                if kind == bindings::FUSE_IOMAP_TYPE_MAPPED {
                    Place::Mapped(device, wire.addr)
                } else {
                    Place::Unwritten(device, wire.addr)
                }
            }
            _ if wire.addr != NO_ADDR => return Err(Rule::UnexpectedAddress.into()),
            bindings::FUSE_IOMAP_TYPE_INLINE => Place::Inline,
            bindings::FUSE_IOMAP_TYPE_DELALLOC => Place::Delalloc,
            bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE => Place::PureOverwrite,
            _ => Place::Hole,
        };

        // INVARIANT: Checked by `check_range` and `check_blocks`.
        Ok(Self {
            offset: wire.offset,
            length: wire.length,
            place,
            // CAST: The known flags are those of a `u16`.
            flags: flags as u16,
            dev: wire.dev,
        })
    }

    /// Makes a mapping of what the cache has of `pos`.
    ///
    /// Only what [`Mapping::parse`] has accepted gets there, and there it is cut and merged at
    /// block borders only.  What that has checked is true for as long as the inode lives: block
    /// size, largest size and extensions do not change, and the device is kept, so `None` is never
    /// returned.  A device that has become smaller refuses the I/O itself.
    #[inline(always)]
    pub(crate) fn recall<L: Devices<Device = D>>(
        wire: &fuse_iomap_io,
        devices: &L,
    ) -> Option<Self> {
        let place = match u32::from(wire.type_) {
            bindings::FUSE_IOMAP_TYPE_MAPPED => {
                Place::Mapped(devices.find(wire.dev).ok()??, wire.addr)
            }
            bindings::FUSE_IOMAP_TYPE_UNWRITTEN => {
                Place::Unwritten(devices.find(wire.dev).ok()??, wire.addr)
            }
            bindings::FUSE_IOMAP_TYPE_DELALLOC => Place::Delalloc,
            bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE => Place::PureOverwrite,
            bindings::FUSE_IOMAP_TYPE_HOLE => Place::Hole,
            _ => return None,
        };

        // INVARIANT: Checked by `parse`, see above.
        Some(Self {
            offset: wire.offset,
            length: wire.length,
            place,
            flags: wire.flags,
            dev: wire.dev,
        })
    }

    /// The rules about the range in the file.
    fn check_range(wire: &fuse_iomap_io, limits: &Limits) -> Result<(), Rule> {
        if wire.length == 0 {
            return Err(Rule::ZeroLength);
        }
        if !wire.offset.is_multiple_of(limits.block_size) {
            return Err(Rule::UnalignedOffset);
        }
        if !wire.length.is_multiple_of(limits.block_size) {
            return Err(Rule::UnalignedLength);
        }
        if wire.offset.checked_add(wire.length).is_none() {
            return Err(Rule::RangeOverflow);
        }
        if wire.offset >= limits.max_bytes {
            return Err(Rule::BeyondMaxbytes);
        }
        if u32::from(wire.type_) == bindings::FUSE_IOMAP_TYPE_INLINE {
            if wire.offset != 0 {
                return Err(Rule::InlineNotAtZero);
            }
            if wire.length > PAGE_SIZE as u64 {
                return Err(Rule::InlineTooLong);
            }
        }

        Ok(())
    }

    /// The rules about blocks on a device.
    fn check_blocks<L: Devices<Device = D>>(
        wire: &fuse_iomap_io,
        limits: &Limits,
        devices: &L,
    ) -> Result<D, Refusal> {
        if wire.addr == NO_ADDR {
            return Err(Rule::NoAddress.into());
        }
        if wire.dev == bindings::FUSE_IOMAP_DEV_NULL {
            return Err(Rule::NoDevice.into());
        }
        let device = devices.find(wire.dev)?.ok_or(Rule::NoDevice)?;
        let device_limits = L::limits(device);

        if limits.block_size < device_limits.logical_block {
            return Err(Rule::BlockBelowDevice.into());
        }
        if !wire.addr.is_multiple_of(device_limits.logical_block) {
            return Err(Rule::UnalignedAddress.into());
        }
        let fits = wire
            .addr
            .checked_add(wire.length)
            .is_some_and(|end| end <= device_limits.bytes);
        if !fits {
            return Err(Rule::BeyondDevice.into());
        }

        Ok(device)
    }

    /// Narrows the mapping to what it says of `pos`, when data is to be read.
    ///
    /// One that starts later is a hole up to there.  One that ends earlier breaks a rule.
    pub(crate) fn for_read(self, pos: u64, limits: &Limits) -> Result<Self, Rule> {
        if self.end() <= pos {
            return Err(Rule::NotContainingPos);
        }
        if self.offset <= pos {
            return Ok(self);
        }

        let start = pos - pos % limits.block_size;
        // INVARIANT: `start` is a multiple of the block size below `self.offset`, which is
        // another.
        Ok(Self {
            offset: start,
            length: self.offset - start,
            place: Place::Hole,
            // The server gets its END for what it sent.
            flags: self.flags & bindings::FUSE_IOMAP_F_WANT_IOMAP_END as u16,
            dev: bindings::FUSE_IOMAP_DEV_NULL,
        })
    }

    /// Finds where to write, given both sides of a reply.
    ///
    /// `read` is what [`Mapping::for_read`] has returned.
    pub(crate) fn for_write(self, read: &Self, pos: u64, purpose: Purpose) -> Result<Self, Rule> {
        let same = matches!(self.place, Place::PureOverwrite);
        let mut target = if same { read.clone() } else { self };

        if pos < target.offset || target.end() <= pos {
            return Err(Rule::NotContainingPos);
        }
        if target.has_flag(bindings::FUSE_IOMAP_F_ANON_WRITE) {
            return Err(Rule::AnonWrite);
        }
        match (purpose, target.place) {
            (Purpose::Write | Purpose::Fault | Purpose::Direct, Place::Hole) => {
                return Err(Rule::HoleForWrite)
            }
            (Purpose::Direct, Place::Delalloc) => return Err(Rule::DelallocForDirect),
            (Purpose::Fault, Place::Inline) => return Err(Rule::InlineInFault),
            (Purpose::Writeback, Place::Delalloc) => return Err(Rule::DelallocInWriteback),
            (Purpose::Writeback, Place::Inline) => return Err(Rule::InlineInWriteback),
            _ => (),
        }

        let sides = (read.place, target.place);
        let is_inline = matches!(sides, (Place::Inline, _) | (_, Place::Inline));
        if is_inline && !matches!(sides, (Place::Inline, Place::Inline)) {
            return Err(Rule::InlineOnOneSide);
        }

        if !same && matches!(read.place, Place::Hole) && purpose != Purpose::Writeback {
            // fs/iomap does not look at a hole to read from, so it does not see where that ends.
            target.limit(read.end());
            // Nor that nothing is to be read from these blocks.
            if matches!(target.place, Place::Mapped(..)) {
                target.flags |= bindings::FUSE_IOMAP_F_NEW as u16;
            }
        }
        Ok(target)
    }

    /// Makes the mapping begin at `start`, a multiple of the block size, if that is inside it.
    pub(crate) fn skip_to(&mut self, start: u64) {
        let skip = start.saturating_sub(self.offset);
        if skip >= self.length {
            return;
        }

        // INVARIANT: What is left is a part of the range, on the device as well, in whole blocks.
        self.offset += skip;
        self.length -= skip;
        if let Place::Mapped(_, addr) | Place::Unwritten(_, addr) = &mut self.place {
            *addr += skip;
        }
    }

    /// Makes the mapping end at `end` at the latest, which is a multiple of the block size and
    /// beyond its start.
    pub(crate) fn limit(&mut self, end: u64) {
        let length = end.saturating_sub(self.offset);

        // INVARIANT: By what the caller promises the length is a multiple and not 0.
        if length != 0 && length < self.length {
            self.length = length;
        }
    }

    /// Takes away what is not in the blocks of `count` bytes from `pos`, of which the first is in
    /// the mapping.
    ///
    /// FIEMAP tells of mappings as they are, and of what is before these blocks it has told.
    pub(crate) fn narrow(&mut self, pos: u64, count: u64, limits: &Limits) {
        let start = pos - pos % limits.block_size;
        let end = pos
            .checked_add(count)
            .and_then(|end| end.checked_next_multiple_of(limits.block_size));

        if let Some(end) = end {
            self.limit(end);
        }
        self.skip_to(start);
    }

    /// Makes a hole of the mapping.
    ///
    /// For blocks and reservations beyond the end of a file, which there is nothing to zero in.
    pub(crate) fn into_hole(self) -> Self {
        Self {
            place: Place::Hole,
            flags: self.flags & bindings::FUSE_IOMAP_F_WANT_IOMAP_END as u16,
            dev: bindings::FUSE_IOMAP_DEV_NULL,
            ..self
        }
    }

    /// The mapping as the server would send it, for the log.
    pub(crate) fn wire(&self) -> fuse_iomap_io {
        let (kind, addr) = match self.place {
            Place::Hole => (bindings::FUSE_IOMAP_TYPE_HOLE, NO_ADDR),
            Place::Delalloc => (bindings::FUSE_IOMAP_TYPE_DELALLOC, NO_ADDR),
            Place::Mapped(_, addr) => (bindings::FUSE_IOMAP_TYPE_MAPPED, addr),
            Place::Unwritten(_, addr) => (bindings::FUSE_IOMAP_TYPE_UNWRITTEN, addr),
            Place::Inline => (bindings::FUSE_IOMAP_TYPE_INLINE, NO_ADDR),
            Place::PureOverwrite => (bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE, NO_ADDR),
        };

        fuse_iomap_io {
            offset: self.offset,
            length: self.length,
            addr,
            // CAST: The types are below 256.
            type_: kind as u16,
            flags: self.flags,
            dev: self.dev,
        }
    }

    /// Whether the server has set a flag.
    pub(crate) fn has_flag(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }

    /// Start of the range, in bytes.
    pub(crate) fn start(&self) -> u64 {
        self.offset
    }

    /// The end of the range, in bytes.
    pub(crate) fn end(&self) -> u64 {
        // By the invariant this does not saturate.
        self.offset.saturating_add(self.length)
    }

    /// Start of the range in the file, or `None` if no file is that long.
    pub(crate) fn offset(&self) -> Option<Offset> {
        Offset::try_from(self.offset).ok()
    }

    /// Length of the range, in bytes.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// What it says of the range.
    pub(crate) fn place(&self) -> Place<D> {
        self.place
    }

    /// The properties that fs/iomap should see.
    pub(crate) fn map_flags(&self) -> MapFlags {
        // As nearly always.
        if self.flags == 0 {
            return MapFlags::default();
        }
        FLAGS
            .iter()
            .filter(|(bit, _)| u32::from(self.flags) & bit != 0)
            .filter_map(|&(_, flag)| flag)
            .fold(MapFlags::default(), |flags, flag| flags | flag)
    }

    /// What END has to tell the server of a mapping, beyond what fs/iomap remembers.
    pub(crate) fn token(&self) -> Token {
        Token {
            dev: self.dev,
            flags: self.flags,
        }
    }
}

/// The part of a mapping that only the server understands, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// The server's id for the device.
    pub(crate) dev: u32,
    /// The server's flags.
    pub(crate) flags: u16,
}

// The word has room for both: Kconfig asks for 64 bits.
const _: () = assert!(usize::BITS >= u32::BITS + u16::BITS);

impl Token {
    /// Packs it.
    pub(crate) fn into_word(self) -> usize {
        (self.dev as usize) << u16::BITS | usize::from(self.flags)
    }

    /// Takes it out of a word again.
    pub(crate) fn from_word(word: usize) -> Self {
        Self {
            // CAST: Both are what `into_word` put there.
            dev: (word >> u16::BITS) as u32,
            flags: word as u16,
        }
    }

    /// Whether the server wants to hear when the mapping has been used.
    pub(crate) fn wants_end(self) -> bool {
        u32::from(self.flags) & bindings::FUSE_IOMAP_F_WANT_IOMAP_END != 0
    }
}
