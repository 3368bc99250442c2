// SPDX-License-Identifier: GPL-2.0 OR MIT
//! fadvise: what fills the page cache waits for what changes the file.

use super::bench::{Bench, scenario};
use super::write::{create, name, pattern, rule};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{cool, pread, same};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_op;
use lab::client::Lab;
use lab::misbehave::Action;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SIZE: usize = 1 << 20;
const BLOCK: usize = 4096;

fn subject(lab: &Lab, way: &str, seed: u64) -> Result<(File, Vec<u8>), String> {
    let file = create(&lab.path(&name(way)))?;
    let model = pattern(seed, SIZE);
    file.write_all_at(&model, 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    Ok((file, model))
}

fn advise(file: &File, advice: Advice) -> Outcome {
    fadvise(file, 0, None, advice).map_err(|e| format!("fadvise {advice:?}: {e}"))
}

/// Asking for data reads it, and it is what there is.
fn reads_ahead(lab: &mut Lab) -> Outcome {
    let (file, model) = subject(lab, "unwritten", 31)?;
    cool(&file)?;
    advise(&file, Advice::WillNeed)?;
    let path = name("unwritten");
    // What is read now needs no more questions, once the reading is done.
    same(
        0,
        &pread(&file, 0, SIZE).map_err(|e| e.to_string())?,
        &model,
    )?;
    let before = lab.activity(&path)?.begins.len();
    advise(&file, Advice::WillNeed)?;
    same(
        0,
        &pread(&file, 0, SIZE).map_err(|e| e.to_string())?,
        &model,
    )?;
    let asked = lab.activity(&path)?.begins.len() - before;
    ensure!(asked == 0, "what is cached was asked for {asked} times");
    Ok(())
}

/// While a write holds the file, what would fill its page cache waits, and what would not does not.
fn waits(lab: &mut Lab) -> Outcome {
    const HELD: Duration = Duration::from_millis(700);
    let (file, _) = subject(lab, "unwritten", 32)?;
    let delay = Action::Delay {
        ms: HELD.as_millis() as u64,
        interruptible: false,
    };
    let writes = (iomap_op::WRITE, iomap_op::WRITEBACK);
    lab.set_rules(vec![rule("IOMAP_BEGIN", &name("unwritten"), writes, delay)])?;
    let start = Instant::now();
    let (quick, slow) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| file.write_all_at(&[1; BLOCK], SIZE as u64 * 2));
        std::thread::sleep(HELD / 7);
        advise(&file, Advice::Sequential)?;
        let quick = start.elapsed();
        // All of it is in the page cache, so that this does not ask.
        advise(&file, Advice::WillNeed)?;
        let slow = start.elapsed();
        match writer.join() {
            Ok(Ok(())) => Ok((quick, slow)),
            other => Err(format!("write: {other:?}")),
        }
    })?;
    lab.set_rules(Vec::new())?;
    ensure!(quick < HELD, "SEQUENTIAL has waited {quick:?}");
    ensure!(slow >= HELD, "WILLNEED has waited {slow:?} only");
    Ok(())
}

/// Filling the page cache races with blocks that go away: nothing old is left in it.
fn races(lab: &mut Lab, way: &str, rounds: usize) -> Outcome {
    let (file, mut model) = subject(lab, way, 33)?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let fill = || {
            while !stop.load(Ordering::Relaxed) {
                advise(&file, Advice::WillNeed)?;
            }
            Ok::<_, String>(())
        };
        let threads = [scope.spawn(fill), scope.spawn(fill)];
        let changed = change(&file, &mut model, rounds);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        changed
    })
}

fn change(file: &File, model: &mut [u8], rounds: usize) -> Outcome {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for round in 0..rounds {
        let at = round * 7 % (SIZE / BLOCK - 8) * BLOCK;
        let range = at..at + (1 + round % 8) * BLOCK;
        let length = range.len() as u64;
        if round % 3 == 2 {
            model[range.clone()].fill(round as u8 | 1);
            file.write_all_at(&model[range.clone()], at as u64)
                .map_err(|e| format!("write: {e}"))?;
            file.sync_all().map_err(|e| format!("fsync: {e}"))?;
            cool(file)?;
        } else {
            fallocate(file, punch, at as u64, length).map_err(|e| format!("punch: {e}"))?;
            model[range.clone()].fill(0);
        }
        let got = pread(file, at as u64, range.len()).map_err(|e| format!("read: {e}"))?;
        same(at as u64, &got, &model[range]).map_err(|e| format!("round {round}: {e}"))?;
    }
    let got = pread(file, 0, SIZE).map_err(|e| format!("read: {e}"))?;
    same(0, &got, model)
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let rounds = machine.options.count.unwrap_or(60) as usize;
    let Some(mut bench) = Bench::start(tap, machine, &scenario(97, None)) else {
        return;
    };
    let lab = &mut bench.lab;
    tap.case("WILLNEED reads", || reads_ahead(lab));
    tap.case("WILLNEED waits for a write", || waits(lab));
    for way in ["in-place", "cow", "delalloc"] {
        tap.case(&format!("{way}: WILLNEED and holes"), || {
            races(lab, way, rounds)
        });
    }
    super::finish(tap, bench.lab);
}
