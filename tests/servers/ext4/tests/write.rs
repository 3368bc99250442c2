// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Random work on volumes of all kinds: what is read afterwards must be what the model says, and
//! e2fsck must find nothing.

mod common;

use std::sync::Arc;

use common::{
    Scratch, disk::MemDisk, e2fsck, kernel::Kernel, mke2fs_sized, open,
    opinion::agrees_with_debugfs, random::seed,
};

fn rounds() -> usize {
    std::env::var("EXT4_WRITE_STEPS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(1500)
}

fn works(test: &str, options: &[&str], size: &str, seed: u64) {
    let scratch = Scratch::new(test);
    works_in(&scratch, test, options, size, seed, rounds());
}

fn works_in(
    scratch: &Scratch,
    test: &str,
    options: &[&str],
    size: &str,
    own_seed: u64,
    rounds: usize,
) {
    let seed = seed(own_seed);
    let image = scratch.path("image");
    mke2fs_sized(&image, &[&["-t", "ext4"], options].concat(), size);
    let disk = Arc::new(MemDisk::load(&image, false));
    let mut kernel = Kernel::new(disk.clone(), seed);
    for _ in 0..rounds {
        kernel.step();
    }
    kernel.compare(&kernel.volume);
    kernel.volume.unmount().unwrap();
    kernel.close_all();
    disk.store(&image);
    e2fsck(&image, &format!("{test}, seed {seed:#x}"));
    kernel.compare(&open(&image).unwrap());
    println!(
        "{test}: {} inodes at the end, {} times full",
        kernel.nodes.len(),
        kernel.full
    );
}

#[test]
fn default_features() {
    works("w-default", &["-b", "4096"], "64M", 0x1111);
}

#[test]
fn debugfs_reads_the_same() {
    let scratch = Scratch::new("w-debugfs");
    works_in(&scratch, "w-debugfs", &["-b", "1024"], "24M", 0x9999, 400);
    let (names, xattrs) = agrees_with_debugfs(&scratch.path("image"), &scratch);
    assert!(
        names > 10 && xattrs > 0,
        "{names} names, {xattrs} attributes"
    );
}

#[test]
fn small_blocks() {
    works("w-1k", &["-b", "1024"], "48M", 0x2222);
}

#[test]
fn middle_blocks() {
    works("w-2k", &["-b", "2048"], "48M", 0x3333);
}

#[test]
fn without_journal() {
    works(
        "w-nojournal",
        &["-b", "4096", "-O", "^has_journal"],
        "64M",
        0x4444,
    );
}

#[test]
fn without_checksums() {
    works(
        "w-nocsum",
        &["-b", "1024", "-O", "^metadata_csum"],
        "48M",
        0x5555,
    );
}

#[test]
fn with_old_group_checksums() {
    works(
        "w-gdt",
        &[
            "-b",
            "1024",
            "-O",
            "^metadata_csum,uninit_bg,^64bit,^flex_bg",
        ],
        "48M",
        0x6666,
    );
}

#[test]
fn small_inodes_and_no_hashes() {
    works(
        "w-small",
        &[
            "-b",
            "1024",
            "-I",
            "128",
            "-O",
            "^dir_index,^huge_file,^extra_isize,^large_file",
        ],
        "48M",
        0x7777,
    );
}

#[test]
fn nearly_full() {
    works("w-full", &["-b", "1024", "-N", "300"], "6M", 0x8888);
}
