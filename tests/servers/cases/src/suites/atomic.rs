// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Untorn writes (`RWF_ATOMIC`) on a disk that can do them, `$FI_DISK_A`, beside one that cannot. The
//! kernel's ext4 says what is right.

use super::bench::{Bench, open_direct, scenario};
use super::write::{create, pattern, rule};
use crate::disks::Machine;
use crate::ensure;
use crate::files::errno;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{iomap_ioend, iomap_op};
use lab::misbehave::Action;
use lab::store::{Policy, Style};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::ReadWriteFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const BLOCK: usize = 4096;
const SIZE: usize = 16 * BLOCK;
/// Not in the crate.
const ATOMIC: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x40);
const COMMANDS: &str = "/sys/kernel/tracing/events/scsi/scsi_dispatch_cmd_start/enable";
const TRACE: &str = "/sys/kernel/tracing/trace";

#[repr(align(4096))]
struct Pages([u8; 4 * BLOCK]);

/// The calls whose results are compared: a name, an offset and the lengths of the pieces.
const CALLS: [(&str, u64, &[usize]); 11] = [
    ("a block", 0, &[4096]),
    ("the last block", 61_440, &[4096]),
    ("appending a block", 65_536, &[4096]),
    ("a block in the hole behind the end", 131_072, &[4096]),
    ("two blocks", 0, &[8192]),
    ("three blocks", 0, &[12_288]),
    ("a sector", 0, &[512]),
    ("two sectors", 1024, &[1024]),
    ("a block at a sector", 512, &[4096]),
    ("a block in two pieces", 0, &[2048, 2048]),
    ("nothing", 0, &[0]),
];

type Outcomes = Vec<(String, Result<usize, i32>)>;

fn write(file: &File, offset: u64, lengths: &[usize], byte: u8) -> Result<usize, i32> {
    let pages = Pages([byte; 4 * BLOCK]);
    let mut at = 0;
    let slices: Vec<IoSlice<'_>> = lengths
        .iter()
        .map(|length| {
            let slice = IoSlice::new(&pages.0[at..at + length]);
            at += length;
            slice
        })
        .collect();
    rustix::io::pwritev2(file, &slices, offset, ATOMIC).map_err(rustix::io::Errno::raw_os_error)
}

/// Makes all calls on a new file of [`SIZE`] bytes.
fn outcomes(path: &Path) -> Result<(File, Outcomes), String> {
    let file = create(path)?;
    file.write_all_at(&pattern(5, SIZE), 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let direct = open_direct(path)?;
    let mut all = Vec::new();
    for (index, (what, offset, lengths)) in (1..).zip(CALLS) {
        all.push((what.to_owned(), write(&direct, offset, lengths, index)));
    }
    let buffered = write(&file, 0, &[BLOCK], 99);
    all.push(("through the page cache".to_owned(), buffered));
    let mut pages = Pages([0; 4 * BLOCK]);
    let slices = &mut [IoSliceMut::new(&mut pages.0[..BLOCK])];
    let read = rustix::io::preadv2(&direct, slices, 0, ATOMIC);
    let read = read.map_err(rustix::io::Errno::raw_os_error);
    all.push(("reading".to_owned(), read));
    Ok((file, all))
}

/// What the file holds after the calls that succeeded.
fn model(outcomes: &Outcomes) -> Vec<u8> {
    let mut model = pattern(5, SIZE);
    for (index, ((_, offset, _), (_, outcome))) in (1..).zip(CALLS.iter().zip(outcomes)) {
        if let Ok(n) = outcome {
            let (start, end) = (*offset as usize, *offset as usize + n);
            model.resize(model.len().max(end), 0);
            model[start..end].fill(index);
        }
    }
    model
}

/// What the kernel's ext4 does on the same disk, whose contents are lost.
fn by_ext4(machine: &Machine, disk: &Path) -> Result<Outcomes, String> {
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096"])
        .arg(disk)
        .status()
        .map_err(|e| format!("mke2fs: {e}"))?;
    ensure!(made.success(), "mke2fs: {made}");
    mount(disk, &machine.mountpoint, "ext4", MountFlags::empty(), None)
        .map_err(|e| format!("mount: {e}"))?;
    let found = outcomes(&machine.mountpoint.join("file")).map(|(_, outcomes)| outcomes);
    unmount(&machine.mountpoint, UnmountFlags::empty()).map_err(|e| format!("umount: {e}"))?;
    found
}

/// How many commands for untorn writes the disk gets meanwhile.
fn commands(f: impl FnOnce() -> Outcome) -> Result<usize, String> {
    let put =
        |file: &str, text: &str| std::fs::write(file, text).map_err(|e| format!("{file}: {e}"));
    put(TRACE, "")?;
    put(COMMANDS, "1")?;
    let result = f();
    put(COMMANDS, "0")?;
    result?;
    let trace = std::fs::read_to_string(TRACE).map_err(|e| format!("{TRACE}: {e}"))?;
    let atomic = |line: &&str| line.contains("WRITE_ATOMIC_16");
    Ok(trace.lines().filter(atomic).count())
}

fn disk_can() -> Result<PathBuf, String> {
    let disk = std::env::var_os("FI_DISK_A").ok_or("$FI_DISK_A is not set")?;
    let name = Path::new(&disk).file_name().unwrap_or_default();
    let limit = Path::new("/sys/block")
        .join(name)
        .join("queue/atomic_write_unit_max_bytes");
    let text = std::fs::read_to_string(&limit).map_err(|e| format!("{}: {e}", limit.display()))?;
    let most: usize = text.trim().parse().unwrap_or(0);
    ensure!(most >= BLOCK, "the disk writes {most} bytes in one piece");
    Ok(disk.into())
}

/// The same results as on ext4, and the same bytes on the disk.
fn as_ext4(bench: &mut Bench, ext4: &Outcomes) -> Outcome {
    let path = bench.lab.path("atomic/file");
    let (file, ours) = outcomes(&path)?;
    let wrong: Vec<String> = ours
        .iter()
        .zip(ext4)
        .filter(|(ours, ext4)| ours != ext4)
        .map(|(ours, ext4)| format!("{}: {:?}, by ext4 {:?}", ours.0, ours.1, ext4.1))
        .collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("; "));
    let written = ours.iter().filter(|o| o.1 == Ok(BLOCK)).count();
    ensure!(written == 4, "{written} writes succeeded");
    bench.compare(&file, "atomic/file", &model(&ours))
}

/// A block over data, into unwritten blocks, into a hole and behind the end: the server is told what
/// is wanted, and each is one command for the disk.
fn in_one_piece(bench: &mut Bench) -> Outcome {
    let name = "atomic/blocks";
    let path = bench.lab.path(name);
    let file = create(&path)?;
    let mut model = pattern(6, 4 * BLOCK);
    file.write_all_at(&model, 0).map_err(|e| e.to_string())?;
    fallocate(&file, FallocateFlags::empty(), 0, 8 * BLOCK as u64).map_err(|e| e.to_string())?;
    file.set_len(12 * BLOCK as u64).map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| e.to_string())?;
    model.resize(12 * BLOCK, 0);
    let direct = open_direct(&path)?;
    for (what, block) in [
        ("data", 1),
        ("unwritten", 6),
        ("a hole", 10),
        ("the end", 12),
    ] {
        let before = bench.lab.activity(name)?.begins.len();
        let at = block * BLOCK;
        let sent = commands(|| {
            let done = write(&direct, at as u64, &[BLOCK], block as u8);
            ensure!(done == Ok(BLOCK), "{what}: {done:?}");
            Ok(())
        })?;
        ensure!(sent == 1, "{what}: {sent} commands for untorn writes");
        let begins = bench.lab.activity(name)?.begins.split_off(before);
        let atomic = begins.iter().any(|b| b.opflags & iomap_op::ATOMIC != 0);
        ensure!(atomic, "{what}: the server was asked {begins:?}");
        model.resize(model.len().max(at + BLOCK), 0);
        model[at..at + BLOCK].fill(block as u8);
    }
    bench.compare(&file, name, &model)
}

/// One that is refused, and has changed nothing.
fn refused(bench: &mut Bench, dir: &str) -> Outcome {
    let name = format!("{dir}/refused");
    let path = bench.lab.path(&name);
    let file = create(&path)?;
    let model = pattern(7, SIZE);
    file.write_all_at(&model, 0).map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| e.to_string())?;
    let direct = open_direct(&path)?;
    for offset in [0, SIZE as u64] {
        let done = write(&direct, offset, &[BLOCK], 1);
        ensure!(done == Err(libc::EOPNOTSUPP), "at {offset}: {done:?}");
    }
    bench.compare(&file, &name, &model)
}

/// The server does not say that these blocks can be written in one piece.
fn no_promise(bench: &mut Bench) -> Outcome {
    let name = "atomic/refused";
    create(&bench.lab.path(name))?;
    let flags = |side: &str| (format!("{side}.flags"), 0);
    let set = vec![flags("read"), flags("write")];
    let atomic = (iomap_op::ATOMIC, 0);
    let lie = rule("IOMAP_BEGIN", name, atomic, Action::Fields { set });
    bench.lab.set_rules(vec![lie])?;
    let result = refused(bench, "atomic");
    ensure!(bench.lab.fired()? > 0, "the server did not get to that");
    bench.lab.set_rules(Vec::new())?;
    result
}

/// Where blocks become the file's at the end, no disk has to do anything.
fn by_copying(bench: &mut Bench) -> Outcome {
    let name = "copied/file";
    let path = bench.lab.path(name);
    let file = create(&path)?;
    let mut model = pattern(8, SIZE);
    file.write_all_at(&model, 0).map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| e.to_string())?;
    let done = write(&open_direct(&path)?, BLOCK as u64, &[BLOCK], 3);
    ensure!(done == Ok(BLOCK), "{done:?}");
    model[BLOCK..2 * BLOCK].fill(3);
    let last = bench.lab.last_ioend(name)?.ok_or("there was no IOEND")?;
    ensure!(last.flags & iomap_ioend::SHARED != 0, "{last:?}");
    bench.compare(&file, name, &model)
}

/// An error of the disk is the writer's.
fn write_error(bench: &mut Bench) -> Outcome {
    let name = "atomic/failed";
    let path = bench.lab.path(name);
    let file = create(&path)?;
    file.set_len(SIZE as u64).map_err(|e| e.to_string())?;
    bench.lab.refuse("IOMAP_IOEND", libc::EIO)?;
    let done = write(&open_direct(&path)?, 0, &[BLOCK], 3);
    bench.lab.refuse("IOMAP_IOEND", 0)?;
    ensure!(done == Err(libc::EIO), "{done:?}");
    let mut got = vec![1; BLOCK];
    file.read_at(&mut got, 0)
        .map_err(|e| format!("read: errno {}", errno(&e)))?;
    ensure!(got.iter().all(|b| *b == 0), "it reads as {:#x}", got[0]);
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let Some(disk) = tap.case("the disk writes a block in one piece", disk_can) else {
        return;
    };
    let Some(ext4) = tap.case("the kernel's ext4 on it", || by_ext4(machine, &disk)) else {
        return;
    };
    let mut scenario = scenario(75, None);
    // The disk is slow.
    scenario.options.fill = false;
    for (name, dev, style, atomic) in [
        ("atomic", 0, Style::Unwritten, true),
        ("plain", 0, Style::Unwritten, false),
        ("cannot", 1, Style::Unwritten, true),
        ("copied", 1, Style::Cow, true),
    ] {
        let policy = Policy {
            dev,
            style,
            atomic,
            cow_always: style == Style::Cow,
            ..Policy::default()
        };
        scenario.workshop(name, policy);
    }
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    tap.case("the results are those of ext4", || {
        as_ext4(&mut bench, &ext4)
    });
    tap.case("a block is one command, wherever it goes", || {
        in_one_piece(&mut bench)
    });
    tap.case("an inode without FUSE_ATTR_ATOMIC", || {
        refused(&mut bench, "plain")
    });
    tap.case("a disk that cannot", || refused(&mut bench, "cannot"));
    tap.case("a mapping without ATOMIC_BIO", || no_promise(&mut bench));
    tap.case("by copy-on-write, on a disk that cannot", || {
        by_copying(&mut bench)
    });
    tap.case("a completion that fails", || write_error(&mut bench));
    super::finish(tap, bench.lab);
}
