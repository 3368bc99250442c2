// SPDX-License-Identifier: GPL-2.0 OR MIT
//! statx: what the kernel knows of direct I/O is shown, whatever the server says of it; what only the
//! server knows comes from there.

use super::bench::{scenario, workshop};
use super::write::{create, pattern, rule};
use super::{finish, start_iomap};
use crate::disks::{DISKS, Machine};
use crate::ensure;
use crate::files::{cool, errno, fails_with, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{Statx, StatxOut, attr_flags};
use lab::client::Lab;
use lab::control::Command;
use lab::misbehave::Action;
use lab::scenario::FileSpec;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BASIC: u32 = 0x7ff;
const DIOALIGN: u32 = 0x2000;
const SUBVOL: u32 = 0x8000;
const WRITE_ATOMIC: u32 = 0x1_0000;
const DIO_READ_ALIGN: u32 = 0x2_0000;
const VOLUME: u64 = 7 << 33 | 5;
/// Words of `struct statx`.
const MEMORY: usize = 38;
const OFFSET: usize = 39;
const READ_OFFSET: usize = 45;
const UNIT_MIN: usize = 42;
const UNIT_MAX: usize = 43;

fn look(lab: &Lab, name: &str, mask: u32) -> Result<[u32; 64], String> {
    let path = lab.path(name);
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    sys::statx_words(&path, mask).map_err(|e| format!("statx: {e}"))
}

/// The largest of a property of the disks.
fn largest(property: &str) -> Result<u32, String> {
    let mut largest = 0;
    for disk in DISKS {
        let path = std::env::var(disk).map_err(|e| format!("{disk}: {e}"))?;
        let path = std::fs::canonicalize(&path).map_err(|e| format!("{path}: {e}"))?;
        let name = path.file_name().ok_or("no name")?;
        let queue = Path::new("/sys/block").join(name).join("queue");
        let text = std::fs::read_to_string(queue.join(property));
        let text = text.map_err(|e| format!("{property}: {e}"))?;
        let value: u32 = text
            .trim()
            .parse()
            .map_err(|e| format!("{property}: {e}"))?;
        largest = largest.max(value);
    }
    Ok(largest)
}

/// Alignments are those that are right for all devices.
fn alignment(lab: &Lab, name: &str) -> Outcome {
    let seen = look(lab, name, DIOALIGN | DIO_READ_ALIGN)?;
    let both = DIOALIGN | DIO_READ_ALIGN;
    ensure!(seen[0] & both == both, "the mask is {:#x}", seen[0]);
    let offset = largest("logical_block_size")?;
    let memory = largest("dma_alignment")? + 1;
    let got = [seen[MEMORY], seen[OFFSET], seen[READ_OFFSET]];
    ensure!(got == [memory, offset, offset], "{got:?}");
    Ok(())
}

/// One block at most, and only where the server can have that.
fn atomic(lab: &Lab, name: &str, unit: u32) -> Outcome {
    let seen = look(lab, name, WRITE_ATOMIC)?;
    ensure!(seen[0] & WRITE_ATOMIC != 0, "the mask is {:#x}", seen[0]);
    let got = [seen[UNIT_MIN], seen[UNIT_MAX]];
    ensure!(got == [unit, unit], "{got:?}");
    Ok(())
}

/// The subvolume is the server's, for all inodes, when it is asked for.
fn subvolume(lab: &mut Lab, names: &[&str]) -> Outcome {
    for name in names {
        let seen = look(lab, name, BASIC | SUBVOL)?;
        let volume = u64::from(seen[40]) | u64::from(seen[41]) << 32;
        ensure!(seen[0] & SUBVOL != 0, "{name}: the mask is {:#x}", seen[0]);
        ensure!(volume == VOLUME, "{name}: {volume:#x}");
        // The mount's number is not the server's matter.
        ensure!(seen[37] == 0, "{name}: the mount id is the server's");
    }
    let before = lab.counter("STATX")?;
    let seen = look(lab, names[0], BASIC)?;
    ensure!(seen[0] & SUBVOL == 0, "it was not asked for");
    let asked = lab.counter("STATX")? - before;
    ensure!(
        asked == 0,
        "the server was asked {asked} times for the rest"
    );
    Ok(())
}

/// The flags that come with attributes are shown and enforced, and STATX, which does not say what flags
/// there are, does not take them away.
fn flags(lab: &mut Lab, name: &str) -> Outcome {
    const IOMAP: u32 = attr_flags::IOMAP | attr_flags::EXCLUSIVE;
    // The lowest word of stx_attributes, and of what of it is supported.
    const ATTRIBUTES: usize = 2;
    const SUPPORTED: usize = 14;
    let path = lab.path(name);
    let open = || OpenOptions::new().write(true).open(&path);
    for (flag, shown) in [
        (attr_flags::IMMUTABLE, 0x10),
        (attr_flags::APPEND, 0x20),
        (0, 0),
    ] {
        lab.ask(&Command::SetFlags {
            path: name.to_owned(),
            flags: IOMAP | flag,
        })?;
        lab.ask(&Command::InvalInode {
            path: name.to_owned(),
        })?;
        // With the time of birth it would be STATX already.
        look(lab, name, BASIC)?;
        let asked = lab.counter("STATX")?;
        for _ in 0..2 {
            let seen = look(lab, name, BASIC | SUBVOL)?;
            ensure!(seen[SUPPORTED] & 0x30 == 0x30, "not said to be supported");
            let got = seen[ATTRIBUTES] & 0x30;
            ensure!(got == shown, "shown: {got:#x} instead of {shown:#x}");
        }
        ensure!(
            lab.counter("STATX")? == asked + 2,
            "the server was not asked"
        );
        match flag {
            0 => drop(open().map_err(|e| format!("without flags: {e}"))?),
            _ => fails_with("open for writing", open(), &[libc::EPERM])?,
        }
    }
    Ok(())
}

fn bytes(field: usize, value: &[u8]) -> Action {
    Action::Patch {
        at: offset_of!(StatxOut, stat) + field,
        bytes: value.to_vec(),
    }
}

/// Answers of which the file takes no harm.
fn harmless() -> Vec<(&'static str, Action)> {
    let mask = |mask: u32| bytes(offset_of!(Statx, mask), &mask.to_ne_bytes());
    let blksize = |size: u32| bytes(offset_of!(Statx, blksize), &size.to_ne_bytes());
    let time = |field: usize, sec: i64, nsec: u32| {
        let mut value = sec.to_ne_bytes().to_vec();
        value.extend(nsec.to_ne_bytes());
        bytes(field, &value)
    };
    vec![
        ("no mask", mask(0)),
        ("all of the mask", mask(u32::MAX)),
        ("a mask without the time of access", mask(BASIC & !0x20)),
        ("a mask of the size alone", mask(0x200)),
        ("another size", bytes(offset_of!(Statx, size), &[0; 8])),
        (
            "the largest size",
            bytes(offset_of!(Statx, size), &i64::MAX.to_ne_bytes()),
        ),
        ("blocks of 0", blksize(0)),
        ("blocks of 3", blksize(3)),
        ("blocks of 4 GiB", blksize(u32::MAX)),
        ("no links", bytes(offset_of!(Statx, nlink), &[0; 4])),
        (
            "all attributes",
            bytes(offset_of!(Statx, attributes), &[0xff; 8]),
        ),
        (
            "a time without sense",
            time(offset_of!(Statx, mtime), i64::MIN, u32::MAX),
        ),
        (
            "a birth without sense",
            time(offset_of!(Statx, btime), i64::MAX, u32::MAX),
        ),
    ]
}

/// Whatever the server says of it, size and times are the kernel's, and so is the data.
fn lies(lab: &mut Lab, name: &str, partial: bool, action: Action) -> Outcome {
    const SIZE: usize = 30_001;
    let path = lab.path(name);
    let file = create(&path)?;
    let data = pattern(41, SIZE);
    file.write_all_at(&data[..9000], 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    // Of this the server does not know.
    file.write_all_at(&data[9000..], 9000)
        .map_err(|e| format!("write: {e}"))?;
    // Of access, and, behind that of birth, of change and modification.
    let times = |seen: &[u32; 64]| [&seen[16..20], &seen[24..32]].concat();
    let before = look(lab, name, BASIC)?;
    lab.set_rules(vec![rule("STATX", name, (0, 0), action)])?;
    let seen = look(lab, name, BASIC | SUBVOL | 0x800);
    let fired = lab.fired()?;
    lab.set_rules(Vec::new())?;
    ensure!(fired == 1, "the server was asked {fired} times");
    let seen = seen?;
    let size = u64::from(seen[10]) | u64::from(seen[11]) << 32;
    ensure!(size == SIZE as u64, "the size is {size}");
    ensure!(times(&seen) == times(&before), "the times are the server's");
    ensure!(seen[2] & 0x30 == 0, "attributes are the server's");
    let owned = 0x20 | 0x40 | 0x80 | 0x200;
    ensure!(seen[0] & owned == owned, "the mask is {:#x}", seen[0]);
    ensure!(
        partial || seen[0] & BASIC == BASIC,
        "a whole answer is not shown"
    );
    let after = look(lab, name, BASIC)?;
    ensure!(after[10..12] == seen[10..12], "the size is another now");
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    cool(&file)?;
    let got = pread(&file, 0, SIZE + 1).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &data)
}

/// Answers after which the call fails, and perhaps the file is of no use; all else lives on.
fn ruins(lab: &mut Lab, name: &str, action: Action) -> Outcome {
    let file = create(&lab.path(name))?;
    file.write_all_at(&[3; 9000], 0)
        .map_err(|e| format!("write: {e}"))?;
    let asked = rule("STATX", name, (0, 0), action);
    lab.set_rules(vec![asked])?;
    let path = CString::new(lab.path(name).as_os_str().as_bytes()).map_err(|e| e.to_string())?;
    let result = sys::statx_words(&path, BASIC | SUBVOL);
    lab.set_rules(Vec::new())?;
    match result {
        Err(e) if [libc::EIO, libc::EINVAL].contains(&errno(&e)) => {}
        Err(e) => return Err(format!("it fails with {e}")),
        Ok(_) => return Err("it is taken".into()),
    }
    // Whatever comes of these, they end.
    let _ = file.write_all_at(&[4; 9000], 0);
    let _ = file.sync_all();
    let _ = file.set_len(5);
    drop(file);
    File::open(lab.mountpoint()).map_err(|e| format!("the root: {e}"))?;
    Ok(())
}

/// Replies to STATX that no honest server sends.
fn hostile(tap: &mut Tap, lab: &mut Lab) {
    let way = workshop("unwritten", 4096);
    for (n, (what, action)) in harmless().into_iter().enumerate() {
        let name = format!("{way}/lies-{n}");
        let partial = what.contains("mask");
        tap.case(&format!("STATX is answered with {what}"), || {
            lies(lab, &name, partial, action)
        });
    }
    let mode = |mode: u16| bytes(offset_of!(Statx, mode), &mode.to_ne_bytes());
    let length = |payload: usize| Action::Resize { payload };
    let whole = size_of::<StatxOut>();
    for (n, (what, action)) in [
        ("a directory", mode(0o040_755)),
        ("no type", mode(0o644)),
        (
            "a size above all",
            bytes(offset_of!(Statx, size), &[0xff; 8]),
        ),
        ("nothing", length(0)),
        ("too little", length(whole - 1)),
        ("too much", length(whole + 8)),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("{way}/ruined-{n}");
        tap.case(&format!("STATX is answered with {what}"), || {
            ruins(lab, &name, action)
        });
    }
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let mut scenario = scenario(101, None);
    scenario.options.subvol = Some(VOLUME);
    let hole = Vec::new();
    scenario.file("atomic", FileSpec::iomap(65_536, 4096, hole));
    if let Some(inode) = scenario.inodes.last_mut() {
        inode.attr_flags = Some(attr_flags::IOMAP | attr_flags::EXCLUSIVE | attr_flags::ATOMIC);
    }
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    let small = format!("{}/file", workshop("unwritten", 512));
    let plain = format!("{}/file", workshop("unwritten", 4096));
    let names = [small.as_str(), plain.as_str(), "atomic"];
    tap.case("files are made", || {
        for name in [&small, &plain] {
            create(&lab.path(name))?;
        }
        Ok(())
    });
    for name in names {
        tap.case(&format!("{name}: alignment"), || alignment(&lab, name));
        let unit = if name == "atomic" { 4096 } else { 0 };
        tap.case(&format!("{name}: atomic writes"), || {
            atomic(&lab, name, unit)
        });
    }
    tap.case("the subvolume", || {
        subvolume(&mut lab, &[&plain, "atomic", ""])
    });
    tap.case("flags from attributes", || flags(&mut lab, "atomic"));
    hostile(tap, &mut lab);
    finish(tap, lab);
}
