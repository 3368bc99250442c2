// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Data that is in the inode: read with READ, written through with WRITE, and no more so once it needs
//! blocks. What is generated is in the suites of writing, as a way of mapping of its own.

use super::bench::{Bench, open_direct, scenario};
use super::write::{create, name, pattern, rule};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{errno, fails_with, pread, same};
use crate::sys::{self, fiemap};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{ADDR_NULL, iomap_op, iomap_type};
use lab::client::Lab;
use lab::misbehave::Action;
use std::fs::File;
use std::os::unix::fs::FileExt;

const WAY: &str = "inline";

/// A file with so many bytes inline, and nothing of it in the page cache.
fn file(lab: &mut Lab, length: usize) -> Result<(String, File, Vec<u8>), String> {
    let name = name(WAY);
    // What has blocks once, keeps to them. The first time there is no such file.
    let _ = std::fs::remove_file(lab.path(&name));
    let file = create(&lab.path(&name))?;
    let model = pattern(31, length);
    file.write_all_at(&model, 0)
        .map_err(|e| format!("write: {e}"))?;
    cool(&file)?;
    let inline = lab.map(&name)?.inline.ok_or("it is not inline")?;
    same(0, &inline, &model)?;
    Ok((name, file, model))
}

fn cool(file: &File) -> Outcome {
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    crate::files::cool(file)
}

/// What is written is at the server when the write returns, and read from there.
fn through(bench: &mut Bench) -> Outcome {
    let (name, file, mut model) = file(&mut bench.lab, 3000)?;
    let writes = bench.lab.counter("WRITE")?;
    for (offset, data) in [
        (0, &b"start"[..]),
        (1500, b"middle"),
        (2998, b"over the end"),
    ] {
        file.write_all_at(data, offset as u64)
            .map_err(|e| format!("write: {e}"))?;
        model.resize(model.len().max(offset + data.len()), 0);
        model[offset..offset + data.len()].copy_from_slice(data);
        let inline = bench.lab.map(&name)?.inline.ok_or("it is not inline")?;
        same(0, &inline, &model).map_err(|e| format!("at the server: {e}"))?;
    }
    let writes = bench.lab.counter("WRITE")? - writes;
    ensure!(writes == 3, "{writes} WRITEs");
    cool(&file)?;
    let reads = bench.lab.counter("READ")?;
    let got = pread(&file, 0, 4096).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &model)?;
    ensure!(bench.lab.counter("READ")? > reads, "no READ");
    let mapped = sys::mmap_peek(&file, 0, model.len()).map_err(|e| format!("mmap: {e}"))?;
    same(0, &mapped, &model)?;
    bench.compare(&file, &name, &model)
}

/// It is reported as what it is.
fn reported(bench: &mut Bench) -> Outcome {
    let (_, file, _) = file(&mut bench.lab, 3000)?;
    let extents = sys::fiemap(&file, 0, 65_536, 8).map_err(|e| format!("FIEMAP: {e}"))?;
    let [extent] = extents[..] else {
        return Err(format!("{extents:?}"));
    };
    let flags = fiemap::DATA_INLINE | fiemap::LAST;
    ensure!(extent.flags & flags == flags, "{extent:?}");
    Ok(())
}

/// What it takes to need blocks.
fn needs_blocks(bench: &mut Bench, what: &str) -> Outcome {
    let (name, file, mut model) = file(&mut bench.lab, 3000)?;
    let done = match what {
        "a store" => {
            model[5..9].copy_from_slice(b"here");
            sys::mmap_poke(&file, 5, b"here")
        }
        "a write beyond a page" => {
            model.resize(5000, 0);
            model[2000..5000].fill(3);
            file.write_all_at(&[3; 3000], 2000)
        }
        "a write far away" => {
            model.resize(50_000, 0);
            model.push(9);
            file.write_all_at(&[9], 50_000)
        }
        "growth" => {
            model.resize(50_000, 0);
            file.set_len(50_000)
        }
        "space ahead" => {
            let keep = rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, keep, 0, 65_536).map_err(Into::into)
        }
        _ => {
            let direct = open_direct(&bench.lab.path(&name))?;
            model[512..1024].fill(7);
            sys::write_aligned(&direct, 512, &[7; 512])
        }
    };
    done.map_err(|e| format!("{what}: {e}"))?;
    bench.compare(&file, &name, &model)?;
    let map = bench.lab.map(&name)?;
    // A direct write may have gone through the page cache.
    if what != "a direct write" {
        ensure!(map.inline.is_none(), "it is still inline");
    }
    Ok(())
}

/// What the server fails, the caller is told.
fn refused(bench: &mut Bench) -> Outcome {
    let (name, file, model) = file(&mut bench.lab, 3000)?;
    for (value, wanted) in [
        (libc::ENOSPC, libc::ENOSPC),
        (libc::ENOSYS, libc::EIO),
        (libc::EIO, libc::EIO),
    ] {
        bench.lab.refuse("WRITE", value)?;
        let result = file.write_at(b"lost", 10);
        bench.lab.refuse("WRITE", 0)?;
        fails_with(&format!("write, errno {value}"), result, &[wanted])?;
        cool(&file)?;
        bench.lab.refuse("READ", value)?;
        let result = pread(&file, 0, 100);
        bench.lab.refuse("READ", 0)?;
        if let Ok(data) = &result {
            return Err(format!("{} bytes were read", data.len()));
        }
        if let Err(e) = result {
            ensure!([wanted, libc::EIO].contains(&errno(&e)), "read: {e}");
        }
    }
    let got = pread(&file, 0, 4096).map_err(|e| format!("read afterwards: {e}"))?;
    same(0, &got, &model)?;
    bench.compare(&file, &name, &model)
}

/// A server that has less than it says.
fn short(bench: &mut Bench) -> Outcome {
    let (name, file, model) = file(&mut bench.lab, 3000)?;
    for payload in [0, 1, 2999] {
        let cut = Action::Resize { payload };
        bench
            .lab
            .set_rules(vec![rule("READ", &name, (0, 0), cut)])?;
        let result = pread(&file, 0, 3000);
        fails_with(&format!("{payload} bytes"), result, &[libc::EIO])?;
    }
    bench.lab.set_rules(Vec::new())?;
    let got = pread(&file, 0, 4096).map_err(|e| format!("read afterwards: {e}"))?;
    same(0, &got, &model)
}

/// INLINE where there can be none.
fn forbidden(bench: &mut Bench) -> Outcome {
    let inline = |side: &str| {
        let field = |f: &str, v: u64| (format!("{side}.{f}"), v);
        vec![
            field("type", iomap_type::INLINE.into()),
            field("offset", 0),
            field("length", 4096),
            field("addr", ADDR_NULL),
            field("dev", 0),
        ]
    };
    let both = [inline("read"), inline("write")].concat();
    for (what, set, flags, act) in [
        (
            "to write only",
            inline("write"),
            (iomap_op::WRITE, iomap_op::WRITEBACK),
            0,
        ),
        (
            "for a store",
            both.clone(),
            (iomap_op::FAULT | iomap_op::WRITE, 0),
            1,
        ),
        ("for writeback", both, (iomap_op::WRITEBACK, 0), 2),
    ] {
        let name = name("unwritten");
        let file = create(&bench.lab.path(&name))?;
        let model = pattern(5, 4096);
        file.write_all_at(&model, 0)
            .map_err(|e| format!("write: {e}"))?;
        cool(&file)?;
        let lie = rule("IOMAP_BEGIN", &name, flags, Action::Fields { set });
        bench.lab.set_rules(vec![lie])?;
        let result = match act {
            0 => file.write_all_at(b"lost", 5),
            1 => sys::mmap_poke(&file, 5, b"lost"),
            _ => file.write_all_at(b"lost", 5).and_then(|()| file.sync_all()),
        };
        let fired = bench.lab.fired()?;
        bench.lab.set_rules(Vec::new())?;
        ensure!(fired > 0, "{what}: the server did not get to misbehave");
        let errnos = [libc::EUCLEAN, libc::EFAULT, libc::EIO];
        fails_with(what, result, &errnos)?;
    }
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    // Nothing is cached, so that the kernel asks.
    let scenario = scenario(75, None);
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    tap.case("written through, and read", || through(&mut bench));
    tap.case("reported", || reported(&mut bench));
    for what in [
        "a store",
        "a write beyond a page",
        "a write far away",
        "growth",
        "space ahead",
        "a direct write",
    ] {
        tap.case(&format!("{what} needs blocks"), || {
            needs_blocks(&mut bench, what)
        });
    }
    tap.case("the server fails", || refused(&mut bench));
    tap.case("the server has less", || short(&mut bench));
    tap.case("INLINE where there can be none", || forbidden(&mut bench));
    super::finish(tap, bench.lab);
}
