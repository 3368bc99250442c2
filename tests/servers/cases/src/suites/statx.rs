// SPDX-License-Identifier: GPL-2.0 OR MIT
//! statx: what the kernel knows of direct I/O is shown, whatever the server says of it; what only the
//! server knows comes from there.

use super::bench::{scenario, workshop};
use super::write::create;
use super::{finish, start_iomap};
use crate::disks::{DISKS, Machine};
use crate::ensure;
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::attr_flags;
use lab::client::Lab;
use lab::scenario::FileSpec;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
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
    finish(tap, lab);
}
