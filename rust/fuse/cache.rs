// SPDX-License-Identifier: GPL-2.0

//! The cache of mappings: what the kernel knows without asking the server.
//!
//! Each inode has a [`Cache`], which costs next to nothing until the first mapping is put into it.
//! The caches of a connection share a [`Pool`], which bounds the memory that they take.  In this
//! file is what keeps the cache true, in [`extents`] what is kept and in [`pool`] for how long.
//!
//! # Looking up
//!
//! A look-up takes no lock, allocates nothing, and writes to nothing that another CPU reads but a
//! mark, once.  What is not found is asked for, and that is traced.
//!
//! # Staying true
//!
//! A mapping may change while the answer that has it is on its way.  For this there is a number of
//! an inode, its generation, which changes before anything is dropped: an answer is put into the
//! cache only if the generation is that from before the question.  Both are compared with the lock
//! of the cache held, so either the comparison fails, or what drops the mapping waits for the lock
//! and finds it.
//!
//! What an upsert says is newer than all answers to questions that were asked before it, so an
//! upsert is a new generation as well.  The answer to another question may also be news, if the
//! server allocates blocks to give it: see the argument `changed` of [`Cache::insert_since`].
//!
//! # Forgetting
//!
//! To forget is always allowed.  Mappings are dropped when their inode has too many, when the
//! connection has, and when the system is short of memory.  Where there is no memory to cut a
//! mapping to pieces, the whole cache of the inode is dropped, for which none is needed.  So
//! dropping never fails, and waits for no memory: writeback, which reclaim may wait for, can do it.
//!
//! # Locks
//!
//! The lock of an inode's cache is taken by tasks that may sleep, with any lock of the inode held.
//! No other is taken inside it, and what holds it does not wait for memory, except for an upsert by
//! the server, which does not wait for filesystems.  Reclaim only ever tries to get it.
#![deny(unsafe_code)]

mod extents;
mod pool;
#[cfg(CONFIG_FUSE_IOMAP_KUNIT_TEST)]
mod tests;

use crate::mapping::Side;
use core::ops::Range;
use extents::Extents;
use kernel::{
    bindings::fuse_iomap_io,
    fs::NofsScope,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Full},
        barrier::smp_mb,
        Arc,
        ArcBorrow,
        OncePtr, //
    },
};
pub(crate) use pool::{Bounds, Pool, Usage};

/// Both sides.
pub(crate) const BOTH: [Side; 2] = [Side::Read, Side::Write];

/// The mappings that are cached for an inode.
pub(crate) struct Cache {
    /// Changes before anything is dropped that was or may be put into the cache.
    generation: Atomic<u64>,
    /// Made for the first mapping.
    extents: OncePtr<Arc<Extents>>,
}

impl Cache {
    /// Makes an empty one.
    pub(crate) const fn new() -> Self {
        Self {
            generation: Atomic::new(0),
            extents: OncePtr::new(),
        }
    }

    /// The generation of what is learnt now, see [`Cache::insert_since`].
    ///
    /// Any context.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    /// Finds what is cached of `pos`.
    ///
    /// What is returned contains `pos`, is at most as long as the server has said, and says of its
    /// range what the server has said of it.
    ///
    /// Any context.
    #[inline(always)]
    pub(crate) fn lookup(&self, side: Side, pos: u64) -> Option<fuse_iomap_io> {
        self.extents.as_ref()?.lookup(side, pos)
    }

    /// Puts `records` of an answer into the cache, and returns whether there is one and the answer
    /// was still true.
    ///
    /// `generation` is from before the server was asked.  `changed` is a range that the server may
    /// have changed the mapping of, for either side, to give this answer, as it does if it
    /// allocates blocks for a write: that is not cached any more except as the records say.  Its
    /// start and end are multiples of the block size.
    ///
    /// The records are mappings that [`Mapping::parse`] has accepted; some are not fit for a cache
    /// and left out.
    ///
    /// May sleep.
    ///
    /// [`Mapping::parse`]: crate::mapping::Mapping::parse
    pub(crate) fn insert_since<'a>(
        &self,
        pool: &Pool,
        generation: u64,
        changed: Option<Range<u64>>,
        records: impl IntoIterator<Item = (Side, &'a fuse_iomap_io)>,
    ) -> bool {
        let expected = match changed {
            Some(_) => {
                // What others have asked before is not put into the cache from now on.
                self.generation.fetch_add(1, Full);
                generation.wrapping_add(1)
            }
            None => generation,
        };
        let Ok(Some(extents)) = self.extents_for(pool) else {
            return false;
        };

        extents.change(|extents| {
            if let Some(range) = changed {
                for side in BOTH {
                    extents.erase(side, range.clone());
                }
            }
            if self.generation() != expected {
                return false;
            }
            for (side, record) in records {
                // Without memory, there is one mapping less in the cache.
                let _ = extents.insert(side, record, GFP_NOWAIT | __GFP_NOWARN);
            }
            true
        })
    }

    /// Puts `records` into the cache, because the server says so of its own accord.
    ///
    /// They are as for [`Cache::insert_since`].
    ///
    /// May sleep.  Fails with `ENOMEM`; then nothing is cached that is in contradiction to the
    /// records.
    pub(crate) fn upsert<'a>(
        &self,
        pool: &Pool,
        records: impl IntoIterator<Item = (Side, &'a fuse_iomap_io)>,
    ) -> Result {
        self.generation.fetch_add(1, Full);

        // Somebody who reclaims memory may have to wait for this.
        let _nofs = NofsScope::new();
        let Some(extents) = self.extents_for(pool)? else {
            return Ok(());
        };

        extents.change(|extents| {
            let mut result = Ok(());
            for (side, record) in records {
                // All of them, also after an error: what is there now is old.
                result = result.and(extents.insert(side, record, GFP_KERNEL | __GFP_NOWARN));
            }
            result
        })
    }

    /// Drops what is cached of a range of both or one of the sides, and what may be on its way.
    ///
    /// Start and end are multiples of the block size, or the end is beyond all files.
    ///
    /// May sleep, but does not wait for memory.
    pub(crate) fn invalidate(&self, sides: &[Side], range: Range<u64>) {
        // Before looking whether there is something to drop from, as `extents_for` does.
        self.generation.fetch_add(1, Full);

        if let Some(extents) = self.extents.as_ref() {
            extents.change(|extents| {
                for &side in sides {
                    extents.erase(side, range.clone());
                }
            });
        }
    }

    /// Takes note that the unwritten blocks of a range, which are at `addr` of the device `dev`,
    /// have data now.
    ///
    /// What is cached of the range is dropped, unless it is of these blocks.  Start and end are
    /// multiples of the block size.
    ///
    /// May sleep, but does not wait for memory.
    pub(crate) fn written(&self, range: Range<u64>, dev: u32, addr: u64) {
        // An answer on its way may still have it that they are unwritten.
        self.generation.fetch_add(1, Full);

        if let Some(extents) = self.extents.as_ref() {
            extents.change(|extents| extents.written(range, dev, addr));
        }
    }

    /// Where to put mappings, made now if it is not there, or `None` if nothing is to be cached.
    ///
    /// May sleep.
    fn extents_for(&self, pool: &Pool) -> Result<Option<ArcBorrow<'_, Extents>>> {
        if !pool.is_on() {
            return Ok(None);
        }
        // Somebody who reclaims memory may have to wait for this.
        let _nofs = NofsScope::new();
        let extents = self.extents.get_or_make(|| Extents::new(pool))?;
        // Not where it is made: if tasks race, that which one of them has made is dropped.
        extents.enter(pool)?;

        // A new generation is looked at after this.  Who makes that looks for extents afterwards,
        // so one of both sees what the other has done.
        smp_mb(Full);
        Ok(Some(extents))
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Some(extents) = self.extents.as_ref() {
            extents.leave();
        }
    }
}
