// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Times: what moves which, how access times behave with each mount option, and that they last.

use super::make;
use crate::pair::Pair;
use crate::seen::{Broken, change_of, changes};
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, utimensat};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    data(pair);
    explicit(pair);
    metadata(pair);
}

/// Sets access and modification time, each `None` to leave it.
fn set(path: &Path, atime: Option<Timespec>, mtime: Option<Timespec>) -> Result<(), Broken> {
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: atime.unwrap_or(omit),
        last_modification: mtime.unwrap_or(omit),
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};

const fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

fn writable(path: &Path) -> Result<File, Broken> {
    Ok(OpenOptions::new().read(true).write(true).open(path)?)
}

fn data(pair: &mut Pair) {
    pair.step("a file is made", |side| {
        changes(&[&side.root], || {
            make(&side.path("data"), &[7; 10_000])?;
            Ok(())
        })
    });
    pair.step("a write", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.write_all_at(b"new", 0)?))
    });
    pair.step("a write of nothing", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.write_all(b"")?))
    });
    pair.step("truncation to another size", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.set_len(5000)?))
    });
    pair.step("ftruncate to the same size", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.set_len(5000)?))
    });
}

fn explicit(pair: &mut Pair) {
    pair.step("both times are set", |side| {
        let path = side.path("data");
        change_of(&path, || {
            set(&path, Some(at(1_000_000_000, 123_456_789)), Some(at(2, 5)))
        })
    });
    pair.step("both are set to now", |side| {
        let path = side.path("data");
        change_of(&path, || set(&path, Some(NOW), Some(NOW)))
    });
}

fn metadata(pair: &mut Pair) {
    pair.step("chmod", |side| {
        let path = side.path("data");
        change_of(&path, || {
            Ok(rustix::fs::chmod(&path, rustix::fs::Mode::from(0o640))?)
        })
    });
    pair.step("link", |side| {
        let path = side.path("data");
        changes(&[&path, &side.root], || {
            Ok(std::fs::hard_link(&path, side.path("link"))?)
        })
    });
}
