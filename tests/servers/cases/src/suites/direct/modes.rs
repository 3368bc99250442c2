// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Direct I/O with several requests at a time, and with flags.

use super::super::bench::case::ways;
use super::super::bench::{Bench, open_direct, read_direct};
use super::super::write::{create, name, pattern, with_good_lab};
use crate::aio::{self, Piece};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{errno, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{fopen, iomap_ioend, iomap_op};
use lab::random::Random;
use lab::scenario::Scenario;
use rustix::io::ReadWriteFlags;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

const DEPTH: usize = 32;
const BLOCK: usize = 4096;
/// Not in the crate.
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
const ATOMIC: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x40);

fn all_done(pieces: &[Piece]) -> Outcome {
    for piece in pieces {
        let (want, got) = (piece.data.len() as i64, piece.result);
        ensure!(got == want, "at {}: {got} instead of {want}", piece.offset);
    }
    Ok(())
}

/// What is in the file before requests come in heaps.
fn prepare(file: &File, kind: &str, model: &mut Vec<u8>) -> Outcome {
    let error = |e: std::io::Error| format!("{kind}: {e}");
    match kind {
        "data" => {
            *model = pattern(3, DEPTH * BLOCK * 4);
            file.write_all_at(model, 0).map_err(error)?;
            file.sync_all().map_err(error)
        }
        "unwritten" => {
            let length = (DEPTH * BLOCK * 4) as u64;
            model.resize(length as usize, 0);
            let none = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(file, none, 0, length).map_err(|e| error(e.into()))
        }
        "hole" => {
            model.resize(DEPTH * BLOCK * 4, 0);
            file.set_len(model.len() as u64).map_err(error)
        }
        // "nothing"
        _ => Ok(()),
    }
}

/// Many requests at once, in any order, also beyond the end of the file.
fn heaps(bench: &mut Bench, way: &str, kind: &str) -> Outcome {
    let name = name(way);
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    let mut model = Vec::new();
    prepare(&file, kind, &mut model)?;
    let direct = open_direct(&path)?;
    let mut random = Random::new(17);
    for round in 0..6 {
        let mut slots: Vec<u64> = (0..DEPTH as u64 * 4).collect();
        for i in (1..slots.len()).rev() {
            slots.swap(i, random.below(i as u64 + 1) as usize);
        }
        // Of whole blocks, and of sectors that share them.
        let (size, step) = if round % 2 == 0 {
            (BLOCK, BLOCK)
        } else {
            (512, 1024)
        };
        let piece = |slot: &u64| {
            let data = pattern(slot + 1000 * round, size);
            Piece::new(slot * step as u64, data)
        };
        let mut pieces: Vec<Piece> = slots.iter().take(DEPTH).map(piece).collect();
        for piece in &pieces {
            let (start, end) = (piece.offset as usize, piece.offset as usize + size);
            model.resize(model.len().max(end), 0);
            model[start..end].copy_from_slice(&piece.data);
        }
        aio::write(&direct, &mut pieces).map_err(|e| format!("io_submit: {e}"))?;
        all_done(&pieces)?;
        let mut pieces: Vec<Piece> = pieces
            .iter()
            .map(|p| Piece::new(p.offset, vec![0; size]))
            .collect();
        aio::read(&direct, &mut pieces).map_err(|e| format!("io_submit: {e}"))?;
        for piece in &pieces {
            let start = piece.offset as usize;
            let end = model.len().min(start + size);
            same(piece.offset, &piece.data, &model[start..end])?;
        }
    }
    bench.compare(&file, &name, &model)
}

/// Threads that write past the cache, each its own blocks, while another reads and one truncates the
/// free end.
fn threads(bench: &mut Bench, way: &str) -> Outcome {
    const THREADS: u64 = 4;
    const BLOCKS: u64 = 64;
    let name = name(way);
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    file.set_len(BLOCKS * BLOCK as u64)
        .map_err(|e| format!("truncate: {e}"))?;
    let direct = open_direct(&path)?;
    let part = |thread: u64| -> Outcome {
        let mut random = Random::new(thread + 5);
        for _ in 0..60 {
            let block = random.below(BLOCKS / THREADS) * THREADS + thread;
            let data = vec![1 + block as u8; BLOCK];
            sys::write_aligned(&direct, block * BLOCK as u64, &data)
                .map_err(|e| format!("write: {e}"))?;
            let at = random.below(BLOCKS);
            let got = read_direct(&direct, at * BLOCK as u64, BLOCK);
            let got = got.map_err(|e| format!("read: {e}"))?;
            let whole = got.iter().all(|b| *b == 1 + at as u8) || got.iter().all(|b| *b == 0);
            // Blocks written meanwhile may be torn, but never anybody else's.
            let own = got.iter().all(|b| *b == 0 || *b == 1 + at as u8);
            ensure!(whole || own, "block {at} has {:#x}", got[0]);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|t| scope.spawn(move || part(t))).collect();
        threads.into_iter().try_for_each(|t| {
            t.join()
                .unwrap_or_else(|_| Err("a thread panicked".to_owned()))
        })
    })?;
    let model = pread(&file, 0, (BLOCKS as usize) * BLOCK).map_err(|e| e.to_string())?;
    for (i, block) in model.chunks(BLOCK).enumerate() {
        let good = block.iter().all(|b| *b == block[0]) && [0, 1 + i as u8].contains(&block[0]);
        ensure!(good, "block {i}");
    }
    bench.compare(&file, &name, &model)
}

/// With RWF_NOWAIT nothing is asked.
fn nowait(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let path = bench.lab.path(&name);
    let data = pattern(8, 16_384);
    create(&path)?
        .write_all_at(&data, 0)
        .map_err(|e| format!("write: {e}"))?;
    let direct = open_direct(&path)?;
    direct.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let before = bench.lab.activity(&name)?.begins.len();
    let page = Page([7; BLOCK]);
    let result = rustix::io::pwritev2(&direct, &[IoSlice::new(&page.0)], 0, ReadWriteFlags::NOWAIT);
    let result = result.map_err(std::io::Error::from);
    let after = bench.lab.activity(&name)?.begins.len();
    ensure!(before == after, "the server was asked");
    match result {
        Err(e) if errno(&e) == libc::EAGAIN => {}
        other => return Err(format!("a write came to {other:?}")),
    }
    let got = pread(&direct_off(&path)?, 0, data.len()).map_err(|e| e.to_string())?;
    same(0, &got, &data)
}

#[repr(align(4096))]
struct Page([u8; BLOCK]);

fn direct_off(path: &std::path::Path) -> Result<File, String> {
    File::open(path).map_err(|e| format!("open: {e}"))
}

/// RWF_DONTCACHE changes nothing but what stays cached.
fn dontcache(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&bench.lab.path(&name))?;
    let mut model = pattern(9, 20_000);
    for (from, to) in [(0, 7000), (7000, 20_000), (100, 300)] {
        if from == 100 {
            model[from..to].fill(0x55);
        }
        let part = [IoSlice::new(&model[from..to])];
        let n = rustix::io::pwritev2(&file, &part, from as u64, DONTCACHE);
        match n {
            Ok(n) => ensure!(n == to - from, "a short write of {n}"),
            Err(e) => return Err(format!("write: {e}")),
        }
    }
    let mut got = vec![0; model.len()];
    let n = rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut got)], 0, DONTCACHE);
    ensure!(n == Ok(model.len()), "read: {n:?}");
    same(0, &got, &model)?;
    bench.compare(&file, &name, &model)
}

/// Untorn writes are refused where the server does not promise them, and through the page cache.
fn atomic(bench: &mut Bench, way: &str) -> Outcome {
    let name = name(way);
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    let data = pattern(4, BLOCK);
    file.write_all_at(&data, 0).map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| e.to_string())?;
    let page = Page([7; BLOCK]);
    let direct = open_direct(&path)?;
    for (how, file) in [("buffered", &file), ("direct", &direct)] {
        let result = rustix::io::pwritev2(file, &[IoSlice::new(&page.0)], 0, ATOMIC);
        let refused = [rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::INVAL];
        ensure!(
            result.is_err_and(|e| refused.contains(&e)),
            "{how}: {result:?}"
        );
    }
    bench.compare(&file, &name, &data)
}

/// IOEND is sent for what needs it, with the flags that say why.
fn flags(bench: &mut Bench) -> Outcome {
    let name = name("cow");
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    let direct = open_direct(&path)?;
    let (shared, unwritten, append) = (
        iomap_ioend::SHARED,
        iomap_ioend::UNWRITTEN,
        iomap_ioend::APPEND,
    );
    let data = vec![3; 8192];
    let mut step = |what: &str, offset: u64, want: Option<u32>| -> Outcome {
        let before = bench.lab.activity(&name)?;
        sys::write_aligned(&direct, offset, &data).map_err(|e| format!("{what}: {e}"))?;
        let after = bench.lab.activity(&name)?;
        let new = &after.ioends[before.ioends.len()..];
        let all = new.iter().fold(0, |all, ioend| all | ioend.flags);
        let want = want.map_or(0, |flags| flags | iomap_ioend::DIRECT);
        ensure!(all == want, "{what}: flags {all:#x} instead of {want:#x}");
        let begins = &after.begins[before.begins.len()..];
        let direct = iomap_op::WRITE | iomap_op::DIRECT;
        let good = begins.iter().all(|b| b.opflags & direct == direct);
        ensure!(good && !begins.is_empty(), "{what}: {begins:?}");
        if what == "appending" {
            bench.lab.snapshot(&name)?;
        }
        Ok(())
    };
    step("a new file", 0, Some(unwritten | append))?;
    step("overwriting", 0, None)?;
    step("appending", 8192, Some(unwritten | append))?;
    step("shared blocks", 0, Some(shared | unwritten))?;
    step("what was shared", 0, None)?;
    bench.lab.drop_snapshots()?;
    file.set_len(65_536).map_err(|e| e.to_string())?;
    let mut model = vec![3; 16_384];
    model.resize(65_536, 0);
    bench.compare(&file, &name, &model)
}

/// The server has all files read and written past the cache, whatever the caller asked for.
fn forced(lab: &mut lab::client::Lab) -> Outcome {
    for (way, _) in ways() {
        let path = lab.path(&name(way));
        let file = create(&path)?;
        let mut model = pattern(6, 30_000);
        for (from, to) in [(0, 10_000), (10_000, 30_000), (513, 777), (4096, 8192)] {
            model[from..to].iter_mut().for_each(|b| *b ^= 0x42);
            file.write_all_at(&model[from..to], from as u64)
                .map_err(|e| format!("{way}: write: {e}"))?;
            let got = pread(&file, 0, to + 1).map_err(|e| format!("{way}: read: {e}"))?;
            let end = got.len().min(to);
            same(0, &got[..end], &model[..end])?;
        }
        let got = pread(&file, 1, model.len()).map_err(|e| format!("{way}: read: {e}"))?;
        same(1, &got, &model[1..])?;
        file.sync_all().map_err(|e| format!("{way}: fsync: {e}"))?;
        let begins = lab.activity(&name(way))?.begins;
        let direct = begins.iter().any(|b| b.opflags & iomap_op::DIRECT != 0);
        ensure!(direct, "{way}: nothing was direct");
    }
    Ok(())
}

/// Runs those that share a server.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (way, _) in ways() {
        for kind in ["data", "unwritten", "hole", "nothing"] {
            tap.case(&format!("{way}: heaps of requests, {kind}"), || {
                heaps(bench, way, kind)
            });
        }
        tap.case(&format!("{way}: threads"), || threads(bench, way));
        tap.case(&format!("{way}: RWF_NOWAIT asks nobody"), || {
            nowait(bench, way)
        });
        tap.case(&format!("{way}: RWF_DONTCACHE"), || dontcache(bench, way));
        tap.case(&format!("{way}: RWF_ATOMIC is refused"), || {
            atomic(bench, way)
        });
    }
    tap.case("IOEND says what is to be done", || flags(bench));
}

/// Runs those that need a server of their own.
pub fn run_apart(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    let mut scenario = scenario.clone();
    scenario.options.open_flags = fopen::DIRECT_IO;
    tap.case("FOPEN_DIRECT_IO", || {
        with_good_lab(machine, &scenario, forced)
    });
}
