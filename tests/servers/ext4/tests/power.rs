// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Power cuts: whatever subset of the blocks since the last flush made it to the disk, the journal must
//! replay to a sound volume that has all that fsync promised. e2fsck replays one copy, this crate another.

mod common;

use std::{fs::File, path::Path, sync::Arc};

use common::{
    Scratch,
    disk::MemDisk,
    e2fsck, e2fsck_repair,
    kernel::{Kernel, Promise},
    mke2fs_sized, open,
    random::seed,
};
use ext4_volume::{Volume, disk::FileDisk};

fn steps() -> usize {
    std::env::var("EXT4_WRITE_STEPS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(700)
}

fn cuts() -> usize {
    std::env::var("EXT4_POWER_CUTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(12)
}

fn kept(image: &Path, promises: &[&Promise], context: &str) {
    let volume = open(image).unwrap();
    for promise in promises {
        let inode = volume
            .inode(promise.ino)
            .unwrap_or_else(|err| panic!("{context}: inode {} is lost: {err}", promise.ino));
        assert_eq!(
            volume.size(&inode),
            promise.data.len() as u64,
            "{context}: size of inode {}",
            promise.ino
        );
        let mut data = vec![0; promise.data.len()];
        volume.read(&inode, 0, &mut data).unwrap();
        assert!(
            data == promise.data,
            "{context}: data of inode {}",
            promise.ino
        );
    }
}

/// What e2fsck may do to a volume after a crash without it being our fault.
fn expected_repair(line: &str) -> bool {
    [
        "recovering journal",
        "Clearing orphaned inode",
        "Truncating orphaned inode",
        "Setting free ",
        "Pass ",
        "e2fsck ",
        "FILE SYSTEM WAS MODIFIED",
        "files (",
        // Not damage: a shorter tree says the same.
        "Optimize? yes",
        "Pass 1E",
    ]
    .iter()
    .any(|known| line.contains(known))
        || line.trim().is_empty()
}

fn survives(test: &str, options: &[&str], size: &str, own_seed: u64) {
    let scratch = Scratch::new(test);
    let seed = seed(own_seed);
    let image = scratch.path("image");
    mke2fs_sized(&image, &[&["-t", "ext4"], options].concat(), size);
    let disk = Arc::new(MemDisk::load(&image, true));
    let mut kernel = Kernel::new(disk.clone(), seed);
    kernel.longest = 120_000;
    for _ in 0..steps() {
        kernel.step();
    }
    let block_size = kernel.volume.block_size() as usize;
    let end = disk.position();
    // The run ends with an orderly unmount, which the power may not survive either.
    kernel.volume.unmount().unwrap();
    let after = disk.position();
    let mut checked = 0;
    for cut in 0..cuts() {
        let at = match cut {
            0 => after,
            1 => end + kernel.random.below(after - end + 1),
            _ => kernel.random.below(end + 1),
        };
        let context = format!("{test}, seed {seed:#x}, cut {cut} at {at} of {after}");
        let bytes = disk.after_power_cut(at, block_size, &mut kernel.random);
        let promises: Vec<&Promise> = kernel
            .promises
            .iter()
            .filter(|promise| promise.since <= at && at < promise.until)
            .collect();
        checked += promises.len();

        std::fs::write(&image, &bytes).unwrap();
        let said = e2fsck_repair(&image);
        let strange: Vec<&str> = said.lines().filter(|line| !expected_repair(line)).collect();
        assert!(
            strange.is_empty(),
            "{context}: e2fsck had to repair:\n{said}"
        );
        e2fsck(&image, &context);
        kept(&image, &promises, &context);

        std::fs::write(&image, &bytes).unwrap();
        // Reading alone sees the same.
        kept(&image, &promises, &context);
        let disk = FileDisk::new(File::options().read(true).write(true).open(&image).unwrap());
        let volume = Volume::open_writable(Arc::new(disk.unwrap())).unwrap();
        volume.unmount().unwrap();
        e2fsck(&image, &format!("{context}, replayed here"));
        kept(&image, &promises, &context);
    }
    assert!(checked > 0, "{test}: nothing was promised");
    println!("{test}: {after} events, {checked} promises were kept");
}

#[test]
fn default_features() {
    survives("p-default", &["-b", "4096"], "24M", 0x1111);
}

#[test]
fn small_blocks_and_a_small_journal() {
    survives("p-1k", &["-b", "1024", "-J", "size=1"], "24M", 0x2222);
}

#[test]
fn a_32_bit_journal_without_checksums() {
    let options = ["-b", "1024", "-O", "^metadata_csum,^64bit", "-J", "size=1"];
    survives("p-nocsum", &options, "24M", 0x3333);
}

#[test]
fn nearly_full() {
    survives("p-full", &["-b", "1024", "-N", "300"], "6M", 0x4444);
}
