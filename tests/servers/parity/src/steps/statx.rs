// SPDX-License-Identifier: GPL-2.0 OR MIT
//! statx: what programs look at before they do direct I/O.

use super::make;
use crate::pair::Pair;
use crate::seen::Seen;
use crate::sys::statx_words;
use std::path::Path;

const DIOALIGN: u32 = 0x2000;
const SUBVOL: u32 = 0x8000;
const WRITE_ATOMIC: u32 = 0x1_0000;
const ALL: u32 = 0x7ff | 0x800 | DIOALIGN | SUBVOL | WRITE_ATOMIC;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("a file that is empty", |side| {
        make(&side.path("empty"), b"")?;
        shown(&side.path("empty"))
    });
    pair.step("a file with data", |side| {
        make(&side.path("data"), &[7; 100_000])?;
        shown(&side.path("data"))
    });
    pair.step("a directory", |side| shown(&side.root));
    pair.step("a link", |side| {
        std::os::unix::fs::symlink("data", side.path("link"))?;
        shown(&side.path("link"))
    });
    pair.step("asked for one thing only", |side| {
        let words = statx_words(&side.path("data"), DIOALIGN)?;
        Ok(format!("memory {}, offset {}", words[38], words[39]))
    });
    pair.step("mounted again", |side| shown(&side.path("data")));
}

fn shown(path: &Path) -> Seen {
    let words = statx_words(path, ALL)?;
    Ok(format!(
        "has {:#x}, blocks of {}, memory {}, offset {}, subvolume {}, atomic {} to {}, segments {}",
        words[0] & (DIOALIGN | SUBVOL | WRITE_ATOMIC | 0xfff),
        words[1],
        words[38],
        words[39],
        words[40],
        words[42],
        words[43],
        words[44],
    ))
}
