// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Answers to writes garbled at random, with a printed seed: calls fail, and that is all. Nothing is
//! written where no file ever was, and nobody reads what belongs to nobody.

use super::super::bench::Bench;
use super::super::fresh_seed;
use super::create;
use super::threads::{SLOT, check_slots, mark};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{cool, pread};
use crate::sys;
use crate::tap::{Outcome, Tap, comment};
use lab::misbehave::RandomSpec;
use lab::random::Random;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;

const SLOTS: u64 = 300;
const CALLS: usize = 500;
/// In place, a server must believe that what it has told to writeback is written.
const WAYS: [&str; 4] = ["unwritten", "cow", "cow-always", "delalloc"];

/// One call; whether it succeeded does not matter.
fn one(file: &File, random: &mut Random) -> Outcome {
    let slot = random.below(SLOTS);
    let data = [mark(slot); SLOT as usize];
    let (at, length) = (random.below(SLOTS * SLOT), 1 + random.below(20_000));
    let keep = FallocateFlags::KEEP_SIZE;
    let done = match random.below(12) {
        0..4 => file.write_at(&data, slot * SLOT).is_ok(),
        4 => sys::mmap_poke(file, slot * SLOT, &data).is_ok(),
        5 => file.sync_data().is_ok(),
        6 => file.set_len(at).is_ok(),
        7 => fallocate(file, keep | FallocateFlags::PUNCH_HOLE, at, length).is_ok(),
        8 => fallocate(file, keep | FallocateFlags::ZERO_RANGE, at, length).is_ok(),
        9 => fallocate(file, keep, at, length).is_ok(),
        10 => cool(file).is_ok(),
        _ => match pread(file, at, length as usize) {
            Ok(data) => {
                check_slots(at, &data)?;
                true
            }
            Err(_) => false,
        },
    };
    // Whatever came of it, the file goes on.
    let _ = done;
    Ok(())
}

fn storm(bench: &mut Bench, way: &str, block: u32, seed: u64) -> Outcome {
    let dir = super::workshop(way, block);
    let name = format!("{dir}/random");
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    bench.lab.set_random(Some(RandomSpec {
        seed,
        of_256: 60,
        forbidden_only: true,
        path: Some(name.clone()),
    }))?;
    let mut random = Random::new(seed);
    let result = (0..CALLS).try_for_each(|_| one(&file, &mut random));
    let garbled = bench.lab.garbled()?.len();
    bench.lab.set_random(None)?;
    result?;
    ensure!(garbled > 20, "only {garbled} answers were garbled");
    // What was lost was told of; what is there now must be the same everywhere.
    let _ = file.sync_all();
    cool(&file)?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let data = pread(&file, 0, size as usize + 1).map_err(|e| format!("read: {e}"))?;
    check_slots(0, &data)?;
    ensure!(data.len() as u64 == size, "{} bytes of {size}", data.len());
    file.set_len(200_000)
        .map_err(|e| format!("truncate afterwards: {e}"))?;
    let data = pread(&file, 0, 200_000).map_err(|e| format!("read: {e}"))?;
    bench.compare(&file, &name, &data)?;
    bench.violations()?;
    std::fs::remove_file(&path).map_err(|e| format!("unlink: {e}"))
}

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench, machine: &Machine) {
    let fresh = machine.options.seed.unwrap_or_else(fresh_seed);
    comment(&format!("fresh seed {fresh}; --seed repeats it"));
    for way in WAYS {
        for block in bench.blocks.clone() {
            for seed in [1, fresh] {
                let name = format!("{way}/{block}: garbled answers, seed {seed}");
                tap.case(&name, || storm(bench, way, block, seed));
            }
        }
    }
}
