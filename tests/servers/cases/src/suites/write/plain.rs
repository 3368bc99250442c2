// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What one thread does to one file, each for every way of mapping and every block size.

use super::super::bench::Bench;
use super::super::bench::case::ways;
use super::{create, name, pattern};
use crate::ensure;
use crate::files::{errno, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use lab::store::MapKind;
use rustix::io::ReadWriteFlags;
use std::fs::OpenOptions;
use std::io::{IoSlice, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

/// A name, and operations as in the lines of the generated cases.
const CASES: [(&str, &str); 36] = [
    ("a new file", "write 0 10000"),
    ("one byte", "write 0 1"),
    ("an overwrite", "write 0 40000; cold; write 5000 13000"),
    (
        "an overwrite before writeback",
        "write 0 40000; write 5000 13000",
    ),
    (
        "appends",
        "write 0 1000; write 1000 1000; cold; write 2000 10000; sync; write 12000 1",
    ),
    ("a write behind the end", "write 0 1000; write 50000 100"),
    (
        "a write behind the end of what is cold",
        "write 0 1000; cold; write 50000 100",
    ),
    ("a write into a hole", "truncate 100000; write 30001 100"),
    (
        "a write into unwritten blocks",
        "alloc 0 65536; write 5000 2000; cold; write 20000 1",
    ),
    (
        "a write behind unwritten blocks",
        "alloc-keep 0 65536; write 30000 100",
    ),
    (
        "many small writes",
        "write 0 100; write 200 100; write 400 100; write 5000 1; write 4999 1; write 9000 3",
    ),
    (
        "a write over the end of a hole",
        "write 40000 4000; cold; write 39000 2000",
    ),
    ("a store into data", "write 0 20000; cold; store 5000 100"),
    ("a store into a hole", "truncate 20000; store 5000 10000"),
    (
        "a store into unwritten blocks",
        "alloc 0 20000; store 5000 10000; cold; store 1 1",
    ),
    ("a store into the last page", "write 0 5000; store 4999 1"),
    (
        "a store behind the end, and growth",
        "write 0 5000; tail; truncate 20000",
    ),
    (
        "a store behind the end, and a write there",
        "write 0 5000; tail; write 6000 10",
    ),
    (
        "a store behind the end, and writeback",
        "write 0 5000; tail; sync; truncate 20000",
    ),
    (
        "truncate inside a block, and growth",
        "write 0 20000; truncate 5001; truncate 20000",
    ),
    (
        "the same with cold data",
        "write 0 20000; cold; truncate 5001; cold; truncate 20000",
    ),
    (
        "truncate to the same size",
        "write 0 5001; truncate 5001; cold; truncate 5001",
    ),
    (
        "truncate to nothing, and growth",
        "write 0 20000; truncate 0; truncate 20000; write 3 3",
    ),
    (
        "truncate at the border of a block",
        "write 0 65536; cold; truncate 32768; truncate 65536",
    ),
    (
        "growth of a file in place",
        "write 0 100; cold; truncate 100000; write 99999 1",
    ),
    ("a hole punched", "write 0 40000; cold; punch 5000 10000"),
    (
        "a hole punched in blocks",
        "write 0 65536; cold; punch 16384 16384",
    ),
    (
        "a hole punched inside a block",
        "write 0 4096; cold; punch 100 50",
    ),
    (
        "a hole punched over the end",
        "write 0 20000; punch 10000 100000; truncate 40000",
    ),
    ("a range zeroed", "write 0 40000; cold; zero 5000 10000"),
    (
        "a range zeroed behind the end",
        "write 0 1000; zero 500 20000; write 30000 1",
    ),
    (
        "a range zeroed, keeping the size",
        "write 0 1000; zero-keep 500 20000; truncate 30000",
    ),
    (
        "a range collapsed",
        "write 0 262144; cold; collapse 65536 65536; truncate 262144",
    ),
    (
        "a range inserted",
        "write 0 131072; cold; insert 65536 65536; write 70000 1",
    ),
    (
        "a copy within the file",
        "write 0 65536; copy 0 65536 65536; write 3 3; write 65540 3",
    ),
    (
        "a shared file overwritten",
        "write 0 40000; share; write 5000 13000; share; punch 100 100; write 0 1; store 30000 1",
    ),
];

/// Data is on the device when the write returns.
fn synchronous(bench: &mut Bench, way: &str, flags: i32) -> Outcome {
    let name = name(way);
    let path = bench.lab.path(&name);
    create(&path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(&path)
        .map_err(|e| format!("open: {e}"))?;
    let data = pattern(5, 10_000);
    for (offset, part) in [(0, &data[..]), (20_000, &data[..100]), (50, &data[50..60])] {
        file.write_all_at(part, offset)
            .map_err(|e| format!("write: {e}"))?;
    }
    let mut model = data.clone();
    model.resize(20_000, 0);
    model.extend_from_slice(&data[..100]);
    let map = bench.lab.map(&name)?;
    ensure!(map.size == 20_100, "the size on disk is {}", map.size);
    bench
        .on_disk(&map, &model)
        .map_err(|e| format!("on the device: {e}"))?;
    let flushed = bench.lab.counter("FSYNC")?;
    ensure!(flushed >= 3, "only {flushed} FSYNCs");
    Ok(())
}

/// With RWF_NOWAIT nothing is asked and nothing is written.
fn nowait(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&bench.lab.path(&name))?;
    file.write_all_at(&[1; 5000], 0)
        .map_err(|e| format!("write: {e}"))?;
    let before = bench.lab.activity(&name)?.begins.len();
    let slices = [IoSlice::new(&[2; 100])];
    let result = rustix::io::pwritev2(&file, &slices, 100, ReadWriteFlags::NOWAIT);
    let result = result.map_err(std::io::Error::from);
    let got = pread(&file, 0, 5000).map_err(|e| format!("read: {e}"))?;
    let after = bench.lab.activity(&name)?.begins.len();
    match result {
        Err(e) if errno(&e) == libc::EAGAIN => same(0, &got, &[1; 5000])?,
        Err(e) => return Err(format!("write: {e}")),
        Ok(n) => return Err(format!("{n} bytes were written without asking the server")),
    }
    ensure!(before == after, "the server was asked");
    Ok(())
}

/// msync(2) puts what was stored on the device.
fn msync(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&bench.lab.path(&name))?;
    file.set_len(30_000).map_err(|e| format!("truncate: {e}"))?;
    let data = pattern(6, 9000);
    sys::mmap_write(&file, 5000, &data).map_err(|e| format!("mmap: {e}"))?;
    let mut model = vec![0; 30_000];
    model[5000..14_000].copy_from_slice(&data);
    let map = bench.lab.map(&name)?;
    bench.on_disk(&map, &model)?;
    bench.compare(&file, &name, &model)
}

/// sync(2) and syncfs(2) put everything on the device, and wait for it.
fn sync(bench: &mut Bench, way: &str, whole: bool) -> Outcome {
    let dir = super::workshop(way, 4096);
    let data = pattern(6, 30_000);
    let names: Vec<String> = (0..20).map(|i| format!("{dir}/sync-{i}")).collect();
    for name in &names {
        let file = create(&bench.lab.path(name))?;
        file.write_all_at(&data, 0)
            .map_err(|e| format!("write: {e}"))?;
    }
    if whole {
        rustix::fs::sync();
    } else {
        let root = std::fs::File::open(bench.lab.path("")).map_err(|e| e.to_string())?;
        rustix::fs::syncfs(&root).map_err(|e| format!("syncfs: {e}"))?;
    }
    for name in &names {
        let map = bench.lab.map(name)?;
        let size = map.size;
        ensure!(size == data.len() as u64, "{name}: size on disk {size}");
        bench
            .on_disk(&map, &data)
            .map_err(|e| format!("{name}: {e}"))?;
        std::fs::remove_file(bench.lab.path(name)).map_err(|e| format!("unlink: {e}"))?;
    }
    Ok(())
}

/// Writes of a whole extent ask once for writeback, not once a page.
fn few_questions(bench: &mut Bench) -> Outcome {
    let name = name("delalloc");
    let mut file = create(&bench.lab.path(&name))?;
    file.write_all(&pattern(7, 256 << 10))
        .map_err(|e| format!("write: {e}"))?;
    let before = bench.lab.tally()?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let after = bench.lab.tally()?;
    let begins = after.writebacks - before.writebacks;
    let map = bench.lab.map(&name)?;
    let extents = map.entries.iter().filter(|e| e.kind == MapKind::Written);
    // A piece of the map may have been merged from several answers.
    let most = 64.max(extents.count() as u64);
    ensure!(
        begins <= most,
        "{begins} BEGINs for writeback of 64 pages in pieces of up to 5 blocks"
    );
    Ok(())
}

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (what, ops) in CASES {
        tap.case(what, || bench.everywhere(ops));
    }
    for (way, _) in ways() {
        for (what, flags) in [("O_SYNC", libc::O_SYNC), ("O_DSYNC", libc::O_DSYNC)] {
            tap.case(&format!("{way}: {what} means on the device"), || {
                synchronous(bench, way, flags)
            });
        }
        tap.case(&format!("{way}: RWF_NOWAIT asks nobody"), || {
            nowait(bench, way)
        });
        for (what, whole) in [("sync", true), ("syncfs", false)] {
            tap.case(&format!("{way}: {what} means on the device"), || {
                sync(bench, way, whole)
            });
        }
        tap.case(&format!("{way}: msync means on the device"), || {
            msync(bench, way)
        });
    }
    tap.case("writeback asks for extents, not for pages", || {
        few_questions(bench)
    });
}
