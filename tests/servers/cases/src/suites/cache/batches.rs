// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Completions are told together where the server takes that.

use super::super::bench::open_direct;
use super::super::write::with_good_lab;
use crate::aio::{self, Piece};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{cool, pread, same};
use crate::tap::{Outcome, Tap, comment};
use lab::caching::CacheSpec;
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::random::Random;
use lab::scenario::Scenario;
use rustix::fs::{FallocateFlags, fallocate};
use std::os::unix::fs::FileExt;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 512;

/// Writes every other block of a file of unwritten ones, in any order; returns requests and records.
fn load(lab: &mut Lab, direct: bool, depth: usize) -> Result<(u64, u64), String> {
    let name = format!("{}/file", super::workshop("unwritten", 4096));
    let path = lab.path(&name);
    let file = super::create(&path)?;
    fallocate(&file, FallocateFlags::empty(), 0, BLOCKS * 2 * BLOCK as u64)
        .map_err(|e| format!("fallocate: {e}"))?;
    let mut random = Random::new(3);
    let mut blocks: Vec<u64> = (0..BLOCKS).map(|i| i * 2).collect();
    for i in (1..blocks.len()).rev() {
        blocks.swap(i, random.below(i as u64 + 1) as usize);
    }
    let counters = |lab: &mut Lab| {
        let counters = lab.counters()?;
        let get = |name: &str| counters.get(name).copied().unwrap_or(0);
        Ok::<_, String>((get("IOMAP_IOEND"), get("ioend_records")))
    };
    let before = counters(lab)?;
    let mut model = vec![0; BLOCKS as usize * 2 * BLOCK];
    let past = open_direct(&path)?;
    for heap in blocks.chunks(depth) {
        let mut pieces = Vec::new();
        for block in heap {
            let at = *block as usize * BLOCK;
            model[at..at + BLOCK].fill(1 + *block as u8 % 200);
            let data = model[at..at + BLOCK].to_vec();
            if direct {
                pieces.push(Piece::new(at as u64, data));
            } else {
                file.write_all_at(&data, at as u64)
                    .map_err(|e| format!("write: {e}"))?;
            }
        }
        if direct {
            aio::write(&past, &mut pieces).map_err(|e| format!("io_submit: {e}"))?;
            let failed = pieces.iter().find(|p| p.result != BLOCK as i64);
            ensure!(failed.is_none(), "{:?}", failed.map(|p| p.result));
        }
    }
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let after = counters(lab)?;
    cool(&file)?;
    let got = pread(&file, 0, model.len() + 1).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &model)?;
    Ok((after.0 - before.0, after.1 - before.1))
}

fn slow(lab: &mut Lab) -> Outcome {
    lab.set_rules(vec![Rule {
        op: "IOMAP_IOEND".into(),
        path: None,
        with: 0,
        without: 0,
        nth: None,
        action: Action::Delay {
            ms: 5,
            interruptible: false,
        },
        then_errno: None,
    }])?;
    Ok(())
}

fn batches(machine: &Machine, scenario: &Scenario, direct: bool, on: bool) -> Outcome {
    let mut scenario = scenario.clone();
    scenario.options.cache = Some(CacheSpec {
        batch_ioend: on,
        ..CacheSpec::default()
    });
    // So that what is written lies apart only where it was written apart.
    scenario.options.longest = 0;
    with_good_lab(machine, &scenario, |lab| {
        slow(lab)?;
        let (requests, records) = load(lab, direct, 256)?;
        comment(&format!("{requests} IOENDs for {records} completions"));
        ensure!(records >= BLOCKS / 8, "only {records} completions");
        if on {
            let most = BLOCKS / 10;
            ensure!(
                requests <= most,
                "{requests} IOENDs for {BLOCKS} writes, {most} would do"
            );
        } else {
            ensure!(
                requests == records,
                "{requests} IOENDs tell of {records} completions"
            );
        }
        Ok(())
    })
}

/// Runs them.
pub fn run(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    for (how, direct) in [("writeback", false), ("direct I/O", true)] {
        for on in [true, false] {
            let what = if on { "together" } else { "one by one" };
            tap.case(&format!("{how}: completions are told {what}"), || {
                batches(machine, scenario, direct, on)
            });
        }
    }
}
