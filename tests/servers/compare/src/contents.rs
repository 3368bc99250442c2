// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Compares two regular files: extents, holes and data.

use crate::options::Options;
use crate::report::{Report, add};
use crate::sys::{self, Extent, Mapped};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Read at once.
const CHUNK: usize = 256 << 10;
/// A file up to this size is read as a whole, a larger one where it has data.
const WHOLE: u64 = 64 << 20;
/// Compared by mmap at most.
const MAP: u64 = 4 << 20;
/// More segments than this in one file are a loop.
const SEGMENTS: usize = 1 << 20;

thread_local! {
    /// Each worker's buffers: clearing fresh ones for every file would cost more than reading it.
    static BUFFERS: RefCell<[Vec<u8>; 2]> = RefCell::new([vec![0; CHUNK], vec![0; CHUNK]]);
}

/// A range of a file.
type Range = (u64, u64);

/// Merges extents that carry on where the one before ends, and drops the flags that say how they were
/// reported and not what they are.
fn normalise(extents: &[Extent]) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::new();
    for extent in extents {
        let flags = extent.flags & !(Extent::LAST | Extent::MERGED);
        let next = Extent { flags, ..*extent };
        match merged.last_mut() {
            Some(last)
                if last.flags == next.flags
                    && last.logical + last.length == next.logical
                    && last.physical + last.length == next.physical =>
            {
                last.length += next.length;
            }
            _ => merged.push(next),
        }
    }
    merged
}

fn describe(extent: Option<&Extent>) -> String {
    extent.map_or_else(
        || "none".to_owned(),
        |e| {
            format!(
                "{}+{} at {} flags {:#x}",
                e.logical, e.length, e.physical, e.flags
            )
        },
    )
}

fn fiemap(options: &Options, report: &Report, path: &Path, a: &File, b: &File) {
    const UNWRITTEN: u32 = 0x800;
    let figures = &report.figures;
    // Empty files may be inline as well, without an extent that says so.
    let is_inline = sys::inode_flags(b).is_ok_and(|flags| flags & sys::INLINE_DATA != 0);
    let (a, b) = match (sys::fiemap(a), sys::fiemap(b)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(Errno::OPNOTSUPP | Errno::NOTTY), Ok(_))
            if is_inline || options.plain.iter().any(|p| p == path) =>
        {
            add(&figures.without_fiemap, 1);
            return;
        }
        (a, b) => {
            let show = |r: Result<Vec<_>, Errno>| {
                r.map_or_else(|err| err.to_string(), |e| format!("{} extents", e.len()))
            };
            report.differ(path, "FIEMAP", show(a), show(b));
            return;
        }
    };
    add(&figures.fiemap_files, 1);
    add(&figures.extents, a.len() as u64);
    let last = |extents: &[Extent]| {
        extents
            .iter()
            .rposition(|e| e.flags & Extent::LAST != 0)
            .map(|i| i + 1)
    };
    for (tree, extents) in [("first", &a), ("second", &b)] {
        if !extents.is_empty() && last(extents) != Some(extents.len()) {
            report.differ(
                path,
                "the last extent is not marked in the tree",
                tree,
                extents.len(),
            );
        }
    }
    let (a, b) = (normalise(&a), normalise(&b));
    figures
        .most_extents
        .fetch_max(a.len() as u64, Ordering::Relaxed);
    add(
        &figures.unwritten_extents,
        a.iter().filter(|e| e.flags & UNWRITTEN != 0).count() as u64,
    );
    if a != b {
        let at = (0..a.len().max(b.len()))
            .find(|i| a.get(*i) != b.get(*i))
            .unwrap_or(0);
        let what = format!("extent {at} of {} / {}", a.len(), b.len());
        report.differ(path, what, describe(a.get(at)), describe(b.get(at)));
    }
}

/// The parts of a file that have data, by SEEK_DATA and SEEK_HOLE.
fn segments(file: &File, size: u64) -> Result<Vec<Range>, Errno> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(err) => return Err(err),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        if start < at || end <= start || found.len() >= SEGMENTS {
            return Err(Errno::LOOP);
        }
        found.push((start, end));
        at = end;
    }
    Ok(found)
}

fn holes(report: &Report, path: &Path, a: &File, b: &File, size: u64) -> Vec<Range> {
    match (segments(a, size), segments(b, size)) {
        (Ok(a), Ok(b)) => {
            add(&report.figures.segments, a.len() as u64);
            if a != b {
                let at = (0..a.len().max(b.len()))
                    .find(|i| a.get(*i) != b.get(*i))
                    .unwrap_or(0);
                let what = format!("data segment {at} of {} / {}", a.len(), b.len());
                let (a, b) = (format!("{:?}", a.get(at)), format!("{:?}", b.get(at)));
                report.differ(path, what, a, b);
            }
            b
        }
        (a, b) => {
            let show = |r: Result<Vec<_>, Errno>| {
                r.map_or_else(|e| e.to_string(), |s| format!("{} segments", s.len()))
            };
            report.differ(path, "SEEK_DATA", show(a), show(b));
            vec![(0, size)]
        }
    }
}

/// Reads as much as there is, at `offset`.
fn read(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(done)
}

/// Compares `range` of both files; `false` if it differs, after saying so.
fn data(
    report: &Report,
    path: &Path,
    files: [&File; 2],
    range: Range,
    bufs: &mut [Vec<u8>; 2],
) -> bool {
    let (mut at, end) = range;
    while at < end {
        let want = (end - at).min(CHUNK as u64) as usize;
        let [buf_a, buf_b] = bufs;
        let got = (
            read(files[0], at, &mut buf_a[..want]),
            read(files[1], at, &mut buf_b[..want]),
        );
        match got {
            (Ok(a), Ok(b)) => {
                if buf_a[..a] != buf_b[..b] {
                    let first = buf_a[..a].iter().zip(&buf_b[..b]).position(|(x, y)| x != y);
                    match first {
                        Some(i) => {
                            let what = format!("byte {} (reading from {at})", at + i as u64);
                            let (x, y) =
                                (format!("{:#04x}", buf_a[i]), format!("{:#04x}", buf_b[i]));
                            report.differ(path, what, x, y);
                        }
                        None => report.differ(path, format!("bytes read at {at}"), a, b),
                    }
                    return false;
                }
                add(&report.figures.bytes, a as u64);
                if a < want {
                    break;
                }
            }
            (a, b) => {
                let show = |r: io::Result<usize>| {
                    r.map_or_else(|e| e.to_string(), |n| format!("{n} bytes"))
                };
                report.differ(path, format!("reading at {at}"), show(a), show(b));
                return false;
            }
        }
        at += want as u64;
    }
    true
}

/// Pseudo-random numbers (splitmix64): the same for the same seed, on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Compares the contents of one file of `size` bytes.
pub fn compare(
    options: &Options,
    report: &Report,
    path: &Path,
    a: &File,
    b: &File,
    size: u64,
    closely: bool,
) {
    if options.fiemap {
        fiemap(options, report, path, a, b);
    }
    let segments = holes(report, path, a, b, size);
    BUFFERS.with_borrow_mut(|bufs| {
        bytes(
            options,
            report,
            path,
            [a, b],
            size,
            closely,
            &segments,
            bufs,
        )
    });
}

#[allow(clippy::too_many_arguments)] // They are what `compare` has, after the map of the file.
fn bytes(
    options: &Options,
    report: &Report,
    path: &Path,
    [a, b]: [&File; 2],
    size: u64,
    closely: bool,
    segments: &[Range],
    bufs: &mut [Vec<u8>; 2],
) {
    let figures = &report.figures;
    // Positioned reads first, so that they find a cold cache.
    if closely && size > 0 {
        let mut random =
            Random(options.seed ^ size.rotate_left(32) ^ path.as_os_str().len() as u64);
        for _ in 0..4 {
            let at = random.next() % size;
            let len = 1 + random.next() % 70000;
            add(&figures.preads, 1);
            if !data(report, path, [a, b], (at, at.saturating_add(len)), bufs) {
                return;
            }
        }
    }
    if closely && size > 0 {
        let len = size.min(MAP) as usize;
        match (Mapped::new(a, len), Mapped::new(b, len)) {
            (Ok(a), Ok(b)) => {
                add(&figures.mapped, 1);
                let at = a.bytes().iter().zip(b.bytes()).position(|(x, y)| x != y);
                if let Some(at) = at {
                    let (x, y) = (a.bytes()[at], b.bytes()[at]);
                    report.differ(path, format!("mapped byte {at}"), x, y);
                }
                // Behind the end of the file a page reads as zeros.
            }
            (a, b) => {
                let show = |r: Result<Mapped, Errno>| {
                    r.map_or_else(|e| e.to_string(), |_| "fine".to_owned())
                };
                report.differ(path, "mmap", show(a), show(b));
            }
        }
    }

    if size <= WHOLE {
        // One byte more than there is, to see that both end where they should.
        data(report, path, [a, b], (0, size + 1), bufs);
    } else {
        for segment in segments {
            if !data(report, path, [a, b], *segment, bufs) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn extent(logical: u64, physical: u64, length: u64, flags: u32) -> Extent {
        Extent {
            logical,
            physical,
            length,
            flags,
        }
    }

    #[test]
    fn extents_merge_only_if_they_carry_on() {
        let merged = normalise(&[
            extent(0, 100, 10, 0),
            extent(10, 110, 10, Extent::MERGED),
            extent(20, 120, 10, 0x800),
            extent(30, 131, 10, 0x800),
            extent(50, 141, 10, 0x800 | Extent::LAST),
        ]);
        let want = [
            extent(0, 100, 20, 0),
            extent(20, 120, 10, 0x800),
            extent(30, 131, 10, 0x800),
            extent(50, 141, 10, 0x800),
        ];
        assert_eq!(merged, want);
    }

    #[test]
    fn different_bytes_are_found() {
        let dir = std::env::temp_dir().join(format!("compare-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let write = |name: &str, data: &[u8]| {
            std::fs::write(dir.join(name), data).unwrap();
            File::open(dir.join(name)).unwrap()
        };
        let a = write("a", b"some contents");
        let same = write("same", b"some contents");
        let other = write("other", b"some c0ntents");
        let shorter = write("shorter", b"some");
        let differences = |b: &File| {
            let report = Report::new(0);
            let mut options = Options::parse(["x", "y"].map(Into::into)).unwrap().unwrap();
            options.fiemap = false;
            compare(&options, &report, &PathBuf::from("f"), &a, b, 13, true);
            report.figures.differences.load(Ordering::Relaxed)
        };
        assert_eq!(differences(&same), 0);
        assert!(differences(&other) > 0);
        std::fs::remove_dir_all(&dir).unwrap();
        // mmap beyond the end would be a signal, so only without a closer look.
        let report = Report::new(0);
        let mut bufs = [vec![0; CHUNK], vec![0; CHUNK]];
        assert!(!data(
            &report,
            Path::new("f"),
            [&a, &shorter],
            (0, 14),
            &mut bufs
        ));
    }
}
