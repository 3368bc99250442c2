// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Nonsense in answers to SETATTR, GETATTR and COPY_FILE_RANGE about iomap files: what the kernel knows
//! better stays as it is, nothing is written or shown that does not belong to the file, and the
//! rest of the mount lives.

use super::bench::{Bench, scenario};
use super::write::{create, pattern, rule};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{cool, errno, fails_with, pread, same};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{Attr, AttrOut, attr_flags};
use lab::caching::{CacheMode, CacheSpec};
use lab::misbehave::Action;
use rustix::fs::{AtFlags, StatxFlags, statx};
use std::fs::File;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

const SIZE: usize = 100_000;
/// What truncation leaves.
const LESS: usize = 30_001;
const ANY: (u32, u32) = (0, 0);

fn bytes(at: usize, value: &[u8]) -> Action {
    Action::Patch {
        at,
        bytes: value.to_vec(),
    }
}

const fn attr(field: usize) -> usize {
    offset_of!(AttrOut, attr) + field
}

/// Changes of an answer that has attributes.
fn nonsense() -> Vec<(&'static str, Action)> {
    let size = |size: u64| bytes(attr(offset_of!(Attr, size)), &size.to_ne_bytes());
    let flags = |flags: u32| bytes(attr(offset_of!(Attr, flags)), &flags.to_ne_bytes());
    let blksize = |size: u32| bytes(attr(offset_of!(Attr, blksize)), &size.to_ne_bytes());
    vec![
        ("size 0", size(0)),
        ("a larger size", size(10 << 20)),
        ("the largest size", size(i64::MAX as u64)),
        ("no flags", flags(0)),
        ("IOMAP without EXCLUSIVE", flags(attr_flags::IOMAP)),
        ("EXCLUSIVE without IOMAP", flags(attr_flags::EXCLUSIVE)),
        // But those that the kernel takes from the server at any time.
        (
            "all other flags",
            flags(!(attr_flags::IMMUTABLE | attr_flags::APPEND)),
        ),
        ("block size 0", blksize(0)),
        ("block size 3", blksize(3)),
        ("a block size of 2 GiB", blksize(1 << 31)),
    ]
}

/// Changes after which the kernel can only give the inode up.
fn ruin() -> Vec<(&'static str, Action)> {
    let mode = |mode: u32| bytes(attr(offset_of!(Attr, mode)), &mode.to_ne_bytes());
    let size = |size: u64| bytes(attr(offset_of!(Attr, size)), &size.to_ne_bytes());
    vec![
        ("a directory", mode(0o040_755)),
        ("a symbolic link", mode(0o120_777)),
        ("no type", mode(0o644)),
        ("a size above all", size(u64::MAX)),
    ]
}

struct Subject {
    name: String,
    file: File,
    model: Vec<u8>,
}

/// A file with clean and with dirty data.
fn subject(bench: &Bench, way: &str, name: &str) -> Result<Subject, String> {
    let name = format!("{way}-4096/{name}");
    let file = create(&bench.lab.path(&name))?;
    let model = pattern(31, SIZE);
    file.write_all_at(&model[..50_000], 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    file.write_all_at(&model[50_000..], 50_000)
        .map_err(|e| format!("write: {e}"))?;
    Ok(Subject { name, file, model })
}

/// Size and mode, for which the server is asked.
fn asked_anew(file: &File) -> Result<(u64, u16), String> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    let stat = statx(file, "", flags, StatxFlags::BASIC_STATS);
    let stat = stat.map_err(|e| format!("statx: {e}"))?;
    Ok((stat.stx_size, stat.stx_mode))
}

/// Truncation, and growing again, with such answers: the size is what was asked for, and the file is what
/// it must be, here and on the disk.
fn changed_attributes(bench: &mut Bench, way: &str, op: &str, action: Action) -> Outcome {
    let mut s = subject(bench, way, "subject")?;
    bench.lab.set_rules(vec![rule(op, &s.name, ANY, action)])?;
    let lying = |s: &mut Subject| -> Outcome {
        s.file
            .set_len(LESS as u64)
            .map_err(|e| format!("truncate: {e}"))?;
        s.model.truncate(LESS);
        let seen = |want: usize| -> Outcome {
            let (size, mode) = asked_anew(&s.file)?;
            ensure!(size == want as u64, "size {size} instead of {want}");
            ensure!(mode & 0o170_000 == 0o100_000, "mode {mode:o}");
            Ok(())
        };
        seen(LESS)?;
        s.file
            .set_len(SIZE as u64)
            .map_err(|e| format!("truncate: {e}"))?;
        seen(SIZE)?;
        s.model.resize(SIZE, 0);
        s.file
            .write_all_at(&[7; 5000], 60_000)
            .map_err(|e| format!("write: {e}"))?;
        s.model[60_000..65_000].fill(7);
        let got = pread(&s.file, 0, SIZE + 1).map_err(|e| format!("read: {e}"))?;
        same(0, &got, &s.model)
    };
    let result = lying(&mut s);
    let fired = bench.lab.fired()?;
    bench.lab.set_rules(Vec::new())?;
    result?;
    ensure!(fired > 0, "the server did not get to that");
    bench.compare(&s.file, &s.name, &s.model)
}

/// The inode is no good any more; nothing else is touched by that.
fn ruined(bench: &mut Bench, way: &str, name: &str, action: Action) -> Outcome {
    let s = subject(bench, way, name)?;
    let other = subject(bench, way, "other")?;
    bench
        .lab
        .set_rules(vec![rule("SETATTR", &s.name, ANY, action)])?;
    fails_with("truncate", s.file.set_len(LESS as u64), &[libc::EIO])?;
    let fired = bench.lab.fired()?;
    bench.lab.set_rules(Vec::new())?;
    ensure!(fired > 0, "the server did not get to that");
    // Whatever comes of these calls, they end.
    for result in [
        pread(&s.file, 0, 4096).map(|_| ()),
        s.file.write_all_at(&[1; 100], 0),
        s.file.sync_all(),
        s.file.set_len(0),
    ] {
        if let Err(e) = result {
            ensure!(
                [libc::EIO, libc::ENOENT, libc::ESTALE].contains(&errno(&e)),
                "{e}"
            );
        }
    }
    drop(s.file);
    bench.compare(&other.file, &other.name, &other.model)
}

/// Says of a copy that it was longer, or what is no length at all.
fn copies(bench: &mut Bench, way: &str, wide: bool, count: u64) -> Outcome {
    let from = subject(bench, way, "from")?;
    let to = subject(bench, way, "to")?;
    let untouched = subject(bench, way, "untouched")?;
    // What is known of the target is what must be forgotten.
    for s in [&from, &to] {
        s.file.sync_all().map_err(|e| format!("fsync: {e}"))?;
        pread(&s.file, 0, SIZE).map_err(|e| format!("read: {e}"))?;
    }
    let (op, value) = match wide {
        true => ("COPY_FILE_RANGE_64", count.to_ne_bytes().to_vec()),
        false => ("COPY_FILE_RANGE", (count as u32).to_ne_bytes().to_vec()),
    };
    let mut rules = vec![rule(op, &from.name, ANY, bytes(0, &value))];
    if !wide {
        let nosys = Action::Error {
            value: -libc::ENOSYS,
        };
        rules.push(rule("COPY_FILE_RANGE_64", &from.name, ANY, nosys));
    }
    bench.lab.set_rules(rules)?;
    let (length, mut at_in, mut at_out) = (16_384, 8192, 32_768);
    let result = rustix::fs::copy_file_range(
        &from.file,
        Some(&mut at_in),
        &to.file,
        Some(&mut at_out),
        length,
    );
    let fired = bench.lab.fired()?;
    bench.lab.set_rules(Vec::new())?;
    ensure!(fired > 0, "the server did not get to that");
    let refused = result == Err(rustix::io::Errno::IO);
    ensure!(refused, "copy_file_range: {result:?}");
    let size = to.file.metadata().map_err(|e| format!("stat: {e}"))?.len();
    ensure!(size == SIZE as u64, "size {size}");
    // Whether the server has copied is its affair; what is read is what is there now.
    let mut copied = to.model.clone();
    copied[32_768..49_152].copy_from_slice(&from.model[8192..24_576]);
    cool(&to.file)?;
    let got = pread(&to.file, 0, SIZE + 1).map_err(|e| format!("read: {e}"))?;
    let model = match got == to.model {
        true => &to.model,
        false => &copied,
    };
    same(0, &got, model)?;
    bench.compare(&to.file, &to.name, model)?;
    bench.compare(&from.file, &from.name, &from.model)?;
    bench.compare(&untouched.file, &untouched.name, &untouched.model)
}

/// Runs the cases, with a server of their own.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let mut scenario = scenario(87, Some(CacheSpec::mode(CacheMode::Replies)));
    // Where everything is emulated, that takes too long.
    scenario.options.fill = false;
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    for (what, action) in nonsense() {
        for op in ["SETATTR", "GETATTR"] {
            tap.case(&format!("{op} is answered with {what}"), || {
                changed_attributes(&mut bench, "unwritten", op, action.clone())?;
                changed_attributes(&mut bench, "delalloc", op, action.clone())
            });
        }
    }
    for (what, action) in ruin() {
        tap.case(&format!("SETATTR makes the file {what}"), || {
            ruined(&mut bench, "unwritten", what, action)
        });
    }
    for (wide, counts) in [
        (true, vec![16_385, 1 << 40, u64::MAX, u64::MAX - 4095]),
        (false, vec![16_385, u64::from(u32::MAX)]),
    ] {
        for count in counts {
            let how = if wide { "64 bits" } else { "32 bits" };
            tap.case(
                &format!("16384 bytes are to be copied, {count} are, {how}"),
                || copies(&mut bench, "cow", wide, count),
            );
        }
    }
    super::finish(tap, bench.lab);
}
