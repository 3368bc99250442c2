// SPDX-License-Identifier: GPL-2.0

//! Completions of writes, and what the server has to be told of them.
//!
//! I/O that changes metadata (unwritten, shared, appending or failed) goes on a list of its inode,
//! which a work item takes, sorts and merges; each piece is one IOEND to the server, whose answer
//! is the result of the writeback.  All other I/O is finished where the device reports it.  Direct
//! writes are told in the same way, by the task that ends them.
#![deny(unsafe_code)]

use crate::{
    fuse::IomapInode,
    mapping::{Token, NO_ADDR},
    once::get_or_make,
    rule::Rule, //
};
use kernel::{
    bindings::{self, fuse_iomap_ioend_in},
    fs::{
        iomap::{Ioend, IoendList, WrittenFlag, WrittenFlags},
        Exclusive,
        Offset, //
    },
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Release},
        Arc, //
    },
    workqueue::{Work, WorkItem}, //
};

/// What an inode needs that may become dirty.
#[pin_data]
pub(crate) struct Writeback {
    #[pin]
    ioends: IoendList,
    #[pin]
    work: Work<Self>,
    /// Changes whenever mappings may have; the validity cookie of fs/iomap.
    sequence: Atomic<u64>,
    /// The size of the file on disk, in bytes, as the server knows it.
    ///
    /// Grows with IOENDs, which the work item sends one after the other.  Everything else that
    /// changes it has `i_rwsem`.
    disk_size: Atomic<i64>,
    /// Goes up before and after the server is asked to change the layout of the file, so that it
    /// is odd in between: what an IOEND says of the size on disk is not held against a server that
    /// is changing that.
    layout: Atomic<u64>,
}

impl_has_work! {
    impl HasWork<Self> for Writeback { self.work }
}

impl Writeback {
    /// Makes what a file needs whose size on disk is `disk_size` bytes.
    fn new(disk_size: Offset) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                ioends <- IoendList::new(),
                work <- new_work!("fuse_iomap::Writeback::work"),
                sequence: Atomic::new(1u64),
                disk_size: Atomic::new(disk_size),
                layout: Atomic::new(0u64),
            }),
            GFP_KERNEL,
        )
    }

    /// The size of the file on disk, in bytes.
    pub(crate) fn disk_size(&self) -> Offset {
        self.disk_size.load(Acquire)
    }

    /// Takes note that mappings that were handed out may no longer be true.
    ///
    /// Any context.
    pub(crate) fn mappings_changed(&self) {
        self.sequence.fetch_add(1, Release);
    }

    /// Takes note that the server is about to change mappings and perhaps the size on disk.
    ///
    /// The caller has `i_rwsem` exclusively until [`Writeback::layout_has_changed`].
    pub(crate) fn layout_changes(&self, _lock: &Exclusive<'_>) {
        self.layout.fetch_add(1, Full);
        self.mappings_changed();
    }

    /// Ends what [`Writeback::layout_changes`] has begun, with the size on disk if it is another.
    pub(crate) fn layout_has_changed(&self, _lock: &Exclusive<'_>, disk_size: Option<Offset>) {
        if let Some(size) = disk_size {
            self.disk_size.store(size, Release);
        }
        self.mappings_changed();
        self.layout.fetch_add(1, Full);
    }

    /// Sends what IOEND has to tell of a range, and checks the answer.
    ///
    /// May sleep.  Returns the status of the I/O, or what is wrong with the answer.
    fn tell(&self, inode: IomapInode<'_>, done: &Completion) -> Result {
        let flags = self.flags(done);
        if done.status.is_ok() && flags & NEEDS_SERVER == 0 {
            // Another one has made the file long enough meanwhile.
            return Ok(());
        }

        let request = fuse_iomap_ioend_in {
            flags,
            error: done.status.map_or_else(Error::to_errno, |()| 0),
            attr_ino: inode.attr_ino(),
            pos: done.pos,
            new_addr: done.addr,
            written: done.size,
            dev: done.dev,
            pad: 0,
        };
        let layout = self.layout.load(Acquire);
        let old = self.disk_size();
        let answer = inode.send_ioend(&request);
        inode.trace_ioend(&request, &answer);

        if flags & REMAPS != 0 {
            // Before the folios can be reclaimed: what is read then has to be the new blocks.
            self.mappings_changed();
            inode.blocks_changed();
        }
        // What the device says comes first.
        done.status?;

        let end = request.pos.saturating_add(request.written);
        // Without an answer, nobody but the kernel knows the size.
        let newsize = answer?.unwrap_or_else(|| end.max(old.unsigned_abs()));
        // While a file is being truncated, it still has its old size on disk.
        let largest = end.max(inode.vfs().size().max(old).unsigned_abs());

        let layout_is_stable = layout % 2 == 0 && layout == self.layout.load(Acquire);
        if layout_is_stable && newsize > largest {
            inode.report_newsize(Rule::NewsizeBeyondData, &request, newsize);
            return Err(EUCLEAN);
        }
        if layout_is_stable && newsize < old.unsigned_abs() {
            inode.report_newsize(Rule::NewsizeShrinks, &request, newsize);
            return Err(EUCLEAN);
        }
        if flags & bindings::FUSE_IOMAP_IOEND_APPEND != 0 {
            // Nothing makes the file smaller while data beyond its end on disk is in flight, but
            // something else may have made it larger.
            let newsize = Offset::try_from(newsize.min(largest)).map_err(|_| EUCLEAN)?;
            self.grow_disk_size(newsize);
        }
        Ok(())
    }

    /// Makes the file at least this large on disk.
    fn grow_disk_size(&self, size: Offset) {
        let mut old = self.disk_size();
        while old < size {
            match self.disk_size.cmpxchg(old, size, Full) {
                Ok(_) => break,
                Err(current) => old = current,
            }
        }
    }

    /// The IOEND flags of a completion.
    ///
    /// Any context.
    fn flags(&self, done: &Completion) -> u32 {
        let appends = done.size != 0 && done.end() > self.disk_size().unsigned_abs();

        if appends {
            done.flags | bindings::FUSE_IOMAP_IOEND_APPEND
        } else {
            done.flags
        }
    }
}

/// A range whose I/O is complete.
struct Completion {
    /// Start, in bytes.
    pos: u64,
    /// Length, in bytes.
    size: u64,
    /// IOEND flags, but for `FUSE_IOMAP_IOEND_APPEND`.
    flags: u32,
    /// What the device says.
    status: Result,
    /// Where on the device the data is, in bytes, or [`NO_ADDR`].
    addr: u64,
    /// The server's id for the device.
    dev: u32,
}

impl Completion {
    /// The range of an ioend of writeback.
    fn of_writeback(ioend: &Ioend) -> Self {
        let flags = [
            (ioend.is_unwritten(), bindings::FUSE_IOMAP_IOEND_UNWRITTEN),
            (ioend.is_shared(), bindings::FUSE_IOMAP_IOEND_SHARED),
            (ioend.is_boundary(), bindings::FUSE_IOMAP_IOEND_BOUNDARY),
        ];

        Self {
            pos: ioend.offset().unsigned_abs(),
            size: ioend.size(),
            flags: collect(bindings::FUSE_IOMAP_IOEND_WRITEBACK, flags),
            status: ioend.status(),
            addr: ioend.addr(),
            dev: Token::from_word(ioend.private()).dev,
        }
    }

    /// The range of a direct write, which may be on several extents.
    fn of_direct(pos: Offset, size: u64, status: Result, met: WrittenFlags) -> Self {
        let flags = [
            (
                met.contains(WrittenFlag::Unwritten),
                bindings::FUSE_IOMAP_IOEND_UNWRITTEN,
            ),
            (
                met.contains(WrittenFlag::Cow),
                bindings::FUSE_IOMAP_IOEND_SHARED,
            ),
        ];

        Self {
            pos: pos.unsigned_abs(),
            size,
            flags: collect(bindings::FUSE_IOMAP_IOEND_DIRECT, flags),
            status,
            addr: NO_ADDR,
            dev: bindings::FUSE_IOMAP_DEV_NULL,
        }
    }

    /// The end of the range, in bytes.
    fn end(&self) -> u64 {
        self.pos.saturating_add(self.size)
    }
}

/// Adds the flags that are meant to others.
fn collect<const N: usize>(others: u32, flags: [(bool, u32); N]) -> u32 {
    flags
        .into_iter()
        .filter(|&(is, _)| is)
        .fold(others, |all, (_, bit)| all | bit)
}

/// The IOEND flags that say that other blocks belong to the file now.
const REMAPS: u32 = bindings::FUSE_IOMAP_IOEND_UNWRITTEN | bindings::FUSE_IOMAP_IOEND_SHARED;

/// The IOEND flags that the server has to act upon.
const NEEDS_SERVER: u32 = REMAPS | bindings::FUSE_IOMAP_IOEND_APPEND;

impl WorkItem for Writeback {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.ioends.drain(|ioend| {
            let result = match IomapInode::new(ioend.inode()) {
                Some(inode) => this.tell(inode, &Completion::of_writeback(&ioend)),
                // The list is that of an inode in iomap mode.
                None => Err(EIO),
            };
            ioend.finish(result);
        });
    }
}

/// Takes over I/O that has left the device, unless there is nothing to do.
///
/// Any context.
pub(crate) fn complete(ioend: Ioend) -> Option<Ioend> {
    let Some(inode) = IomapInode::new(ioend.inode()) else {
        return Some(ioend);
    };
    let Some(writeback) = inode.state().writeback.as_ref() else {
        return Some(ioend);
    };

    let done = Completion::of_writeback(&ioend);
    let flags = writeback.flags(&done);
    let deferred = flags & NEEDS_SERVER != 0 || done.status.is_err();
    inode.trace_writeback_done(ioend.offset(), done.size, flags, deferred);
    if !deferred {
        return Some(ioend);
    }

    let writeback = writeback.clone();
    writeback.ioends.push(ioend, |inode| {
        if let Some(inode) = IomapInode::new(inode) {
            // If it is queued already, it will see this one.
            let _ = inode.ioend_queue().enqueue(writeback.clone());
        }
    });
    None
}

/// Ends a direct write of `size` bytes at `pos`, whose I/O had this result, and returns the result
/// of the write.
///
/// May sleep if there is something to tell the server; that is so for failed writes, for blocks
/// that the file gets by it, and for a write beyond the end of the file on disk.
pub(crate) fn complete_direct(
    inode: IomapInode<'_>,
    pos: Offset,
    size: u64,
    status: Result,
    met: WrittenFlags,
) -> Result {
    let Some(writeback) = inode.state().writeback.as_ref() else {
        return status;
    };
    // END has told of what never got to a device.
    if size == 0 {
        return status;
    }
    writeback.tell(inode, &Completion::of_direct(pos, size, status, met))
}

impl<'a> IomapInode<'a> {
    /// The size of the file on disk, in bytes, as the server knows it.
    ///
    /// Any context.
    pub(crate) fn disk_size(self) -> Offset {
        self.state()
            .writeback
            .as_ref()
            .map_or(0, |writeback| writeback.disk_size())
    }

    /// What the inode needs before it becomes dirty, made now if it is not there.
    ///
    /// May sleep.  The caller has opened the file for writing or holds `i_rwsem` exclusively; until
    /// now nothing has made it dirty, so its size is that on disk.
    pub(crate) fn writeback(self) -> Result<&'a Arc<Writeback>> {
        get_or_make(&self.state().writeback, || {
            Writeback::new(self.vfs().size())
        })
    }

    /// The validity cookie of mappings that are asked for now.
    ///
    /// Any context.
    pub(crate) fn cookie(self) -> u64 {
        self.state()
            .writeback
            .as_ref()
            .map_or(0, |writeback| writeback.sequence.load(Acquire))
    }

    /// Takes note that mappings that were handed out may no longer be true.
    ///
    /// Any context.
    pub(crate) fn mappings_changed(self) {
        if let Some(writeback) = self.state().writeback.as_ref() {
            writeback.mappings_changed();
        }
    }

    /// Tells the server that dirty data has been given up, because it could not be mapped.
    ///
    /// May sleep.
    pub(crate) fn tell_discarded(self, pos: Offset, length: u64, error: Error) {
        let request = fuse_iomap_ioend_in {
            flags: bindings::FUSE_IOMAP_IOEND_WRITEBACK,
            error: error.to_errno(),
            attr_ino: self.attr_ino(),
            pos: pos.unsigned_abs(),
            new_addr: NO_ADDR,
            written: length,
            dev: bindings::FUSE_IOMAP_DEV_NULL,
            pad: 0,
        };
        // The error that counts is the one that is being told.
        let answer = self.send_ioend(&request);
        self.trace_ioend(&request, &answer);
        self.mappings_changed();
    }
}
