// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Several threads at one file.

use super::super::bench::Bench;
use super::super::bench::case::ways;
use super::{create, name};
use crate::ensure;
use crate::files::{cool, errno, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap, doing};
use lab::random::Random;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const APPENDERS: u8 = 4;
const RECORDS: usize = 60;
/// Each slot has a byte of its own.
pub(super) const SLOT: u64 = 512;
const SLOTS: u64 = 400;
const STORM: Duration = Duration::from_millis(400);

/// Records that several threads append stay whole.
fn appends(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=APPENDERS)
            .map(|id| {
                let path = &path;
                scope.spawn(move || -> Outcome {
                    let file = OpenOptions::new().append(true).open(path);
                    let mut file = file.map_err(|e| e.to_string())?;
                    let mut random = Random::new(id.into());
                    for _ in 0..RECORDS {
                        let length = 3 + random.below(4000) as u16;
                        let mut record = vec![id; length.into()];
                        record[1..3].copy_from_slice(&length.to_le_bytes());
                        let n = file.write(&record).map_err(|e| e.to_string())?;
                        ensure!(n == record.len(), "a short write");
                    }
                    Ok(())
                })
            })
            .collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, Outcome>| t.join();
        threads
            .into_iter()
            .try_for_each(|t| join(t).map_err(|_| "a thread panicked")?)
    })?;
    let data = std::fs::read(&path).map_err(|e| e.to_string())?;
    let mut counts = [0; APPENDERS as usize];
    let mut at = 0;
    while at < data.len() {
        let id = data[at];
        ensure!((1..=APPENDERS).contains(&id), "at {at}: no record starts");
        let head: [u8; 2] = data
            .get(at + 1..at + 3)
            .and_then(|h| h.try_into().ok())
            .ok_or("the last record is cut")?;
        let end = at + usize::from(u16::from_le_bytes(head));
        let body = data.get(at + 3..end).ok_or("the last record is cut")?;
        ensure!(body.iter().all(|b| *b == id), "at {at}: records are mixed");
        counts[usize::from(id) - 1] += 1;
        at = end;
    }
    ensure!(counts == [RECORDS; APPENDERS as usize], "{counts:?}");
    bench.compare(&file, &name, &data)
}

/// What a slot may hold: zeroes, or one byte all over that names the slot.
pub(super) const fn mark(slot: u64) -> u8 {
    1 + (slot % 250) as u8
}

/// Nothing but zeroes and the marks of the slots.
pub(super) fn check_slots(offset: u64, data: &[u8]) -> Outcome {
    for (i, byte) in data.iter().enumerate() {
        let at = offset + i as u64;
        let mark = mark(at / SLOT);
        ensure!(
            *byte == 0 || *byte == mark,
            "at {at}: {byte:#04x} is neither 0 nor {mark:#04x}"
        );
    }
    Ok(())
}

fn one(file: &File, random: &mut Random, part: u64) -> Outcome {
    // Each thread writes slots of its own, so that all of them share pages.
    let slot = random.below(SLOTS / 4) * 4 + part % 4;
    let data = [mark(slot); SLOT as usize];
    let done = |what: &str, r: std::io::Result<()>| match r {
        // The file may have become shorter under a mapping.
        Err(e) if errno(&e) == libc::EFAULT && what == "mmap" => Ok(()),
        r => r.map_err(|e| format!("{what}: {e}")),
    };
    match random.below(16) {
        0..8 => done("write", file.write_all_at(&data, slot * SLOT)),
        8..11 => done("mmap", sys::mmap_poke(file, slot * SLOT, &data)),
        11 => done("fsync", file.sync_all()),
        12 => cool(file),
        _ => {
            let at = random.below(SLOTS * SLOT);
            let got = pread(file, at, 20_000).map_err(|e| format!("read: {e}"))?;
            check_slots(at, &got)
        }
    }
}

/// Truncates, punches and allocates what others write.
fn disturb(file: &File, random: &mut Random) -> Outcome {
    use rustix::fs::{FallocateFlags, fallocate};
    let at = random.below(SLOTS * SLOT);
    let len = 1 + random.below(30_000);
    let keep = FallocateFlags::KEEP_SIZE;
    let result = match random.below(6) {
        0 => file.set_len(at),
        1 | 2 => {
            Ok(()).and_then(|()| Ok(fallocate(file, keep | FallocateFlags::PUNCH_HOLE, at, len)?))
        }
        3 => Ok(()).and_then(|()| Ok(fallocate(file, keep | FallocateFlags::ZERO_RANGE, at, len)?)),
        4 => Ok(()).and_then(|()| Ok(fallocate(file, keep, at, len)?)),
        _ => file.set_len(SLOTS * SLOT),
    };
    result.map_err(|e| format!("truncate or fallocate: {e}"))
}

/// Everybody at once: nobody ever sees what belongs to nobody.
fn storm(bench: &mut Bench, way: &str, block: u32, disturbed: bool) -> Outcome {
    let dir = super::workshop(way, block);
    let path = bench.lab.path(&dir).join("storm");
    let file = create(&path)?;
    file.set_len(SLOTS * SLOT).map_err(|e| e.to_string())?;
    doing(format!("a storm at {way}/{block}"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..5)
            .map(|part| {
                let (file, stop) = (&file, &stop);
                scope.spawn(move || -> Outcome {
                    let mut random = Random::new(part + u64::from(block));
                    while !stop.load(Ordering::Relaxed) {
                        if part == 4 && disturbed {
                            disturb(file, &mut random)?;
                        } else {
                            one(file, &mut random, part)?;
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let start = Instant::now();
        while start.elapsed() < STORM && threads.iter().all(|t| !t.is_finished()) {
            std::thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for thread in threads {
            result = result.and(thread.join().map_err(|_| "a thread panicked")?);
        }
        result
    })?;
    let data = std::fs::read(&path).map_err(|e| e.to_string())?;
    check_slots(0, &data)?;
    bench.compare(&file, &format!("{dir}/storm"), &data)?;
    std::fs::remove_file(&path).map_err(|e| format!("unlink: {e}"))
}

/// Faults at pages that come and go: they fail or they do not, and nothing hangs.
fn faults(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&bench.lab.path(&name))?;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stores: Vec<_> = (0..3)
            .map(|id| {
                let (file, stop) = (&file, &stop);
                scope.spawn(move || -> Outcome {
                    let mut random = Random::new(id);
                    while !stop.load(Ordering::Relaxed) {
                        let at = random.below(60_000);
                        let result = if id == 0 {
                            sys::mmap_peek(file, at, 1000).map(|_| ())
                        } else {
                            sys::mmap_poke(file, at, &[9; 100])
                        };
                        match result {
                            Err(e) if errno(&e) != libc::EFAULT => return Err(e.to_string()),
                            _ => {}
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let mut random = Random::new(77);
        let start = Instant::now();
        let mut result = Ok(());
        while start.elapsed() < STORM && result.is_ok() {
            result = file.set_len(random.below(64_000));
        }
        stop.store(true, Ordering::Relaxed);
        for thread in stores {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        result.map_err(|e| format!("truncate: {e}"))
    })?;
    // Every byte is one that was stored, or nothing.
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let data = pread(&file, 0, 70_000).map_err(|e| format!("read: {e}"))?;
    let wrong = data.iter().position(|b| *b != 0 && *b != 9);
    ensure!(wrong.is_none(), "at {wrong:?}: what nobody stored");
    file.set_len(70_000).map_err(|e| format!("truncate: {e}"))?;
    let mut want = data;
    want.resize(70_000, 0);
    let got = pread(&file, 0, 70_000).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &want)?;
    bench.compare(&file, &name, &want)
}

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (way, _) in ways() {
        tap.case(&format!("{way}: four threads append"), || {
            appends(bench, way)
        });
        tap.case(&format!("{way}: faults against truncate"), || {
            faults(bench, way)
        });
        for block in bench.blocks.clone() {
            tap.case(
                &format!("{way}/{block}: a storm of writes and reads"),
                || storm(bench, way, block, false),
            );
            let name = format!("{way}/{block}: the same, truncated and punched meanwhile");
            tap.case(&name, || storm(bench, way, block, true));
        }
    }
}
