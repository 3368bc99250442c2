// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What FIEMAP, SEEK_DATA and SEEK_HOLE say after each kind of change.

use super::{make, open};
use crate::memory::{Buffer, Extent, Memory, extent, fiemap};
use crate::pair::Pair;
use crate::seen::{Broken, Seen, outcome};
use rustix::fs::{FallocateFlags as F, OFlags, SeekFrom, fallocate, seek};
use std::fs::{File, remove_file};
use std::os::unix::fs::FileExt;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    changes(pair);
    unsynced(pair);
    arguments(pair);
}

/// Extents in blocks, with `u` for unwritten; where one physical piece ends is the allocator's matter.
fn text(extents: &[Extent]) -> String {
    let mut joined: Vec<(u64, u64, bool)> = Vec::new();
    for (start, length, flags) in extents {
        let unwritten = flags & extent::UNWRITTEN != 0;
        match joined.last_mut() {
            Some((s, l, u)) if *s + *l == *start && *u == unwritten => *l += length,
            _ => joined.push((*start, *length, unwritten)),
        }
    }
    let one = |(s, l, u): &(u64, u64, bool)| {
        format!("{}+{}{}", s / 4096, l / 4096, if *u { "u" } else { "" })
    };
    let last = extents
        .last()
        .is_none_or(|(.., flags)| flags & extent::LAST != 0);
    let all: Vec<String> = joined.iter().map(one).collect();
    format!(
        "[{}{}]",
        all.join(" "),
        if last { "" } else { ", not the last" }
    )
}

fn data(file: &File) -> Result<String, Broken> {
    let mut shown = Vec::new();
    let mut at = 0;
    while let Ok(start) = seek(file, SeekFrom::Data(at)) {
        at = seek(file, SeekFrom::Hole(start))?;
        shown.push(format!("{start}-{at}"));
    }
    Ok(shown.join(" "))
}

fn map(file: &File) -> Seen {
    // One after the other is the same as all at once.
    let (_, all) = fiemap(file, 0, u64::MAX, 0, 500)?;
    let mut single = Vec::new();
    while let Some((start, length, flags)) = single.last().copied().or(Some((0, 0, 0))) {
        if flags & extent::LAST != 0 {
            break;
        }
        let (_, next) = fiemap(file, start + length, u64::MAX - start - length, 0, 1)?;
        match next.first() {
            Some(next) => single.push(*next),
            None => break,
        }
    }
    let same = if text(&single) == text(&all) {
        ""
    } else {
        " and otherwise one by one"
    };
    Ok(format!("{}{same} {}", text(&all), data(file)?))
}

type Step = (&'static str, fn(&File) -> Result<(), Broken>);

const PUNCH: F = F::PUNCH_HOLE.union(F::KEEP_SIZE);
const STEPS: [Step; 22] = [
    ("nothing", |_| Ok(())),
    ("a write", |f| Ok(f.write_all_at(&[1; 10_000], 0)?)),
    ("a write behind a hole", |f| {
        Ok(f.write_all_at(&[1; 10_000], 100_000)?)
    }),
    ("a write into the hole", |f| {
        Ok(f.write_all_at(&[1; 10], 50_000)?)
    }),
    ("growing", |f| Ok(f.set_len(200_000)?)),
    ("allocation of all", |f| {
        Ok(fallocate(f, F::empty(), 0, 200_000)?)
    }),
    ("a write into the middle of that", |f| {
        Ok(f.write_all_at(&[2; 4096], 40_960)?)
    }),
    ("a write of a part of a block", |f| {
        Ok(f.write_all_at(&[2; 10], 150_001)?)
    }),
    ("a hole", |f| Ok(fallocate(f, PUNCH, 8192, 24_576)?)),
    ("a hole in parts of blocks", |f| {
        Ok(fallocate(f, PUNCH, 90_000, 15_000)?)
    }),
    ("zeroing", |f| Ok(fallocate(f, F::ZERO_RANGE, 1000, 3000)?)),
    ("zeroing blocks", |f| {
        Ok(fallocate(f, F::ZERO_RANGE, 102_400, 20_480)?)
    }),
    ("zeroing past the end", |f| {
        Ok(fallocate(f, F::ZERO_RANGE | F::KEEP_SIZE, 190_000, 50_000)?)
    }),
    ("collapse", |f| {
        Ok(fallocate(f, F::COLLAPSE_RANGE, 20_480, 16_384)?)
    }),
    ("insert", |f| {
        Ok(fallocate(f, F::INSERT_RANGE, 4096, 12_288)?)
    }),
    ("insert into unwritten space", |f| {
        Ok(fallocate(f, F::INSERT_RANGE, 118_784, 4096)?)
    }),
    ("truncation into a block", |f| Ok(f.set_len(100_001)?)),
    ("allocation past the end", |f| {
        Ok(fallocate(f, F::KEEP_SIZE, 100_000, 100_000)?)
    }),
    ("truncation to the same size", |f| Ok(f.set_len(100_001)?)),
    ("a write far away", |f| Ok(f.write_all_at(b"far", 1 << 33)?)),
    ("a hole over all", |f| Ok(fallocate(f, PUNCH, 0, 1 << 34)?)),
    ("truncation to nothing", |f| Ok(f.set_len(0)?)),
];

fn changes(pair: &mut Pair) {
    pair.step("a file is made", |side| {
        make(&side.path("changed"), b"")?;
        Ok("ok".into())
    });
    for (name, f) in STEPS {
        pair.step(&format!("after {name}"), |side| {
            let file = open(side, "changed", OFlags::RDWR)?;
            f(&file)?;
            file.sync_all()?;
            map(&file)
        });
    }
    pair.step("many pieces", |side| {
        let file = open(side, "changed", OFlags::RDWR | OFlags::DIRECT)?;
        let buffer = Buffer::new(4096, 0, 3);
        // Backwards, so that no two are one.
        for i in (0..300).rev() {
            buffer.write_to(0, 4096, &file, i * 8192)?;
        }
        file.sync_all()?;
        let (count, none) = fiemap(&file, 0, u64::MAX, 0, 0)?;
        let (_, all) = fiemap(&file, 0, u64::MAX, 0, 400)?;
        Ok(format!("{count} {} {}", none.len(), text(&all)))
    });
    pair.mount_again();
    pair.step("and after mounting again", |side| {
        let file = open(side, "changed", OFlags::RDWR)?;
        map(&file)
    });
}

/// What waits in the cache is data to those who look for data.
fn unsynced(pair: &mut Pair) {
    for (name, f) in STEPS {
        pair.step(
            &format!("data that is not on disk yet, after {name}"),
            |side| {
                let path = side.path("unsynced");
                let file = make(&path, b"")?;
                fallocate(&file, F::empty(), 0, 150_000)?;
                file.write_all_at(&[1; 100], 8192)?;
                file.write_all_at(&[1; 10_000], 60_000)?;
                f(&file)?;
                let before = data(&file)?;
                file.sync_all()?;
                let after = data(&file)?;
                remove_file(path)?;
                Ok(format!("{before}; synced {after}"))
            },
        );
    }
}

fn arguments(pair: &mut Pair) {
    const SYNC: u32 = 1;
    const CACHE: u32 = 4;
    // FIEMAP_FLAG_XATTR is not among these: where attributes are on the disk is known to the server
    // alone, and there is no message to ask it.
    pair.step("what FIEMAP refuses", |side| {
        let path = side.path("arguments");
        let file = make(&path, &[1; 20_000])?;
        file.sync_all()?;
        let mut shown = Vec::new();
        for (start, length, flags, room) in [
            (0, u64::MAX, SYNC, 5),
            (0, u64::MAX, CACHE | 0x8000, 5),
            (0, 0, 0, 5),
            (0, 1, 0, 5),
            (4095, 1, 0, 5),
            (19_999, 1, 0, 5),
            (20_480, 1, 0, 5),
            (1 << 20, 1 << 20, 0, 5),
            (u64::MAX, 1, 0, 5),
            (u64::MAX - 1, 5, 0, 5),
        ] {
            shown.push(match fiemap(&file, start, length, flags, room) {
                Ok((_, extents)) => text(&extents),
                Err(err) => outcome::<(), _>(Err(err)),
            });
        }
        Ok(shown.join(", "))
    });
    pair.step("what lseek refuses", |side| {
        let file = open(side, "arguments", OFlags::RDWR)?;
        let mut shown = Vec::new();
        for to in [
            SeekFrom::Data(19_999),
            SeekFrom::Hole(19_999),
            SeekFrom::Data(20_000),
            SeekFrom::Hole(20_000),
            SeekFrom::Data(u64::MAX),
            SeekFrom::Hole(u64::MAX),
            SeekFrom::End(-20_001),
            SeekFrom::Current(-1),
        ] {
            shown.push(match seek(&file, to) {
                Ok(at) => at.to_string(),
                Err(err) => outcome::<(), _>(Err(err)),
            });
        }
        remove_file(side.path("arguments"))?;
        Ok(shown.join(", "))
    });
    pair.step("what fallocate refuses", |side| {
        let path = side.path("refused");
        let file = make(&path, &[1; 50_000])?;
        let mut shown = Vec::new();
        for (mode, at, length) in [
            (F::empty(), 0, 0),
            (F::COLLAPSE_RANGE, 0, 4096),
            (F::COLLAPSE_RANGE, 100, 4096),
            (F::COLLAPSE_RANGE, 4096, 4000),
            (F::COLLAPSE_RANGE, 45_056, 8192),
            (F::INSERT_RANGE, 100, 4096),
            (F::INSERT_RANGE, 53_248, 4096),
            (F::INSERT_RANGE, 4096, 100),
            (F::PUNCH_HOLE, 0, 4096),
            (F::PUNCH_HOLE | F::KEEP_SIZE | F::ZERO_RANGE, 0, 4096),
            (F::COLLAPSE_RANGE | F::KEEP_SIZE, 4096, 4096),
            (F::UNSHARE_RANGE, 0, 4096),
            (F::from_bits_retain(0x400), 0, 4096),
        ] {
            shown.push(outcome(fallocate(&file, mode, at, length)));
        }
        let read_only = open(side, "refused", OFlags::RDONLY)?;
        shown.push(outcome(fallocate(&read_only, F::empty(), 0, 4096)));
        let append = open(side, "refused", OFlags::WRONLY | OFlags::APPEND)?;
        shown.push(outcome(fallocate(&append, PUNCH, 0, 4096)));
        shown.push(outcome(fallocate(&append, F::COLLAPSE_RANGE, 0, 4096)));
        let directory = rustix::fs::open(&side.root, OFlags::RDONLY, rustix::fs::Mode::empty())?;
        shown.push(outcome(fallocate(&directory, F::empty(), 0, 4096)));
        remove_file(path)?;
        Ok(shown.join(", "))
    });
}
