// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Mappings, built so that only well-formed ones come out.

use crate::connection::BackingId;
use crate::wire::{
    ADDR_NULL, DEV_NULL, IomapBeginOut, IomapIo, MAX_MORE_MAPPINGS, iomap_config, iomap_flags,
    iomap_type,
};

/// One mapping of a file range: where its data is, or why there is none.
///
/// Offsets, lengths and addresses are in bytes. Offset and length must be multiples of
/// the inode's block size, the address a multiple of the device's logical block size; the
/// kernel rejects anything else with `EUCLEAN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping(IomapIo);

impl Mapping {
    const fn new(kind: u16, offset: u64, length: u64, addr: u64, dev: u32) -> Self {
        Self(IomapIo {
            offset,
            length,
            addr,
            kind,
            flags: 0,
            dev,
        })
    }

    /// Data of `offset..offset + length` is on device `dev` at `addr`.
    pub const fn mapped(dev: BackingId, offset: u64, length: u64, addr: u64) -> Self {
        Self::new(iomap_type::MAPPED, offset, length, addr, dev.get())
    }

    /// Blocks are allocated at `addr` but were never written: they read as zeros.
    pub const fn unwritten(dev: BackingId, offset: u64, length: u64, addr: u64) -> Self {
        Self::new(iomap_type::UNWRITTEN, offset, length, addr, dev.get())
    }

    /// Nothing is allocated: reads as zeros.
    pub const fn hole(offset: u64, length: u64) -> Self {
        Self::new(iomap_type::HOLE, offset, length, ADDR_NULL, DEV_NULL)
    }

    /// Space is reserved, an address comes at writeback.
    pub const fn delalloc(offset: u64, length: u64) -> Self {
        Self::new(iomap_type::DELALLOC, offset, length, ADDR_NULL, DEV_NULL)
    }

    /// The first `length` bytes of the file are inside the inode; the kernel sends FUSE_READ and
    /// FUSE_WRITE for them. `length` is at most a page.
    pub const fn inline(length: u64) -> Self {
        Self::new(iomap_type::INLINE, 0, length, ADDR_NULL, DEV_NULL)
    }

    /// As the `write` side of a BEGIN reply: write where the `read` side points.
    pub const fn pure_overwrite(offset: u64, length: u64) -> Self {
        Self::new(
            iomap_type::PURE_OVERWRITE,
            offset,
            length,
            ADDR_NULL,
            DEV_NULL,
        )
    }

    /// As one side of an upsert: leave that side of the cache alone.
    pub const fn no_cache(offset: u64, length: u64) -> Self {
        Self::new(iomap_type::NOCACHE, offset, length, ADDR_NULL, DEV_NULL)
    }

    /// In a BEGIN reply: the cache has just been filled by an upsert, look there again.
    pub const fn retry_cache(offset: u64, length: u64) -> Self {
        Self::new(iomap_type::RETRY_CACHE, offset, length, ADDR_NULL, DEV_NULL)
    }

    /// The same mapping with these [`iomap_flags`] set as well.
    #[must_use]
    pub const fn with_flags(mut self, flags: u16) -> Self {
        self.0.flags |= flags;
        self
    }

    /// The same mapping without these [`iomap_flags`].
    #[must_use]
    pub const fn without_flags(mut self, flags: u16) -> Self {
        self.0.flags &= !flags;
        self
    }

    /// The same mapping, marked for the kernel's mapping cache. Only meaningful if
    /// [`CACHE_REPLIES`](crate::wire::iomap_config::CACHE_REPLIES) was negotiated.
    #[must_use]
    pub const fn cached(self) -> Self {
        self.with_flags(iomap_flags::CACHE)
    }

    /// The same mapping for a kernel that has agreed on these extensions.
    #[must_use]
    const fn for_extensions(self, extensions: u64) -> Self {
        if extensions & iomap_config::CACHE_REPLIES == 0 {
            return self.without_flags(iomap_flags::CACHE);
        }
        self
    }

    /// File offset of the first byte.
    pub const fn offset(&self) -> u64 {
        self.0.offset
    }

    /// Length in bytes.
    pub const fn length(&self) -> u64 {
        self.0.length
    }

    /// First offset after the mapping, saturating.
    pub const fn end(&self) -> u64 {
        self.0.offset.saturating_add(self.0.length)
    }

    /// The bytes that go to the kernel.
    pub const fn to_wire(self) -> IomapIo {
        self.0
    }
}

impl From<Mapping> for IomapIo {
    fn from(mapping: Mapping) -> Self {
        mapping.0
    }
}

/// The answer to BEGIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeginReply {
    /// Where the data is now.
    pub read: Mapping,
    /// Where to write.
    pub write: Mapping,
    /// Mappings that follow `read`, contiguous and ascending, which the kernel caches. They are
    /// sent only if [`BATCH_MAPPINGS`](crate::wire::iomap_config::BATCH_MAPPINGS) was negotiated,
    /// and as far as there is room for them ([`MAX_MORE_MAPPINGS`]; none for WRITEBACK).
    pub more: Vec<Mapping>,
}

impl BeginReply {
    /// For reads, reports and writes in place: data is, and stays, where `read` says.
    pub const fn read(read: Mapping) -> Self {
        let write = Mapping::pure_overwrite(read.offset(), read.length());
        Self::read_write(read, write)
    }

    /// For writes that go elsewhere (copy-on-write, new allocations).
    pub const fn read_write(read: Mapping, write: Mapping) -> Self {
        Self {
            read,
            write,
            more: Vec::new(),
        }
    }

    /// The same reply with both sides marked for the kernel's mapping cache.
    #[must_use]
    pub fn cached(mut self) -> Self {
        self.read = self.read.cached();
        self.write = self.write.cached();
        self
    }

    /// What of the reply a kernel understands that has agreed on these extensions. Mappings for the
    /// cache are only hints, so nothing is lost but time.
    pub(crate) fn limit(&mut self, extensions: u64) {
        self.read = self.read.for_extensions(extensions);
        self.write = self.write.for_extensions(extensions);
        let room = match extensions & iomap_config::BATCH_MAPPINGS {
            0 => 0,
            _ => MAX_MORE_MAPPINGS,
        };
        self.more.truncate(room);
        for mapping in &mut self.more {
            *mapping = mapping.for_extensions(extensions);
        }
    }

    /// The fixed part of the reply, as it goes to the kernel.
    pub fn to_wire(&self) -> IomapBeginOut {
        IomapBeginOut {
            read: self.read.to_wire(),
            write: self.write.to_wire(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn mapped_is_laid_out_as_in_the_protocol() {
        let m = Mapping::mapped(BackingId::from_raw(7), 0x1000, 0x2000, 0x30_0000)
            .with_flags(iomap_flags::SHARED);
        let mut want = Vec::new();
        want.extend_from_slice(&0x1000u64.to_ne_bytes());
        want.extend_from_slice(&0x2000u64.to_ne_bytes());
        want.extend_from_slice(&0x30_0000u64.to_ne_bytes());
        want.extend_from_slice(&2u16.to_ne_bytes());
        want.extend_from_slice(&4u16.to_ne_bytes());
        want.extend_from_slice(&7u32.to_ne_bytes());
        assert_eq!(m.to_wire().as_bytes(), want);
    }

    #[test]
    fn only_allocated_types_have_an_address() {
        for m in [
            Mapping::hole(0, 512),
            Mapping::delalloc(0, 512),
            Mapping::inline(100),
            Mapping::pure_overwrite(0, 512),
            Mapping::no_cache(0, 512),
            Mapping::retry_cache(0, 512),
        ] {
            assert_eq!(m.to_wire().addr, ADDR_NULL);
            assert_eq!(m.to_wire().dev, DEV_NULL);
        }
    }

    #[test]
    fn a_kernel_gets_only_what_it_has_agreed_on() {
        let reply = || {
            let mut reply = BeginReply::read(Mapping::hole(0, 4096)).cached();
            reply.more = vec![Mapping::hole(4096, 4096).cached(); 200];
            reply
        };
        let mut all = reply();
        all.limit(iomap_config::EXTENSIONS);
        assert_eq!(all.read.to_wire().flags, iomap_flags::CACHE);
        assert_eq!(all.write.to_wire().flags, iomap_flags::CACHE);
        assert_eq!(all.more.len(), 126);
        let mut none = reply();
        none.limit(0);
        assert_eq!(none, BeginReply::read(Mapping::hole(0, 4096)));
        let mut batch = reply();
        batch.limit(iomap_config::BATCH_MAPPINGS);
        assert_eq!(batch.more, [Mapping::hole(4096, 4096); 126]);
    }

    #[test]
    fn a_read_reply_overwrites_in_place() {
        let r = BeginReply::read(Mapping::hole(4096, 8192)).to_wire();
        assert_eq!(r.write.kind, iomap_type::PURE_OVERWRITE);
        assert_eq!((r.write.offset, r.write.length), (4096, 8192));
    }
}
