// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server implements.

use crate::Result;
use crate::config::ConfigReply;
use crate::connection::Connection;
use crate::dir::{DirBuffer, DirPlusBuffer};
use crate::mapping::BeginReply;
use crate::reply::{AttrReply, Entry, IoctlReply, Opened};
use crate::request::Request;
use crate::wire::{self, init, *};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

/// What INIT settles. [`Filesystem::init`] adjusts it.
#[derive(Clone, Debug)]
pub struct InitConfig {
    offered: u64,
    want: u64,
    /// The kernel's minor protocol version.
    pub kernel_minor: u32,
    /// Largest read-ahead in bytes; starts as what the kernel proposes.
    pub max_readahead: u32,
    /// Largest WRITE in bytes.
    pub max_write: u32,
    /// Most requests that the kernel keeps under way on its own account; 0 for its default.
    pub max_background: u16,
    /// From how many of those on the mount counts as congested; 0 for the kernel's default.
    pub congestion_threshold: u16,
    /// Granularity of time stamps in ns.
    pub time_gran: u32,
    /// How deep filesystems may be stacked with passthrough; at least 1 to use it.
    pub max_stack_depth: u32,
    /// Seconds after which the kernel gives a request up; 0 for never.
    pub request_timeout: u16,
}

/// Taken without asking because no server has a reason not to: all are promises that hold for
/// every server on this library.
const DEFAULT_WANT: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO;

impl InitConfig {
    pub(crate) fn new(request: &InitIn, max_write: u32) -> Self {
        let mut offered = u64::from(request.flags);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(request.flags2) << 32;
        }
        Self {
            offered,
            want: DEFAULT_WANT & offered,
            kernel_minor: request.minor,
            max_readahead: request.max_readahead,
            max_write,
            max_background: 0,
            congestion_threshold: 0,
            time_gran: 1,
            max_stack_depth: 0,
            request_timeout: 0,
        }
    }

    /// What the kernel offers, see [`wire::init`].
    pub const fn offered(&self) -> u64 {
        self.offered
    }

    /// What will be answered.
    pub const fn wanted(&self) -> u64 {
        self.want
    }

    /// Asks for these [`wire::init`] flags, as far as they are offered; returns whether all are.
    pub const fn request(&mut self, flags: u64) -> bool {
        self.want |= flags & self.offered;
        self.offered & flags == flags
    }

    /// Asks for iomap; returns whether the kernel offers it to this mount. It does if its module
    /// parameter `enable_iomap` is on and the mounter has `CAP_SYS_RAWIO`.
    pub const fn request_iomap(&mut self) -> bool {
        self.request(init::IOMAP)
    }

    /// Gives up flags that would be asked for by default.
    pub const fn refuse(&mut self, flags: u64) {
        self.want &= !flags;
    }

    /// Answers with flags whether offered or not. Only a test has a reason to.
    pub const fn force(&mut self, flags: u64) {
        self.want |= flags;
    }

    pub(crate) fn to_wire(&self) -> InitOut {
        let pages = self.max_write.div_ceil(4096).clamp(1, u16::MAX.into());
        InitOut {
            major: wire::KERNEL_VERSION,
            minor: wire::KERNEL_MINOR_VERSION.min(self.kernel_minor),
            max_readahead: self.max_readahead,
            flags: self.want as u32,
            max_background: self.max_background,
            congestion_threshold: self.congestion_threshold,
            max_write: self.max_write,
            time_gran: self.time_gran,
            max_pages: pages as u16,
            map_alignment: 0,
            flags2: (self.want >> 32) as u32,
            max_stack_depth: self.max_stack_depth,
            request_timeout: self.request_timeout,
            unused: [0; 11],
        }
    }
}

/// A filesystem, called from several threads at once.
///
/// Every method that is left out answers `ENOSYS`, except where noted. Arguments beyond the
/// obvious come as the structures of [`wire`]. `nodeid` and `parent` are node ids that the server
/// gave out in an [`Entry`] ([`wire::ROOT_ID`] for the root).
///
/// # Writing to iomap files
///
/// The kernel owns the data and the size of an iomap file, the server its blocks and the size on
/// disk. A write goes like this:
///
/// 1. [`Filesystem::iomap_begin`] with [`WRITE`](wire::iomap_op::WRITE): reserve or allocate. New
///    blocks are best given out unwritten, since nobody may see what they held before.
/// 2. The data stays in the page cache until writeback asks again, with
///    [`WRITEBACK`](wire::iomap_op::WRITEBACK): now there must be blocks.
/// 3. [`Filesystem::iomap_ioend`] when the data is on the device: convert, remap, and move the
///    size on disk. Only then may a crash show the new data.
///
/// The size on disk changes by [`Filesystem::iomap_ioend`] with
/// [`APPEND`](wire::iomap_ioend::APPEND), [`Filesystem::setattr`], [`Filesystem::fallocate`] and
/// [`Filesystem::copy_file_range`], and by nothing else.
#[allow(unused_variables)]
pub trait Filesystem: Send + Sync + 'static {
    /// Settles what is used on this connection. The default takes what the library asks for.
    fn init(&self, config: &mut InitConfig) -> Result<()> {
        Ok(())
    }

    /// INIT has been answered and nothing else yet, CONFIG neither (unless with
    /// [`SessionOptions::sync_init`](crate::SessionOptions::sync_init)): the time to register devices.
    /// An error ends the session. It must not touch the mount itself.
    fn ready(&self, connection: &Arc<Connection>) -> io::Result<()> {
        Ok(())
    }

    /// The mount is going away. With iomap, umount(2) waits for this: finish what is to be done on the
    /// devices and close them, so that they are free when it returns.
    fn destroy(&self) {}

    /// Looks a name up. The kernel then holds one more lookup on the node.
    fn lookup(&self, req: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// The kernel gives up `nlookup` lookups of a node.
    fn forget(&self, nodeid: u64, nlookup: u64) {}

    /// Attributes of a node.
    fn getattr(&self, req: &Request, nodeid: u64, args: &GetattrIn) -> Result<AttrReply> {
        Err(Errno::NOSYS)
    }

    /// Changes those attributes that `args.valid` names ([`wire::fattr`]).
    ///
    /// For the size of an iomap file only metadata is left to do: the kernel has zeroed and written
    /// back what must be, so free the whole blocks behind the new size and set it.
    fn setattr(&self, req: &Request, nodeid: u64, args: &SetattrIn) -> Result<AttrReply> {
        Err(Errno::NOSYS)
    }

    /// Extended attributes as of statx(2).
    fn statx(&self, req: &Request, nodeid: u64, args: &StatxIn) -> Result<StatxOut> {
        Err(Errno::NOSYS)
    }

    /// Target of a symbolic link.
    fn readlink(&self, req: &Request, nodeid: u64) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Makes a symbolic link.
    fn symlink(&self, req: &Request, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a file, device node, FIFO or socket.
    fn mknod(&self, req: &Request, parent: u64, name: &OsStr, args: &MknodIn) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Makes a directory.
    fn mkdir(&self, req: &Request, parent: u64, name: &OsStr, args: &MkdirIn) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Removes a name that is not a directory.
    fn unlink(&self, req: &Request, parent: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Removes a directory.
    fn rmdir(&self, req: &Request, parent: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Renames; `flags` as of renameat2(2).
    fn rename2(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        flags: u32,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Gives a node another name.
    fn link(&self, req: &Request, nodeid: u64, newparent: u64, newname: &OsStr) -> Result<Entry> {
        Err(Errno::NOSYS)
    }

    /// Opens a file. `ENOSYS`, the default, tells the kernel not to ask again if it may
    /// ([`init::NO_OPEN_SUPPORT`]).
    fn open(&self, req: &Request, nodeid: u64, args: &OpenIn) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    /// Reads into `buf`, which has the size that was asked for; returns how much of it is filled.
    /// Not called for iomap files, except for inline data, and then without a file handle.
    fn read(&self, req: &Request, nodeid: u64, args: &ReadIn, buf: &mut [u8]) -> Result<usize> {
        Err(Errno::NOSYS)
    }

    /// Writes `data`; returns how much of it was written. As for [`Filesystem::read`].
    fn write(&self, req: &Request, nodeid: u64, args: &WriteIn, data: &[u8]) -> Result<u32> {
        Err(Errno::NOSYS)
    }

    /// Figures of the whole filesystem.
    fn statfs(&self, req: &Request, nodeid: u64) -> Result<Kstatfs> {
        Err(Errno::NOSYS)
    }

    /// The last reference to an open file is gone. Succeeds by default.
    fn release(&self, req: &Request, nodeid: u64, args: &ReleaseIn) -> Result<()> {
        Ok(())
    }

    /// A descriptor is closed.
    fn flush(&self, req: &Request, nodeid: u64, args: &FlushIn) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Makes a file durable.
    ///
    /// The data of an iomap file has been written, but lies in the volatile cache of its device:
    /// commit the metadata, then flush the devices. `ENOSYS`, the default, makes the kernel flush
    /// them.
    fn fsync(&self, req: &Request, nodeid: u64, args: &FsyncIn) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Sets an extended attribute; `flags` as of setxattr(2).
    fn setxattr(
        &self,
        req: &Request,
        nodeid: u64,
        name: &OsStr,
        value: &[u8],
        args: &SetxattrIn,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Value of an extended attribute; `ENODATA` if there is none. The library takes care of the
    /// caller's buffer size.
    fn getxattr(&self, req: &Request, nodeid: u64, name: &OsStr) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Names of extended attributes, each followed by a NUL.
    fn listxattr(&self, req: &Request, nodeid: u64) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }

    /// Removes an extended attribute.
    fn removexattr(&self, req: &Request, nodeid: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Opens a directory. `ENOSYS`, the default, as for [`Filesystem::open`].
    fn opendir(&self, req: &Request, nodeid: u64, args: &OpenIn) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    /// Lists a directory from `args.offset` on: 0, or what an earlier entry gave as `next`.
    fn readdir(
        &self,
        req: &Request,
        nodeid: u64,
        args: &ReadIn,
        dir: &mut DirBuffer<'_>,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Lists a directory with attributes. A server without it should refuse
    /// [`init::DO_READDIRPLUS`] in [`Filesystem::init`].
    fn readdirplus(
        &self,
        req: &Request,
        nodeid: u64,
        args: &ReadIn,
        dir: &mut DirPlusBuffer<'_>,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// The last reference to an open directory is gone. Succeeds by default.
    fn releasedir(&self, req: &Request, nodeid: u64, args: &ReleaseIn) -> Result<()> {
        Ok(())
    }

    /// Makes a directory durable.
    fn fsyncdir(&self, req: &Request, nodeid: u64, args: &FsyncIn) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Checks permissions; not asked with `default_permissions`.
    fn access(&self, req: &Request, nodeid: u64, mask: u32) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Makes and opens a file.
    fn create(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        args: &CreateIn,
    ) -> Result<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Makes and opens a file without a name.
    fn tmpfile(&self, req: &Request, parent: u64, args: &CreateIn) -> Result<(Entry, Opened)> {
        Err(Errno::NOSYS)
    }

    /// Device block of a file block; for `fuseblk` mounts and ordinary inodes.
    fn bmap(&self, req: &Request, nodeid: u64, args: &BmapIn) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Allocates, punches, zeroes, collapses or inserts a range; `args.mode` as of fallocate(2).
    ///
    /// For iomap files the server moves blocks only and never writes zeroes. Punching frees the
    /// whole blocks inside the range, zeroing makes them unwritten; the kernel zeroes the rest
    /// itself. `EOPNOTSUPP` for single modes, `ENOSYS`, the default, for all.
    fn fallocate(&self, req: &Request, nodeid: u64, args: &FallocateIn) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Finds data or a hole; not asked for iomap files.
    fn lseek(&self, req: &Request, nodeid: u64, args: &LseekIn) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Copies within the filesystem; returns how much was copied.
    ///
    /// The kernel has written back the source and dropped the destination from its page cache. With
    /// `ENOSYS`, the default, or `EOPNOTSUPP` it copies by itself.
    fn copy_file_range(&self, req: &Request, nodeid: u64, args: &CopyFileRangeIn) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Makes the whole filesystem durable, as [`Filesystem::fsync`] does for one file.
    fn syncfs(&self, req: &Request, nodeid: u64) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// An ioctl whose arguments the kernel understands.
    fn ioctl(&self, req: &Request, nodeid: u64, args: &IoctlIn, data: &[u8]) -> Result<IoctlReply> {
        Err(Errno::NOSYS)
    }

    /// The caller of request `unique` got a signal. The request still wants its reply.
    fn interrupt(&self, unique: u64) {}

    /// Where `args.pos` is, for up to `args.count` bytes.
    ///
    /// The answer must contain `pos`; a `read` mapping that starts later says that there is a hole
    /// up to there. It may be longer or shorter than what was asked for. `args.opflags`
    /// ([`wire::iomap_op`]) says what for:
    ///
    /// - without `WRITE` and `ZERO`, only `read` counts and [`BeginReply::read`] is the answer;
    /// - `WRITE`: `write` must contain `pos` and is where to write:
    ///   [`Mapping::pure_overwrite`](crate::Mapping::pure_overwrite) in place, else blocks
    ///   (unwritten, or mapped with `NEW`), [`Mapping::delalloc`](crate::Mapping::delalloc), or
    ///   for copy-on-write other blocks with `SHARED`;
    /// - `ZERO`: part of a block is to be zeroed; holes and unwritten blocks may be answered as they
    ///   are;
    /// - `WRITE | WRITEBACK`: dirty pages are to be written, so `write` must have an address by now
    ///   (a hole makes the kernel drop them);
    /// - `WRITE | DIRECT`: data goes to the device next, so this must have an address, too. Inline
    ///   data has to get a block.
    ///
    /// What is marked with [`BeginReply::cached`] has to be true until the kernel itself changes it
    /// or is told otherwise. So an answer must be found and sent in the order of the changes that
    /// were answered.
    fn iomap_begin(&self, req: &Request, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        Err(Errno::NOSYS)
    }

    /// The kernel is done with a mapping: `args.written` of `args.count` bytes were written. What
    /// was reserved for the rest may be given up. `ENOSYS`, the default, stops these requests.
    fn iomap_end(&self, req: &Request, nodeid: u64, args: &IomapEndIn) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Data has reached the device (or failed to: `args.error`) and metadata must follow, as
    /// [`wire::iomap_ioend`] says: convert `UNWRITTEN` blocks, remap `SHARED` ones to
    /// `args.new_addr`, and with `APPEND` let the size on disk reach the end of what was written.
    /// Returns the file size that is now on disk, which must not shrink. An error becomes that of
    /// the write, and of fsync(2). `ENOSYS`, the default, stops these requests.
    fn iomap_ioend(&self, req: &Request, nodeid: u64, args: &IomapIoendIn) -> Result<u64> {
        Err(Errno::NOSYS)
    }

    /// Completions of several writes to a node, told together: what [`Filesystem::iomap_ioend`] does
    /// for each, and as many sizes in the same order. Several come only if
    /// [`BATCH_IOEND`](wire::iomap_config::BATCH_IOEND) was agreed on. An error is that of all of
    /// them. The default goes through them one by one.
    fn iomap_ioends(
        &self,
        req: &Request,
        nodeid: u64,
        records: &[IomapIoendIn],
    ) -> Result<Vec<u64>> {
        let one = |record| self.iomap_ioend(req, nodeid, record);
        records.iter().map(one).collect()
    }

    /// What the filesystem is like and which extensions it uses; asked once, before anything that
    /// is about a file. `ENOSYS`, the default, keeps the kernel's defaults and uses none.
    fn iomap_config(&self, req: &Request, args: &IomapConfigIn) -> Result<ConfigReply> {
        Err(Errno::NOSYS)
    }

    /// Freezes the filesystem; `unlinked` files without a name are still open.
    ///
    /// All data has been written, and told of. Put the metadata in place and flush the devices: a copy
    /// of them has to be sound without recovery. Until [`Filesystem::unfreeze`] nothing may be written;
    /// what [`Filesystem::forget`] would change has to wait. With `ENOSYS`, the default, the filesystem
    /// cannot be frozen.
    fn freeze(&self, req: &Request, unlinked: u64) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Thaws the filesystem. `ENOSYS`, the default, is as good as success; with another error it stays
    /// frozen.
    fn unfreeze(&self, req: &Request) -> Result<()> {
        Err(Errno::NOSYS)
    }

    /// Shuts the filesystem down: from now on nothing may be written, as if the machine had crashed. It
    /// is still unmounted. `ENOSYS`, the default, for one that cannot.
    fn shutdown(&self, req: &Request, flags: u64) -> Result<()> {
        Err(Errno::NOSYS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(flags: u64) -> InitConfig {
        let request = InitIn {
            major: 7,
            minor: 46,
            max_readahead: 131072,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            ..Default::default()
        };
        InitConfig::new(&request, 1 << 20)
    }

    #[test]
    fn only_what_is_offered_is_taken() {
        let mut c = offer(init::INIT_EXT | init::IOMAP | init::BIG_WRITES);
        assert!(c.request_iomap());
        assert!(!c.request(init::POSIX_ACL));
        let out = c.to_wire();
        assert_eq!(out.flags2, 1 << 30);
        assert_eq!(u64::from(out.flags), init::INIT_EXT | init::BIG_WRITES);
        assert_eq!(out.max_pages, 256);
        assert_eq!(out.minor, 46);
    }

    #[test]
    fn upper_flags_need_init_ext() {
        let mut c = offer(init::IOMAP);
        assert!(!c.request_iomap());
        assert_eq!(c.to_wire().flags2, 0);
    }
}
