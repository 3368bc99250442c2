// SPDX-License-Identifier: GPL-2.0

//! How much is kept, and what is forgotten first.
#![deny(unsafe_code)]

use super::*;
use kernel::time::{Instant, Monotonic};

/// Records in an answer.
const BATCH: usize = 50;

/// How often something is looked up to see how long it takes.
const LOOKUPS: u64 = 100_000;

/// A record of one block that continues no other.
fn single(block: u64) -> fuse_iomap_io {
    mapped(block..block + 1, block << 32)
}

/// Inserts such records for the blocks of a range, and returns whether all were taken.
fn fill(cache: &Cache, pool: &Pool, blocks: Range<u64>) -> bool {
    for block in blocks {
        if !insert(cache, pool, Side::Read, &single(block)) {
            return false;
        }
    }
    true
}

/// How many of some blocks are cached.
fn count(cache: &Cache, blocks: Range<u64>) -> usize {
    blocks
        .filter(|block| cache.lookup(Side::Read, block * BLOCK).is_some())
        .count()
}

/// Nanoseconds for each of `times` times that `f` is called.
fn nanos(times: u64, mut f: impl FnMut(u64)) -> u64 {
    let start = Instant::<Monotonic>::now();

    for number in 0..times {
        f(number);
    }
    start.elapsed().as_nanos().unsigned_abs() / times
}

#[kunit_tests(fuse_iomap_cache_bounds)]
mod within_bounds {
    use super::*;

    #[test]
    fn the_bound_of_an_inode_is_kept() -> Result {
        let pool = pool(100, 10_000)?;
        let cache = Cache::new();

        for block in 0..1000 {
            assert!(fill(&cache, &pool, block..block + 1));
            assert!(pool.ranges() <= 100);
            // What is new can be found at least once.
            assert_eq!(count(&cache, block..block + 1), 1);
        }
        assert_eq!(pool.ranges(), 100);
        assert_eq!(count(&cache, 0..1000), 100);

        drop(cache);
        assert_eq!(pool.ranges(), 0);
        Ok(())
    }

    #[test]
    fn what_is_used_stays() -> Result {
        let pool = pool(100, 10_000)?;
        let cache = Cache::new();

        assert!(fill(&cache, &pool, 0..100));
        for block in 1000..5000 {
            // Ten blocks that are looked up all the time, among thousands that are not.
            assert_eq!(count(&cache, 40..50), 10);
            assert!(fill(&cache, &pool, block..block + 1));
        }
        Ok(())
    }

    #[test]
    fn the_bound_of_a_connection_is_kept() -> Result {
        let pool = pool(100, 250)?;
        let caches: [Cache; 8] = [const { Cache::new() }; 8];

        for block in 0..100 {
            for cache in &caches {
                assert!(fill(cache, &pool, block..block + 1));
                assert!(pool.ranges() <= 250);
            }
        }
        assert!(pool.ranges() > 200);
        drop(caches);
        assert_eq!(pool.ranges(), 0);

        // Also if there is nobody else to give way.
        let alone = Cache::new();
        let pool = super::pool(100, 10)?;
        assert!(fill(&alone, &pool, 0..100));
        assert_eq!(pool.ranges(), 10);
        Ok(())
    }

    #[test]
    fn the_cache_that_nothing_goes_into_gives_way() -> Result {
        let pool = pool(100, 250)?;
        let (idle, busy, third) = (Cache::new(), Cache::new(), Cache::new());

        assert!(fill(&idle, &pool, 0..100));
        assert!(fill(&busy, &pool, 0..90));
        for block in 0..60 {
            assert!(fill(&busy, &pool, 90 + block % 10..91 + block % 10));
            assert!(fill(&third, &pool, block..block + 1));
        }
        assert!(count(&idle, 0..100) < 100);
        assert_eq!(count(&busy, 0..100), 100);
        assert_eq!(count(&third, 0..60), 60);
        Ok(())
    }

    #[test]
    fn a_bound_of_nothing_is_off() -> Result {
        let pool = Pool::new(Bounds {
            inode: 0,
            connection: 1 << 20,
        })?;
        let cache = Cache::new();

        assert!(!insert(&cache, &pool, Side::Read, &single(0)));
        assert!(cache.upsert(&pool, [(Side::Read, &single(0))]).is_ok());
        cache.invalidate(&BOTH, 0..u64::MAX);

        assert!(cache.lookup(Side::Read, 0).is_none());
        assert_eq!(pool.ranges(), 0);
        Ok(())
    }

    #[test]
    fn memory_can_be_had_back() -> Result {
        let pool = pool(100, 10_000)?;
        let (first, second) = (Cache::new(), Cache::new());

        assert_eq!(pool.shrink(1), None);
        assert!(fill(&first, &pool, 0..50));
        assert!(fill(&second, &pool, 0..70));

        // Whole caches go, but no more than are wanted.
        let freed = pool.shrink(40);
        assert!(matches!(freed, Some(50 | 70)));
        assert_eq!(pool.ranges(), 120 - freed.unwrap_or(0));
        assert_eq!(pool.shrink(1000), Some(120 - freed.unwrap_or(0)));
        assert_eq!(pool.ranges(), 0);
        assert_eq!(pool.shrink(1), None);

        // They are as good as new.
        assert!(fill(&first, &pool, 0..50));
        assert_eq!(count(&first, 0..50), 50);
        Ok(())
    }

    #[test]
    fn who_reclaims_memory_does_not_wait() -> Result {
        let pool = pool(100, 10_000)?;
        let cache = Cache::new();
        assert!(fill(&cache, &pool, 0..50));

        // In the middle of a change, with the lock held.
        let extents = cache.extents.as_ref().ok_or(ENOENT)?;
        assert_eq!(extents.change(|_| pool.shrink(1)), None);
        assert_eq!(count(&cache, 0..50), 50);
        Ok(())
    }

    #[test]
    fn the_pool_knows_each_cache_once() -> Result {
        let pool = pool(100, 10_000)?;
        let (first, second) = (Cache::new(), Cache::new());

        for block in 0..10 {
            assert!(fill(&first, &pool, block..block + 1));
            assert!(fill(&second, &pool, block..block + 1));
        }
        assert_eq!(pool.caches(), 2);

        drop(first);
        assert_eq!((pool.caches(), pool.ranges()), (1, 10));
        drop(second);
        assert_eq!((pool.caches(), pool.ranges()), (0, 0));
        Ok(())
    }

    #[test]
    fn a_pool_may_go_first() -> Result {
        let pool = pool(100, 10_000)?;
        let cache = Cache::new();
        assert!(fill(&cache, &pool, 0..50));

        drop(pool);
        assert_eq!(count(&cache, 0..50), 50);
        cache.invalidate(&BOTH, 0..u64::MAX);
        assert_eq!(count(&cache, 0..50), 0);
        Ok(())
    }

    #[test]
    fn a_million_extents() -> Result {
        for (limit, extents) in [(10_000, 1_000_000), (200_000, 100_000)] {
            let pool = pool(limit, limit)?;
            let cache = Cache::new();
            let kept = limit.min(extents as usize);
            let mut most = 0;
            let mut taken = true;

            // As a server sends them: many in one answer.
            let insert_ns = nanos(extents / BATCH as u64, |number| {
                let start = number * BATCH as u64;
                let records: [_; BATCH] =
                    core::array::from_fn(|index| single(start + index as u64));
                let records = records.iter().map(|record| (Side::Read, record));

                taken &= cache.insert_since(&pool, cache.generation(), None, records);
                most = most.max(pool.ranges());
            }) / BATCH as u64;
            assert!(taken);
            assert_eq!((most, pool.ranges()), (kept, kept));

            // Those that are still there, in an order that no cache of a CPU likes.
            let start = extents - kept as u64 / 2;
            let mut hits = 0;
            let lookup_ns = nanos(LOOKUPS, |number| {
                let block = start + number * 7919 % (kept as u64 / 2);
                hits += u64::from(cache.lookup(Side::Read, block * BLOCK).is_some());
            });
            assert_eq!(hits, LOOKUPS);
            let mut misses = 0;
            let miss_ns = nanos(LOOKUPS, |number| {
                misses += u64::from(cache.lookup(Side::Write, number * BLOCK).is_none());
            });
            assert_eq!(misses, LOOKUPS);

            let invalidate_ns = nanos(1000, |number| {
                let block = extents - 1 - number;
                cache.invalidate(&BOTH, block * BLOCK..(block + 1) * BLOCK);
            });
            assert_eq!(pool.ranges(), kept - 1000);

            pr_info!(
                "{} of {} extents: ns to insert {}, find {}, miss {}, invalidate {}\n",
                kept,
                extents,
                insert_ns,
                lookup_ns,
                miss_ns,
                invalidate_ns
            );
            drop(cache);
            assert_eq!(pool.ranges(), 0);
        }
        Ok(())
    }
}
