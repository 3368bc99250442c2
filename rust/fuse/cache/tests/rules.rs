// SPDX-License-Identifier: GPL-2.0

//! What is kept of a record, and what becomes of neighbours.
#![deny(unsafe_code)]

use super::*;

/// A cache with plenty of room.
fn roomy() -> Result<(Pool, Cache)> {
    Ok((pool(1000, 1000)?, Cache::new()))
}

/// Offset and length that are cached at a block, in blocks.
fn found(cache: &Cache, side: Side, block: u64) -> Option<(u64, u64)> {
    let record = cache.lookup(side, block * BLOCK)?;

    Some((record.offset / BLOCK, record.length / BLOCK))
}

#[kunit_tests(fuse_iomap_cache)]
mod what_is_kept {
    use super::*;

    #[test]
    fn what_is_found_is_what_was_said() -> Result {
        let (pool, cache) = roomy()?;
        let record = fuse_iomap_io {
            flags: bindings::FUSE_IOMAP_F_SHARED as u16,
            dev: 77,
            ..mapped(10..20, 5 << 30)
        };
        assert!(insert(&cache, &pool, Side::Read, &record));

        for pos in [10 * BLOCK, 15 * BLOCK + 1, 20 * BLOCK - 1] {
            let found = cache.lookup(Side::Read, pos).ok_or(ENOENT)?;
            assert_eq!((found.offset, found.length), (10 * BLOCK, 10 * BLOCK));
            assert_eq!(found.addr, (5 << 30) + 10 * BLOCK);
            assert_eq!(
                (found.type_, found.flags, found.dev),
                (record.type_, record.flags, 77)
            );
        }
        for (side, pos) in [
            (Side::Read, 10 * BLOCK - 1),
            (Side::Read, 20 * BLOCK),
            (Side::Write, 15 * BLOCK),
            (Side::Read, u64::MAX),
        ] {
            assert!(cache.lookup(side, pos).is_none());
        }
        Ok(())
    }

    #[test]
    fn a_part_has_its_own_address() -> Result {
        let (pool, cache) = roomy()?;
        assert!(insert(&cache, &pool, Side::Read, &mapped(10..20, 1 << 30)));

        cache.invalidate(&BOTH, 12 * BLOCK..14 * BLOCK);

        assert_eq!(found(&cache, Side::Read, 11), Some((10, 2)));
        assert_eq!(found(&cache, Side::Read, 12), None);
        assert_eq!(found(&cache, Side::Read, 13), None);
        assert_eq!(found(&cache, Side::Read, 19), Some((14, 6)));
        let rest = cache.lookup(Side::Read, 19 * BLOCK).ok_or(ENOENT)?;
        assert_eq!(rest.addr, (1 << 30) + 14 * BLOCK);
        Ok(())
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() -> Result {
        let (pool, cache) = roomy()?;
        for record in [mapped(0..4, 8 << 30), mapped(8..12, 8 << 30)] {
            assert!(insert(&cache, &pool, Side::Read, &record));
        }
        assert_eq!(pool.ranges(), 2);

        assert!(insert(&cache, &pool, Side::Read, &mapped(4..8, 8 << 30)));
        assert_eq!(pool.ranges(), 1);
        assert_eq!(found(&cache, Side::Read, 5), Some((0, 12)));

        // Holes have no addresses that could continue each other.
        for record in [hole(12..14), hole(14..16)] {
            assert!(insert(&cache, &pool, Side::Read, &record));
        }
        assert_eq!(found(&cache, Side::Read, 15), Some((12, 4)));
        Ok(())
    }

    #[test]
    fn the_sides_are_no_neighbours() -> Result {
        let last = hole(0x7_ffff_ffff_ff00..0x8_0000_0000_0000);
        let first = hole(0..1);
        let records = [(Side::Read, &last), (Side::Write, &first)];

        for order in [[0, 1], [1, 0]] {
            let (pool, cache) = roomy()?;
            for (side, record) in order.map(|index| records[index]) {
                assert!(insert(&cache, &pool, side, record));
            }

            assert_eq!(pool.ranges(), 2);
            assert_eq!(found(&cache, Side::Write, 0), Some((0, 1)));
            assert_eq!(
                found(&cache, Side::Read, 0x7_ffff_ffff_ff80),
                Some((0x7_ffff_ffff_ff00, 0x100))
            );
        }
        Ok(())
    }

    #[test]
    fn nothing_is_kept_beyond_all_files() -> Result {
        let (pool, cache) = roomy()?;
        let end = 1 << 63;

        // One that goes on beyond is cut, one that starts there is left out.
        let beyond = fuse_iomap_io {
            length: u64::MAX - BLOCK + 1,
            ..hole(1..2)
        };
        assert!(insert(&cache, &pool, Side::Read, &beyond));
        assert!(insert(
            &cache,
            &pool,
            Side::Read,
            &hole(end / BLOCK..end / BLOCK + 1)
        ));

        let record = cache.lookup(Side::Read, end - 1).ok_or(ENOENT)?;
        assert_eq!((record.offset, record.length), (BLOCK, end - BLOCK));
        assert!(cache.lookup(Side::Read, end).is_none());
        assert!(cache.lookup(Side::Write, 0).is_none());
        assert_eq!(pool.ranges(), 1);

        cache.invalidate(&BOTH, BLOCK..u64::MAX);
        assert_eq!(pool.ranges(), 0);
        Ok(())
    }

    #[test]
    fn an_end_that_means_something_stays() -> Result {
        for flag in [
            bindings::FUSE_IOMAP_F_BOUNDARY,
            bindings::FUSE_IOMAP_F_ANON_WRITE,
            bindings::FUSE_IOMAP_F_ATOMIC_BIO,
            bindings::FUSE_IOMAP_F_WANT_IOMAP_END,
        ] {
            let (pool, cache) = roomy()?;
            for blocks in [0..4, 4..8] {
                let record = fuse_iomap_io {
                    flags: flag as u16,
                    ..mapped(blocks, 1 << 30)
                };
                assert!(insert(&cache, &pool, Side::Read, &record));
            }
            assert_eq!(found(&cache, Side::Read, 3), Some((0, 4)));
            assert_eq!(found(&cache, Side::Read, 4), Some((4, 4)));
        }
        Ok(())
    }

    #[test]
    fn flags_about_the_answer_are_not_kept() -> Result {
        let (pool, cache) = roomy()?;
        // Bit 10 says that the mapping is to be cached.
        for (blocks, flags) in [(0..4, 1 << 10), (4..8, 0)] {
            let record = fuse_iomap_io {
                flags,
                ..mapped(blocks, 1 << 30)
            };
            assert!(insert(&cache, &pool, Side::Read, &record));
        }

        let record = cache.lookup(Side::Read, 0).ok_or(ENOENT)?;
        assert_eq!((record.flags, record.length), (0, 8 * BLOCK));
        Ok(())
    }

    #[test]
    fn what_is_true_only_once_is_not_kept() -> Result {
        let inline = fuse_iomap_io {
            type_: bindings::FUSE_IOMAP_TYPE_INLINE as u16,
            ..hole(0..4)
        };
        let new = fuse_iomap_io {
            flags: bindings::FUSE_IOMAP_F_NEW as u16,
            ..mapped(0..4, 1 << 30)
        };
        let pure_overwrite = fuse_iomap_io {
            type_: bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE as u16,
            ..hole(0..4)
        };

        for (side, record) in [
            (Side::Read, inline),
            (Side::Write, inline),
            (Side::Read, new),
            (Side::Write, new),
            (Side::Read, pure_overwrite),
        ] {
            let (pool, cache) = roomy()?;
            assert!(insert(&cache, &pool, side, &mapped(0..8, 2 << 30)));
            assert!(insert(&cache, &pool, side, &record));

            // But it is known that something else is no longer true.
            assert_eq!(found(&cache, side, 3), None);
            assert_eq!(found(&cache, side, 4), Some((4, 4)));
        }

        let (pool, cache) = roomy()?;
        assert!(insert(&cache, &pool, Side::Write, &pure_overwrite));
        assert_eq!(found(&cache, Side::Write, 0), Some((0, 4)));
        Ok(())
    }

    #[test]
    fn late_answers_are_not_kept() -> Result {
        let (pool, cache) = roomy()?;
        let record = mapped(0..4, 1 << 30);
        let records = [(Side::Read, &record)];

        // Also before there is anything that could be dropped.
        let before = cache.generation();
        cache.invalidate(&[Side::Write], 100 * BLOCK..101 * BLOCK);
        assert!(!cache.insert_since(&pool, before, None, records));
        assert_eq!(found(&cache, Side::Read, 0), None);

        let before = cache.generation();
        assert!(cache.insert_since(&pool, before, None, records));
        assert!(cache.insert_since(&pool, before, None, records));

        // News make all other answers late, and an upsert does.
        let late = mapped(0..4, 2 << 30);
        assert!(cache.insert_since(&pool, before, Some(100 * BLOCK..101 * BLOCK), records));
        assert!(!cache.insert_since(&pool, before, None, [(Side::Read, &late)]));
        let before = cache.generation();
        cache.upsert(&pool, records)?;
        assert!(!cache.insert_since(&pool, before, None, [(Side::Read, &late)]));

        let record = cache.lookup(Side::Read, 0).ok_or(ENOENT)?;
        assert_eq!(record.addr, 1 << 30);
        Ok(())
    }

    #[test]
    fn late_news_are_news() -> Result {
        let (pool, cache) = roomy()?;
        let (old, new) = (mapped(0..8, 1 << 30), mapped(0..8, 2 << 30));
        assert!(insert(&cache, &pool, Side::Read, &old));

        let before = cache.generation();
        cache.invalidate(&BOTH, 100 * BLOCK..101 * BLOCK);
        assert!(!cache.insert_since(&pool, before, Some(0..4 * BLOCK), [(Side::Read, &new)]));

        assert_eq!(found(&cache, Side::Read, 3), None);
        let record = cache.lookup(Side::Read, 4 * BLOCK).ok_or(ENOENT)?;
        assert_eq!(record.addr, (1 << 30) + 4 * BLOCK);
        Ok(())
    }

    #[test]
    fn nothing_is_dropped_of_an_empty_range() -> Result {
        let (pool, cache) = roomy()?;
        assert!(insert(&cache, &pool, Side::Read, &mapped(0..8, 1 << 30)));

        cache.invalidate(&BOTH, 4 * BLOCK..4 * BLOCK);
        #[expect(clippy::reversed_empty_ranges, reason = "that is the test")]
        cache.invalidate(&BOTH, 5 * BLOCK..4 * BLOCK);
        cache.invalidate(&BOTH, 0..0);

        assert_eq!(found(&cache, Side::Read, 4), Some((0, 8)));
        Ok(())
    }
}
