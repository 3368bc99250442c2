// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The FUSE-iomap part of the protocol.

use super::wire_struct;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Address of a mapping that has none.
pub const ADDR_NULL: u64 = u64::MAX;
/// Device of a mapping that has none.
pub const DEV_NULL: u32 = 0;
/// Length in an invalidation: to the end of the file.
pub const INVAL_TO_EOF: u64 = u64::MAX;

/// Mapping types, `FUSE_IOMAP_TYPE_*` in C.
pub mod iomap_type {
    /// No blocks: reads as zeros.
    pub const HOLE: u16 = 0;
    /// Reserved, not allocated yet.
    pub const DELALLOC: u16 = 1;
    /// Data at a device address.
    pub const MAPPED: u16 = 2;
    /// Allocated at a device address, reads as zeros.
    pub const UNWRITTEN: u16 = 3;
    /// Data inside the inode, to be had with FUSE_READ.
    pub const INLINE: u16 = 4;
    /// Upsert only: leave this side alone.
    pub const NOCACHE: u16 = 253;
    /// BEGIN reply only: the server has just filled the cache, look again.
    pub const RETRY_CACHE: u16 = 254;
    /// BEGIN reply, `write` side only: write where `read` points.
    pub const PURE_OVERWRITE: u16 = 255;
}

/// Mapping flags, `FUSE_IOMAP_F_*` in C.
pub mod iomap_flags {
    /// The blocks were allocated by this very request.
    pub const NEW: u16 = 1 << 0;
    /// The server has metadata to write for this range.
    pub const DIRTY: u16 = 1 << 1;
    /// The blocks are shared; a write must go elsewhere.
    pub const SHARED: u16 = 1 << 2;
    /// Several extents were merged into this mapping.
    pub const MERGED: u16 = 1 << 3;
    /// I/O must not be merged across the start of this mapping.
    pub const BOUNDARY: u16 = 1 << 4;
    /// Written data is not reachable before IOEND.
    pub const ANON_WRITE: u16 = 1 << 5;
    /// The range may be written by one untorn bio.
    pub const ATOMIC_BIO: u16 = 1 << 6;
    /// The server wants END for this mapping.
    pub const WANT_IOMAP_END: u16 = 1 << 7;
    /// Kernel to server: the file size changed.
    pub const SIZE_CHANGED: u16 = 1 << 8;
    /// Kernel to server: the mapping was out of date.
    pub const STALE: u16 = 1 << 9;
    /// Extension CACHE_REPLIES: keep this mapping in the kernel's cache.
    pub const CACHE: u16 = 1 << 10;
}

/// Operation flags of BEGIN and END, `FUSE_IOMAP_OP_*` in C.
#[allow(missing_docs)] // The names say what operation is meant.
pub mod iomap_op {
    pub const WRITE: u32 = 1 << 0;
    pub const ZERO: u32 = 1 << 1;
    pub const REPORT: u32 = 1 << 2;
    pub const FAULT: u32 = 1 << 3;
    pub const DIRECT: u32 = 1 << 4;
    pub const NOWAIT: u32 = 1 << 5;
    pub const OVERWRITE_ONLY: u32 = 1 << 6;
    pub const UNSHARE: u32 = 1 << 7;
    pub const DAX: u32 = 1 << 8;
    pub const ATOMIC: u32 = 1 << 9;
    pub const DONTCACHE: u32 = 1 << 10;
    pub const SWAPFILE: u32 = 1 << 30;
    pub const WRITEBACK: u32 = 1 << 31;
}

/// IOEND flags, `FUSE_IOMAP_IOEND_*` in C.
#[allow(missing_docs)] // The names are those of the protocol.
pub mod iomap_ioend {
    pub const SHARED: u32 = 1 << 0;
    pub const UNWRITTEN: u32 = 1 << 1;
    pub const BOUNDARY: u32 = 1 << 2;
    pub const DIRECT: u32 = 1 << 3;
    pub const APPEND: u32 = 1 << 4;
    pub const WRITEBACK: u32 = 1 << 5;
    pub const SWAPOFF: u32 = 1 << 6;
}

/// CONFIG flags, `FUSE_IOMAP_CONFIG_*` in C.
pub mod iomap_config {
    /// `s_id` is set.
    pub const SID: u64 = 1 << 0;
    /// `s_uuid` and `s_uuid_len` are set.
    pub const UUID: u64 = 1 << 1;
    /// `s_blocksize` is set.
    pub const BLOCKSIZE: u64 = 1 << 2;
    /// `s_max_links` is set.
    pub const MAX_LINKS: u64 = 1 << 3;
    /// `s_time_gran`, `s_time_min` and `s_time_max` are set.
    pub const TIME: u64 = 1 << 4;
    /// `s_maxbytes` is set.
    pub const MAXBYTES: u64 = 1 << 5;
    /// `cache_maxbytes` is set.
    pub const CACHE_MAXBYTES: u64 = 1 << 6;
    /// Extension: mappings flagged [`super::iomap_flags::CACHE`] are cached from the reply.
    pub const CACHE_REPLIES: u64 = 1 << 32;
    /// Extension: further mappings may follow a BEGIN reply.
    pub const BATCH_MAPPINGS: u64 = 1 << 33;
    /// Extension: one IOEND may carry several records.
    pub const BATCH_IOEND: u64 = 1 << 34;
    /// All extensions.
    pub const EXTENSIONS: u64 = CACHE_REPLIES | BATCH_MAPPINGS | BATCH_IOEND;
}

/// Most mappings that may follow a BEGIN reply: with it, they fill 4096 bytes.
pub const MAX_MORE_MAPPINGS: usize = (4096 - size_of::<IomapBeginOut>()) / size_of::<IomapIo>();

/// Flags of ioctl IOMAP_SUPPORT.
pub mod iomap_support {
    /// File I/O through iomap.
    pub const FILEIO: u64 = 1 << 0;
    /// Untorn writes.
    pub const ATOMIC: u64 = 1 << 1;
}

wire_struct! {
    /// `struct fuse_iomap_io`: one mapping. Build one with [`crate::Mapping`].
    32 IomapIo {
        offset: u64,
        length: u64,
        addr: u64,
        /// See [`iomap_type`].
        kind: u16,
        /// See [`iomap_flags`].
        flags: u16,
        dev: u32,
    }
}
wire_struct! {
    /// `struct fuse_iomap_begin_in`; [`iomap_op`] has the bits of `opflags`.
    32 IomapBeginIn { opflags: u32, reserved: u32, attr_ino: u64, pos: u64, count: u64, }
}
wire_struct! {
    /// `struct fuse_iomap_begin_out`.
    64 IomapBeginOut { read: IomapIo, write: IomapIo, }
}
wire_struct! {
    /// `struct fuse_iomap_end_in`.
    72 IomapEndIn {
        opflags: u32,
        reserved: u32,
        attr_ino: u64,
        pos: u64,
        count: u64,
        written: i64,
        map: IomapIo,
    }
}
wire_struct! {
    /// `struct fuse_iomap_ioend_in`; [`iomap_ioend`] has the bits of `flags`.
    48 IomapIoendIn {
        flags: u32,
        error: i32,
        attr_ino: u64,
        pos: u64,
        new_addr: u64,
        written: u64,
        dev: u32,
        pad: u32,
    }
}
wire_struct! {
    /// `struct fuse_iomap_ioend_out`.
    8 IomapIoendOut { newsize: u64, }
}
wire_struct! {
    /// `struct fuse_iomap_config_in`.
    64 IomapConfigIn {
        flags: u64,
        maxbytes: i64,
        cache_maxbytes: u32,
        zero: u32,
        padding: [u64; 5],
    }
}
wire_struct! {
    /// `struct fuse_iomap_config_out`; [`iomap_config`] says which fields count.
    104 IomapConfigOut {
        flags: u64,
        s_id: [u8; 32],
        s_uuid: [u8; 16],
        s_uuid_len: u8,
        s_pad: [u8; 3],
        s_blocksize: u32,
        s_max_links: u32,
        s_time_gran: u32,
        s_time_min: i64,
        s_time_max: i64,
        s_maxbytes: i64,
        cache_maxbytes: u32,
        tail_padding: u32,
    }
}
wire_struct! {
    /// `struct fuse_freezefs_in`.
    8 FreezefsIn { unlinked: u64, }
}
wire_struct! {
    /// `struct fuse_shutdownfs_in`.
    8 ShutdownfsIn { flags: u64, }
}
wire_struct! {
    /// `struct fuse_range`.
    16 Range { offset: u64, length: u64, }
}
wire_struct! {
    /// `struct fuse_iomap_dev_inval_out`.
    24 IomapDevInvalOut { dev: u32, reserved: u32, range: Range, }
}
wire_struct! {
    /// `struct fuse_iomap_inval_mappings_out`.
    48 IomapInvalMappingsOut { nodeid: u64, attr_ino: u64, read: Range, write: Range, }
}
wire_struct! {
    /// `struct fuse_iomap_upsert_mappings_out`.
    80 IomapUpsertMappingsOut { nodeid: u64, attr_ino: u64, read: IomapIo, write: IomapIo, }
}
wire_struct! {
    /// `struct fuse_iomap_support`, answered by ioctl IOMAP_SUPPORT.
    16 IomapSupport { flags: u64, padding: u64, }
}
wire_struct! {
    /// `struct fuse_iomap_backing_info`, the argument of ioctl IOMAP_SET_BLOCKSIZE.
    8 IomapBackingInfo { backing_id: u32, blocksize: u32, }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{align_of, offset_of};

    #[test]
    fn offsets_match_the_protocol_tables() {
        assert_eq!(offset_of!(IomapIo, offset), 0);
        assert_eq!(offset_of!(IomapIo, length), 8);
        assert_eq!(offset_of!(IomapIo, addr), 16);
        assert_eq!(offset_of!(IomapIo, kind), 24);
        assert_eq!(offset_of!(IomapIo, flags), 26);
        assert_eq!(offset_of!(IomapIo, dev), 28);
        assert_eq!(offset_of!(IomapEndIn, written), 32);
        assert_eq!(offset_of!(IomapEndIn, map), 40);
        assert_eq!(offset_of!(IomapIoendIn, dev), 40);
        assert_eq!(offset_of!(IomapConfigOut, s_uuid), 40);
        assert_eq!(offset_of!(IomapConfigOut, s_blocksize), 60);
        assert_eq!(offset_of!(IomapConfigOut, s_time_min), 72);
        assert_eq!(offset_of!(IomapConfigOut, cache_maxbytes), 96);
        assert_eq!(offset_of!(IomapUpsertMappingsOut, write), 48);
    }

    #[test]
    fn everything_is_eight_byte_aligned() {
        assert_eq!(align_of::<IomapIo>(), 8);
        assert_eq!(align_of::<IomapBeginIn>(), 8);
        assert_eq!(align_of::<IomapConfigOut>(), 8);
        assert_eq!(align_of::<IomapDevInvalOut>(), 8);
    }
}
