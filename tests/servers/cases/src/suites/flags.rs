// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Flags in attributes that come and go while a file is written: each call succeeds, or fails because of
//! one of them, and the file holds what was written.

use super::bench::{Bench, open_direct, scenario, workshop};
use super::wait_fired;
use super::write::{create, pattern, rule};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{errno, fails_with};
use crate::sys;
use crate::tap::{Outcome, Tap, comment};
use fuse_iomap::wire::attr_flags;
use lab::client::Lab;
use lab::control::Command;
use lab::misbehave::Action;
use lab::random::Random;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, IFlags, StatxFlags, fallocate, ioctl_setflags, statx,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const SIZE: u64 = 256 << 10;
const BLOCK: u64 = 4096;
const ROUNDS: u64 = 150;
const IOMAP: u32 = attr_flags::IOMAP | attr_flags::EXCLUSIVE;
/// What a server may say of a file from one moment to the next.
const FLAGS: [u32; 10] = [
    IOMAP,
    IOMAP | attr_flags::SYNC,
    IOMAP | attr_flags::APPEND,
    IOMAP | attr_flags::IMMUTABLE,
    IOMAP | attr_flags::ATOMIC,
    IOMAP | attr_flags::SYNC | attr_flags::ATOMIC,
    0,
    attr_flags::EXCLUSIVE,
    attr_flags::IOMAP,
    u32::MAX,
];

/// Has the kernel ask for attributes, with GETATTR, since the time of birth is not wanted.
fn ask(path: &Path) -> Outcome {
    let how = AtFlags::STATX_FORCE_SYNC;
    statx(CWD, path, how, StatxFlags::BASIC_STATS).map_err(|e| format!("statx: {e}"))?;
    Ok(())
}

/// The server says this from now on, and is asked.
fn say(lab: &mut Lab, name: &str, flags: u32) -> Outcome {
    let path = name.to_owned();
    lab.ask(&Command::SetFlags { path, flags })?;
    ask(&lab.path(name))
}

/// One change, and of the model if it succeeds.
fn change(random: &mut Random, file: &File, direct: &File, model: &mut Vec<u8>) -> io::Result<()> {
    let at = random.below(SIZE / BLOCK - 4) * BLOCK;
    let data = pattern(random.next(), 2 * BLOCK as usize);
    // A write of which a part needs the page cache can be cut in two, and the second half refused.
    let mut wrote = |written: usize| {
        let end = at as usize + written;
        model.resize(model.len().max(end), 0);
        model[at as usize..end].copy_from_slice(&data[..written]);
    };
    match random.below(8) {
        0 => {
            file.set_len(at)?;
            model.resize(at as usize, 0);
        }
        1 => {
            fallocate(file, FallocateFlags::ZERO_RANGE, at, BLOCK)?;
            let end = (at + BLOCK) as usize;
            model.resize(model.len().max(end), 0);
            model[at as usize..end].fill(0);
        }
        2 => file.sync_all()?,
        3 | 4 => wrote(sys::write_aligned_once(direct, at, &data)?),
        _ => wrote(file.write_at(&data, at)?),
    }
    Ok(())
}

/// What a file is after many changes, how many of them succeeded, and how many did not.
fn changes(file: &File, direct: &File, done: &AtomicBool) -> Result<(Vec<u8>, u64, u64), String> {
    let mut random = Random::new(12);
    let mut model = Vec::new();
    let (mut good, mut bad) = (0, 0);
    while good < ROUNDS || !done.load(Ordering::Relaxed) {
        match change(&mut random, file, direct, &mut model) {
            Ok(()) => good += 1,
            Err(e) if errno(&e) == libc::EPERM => {
                bad += 1;
                let size = file.metadata().map_err(|e| e.to_string())?.len();
                let known = model.len() as u64;
                ensure!(size == known, "size {size} instead of {known}");
            }
            Err(e) => return Err(format!("{e} after {good} changes")),
        }
    }
    Ok((model, good, bad))
}

fn while_written(bench: &mut Bench, way: &str) -> Outcome {
    let name = format!("{}/flagged", workshop(way, BLOCK as u32));
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    let direct = open_direct(&path)?;
    let done = AtomicBool::new(false);
    let lab = &mut bench.lab;
    let (said, changed) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| changes(&file, &direct, &done));
        let mut random = Random::new(11);
        let mut said = Ok(());
        let mut times = 0;
        while said.is_ok() && !writer.is_finished() && times < 400 {
            said = say(lab, &name, random.pick(&FLAGS));
            times += 1;
        }
        let last = say(lab, &name, IOMAP);
        done.store(true, Ordering::Relaxed);
        (said.and(last), writer.join())
    });
    said?;
    let (model, good, bad) = changed.map_err(|_| "the writer panicked")??;
    comment(&format!("{good} changes, {bad} refused"));
    ensure!(bad > 0, "nothing was refused");
    bench.compare(&file, &name, &model)?;
    drop(file);
    std::fs::remove_file(&path).map_err(|e| format!("unlink: {e}"))
}

/// Flags that were set while attributes with the old ones were on their way stay set.
fn while_asked(bench: &mut Bench, old: IFlags, new: IFlags) -> Outcome {
    let name = format!("{}/asked", workshop("in-place", BLOCK as u32));
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    let set = |flags| ioctl_setflags(&file, flags).map_err(|e| format!("FS_IOC_SETFLAGS: {e}"));
    set(old)?;
    ask(&path)?;
    let delay = Action::Delay {
        ms: 2000,
        interruptible: false,
    };
    let mut late = rule("GETATTR", &name, (0, 0), delay);
    late.nth = Some(1);
    bench.lab.set_rules(vec![late])?;
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&path));
        wait_fired(&mut bench.lab, 1)?;
        set(new)?;
        ensure!(!asking.is_finished(), "the answer was not late");
        asking.join().map_err(|_| "the asker panicked")?
    })?;
    bench.lab.set_rules(Vec::new())?;
    let write = || OpenOptions::new().write(true).open(&path);
    if new.contains(IFlags::APPEND) {
        fails_with("open for writing", write(), &[libc::EPERM])?;
    } else {
        drop(write().map_err(|e| format!("open for writing: {e}"))?);
    }
    set(IFlags::empty())?;
    drop(file);
    std::fs::remove_file(&path).map_err(|e| format!("unlink: {e}"))
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let mut scenario = scenario(113, None);
    // Asked anew, a server has attributes adopted that are older than what has changed meanwhile, so
    // they must be asked for all the time.
    scenario.options.valid_secs = 0;
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    for way in ["in-place", "unwritten", "cow", "delalloc"] {
        tap.case(&format!("{way}: flags change while it is written"), || {
            while_written(&mut bench, way)
        });
    }
    super::finish(tap, bench.lab);

    // Here attributes are good for an hour, so that those from a late answer would be believed.
    let Some(mut bench) = Bench::start(tap, machine, &self::scenario(114, None)) else {
        return;
    };
    let (none, append) = (IFlags::empty(), IFlags::APPEND);
    for (what, old, new) in [("set", none, append), ("taken back", append, none)] {
        tap.case(&format!("a flag is {what} while attributes come"), || {
            while_asked(&mut bench, old, new)
        });
    }
    super::finish(tap, bench.lab);
}
