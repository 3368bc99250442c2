// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Errors that the server answers with get to whoever waits for the data, once for each open file.

use super::super::bench::Bench;
use super::super::bench::case::ways;
use super::{create, name, pattern, rule, with_good_lab};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{fails_with, pread, same};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_op;
use lab::client::Lab;
use lab::misbehave::Action;
use lab::scenario::Scenario;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

const WRITEBACK: (u32, u32) = (iomap_op::WRITEBACK, 0);
const WRITE: (u32, u32) = (iomap_op::WRITE, iomap_op::WRITEBACK);

fn open(lab: &Lab, name: &str) -> Result<File, String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(lab.path(name));
    file.map_err(|e| format!("open: {e}"))
}

/// A failing writeback is told to each open file once, and later data is written all the same.
fn writeback_error(lab: &mut Lab, way: &str, op: &str, errno: i32) -> Outcome {
    let name = name(way);
    let one = create(&lab.path(&name))?;
    let two = open(lab, &name)?;
    let data = pattern(3, 20_000);
    let with = if op == "IOMAP_BEGIN" {
        WRITEBACK
    } else {
        (0, 0)
    };
    let action = Action::Error { value: -errno };
    lab.set_rules(vec![rule(op, &name, with, action)])?;
    one.write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    fails_with("the first fsync", one.sync_all(), &[errno])?;
    ensure!(lab.fired()? > 0, "the rule did not fire");
    lab.set_rules(Vec::new())?;
    one.sync_all()
        .map_err(|e| format!("the second fsync: {e}"))?;
    fails_with("fsync of another open file", two.sync_all(), &[errno])?;
    two.sync_all()
        .map_err(|e| format!("its second fsync: {e}"))?;
    let late = open(lab, &name)?;
    late.sync_all()
        .map_err(|e| format!("fsync of a file opened afterwards: {e}"))?;
    late.write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    late.sync_all()
        .map_err(|e| format!("fsync afterwards: {e}"))?;
    rustix::fs::fadvise(&late, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|e| format!("fadvise: {e}"))?;
    let got = pread(&late, 0, 30_000).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &data)
}

/// A write for which the server has no room fails, and leaves what was there.
fn write_error(lab: &mut Lab, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&lab.path(&name))?;
    let data = pattern(4, 9000);
    file.write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    let action = Action::Error {
        value: -libc::ENOSPC,
    };
    lab.set_rules(vec![rule("IOMAP_BEGIN", &name, WRITE, action)])?;
    fails_with("write", file.write_at(&data, 100), &[libc::ENOSPC])?;
    fails_with("append", file.write_at(&data, 9000), &[libc::ENOSPC])?;
    let store = crate::sys::mmap_poke(&file, 100, b"store");
    fails_with("a store", store, &[libc::EFAULT])?;
    lab.set_rules(Vec::new())?;
    let got = pread(&file, 0, 30_000).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &data)?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))
}

/// Refused by the server, with nothing done.
fn refused(lab: &mut Lab, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&lab.path(&name))?;
    let data = pattern(5, 20_000);
    file.write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    for errno in [libc::ENOSPC, libc::EIO] {
        lab.refuse("FALLOCATE", errno)?;
        let keep = FallocateFlags::KEEP_SIZE;
        for flags in [
            FallocateFlags::empty(),
            keep | FallocateFlags::PUNCH_HOLE,
            keep | FallocateFlags::ZERO_RANGE,
            FallocateFlags::COLLAPSE_RANGE,
        ] {
            let result = fallocate(&file, flags, 4096, 8192);
            fails_with("fallocate", result.map_err(Into::into), &[errno])?;
        }
        lab.refuse("FALLOCATE", 0)?;
        lab.refuse("FSYNC", errno)?;
        fails_with("fsync", file.sync_all(), &[errno])?;
        lab.refuse("FSYNC", 0)?;
        lab.refuse("SETATTR", errno)?;
        fails_with("growing truncate", file.set_len(40_000), &[errno])?;
        lab.refuse("SETATTR", 0)?;
    }
    let got = pread(&file, 0, 20_000).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &data)?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))
}

/// A failing copy leaves the work to the kernel; one that works shares blocks.
fn copies(bench: &mut Bench, way: &str) -> Outcome {
    let dir = super::workshop(way, 4096);
    let (from, to) = (format!("{dir}/from"), format!("{dir}/to"));
    let source = create(&bench.lab.path(&from))?;
    let target = create(&bench.lab.path(&to))?;
    let data = pattern(8, 50_000);
    source
        .write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    target
        .write_all_at(&[7; 60_000], 0)
        .map_err(|e| format!("write: {e}"))?;
    let mut done = 0;
    while done < 50_000 {
        let (mut at, mut to) = (done, done);
        let left = 50_000 - done as usize;
        let n = rustix::fs::copy_file_range(&source, Some(&mut at), &target, Some(&mut to), left);
        let n = n.map_err(|e| format!("copy_file_range: {e}"))?;
        ensure!(n > 0, "copy_file_range stops at {done}");
        done += n as u64;
    }
    let mut want = vec![7; 60_000];
    want[..50_000].copy_from_slice(&data);
    let shared = bench.lab.map(&from)?.entries.iter().any(|e| e.shared);
    ensure!(
        shared == way.starts_with("cow"),
        "blocks are shared: {shared}"
    );
    bench.compare(&target, &to, &want)?;
    source
        .write_all_at(b"changed", 10_000)
        .map_err(|e| format!("write: {e}"))?;
    let mut changed = data;
    changed[10_000..10_007].copy_from_slice(b"changed");
    bench.compare(&source, &from, &changed)?;
    bench.compare(&target, &to, &want)?;
    for name in [from, to] {
        std::fs::remove_file(bench.lab.path(&name)).map_err(|e| format!("unlink: {e}"))?;
    }
    Ok(())
}

/// A server without END, and one without FSYNC.
fn enosys(lab: &mut Lab, op: &str) -> Outcome {
    lab.refuse(op, libc::ENOSYS)?;
    // Blocks in place need no IOEND but to grow the file.
    let name = name("in-place");
    let file = create(&lab.path(&name))?;
    let data = pattern(2, 30_000);
    for part in 0..3 {
        let at = part * 10_000;
        file.write_all_at(&data[at..at + 10_000], at as u64)
            .map_err(|e| format!("write: {e}"))?;
        file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    }
    let asked = lab.counter(op)?;
    ensure!(asked <= 1, "{asked} requests {op}, after ENOSYS");
    let got = pread(&file, 0, 40_000).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &data)
}

/// On the server of the suite.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (way, _) in ways() {
        for (op, errno, what) in [
            ("IOMAP_IOEND", libc::ENOSPC, "IOEND with ENOSPC"),
            ("IOMAP_IOEND", libc::EIO, "IOEND with EIO"),
            (
                "IOMAP_BEGIN",
                libc::ENOSPC,
                "BEGIN for writeback with ENOSPC",
            ),
        ] {
            tap.case(&format!("{way}: {what}"), || {
                writeback_error(&mut bench.lab, way, op, errno)
            });
        }
        tap.case(&format!("{way}: BEGIN for a write with ENOSPC"), || {
            write_error(&mut bench.lab, way)
        });
        tap.case(&format!("{way}: FALLOCATE, FSYNC, SETATTR refused"), || {
            refused(&mut bench.lab, way)
        });
        tap.case(&format!("{way}: copy_file_range"), || copies(bench, way));
    }
}

/// With servers of their own.
pub fn run_apart(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    for op in ["IOMAP_END", "IOMAP_IOEND", "FSYNC", "SYNCFS"] {
        tap.case(&format!("{op} answered with ENOSYS"), || {
            with_good_lab(machine, scenario, |lab| enosys(lab, op))
        });
    }
}
