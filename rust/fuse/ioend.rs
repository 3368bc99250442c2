// SPDX-License-Identifier: GPL-2.0

//! Telling the server that data is on the device (IOEND), and checking what it answers.
#![deny(unsafe_code)]

use crate::{
    fuse::IomapInode,
    mapping::{Token, NO_ADDR},
    rule::Rule,
    writeback::Writeback, //
};
use core::mem::size_of;
use kernel::{
    bindings::{self, fuse_iomap_ioend_in, fuse_iomap_ioend_out},
    fs::{
        iomap::{Ioend, WrittenFlag, WrittenFlags},
        NofsScope,
        Offset, //
    },
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{Arc, CondVar, Mutex, SetOnce}, //
};

/// The IOEND flags that say that other blocks belong to the file now.
const REMAPS: u32 = bindings::FUSE_IOMAP_IOEND_UNWRITTEN | bindings::FUSE_IOMAP_IOEND_SHARED;

/// The IOEND flags that the server has to act upon.
const NEEDS_SERVER: u32 = REMAPS | bindings::FUSE_IOMAP_IOEND_APPEND;

/// How many ranges one IOEND is about at most, with the extension BATCH_IOEND: a page of them.
pub(crate) const MAX_BATCH: usize = 4096 / size_of::<fuse_iomap_ioend_in>();

/// A range whose I/O is complete.
#[derive(Clone, Copy)]
pub(crate) struct Completion {
    /// Start, in bytes.
    pos: u64,
    /// Length, in bytes.
    pub(crate) size: u64,
    /// IOEND flags, but for `FUSE_IOMAP_IOEND_APPEND`.
    flags: u32,
    /// What the device says.
    status: Result,
    /// Where on the device the data is, in bytes, or [`NO_ADDR`].
    addr: u64,
    /// The server's id for the device.
    dev: u32,
    /// Device and address, also where the server is not told.
    place: Option<(u32, u64)>,
}

impl Completion {
    /// The range of an ioend.
    pub(crate) fn of_ioend(ioend: &Ioend) -> Self {
        let flags = [
            (ioend.is_unwritten(), bindings::FUSE_IOMAP_IOEND_UNWRITTEN),
            (ioend.is_shared(), bindings::FUSE_IOMAP_IOEND_SHARED),
            (ioend.is_boundary(), bindings::FUSE_IOMAP_IOEND_BOUNDARY),
        ];

        let place = (Token::from_word(ioend.private()).dev, ioend.addr());
        let (kind, (dev, addr)) = if ioend.is_direct() {
            // As of a direct write that is told of as a whole.
            (
                bindings::FUSE_IOMAP_IOEND_DIRECT,
                (bindings::FUSE_IOMAP_DEV_NULL, NO_ADDR),
            )
        } else {
            (bindings::FUSE_IOMAP_IOEND_WRITEBACK, place)
        };

        Self {
            pos: ioend.offset().unsigned_abs(),
            size: ioend.size(),
            flags: collect(kind, flags),
            status: ioend.status(),
            addr,
            dev,
            place: Some(place),
        }
    }

    /// Dirty data that is given up because it could not be mapped.
    pub(crate) fn of_discarded(pos: Offset, size: u64, error: Error) -> Self {
        Self {
            pos: pos.unsigned_abs(),
            size,
            flags: bindings::FUSE_IOMAP_IOEND_WRITEBACK,
            status: Err(error),
            addr: NO_ADDR,
            dev: bindings::FUSE_IOMAP_DEV_NULL,
            place: None,
        }
    }

    /// The range of a direct write, which may be on several extents.
    pub(crate) fn of_direct(pos: Offset, size: u64, status: Result, met: WrittenFlags) -> Self {
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
            place: None,
        }
    }

    /// The end of the range, in bytes.
    fn end(&self) -> u64 {
        self.pos.saturating_add(self.size)
    }

    /// The IOEND flags, for a file of this size on disk.
    pub(crate) fn flags(&self, disk_size: Offset) -> u32 {
        if self.size != 0 && self.end() > disk_size.unsigned_abs() {
            self.flags | bindings::FUSE_IOMAP_IOEND_APPEND
        } else {
            self.flags
        }
    }

    /// Whether the server has to hear of it.
    pub(crate) fn matters(&self, disk_size: Offset) -> bool {
        self.status.is_err() || self.flags(disk_size) & NEEDS_SERVER != 0
    }

    /// Whether other blocks may belong to the range than before.
    fn remaps(&self) -> bool {
        self.status.is_err() || self.flags & REMAPS != 0
    }

    /// Where the data is, if that was written where the cache may say that blocks are unwritten,
    /// and nothing else changes.
    fn converts(&self) -> Option<(u32, u64)> {
        let is_unwritten = self.flags & REMAPS == bindings::FUSE_IOMAP_IOEND_UNWRITTEN;

        self.place.filter(|_| self.status.is_ok() && is_unwritten)
    }

    /// What the server is told.
    fn request(&self, inode: IomapInode<'_>, disk_size: Offset) -> fuse_iomap_ioend_in {
        fuse_iomap_ioend_in {
            flags: self.flags(disk_size),
            error: self.status.map_or_else(Error::to_errno, |()| 0),
            attr_ino: inode.attr_ino(),
            pos: self.pos,
            new_addr: self.addr,
            written: self.size,
            dev: self.dev,
            pad: 0,
        }
    }
}

/// Adds the flags that are meant to others.
fn collect<const N: usize>(others: u32, flags: [(bool, u32); N]) -> u32 {
    flags
        .into_iter()
        .filter(|&(is, _)| is)
        .fold(others, |all, (_, bit)| all | bit)
}

/// Tells the server that a file is not swapped to any more.
///
/// May sleep, until the server answers or dies.  There is nobody to tell of an error.
pub(crate) fn tell_swapoff(inode: IomapInode<'_>) {
    let request = fuse_iomap_ioend_in {
        flags: bindings::FUSE_IOMAP_IOEND_SWAPOFF,
        attr_ino: inode.attr_ino(),
        new_addr: NO_ADDR,
        ..Default::default()
    };
    let mut reply = [fuse_iomap_ioend_out::default()];
    let answer = inode.send_ioends(core::slice::from_ref(&request), &mut reply);

    inode.trace_ioend(&request, &answer.map(|_| None));
}

/// What an answer is judged by: the state from before the request.
struct Before {
    layout: u64,
    disk_size: Offset,
}

impl Writeback {
    /// Tells the server of one range, and returns the result of its I/O.
    ///
    /// May sleep.
    pub(crate) fn tell(&self, inode: IomapInode<'_>, done: &Completion) -> Result {
        let before = self.before();
        if !done.matters(before.disk_size) {
            // Another one has made the file long enough meanwhile.
            return Ok(());
        }

        let request = done.request(inode, before.disk_size);
        let mut reply = [fuse_iomap_ioend_out::default()];
        forget(inode, done);
        let answer = inode.send_ioends(core::slice::from_ref(&request), &mut reply);

        let [reply] = reply;
        self.judge(
            inode,
            &before,
            done,
            &request,
            answer.map(|known| known.then_some(reply.newsize)),
        )
    }

    /// Tells the server of `count` ranges, at once if it can have that, and calls `finish` with the
    /// index of each and the result of its I/O.
    ///
    /// May sleep.
    pub(crate) fn tell_all(
        &self,
        inode: IomapInode<'_>,
        count: usize,
        range: impl Fn(usize) -> Option<Completion>,
        mut finish: impl FnMut(usize, Result),
    ) {
        let ranges = || (0..count).filter_map(|index| Some((index, range(index)?)));

        let mut rest = ranges().peekable();
        if count > 1 && inode.extensions().batch_ioend() {
            while rest.peek().is_some() {
                if self.tell_batch(inode, &mut rest, &mut finish).is_err() {
                    break;
                }
            }
        }
        // One by one, also where there is no memory for more.
        for (index, done) in rest {
            finish(index, self.tell(inode, &done));
        }
    }

    /// Tells the server of as many ranges as fit.
    ///
    /// Fails with `ENOMEM`, and then has taken none.
    fn tell_batch(
        &self,
        inode: IomapInode<'_>,
        ranges: &mut impl Iterator<Item = (usize, Completion)>,
        finish: &mut impl FnMut(usize, Result),
    ) -> Result {
        // What reclaim waits for must not wait for reclaim.
        let _nofs = NofsScope::new();
        let mut chosen = KVec::with_capacity(MAX_BATCH, GFP_KERNEL)?;
        let mut requests = KVec::with_capacity(MAX_BATCH, GFP_KERNEL)?;
        let mut replies = KVec::from_elem(fuse_iomap_ioend_out::default(), MAX_BATCH, GFP_KERNEL)?;

        let before = self.before();
        while requests.len() < MAX_BATCH {
            let Some((index, done)) = ranges.next() else {
                break;
            };
            if !done.matters(before.disk_size) {
                finish(index, Ok(()));
                continue;
            }
            // There is room, so neither fails.
            if requests
                .push_within_capacity(done.request(inode, before.disk_size))
                .is_err()
                || chosen.push_within_capacity((index, done)).is_err()
            {
                finish(index, self.tell(inode, &done));
            }
        }
        replies.truncate(requests.len());
        if requests.is_empty() {
            return Ok(());
        }

        for (_, done) in &chosen {
            forget(inode, done);
        }
        let answer = inode.send_ioends(&requests, &mut replies);
        for (((index, done), request), reply) in chosen.iter().zip(&requests).zip(&replies) {
            let answer = answer.map(|known| known.then_some(reply.newsize));
            finish(*index, self.judge(inode, &before, done, request, answer));
        }
        Ok(())
    }

    /// The state to judge an answer by.
    fn before(&self) -> Before {
        Before {
            layout: self.layout(),
            disk_size: self.disk_size(),
        }
    }

    /// Takes note of an answer, and returns the result of the I/O.
    ///
    /// That is before folios can be reclaimed: what is read then has to be the new blocks.
    fn judge(
        &self,
        inode: IomapInode<'_>,
        before: &Before,
        done: &Completion,
        request: &fuse_iomap_ioend_in,
        answer: Result<Option<u64>>,
    ) -> Result {
        inode.trace_ioend(request, &answer);
        let result = self.take_size(inode, before, done, request, answer);

        if done.remaps() {
            match done.converts() {
                Some((dev, addr)) if result.is_ok() => {
                    inode.mappings_written(done.pos..done.end(), dev, addr);
                }
                // They may have been asked for meanwhile.
                _ => inode.mappings_changed_in(done.pos..done.end()),
            }
            inode.blocks_changed();
        }
        result
    }

    /// Checks an answer, takes note of the size on disk, and returns the result of the I/O.
    fn take_size(
        &self,
        inode: IomapInode<'_>,
        before: &Before,
        done: &Completion,
        request: &fuse_iomap_ioend_in,
        answer: Result<Option<u64>>,
    ) -> Result {
        // What the device says comes first.
        done.status?;

        let end = done.end();
        let old = before.disk_size.unsigned_abs();
        let size = inode.vfs().size().unsigned_abs();
        // Without an answer, nobody but the kernel knows the size.
        let newsize = answer?.unwrap_or_else(|| end.max(old));
        // While a file is being truncated, it still has its old size on disk.
        let largest = end.max(size).max(old);

        // A direct write beyond the end of the file has that for itself.
        let is_alone = done.flags & bindings::FUSE_IOMAP_IOEND_DIRECT != 0 && end > size;
        let layout_is_stable = before.layout % 2 == 0 && before.layout == self.layout();
        if layout_is_stable || is_alone {
            if newsize > largest {
                inode.report_newsize(Rule::NewsizeBeyondData, request, newsize);
                return Err(EUCLEAN);
            }
            if newsize < old {
                inode.report_newsize(Rule::NewsizeShrinks, request, newsize);
                return Err(EUCLEAN);
            }
        }
        if request.flags & bindings::FUSE_IOMAP_IOEND_APPEND != 0 {
            // Nothing makes the file smaller while data beyond its end on disk is in flight, but
            // something else may have made it larger.
            let newsize = Offset::try_from(newsize.min(largest)).map_err(|_| EUCLEAN)?;
            self.grow_disk_size(newsize);
        }
        Ok(())
    }
}

/// Forgets the mappings of a range that gets other blocks, before the server is told, who may then
/// use the old ones for something else.
fn forget(inode: IomapInode<'_>, done: &Completion) {
    if done.remaps() && done.converts().is_none() {
        inode.mappings_changed_in(done.pos..done.end());
        inode.blocks_changed();
    }
}

/// Gathers what tasks have to tell at the same time.
///
/// The first one tells the server at once.  While it waits for the answer, others come; one of them
/// then speaks for all.
#[pin_data]
pub(crate) struct Gathering {
    #[pin]
    state: Mutex<Gathered>,
    #[pin]
    told: CondVar,
}

/// The tasks that wait.
struct Gathered {
    waiting: KVec<Arc<Waiter>>,
    /// One of them is telling the server.
    is_busy: bool,
}

/// What a task waits with.
struct Waiter {
    done: Completion,
    result: SetOnce<Result>,
}

impl Gathering {
    /// Makes an empty one.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_mutex!(
                Gathered { waiting: KVec::new(), is_busy: false },
                "Gathering::state"
            ),
            told <- new_condvar!("Gathering::told"),
        })
    }

    /// Tells the server of a range, with others perhaps, and returns the result of its I/O.
    ///
    /// May sleep.
    pub(crate) fn tell(
        &self,
        writeback: &Writeback,
        inode: IomapInode<'_>,
        done: &Completion,
    ) -> Result {
        let Ok(waiter) = self.enter(done) else {
            return writeback.tell(inode, done);
        };

        let mut state = self.state.lock();
        loop {
            if let Some(result) = waiter.result.as_ref() {
                return *result;
            }
            if state.is_busy {
                self.told.wait(&mut state);
                continue;
            }

            state.is_busy = true;
            let waiting = core::mem::take(&mut state.waiting);
            drop(state);
            writeback.tell_all(
                inode,
                waiting.len(),
                |index| waiting.get(index).map(|waiter| waiter.done),
                |index, result| {
                    if let Some(waiter) = waiting.get(index) {
                        waiter.result.populate(result);
                    }
                },
            );
            state = self.state.lock();
            state.is_busy = false;
            self.told.notify_all();
        }
    }

    /// Puts a range on the list.
    fn enter(&self, done: &Completion) -> Result<Arc<Waiter>> {
        let _nofs = NofsScope::new();
        let waiter = Arc::new(
            Waiter {
                done: *done,
                result: SetOnce::new(),
            },
            GFP_KERNEL,
        )?;

        self.state.lock().waiting.push(waiter.clone(), GFP_KERNEL)?;
        Ok(waiter)
    }
}
