// SPDX-License-Identifier: GPL-2.0

//! Readers that race with the server, with answers and with reclaim.
//!
//! The server numbers its changes.  What is cached of a block carries the number of the change that
//! it is from, as the device and in the address.  When a change has reached the cache, nobody may
//! find anything older of the blocks that it was made to.
#![deny(unsafe_code)]

use super::*;
use kernel::{
    new_mutex,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc,
        Mutex, //
    },
    time::{delay::fsleep, Delta, Instant, Monotonic},
    workqueue, //
};

/// Blocks of the file.
const FILE: usize = 48;

/// How long it runs.
const RUN: Delta = Delta::from_millis(400);

/// Long enough to let other tasks run: for less, the CPU is kept.
const PAUSE: Delta = Delta::from_micros(20);

/// What the tasks share.
#[pin_data]
struct Race {
    cache: Cache,
    pool: Pool,
    /// What the server knows: the last change to each block.
    #[pin]
    truth: Mutex<[u32; FILE]>,
    /// The last change to each block that has reached the cache.
    reached: [Atomic<u32>; FILE],
    start: Instant<Monotonic>,
    running: Atomic<u32>,
    found: Atomic<u32>,
    /// Found, but older than what has reached the cache.
    stale: Atomic<u32>,
    /// Found, but not what anybody has said.
    wrong: Atomic<u32>,
    late: Atomic<u32>,
}

/// What the server says of some blocks that were last changed by `change`.
fn record(blocks: Range<u64>, change: u32) -> fuse_iomap_io {
    fuse_iomap_io {
        dev: change,
        ..mapped(blocks, u64::from(change) << 24)
    }
}

/// Some blocks of the file.
fn blocks(random: &mut Random) -> Range<u64> {
    let start = random.below(FILE as u64);

    start..(start + 1 + random.below(12)).min(FILE as u64)
}

impl Race {
    /// Prepares it, with the given bound for the inode, in ranges.
    fn new(ranges: usize) -> Result<Arc<Self>> {
        Arc::pin_init(
            try_pin_init!(Self {
                cache: Cache::new(),
                pool: pool(ranges, 1000)?,
                truth <- new_mutex!([0; FILE]),
                reached: [const { Atomic::new(0u32) }; FILE],
                start: Instant::now(),
                running: Atomic::new(0u32),
                found: Atomic::new(0u32),
                stale: Atomic::new(0u32),
                wrong: Atomic::new(0u32),
                late: Atomic::new(0u32),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Has another task do something.
    fn spawn(self: &Arc<Self>, task: impl FnOnce(&Self) + Send + 'static) -> Result {
        let race = self.clone();

        self.running.fetch_add(1, Relaxed);
        let spawned = workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
            task(&race);
            race.running.fetch_sub(1, Release);
        });
        if spawned.is_err() {
            self.running.fetch_sub(1, Relaxed);
        }
        Ok(spawned?)
    }

    /// Waits until all tasks are done.
    fn wait(&self) {
        while self.running.load(Acquire) > 0 {
            fsleep(Delta::from_millis(1));
        }
    }

    /// Lets other tasks run now and then, also if there is one CPU and no preemption; returns
    /// whether it is still time.
    fn goes_on(&self, random: &mut Random) -> bool {
        if random.below(128) == 0 {
            fsleep(PAUSE);
        }
        self.start.elapsed() < RUN
    }

    /// The server changes something, and has the kernel drop it or tells what is new.
    fn change(&self, random: &mut Random) {
        let mut number = 0;

        while self.goes_on(random) {
            let blocks = blocks(random);
            number += 1;
            for block in blocks.clone() {
                self.truth.lock()[block as usize] = number;
            }

            if random.below(2) == 0 {
                let said = record(blocks.clone(), number);
                // Without memory it has been dropped.
                let _ = self.cache.upsert(&self.pool, [(Side::Read, &said)]);
            } else {
                self.cache.invalidate(&[Side::Read], bytes(&blocks));
            }
            for block in blocks {
                self.reached[block as usize].store(number, Release);
            }
        }
    }

    /// Somebody asks the server, and puts the answer into the cache some time later.
    fn ask(&self, random: &mut Random) {
        while self.goes_on(random) {
            let blocks = blocks(random);
            let generation = self.cache.generation();
            let (end, change) = {
                let truth = self.truth.lock();
                let change = truth[blocks.start as usize];
                let same = blocks
                    .clone()
                    .take_while(|&block| truth[block as usize] == change)
                    .count();
                (blocks.start + same as u64, change)
            };
            if random.below(4) == 0 {
                fsleep(PAUSE);
            }

            let said = record(blocks.start..end, change);
            let records = [(Side::Read, &said)];
            if !self
                .cache
                .insert_since(&self.pool, generation, None, records)
            {
                self.late.fetch_add(1, Relaxed);
            }
        }
    }

    /// Somebody reads.
    fn read(&self, random: &mut Random) {
        while self.goes_on(random) {
            let block = random.below(FILE as u64);
            let mut reached = [0; FILE];
            for (copy, number) in reached.iter_mut().zip(&self.reached) {
                *copy = number.load(Acquire);
            }

            let Some(record) = self.cache.lookup(Side::Read, block * BLOCK) else {
                continue;
            };
            self.found.fetch_add(1, Relaxed);
            let is_said = record.offset <= block * BLOCK
                && block * BLOCK - record.offset < record.length
                && record.addr.wrapping_sub(record.offset) == u64::from(record.dev) << 24;
            if !is_said {
                self.wrong.fetch_add(1, Relaxed);
            }

            let blocks = record.offset / BLOCK..(record.offset + record.length) / BLOCK;
            let is_stale = (0..)
                .zip(reached)
                .any(|(block, reached)| blocks.contains(&block) && record.dev < reached);
            if is_stale {
                self.stale.fetch_add(1, Relaxed);
            }
        }
    }

    /// Memory is scarce.
    fn shrink(&self, random: &mut Random) {
        while self.goes_on(random) {
            fsleep(Delta::from_micros(500));
            self.pool.shrink(1);
        }
    }
}

/// Runs it with the given bound for the inode, in ranges.
fn race(ranges: usize, seed: u64) -> Result<Arc<Race>> {
    let race = Race::new(ranges)?;
    let tasks: [fn(&Race, &mut Random); 6] = [
        Race::change,
        Race::ask,
        Race::ask,
        Race::read,
        Race::read,
        Race::shrink,
    ];
    for (seed, task) in (seed * 100..).zip(tasks) {
        race.spawn(move |race| task(race, &mut Random::new(seed)))?;
    }
    race.wait();
    Ok(race)
}

#[kunit_tests(fuse_iomap_cache_race)]
mod races {
    use super::*;

    #[test]
    fn nobody_finds_what_has_changed() -> Result {
        for (seed, ranges) in [(1, 1000), (2, 1000), (3, 5)] {
            let race = race(ranges, seed)?;

            assert_eq!(race.wrong.load(Relaxed), 0);
            assert_eq!(race.stale.load(Relaxed), 0);
            // It was a race.
            assert!(race.found.load(Relaxed) > 100);
            assert!(race.late.load(Relaxed) > 0);
            pr_info!(
                "race {}: {} found, {} answers were late\n",
                seed,
                race.found.load(Relaxed),
                race.late.load(Relaxed)
            );
        }
        Ok(())
    }
    #[test]
    fn an_answer_is_late_before_anything_is_dropped() -> Result {
        let race = Race::new(100)?;
        assert!(insert(
            &race.cache,
            &race.pool,
            Side::Read,
            &record(0..4, 1)
        ));
        let generation = race.cache.generation();

        // While the lock is held, nothing is dropped.
        let extents = race.cache.extents.as_ref().ok_or(ENOENT)?;
        let known = extents.change(|_| {
            race.spawn(|race| race.cache.invalidate(&BOTH, 0..BLOCK))?;
            let start = Instant::<Monotonic>::now();
            while race.cache.generation() == generation && start.elapsed() < Delta::from_secs(5) {
                fsleep(PAUSE);
            }
            Ok::<_, Error>(race.cache.generation() != generation)
        });
        assert_eq!(known, Ok(true));

        race.wait();
        assert!(race.cache.lookup(Side::Read, 0).is_none());
        Ok(())
    }
}
