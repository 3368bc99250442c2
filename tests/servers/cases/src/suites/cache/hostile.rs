// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Servers that use extensions without asking, or wrongly.

use super::super::bench::open_direct;
use super::super::write::{rule, with_lab};
use super::super::wrong_size;
use super::{Subject, spec};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{fails_with, open_cold, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{ADDR_NULL, iomap_flags, iomap_op, iomap_type};
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::misbehave::{Action, RawIo, Rule};
use lab::scenario::Scenario;
use rustix::fs::{FallocateFlags, fallocate};
use std::os::unix::fs::FileExt;

const ANY: (u32, u32) = (0, 0);
const READ: (u32, u32) = (0, iomap_op::WRITE | iomap_op::ZERO);

fn fields(set: &[(&str, u64)]) -> Action {
    let set = set.iter().map(|(f, v)| ((*f).to_owned(), *v)).collect();
    Action::Fields { set }
}

/// A reader gets this errno from a server that does that; and all is well once it is honest.
fn reader_gets(lab: &mut Lab, errnos: &[i32], action: Action) -> Outcome {
    let subject = Subject::new(lab, "unwritten")?;
    subject.forget(lab)?;
    lab.set_rules(vec![rule("IOMAP_BEGIN", &subject.name, READ, action)])?;
    let file = open_cold(&subject.path(lab))?;
    fails_with("read", pread(&file, 0, 4096), errnos)?;
    ensure!(lab.fired()? > 0, "the server did not get to misbehave");
    lab.set_rules(Vec::new())?;
    subject.cool()?;
    subject.read()
}

/// RETRY_CACHE for ever: the kernel gives up.
fn retry_for_ever(lab: &mut Lab) -> Outcome {
    let retry = fields(&[
        ("read.type", iomap_type::RETRY_CACHE.into()),
        ("read.addr", ADDR_NULL),
        ("read.dev", 0),
        ("read.flags", 0),
    ]);
    reader_gets(lab, &[libc::EIO], retry)?;
    let name = format!("{}/file", super::workshop("unwritten", 4096));
    let begins = lab.activity(&name)?.begins;
    let reads = begins.iter().filter(|b| b.opflags == 0).count();
    // Readahead may try as well, and afterwards everything is read once more.
    ensure!(reads < 200, "{reads} BEGINs to read");
    Ok(())
}

/// Mappings that follow a reply, for a file whose first mapping is 4096 bytes long.
fn records() -> Vec<(&'static str, Vec<RawIo>)> {
    let hole = |offset, length| RawIo::without(iomap_type::HOLE, offset, length);
    let far = 1 << 20;
    vec![
        ("behind a gap", vec![hole(far + 4096, 4096)]),
        ("before the first", vec![hole(0, 4096)]),
        ("of an unknown type", vec![RawIo::without(99, far, 4096)]),
        (
            "to overwrite",
            vec![RawIo::without(iomap_type::PURE_OVERWRITE, far, 4096)],
        ),
        (
            "of inline data",
            vec![RawIo::without(iomap_type::INLINE, far, 4096)],
        ),
        ("without length", vec![hole(far, 0)]),
        ("without a device", vec![RawIo::mapped(far, 4096, 4096, 0)]),
        (
            "with a gap between them",
            vec![hole(far, 4096), hole(far + 8192, 4096)],
        ),
    ]
}

/// One reply with further mappings; the first one is a hole up to 1 MiB.
fn more(lab: &mut Lab, records: Vec<RawIo>, errnos: &[i32]) -> Outcome {
    let name = format!("{}/sparse", super::workshop("unwritten", 4096));
    let file = super::create(&lab.path(&name))?;
    file.set_len(8 << 20)
        .map_err(|e| format!("truncate: {e}"))?;
    let more = rule("IOMAP_BEGIN", &name, READ, Action::More { records });
    // What is asked for ends at 1 MiB, and so does what is answered.
    lab.set_rules(vec![more])?;
    let direct = open_direct(&lab.path(&name))?;
    let result = sys::read_aligned(&direct, 0, 1 << 20);
    lab.set_rules(Vec::new())?;
    fails_with("read", result, errnos)?;
    let got = pread(&file, 0, 8192).map_err(|e| format!("read afterwards: {e}"))?;
    same(0, &got, &[0; 8192])
}

/// A server says that all may be overwritten in place, holes as well, and has it kept: data for a hole
/// gets blocks all the same, whether it is known to be one or not.
fn overwritten_holes(lab: &mut Lab) -> Outcome {
    const HOLES: std::ops::Range<usize> = 128 << 10..256 << 10;
    let mut subject = Subject::new(lab, "in-place")?;
    subject.model[HOLES].fill(0);
    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&subject.file, how, HOLES.start as u64, HOLES.len() as u64)
        .map_err(|e| format!("punch: {e}"))?;
    subject.cool()?;
    subject.forget(lab)?;
    let lie = fields(&[
        ("write.type", iomap_type::PURE_OVERWRITE.into()),
        ("write.offset", 0),
        ("write.length", 1 << 30),
        ("write.addr", ADDR_NULL),
        ("write.dev", 0),
        ("write.flags", iomap_flags::CACHE.into()),
    ]);
    let mut once = rule("IOMAP_BEGIN", &subject.name, (iomap_op::WRITE, 0), lie);
    once.nth = Some(1);
    lab.set_rules(vec![once])?;
    let direct = open_direct(&subject.path(lab))?;
    for (at, wanted) in [(0, 1), (HOLES.start, 1), (HOLES.start + (64 << 10), 1)] {
        let here = at..at + 4096;
        subject.model[here.clone()].fill(0x77);
        let begins = subject.asked(lab, |_| {
            sys::write_aligned(&direct, at as u64, &subject.model[here])
                .map_err(|e| format!("write at {at}: {e}"))
        })?;
        let writes = begins.iter().filter(|b| b.opflags & iomap_op::WRITE != 0);
        let writes = writes.count();
        ensure!(writes == wanted, "{writes} BEGINs to write at {at}");
        // The next hole is known to be one.
        let ahead = pread(&subject.file, (HOLES.start + (64 << 10)) as u64, 4096);
        ahead.map_err(|e| format!("read: {e}"))?;
    }
    ensure!(lab.fired()? > 0, "the server did not get to misbehave");
    lab.set_rules(Vec::new())?;
    subject.cool()?;
    subject.forget(lab)?;
    subject.read()
}

/// IOEND is answered with another number of sizes.
fn sizes(lab: &mut Lab) -> Outcome {
    for payload in [0, 4, 12, 16, 800] {
        let subject = Subject::new(lab, "unwritten")?;
        let resize = Action::Resize { payload };
        lab.set_rules(vec![rule("IOMAP_IOEND", &subject.name, ANY, resize)])?;
        subject
            .file
            .write_all_at(&[1; 100], 600_000)
            .map_err(|e| format!("write: {e}"))?;
        let result = subject.file.sync_all();
        fails_with(&format!("{payload} bytes"), result, &[wrong_size()])?;
        ensure!(lab.fired()? > 0, "the server did not get to misbehave");
        lab.set_rules(Vec::new())?;
    }
    Ok(())
}

/// CONFIG is answered by a server that uses no extension in this way. Either there is no iomap then, or
/// everything works.
fn config(machine: &Machine, scenario: &Scenario, action: Action, works: bool) -> Outcome {
    let mut scenario = scenario.clone();
    scenario.options.cache = Some(CacheSpec {
        batch_ioend: false,
        ..spec(CacheMode::Off, 0)
    });
    scenario.rules = vec![Rule {
        op: "IOMAP_CONFIG".into(),
        path: None,
        with: 0,
        without: 0,
        nth: None,
        action,
        then_errno: Some(libc::EIO),
    }];
    with_lab(machine, &scenario, |lab| {
        let made = Subject::new(lab, "unwritten");
        ensure!(lab.fired()? == 1, "CONFIG was asked {} times", lab.fired()?);
        match made {
            Ok(subject) if works => subject.read(),
            Ok(_) => Err("files work".into()),
            Err(e) if works => Err(e),
            Err(_) => Ok(()),
        }
    })
}

/// Runs them.
pub fn run(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    let with = |cache| {
        let mut scenario = scenario.clone();
        scenario.options.cache = cache;
        scenario
    };
    let flag = || fields(&[("read.flags", iomap_flags::CACHE.into())]);
    let one = vec![RawIo::without(iomap_type::HOLE, 1 << 20, 4096)];
    let plain = with(None);
    tap.case("CACHE without CACHE_REPLIES", || {
        with_lab(machine, &plain, |lab| {
            reader_gets(lab, &[libc::EUCLEAN], flag())
        })
    });
    for (what, cache) in [
        ("without CONFIG", None),
        ("refused", Some(spec(CacheMode::Replies, 0))),
    ] {
        let scenario = with(cache);
        tap.case(&format!("further mappings, {what}"), || {
            with_lab(machine, &scenario, |lab| {
                more(lab, one.clone(), &[wrong_size()])
            })
        });
    }
    let all = with(Some(CacheSpec::default()));
    let two = spec(CacheMode::Replies, 0);
    for (what, records) in records() {
        tap.case(&format!("further mappings {what}"), || {
            with_lab(machine, &all, |lab| more(lab, records, &[libc::EUCLEAN]))
        });
    }
    for (what, cache) in [
        ("many mappings", CacheSpec::default()),
        ("two mappings", two),
    ] {
        let scenario = with(Some(cache));
        tap.case(&format!("holes are to be overwritten, {what}"), || {
            with_lab(machine, &scenario, overwritten_holes)
        });
    }
    tap.case("a part of a further mapping", || {
        with_lab(machine, &all, |lab| {
            reader_gets(lab, &[libc::EIO], Action::Resize { payload: 80 })
        })
    });
    tap.case("RETRY_CACHE for ever", || {
        with_lab(machine, &all, retry_for_ever)
    });
    tap.case("IOEND with another number of sizes", || {
        with_lab(machine, &all, sizes)
    });
    let flags = |bits| fields(&[("config.flags", bits)]);
    for (what, works, action) in [
        ("unknown fields", false, flags(1 << 20)),
        ("unknown extensions", false, flags(1 << 40)),
        ("all flags", false, flags(u64::MAX)),
        ("no flags", true, flags(0)),
        ("nothing", true, Action::Resize { payload: 0 }),
        ("flags alone", false, Action::Resize { payload: 8 }),
        ("too much", false, Action::Resize { payload: 200 }),
        ("an error", false, Action::Error { value: -libc::EIO }),
        (
            "ENOSYS",
            true,
            Action::Error {
                value: -libc::ENOSYS,
            },
        ),
    ] {
        tap.case(&format!("CONFIG is answered with {what}"), || {
            config(machine, scenario, action, works)
        });
    }
}
