// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What is known is not asked for.

use super::super::bench::{Bench, open_direct, read_direct};
use super::super::wait_fired;
use super::super::write::{rule, with_good_lab};
use super::{SIZE, Subject, spec};
use crate::aio::{self, Piece};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{cool, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_op;
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::misbehave::Action;
use lab::scenario::Scenario;
use rustix::fs::{FallocateFlags, fallocate};
use std::os::unix::fs::FileExt;

/// Ways of mapping where what is written stays where it is.
const STEADY: [&str; 4] = ["in-place", "unwritten", "cow", "delalloc"];

/// How to write.
#[derive(Clone, Copy, Debug)]
enum Through {
    Direct,
    Cached,
}

/// Once all has been read, reading asks no more: by system calls, mapped, past the cache.
fn reads(lab: &mut Lab, way: &str) -> Outcome {
    let subject = Subject::new(lab, way)?;
    let direct = open_direct(&subject.path(lab))?;
    subject.read()?;
    let begins = subject.asked(lab, |_| {
        for _ in 0..3 {
            subject.cool()?;
            subject.read()?;
            subject.cool()?;
            let got = sys::mmap_peek(&subject.file, 0, SIZE).map_err(|e| format!("mmap: {e}"))?;
            same(0, &got, &subject.model)?;
            let got = read_direct(&direct, 0, SIZE).map_err(|e| format!("direct read: {e}"))?;
            same(0, &got, &subject.model)?;
        }
        Ok(())
    })?;
    ensure!(begins.is_empty(), "{} BEGINs: {begins:?}", begins.len());
    Ok(())
}

/// Once all has been overwritten, overwriting asks no more, and there is nothing to tell.
fn overwrites(lab: &mut Lab, way: &str) -> Outcome {
    let mut subject = Subject::new(lab, way)?;
    let direct = open_direct(&subject.path(lab))?;
    let all = |subject: &mut Subject, tag: u8| -> Outcome {
        for at in (0..SIZE).step_by(4096) {
            let range = at..at + 4096;
            subject.model[range.clone()].fill(tag);
            let data = &subject.model[range];
            match at / 4096 % 3 {
                0 => sys::write_aligned(&direct, at as u64, data),
                1 => subject.file.write_all_at(data, at as u64),
                _ => sys::mmap_poke(&subject.file, at as u64, data),
            }
            .map_err(|e| format!("write at {at}: {e}"))?;
        }
        let synced = subject.file.sync_all();
        synced.map_err(|e| format!("fsync: {e}"))
    };
    subject.read()?;
    all(&mut subject, 1)?;
    all(&mut subject, 2)?;
    let (before, ioends) = (lab.activity(&subject.name)?, lab.tally()?.ioends);
    for round in 3..6 {
        all(&mut subject, round)?;
        subject.cool()?;
        subject.read()?;
    }
    let begins = &lab.activity(&subject.name)?.begins[before.begins.len()..];
    ensure!(begins.is_empty(), "{} BEGINs: {begins:?}", begins.len());
    let told = lab.tally()?.ioends - ioends;
    ensure!(told == 0, "{told} IOENDs");
    Ok(())
}

/// Where unwritten blocks get data, the kernel knows that from then on: who reads or overwrites them
/// asks no more.
fn converted(lab: &mut Lab, direct: bool) -> Outcome {
    let name = format!("{}/file", super::workshop("unwritten", 4096));
    let path = lab.path(&name);
    let file = super::create(&path)?;
    fallocate(&file, FallocateFlags::empty(), 0, SIZE as u64)
        .map_err(|e| format!("fallocate: {e}"))?;
    let past = open_direct(&path)?;
    let model = vec![0; SIZE];
    let mut subject = Subject { name, file, model };
    let write = |subject: &mut Subject, tag: u8| -> Outcome {
        let mut pieces = Vec::new();
        // Each has neighbours that are still unwritten, the first time.
        for at in (0..SIZE).step_by(8192).chain((4096..SIZE).step_by(8192)) {
            subject.model[at..at + 4096].fill(tag);
            let data = &subject.model[at..at + 4096];
            if direct {
                pieces.push(Piece::new(at as u64, data.to_vec()));
            } else {
                let written = subject.file.write_all_at(data, at as u64);
                written.map_err(|e| format!("write: {e}"))?;
            }
        }
        if direct {
            aio::write(&past, &mut pieces).map_err(|e| format!("io_submit: {e}"))?;
        }
        subject.cool()
    };
    write(&mut subject, 1)?;
    let before = lab.activity(&subject.name)?.begins.len();
    subject.read()?;
    write(&mut subject, 2)?;
    subject.read()?;
    let begins = &lab.activity(&subject.name)?.begins[before..];
    ensure!(begins.is_empty(), "{} BEGINs: {begins:?}", begins.len());
    Ok(())
}

/// With nothing known, there is at most one question for each extent; with `more`, one for many.
fn cold(lab: &mut Lab, way: &str, more: usize) -> Outcome {
    let subject = Subject::new(lab, way)?;
    let extents = lab.map(&subject.name)?.entries.len();
    subject.forget(lab)?;
    subject.cool()?;
    let begins = subject.asked(lab, |_| subject.read())?.len();
    let most = extents.div_ceil(1 + more) + 1;
    ensure!(
        begins > 0 && begins <= most,
        "{begins} BEGINs for {extents} extents, {most} would do"
    );
    Ok(())
}

/// The same for who overwrites, block by block: what follows is known as well, to write and to read.
fn cold_overwrites(lab: &mut Lab, more: usize, through: Through) -> Outcome {
    let mut subject = Subject::new(lab, "in-place")?;
    let direct = open_direct(&subject.path(lab))?;
    let extents = lab.map(&subject.name)?.entries.len();
    subject.forget(lab)?;
    let mut model = std::mem::take(&mut subject.model);
    model.fill(0x5a);
    let begins = subject.asked(lab, |_| {
        for (at, block) in (0..).step_by(4096).zip(model.chunks(4096)) {
            match through {
                Through::Direct => sys::write_aligned(&direct, at, block),
                Through::Cached => subject.file.write_all_at(block, at),
            }
            .map_err(|e| format!("write at {at}: {e}"))?;
        }
        subject.file.sync_all().map_err(|e| format!("fsync: {e}"))
    })?;
    subject.model = model;
    let most = extents.div_ceil(1 + more) + 1;
    ensure!(
        !begins.is_empty() && begins.len() <= most,
        "{} BEGINs for {extents} extents, {most} would do",
        begins.len()
    );
    let begins = subject.asked(lab, |_| {
        subject.cool()?;
        subject.read()
    })?;
    ensure!(begins.is_empty(), "reading asked: {begins:?}");
    Ok(())
}

/// An answer to a write that was on its way when everything was taken back is used, but not kept.
fn late_overwrite(lab: &mut Lab) -> Outcome {
    let mut subject = Subject::new(lab, "in-place")?;
    let direct = open_direct(&subject.path(lab))?;
    subject.forget(lab)?;
    subject.model.fill(0x3c);
    let write = |at: usize| {
        sys::write_aligned(&direct, at as u64, &subject.model[at..at + 4096])
            .map_err(|e| format!("write at {at}: {e}"))
    };
    let delay = Action::Delay {
        ms: 2000,
        interruptible: false,
    };
    let mut late = rule("IOMAP_BEGIN", &subject.name, (iomap_op::WRITE, 0), delay);
    late.nth = Some(1);
    lab.set_rules(vec![late])?;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| write(0));
        wait_fired(lab, 1)?;
        subject.forget(lab)?;
        ensure!(!first.is_finished(), "the answer was not late");
        first.join().map_err(|_| "the writer panicked")?
    })?;
    lab.set_rules(Vec::new())?;
    for (at, wanted) in [(4096, 1), (8192, 0)] {
        let begins = subject.asked(lab, |_| write(at))?.len();
        ensure!(begins == wanted, "{begins} BEGINs to write at {at}");
    }
    for at in (12_288..SIZE).step_by(4096) {
        write(at)?;
    }
    subject.cool()?;
    subject.read()
}

/// What the kernel itself changes, it forgets: it asks again, and reads what is there now.
fn forgotten(lab: &mut Lab, way: &str) -> Outcome {
    type Change = fn(&mut Subject) -> std::io::Result<()>;
    let changes: [(&str, Change); 5] = [
        ("truncate", |s| {
            s.model.truncate(100_000);
            s.file.set_len(100_000)?;
            s.model.resize(SIZE, 0);
            s.file.set_len(SIZE as u64)
        }),
        ("punch", |s| {
            s.model[8192..90_000].fill(0);
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(&s.file, how, 8192, 90_000 - 8192)?)
        }),
        ("zero", |s| {
            s.model[8192..90_000].fill(0);
            let how = FallocateFlags::ZERO_RANGE;
            Ok(fallocate(&s.file, how, 8192, 90_000 - 8192)?)
        }),
        ("collapse", |s| {
            s.model.drain(65_536..131_072);
            let how = FallocateFlags::COLLAPSE_RANGE;
            fallocate(&s.file, how, 65_536, 65_536)?;
            s.model.resize(SIZE, 0);
            s.file.set_len(SIZE as u64)
        }),
        ("insert", |s| {
            let tail = s.model.split_off(65_536);
            s.model.resize(131_072, 0);
            s.model.extend_from_slice(&tail);
            s.model.truncate(SIZE);
            fallocate(&s.file, FallocateFlags::INSERT_RANGE, 65_536, 65_536)?;
            s.file.set_len(SIZE as u64)
        }),
    ];
    for (what, change) in changes {
        let mut subject = Subject::new(lab, way)?;
        let direct = open_direct(&subject.path(lab))?;
        subject.read()?;
        change(&mut subject).map_err(|e| format!("{what}: {e}"))?;
        cool(&subject.file)?;
        subject.read().map_err(|e| format!("{what}: {e}"))?;
        let got = read_direct(&direct, 0, SIZE).map_err(|e| format!("{what}: {e}"))?;
        same(0, &got, &subject.model).map_err(|e| format!("{what}, past the cache: {e}"))?;
    }
    Ok(())
}

/// Appending in small pieces to what was allocated ahead asks only when that is used up.
fn appends(lab: &mut Lab) -> Outcome {
    const PIECES: usize = 64;
    let name = format!("{}/file", super::workshop("unwritten-more", 4096));
    let file = super::create(&lab.path(&name))?;
    let before = lab.activity(&name)?.begins.len();
    let mut model = Vec::new();
    for i in 0..PIECES {
        let data = [1 + i as u8; 4096];
        file.write_all_at(&data, model.len() as u64)
            .map_err(|e| format!("write: {e}"))?;
        file.sync_data().map_err(|e| format!("fdatasync: {e}"))?;
        model.extend_from_slice(&data);
    }
    let begins = lab.activity(&name)?.begins.len() - before;
    // Each answer has up to four blocks.
    ensure!(begins < PIECES, "{begins} BEGINs for {PIECES} appends");
    cool(&file)?;
    let got = pread(&file, 0, model.len() + 1).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &model)
}

/// Runs those that share a server.
pub fn run(tap: &mut Tap, bench: &mut Bench, mode: CacheMode, more: usize) {
    let lab = &mut bench.lab;
    let how = format!("{mode:?}, {more} more");
    for (way, _) in super::super::bench::case::ways() {
        tap.case(&format!("{how}: {way}: warm reads"), || reads(lab, way));
        tap.case(&format!("{how}: {way}: cold reads"), || {
            cold(lab, way, more)
        });
        tap.case(&format!("{how}: {way}: changes are seen"), || {
            forgotten(lab, way)
        });
    }
    for way in STEADY {
        tap.case(&format!("{how}: {way}: warm overwrites"), || {
            overwrites(lab, way)
        });
    }
    if more > 0 {
        for through in [Through::Direct, Through::Cached] {
            tap.case(&format!("{how}: {through:?}: cold overwrites"), || {
                cold_overwrites(lab, more, through)
            });
        }
        tap.case(&format!("{how}: a late answer to a write"), || {
            late_overwrite(lab)
        });
    }
    for (what, direct) in [("writeback", false), ("asynchronous writes", true)] {
        tap.case(&format!("{how}: unwritten blocks after {what}"), || {
            converted(lab, direct)
        });
    }
    tap.case(&format!("{how}: appends"), || appends(lab));
}

/// How often the server is asked for each of two readings from the device.
fn two_readings(lab: &mut Lab) -> Result<(usize, usize), String> {
    let subject = Subject::new(lab, "unwritten")?;
    let mut reading = || -> Result<usize, String> {
        subject.cool()?;
        Ok(subject.asked(lab, |_| subject.read())?.len())
    };
    Ok((reading()?, reading()?))
}

/// Runs those that need a server of their own.
pub fn run_apart(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    let with = |cache: Option<CacheSpec>| {
        let mut scenario = scenario.clone();
        scenario.options.cache = cache;
        scenario
    };
    for (what, cache) in [
        ("without CONFIG", None),
        ("with the cache off", Some(spec(CacheMode::Off, 0))),
        (
            "with no room",
            Some(CacheSpec {
                bytes: Some(0),
                ..spec(CacheMode::Replies, 126)
            }),
        ),
        (
            "with little room",
            Some(CacheSpec {
                bytes: Some(512),
                ..spec(CacheMode::Replies, 0)
            }),
        ),
        (
            "upserts, with no room",
            Some(CacheSpec {
                bytes: Some(0),
                ..spec(CacheMode::Upsert, 0)
            }),
        ),
    ] {
        tap.case(&format!("{what}, every reading asks"), || {
            with_good_lab(machine, &with(cache), |lab| {
                let (first, second) = two_readings(lab)?;
                ensure!(second > 0, "{first} BEGINs, then {second}");
                Ok(())
            })
        });
    }
}
