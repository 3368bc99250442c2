// SPDX-License-Identifier: GPL-2.0

//! The memory that the caches of a connection share.
#![deny(unsafe_code)]

use super::extents::Extents;
use kernel::{
    mm::{
        meminfo::total_ram,
        shrinker::{Registration, Scan, Shrinker}, //
    },
    new_spinlock,
    prelude::*,
    rbtree::{RBTree, RBTreeNode},
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
        ArcBorrow,
        SpinLock, //
    },
};

/// What a range is reckoned to cost, in bytes: an object of 64 bytes, and its share in the nodes of
/// the tree, of which one has 256 bytes for up to 16 ranges and gaps.
pub(crate) const RANGE_BYTES: usize = 96;

/// The share of a pool that is evicted from a cache at once to make room for another, and how many
/// ranges that is at most.
const EVICT_SHARE: usize = 16;
const MAX_EVICTED: usize = 64;

/// Caches that are asked to make room for another one, before that has to itself.
const MAX_VICTIMS: usize = 16;

/// Caches that are spared, because something was inserted not long ago, before one is taken anyway.
const SECOND_CHANCES: usize = 16;

/// How large caches may become.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    /// That of an inode, in bytes; 0 to cache nothing.
    pub(crate) inode: usize,
    /// All of a connection, in bytes.
    pub(crate) connection: usize,
}

impl Bounds {
    /// What an inode gets if the server does not say: some 40000 ranges.
    ///
    /// That is a file of 160 GiB in extents of 4 MiB, and enough for 20000 blocks written here and
    /// there into one unwritten extent, each of which cuts it in two.
    const INODE: usize = 4 << 20;

    /// The share of the system's memory that a connection gets.
    ///
    /// It is not to be noticed, and holds what is known of a million ranges on a system with 12
    /// GiB.
    const SHARE: u64 = 128;

    /// What is used unless the server says something else.
    pub(crate) fn of_system() -> Self {
        Self {
            inode: Self::INODE,
            // A small system can do with fewer files of that size, but not with less than one.
            connection: usize::try_from(total_ram() / Self::SHARE)
                .unwrap_or(usize::MAX)
                .max(Self::INODE),
        }
    }

    /// What is used if the server says how large the cache of an inode may become, in bytes.
    pub(crate) fn of_inodes(bytes: u32) -> Self {
        let system = Self::of_system();

        Self {
            // CAST: `usize` has 64 bits.  Not even one inode gets more than all together.
            inode: (bytes as usize).min(system.connection),
            ..system
        }
    }
}

/// What is in the caches of a connection, and what was.
#[derive(Default)]
pub(crate) struct Usage {
    /// Ranges that were put into a cache.
    pub(crate) insertions: usize,
    /// Those that were dropped to make room.
    pub(crate) evictions: usize,
    /// Ranges that there are.
    pub(crate) ranges: usize,
    /// What they are reckoned to cost, in bytes.
    pub(crate) bytes: usize,
    /// What they may cost, in bytes.
    pub(crate) max_bytes: usize,
}

/// The caches of a connection.
///
/// Dropping it may sleep.  Caches that are still there live on, but no longer shrink.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    // Not in `Shared`, which the last cache may drop while it is being shrunk.
    _shrinker: Registration<Shared>,
}

impl Pool {
    /// Makes one without caches.
    ///
    /// May sleep.
    pub(crate) fn new(bounds: Bounds) -> Result<Self> {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                ranges: Atomic::new(0usize),
                insertions: Atomic::new(0usize),
                evictions: Atomic::new(0usize),
                max_ranges: bounds.connection / RANGE_BYTES,
                inode_ranges: bounds.inode / RANGE_BYTES,
                caches <- new_spinlock!(Caches::new(), "fuse_iomap::Shared::caches"),
            }),
            GFP_KERNEL,
        )?;

        Ok(Self {
            _shrinker: Registration::new(c"fuse-iomap", shared.clone())?,
            shared,
        })
    }

    /// What there is.
    pub(crate) fn usage(&self) -> Usage {
        let ranges = self.shared.ranges.load(Relaxed);

        Usage {
            insertions: self.shared.insertions.load(Relaxed),
            evictions: self.shared.evictions.load(Relaxed),
            ranges,
            bytes: ranges.saturating_mul(RANGE_BYTES),
            max_bytes: self.shared.max_ranges.saturating_mul(RANGE_BYTES),
        }
    }

    /// Whether anything is to be cached.
    pub(super) fn is_on(&self) -> bool {
        self.shared.inode_ranges > 0
    }

    /// How many ranges an inode may have.
    pub(super) fn inode_ranges(&self) -> usize {
        self.shared.inode_ranges
    }

    /// What a new cache needs to know: its number, and whom to tell of its size.
    pub(super) fn admit(&self) -> (u64, Arc<Shared>) {
        (self.shared.caches.lock().next_id(), self.shared.clone())
    }

    /// Enters a cache of the given number, which is the same each time, so that it can be found.
    pub(super) fn enter(&self, id: u64, cache: Arc<Extents>) -> Result {
        let node = RBTreeNode::new(id, cache, GFP_KERNEL)?;
        let old = self.shared.caches.lock().by_id.insert(node);

        // If another task was quicker, this is what it has entered; dropped without the lock.
        drop(old);
        Ok(())
    }

    /// How many ranges there are.
    #[cfg(CONFIG_FUSE_IOMAP_KUNIT_TEST)]
    pub(super) fn ranges(&self) -> usize {
        self.shared.ranges.load(Relaxed)
    }

    /// How many caches there are.
    #[cfg(CONFIG_FUSE_IOMAP_KUNIT_TEST)]
    pub(super) fn caches(&self) -> usize {
        self.shared.caches.lock().by_id.iter().count()
    }

    /// Drops ranges as if memory were scarce, and returns how many.
    #[cfg(CONFIG_FUSE_IOMAP_KUNIT_TEST)]
    pub(super) fn shrink(&self, wanted: usize) -> Option<usize> {
        self.shared.shrink(wanted)
    }
}

/// What a pool and its caches share.
#[pin_data]
pub(super) struct Shared {
    /// Ranges in all caches.
    ranges: Atomic<usize>,
    /// Ranges that were put into a cache.
    insertions: Atomic<usize>,
    /// Ranges that were dropped to make room.
    evictions: Atomic<usize>,
    max_ranges: usize,
    inode_ranges: usize,
    #[pin]
    caches: SpinLock<Caches>,
}

/// The caches that there are.
struct Caches {
    by_id: RBTree<u64, Arc<Extents>>,
    last_id: u64,
    /// Where the next victim is looked for.
    hand: u64,
}

impl Caches {
    /// Makes an empty list.
    fn new() -> Self {
        Self {
            by_id: RBTree::new(),
            last_id: 0,
            hand: 0,
        }
    }

    /// A number that no cache has.
    fn next_id(&mut self) -> u64 {
        // One that overflows if a cache is made each nanosecond for 500 years.
        self.last_id = self.last_id.wrapping_add(1);
        self.last_id
    }

    /// Finds the cache that nothing was inserted into for longest, about.
    fn next_victim(&mut self) -> Option<Arc<Extents>> {
        for chance in (0..=SECOND_CHANCES).rev() {
            let cursor = match self.by_id.cursor_lower_bound(&self.hand) {
                Some(cursor) => cursor,
                None => self.by_id.cursor_front()?,
            };
            let (id, cache) = cursor.current();

            self.hand = id.wrapping_add(1);
            if !cache.take_activity() || chance == 0 {
                return Some(cache.clone());
            }
        }
        None
    }
}

impl Shared {
    /// Takes note that a cache has `new` ranges and no longer `old`.
    pub(super) fn recount(&self, old: usize, new: usize) {
        if new > old {
            self.ranges.fetch_add(new - old, Relaxed);
        } else if new < old {
            self.ranges.fetch_sub(old - new, Relaxed);
        }
    }

    /// Counts ranges that were put into a cache, and such that were dropped to make room.
    pub(super) fn count(&self, insertions: usize, evictions: usize) {
        for (counter, n) in [(&self.insertions, insertions), (&self.evictions, evictions)] {
            if n > 0 {
                counter.fetch_add(n, Relaxed);
            }
        }
    }

    /// How many ranges there are too many.
    fn excess(&self) -> usize {
        self.ranges.load(Relaxed).saturating_sub(self.max_ranges)
    }

    /// Makes room if there are too many ranges, perhaps because of `cache`, whose lock the caller
    /// does not hold.
    ///
    /// May sleep.
    pub(super) fn relieve(&self, cache: &Extents) {
        let batch = (self.max_ranges / EVICT_SHARE).clamp(1, MAX_EVICTED);

        for _ in 0..MAX_VICTIMS {
            if self.excess() == 0 {
                return;
            }
            let victim = self.caches.lock().next_victim();
            if let Some(victim) = victim {
                victim.try_evict(batch);
            }
        }

        // All others are busy, or have nothing.  The bound is kept in any case.
        let excess = self.excess();
        if excess > 0 {
            cache.evict(excess);
        }
    }

    /// Takes a cache off the list.
    pub(super) fn remove(&self, id: u64) {
        let removed = self.caches.lock().by_id.remove_node(&id);
        // Dropped without the lock: it may be the last reference.
        drop(removed);
    }

    /// Drops caches as a whole until `wanted` ranges are gone, and returns how many are, or `None`
    /// if none can be dropped now.
    ///
    /// Does not sleep, and needs no memory.
    fn shrink(&self, wanted: usize) -> Option<usize> {
        let mut freed = 0;

        for _ in 0..MAX_VICTIMS {
            let victim = self.caches.lock().next_victim();
            let Some(victim) = victim else {
                break;
            };
            freed += victim.try_clear().unwrap_or(0);
            if freed >= wanted {
                break;
            }
        }
        (freed > 0).then_some(freed)
    }
}

impl Shrinker for Shared {
    type Data = Arc<Self>;

    fn count(pool: ArcBorrow<'_, Self>) -> usize {
        pool.ranges.load(Relaxed)
    }

    fn scan(pool: ArcBorrow<'_, Self>, scan: &mut Scan<'_>) -> Option<usize> {
        let wanted = scan.wanted();
        let freed = pool.shrink(wanted)?;

        // Whole caches are dropped, which may be much more.
        scan.set_scanned(freed.max(wanted));
        Some(freed)
    }
}
