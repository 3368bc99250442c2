// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Files that the server will not have written, beside ordinary ones that can be.

use super::bench::{self, Bench};
use super::write::{create, pattern, rule};
use super::{finish, start_iomap};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{cool, fails_with, open_cold, pread, same, write_both_ways};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_op;
use lab::misbehave::Action;
use lab::model::FileModel;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, mount_remount};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const SIZE: u64 = 65_536;

fn scenario() -> Scenario {
    let mut s = empty_scenario(53);
    let addr = Layout::new().take(0, SIZE, 4096);
    let extent = ExtentSpec::mapped(0, SIZE, 0, addr);
    s.file("iomap", FileSpec::iomap(SIZE, 4096, vec![extent]));
    s.file("ordinary", FileSpec::ordinary(SIZE));
    s
}

/// Every attempt at a change is refused with what the server says.
fn refused(path: &Path) -> Outcome {
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|e| format!("open: {e}"))?;
    for (offset, length) in [
        (0, 1),
        (100, 10_000),
        (SIZE - 1, 2),
        (SIZE, 1),
        (SIZE + 10_000, 1),
    ] {
        let data = vec![1; length];
        fails_with("write", file.write_at(&data, offset), &[libc::EROFS])?;
        let size = file.metadata().map_err(|e| e.to_string())?.len();
        ensure!(size == SIZE, "size {size} after a write at {offset}");
    }
    fails_with("store", sys::mmap_poke(&file, 5000, b"x"), &[libc::EFAULT])?;
    for size in [0, 1, SIZE - 1, SIZE, SIZE + 1] {
        fails_with("ftruncate", file.set_len(size), &[libc::EROFS])?;
        fails_with("truncate", sys::truncate(&c_path, size), &[libc::EROFS])?;
    }
    let truncated = OpenOptions::new().write(true).truncate(true).open(path);
    fails_with("O_TRUNC", truncated, &[libc::EROFS])?;
    let punched = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
    for flags in [FallocateFlags::empty(), punched] {
        let result = fallocate(&file, flags, 0, 8192);
        // The server does not do that at all.
        fails_with("fallocate", result.map_err(Into::into), &[libc::EOPNOTSUPP])?;
    }
    file.sync_all().map_err(|e| format!("fsync: {e}"))
}

fn remount(path: &Path, flags: MountFlags) -> std::io::Result<()> {
    Ok(mount_remount(path, flags, "")?)
}

/// Remounting read-only has to wait for writers, writes what is dirty, and then nothing can be changed.
fn remounted(bench: &mut Bench) -> Outcome {
    let name = "unwritten-4096/remounted";
    let path = bench.lab.path(name);
    let top = bench.lab.mountpoint().to_owned();
    let model = pattern(12, 50_000);
    let file = create(&path)?;
    file.write_all_at(&model, 0)
        .map_err(|e| format!("write: {e}"))?;
    let early = remount(&top, MountFlags::RDONLY);
    fails_with("remount with a writer", early, &[libc::EBUSY])?;
    drop(file);
    remount(&top, MountFlags::RDONLY).map_err(|e| format!("remount read-only: {e}"))?;
    let map = bench.lab.map(name)?;
    ensure!(map.size == model.len() as u64, "size on disk {}", map.size);
    bench.on_disk(&map, &model)?;
    let opened = OpenOptions::new().write(true).open(&path);
    fails_with("open for writing", opened, &[libc::EROFS])?;
    let c_path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    fails_with("truncate", sys::truncate(&c_path, 10), &[libc::EROFS])?;
    fails_with("unlink", std::fs::remove_file(&path), &[libc::EROFS])?;
    let got = pread(&open_cold(&path)?, 0, model.len() + 1).map_err(|e| e.to_string())?;
    same(0, &got, &model)?;
    remount(&top, MountFlags::empty()).map_err(|e| format!("remount for writing: {e}"))?;
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.map_err(|e| format!("open afterwards: {e}"))?;
    file.write_all_at(&model[..10_000], 50_000)
        .map_err(|e| format!("write afterwards: {e}"))?;
    let model = [&model[..], &model[..10_000]].concat();
    bench.compare(&file, name, &model)
}

/// The server finds that it must not write any more, as after an error of its disk, when there is dirty
/// data: fsync says so, what was there before can be read, and remounting read-only works.
fn turned(bench: &mut Bench, way: &str) -> Outcome {
    let name = format!("{way}-4096/turned");
    let path = bench.lab.path(&name);
    let top = bench.lab.mountpoint().to_owned();
    let model = pattern(13, 40_000);
    let file = create(&path)?;
    file.write_all_at(&model, 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    file.write_all_at(&[1; 5000], 40_000)
        .map_err(|e| format!("write: {e}"))?;
    let no = || Action::Error {
        value: -libc::EROFS,
    };
    let write = (iomap_op::WRITE, 0);
    bench.lab.set_rules(vec![
        rule("IOMAP_BEGIN", &name, write, no()),
        rule("IOMAP_IOEND", &name, (0, 0), no()),
        rule("SETATTR", &name, (0, 0), no()),
    ])?;
    let result = (|| {
        fails_with("fsync", file.sync_all(), &[libc::EROFS])?;
        fails_with("write", file.write_at(&[2; 5000], 90_000), &[libc::EROFS])?;
        fails_with("truncate", file.set_len(100), &[libc::EROFS])?;
        cool(&file)?;
        let got = pread(&file, 0, 40_000).map_err(|e| format!("read: {e}"))?;
        same(0, &got, &model)?;
        Ok(())
    })();
    drop(file);
    let result = result.and_then(|()| {
        remount(&top, MountFlags::RDONLY).map_err(|e| format!("remount read-only: {e}"))?;
        let got = pread(&open_cold(&path)?, 0, 40_000).map_err(|e| format!("read: {e}"))?;
        same(0, &got, &model)?;
        remount(&top, MountFlags::empty()).map_err(|e| format!("remount for writing: {e}"))
    });
    bench.lab.set_rules(Vec::new())?;
    result
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario = scenario();
    let Some(lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    let path = lab.path("iomap");
    tap.case("every change is refused", || refused(&path));
    tap.case("the file is as it was", || {
        let file = open_cold(&path)?;
        let size = file.metadata().map_err(|e| e.to_string())?.len();
        ensure!(size == SIZE, "size {size}");
        let model = FileModel::new(scenario.seed, 0, file_spec(&scenario, "iomap")?)?;
        let got = pread(&file, 0, SIZE as usize).map_err(|e| e.to_string())?;
        same(0, &got, &model.bytes(0..SIZE))
    });
    tap.case("O_DIRECT reads the same or is refused", || {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path);
        let file = match file {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            other => other.map_err(|e| format!("open: {e}"))?,
        };
        let model = FileModel::new(scenario.seed, 0, file_spec(&scenario, "iomap")?)?;
        let got = sys::read_aligned(&file, 4096, 8192).map_err(|e| format!("read: {e}"))?;
        same(4096, &got, &model.bytes(4096..12_288))
    });
    tap.case("an ordinary file on the same mount is written", || {
        let path = lab.path("ordinary");
        let file = write_both_ways(&path)?;
        file.set_len(10_000).map_err(|e| format!("truncate: {e}"))?;
        drop(file);
        let file = open_cold(&path)?;
        let got = pread(&file, 0, SIZE as usize).map_err(|e| e.to_string())?;
        ensure!(got.len() == 10_000, "size {}", got.len());
        ensure!(&got[5000..5007] == b"written", "written data is not there");
        ensure!(&got[9000..9006] == b"mapped", "mapped data is not there");
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .map_err(|e| format!("O_TRUNC: {e}"))?;
        let size = File::open(&path)
            .and_then(|f| f.metadata())
            .map(|m| m.len());
        ensure!(
            size.as_ref().is_ok_and(|s| *s == 0),
            "after O_TRUNC: {size:?}"
        );
        Ok(())
    });
    finish(tap, lab);
    let mut scenario = bench::scenario(55, None);
    scenario.options.fill = false;
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    tap.case("remounting read-only and back", || remounted(&mut bench));
    for way in ["unwritten", "delalloc", "cow-always"] {
        tap.case(&format!("{way}: the server turns read-only"), || {
            turned(&mut bench, way)
        });
    }
    finish(tap, bench.lab);
}
