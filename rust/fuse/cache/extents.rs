// SPDX-License-Identifier: GPL-2.0

//! What is cached of an inode.
#![deny(unsafe_code)]

use super::pool::{Pool, Shared};
use crate::mapping::{Side, NO_ADDR};
use core::ops::{Range, RangeInclusive};
use kernel::{
    alloc::Flags,
    bindings::{self, fuse_iomap_io},
    maple_tree::rcu,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
        ArcBorrow,
        Mutex, //
    },
};

/// The highest offset in a file that something is cached for; none is higher in the VFS.
const MAX_POS: u64 = i64::MAX.unsigned_abs();

/// Ranges that are spared, because they were found not long ago, before one is evicted anyway.
const SECOND_CHANCES: usize = 256;

/// The flags that are kept: what is true of blocks, not of the answer that they were in.
const KEPT_FLAGS: u32 = bindings::FUSE_IOMAP_F_DIRTY
    | bindings::FUSE_IOMAP_F_SHARED
    | bindings::FUSE_IOMAP_F_MERGED
    | UNMERGED_FLAGS;

/// The flags that unwritten blocks may have for the kernel to know what they are when they are
/// written: what the others are about, the server decides then.
const CONVERTED_FLAGS: u32 = bindings::FUSE_IOMAP_F_DIRTY | bindings::FUSE_IOMAP_F_MERGED;

/// The flags of mappings that end where the server has said, since something happens there.
const UNMERGED_FLAGS: u32 = bindings::FUSE_IOMAP_F_BOUNDARY
    | bindings::FUSE_IOMAP_F_ANON_WRITE
    | bindings::FUSE_IOMAP_F_ATOMIC_BIO
    | bindings::FUSE_IOMAP_F_WANT_IOMAP_END;

/// What the server has said of a range, apart from where that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    /// The address less the offset, so that it is the same for each part; 0 without an address.
    delta: u64,
    dev: u32,
    kind: u16,
    flags: u16,
}

impl Extent {
    /// What is to be kept of a record, if it is fit for the cache.
    fn of(side: Side, record: &fuse_iomap_io) -> Option<Self> {
        let is_kind_kept = match u32::from(record.type_) {
            bindings::FUSE_IOMAP_TYPE_HOLE
            | bindings::FUSE_IOMAP_TYPE_DELALLOC
            | bindings::FUSE_IOMAP_TYPE_MAPPED
            | bindings::FUSE_IOMAP_TYPE_UNWRITTEN => true,
            bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE => side == Side::Write,
            _ => false,
        };
        // Blocks are new once: whoever is told so may zero what is around the data.
        let is_new = u32::from(record.flags) & bindings::FUSE_IOMAP_F_NEW != 0;
        if !is_kind_kept || is_new {
            return None;
        }

        Some(Self {
            delta: match record.addr {
                NO_ADDR => 0,
                addr => addr.wrapping_sub(record.offset),
            },
            dev: record.dev,
            kind: record.type_,
            // CAST: A part of 16 bits.
            flags: (u32::from(record.flags) & KEPT_FLAGS) as u16,
        })
    }

    /// The record that says this of `range`.
    #[inline(always)]
    fn record(&self, range: &RangeInclusive<u64>) -> fuse_iomap_io {
        let has_addr = matches!(
            u32::from(self.kind),
            bindings::FUSE_IOMAP_TYPE_MAPPED | bindings::FUSE_IOMAP_TYPE_UNWRITTEN
        );

        fuse_iomap_io {
            offset: *range.start(),
            // It does not overflow, since offsets have 63 bits.
            length: range.end().wrapping_sub(*range.start()).wrapping_add(1),
            addr: if has_addr {
                range.start().wrapping_add(self.delta)
            } else {
                NO_ADDR
            },
            type_: self.kind,
            flags: self.flags,
            dev: self.dev,
        }
    }

    /// Whether two ranges next to each other of which this is said are as good as one.
    fn is_merged(&self) -> bool {
        u32::from(self.flags) & UNMERGED_FLAGS == 0
    }
}

/// Where in the tree something is kept: both sides are in the same tree.
fn index(side: Side, pos: u64) -> usize {
    const SIDE: usize = 1 << (usize::BITS - 1);
    // The highest bit is left for the side.
    const _: () = assert!(MAX_POS as usize == SIDE - 1);

    // CAST: `usize` has 64 bits, as asserted above.
    match side {
        Side::Read => pos as usize,
        Side::Write => pos as usize | SIDE,
    }
}

/// The offset that is kept at an index.
fn pos(index: usize) -> u64 {
    // CAST: As in `index`.
    index as u64 & MAX_POS
}

/// The range of the tree for a range of a file, or `None` if nothing of it is ever kept.
fn indices(side: Side, range: &Range<u64>) -> Option<RangeInclusive<usize>> {
    let last = range.end.checked_sub(1)?.min(MAX_POS);

    (range.start <= last).then(|| index(side, range.start)..=index(side, last))
}

/// The mappings that are cached for an inode.
#[pin_data]
pub(super) struct Extents {
    reader: rcu::Reader<Extent>,
    /// Something was inserted since the pool was looking for victims.
    was_active: Atomic<bool>,
    /// The pool knows of it.
    is_entered: Atomic<bool>,
    /// Its number in the pool.
    id: u64,
    pool: Arc<Shared>,
    #[pin]
    inner: Mutex<Inner>,
}

/// What can be done with the lock held.
pub(super) struct Inner {
    writer: rcu::Writer<Extent>,
    /// Where the next range to evict is looked for.
    hand: usize,
    /// How many ranges the pool believes are here.
    counted: usize,
    /// How many there may be.
    limit: usize,
    /// Something was inserted that the pool has not heard of.
    is_active: bool,
    /// What was inserted, and dropped to make room, that the pool has not heard of.
    insertions: usize,
    evictions: usize,
}

impl Inner {
    /// Puts a record into the cache, or drops what is in contradiction to it.
    ///
    /// May sleep if `flags` allow that.  Fails with `ENOMEM`; then it is the latter.
    pub(super) fn insert(&mut self, side: Side, record: &fuse_iomap_io, flags: Flags) -> Result {
        let range = record.offset..record.offset.saturating_add(record.length);
        self.is_active = true;

        let Some(extent) = Extent::of(side, record) else {
            self.erase(side, range);
            return Ok(());
        };
        let Some(indices) = indices(side, &range) else {
            return Ok(());
        };

        let indices = match self.merge(indices, &extent) {
            Some(indices) => indices,
            // It is all there.
            None => return Ok(()),
        };
        if let Err(error) = self.writer.store(indices, extent, flags) {
            self.erase(side, range);
            return Err(error);
        }
        self.insertions += 1;
        self.keep_limit();
        Ok(())
    }

    /// Adds what continues a range at its ends, or returns `None` if it is there as it is.
    fn merge(
        &self,
        indices: RangeInclusive<usize>,
        extent: &Extent,
    ) -> Option<RangeInclusive<usize>> {
        let (mut first, mut last) = indices.into_inner();
        let same = |index| {
            self.writer
                .get(index)
                .filter(|found| found.value == *extent)
        };

        if same(first).is_some_and(|found| last <= *found.range.end()) {
            return None;
        }
        if extent.is_merged() {
            // The sides are not neighbours, although they are in the tree.
            if pos(first) > 0 {
                first = same(first - 1).map_or(first, |found| *found.range.start());
            }
            if pos(last) < MAX_POS {
                last = same(last + 1).map_or(last, |found| last.max(*found.range.end()));
            }
        }
        Some(first..=last)
    }

    /// Drops what is cached of a range.
    ///
    /// Does not wait for memory.
    pub(super) fn erase(&mut self, side: Side, range: Range<u64>) {
        if let Some(indices) = indices(side, &range) {
            self.erase_indices(indices);
            // What remains on both sides of the range may be one more than before.
            self.keep_limit();
        }
    }

    /// See [`Cache::written`].
    ///
    /// [`Cache::written`]: super::Cache::written
    pub(super) fn written(&mut self, range: Range<u64>, dev: u32, addr: u64) {
        let delta = addr.wrapping_sub(range.start);
        let at = |side| {
            let indices = indices(side, &range)?;
            let found = self.writer.get(*indices.start())?;

            (indices.end() <= found.range.end()).then_some(found.value)
        };
        let is_overwrite =
            |extent: &Extent| u32::from(extent.kind) == bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE;
        // All that is known of these blocks is whether they have data.
        let is_here = |extent: &Extent| {
            matches!(
                u32::from(extent.kind),
                bindings::FUSE_IOMAP_TYPE_UNWRITTEN | bindings::FUSE_IOMAP_TYPE_MAPPED
            ) && (extent.delta, extent.dev) == (delta, dev)
                && u32::from(extent.flags) & !CONVERTED_FLAGS == 0
        };

        let write = at(Side::Write);
        let place = match write {
            Some(write) if is_overwrite(&write) => at(Side::Read),
            write => write,
        };
        if !place.is_some_and(|place| is_here(&place)) {
            self.erase(Side::Read, range.clone());
            self.erase(Side::Write, range);
            return;
        }

        let record = fuse_iomap_io {
            offset: range.start,
            length: range.end.saturating_sub(range.start),
            addr,
            // CAST: The types are below 256, and the flags have 16 bits.
            type_: bindings::FUSE_IOMAP_TYPE_MAPPED as u16,
            // The server may not have made this stable yet.
            flags: bindings::FUSE_IOMAP_F_DIRTY as u16,
            dev,
        };
        // Without memory, there is one mapping less in the cache.
        let _ = self.insert(Side::Read, &record, GFP_NOWAIT | __GFP_NOWARN);
        if !write.is_some_and(|write| is_overwrite(&write)) {
            let _ = self.insert(Side::Write, &record, GFP_NOWAIT | __GFP_NOWARN);
        }
    }

    /// Drops what is in a part of the tree, or all there is if that is easier.
    fn erase_indices(&mut self, indices: RangeInclusive<usize>) {
        let erased = self.writer.erase(indices, GFP_NOWAIT | __GFP_NOWARN);

        if erased.is_err() {
            self.writer.clear();
        }
    }

    /// Drops all, and returns how many ranges that were.
    ///
    /// Needs no memory.
    fn clear(&mut self) -> usize {
        let count = self.writer.len();

        self.writer.clear();
        count
    }

    /// Evicts what is too much.
    fn keep_limit(&mut self) {
        while self.writer.len() > self.limit {
            self.evict_one();
        }
    }

    /// Drops a range that has not been found for some time.
    fn evict_one(&mut self) {
        for chance in (0..=SECOND_CHANCES).rev() {
            let Some(found) = self.writer.next(self.hand) else {
                // It starts again; if there is nothing at all, this ends soon.
                self.hand = 0;
                continue;
            };
            let range = found.range();
            let spared = found.take_mark() && chance > 0;

            self.hand = range.end().wrapping_add(1);
            if !spared {
                self.evictions += 1;
                self.erase_indices(range);
                return;
            }
        }
    }

    /// Drops up to `count` ranges.
    fn evict(&mut self, count: usize) {
        for _ in 0..count.min(self.writer.len()) {
            self.evict_one();
        }
    }
}

impl Extents {
    /// Makes an empty cache for an inode, which the pool does not know of yet.
    pub(super) fn new(pool: &Pool) -> Result<Arc<Self>> {
        let (writer, reader) = rcu::new(GFP_KERNEL)?;
        let limit = pool.inode_ranges();
        let (id, pool) = pool.admit();

        Arc::pin_init(
            pin_init!(Self {
                reader,
                was_active: Atomic::new(true),
                is_entered: Atomic::new(false),
                id,
                pool,
                inner <- new_mutex!(
                    Inner {
                        writer,
                        hand: 0,
                        counted: 0,
                        limit,
                        is_active: true,
                        insertions: 0,
                        evictions: 0,
                    },
                    "fuse_iomap::Extents::inner"
                ),
            }),
            GFP_KERNEL,
        )
    }

    /// Has the pool know of it, if that does not yet.
    ///
    /// May sleep.
    pub(super) fn enter(self: ArcBorrow<'_, Self>, pool: &Pool) -> Result {
        if !self.is_entered.load(Relaxed) {
            pool.enter(self.id, self.into())?;
            self.is_entered.store(true, Relaxed);
        }
        Ok(())
    }

    /// Ends it: the inode is going away.
    ///
    /// May sleep.
    pub(super) fn leave(&self) {
        // Somebody may have just found it in the pool, but only to make it smaller.
        self.pool.remove(self.id);
        self.change(Inner::clear);
    }

    /// See [`Cache::lookup`].
    ///
    /// [`Cache::lookup`]: super::Cache::lookup
    #[inline(always)]
    pub(super) fn lookup(&self, side: Side, at: u64) -> Option<fuse_iomap_io> {
        if at > MAX_POS {
            return None;
        }
        let found = self.reader.get_and_mark(index(side, at))?;
        let (first, last) = found.range.into_inner();

        Some(found.value.record(&(pos(first)..=pos(last))))
    }

    /// Calls `f`, which may change what is cached; then makes room in the pool if there is none.
    ///
    /// May sleep.
    pub(super) fn change<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let result = self.with_inner(&mut self.inner.lock(), f);

        self.pool.relieve(self);
        result
    }

    /// Calls `f` with the lock held, and tells the pool what has become of the cache.
    fn with_inner<R>(&self, inner: &mut Inner, f: impl FnOnce(&mut Inner) -> R) -> R {
        let result = f(inner);
        let count = inner.writer.len();

        self.pool.recount(inner.counted, count);
        inner.counted = count;
        self.pool.count(
            core::mem::take(&mut inner.insertions),
            core::mem::take(&mut inner.evictions),
        );
        if core::mem::take(&mut inner.is_active) && !self.was_active.load(Relaxed) {
            self.was_active.store(true, Relaxed);
        }
        result
    }

    /// Whether something was inserted since the last call.
    pub(super) fn take_activity(&self) -> bool {
        let was = self.was_active.load(Relaxed);

        self.was_active.store(false, Relaxed);
        was
    }

    /// Drops up to `count` ranges that have not been found for some time.
    ///
    /// May sleep.
    pub(super) fn evict(&self, count: usize) {
        self.with_inner(&mut self.inner.lock(), |inner| inner.evict(count));
    }

    /// As [`Extents::evict`] if nobody else is changing something, and does not sleep.
    pub(super) fn try_evict(&self, count: usize) {
        if let Some(mut inner) = self.inner.try_lock() {
            self.with_inner(&mut inner, |inner| inner.evict(count));
        }
    }

    /// Drops all if nobody is changing something, and returns how many ranges that were.
    ///
    /// Needs no memory.
    pub(super) fn try_clear(&self) -> Option<usize> {
        let mut inner = self.inner.try_lock()?;

        Some(self.with_inner(&mut inner, |inner| {
            let count = inner.clear();

            inner.evictions += count;
            count
        }))
    }
}
