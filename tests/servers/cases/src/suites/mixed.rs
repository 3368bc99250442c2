// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Honest service: all block sizes, all types of mappings, several devices, ordinary files beside.

use super::{finish, start_iomap};
use crate::disks::{DISKS, Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{cool, fails_with, mmap_in_child, open_cold, pread, same};
use crate::sys::{self, FiemapExtent, fiemap};
use crate::tap::{Outcome, Tap, comment};
use fuse_iomap::wire::{attr_flags, iomap_flags, iomap_op};
use lab::client::Lab;
use lab::control::Command;
use lab::model::FileModel;
use lab::random::Random;
use lab::scenario::{ExtentKind, ExtentSpec, FileSpec, InodeKind, Scenario};
use rustix::fs::{SeekFrom, seek};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;

const SEED: u64 = 0x6d69_7865_6431;
/// Files that live in the server's memory, with their sizes.
const ORDINARY: [(&str, u64); 3] = [
    ("ordinary", 300_001),
    ("ordinary-empty", 0),
    ("dir/plain", 77),
];
const TB: u64 = 1 << 40;

fn scenario() -> Scenario {
    let mut s = empty_scenario(SEED);
    let mut layout = Layout::new();
    let mut random = Random::new(SEED);

    for (name, blksize, size, longest) in [
        ("blocks-512", 512, 51_337, 7),
        ("blocks-1k", 1024, 100_000, 9),
        ("blocks-2k", 2048, 150_001, 9),
        ("blocks-4k", 4096, 400_000, 9),
        ("blocks-8k", 8192, 500_003, 5),
        ("blocks-16k", 16384, 600_000, 4),
        ("blocks-32k", 32768, 800_000, 3),
        ("blocks-64k", 65536, 1_200_000, 3),
    ] {
        s.file(
            name,
            layout.random_file(&mut random, size, blksize, longest),
        );
    }

    let mapped = |layout: &mut Layout, offset, length, dev| {
        ExtentSpec::mapped(offset, length, dev, layout.take(dev, length, 4096))
    };

    let one = mapped(&mut layout, 0, 4 << 20, 0).with_flags(iomap_flags::MERGED);
    s.file(
        "one-extent",
        FileSpec::iomap((4 << 20) - 5, 4096, vec![one]),
    );

    let turns = (0..24).map(|i| mapped(&mut layout, i * 20_480, 20_480, i as usize % 3));
    s.file(
        "three-disks",
        FileSpec::iomap(24 * 20_480, 4096, turns.collect()),
    );

    // In reverse order on the disk, so that no two of them can be merged.
    let mut scattered: Vec<_> = (0..200)
        .rev()
        .map(|i| mapped(&mut layout, i * 4096, 4096, 0))
        .collect();
    scattered.reverse();
    s.file("fragments", FileSpec::iomap(200 * 4096, 4096, scattered));

    let mut cow = mapped(&mut layout, 0, 65_536, 0).with_flags(iomap_flags::SHARED);
    let elsewhere = layout.take(1, 65_536, 4096);
    cow = cow.with_write(ExtentKind::Unwritten, 1, elsewhere);
    let hole = ExtentSpec::hole(65_536, 65_536).with_write(ExtentKind::Delalloc, 0, 0);
    s.file(
        "write-elsewhere",
        FileSpec::iomap(131_072, 4096, vec![cow, hole]),
    );

    let end = mapped(&mut layout, 0, 32_768, 1).with_flags(iomap_flags::WANT_IOMAP_END);
    s.file("wants-end", FileSpec::iomap(32_768, 4096, vec![end]));

    let far = mapped(&mut layout, TB - 65_536, 65_536, 2);
    s.file("far", FileSpec::iomap(TB - 100, 4096, vec![far]));

    let addr = layout.take(0, 131_072, 4096);
    let unwritten = ExtentSpec::unwritten(0, 131_072, 0, addr);
    s.file("unwritten", FileSpec::iomap(131_072, 4096, vec![unwritten]));
    s.file("hole", FileSpec::iomap(300_000, 4096, vec![]));
    let reserved = ExtentSpec::delalloc(0, 131_072);
    s.file("reserved", FileSpec::iomap(100_000, 4096, vec![reserved]));
    s.file("empty", FileSpec::iomap(0, 4096, vec![]));

    s.inode("dir", InodeKind::Dir);
    let inside = mapped(&mut layout, 0, 8192, 0);
    s.file("dir/inside", FileSpec::iomap(5000, 4096, vec![inside]));
    for (name, size) in ORDINARY {
        s.file(name, FileSpec::ordinary(size));
    }
    let target = "blocks-4k".to_owned();
    s.inode("link", InodeKind::Symlink { target });
    s
}

fn inline_scenario() -> Scenario {
    let mut s = empty_scenario(SEED);
    s.file(
        "inline",
        FileSpec::iomap(1000, 512, vec![ExtentSpec::inline(1024)]),
    );
    s
}

/// Scenario for flags that must have no effect, or only part of one.
fn flags_scenario() -> Scenario {
    let mut s = empty_scenario(SEED);
    let mut layout = Layout::new();
    let both = attr_flags::EXCLUSIVE | attr_flags::IOMAP;
    s.inode("dir", InodeKind::Dir);
    let target = "dir".to_owned();
    s.inode("link", InodeKind::Symlink { target });
    for inode in &mut s.inodes {
        inode.attr_flags = Some(both);
    }
    for (name, flags) in [
        ("dir/not-exclusive", attr_flags::IOMAP),
        ("dir/only-exclusive", attr_flags::EXCLUSIVE),
        ("dir/late", 0),
        ("dir/early", both),
    ] {
        let addr = layout.take(0, 65_536, 4096);
        let extent = ExtentSpec::mapped(0, 65_536, 0, addr);
        s.file(name, FileSpec::iomap(60_000, 4096, vec![extent]));
        if let Some(inode) = s.inodes.last_mut() {
            inode.attr_flags = Some(flags);
        }
    }
    // Attributes are asked for again at every opportunity.
    s.options.valid_secs = 0;
    s
}

struct Subject<'a> {
    name: &'a str,
    index: usize,
    model: FileModel,
}

fn subjects(scenario: &Scenario) -> Result<Vec<Subject<'_>>, String> {
    let mut subjects = Vec::new();
    for (index, inode) in scenario.inodes.iter().enumerate() {
        let InodeKind::File(spec) = &inode.kind else {
            continue;
        };
        if spec.iomap {
            subjects.push(Subject {
                name: &inode.path,
                index,
                model: model(scenario, &inode.path)?,
            });
        }
    }
    Ok(subjects)
}

/// The model of a file, as the server has it: inline data depends on the node id.
fn model(scenario: &Scenario, path: &str) -> Result<FileModel, String> {
    let index = scenario.inodes.iter().position(|i| i.path == path);
    let nodeid = index.ok_or("no such file")? as u64 + 2;
    let space = lab::pattern::MEMORY + nodeid;
    FileModel::new(scenario.seed, space, file_spec(scenario, path)?)
}

/// Extents and holes from the start of the file up to its last block.
fn pieces(model: &FileModel) -> Vec<ExtentSpec> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < model.size() {
        let piece = model.lookup(at, 1);
        at = piece.offset + piece.length;
        pieces.push(piece);
    }
    pieces
}

fn check_fiemap(lab: &Lab, subject: &Subject<'_>, batch: u32) -> Outcome {
    let file = open_cold(&lab.path(subject.name))?;
    let got = sys::fiemap(&file, 0, u64::MAX, batch).map_err(|e| format!("FIEMAP: {e}"))?;
    let extents = pieces(&subject.model);
    let mut want: Vec<FiemapExtent> = extents
        .iter()
        .filter(|e| e.kind != ExtentKind::Hole)
        .map(|e| FiemapExtent {
            logical: e.offset,
            physical: if e.kind.has_address() { e.addr } else { 0 },
            length: e.length,
            flags: match e.kind {
                ExtentKind::Unwritten => fiemap::UNWRITTEN,
                ExtentKind::Delalloc => fiemap::UNKNOWN | fiemap::DELALLOC,
                ExtentKind::Inline => fiemap::DATA_INLINE | fiemap::NOT_ALIGNED,
                _ if e.flags & iomap_flags::SHARED != 0 => fiemap::SHARED,
                _ if e.flags & iomap_flags::MERGED != 0 => fiemap::MERGED,
                _ => 0,
            },
        })
        .collect();
    if let Some(last) = want.last_mut() {
        last.flags |= fiemap::LAST;
    }
    for i in 0..got.len().max(want.len()) {
        let (got, want) = (got.get(i), want.get(i));
        ensure!(got == want, "extent {i}: {got:?} instead of {want:?}");
    }
    Ok(())
}

/// As long as nothing is cached, unwritten extents are holes to SEEK_DATA and SEEK_HOLE.
fn check_seek(lab: &Lab, subject: &Subject<'_>) -> Outcome {
    let file = open_cold(&lab.path(subject.name))?;
    let size = subject.model.size();
    let is_data = |e: &ExtentSpec| !matches!(e.kind, ExtentKind::Hole | ExtentKind::Unwritten);
    let extents = pieces(&subject.model);
    let next = |pos: u64, data: bool| {
        let found = extents
            .iter()
            .find(|e| is_data(e) == data && e.offset + e.length > pos);
        found.map(|e| e.offset.max(pos)).filter(|at| *at < size)
    };
    let mut positions = vec![0, size / 2, size.saturating_sub(1)];
    // Each search asks for every extent on its way, so not all of them are looked at.
    for e in extents.iter().step_by(extents.len() / 16 + 1) {
        positions.extend([e.offset, e.offset + 1, e.offset + e.length - 1]);
    }
    for pos in positions.into_iter().filter(|pos| *pos < size) {
        let got = seek(&file, SeekFrom::Data(pos));
        match next(pos, true) {
            Some(want) => ensure!(got == Ok(want), "SEEK_DATA {pos}: {got:?}, not {want}"),
            None => ensure!(
                got == Err(rustix::io::Errno::NXIO),
                "SEEK_DATA {pos}: {got:?}, but there is none"
            ),
        }
        let got = seek(&file, SeekFrom::Hole(pos));
        let want = next(pos, false).unwrap_or(size);
        ensure!(got == Ok(want), "SEEK_HOLE {pos}: {got:?}, not {want}");
    }
    for whence in [SeekFrom::Data(size), SeekFrom::Hole(size)] {
        let got = seek(&file, whence);
        let past_end = got == Err(rustix::io::Errno::NXIO);
        ensure!(past_end, "{whence:?}, the end: {got:?}");
    }
    Ok(())
}

fn check_fibmap(lab: &Lab, subject: &Subject<'_>) -> Outcome {
    let file = open_cold(&lab.path(subject.name))?;
    let block = u64::from(subject.model.blksize());
    for extent in pieces(&subject.model).iter().take(20) {
        for at in [extent.offset, extent.offset + extent.length - block] {
            // FIBMAP has an int for the block, and so knows nothing further out.
            let Ok(number) = u32::try_from(at / block) else {
                continue;
            };
            if number > i32::MAX as u32 {
                continue;
            }
            let got = sys::fibmap(&file, number).map_err(|e| format!("FIBMAP: {e}"))?;
            let want = match extent.kind {
                ExtentKind::Mapped => (extent.addr + (at - extent.offset)) / block,
                _ => 0,
            };
            ensure!(u64::from(got) == want, "block {number}: {got}, not {want}");
        }
    }
    Ok(())
}

/// Offsets from which on a file is worth reading: all of it, or around the data of a huge one.
fn windows(model: &FileModel) -> Vec<(u64, u64)> {
    const LONGEST: u64 = 8 << 20;
    let size = model.size();
    if size <= LONGEST {
        return vec![(0, size)];
    }
    let around = |e: &ExtentSpec| {
        let start = e.offset.saturating_sub(20_000);
        (start, size.min(e.offset + e.length + 20_000) - start)
    };
    let mut windows = vec![(0, 50_000)];
    windows.extend(model.extents().map(around));
    windows
}

/// From front to back, with read-ahead.
fn check_sequential(lab: &Lab, subject: &Subject<'_>) -> Outcome {
    let path = lab.path(subject.name);
    let file = File::open(&path).map_err(|e| e.to_string())?;
    cool(&file)?;
    for (start, length) in windows(&subject.model) {
        let mut at = start;
        while at < start + length {
            let n = (start + length - at).min(100_000);
            let got = pread(&file, at, n as usize).map_err(|e| format!("at {at}: {e}"))?;
            same(at, &got, &subject.model.bytes(at..at + n))?;
            at += n;
        }
    }
    let end = subject.model.size();
    let got = pread(&file, end, 10).map_err(|e| format!("at the end: {e}"))?;
    ensure!(got.is_empty(), "{} bytes behind the end", got.len());
    Ok(())
}

fn check_odd_offsets(lab: &Lab, subject: &Subject<'_>) -> Outcome {
    let file = open_cold(&lab.path(subject.name))?;
    let mut random = Random::new(SEED ^ subject.index as u64);
    let windows = windows(&subject.model);
    for _ in 0..40 {
        let (start, length) = random.pick(&windows);
        let at = start + random.below(length + 1);
        let n = 1 + random.below(9000);
        let got = pread(&file, at, n as usize).map_err(|e| format!("at {at}: {e}"))?;
        same(at, &got, &subject.model.bytes(at..at + n))?;
    }
    Ok(())
}

fn check_mmap(lab: &Lab, subject: &Subject<'_>) -> Outcome {
    let path = lab.path(subject.name);
    cool(&File::open(&path).map_err(|e| e.to_string())?)?;
    for (start, length) in windows(&subject.model) {
        if length == 0 {
            continue;
        }
        let got = mmap_in_child(&path, start, length)?;
        same(start, &got, &subject.model.bytes(start..start + length))?;
    }
    Ok(())
}

/// What the file says and what the block devices say must be the same bytes.
fn check_against_devices(lab: &Lab, subject: &Subject<'_>, devices: &[File]) -> Outcome {
    let file = open_cold(&lab.path(subject.name))?;
    for extent in subject.model.extents() {
        let inside = subject.model.size().saturating_sub(extent.offset);
        let length = extent.length.min(inside) as usize;
        if extent.kind == ExtentKind::Mapped && length > 0 {
            let read = |f: &File, at| pread(f, at, length).map_err(|e| format!("at {at}: {e}"));
            let want = read(&devices[extent.dev], extent.addr)?;
            same(extent.offset, &read(&file, extent.offset)?, &want)?;
        }
    }
    Ok(())
}

/// One cold read must not ask more often than there are extents to be found.
fn check_begins(lab: &mut Lab, subject: &Subject<'_>) -> Outcome {
    let file = open_cold(&lab.path(subject.name))?;
    let block = u64::from(subject.model.blksize()).max(4096);
    let mut random = Random::new(SEED.wrapping_mul(subject.index as u64 + 1));
    for (start, length) in windows(&subject.model) {
        cool(&file)?;
        if length == 0 {
            continue;
        }
        let n = length.min(65_536);
        let first = (start + random.below(length - n + 1)) / block * block;
        let before = lab.activity(subject.name)?.begins.len();
        let got = pread(&file, first, n as usize).map_err(|e| format!("at {first}: {e}"))?;
        same(first, &got, &subject.model.bytes(first..first + n))?;
        let begins = lab.activity(subject.name)?.begins.split_off(before);
        // The kernel reads whole pages and blocks, also the part of them behind the end.
        let mut touched = 0;
        let mut at = first;
        let end = (first + n)
            .min(subject.model.size())
            .next_multiple_of(block);
        while at < end {
            let piece = subject.model.lookup(at, end - at);
            at = piece.offset + piece.length;
            touched += 1;
        }
        ensure!(
            !begins.is_empty(),
            "reading {n} bytes at {first} asked nothing"
        );
        ensure!(
            begins.len() <= touched,
            "reading {n} bytes at {first}: {} BEGINs for {touched} extents: {begins:?}",
            begins.len()
        );
        let write = iomap_op::WRITE | iomap_op::ZERO;
        ensure!(
            begins
                .iter()
                .all(|b| b.opflags & (write | iomap_op::REPORT) == 0),
            "a read asked with {begins:?}"
        );
    }
    Ok(())
}

fn check_ends(lab: &mut Lab, scenario: &Scenario) -> Outcome {
    let file = open_cold(&lab.path("wants-end"))?;
    let before = lab.activity("wants-end")?.ends.len();
    let got = pread(&file, 0, 32_768).map_err(|e| e.to_string())?;
    same(0, &got, &model(scenario, "wants-end")?.bytes(0..32_768))?;
    let ends = lab.activity("wants-end")?.ends;
    ensure!(ends.len() > before, "no END though it was asked for");
    ensure!(
        ends.iter().all(|(flags, ..)| flags & iomap_op::WRITE == 0),
        "{ends:?}"
    );
    let other = lab.activity("one-extent")?.ends;
    ensure!(
        other.is_empty(),
        "END though nobody asked for it: {other:?}"
    );
    Ok(())
}

fn check_ordinary(lab: &mut Lab) -> Outcome {
    for (name, size) in ORDINARY {
        let path = lab.path(name);
        let before = std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?;
        ensure!(
            before.len() as u64 == size,
            "{name}: {} bytes",
            before.len()
        );
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(|e| format!("{name}: {e}"))?;
        file.write_all(b"more")
            .map_err(|e| format!("{name}: {e}"))?;
        drop(file);
        let after = std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?;
        ensure!(after == [&before[..], b"more"].concat(), "{name}: append");
        std::fs::write(&path, &before).map_err(|e| format!("{name}: {e}"))?;
        let restored = std::fs::read(&path).map_err(|e| format!("{name}: {e}"))?;
        ensure!(restored == before, "{name}: overwrite");
        if size > 0 {
            same(0, &mmap_in_child(&path, 0, size)?, &before)?;
        }
        let activity = lab.activity(name)?;
        ensure!(activity.begins.is_empty(), "{name}: BEGIN");
        ensure!(size == 0 || activity.reads > 0, "{name}: no READ");
        fails_with(
            &format!("{name}: FIEMAP"),
            sys::fiemap(&File::open(&path).map_err(|e| e.to_string())?, 0, 1, 1),
            &[libc::EOPNOTSUPP],
        )?;
    }
    Ok(())
}

fn check_stat(lab: &Lab, subject: &Subject<'_>) -> Outcome {
    let meta = std::fs::metadata(lab.path(subject.name)).map_err(|e| e.to_string())?;
    ensure!(meta.size() == subject.model.size(), "size {}", meta.size());
    let blksize = u64::from(subject.model.blksize());
    ensure!(meta.blksize() == blksize, "block size {}", meta.blksize());
    Ok(())
}

fn check_copy(lab: &Lab, machine: &Machine, subject: &Subject<'_>) -> Outcome {
    let copy = machine.scratch.join("copy");
    let n = std::fs::copy(lab.path(subject.name), &copy).map_err(|e| e.to_string())?;
    ensure!(n == subject.model.size(), "{n} bytes copied");
    let got = std::fs::read(&copy).map_err(|e| e.to_string())?;
    same(0, &got, &subject.model.bytes(0..n))
}

fn check_names(lab: &Lab, scenario: &Scenario) -> Outcome {
    let list = |dir: &str| -> Result<Vec<String>, String> {
        let entries = std::fs::read_dir(lab.path(dir)).map_err(|e| e.to_string())?;
        let mut names: Vec<String> = entries
            .map(|e| e.map(|e| e.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_, _>>()
            .map_err(|e| e.to_string())?;
        names.sort();
        Ok(names)
    };
    ensure!(list("dir")? == ["inside", "plain"], "{:?}", list("dir")?);
    let mut want: Vec<&str> = scenario.inodes.iter().map(|i| i.path.as_str()).collect();
    want.retain(|path| !path.contains('/'));
    want.sort_unstable();
    ensure!(list("")? == want, "{:?}", list("")?);
    let target = std::fs::read_link(lab.path("link")).map_err(|e| e.to_string())?;
    ensure!(target.as_os_str() == "blocks-4k", "{target:?}");
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario = scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    let subjects = match subjects(&scenario) {
        Ok(subjects) => subjects,
        Err(e) => {
            tap.case("the scenario is good", || Err::<(), _>(e));
            return;
        }
    };
    let devices: Option<Vec<File>> = tap.case("the disks can be read", || {
        let open = |name: &&str| {
            let path = std::env::var(name).map_err(|e| e.to_string())?;
            File::open(path).map_err(|e| e.to_string())
        };
        DISKS.iter().map(open).collect()
    });
    let Some(devices) = devices else { return };

    tap.case("names, directories, links", || check_names(&lab, &scenario));
    for s in &subjects {
        let name = s.name;
        tap.case(&format!("{name}: size and block size"), || {
            check_stat(&lab, s)
        });
        tap.case(&format!("{name}: FIEMAP"), || check_fiemap(&lab, s, 512));
        tap.case(&format!("{name}: SEEK_DATA and SEEK_HOLE"), || {
            check_seek(&lab, s)
        });
        tap.case(&format!("{name}: FIBMAP"), || check_fibmap(&lab, s));
        tap.case(
            &format!("{name}: cold reads ask no more than needed"),
            || check_begins(&mut lab, s),
        );
        tap.case(&format!("{name}: front to back"), || {
            check_sequential(&lab, s)
        });
        tap.case(&format!("{name}: odd offsets"), || {
            check_odd_offsets(&lab, s)
        });
        tap.case(&format!("{name}: mmap"), || check_mmap(&lab, s));
        tap.case(&format!("{name}: same as on the devices"), || {
            check_against_devices(&lab, s, &devices)
        });
    }
    for s in subjects
        .iter()
        .filter(|s| s.name == "blocks-512" || s.name == "fragments")
    {
        tap.case(&format!("{}: FIEMAP in small portions", s.name), || {
            check_fiemap(&lab, s, 3)
        });
        tap.case(&format!("{}: copied within the kernel", s.name), || {
            check_copy(&lab, machine, s)
        });
    }
    tap.case("END is sent if the server wants it", || {
        check_ends(&mut lab, &scenario)
    });
    tap.case("iomap files cause no READ", || {
        for s in &subjects {
            let reads = lab.activity(s.name)?.reads;
            ensure!(reads == 0, "{}: {reads} READs", s.name);
        }
        Ok(())
    });
    tap.case("ordinary files on the same mount", || {
        check_ordinary(&mut lab)
    });
    if let Ok(counters) = lab.counters() {
        comment(&format!("requests: {counters:?}"));
    }
    finish(tap, lab);
    inline(tap, machine);
    flags(tap, machine);
}

fn inline(tap: &mut Tap, machine: &Machine) {
    let scenario = inline_scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    tap.case("inline data is reported", || {
        for subject in subjects(&scenario)? {
            check_fiemap(&lab, &subject, 8)?;
        }
        Ok(())
    });
    tap.case("inline data is read, with READ", || {
        let (reads, begins) = read_and_count(&mut lab, &scenario, "inline")?;
        ensure!(reads > 0 && begins > 0, "{reads} READs, {begins} BEGINs");
        Ok(())
    });
    finish(tap, lab);
}

fn read_and_count(lab: &mut Lab, scenario: &Scenario, name: &str) -> Result<(u64, usize), String> {
    let file = open_cold(&lab.path(name))?;
    let before = lab.activity(name)?;
    let got = pread(&file, 0, 65_536).map_err(|e| format!("{name}: {e}"))?;
    same(0, &got, &model(scenario, name)?.bytes(0..65_536))?;
    let after = lab.activity(name)?;
    Ok((
        after.reads - before.reads,
        after.begins.len() - before.begins.len(),
    ))
}

fn change_flags(lab: &mut Lab, path: &str, flags: u32) -> Outcome {
    let (p, path) = (lab.path(path), path.to_owned());
    lab.ask(&Command::SetFlags {
        path: path.clone(),
        flags,
    })?;
    for _ in 0..3 {
        lab.ask(&Command::InvalInode { path: path.clone() })?;
        std::fs::metadata(&p).map_err(|e| format!("stat: {e}"))?;
        File::open(&p).map_err(|e| format!("open: {e}"))?;
    }
    Ok(())
}

fn flags(tap: &mut Tap, machine: &Machine) {
    let scenario = flags_scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    tap.case(
        "FUSE_ATTR_IOMAP on a directory and a symlink does nothing",
        || {
            let entries = std::fs::read_dir(lab.path("link")).map_err(|e| e.to_string())?;
            ensure!(entries.count() == 4, "the directory is not what it was");
            let target = std::fs::read_link(lab.path("link")).map_err(|e| e.to_string())?;
            ensure!(target.as_os_str() == "dir", "{target:?}");
            Ok(())
        },
    );
    for (name, what) in [
        (
            "dir/not-exclusive",
            "IOMAP without EXCLUSIVE is an ordinary file",
        ),
        (
            "dir/only-exclusive",
            "EXCLUSIVE without IOMAP is an ordinary file",
        ),
    ] {
        tap.case(what, || {
            let (reads, begins) = read_and_count(&mut lab, &scenario, name)?;
            ensure!(reads > 0 && begins == 0, "{reads} READs, {begins} BEGINs");
            Ok(())
        });
    }
    tap.case(
        "FUSE_ATTR_IOMAP on an instantiated inode is ignored, with one warning",
        || {
            let (reads, begins) = read_and_count(&mut lab, &scenario, "dir/late")?;
            ensure!(reads > 0 && begins == 0, "{reads} READs, {begins} BEGINs");
            let file = File::open(lab.path("dir/late")).map_err(|e| e.to_string())?;
            let mut log = crate::kmsg::Kmsg::open()?;
            let both = attr_flags::EXCLUSIVE | attr_flags::IOMAP;
            change_flags(&mut lab, "dir/late", both)?;
            let warnings = log.wait_for("FUSE_ATTR_IOMAP", 1);
            ensure!(warnings.len() == 1, "warnings: {warnings:?}");
            let (reads, begins) = read_and_count(&mut lab, &scenario, "dir/late")?;
            ensure!(reads > 0 && begins == 0, "{reads} READs, {begins} BEGINs");
            drop(file);
            Ok(())
        },
    );
    tap.case("an inode does not leave iomap either", || {
        let file = File::open(lab.path("dir/early")).map_err(|e| e.to_string())?;
        change_flags(&mut lab, "dir/early", 0)?;
        let (reads, begins) = read_and_count(&mut lab, &scenario, "dir/early")?;
        ensure!(reads == 0 && begins > 0, "{reads} READs, {begins} BEGINs");
        drop(file);
        Ok(())
    });
    finish(tap, lab);
}
