// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Files that are swapped to. Swap space belongs to all, so each step gives up what it has begun.

use super::make;
use crate::pair::{Pair, Side, run as run_program};
use crate::seen::{Broken, Seen, outcome};
use crate::sys;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const SIZE: u64 = 8 << 20;
/// What is swapped out, in bytes.
const MEMORY: usize = 4 << 20;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("swap space in blocks that were never written", |side| {
        let path = side.path("unwritten");
        allocated(&path)?;
        swap_space(&path)?;
        let seen = used(&path)?;
        std::fs::remove_file(&path)?;
        Ok(seen)
    });
    pair.step("in blocks that were written", |side| {
        let path = side.path("written");
        make(&path, &vec![1; SIZE as usize])?;
        swap_space(&path)?;
        let seen = used(&path)?;
        std::fs::remove_file(&path)?;
        Ok(seen)
    });
    pair.step("with holes", |side| {
        let path = side.path("holes");
        make(&path, &[])?.set_len(SIZE)?;
        swap_space(&path)?;
        Ok(tried(&path))
    });
    pair.step("with a hole at its end", |side| {
        let path = side.path("end");
        allocated(&path)?;
        swap_space(&path)?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(
            File::options().write(true).open(&path)?,
            punch,
            SIZE - 4096,
            4096,
        )?;
        Ok(tried(&path))
    });
    pair.step("no swap space at all", |side| {
        let path = side.path("none");
        make(&path, &[7; 100_000])?;
        Ok(tried(&path))
    });
    pair.step("too small", |side| {
        let path = side.path("small");
        make(&path, &[7; 100])?;
        Ok(tried(&path))
    });
    pair.step("what cannot be done to it meanwhile", meanwhile);
    pair.step("a file like any other afterwards", |side| {
        let path = side.path("meanwhile");
        let file = File::options().write(true).open(&path)?;
        let written = outcome(file.write_all_at(b"again", 0));
        let cut = outcome(file.set_len(3));
        let removed = outcome(std::fs::remove_file(&path));
        Ok(format!("write {written}, truncate {cut}, unlink {removed}"))
    });
}

/// A file with blocks.
fn allocated(path: &Path) -> Result<File, Broken> {
    let file = make(path, &[])?;
    fallocate(&file, FallocateFlags::empty(), 0, SIZE)?;
    Ok(file)
}

/// Makes it swap space.
fn swap_space(path: &Path) -> Result<(), Broken> {
    run_program(Command::new("mkswap").arg("-q").arg(path))
}

/// How swapon goes; nothing is left of it.
fn tried(path: &Path) -> String {
    let on = sys::swapon(path);
    if on.is_ok() {
        // The next step would find it.
        let _ = sys::swapoff(path);
    }
    outcome(on)
}

/// Pages that have been swapped out.
fn swapped_out() -> Result<u64, Broken> {
    let stat = std::fs::read_to_string("/proc/vmstat")?;
    let line = stat.lines().find_map(|l| l.strip_prefix("pswpout "));
    Ok(line.and_then(|n| n.parse().ok()).ok_or("no pswpout")?)
}

/// Swaps out, and looks whether it comes back as it was.
fn used(path: &Path) -> Seen {
    sys::swapon(path)?;
    let seen = swapped(MEMORY);
    let off = outcome(sys::swapoff(path));
    Ok(format!("{}, swapoff {off}", seen?))
}

fn swapped(bytes: usize) -> Seen {
    let byte = |at: usize| (at / 4096 * 31 + at % 251) as u8;
    let mut data: Vec<u8> = (0..bytes).map(byte).collect();
    let before = swapped_out()?;
    sys::page_out(&mut data)?;
    let pages = swapped_out()? - before;
    // Where the memory starts is a matter of chance.
    let all = pages >= bytes as u64 / 4096 - 2;
    let same = data.iter().enumerate().all(|(at, b)| *b == byte(at));
    Ok(format!("all out {all}, the same again {same}"))
}

fn meanwhile(side: &Side) -> Seen {
    let path = side.path("meanwhile");
    let file = allocated(&path)?;
    swap_space(&path)?;
    sys::swapon(&path)?;
    let mut seen = Vec::new();
    let mut saw = |what: &str, how: String| seen.push(format!("{what} {how}"));
    saw("write", outcome(file.write_at(b"x", 8192)));
    saw("append", outcome(append(&path)));
    saw("shrink", outcome(file.set_len(4096)));
    saw("grow", outcome(file.set_len(SIZE * 2)));
    for (what, mode) in [
        ("allocate", FallocateFlags::empty()),
        (
            "punch",
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        ),
        ("zero", FallocateFlags::ZERO_RANGE),
        ("collapse", FallocateFlags::COLLAPSE_RANGE),
        ("insert", FallocateFlags::INSERT_RANGE),
    ] {
        saw(what, outcome(fallocate(&file, mode, 8192, 4096)));
    }
    saw("map to write", outcome(sys::Page::map(&file, true)));
    let other = make(&side.path("other"), b"some data")?;
    let copied = rustix::fs::copy_file_range(&other, None, &file, None, 9);
    saw("copy to it", outcome(copied));
    let mut at = 0;
    let copied = rustix::fs::copy_file_range(&file, Some(&mut at), &other, None, 9);
    saw("copy from it", outcome(copied));
    saw("read", outcome(file.read_at(&mut [0; 100], 0)));
    let moved = std::fs::rename(&path, side.path("moved"));
    saw("rename", outcome(moved));
    saw(
        "link",
        outcome(std::fs::hard_link(&path, side.path("link"))),
    );
    saw("swapon", outcome(sys::swapon(&path)));
    saw("chmod", outcome(file.set_permissions(mode_600())));
    saw("unlink", outcome(std::fs::remove_file(&path)));
    saw("swapoff", outcome(sys::swapoff(&path)));
    Ok(seen.join(", "))
}

fn mode_600() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o600)
}

fn append(path: &Path) -> std::io::Result<()> {
    File::options().append(true).open(path)?.write_all(b"x")
}
