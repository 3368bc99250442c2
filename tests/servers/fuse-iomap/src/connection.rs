// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The server's end of a connection: what was negotiated, backing files, notifications.

use crate::counters::Counters;
use crate::ioctl;
use crate::mapping::Mapping;
use crate::wire::{self, *};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use zerocopy::{Immutable, IntoBytes};

/// A registered backing file or device, as named in mappings and in replies to OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackingId(u32);

impl BackingId {
    /// An id from its number; useful only for tests, since the kernel gives out ids.
    pub const fn from_raw(id: u32) -> Self {
        Self(id)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// What a backing file is registered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingType {
    /// FUSE passthrough: a file that takes the place of one of ours.
    Passthrough = 0,
    /// FUSE-iomap: a block device that mappings refer to.
    Iomap = 1,
}

/// What kernel and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// The kernel's minor protocol version.
    pub kernel_minor: u32,
    /// Everything the kernel offered, see [`wire::init`].
    pub offered: u64,
    /// The part of it that the server took.
    pub flags: u64,
    /// Largest WRITE.
    pub max_write: u32,
}

/// A connection with the kernel. Shared by the threads of a [`crate::Session`].
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
    negotiated: OnceLock<Negotiated>,
    /// What CONFIG settled.
    extensions: AtomicU64,
    /// CONFIG has come.
    configured: AtomicBool,
    counters: Counters,
}

impl Connection {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            negotiated: OnceLock::new(),
            extensions: AtomicU64::new(0),
            configured: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    pub(crate) fn set_negotiated(&self, negotiated: Negotiated) {
        // A second INIT on one connection does not happen; were it to, the first one counts.
        let _ = self.negotiated.set(negotiated);
    }

    /// What was agreed on, once INIT has been answered.
    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.negotiated.get()
    }

    /// Whether iomap was agreed on.
    pub fn has_iomap(&self) -> bool {
        self.has(wire::init::IOMAP)
    }

    /// Whether all these [`wire::init`] flags were agreed on.
    pub fn has(&self, flags: u64) -> bool {
        self.negotiated().is_some_and(|n| n.flags & flags == flags)
    }

    pub(crate) fn set_configured(&self) {
        self.configured.store(true, Ordering::Release);
    }

    /// Whether CONFIG is still to come: not if the server insists on an iomap that was not offered.
    pub(crate) fn expects_config(&self) -> bool {
        let is_on = self
            .negotiated()
            .is_some_and(|n| n.flags & n.offered & wire::init::IOMAP != 0);
        is_on && !self.configured.load(Ordering::Acquire)
    }

    pub(crate) fn set_extensions(&self, extensions: u64) {
        self.extensions.store(extensions, Ordering::Release);
    }

    /// The extensions that were agreed on; none before CONFIG. See
    /// [`wire::iomap_config::EXTENSIONS`].
    pub fn extensions(&self) -> u64 {
        self.extensions.load(Ordering::Acquire)
    }

    /// Whether all these extensions were agreed on.
    pub fn has_extensions(&self, extensions: u64) -> bool {
        self.extensions() & extensions == extensions
    }

    /// How often each opcode was received, and what became of it.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Registers an open file or device. Works from [`crate::Filesystem::ready`] on.
    pub fn backing_open(&self, file: impl AsFd, kind: BackingType) -> io::Result<BackingId> {
        self.backing_open_raw(BackingMap {
            fd: file.as_fd().as_raw_fd(),
            flags: kind as u32,
            padding: 0,
        })
    }

    /// Registers whatever `map` says, well-formed or not.
    pub fn backing_open_raw(&self, map: BackingMap) -> io::Result<BackingId> {
        ioctl::backing_open(self.as_fd(), map).map(BackingId)
    }

    /// Gives a registration up. `EBUSY` if it is in use, `ENOENT` if it does not exist.
    pub fn backing_close(&self, id: BackingId) -> io::Result<()> {
        ioctl::backing_close(self.as_fd(), id.0)
    }

    /// What the running kernel supports of iomap.
    pub fn iomap_support(&self) -> io::Result<IomapSupport> {
        ioctl::iomap_support(self.as_fd())
    }

    /// Keeps the calling thread out of filesystem reclaim, so that reclaim which waits for this
    /// server cannot wait for itself.
    pub fn set_nofs(&self, on: bool) -> io::Result<()> {
        ioctl::set_nofs(self.as_fd(), on)
    }

    /// Sets the block size of a registered device.
    pub fn set_blocksize(&self, id: BackingId, blocksize: u32) -> io::Result<()> {
        ioctl::set_blocksize(
            self.as_fd(),
            IomapBackingInfo {
                backing_id: id.0,
                blocksize,
            },
        )
    }

    /// Writes one complete message, header included, exactly as given.
    ///
    /// The kernel checks it: an error here means that the kernel did not take the message.
    pub fn send_raw(&self, message: &[u8]) -> io::Result<()> {
        let n = rustix::io::write(&self.fd, message)?;
        if n == message.len() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the kernel took only part of a message",
            ))
        }
    }

    /// Sends a notification: `code` is one of [`wire::notify`], `parts` follow the header.
    pub fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let body: usize = parts.iter().map(|p| p.len()).sum();
        let len = size_of::<OutHeader>() + body;
        let header = OutHeader {
            len: u32::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            error: code,
            unique: 0,
        };
        let mut message = Vec::with_capacity(len);
        message.extend_from_slice(header.as_bytes());
        for part in parts {
            message.extend_from_slice(part);
        }
        self.send_raw(&message)
    }

    fn notify_struct<T: IntoBytes + Immutable>(&self, code: i32, body: &T) -> io::Result<()> {
        self.notify(code, &[body.as_bytes()])
    }

    /// Drops cached attributes and, for `len` != 0, cached data from `off` on (`len` <= 0: to
    /// the end of the file; `off` < 0: attributes only).
    pub fn inval_inode(&self, nodeid: u64, off: i64, len: i64) -> io::Result<()> {
        let body = NotifyInvalInodeOut {
            ino: nodeid,
            off,
            len,
        };
        self.notify_struct(notify::INVAL_INODE, &body)
    }

    /// Drops a cached name.
    pub fn inval_entry(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        let body = NotifyInvalEntryOut {
            parent,
            namelen: name.len() as u32,
            flags: 0,
        };
        self.notify(
            notify::INVAL_ENTRY,
            &[body.as_bytes(), name.as_bytes(), b"\0"],
        )
    }

    /// Puts data into the page cache of an ordinary inode.
    pub fn store(&self, nodeid: u64, offset: u64, data: &[u8]) -> io::Result<()> {
        let body = NotifyStoreOut {
            nodeid,
            offset,
            size: u32::try_from(data.len())
                .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
            padding: 0,
        };
        self.notify(notify::STORE, &[body.as_bytes(), data])
    }

    /// Tells that a range of a device has changed behind the kernel's back.
    pub fn iomap_dev_inval(&self, dev: BackingId, range: wire::Range) -> io::Result<()> {
        let body = IomapDevInvalOut {
            dev: dev.0,
            reserved: 0,
            range,
        };
        self.notify_struct(notify::IOMAP_DEV_INVAL, &body)
    }

    /// Puts mappings into the kernel's cache of an inode. Use [`Mapping::no_cache`] for a side
    /// that is to stay as it is. `ENOENT` if the kernel has no such inode (any more), `EUCLEAN` if a
    /// mapping breaks a rule.
    pub fn iomap_upsert(
        &self,
        nodeid: u64,
        attr_ino: u64,
        read: Mapping,
        write: Mapping,
    ) -> io::Result<()> {
        let body = IomapUpsertMappingsOut {
            nodeid,
            attr_ino,
            read: read.to_wire(),
            write: write.to_wire(),
        };
        let result = self.notify_struct(notify::IOMAP_UPSERT_MAPPINGS, &body);
        self.counters.count_upsert(result.is_ok());
        result
    }

    /// Drops mappings from the kernel's cache of an inode. A length of 0 leaves that side alone,
    /// [`INVAL_TO_EOF`] reaches to the end of the file. Once this returns, no operation that begins
    /// uses them.
    pub fn iomap_inval(
        &self,
        nodeid: u64,
        attr_ino: u64,
        read: wire::Range,
        write: wire::Range,
    ) -> io::Result<()> {
        let body = IomapInvalMappingsOut {
            nodeid,
            attr_ino,
            read,
            write,
        };
        let result = self.notify_struct(notify::IOMAP_INVAL_MAPPINGS, &body);
        self.counters.count_inval(result.is_ok());
        result
    }

    /// Has the mount gone? The kernel refuses all notifications then, with EINVAL as for a wrong one.
    pub fn has_ended(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        let ready = poll(&mut fds, Some(&Timespec::default()));
        ready.is_ok() && fds.iter().any(|fd| fd.revents().contains(PollFlags::ERR))
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
