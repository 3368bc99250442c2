// SPDX-License-Identifier: GPL-2.0 OR MIT
//! fadvise: what is in the page cache afterwards.

use super::make;
use crate::pair::{Pair, Side};
use crate::seen::{Seen, outcome};
use crate::sys::{advise, resident};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// As many as are read at once, whatever the device.
const PAGES: usize = 32;
const SIZE: i64 = PAGES as i64 * 4096;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("a file that is clean", |side| {
        let file = make(&side.path("file"), &[7; SIZE as usize])?;
        file.sync_all()?;
        after(&file, libc::POSIX_FADV_DONTNEED, (0, 0), 0)
    });
    pair.step("some of it is wanted", |side| {
        let file = opened(side)?;
        after(&file, libc::POSIX_FADV_WILLNEED, (8 * 4096, 16 * 4096), 16)
    });
    pair.step("some of that is not", |side| {
        let file = opened(side)?;
        after(&file, libc::POSIX_FADV_DONTNEED, (8 * 4096, 4 * 4096), 12)
    });
    pair.step("all of it is wanted", |side| {
        let file = opened(side)?;
        after(&file, libc::POSIX_FADV_WILLNEED, (0, 0), PAGES)
    });
    pair.step("more than there is", |side| {
        let file = opened(side)?;
        after(&file, libc::POSIX_FADV_WILLNEED, (SIZE * 2, SIZE), PAGES)
    });
    pair.step("a dirty page is not needed", |side| {
        let file = opened(side)?;
        file.write_all_at(&[9; 4096], 4096)?;
        let seen = after(&file, libc::POSIX_FADV_DONTNEED, (0, 0), 0);
        let mut data = [0; 4096];
        file.read_exact_at(&mut data, 4096)?;
        Ok(format!("{}, kept {}", seen?, data == [9; 4096]))
    });
    for (what, advice) in [
        ("normal", libc::POSIX_FADV_NORMAL),
        ("random", libc::POSIX_FADV_RANDOM),
        ("sequential", libc::POSIX_FADV_SEQUENTIAL),
        ("once", libc::POSIX_FADV_NOREUSE),
        ("no advice", 77),
        ("negative advice", -1),
    ] {
        pair.step(what, |side| {
            Ok(outcome(advise(&opened(side)?, 0, SIZE, advice)))
        });
    }
    pair.step("a negative length", |side| {
        let advice = libc::POSIX_FADV_WILLNEED;
        Ok(outcome(advise(&opened(side)?, 0, -1, advice)))
    });
}

fn opened(side: &Side) -> std::io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(side.path("file"))
}

/// Pages that are cached when advice was followed, which may take a while: until there are as many as
/// expected, or for ever.
fn after(file: &File, advice: i32, (offset, length): (i64, i64), expected: usize) -> Seen {
    let how = outcome(advise(file, offset, length, advice));
    let start = Instant::now();
    let mut pages = resident(file, PAGES)?;
    while pages != expected && start.elapsed() < Duration::from_secs(2) {
        // What is under writeback stays, and can only be dropped when that is done.
        advise(file, offset, length, advice)?;
        pages = resident(file, PAGES)?;
    }
    Ok(format!("{how}, {pages} pages"))
}
