// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Offsets at the end of what a file can be: the filesystem's limit, and the process's.

use super::{make, open};
use crate::memory::{Buffer, Memory, file_size_signal};
use crate::pair::{Pair, Side};
use crate::seen::{Broken, Seen, look, outcome};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, seek};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The largest file of extents in blocks of 4096 bytes.
const LIMIT: u64 = (u32::MAX as u64) << 12;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    limit_of_the_process(pair);
    sparse(pair);
}

fn size(side: &Side, name: &str) -> Result<u64, Broken> {
    Ok(look(&side.path(name))?.stx_size)
}

/// How many bytes a call has moved, or its error.
fn moved(result: std::io::Result<usize>) -> String {
    match result {
        Ok(n) => n.to_string(),
        Err(err) => outcome::<(), _>(Err(err)),
    }
}

#[expect(
    dead_code,
    reason = "until the limit that the server says is seen to be the kernel's"
)]
fn limit_of_the_filesystem(pair: &mut Pair) {
    pair.step("a file is made for the limit", |side| {
        make(&side.path("large"), b"")?;
        Ok("ok".into())
    });
    for (at, length) in [
        (LIMIT - 1, 1),
        (LIMIT - 1, 2),
        (LIMIT, 1),
        (LIMIT, 0),
        (LIMIT + 1, 1),
        (LIMIT - 4096, 8192),
        (i64::MAX as u64, 1),
        (i64::MAX as u64 - 1, 1),
    ] {
        let name = format!(
            "write {length} at the limit {:+}",
            at as i128 - i128::from(LIMIT)
        );
        pair.step(&name, |side| {
            let file = open(side, "large", OFlags::RDWR)?;
            let wrote = moved(file.write_at(&vec![7; length], at));
            let shown = format!("{wrote}, size {:#x}", size(side, "large")?);
            file.set_len(0)?;
            Ok(shown)
        });
    }
    pair.step("a direct write at the limit", |side| {
        let file = open(side, "large", OFlags::RDWR | OFlags::DIRECT)?;
        let buffer = Buffer::new(8192, 0, 7);
        let mut shown = Vec::new();
        for at in [LIMIT - 4096, LIMIT - 8192, LIMIT] {
            shown.push(moved(buffer.write_to(0, 8192, &file, at)));
        }
        shown.push(format!("size {:#x}", size(side, "large")?));
        file.set_len(0)?;
        Ok(shown.join(", "))
    });
    pair.step("truncation up to the limit, and past it", |side| {
        let file = open(side, "large", OFlags::RDWR)?;
        let mut shown = Vec::new();
        for to in [LIMIT, LIMIT + 1, i64::MAX as u64, LIMIT - 1] {
            shown.push(outcome(file.set_len(to)));
        }
        shown.push(format!("size {:#x}", size(side, "large")?));
        Ok(shown.join(", "))
    });
    pair.step("seeking and reading there", |side| {
        let file = open(side, "large", OFlags::RDWR)?;
        file.write_at(b"x", LIMIT - 4097)?;
        let mut shown = Vec::new();
        for to in [
            SeekFrom::Start(LIMIT),
            SeekFrom::Start(LIMIT + 1),
            SeekFrom::End(1),
            SeekFrom::End(2),
            SeekFrom::Data(4096),
            SeekFrom::Hole(LIMIT - 8192),
            SeekFrom::Data(LIMIT - 1),
            SeekFrom::Hole(LIMIT - 1),
            SeekFrom::Data(LIMIT),
        ] {
            let result = seek(&file, to);
            shown.push(match result {
                Ok(at) => format!("{at:#x}"),
                Err(err) => outcome::<(), _>(Err(err)),
            });
        }
        let mut bytes = [1; 16];
        shown.push(moved(file.read_at(&mut bytes, LIMIT - 4)));
        shown.push(moved(file.read_at(&mut bytes, LIMIT)));
        shown.push(moved(file.read_at(&mut bytes, i64::MAX as u64)));
        Ok(shown.join(", "))
    });
    for (name, mode) in [
        ("allocation", FallocateFlags::empty()),
        ("allocation that keeps the size", FallocateFlags::KEEP_SIZE),
        ("zeroing", FallocateFlags::ZERO_RANGE),
        (
            "punching",
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        ),
        ("insertion", FallocateFlags::INSERT_RANGE),
        ("collapsing", FallocateFlags::COLLAPSE_RANGE),
    ] {
        pair.step(&format!("{name} at the limit"), |side| {
            let file = open(side, "large", OFlags::RDWR)?;
            file.set_len(3 << 12)?;
            let mut shown = Vec::new();
            for (at, length) in [
                (LIMIT - 4096, 4096),
                (LIMIT - 4096, 8192),
                (LIMIT, 4096),
                (4096, LIMIT - 4096),
                (4096, LIMIT - 8192),
                (i64::MAX as u64, 4096),
            ] {
                // Allocating terabytes is another test.
                if !mode.intersects(
                    FallocateFlags::PUNCH_HOLE
                        | FallocateFlags::INSERT_RANGE
                        | FallocateFlags::COLLAPSE_RANGE,
                ) && length > 1 << 20
                {
                    continue;
                }
                shown.push(outcome(fallocate(&file, mode, at, length)));
            }
            shown.push(format!("size {:#x}", size(side, "large")?));
            Ok(shown.join(", "))
        });
    }
    pair.step("it is emptied", |side| {
        let file = open(side, "large", OFlags::RDWR)?;
        file.set_len(0)?;
        file.sync_all()?;
        Ok(look(&side.path("large"))?.stx_blocks.to_string())
    });
}

/// Runs `f` where no file may be longer than `most`.
fn limited<T>(most: u64, f: impl FnOnce() -> Result<T, Broken>) -> Result<(T, bool), Broken> {
    let old = getrlimit(Resource::Fsize);
    let new = Rlimit {
        current: Some(most),
        maximum: old.maximum,
    };
    setrlimit(Resource::Fsize, new)?;
    let (result, signalled) = file_size_signal(f);
    setrlimit(Resource::Fsize, old)?;
    Ok((result?, signalled))
}

fn limit_of_the_process(pair: &mut Pair) {
    let step = |pair: &mut Pair, name: &str, f: &dyn Fn(&File) -> String| {
        pair.step(name, |side| -> Seen {
            let path = side.path("limited");
            drop(make(&path, &[1; 5000])?);
            let file = open(side, "limited", OFlags::RDWR)?;
            let (shown, signalled) = limited(10_000, || Ok(f(&file)))?;
            let signal = if signalled { ", SIGXFSZ" } else { "" };
            let shown = format!("{shown}{signal}, size {}", size(side, "limited")?);
            std::fs::remove_file(path)?;
            Ok(shown)
        });
    };
    step(pair, "a write up to RLIMIT_FSIZE", &|file| {
        moved(file.write_at(&[2; 5000], 5000))
    });
    step(pair, "a write across RLIMIT_FSIZE", &|file| {
        moved(file.write_at(&[2; 5000], 8000))
    });
    step(pair, "a write past RLIMIT_FSIZE", &|file| {
        moved(file.write_at(&[2; 5000], 10_000))
    });
    step(pair, "truncation to RLIMIT_FSIZE", &|file| {
        outcome(file.set_len(10_000))
    });
    step(pair, "truncation past RLIMIT_FSIZE", &|file| {
        outcome(file.set_len(10_001))
    });
    step(pair, "allocation past RLIMIT_FSIZE", &|file| {
        outcome(fallocate(file, FallocateFlags::empty(), 0, 10_001))
    });
    step(pair, "allocation past it that keeps the size", &|file| {
        outcome(fallocate(file, FallocateFlags::KEEP_SIZE, 0, 10_001))
    });
    pair.step("a direct write across RLIMIT_FSIZE", |side| {
        drop(make(&side.path("direct"), &[1; 4096])?);
        let file = open(side, "direct", OFlags::RDWR | OFlags::DIRECT)?;
        let buffer = Buffer::new(8192, 0, 7);
        let (shown, signalled) = limited(8192, || {
            Ok([
                moved(buffer.write_to(0, 8192, &file, 4096)),
                moved(buffer.write_to(0, 8192, &file, 8192)),
            ])
        })?;
        let shown = format!("{shown:?} {signalled} size {}", size(side, "direct")?);
        std::fs::remove_file(side.path("direct"))?;
        Ok(shown)
    });
}

fn sparse(pair: &mut Pair) {
    pair.step("bytes far apart in one file", |side| {
        let path = side.path("sparse");
        let file = make(&path, b"")?;
        let places = [
            0,
            1 << 20,
            1 << 31,
            1 << 32,
            (1 << 32) - 1,
            1 << 40,
            LIMIT - 3,
        ];
        for (i, at) in places.iter().enumerate() {
            file.write_at(&[i as u8 + 1; 3], *at)?;
        }
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        let mut shown = Vec::new();
        for at in places {
            let mut bytes = [9; 5];
            let n = file.read_at(&mut bytes, at.saturating_sub(1))?;
            shown.push(format!("{:?}", &bytes[..n]));
        }
        let s = look(&path)?;
        shown.push(format!("size {:#x}, {} sectors", s.stx_size, s.stx_blocks));
        let mut at = 0;
        while let Ok(data) = seek(&file, SeekFrom::Data(at)) {
            at = seek(&file, SeekFrom::Hole(data))?;
            shown.push(format!("{data:#x}-{at:#x}"));
        }
        std::fs::remove_file(path)?;
        Ok(shown.join(" "))
    });
}
