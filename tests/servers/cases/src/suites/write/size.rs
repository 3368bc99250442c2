// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Sizes: the largest, O_TRUNC, and what the disk has of them.

use super::super::bench::Bench;
use super::super::bench::case::ways;
use super::{create, name, pattern, with_good_lab};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{fails_with, pread, same};
use crate::tap::{Outcome, Tap};
use lab::client::Lab;
use lab::scenario::Scenario;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

const FAR: u64 = 1 << 45;
/// The server refuses what ends behind this.
const TOO_FAR: u64 = 1 << 62;

fn o_trunc(lab: &mut Lab, way: &str) -> Outcome {
    let name = name(way);
    let path = lab.path(&name);
    let old = create(&path)?;
    let data = pattern(9, 50_000);
    old.write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    old.sync_all().map_err(|e| format!("fsync: {e}"))?;
    old.write_all_at(&data[..10], 20_000)
        .map_err(|e| format!("write: {e}"))?;
    let new = OpenOptions::new()
        .read(true)
        .write(true)
        .truncate(true)
        .open(&path)
        .map_err(|e| format!("open: {e}"))?;
    let size = old.metadata().map_err(|e| e.to_string())?.len();
    ensure!(size == 0, "size {size}");
    let map = lab.map(&name)?;
    ensure!(map.size == 0, "size on disk {}", map.size);
    ensure!(map.entries.is_empty(), "there are blocks: {map:?}");
    new.write_all_at(b"new", 30_000)
        .map_err(|e| format!("write: {e}"))?;
    let mut want = vec![0; 30_000];
    want.extend_from_slice(b"new");
    let got = pread(&old, 0, 60_000).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &want)
}

/// The size on disk follows the data, not the write.
fn on_disk_later(lab: &mut Lab, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&lab.path(&name))?;
    file.write_all_at(&pattern(1, 10_000), 0)
        .map_err(|e| format!("write: {e}"))?;
    let before = lab.map(&name)?.size;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let after = lab.map(&name)?.size;
    ensure!(before == 0, "{before} before writeback");
    ensure!(after == 10_000, "{after} after fsync");
    file.set_len(9000).map_err(|e| format!("truncate: {e}"))?;
    let cut = lab.map(&name)?.size;
    ensure!(cut == 9000, "{cut} after truncate");
    Ok(())
}

/// Far out, and beyond what the server takes.
fn large(lab: &mut Lab, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&lab.path(&name))?;
    file.write_all_at(b"far out", FAR)
        .map_err(|e| format!("write: {e}"))?;
    for size in [TOO_FAR + 1, i64::MAX as u64] {
        fails_with("truncate", file.set_len(size), &[libc::EFBIG])?;
        let now = file.metadata().map_err(|e| e.to_string())?.len();
        ensure!(now == FAR + 7, "size {now} after a refused truncate");
    }
    fails_with("write", file.write_at(&[1; 10], TOO_FAR), &[libc::EFBIG])?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let size = lab.map(&name)?.size;
    ensure!(size == FAR + 7, "size on disk {size}");
    let got = pread(&file, FAR - 5, 100).map_err(|e| format!("read: {e}"))?;
    same(FAR - 5, &got, b"\0\0\0\0\0far out")?;
    file.set_len(0).map_err(|e| format!("truncate: {e}"))?;
    ensure!(lab.map(&name)?.entries.is_empty(), "blocks are left");
    Ok(())
}

/// On the server of the suite.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (way, _) in ways() {
        tap.case(&format!("{way}: the size on disk follows the data"), || {
            on_disk_later(&mut bench.lab, way)
        });
        tap.case(&format!("{way}: O_TRUNC"), || o_trunc(&mut bench.lab, way));
        tap.case(&format!("{way}: far out, and too far"), || {
            large(&mut bench.lab, way)
        });
    }
}

/// With servers of their own.
pub fn run_apart(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    let mut atomic = scenario.clone();
    atomic.options.atomic_o_trunc = true;
    for (way, _) in ways() {
        tap.case(&format!("{way}: O_TRUNC with atomic_o_trunc"), || {
            with_good_lab(machine, &atomic, |lab| o_trunc(lab, way))
        });
    }
}
