// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Whatever debugfs says about an image, this crate must say too.

mod common;

use common::{Scratch, opinion::agrees_with_debugfs, small_image};

fn agrees(test: &str, options: &[&str]) {
    let scratch = Scratch::new(test);
    let image = scratch.path("image");
    small_image(&image, options);
    let (names, xattrs) = agrees_with_debugfs(&image, &scratch);
    assert!(
        names > 500 && xattrs >= 9,
        "{names} names, {xattrs} attributes"
    );
}

#[test]
fn small_blocks() {
    agrees("small-blocks", &["--block-size", "1024"]);
}

#[test]
fn large_blocks() {
    agrees("large-blocks", &["--block-size", "4096"]);
}

#[test]
fn inline_data() {
    agrees(
        "inline-data",
        &["--block-size", "1024", "--features", "inline_data"],
    );
}

#[test]
fn ext2() {
    agrees("ext2", &["--type", "ext2", "--block-size", "1024"]);
}

#[test]
fn block_pointers_with_checksums() {
    agrees(
        "pointers",
        &["--block-size", "2048", "--features", "^extent,^64bit"],
    );
}

#[test]
fn small_inodes_without_checksums() {
    agrees(
        "plain",
        &[
            "--block-size",
            "1024",
            "--inode-size",
            "128",
            "--features",
            "^metadata_csum,uninit_bg",
        ],
    );
}

#[test]
fn large_attributes_and_directories() {
    agrees(
        "features",
        &[
            "--block-size",
            "1024",
            "--features",
            "ea_inode,large_dir,meta_bg,^resize_inode",
        ],
    );
}
