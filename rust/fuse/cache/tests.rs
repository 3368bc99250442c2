// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the mapping cache: against a model, its bounds, and readers that race with
//! writers.
#![deny(unsafe_code)]

mod bounds;
mod race;
mod rules;

use super::{
    pool::RANGE_BYTES,
    Bounds,
    Cache,
    Pool,
    BOTH, //
};
use crate::mapping::{Side, NO_ADDR};
use core::ops::Range;
use kernel::{
    bindings::{self, fuse_iomap_io},
    prelude::*, //
};

/// Size of a block.
const BLOCK: u64 = 4096;

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    /// Starts a sequence.
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

/// A pool that holds as many ranges of an inode and altogether.
fn pool(inode: usize, connection: usize) -> Result<Pool> {
    Pool::new(Bounds {
        inode: inode * RANGE_BYTES,
        connection: connection * RANGE_BYTES,
    })
}

/// A record that says that `blocks` are where they are plus `delta` bytes.
fn mapped(blocks: Range<u64>, delta: u64) -> fuse_iomap_io {
    fuse_iomap_io {
        offset: blocks.start * BLOCK,
        length: (blocks.end - blocks.start) * BLOCK,
        addr: blocks.start * BLOCK + delta,
        type_: bindings::FUSE_IOMAP_TYPE_MAPPED as u16,
        flags: 0,
        dev: 1,
    }
}

/// A record that says that there is nothing in `blocks`.
fn hole(blocks: Range<u64>) -> fuse_iomap_io {
    fuse_iomap_io {
        addr: NO_ADDR,
        type_: bindings::FUSE_IOMAP_TYPE_HOLE as u16,
        dev: 0,
        ..mapped(blocks, 0)
    }
}

/// Bytes of a range of blocks.
fn bytes(blocks: &Range<u64>) -> Range<u64> {
    blocks.start * BLOCK..blocks.end * BLOCK
}

/// Inserts a record as from an answer of now.
fn insert(cache: &Cache, pool: &Pool, side: Side, record: &fuse_iomap_io) -> bool {
    cache.insert_since(pool, cache.generation(), None, [(side, record)])
}

/// What is known of a block: address or `NO_ADDR`, type, flags and device.
type Known = Option<(u64, u16, u16, u32)>;

/// What a record says of the block at `pos`.
fn said(record: &fuse_iomap_io, pos: u64) -> Known {
    let addr = match record.addr {
        NO_ADDR => NO_ADDR,
        addr => addr + (pos - record.offset),
    };
    Some((addr, record.type_, record.flags, record.dev))
}

/// Blocks that the model has.
const BLOCKS: u64 = 192;

/// What a cache has to know, block by block.
struct Model {
    sides: [KVec<Known>; 2],
}

impl Model {
    /// Makes one that knows nothing.
    fn new() -> Result<Self> {
        let side = || KVec::from_elem(None, BLOCKS as usize, GFP_KERNEL);

        Ok(Self {
            sides: [side()?, side()?],
        })
    }

    /// The blocks of a side.
    fn side(&mut self, side: Side) -> &mut [Known] {
        &mut self.sides[side as usize]
    }

    /// Enters a record, for as far as there are blocks.
    fn insert(&mut self, side: Side, record: &fuse_iomap_io) {
        for (block, known) in (0..).zip(self.side(side)) {
            let pos = block * BLOCK;
            if pos >= record.offset && pos - record.offset < record.length {
                *known = said(record, pos);
            }
        }
    }

    /// Removes what is known of some bytes.
    fn erase(&mut self, sides: &[Side], bytes: &Range<u64>) {
        for &side in sides {
            for (block, known) in (0..).zip(self.side(side)) {
                if bytes.contains(&(block * BLOCK)) {
                    *known = None;
                }
            }
        }
    }

    /// What is known of all of `blocks`, if that is the same of each: of an address, the distance.
    fn same(&mut self, side: Side, blocks: &Range<u64>) -> Known {
        let mut all = blocks.clone().map(|block| {
            let (addr, kind, flags, dev) = self.side(side)[block as usize]?;
            let delta = match addr {
                NO_ADDR => NO_ADDR,
                addr => addr.wrapping_sub(block * BLOCK),
            };
            Some((delta, kind, flags, dev))
        });
        let first = all.next()?;

        all.all(|known| known == first).then_some(first)?
    }

    /// Enters that `blocks` have data that is where they are plus `delta` bytes.
    fn written(&mut self, blocks: &Range<u64>, delta: u64) {
        const OVERWRITE: u16 = bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE as u16;
        const KINDS: [u16; 2] = [
            bindings::FUSE_IOMAP_TYPE_UNWRITTEN as u16,
            bindings::FUSE_IOMAP_TYPE_MAPPED as u16,
        ];
        let write = self.same(Side::Write, blocks);
        let is_overwrite = write.is_some_and(|(_, kind, ..)| kind == OVERWRITE);
        let place = if is_overwrite {
            self.same(Side::Read, blocks)
        } else {
            write
        };
        let dirty = bindings::FUSE_IOMAP_F_DIRTY as u16;

        let is_here = place.is_some_and(|(at, kind, flags, dev)| {
            at == delta && KINDS.contains(&kind) && flags & !dirty == 0 && dev == 1
        });
        if !is_here {
            return self.erase(&BOTH, &bytes(blocks));
        }
        let record = fuse_iomap_io {
            flags: dirty,
            ..mapped(blocks.clone(), delta)
        };
        self.insert(Side::Read, &record);
        if !is_overwrite {
            self.insert(Side::Write, &record);
        }
    }

    /// How many ranges there are, if all that can be one are.
    fn ranges(&mut self) -> usize {
        let mut count = 0;
        for side in BOTH {
            let mut before: Known = None;
            for known in self.side(side).iter() {
                let continues = match (before, *known) {
                    (Some((NO_ADDR, ..)), Some((NO_ADDR, ..))) => before == *known,
                    (Some((addr, kind, flags, dev)), after) => {
                        after == Some((addr.wrapping_add(BLOCK), kind, flags, dev))
                    }
                    _ => false,
                };
                if known.is_some() && !continues {
                    count += 1;
                }
                before = *known;
            }
        }
        count
    }

    /// Whether what is found at `block` is what is known: all of it if `exact`, else it may be that
    /// nothing is found.
    fn agrees(&mut self, cache: &Cache, side: Side, block: u64, exact: bool) -> bool {
        let pos = block * BLOCK + BLOCK / 2;
        let Some(record) = cache.lookup(side, pos) else {
            return !exact || self.side(side)[block as usize].is_none();
        };

        record.offset <= pos
            && pos - record.offset < record.length
            && record.offset % BLOCK == 0
            && record.length % BLOCK == 0
            && (0..).zip(self.side(side)).all(|(block, known)| {
                let pos = block * BLOCK;
                pos < record.offset
                    || pos - record.offset >= record.length
                    || *known == said(&record, pos)
            })
    }
}

/// Some blocks, more often few than many.
fn some_blocks(random: &mut Random) -> Range<u64> {
    let start = random.below(BLOCKS);
    let longest = [1, 4, 16, BLOCKS][random.below(4) as usize];

    start..(start + 1 + random.below(longest)).min(BLOCKS)
}

/// Some record.
fn some_record(random: &mut Random) -> (Side, fuse_iomap_io) {
    let blocks = some_blocks(random);
    let side = BOTH[random.below(2) as usize];

    let record = match random.below(8) {
        0 => hole(blocks),
        1 => fuse_iomap_io {
            type_: bindings::FUSE_IOMAP_TYPE_UNWRITTEN as u16,
            ..mapped(blocks, 1 << 40)
        },
        2 => fuse_iomap_io {
            flags: bindings::FUSE_IOMAP_F_SHARED as u16,
            ..mapped(blocks, 1 << 40)
        },
        3 if side == Side::Write => fuse_iomap_io {
            type_: bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE as u16,
            ..hole(blocks)
        },
        4 => fuse_iomap_io {
            dev: 2,
            ..mapped(blocks, 1 << 40)
        },
        // Few places, so that there is something to merge.
        _ => mapped(blocks, (1 + random.below(2)) << 40),
    };
    (side, record)
}

/// Does something to a cache and to the model, and returns whether the cache said what it had to.
fn step(random: &mut Random, cache: &Cache, pool: &Pool, model: &mut Model) -> bool {
    let (side, record) = some_record(random);
    let records = [(side, &record)];
    let generation = cache.generation();

    match random.below(18) {
        0..6 => {
            model.insert(side, &record);
            cache.insert_since(pool, generation, None, records)
        }
        6..8 => {
            model.insert(side, &record);
            cache.upsert(pool, records).is_ok() && cache.generation() != generation
        }
        8 => {
            // An answer that is late.
            cache.invalidate(&BOTH, 0..0);
            !cache.insert_since(pool, generation, None, records)
        }
        9 => {
            // News, in time and with something to cache.
            let changed = bytes(&some_blocks(random));
            model.erase(&BOTH, &changed);
            model.insert(side, &record);
            cache.insert_since(pool, generation, Some(changed), records)
                && cache.generation() != generation
        }
        10 => {
            // News that is late.
            let changed = bytes(&some_blocks(random));
            model.erase(&BOTH, &changed);
            cache.invalidate(&[], 0..0);
            !cache.insert_since(pool, generation, Some(changed), records)
        }
        11 | 12 => {
            // Most blocks that are unwritten are there.
            let (blocks, delta) = (some_blocks(random), (1 + random.below(8) / 7) << 40);
            model.written(&blocks, delta);
            cache.written(bytes(&blocks), 1, blocks.start * BLOCK + delta);
            cache.generation() != generation
        }
        13 => {
            // To the end of the file.
            let range = random.below(BLOCKS) * BLOCK..u64::MAX;
            model.erase(&BOTH, &range);
            cache.invalidate(&BOTH, range);
            cache.generation() != generation
        }
        _ => {
            let range = bytes(&some_blocks(random));
            let sides: &[Side] = match random.below(3) {
                0 => &[Side::Read],
                1 => &[Side::Write],
                _ => &BOTH,
            };
            model.erase(sides, &range);
            cache.invalidate(sides, range);
            cache.generation() != generation
        }
    }
}

/// Does `steps` steps; then returns how many ranges are left, if all was as it had to be.
///
/// Without `limit`, nothing that is known may be forgotten.
fn run(seed: u64, steps: u32, limit: Option<usize>) -> Result<usize> {
    let mut random = Random::new(seed);
    let pool = pool(limit.unwrap_or(1 << 20), 1 << 20)?;
    let cache = Cache::new();
    let mut model = Model::new()?;
    let mut most = 0;

    for number in 0..steps {
        if !step(&mut random, &cache, &pool, &mut model) {
            pr_err!("seed {}: step {} failed\n", seed, number);
            return Err(EINVAL);
        }
        for _ in 0..2 {
            let (side, block) = (BOTH[random.below(2) as usize], random.below(BLOCKS));
            if !model.agrees(&cache, side, block, limit.is_none()) {
                pr_err!("seed {}: wrong after step {}\n", seed, number);
                return Err(EINVAL);
            }
        }

        let ranges = pool.ranges();
        let right = match limit {
            Some(limit) => ranges <= limit,
            None => number % 64 != 0 || ranges == model.ranges(),
        };
        if !right {
            pr_err!("seed {}: {} ranges after step {}\n", seed, ranges, number);
            return Err(EINVAL);
        }
        most = most.max(ranges);
    }

    drop(cache);
    if (pool.caches(), pool.ranges()) != (0, 0) {
        pr_err!("seed {}: {} ranges left\n", seed, pool.ranges());
        return Err(EINVAL);
    }
    Ok(most)
}

#[kunit_tests(fuse_iomap_cache_model)]
mod model {
    use super::*;

    #[test]
    fn it_is_the_model() {
        for seed in 1..=4 {
            let most = run(seed, 100_000, None);
            // Otherwise nothing was tested.
            assert!(most.is_ok_and(|most| most > 40));
        }
    }

    #[test]
    fn it_says_nothing_wrong_when_it_has_to_forget() {
        for limit in [1, 2, 7, 30] {
            assert_eq!(run(limit as u64, 25_000, Some(limit)), Ok(limit));
        }
    }
}
