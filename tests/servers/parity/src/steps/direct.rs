// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Direct I/O: what alignment it wants, memory that is the file's own pages, and what happens when
//! the file changes meanwhile.

use super::{make, open};
use crate::memory::{Buffer, Mapping, Memory};
use crate::pair::{Pair, Side};
use crate::seen::{Broken, look, outcome};
use rustix::fs::OFlags;
use std::fs::{File, remove_file};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    alignment(pair);
    end_of_file(pair);
    own_pages(pair);
    races(pair);
}

fn moved(result: std::io::Result<usize>) -> String {
    match result {
        Ok(n) => n.to_string(),
        Err(err) => outcome::<(), _>(Err(err)),
    }
}

fn direct(side: &Side, name: &str) -> Result<File, Broken> {
    open(side, name, OFlags::RDWR | OFlags::DIRECT)
}

fn alignment(pair: &mut Pair) {
    for (what, write) in [("reads", false), ("writes", true)] {
        pair.step(&format!("direct {what} of each alignment"), |side| {
            let path = side.path("aligned");
            drop(make(&path, &[1; 65536])?);
            let file = direct(side, "aligned")?;
            let mut shown = Vec::new();
            for skew in [0, 1, 4, 256, 512] {
                for offset in [0, 1, 256, 512, 4096] {
                    for length in [0, 1, 511, 512, 513, 4096, 4608] {
                        let buffer = Buffer::new(length, skew, 9);
                        let result = if write {
                            buffer.write_to(0, length, &file, offset)
                        } else {
                            buffer.read_from(0, length, &file, offset)
                        };
                        shown.push(moved(result));
                    }
                }
            }
            shown.push(format!("size {}", look(&path)?.stx_size));
            remove_file(path)?;
            Ok(shown.join(" "))
        });
    }
}

fn end_of_file(pair: &mut Pair) {
    pair.step("direct reads around the end", |side| {
        let path = side.path("end");
        drop(make(&path, &[1; 10_001])?);
        let file = direct(side, "end")?;
        let buffer = Buffer::new(16384, 0, 9);
        let mut shown = Vec::new();
        for offset in [0, 8192, 9728, 10_001, 10_240, 12_288, 1 << 40] {
            buffer.fill(0, 16384, 9);
            let n = buffer.read_from(0, 16384, &file, offset);
            let behind = n.as_ref().map_or(0, |n| *n);
            // What is behind the end of the file stays as it was in memory.
            shown.push(format!(
                "{} {}",
                moved(n),
                buffer.get(behind.min(16383), 1)[0]
            ));
        }
        Ok(shown.join(", "))
    });
    pair.step("direct writes around the end", |side| {
        let path = side.path("end");
        let file = direct(side, "end")?;
        let buffer = Buffer::new(8192, 0, 2);
        let mut shown = Vec::new();
        for (offset, length) in [
            (8192, 4096),
            (12_288, 512),
            (20_480, 512),
            (24_576, 8192),
            (9728, 512),
        ] {
            let n = moved(buffer.write_to(0, length, &file, offset));
            shown.push(format!("{n} size {}", look(&path)?.stx_size));
        }
        let mut bytes = std::fs::read(&path)?;
        bytes.dedup();
        shown.push(format!("{bytes:?}"));
        Ok(shown.join(", "))
    });
    pair.step("direct appends", |side| {
        let path = side.path("end");
        File::options().write(true).open(&path)?.set_len(512)?;
        let file = open(side, "end", OFlags::RDWR | OFlags::DIRECT | OFlags::APPEND)?;
        let buffer = Buffer::new(4096, 0, 3);
        let mut shown = Vec::new();
        for length in [512, 4096, 100] {
            let n = moved(buffer.write_to(0, length, &file, 0));
            shown.push(format!("{n} size {}", look(&path)?.stx_size));
        }
        remove_file(path)?;
        Ok(shown.join(", "))
    });
}

/// The memory is a mapping of the file that is read or written: the fault comes in the middle of it.
fn own_pages(pair: &mut Pair) {
    const LENGTH: usize = 64 << 10;
    let fresh = |side: &Side, flags: OFlags| -> Result<(File, Mapping), Broken> {
        let path = side.path("own");
        let bytes: Vec<u8> = (0..2 * LENGTH).map(|i| (i >> 12) as u8 + 1).collect();
        let plain = make(&path, &bytes)?;
        plain.sync_all()?;
        rustix::fs::fadvise(&plain, 0, None, rustix::fs::Advice::DontNeed)?;
        let mapping = Mapping::new(&plain, 0, 2 * LENGTH)?;
        remove_file(&path)?;
        // It has no name any more, but one in /proc.
        use std::os::fd::AsRawFd;
        let name = format!("/proc/self/fd/{}", plain.as_raw_fd());
        let file = rustix::fs::open(&*name, OFlags::RDWR | flags, rustix::fs::Mode::empty())?;
        Ok((file.into(), mapping))
    };
    // The bytes of each page, one for each.
    let pages = |mapping: &Mapping| {
        let bytes = mapping.get(0, 2 * LENGTH);
        let page = |page: &[u8]| {
            if page.iter().all(|b| *b == page[0]) {
                page[0]
            } else {
                255
            }
        };
        let pages: Vec<u8> = bytes.chunks(4096).map(page).collect();
        format!("{pages:?}")
    };
    for (how, flags) in [("buffered", OFlags::empty()), ("direct", OFlags::DIRECT)] {
        for (what, from, to) in [
            ("another part", LENGTH, 0),
            ("the same place", 0, 0),
            ("an overlapping part", 4096, 0),
            ("an overlapping part before", 0, 4096),
        ] {
            pair.step(&format!("a {how} write from a mapping of {what}"), |side| {
                let (file, mapping) = fresh(side, flags)?;
                let n = mapping.write_to(from, LENGTH, &file, to);
                mapping.unfault()?;
                // Where both overlap, what is written depends on what is moved first.
                let shown = if from.abs_diff(to as usize) == 4096 && from != to as usize {
                    String::new()
                } else {
                    pages(&mapping)
                };
                Ok(format!("{} {shown}", moved(n)))
            });
            pair.step(&format!("a {how} read into a mapping of {what}"), |side| {
                let (file, mapping) = fresh(side, flags)?;
                let n = mapping.read_from(from, LENGTH, &file, to);
                mapping.unfault()?;
                let shown = if from.abs_diff(to as usize) == 4096 {
                    String::new()
                } else {
                    pages(&mapping)
                };
                Ok(format!("{} {shown}", moved(n)))
            });
        }
    }
    pair.step(
        "a direct write is seen through a mapping, and the other way",
        |side| {
            let (file, mapping) = fresh(side, OFlags::DIRECT)?;
            let before = mapping.get(0, 1)[0];
            let buffer = Buffer::new(4096, 0, 77);
            buffer.write_to(0, 4096, &file, 0)?;
            let after = mapping.get(0, 1)[0];
            mapping.fill(4096, 4096, 78);
            buffer.read_from(0, 4096, &file, 4096)?;
            mapping.fill(0, 100, 79);
            let mixed = buffer.write_to(0, 4096, &file, 4096)?;
            Ok(format!(
                "{before}, {after}, {}, {mixed}, {}",
                buffer.get(0, 1)[0],
                pages(&mapping)
            ))
        },
    );
}

/// Whatever the order is, nobody may see bytes that nobody wrote.
fn races(pair: &mut Pair) {
    const ROUNDS: usize = 150;
    const LENGTH: usize = 64 << 10;
    /// Every byte is one that was written, or a zero.
    fn foreign(bytes: &[u8], written: &[u8]) -> usize {
        let known = |b: &&u8| **b != 0 && !written.contains(b);
        bytes.iter().filter(known).count()
    }
    let race =
        |pair: &mut Pair, name: &str, flags: OFlags, other: &(dyn Fn(&File, usize) + Sync)| {
            pair.step(name, |side| {
                let path = side.path("race");
                let poison = side.path("poison");
                // Blocks that will be used again are full of what must never be seen.
                let file = make(&poison, &vec![0xee; 8 << 20])?;
                file.sync_all()?;
                remove_file(&poison)?;
                drop(file);
                drop(make(&path, b"")?);
                let file = open(side, "race", OFlags::RDWR | flags)?;
                let plain = open(side, "race", OFlags::RDWR)?;
                let over = AtomicBool::new(false);
                let seen = std::thread::scope(|scope| {
                    let reader = scope.spawn(|| {
                        let mut bytes = vec![0; 2 * LENGTH];
                        let mut strange = 0;
                        while !over.load(Ordering::Relaxed) {
                            if let Ok(n) = plain.read_at(&mut bytes, 0) {
                                strange += foreign(&bytes[..n], &[1, 2]);
                            }
                        }
                        strange
                    });
                    let changer = scope.spawn(|| {
                        let mut i = 0;
                        while !over.load(Ordering::Relaxed) {
                            other(&plain, i);
                            i += 1;
                        }
                    });
                    let buffer = Buffer::new(LENGTH, 0, 1);
                    let mut errors = 0;
                    for i in 0..ROUNDS {
                        let at = (i % 4 * 16384) as u64;
                        errors += usize::from(buffer.write_to(0, LENGTH, &file, at).is_err());
                    }
                    over.store(true, Ordering::Relaxed);
                    let strange = reader.join().unwrap_or(usize::MAX);
                    changer.join().unwrap_or(());
                    format!("{errors} errors, {strange} strange bytes")
                });
                // That a page could not be dropped behind a direct write is an error that fsync(2) may
                // tell, on both sides.
                let _ = plain.sync_all();
                rustix::fs::fadvise(&plain, 0, None, rustix::fs::Advice::DontNeed)?;
                let strange = foreign(&std::fs::read(&path)?, &[1, 2]);
                remove_file(path)?;
                Ok(format!("{seen}, {strange} in the end"))
            });
        };
    for (how, flags) in [("direct", OFlags::DIRECT), ("buffered", OFlags::empty())] {
        race(
            pair,
            &format!("{how} writes while the file is truncated"),
            flags,
            &|file, i| {
                let _ = file.set_len((i % 7 * 9000) as u64);
            },
        );
        race(
            pair,
            &format!("{how} writes while holes are punched"),
            flags,
            &|file, i| {
                let mode =
                    rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
                let _ = rustix::fs::fallocate(file, mode, (i % 5 * 5000) as u64, 20_000);
            },
        );
        race(
            pair,
            &format!("{how} writes while others write through a mapping"),
            flags,
            &|file, i| {
                if file.metadata().is_ok_and(|m| m.len() >= LENGTH as u64)
                    && let Ok(mapping) = Mapping::new(file, 0, LENGTH)
                {
                    mapping.fill(i % 16 * 4096, 100, 2);
                }
            },
        );
        race(
            pair,
            &format!("{how} writes while it is allocated and synced"),
            flags,
            &|file, i| {
                let empty = rustix::fs::FallocateFlags::empty();
                let _ = rustix::fs::fallocate(file, empty, 0, (i % 9 + 1) as u64 * 20_000);
                let _ = file.sync_data();
                let _ = file.write_at(&[2; 100], (i % 11 * 10_000) as u64);
            },
        );
    }
}
