// SPDX-License-Identifier: GPL-2.0

//! What is kept for a file that may become dirty, and completions of writes.
//!
//! Writeback that changes metadata (unwritten, shared, appending or failed) goes on a list of its
//! inode, which a work item takes, sorts and merges; the server is told of each piece, and its
//! answer is the result of the writeback, see [`crate::ioend`].  All other writeback is finished
//! where the device reports it.  Of a direct write the server is told by the task that ends it, or
//! like of writeback, if nobody waits for it.
#![deny(unsafe_code)]

use crate::{
    cache,
    counters::Counter,
    fuse::IomapInode,
    ioend::{Completion, Gathering, MAX_BATCH},
    mapping::Side,
};
use core::ops::Range;
use kernel::{
    alloc::kvec::PushError,
    fs::{
        iomap::{Ioend, IoendList, WrittenFlags},
        Exclusive,
        NofsScope,
        Offset, //
    },
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full, Relaxed, Release},
        Arc,
        ArcBorrow, //
    },
    time::{delay::fsleep, Delta},
    workqueue::{Work, WorkItem}, //
};

/// How long the work item waits for another completion, where they come one after the other.
const GATHER_STEP: Delta = Delta::from_micros(50);

/// How often it waits before it tells the server of what there is.
const GATHER_STEPS: usize = 8;

/// What an inode needs that may become dirty.
#[pin_data]
pub(crate) struct Writeback {
    #[pin]
    ioends: IoendList,
    #[pin]
    work: Work<Self>,
    /// Completions come faster than the server can be told of one after the other.
    is_loaded: Atomic<bool>,
    /// Direct writes that the server is to be told of.
    #[pin]
    direct: Gathering,
    /// Changes whenever mappings may have; the validity cookie of fs/iomap.
    sequence: Atomic<u64>,
    /// The size of the file on disk, in bytes, as the server knows it.
    ///
    /// Grows with IOENDs, of which there may be several at a time.  Everything else that changes it
    /// has `i_rwsem`.
    disk_size: Atomic<i64>,
    /// The negative error number that storing data in the inode has met, or 0; for who has
    /// `i_rwsem` exclusively.
    pub(crate) inline_error: Atomic<i32>,
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
                is_loaded: Atomic::new(false),
                direct <- Gathering::new(),
                sequence: Atomic::new(1u64),
                disk_size: Atomic::new(disk_size),
                inline_error: Atomic::new(0i32),
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

    /// Goes up before and after the layout of the file changes: odd in between.
    pub(crate) fn layout(&self) -> u64 {
        self.layout.load(Acquire)
    }

    /// Makes the file at least this large on disk.
    pub(crate) fn grow_disk_size(&self, size: Offset) {
        let mut old = self.disk_size();
        while old < size {
            match self.disk_size.cmpxchg(old, size, Full) {
                Ok(_) => break,
                Err(current) => old = current,
            }
        }
    }
}

impl WorkItem for Writeback {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.gather();
        this.finish_pending();
    }
}

impl Writeback {
    /// Waits for more completions, if there was more than one to tell of the last time.
    ///
    /// Where there is one CPU, this lets the task go on that submits the I/O: else each completion
    /// would have the server wake up before the next write is begun.  As long as there is only one
    /// write at a time, nothing waits here.
    ///
    /// May sleep.
    fn gather(&self) {
        if !self.is_loaded.load(Relaxed) {
            return;
        }

        let mut count = self.ioends.len();
        for _ in 0..GATHER_STEPS {
            if count >= MAX_BATCH {
                break;
            }
            fsleep(GATHER_STEP);

            let before = count;
            count = self.ioends.len();
            if count <= before {
                break;
            }
        }
    }

    /// Tells the server of all I/O that waits for that, and ends it.
    ///
    /// May sleep.  Whoever is going to wait for the I/O can call this, and so need not wait for the
    /// work item too.
    pub(crate) fn finish_pending(&self) {
        let mut batch = {
            // Reclaim may wait for this.
            let _nofs = NofsScope::new();
            KVec::with_capacity(MAX_BATCH, GFP_KERNEL).unwrap_or_default()
        };

        self.ioends.drain(|ioend| {
            if let Some(inode) = IomapInode::new(ioend.inode()) {
                inode.count_merged(ioend.merged());
            }
            if let Err(PushError(ioend)) = batch.push_within_capacity(ioend) {
                self.finish(&mut batch);
                if let Err(PushError(ioend)) = batch.push_within_capacity(ioend) {
                    self.finish_one(ioend);
                }
            }
        });
        self.finish(&mut batch);
    }

    /// Tells the server of a range that was written back, and ends that.
    fn finish_one(&self, ioend: Ioend) {
        let result = match IomapInode::new(ioend.inode()) {
            Some(inode) => self.tell(inode, &Completion::of_ioend(&ioend)),
            // The list is that of an inode in iomap mode.
            None => Err(EIO),
        };
        ioend.finish(result);
    }

    /// As [`Writeback::finish_one`], for all of `batch`, which is empty then.
    fn finish(&self, batch: &mut KVec<Ioend>) {
        let mut results = [Err(EIO); MAX_BATCH];

        if let Some(inode) = batch
            .first()
            .and_then(|ioend| IomapInode::new(ioend.inode()))
        {
            self.tell_all(
                inode,
                batch.len(),
                |index| batch.get(index).map(Completion::of_ioend),
                |index, result| {
                    if let Some(place) = results.get_mut(index) {
                        *place = result;
                    }
                },
            );
            if inode.extensions().batch_ioend() {
                let is_loaded = batch.len() > 1 || !self.ioends.is_empty();
                self.is_loaded.store(is_loaded, Relaxed);
            }
        }
        while let Some(ioend) = batch.pop() {
            ioend.finish(results.get(batch.len()).copied().unwrap_or(Err(EIO)));
        }
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

    let done = Completion::of_ioend(&ioend);
    let disk_size = writeback.disk_size();
    let deferred = done.matters(disk_size);
    inode.trace_writeback_done(ioend.offset(), done.size, done.flags(disk_size), deferred);
    if !deferred {
        inode.count(Counter::IoendInline);
        return Some(ioend);
    }
    inode.count(Counter::IoendQueued);

    let writeback: Arc<Writeback> = writeback.into();
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
    let done = Completion::of_direct(pos, size, status, met);
    if size == 0 || !done.matters(writeback.disk_size()) {
        return status;
    }

    if inode.extensions().batch_ioend() {
        writeback.direct.tell(&writeback, inode, &done)
    } else {
        writeback.tell(inode, &done)
    }
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
    pub(crate) fn writeback(self) -> Result<ArcBorrow<'a, Writeback>> {
        self.state()
            .writeback
            .get_or_make(|| Writeback::new(self.vfs().size()))
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

    /// As [`IomapInode::mappings_changed`], when the server has given the file blocks perhaps, to
    /// answer a question.  Returns the cookie of the answer, given that from before the question.
    ///
    /// Any context.
    pub(crate) fn may_have_changed(self, before: u64) -> u64 {
        let Some(writeback) = self.state().writeback.as_ref() else {
            return before;
        };

        if writeback.sequence.fetch_add(1, Full) == before {
            before.wrapping_add(1)
        } else {
            // Something else has changed too, and the answer may not have seen it.
            before
        }
    }

    /// Takes note that mappings that were handed out may no longer be true.
    ///
    /// Any context.
    pub(crate) fn mappings_changed(self) {
        if let Some(writeback) = self.state().writeback.as_ref() {
            writeback.mappings_changed();
        }
    }

    /// Drops what is cached of a range in bytes, and takes note that mappings of it that were
    /// handed out may no longer be true.
    ///
    /// May sleep.
    pub(crate) fn mappings_changed_in(self, range: Range<u64>) {
        self.forget_mappings(&cache::BOTH, range);
    }

    /// As [`IomapInode::mappings_changed_in`], for these sides.
    pub(crate) fn forget_mappings(self, sides: &[Side], range: Range<u64>) {
        let block_size = u64::from(self.vfs().block_size());
        let start = range.start - range.start % block_size;
        let end = range.end.checked_next_multiple_of(block_size);

        // In this order: who gets a mapping from the cache knows by then that it may be old.
        self.state()
            .cache
            .invalidate(sides, start..end.unwrap_or(u64::MAX));
        self.mappings_changed();
    }

    /// Takes note that the unwritten blocks of a range in bytes, which are at `addr` of the device
    /// `dev`, have data now, and that mappings of them that were handed out are no longer true.
    ///
    /// May sleep.
    pub(crate) fn mappings_written(self, range: Range<u64>, dev: u32, addr: u64) {
        let block_size = u64::from(self.vfs().block_size());
        let end = range.end.checked_next_multiple_of(block_size);

        match end {
            Some(end) if range.start.is_multiple_of(block_size) => {
                self.state().cache.written(range.start..end, dev, addr);
                self.mappings_changed();
            }
            _ => self.mappings_changed_in(range),
        }
    }

    /// Tells the server that dirty data has been given up, because it could not be mapped.
    ///
    /// May sleep.
    pub(crate) fn tell_discarded(self, pos: Offset, length: u64, error: Error) {
        if let Some(writeback) = self.state().writeback.as_ref() {
            // The error that counts is the one that is being told.
            let _ = writeback.tell(self, &Completion::of_discarded(pos, length, error));
        }
    }
}
