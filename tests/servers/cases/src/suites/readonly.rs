// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Files that the server will not have written, beside ordinary ones that can be.

use super::{finish, start_iomap};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{fails_with, open_cold, pread, same, write_both_ways};
use crate::sys;
use crate::tap::{Outcome, Tap};
use lab::model::FileModel;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use rustix::fs::{FallocateFlags, fallocate};
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
}
