// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Space: what happens when there is none left, and that all of it comes back.

use super::{make, open};
use crate::memory::{Buffer, Mapping, Memory};
use crate::pair::{Pair, Side};
use crate::seen::{Broken, Seen, look, outcome};
use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};
use std::fs::{File, create_dir, remove_dir_all, remove_file};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("an empty volume", |side| {
        let v = statvfs(&side.root)?;
        Ok(format!(
            "{} blocks of {}, {} free, {} for all; {} files, {} free; names of {}",
            v.f_blocks, v.f_frsize, v.f_bfree, v.f_bavail, v.f_files, v.f_ffree, v.f_namemax
        ))
    });
    full(pair);
    counted(pair);
    files(pair);
}

/// Free blocks, once everything is on disk that should be.
fn free(side: &Side) -> Result<i64, Broken> {
    rustix::fs::syncfs(rustix::fs::open(
        &side.root,
        OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )?)?;
    Ok(statvfs(&side.root)?.f_bfree as i64)
}

/// What `f` shows, and what has become of the free space when `again` has removed what it made.
/// Space may come back only when a transaction is over.
fn comes_back(
    side: &Side,
    f: impl FnOnce() -> Seen,
    again: impl FnOnce() -> Result<(), Broken>,
) -> Seen {
    let before = free(side)?;
    let shown = f()?;
    again()?;
    let difference = soon(0, || Ok(free(side)? - before))?;
    Ok(format!("{shown}; {difference} blocks more are free"))
}

/// What `f` says, once that is `expected`, or after a while: the kernel tells a server that it has
/// forgotten an inode when there is time.
fn soon(expected: i64, f: impl Fn() -> Result<i64, Broken>) -> Result<i64, Broken> {
    for _ in 0..100 {
        if f()? == expected {
            return Ok(expected);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    f()
}

/// Writes until there is no more; how often that went well, in tenths of what fits, and the error.
fn until_full(mut write: impl FnMut(u64) -> std::io::Result<usize>, length: u64) -> (u64, String) {
    let mut at = 0;
    loop {
        match write(at) {
            Ok(n) if n as u64 == length => at += length,
            Ok(n) => at += n as u64,
            Err(err) => return (at, outcome::<(), _>(Err(err))),
        }
    }
}

/// Fills a file; returns how many bytes went in, and the error that ended it.
type Fill<'a> = &'a dyn Fn(&Side, &File) -> Result<(u64, String), Broken>;

fn full(pair: &mut Pair) {
    const PIECE: u64 = 256 << 10;
    let one = |pair: &mut Pair, name: &str, fill: Fill<'_>| {
        pair.step(name, |side| {
            let path = side.path("fill");
            let free_bytes = statvfs(&side.root)?.f_bfree * 4096;
            comes_back(
                side,
                || {
                    let file = make(&path, b"")?;
                    let (written, error) = fill(side, &file)?;
                    // How many blocks the tree of extents takes is nobody's business.
                    let most = written * 100 >= free_bytes * 97;
                    let synced = outcome(file.sync_all());
                    let over = outcome(file.write_at(b"over", 0));
                    Ok(format!(
                        "{error}, nearly all {most}, fsync {synced}, overwriting {over}"
                    ))
                },
                || Ok(remove_file(&path)?),
            )
        });
    };
    one(pair, "written until it is full", &|_, file| {
        let bytes = vec![5; PIECE as usize];
        Ok(until_full(|at| file.write_at(&bytes, at), PIECE))
    });
    one(
        pair,
        "written past the cache until it is full",
        &|side, _| {
            let file = open(side, "fill", OFlags::RDWR | OFlags::DIRECT)?;
            let buffer = Buffer::new(PIECE as usize, 0, 5);
            Ok(until_full(
                |at| buffer.write_to(0, PIECE as usize, &file, at),
                PIECE,
            ))
        },
    );
    one(pair, "allocated until it is full", &|_, file| {
        let piece = |at| fallocate(file, FallocateFlags::empty(), at, PIECE);
        let (at, error) = until_full(
            |at| piece(at).map(|()| PIECE as usize).map_err(Into::into),
            PIECE,
        );
        // What is allocated can be written, whatever happens.
        let mut failed = String::new();
        for at in (0..at).step_by(1 << 20) {
            if let Err(err) = file.write_at(&[1; 8192], at) {
                failed = outcome::<(), _>(Err(err));
            }
        }
        Ok((at, format!("{error}{failed}")))
    });
    pair.step("a large allocation that fits not", |side| {
        let path = side.path("large");
        comes_back(
            side,
            || {
                let file = make(&path, b"x")?;
                let result = fallocate(&file, FallocateFlags::empty(), 0, 1 << 30);
                let kept = fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 30);
                Ok(format!("{}, {}", outcome(result), outcome(kept)))
            },
            || Ok(remove_file(&path)?),
        )
    });
    pair.step(
        "appended in small pieces by 8 threads until it is full",
        |side| {
            let dir = side.path("threads");
            create_dir(&dir)?;
            comes_back(
                side,
                || {
                    let errors = std::thread::scope(|scope| {
                        let threads: Vec<_> = (0..8)
                            .map(|i| {
                                let path = dir.join(i.to_string());
                                scope.spawn(move || {
                                    let file = make(&path, b"").map_err(|e| e.0)?;
                                    let (at, error) =
                                        until_full(|at| file.write_at(&[i; 30_000], at), 30_000);
                                    let mut bytes = vec![0; 30_000];
                                    for at in (0..at).step_by(30_000) {
                                        let n = file
                                            .read_at(&mut bytes, at)
                                            .map_err(|e| e.to_string())?;
                                        if bytes[..n].iter().any(|b| *b != i) {
                                            return Err(format!("other bytes after {at}"));
                                        }
                                    }
                                    Ok(error)
                                })
                            })
                            .collect();
                        let ended = threads
                            .into_iter()
                            .map(|t| t.join().map_err(|_| "panic".to_owned())?);
                        ended.collect::<Result<Vec<_>, String>>()
                    })?;
                    Ok(format!("{errors:?}"))
                },
                || Ok(remove_dir_all(&dir)?),
            )
        },
    );
    pair.step(
        "a mapped hole on a full volume is SIGBUS, not silence",
        |side| {
            let path = side.path("holes");
            let fill = side.path("fill");
            comes_back(
                side,
                || {
                    let holes = make(&path, b"")?;
                    holes.set_len(1 << 20)?;
                    let file = make(&fill, b"")?;
                    for piece in [PIECE, 4096] {
                        let size = file.metadata()?.len();
                        let bytes = vec![5; piece as usize];
                        until_full(|at| file.write_at(&bytes, size + at), piece);
                    }
                    // Reading a hole takes no space.
                    let mapped = Mapping::new(&holes, 0, 4096)?;
                    Ok(format!(
                        "{:?}, {}",
                        mapped.get(0, 2),
                        outcome(holes.write_at(b"x", 0))
                    ))
                },
                || {
                    remove_file(&path)?;
                    Ok(remove_file(&fill)?)
                },
            )
        },
    );
}

fn counted(pair: &mut Pair) {
    let one = |pair: &mut Pair, name: &str, f: &dyn Fn(&Side, &File) -> Result<(), Broken>| {
        pair.step(name, |side| {
            let path = side.path("counted");
            comes_back(
                side,
                || {
                    let before = free(side)?;
                    let file = make(&path, b"")?;
                    f(side, &file)?;
                    file.sync_all()?;
                    let used = before - free(side)?;
                    let sectors = look(&path)?.stx_blocks;
                    // A file of few extents takes no other block.
                    Ok(format!("{used} blocks, {sectors} sectors"))
                },
                || Ok(remove_file(&path)?),
            )
        });
    };
    one(pair, "space of what is written", &|_, file| {
        Ok(file.write_all_at(&[1; 100_000], 0)?)
    });
    one(pair, "of a hole, and what is around it", &|_, file| {
        file.write_all_at(&[1; 5000], 0)?;
        Ok(file.write_all_at(&[1; 5000], 1 << 20)?)
    });
    one(pair, "of what is allocated", &|_, file| {
        Ok(fallocate(file, FallocateFlags::empty(), 1000, 1 << 20)?)
    });
    one(pair, "past the end", &|_, file| {
        Ok(fallocate(file, FallocateFlags::KEEP_SIZE, 0, 1 << 20)?)
    });
    one(pair, "past the end, until it is truncated", &|_, file| {
        fallocate(file, FallocateFlags::KEEP_SIZE, 0, 1 << 20)?;
        Ok(file.set_len(10_000)?)
    });
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    one(pair, "of what a hole was punched into", &|_, file| {
        file.write_all_at(&[1; 1 << 20], 0)?;
        Ok(fallocate(file, punch, 10_000, 500_000)?)
    });
    one(
        pair,
        "of what was punched before it was on disk",
        &|_, file| {
            file.write_all_at(&[1; 1 << 20], 0)?;
            Ok(fallocate(file, punch, 0, 1 << 20)?)
        },
    );
    one(pair, "after collapse and insert", &|_, file| {
        file.write_all_at(&[1; 1 << 20], 0)?;
        fallocate(file, FallocateFlags::COLLAPSE_RANGE, 8192, 65536)?;
        Ok(fallocate(file, FallocateFlags::INSERT_RANGE, 4096, 65536)?)
    });
    one(pair, "of what is zeroed", &|_, file| {
        file.write_all_at(&[1; 100_000], 0)?;
        Ok(fallocate(file, FallocateFlags::ZERO_RANGE, 1000, 200_000)?)
    });
    one(pair, "of what is truncated", &|_, file| {
        file.write_all_at(&[1; 1 << 20], 0)?;
        Ok(file.set_len(4097)?)
    });
    one(pair, "of direct writes", &|side, _| {
        let file = open(side, "counted", OFlags::RDWR | OFlags::DIRECT)?;
        Buffer::new(65536, 0, 1).write_to(0, 65536, &file, 0)?;
        Ok(())
    });
    pair.step(
        "a file without name keeps its space until it is closed",
        |side| {
            let path = side.path("unlinked");
            let before = free(side)?;
            let file = make(&path, &[1; 1 << 20])?;
            remove_file(&path)?;
            file.sync_all()?;
            let open = before - free(side)?;
            drop(file);
            Ok(format!("{open} blocks, then {}", before - free(side)?))
        },
    );
}

/// Until there is no room for another inode.
fn files(pair: &mut Pair) {
    pair.step("as many files as there is room for", |side| {
        let dir = side.path("files");
        create_dir(&dir)?;
        let before = statvfs(&side.root)?.f_ffree;
        let mut made = 0u64;
        let error = loop {
            match File::create(dir.join(made.to_string())) {
                Ok(_) => made += 1,
                Err(err) if err.kind() == ErrorKind::Interrupted => {}
                Err(err) => break outcome::<(), _>(Err(err)),
            }
        };
        let left = statvfs(&side.root)?.f_ffree;
        let directory = outcome(create_dir(dir.join("directory")));
        let link = outcome(std::fs::hard_link(dir.join("0"), dir.join("link")));
        remove_file(dir.join("1"))?;
        let again = outcome(File::create(dir.join("again")));
        remove_dir_all(&dir)?;
        let free = || Ok(statvfs(&side.root)?.f_ffree as i64 - before as i64 - 1);
        Ok(format!(
            "{}, {error}, {left} left, directory {directory}, link {link}, one removed {again}, \
             {} more are free",
            made == before,
            soon(0, free)?
        ))
    });
}
