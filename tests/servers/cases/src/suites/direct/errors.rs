// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What goes wrong with direct I/O is told to whoever asked for it.

use super::super::bench::case::ways;
use super::super::bench::{Bench, open_direct, read_direct};
use super::super::unmount_dead;
use super::super::write::{create, name, pattern, rule, with_lab};
use crate::aio::{self, Piece};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{errno, fails_with, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_op;
use lab::client::Lab;
use lab::misbehave::Action;
use lab::scenario::Scenario;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

const SIZE: usize = 65_536;
const DIRECT: (u32, u32) = (iomap_op::DIRECT, 0);

fn two_files(path: &Path) -> Result<(File, File), String> {
    let file = create(path)?;
    file.write_all_at(&pattern(1, SIZE), 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    Ok((file, open_direct(path)?))
}

/// The server fails a request; the writer is told, and afterwards all is as if nothing had been
/// written there.
fn refused(bench: &mut Bench, way: &str, op: &str) -> Outcome {
    let name = name(way);
    let (file, direct) = two_files(&bench.lab.path(&name))?;
    bench.lab.refuse(op, libc::ENOSPC)?;
    let data = vec![9; 8192];
    let result = sys::write_aligned(&direct, SIZE as u64, &data);
    fails_with("write", result, &[libc::ENOSPC])?;
    let mut pieces = [Piece::new(SIZE as u64 + 8192, data.clone())];
    aio::write(&direct, &mut pieces).map_err(|e| format!("io_submit: {e}"))?;
    let got = pieces[0].result;
    ensure!(got == -i64::from(libc::ENOSPC), "aio: {got}");
    bench.lab.refuse(op, 0)?;
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    ensure!(size == SIZE as u64, "the size is {size}");
    // Nobody is told of it again.
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    sys::write_aligned(&direct, SIZE as u64, &data).map_err(|e| format!("afterwards: {e}"))?;
    let mut model = pattern(1, SIZE);
    model.extend_from_slice(&data);
    bench.compare(&file, &name, &model)
}

/// A server that cannot do it directly: the page cache does it, and the data is on the device when
/// the write returns.
fn fallback(bench: &mut Bench, way: &str, value: i32) -> Outcome {
    let name = name(way);
    let (file, direct) = two_files(&bench.lab.path(&name))?;
    let action = Action::Error { value: -value };
    let rules = vec![rule("IOMAP_BEGIN", &name, DIRECT, action)];
    bench.lab.set_rules(rules)?;
    let mut model = pattern(1, SIZE);
    let data = pattern(2, 12_288);
    for offset in [4096, 512, SIZE - 4096, SIZE + 65_536] {
        sys::write_aligned(&direct, offset as u64, &data)
            .map_err(|e| format!("write at {offset}: {e}"))?;
        model.resize(model.len().max(offset + data.len()), 0);
        model[offset..offset + data.len()].copy_from_slice(&data);
        let map = bench.lab.map(&name)?;
        ensure!(map.size == model.len() as u64, "size on disk {}", map.size);
        bench
            .on_disk(&map, &model)
            .map_err(|e| format!("on the device: {e}"))?;
        let got = read_direct(&direct, 0, model.len());
        same(0, &got.map_err(|e| format!("read: {e}"))?, &model)?;
    }
    ensure!(bench.lab.fired()? > 0, "nothing was tried directly");
    bench.lab.set_rules(Vec::new())?;
    bench.compare(&file, &name, &model)
}

/// What is not aligned to the sectors of the disk cannot be done directly.
fn unaligned(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let (file, direct) = two_files(&bench.lab.path(&name))?;
    let before = pattern(1, SIZE);
    for (offset, length) in [(1, 512), (0, 100), (4096, 4095)] {
        let result = sys::write_aligned(&direct, offset, &vec![1; length]);
        fails_with("write", result, &[libc::EINVAL])?;
        let result = sys::read_aligned(&direct, offset, length);
        fails_with("read", result, &[libc::EINVAL])?;
    }
    bench.compare(&file, &name, &before)
}

/// The server dies at a request of a direct write.
fn death(lab: &mut Lab, way: &str, op: &str) -> Outcome {
    const GONE: [i32; 3] = [libc::ENOTCONN, libc::EIO, libc::ECONNABORTED];
    let name = name(way);
    let (_file, direct) = two_files(&lab.path(&name))?;
    let flags = if op == "IOMAP_BEGIN" { DIRECT } else { (0, 0) };
    lab.set_rules(vec![rule(op, &name, flags, Action::Die)])?;
    let piece = |i: u64| Piece::new(SIZE as u64 + i * 4096, vec![1; 4096]);
    let mut pieces: Vec<Piece> = (0..8).map(piece).collect();
    aio::write(&direct, &mut pieces).map_err(|e| format!("io_submit: {e}"))?;
    for piece in &pieces {
        let errno = -piece.result;
        let gone = GONE.iter().any(|e| i64::from(*e) == errno);
        ensure!(gone, "at {}: {}", piece.offset, piece.result);
    }
    let result = read_direct(&direct, 0, 4096);
    if let Err(e) = &result {
        ensure!(GONE.contains(&errno(e)), "read: {e}");
    }
    lab.wait(Duration::from_secs(10))?;
    drop((_file, direct));
    unmount_dead(lab)
}

/// Runs those that share a server.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (way, _) in ways() {
        tap.case(&format!("{way}: BEGIN fails"), || {
            refused(bench, way, "IOMAP_BEGIN")
        });
        tap.case(&format!("{way}: IOEND fails"), || {
            refused(bench, way, "IOMAP_IOEND")
        });
        for (what, errno) in [("ENOTBLK", libc::ENOTBLK), ("ENOSYS", libc::ENOSYS)] {
            tap.case(&format!("{way}: {what}, so by the page cache"), || {
                fallback(bench, way, errno)
            });
        }
        // Blocks that move do so as a whole, in the page cache.
        if !way.starts_with("cow-always") {
            tap.case(&format!("{way}: not aligned to sectors"), || {
                unaligned(bench, way)
            });
        }
    }
}

/// Runs those that need a server of their own.
pub fn run_apart(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    for way in ["unwritten", "cow", "delalloc"] {
        for op in ["IOMAP_BEGIN", "IOMAP_IOEND"] {
            tap.case(&format!("{way}: the server dies at {op}"), || {
                with_lab(machine, scenario, |lab| death(lab, way, op))
            });
        }
    }
}
