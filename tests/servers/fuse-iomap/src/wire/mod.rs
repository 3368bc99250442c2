// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The bytes on `/dev/fuse`: every structure and number of FUSE 7.46 that a
//! complete read-write server needs, and all of FUSE-iomap in [`iomap`].
//!
//! Structures keep the names of `<linux/fuse.h>` without the `fuse_` prefix,
//! and so do their fields. They are plain data: `FromBytes` and `IntoBytes` are
//! derived, which also proves that they have no hidden padding, and every size
//! is asserted when the crate is compiled. All fields are host-endian.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub mod iomap;
pub mod opcode;
pub mod uring;

pub use iomap::*;

/// Declares a wire structure and asserts its size.
macro_rules! wire_struct {
    ($(#[$meta:meta])* $size:literal $name:ident { $($(#[$fmeta:meta])* $field:ident : $ty:ty,)* }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq,
            FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(C)]
        pub struct $name {
            $(
                $(#[$fmeta])*
                #[doc = concat!("`", stringify!($field), "` of the C structure.")]
                pub $field: $ty,
            )*
        }
        const _: () = assert!(size_of::<$name>() == $size, "size differs from the protocol");
    };
}
pub(crate) use wire_struct;

/// Major protocol version spoken here.
pub const KERNEL_VERSION: u32 = 7;
/// Minor protocol version spoken here.
pub const KERNEL_MINOR_VERSION: u32 = 46;
/// Node id of the root directory.
pub const ROOT_ID: u64 = 1;
/// Smallest buffer the kernel accepts for reading a request.
pub const MIN_READ_BUFFER: usize = 8192;
/// Bit of [`InHeader::unique`] that marks a request as sent again.
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// INIT flags, `FUSE_*` in C. Bits 32 and up travel in `flags2` and need
/// [`INIT_EXT`](init::INIT_EXT) in both directions; [`crate::Session`] takes care of that.
#[allow(missing_docs)] // The names are those of <linux/fuse.h>, which documents them.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const POSIX_LOCKS: u64 = 1 << 1;
    pub const FILE_OPS: u64 = 1 << 2;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const SPLICE_WRITE: u64 = 1 << 7;
    pub const SPLICE_MOVE: u64 = 1 << 8;
    pub const SPLICE_READ: u64 = 1 << 9;
    pub const FLOCK_LOCKS: u64 = 1 << 10;
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const WRITEBACK_CACHE: u64 = 1 << 16;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const HANDLE_KILLPRIV: u64 = 1 << 19;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const ABORT_ERROR: u64 = 1 << 21;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const MAP_ALIGNMENT: u64 = 1 << 26;
    pub const SUBMOUNTS: u64 = 1 << 27;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const SETXATTR_EXT: u64 = 1 << 29;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const SECURITY_CTX: u64 = 1 << 32;
    pub const HAS_INODE_DAX: u64 = 1 << 33;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const NO_EXPORT_SUPPORT: u64 = 1 << 38;
    pub const HAS_RESEND: u64 = 1 << 39;
    pub const ALLOW_IDMAP: u64 = 1 << 40;
    pub const OVER_IO_URING: u64 = 1 << 41;
    pub const REQUEST_TIMEOUT: u64 = 1 << 42;
    pub const HAS_IO_URING_BUFPOOL: u64 = 1 << 43;
    /// FUSE-iomap: the kernel can do file I/O through iomap.
    pub const IOMAP: u64 = 1 << 62;
}

/// `fuse_attr.flags`.
pub mod attr_flags {
    /// The object is the root of a submount.
    pub const SUBMOUNT: u32 = 1 << 0;
    /// Use DAX for this file.
    pub const DAX: u32 = 1 << 1;
    /// Only this mount changes the inode, so the kernel may trust what it has cached.
    pub const EXCLUSIVE: u32 = 1 << 2;
    /// File I/O of this inode goes through iomap. Needs [`EXCLUSIVE`].
    pub const IOMAP: u32 = 1 << 3;
    /// The file supports untorn writes.
    pub const ATOMIC: u32 = 1 << 4;
    /// `S_SYNC`.
    pub const SYNC: u32 = 1 << 5;
    /// `S_IMMUTABLE`.
    pub const IMMUTABLE: u32 = 1 << 6;
    /// `S_APPEND`.
    pub const APPEND: u32 = 1 << 7;
}

/// `fuse_setattr_in.valid`, `FATTR_*` in C.
#[allow(missing_docs)] // Each bit says which field of SetattrIn is meant.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const LOCKOWNER: u32 = 1 << 9;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// `fuse_fallocate_in.mode`, `FALLOC_FL_*` in C.
#[allow(missing_docs)] // The names are those of fallocate(2).
pub mod falloc {
    pub const KEEP_SIZE: u32 = 1 << 0;
    pub const PUNCH_HOLE: u32 = 1 << 1;
    pub const COLLAPSE_RANGE: u32 = 1 << 3;
    pub const ZERO_RANGE: u32 = 1 << 4;
    pub const INSERT_RANGE: u32 = 1 << 5;
    pub const UNSHARE_RANGE: u32 = 1 << 6;
}

/// Flags in the reply to OPEN and OPENDIR, `FOPEN_*` in C.
pub mod fopen {
    /// Bypass the page cache for this open file.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Do not invalidate cached data on open.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// The file cannot be seeked.
    pub const NONSEEKABLE: u32 = 1 << 2;
    /// Directory contents may be cached.
    pub const CACHE_DIR: u32 = 1 << 3;
    /// The file has no position at all.
    pub const STREAM: u32 = 1 << 4;
    /// Do not send FLUSH on close.
    pub const NOFLUSH: u32 = 1 << 5;
    /// Allow concurrent direct writes on one inode.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
    /// Read and write through the backing file named by `backing_id`.
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// Flags of single requests that do not deserve a module each.
pub mod request_flags {
    /// [`super::GetattrIn::getattr_flags`]: `fh` is valid.
    pub const GETATTR_FH: u32 = 1 << 0;
    /// [`super::FsyncIn::fsync_flags`]: data only, as fdatasync(2).
    pub const FSYNC_FDATASYNC: u32 = 1 << 0;
    /// [`super::WriteIn::write_flags`]: delayed write from the page cache; `fh` is guessed.
    pub const WRITE_CACHE: u32 = 1 << 0;
    /// [`super::ReleaseIn::release_flags`]: flush as well.
    pub const RELEASE_FLUSH: u32 = 1 << 0;
    /// [`super::IoctlIn::flags`]: the caller is a directory.
    pub const IOCTL_DIR: u32 = 1 << 4;
    /// [`super::NotifyInvalEntryOut::flags`]: expire instead of invalidate.
    pub const EXPIRE_ONLY: u32 = 1 << 0;
}

wire_struct! {
    /// `struct fuse_in_header`: what every request starts with.
    40 InHeader {
        len: u32,
        opcode: u32,
        unique: u64,
        nodeid: u64,
        uid: u32,
        gid: u32,
        pid: u32,
        total_extlen: u16,
        padding: u16,
    }
}
wire_struct! {
    /// `struct fuse_out_header`: what every reply and notification starts with.
    16 OutHeader {
        len: u32,
        error: i32,
        unique: u64,
    }
}
wire_struct! {
    /// `struct fuse_attr`: the attributes of an inode.
    88 Attr {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        /// See [`attr_flags`].
        flags: u32,
    }
}
wire_struct! {
    /// `struct fuse_sx_time`.
    16 SxTime { tv_sec: i64, tv_nsec: u32, reserved: i32, }
}
wire_struct! {
    /// `struct fuse_statx`, as in statx(2).
    256 Statx {
        mask: u32,
        blksize: u32,
        attributes: u64,
        nlink: u32,
        uid: u32,
        gid: u32,
        mode: u16,
        spare0: u16,
        ino: u64,
        size: u64,
        blocks: u64,
        attributes_mask: u64,
        atime: SxTime,
        btime: SxTime,
        ctime: SxTime,
        mtime: SxTime,
        rdev_major: u32,
        rdev_minor: u32,
        dev_major: u32,
        dev_minor: u32,
        mnt_id: u64,
        dio_mem_align: u32,
        dio_offset_align: u32,
        subvol: u64,
        atomic_write_unit_min: u32,
        atomic_write_unit_max: u32,
        atomic_write_segments_max: u32,
        dio_read_offset_align: u32,
        atomic_write_unit_max_opt: u32,
        spare2: u32,
        spare3: [u64; 8],
    }
}
wire_struct! {
    /// `struct fuse_kstatfs`, the reply to STATFS.
    80 Kstatfs {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
}
wire_struct! {
    /// `struct fuse_entry_out`: a looked-up name.
    128 EntryOut {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }
}
wire_struct! {
    /// `struct fuse_forget_in`.
    8 ForgetIn { nlookup: u64, }
}
wire_struct! {
    /// `struct fuse_forget_one`.
    16 ForgetOne { nodeid: u64, nlookup: u64, }
}
wire_struct! {
    /// `struct fuse_batch_forget_in`.
    8 BatchForgetIn { count: u32, dummy: u32, }
}
wire_struct! {
    /// `struct fuse_getattr_in`.
    16 GetattrIn { getattr_flags: u32, dummy: u32, fh: u64, }
}
wire_struct! {
    /// `struct fuse_attr_out`.
    104 AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
}
wire_struct! {
    /// `struct fuse_statx_in`.
    24 StatxIn { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
}
wire_struct! {
    /// `struct fuse_statx_out`.
    288 StatxOut { attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx, }
}
wire_struct! {
    /// `struct fuse_mknod_in`.
    16 MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_mkdir_in`.
    8 MkdirIn { mode: u32, umask: u32, }
}
wire_struct! {
    /// `struct fuse_rename_in`.
    8 RenameIn { newdir: u64, }
}
wire_struct! {
    /// `struct fuse_rename2_in`.
    16 Rename2In { newdir: u64, flags: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_link_in`.
    8 LinkIn { oldnodeid: u64, }
}
wire_struct! {
    /// `struct fuse_setattr_in`; [`fattr`] has the bits of `valid`.
    88 SetattrIn {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
}
wire_struct! {
    /// `struct fuse_open_in`.
    8 OpenIn { flags: u32, open_flags: u32, }
}
wire_struct! {
    /// `struct fuse_create_in`.
    16 CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
}
wire_struct! {
    /// `struct fuse_open_out`.
    16 OpenOut {
        fh: u64,
        /// See [`fopen`].
        open_flags: u32,
        backing_id: i32,
    }
}
wire_struct! {
    /// `struct fuse_release_in`.
    24 ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
}
wire_struct! {
    /// `struct fuse_flush_in`.
    24 FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
}
wire_struct! {
    /// `struct fuse_read_in`, for READ, READDIR and READDIRPLUS.
    40 ReadIn {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
}
wire_struct! {
    /// `struct fuse_write_in`.
    40 WriteIn {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: u32,
        padding: u32,
    }
}
wire_struct! {
    /// `struct fuse_write_out`.
    8 WriteOut { size: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_fsync_in`.
    16 FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_setxattr_in` without [`init::SETXATTR_EXT`].
    8 SetxattrInCompat { size: u32, flags: u32, }
}
wire_struct! {
    /// `struct fuse_setxattr_in` with [`init::SETXATTR_EXT`].
    16 SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_getxattr_in`, for GETXATTR and LISTXATTR.
    8 GetxattrIn { size: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_getxattr_out`.
    8 GetxattrOut { size: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_access_in`.
    8 AccessIn { mask: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_init_in`.
    64 InitIn {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        flags2: u32,
        unused: [u32; 11],
    }
}
wire_struct! {
    /// `struct fuse_init_out`.
    64 InitOut {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }
}
wire_struct! {
    /// `struct fuse_interrupt_in`.
    8 InterruptIn { unique: u64, }
}
wire_struct! {
    /// `struct fuse_bmap_in`.
    16 BmapIn { block: u64, blocksize: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_bmap_out`.
    8 BmapOut { block: u64, }
}
wire_struct! {
    /// `struct fuse_ioctl_in`.
    32 IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
}
wire_struct! {
    /// `struct fuse_ioctl_out`.
    16 IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
}
wire_struct! {
    /// `struct fuse_fallocate_in`.
    32 FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_lseek_in`.
    24 LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_lseek_out`.
    8 LseekOut { offset: u64, }
}
wire_struct! {
    /// `struct fuse_copy_file_range_in`.
    56 CopyFileRangeIn {
        fh_in: u64,
        off_in: u64,
        nodeid_out: u64,
        fh_out: u64,
        off_out: u64,
        len: u64,
        flags: u64,
    }
}
wire_struct! {
    /// `struct fuse_copy_file_range_out`, the reply to COPY_FILE_RANGE_64.
    8 CopyFileRangeOut { bytes_copied: u64, }
}
wire_struct! {
    /// `struct fuse_syncfs_in`.
    8 SyncfsIn { padding: u64, }
}
wire_struct! {
    /// `struct fuse_dirent` without its name.
    24 Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
}
wire_struct! {
    /// `struct fuse_backing_map`, the argument of ioctl BACKING_OPEN.
    16 BackingMap {
        fd: i32,
        /// Low byte: the type, see [`crate::BackingType`].
        flags: u32,
        padding: u64,
    }
}
wire_struct! {
    /// `struct fuse_notify_inval_inode_out`.
    24 NotifyInvalInodeOut { ino: u64, off: i64, len: i64, }
}
wire_struct! {
    /// `struct fuse_notify_inval_entry_out`.
    16 NotifyInvalEntryOut { parent: u64, namelen: u32, flags: u32, }
}
wire_struct! {
    /// `struct fuse_notify_delete_out`.
    24 NotifyDeleteOut { parent: u64, child: u64, namelen: u32, padding: u32, }
}
wire_struct! {
    /// `struct fuse_notify_store_out`.
    24 NotifyStoreOut { nodeid: u64, offset: u64, size: u32, padding: u32, }
}

/// Notification codes, `FUSE_NOTIFY_*` in C.
#[allow(missing_docs)] // The names are those of <linux/fuse.h>.
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const STORE: i32 = 4;
    pub const DELETE: i32 = 6;
    pub const IOMAP_DEV_INVAL: i32 = 99;
    pub const IOMAP_UPSERT_MAPPINGS: i32 = 100;
    pub const IOMAP_INVAL_MAPPINGS: i32 = 101;
}

/// Rounds up to the 8 bytes on which directory entries are aligned.
pub const fn rec_align(len: usize) -> usize {
    (len + 7) & !7
}
