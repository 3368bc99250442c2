// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What cannot be served is refused when it is opened, in words.

mod common;

use std::{fs, path::Path, sync::Arc};

use common::{Scratch, all_names, e2fsck, mke2fs, open, small_image};
use ext4_volume::{Error, Volume, disk::FileDisk, error::errno};

#[test]
fn features_are_refused_by_name() {
    let scratch = Scratch::new("refused");
    let image = scratch.path("image");
    for feature in ["encrypt", "casefold", "verity"] {
        mke2fs(&image, &["-t", "ext4", "-O", feature]);
        let why = open(&image)
            .err()
            .unwrap_or_else(|| panic!("{feature} was taken"))
            .to_string();
        assert!(why.contains(feature), "{why}");
    }
    mke2fs(&image, &["-O", "journal_dev", "-b", "4096"]);
    let why = open(&image).err().unwrap().to_string();
    assert!(why.contains("external journal"), "{why}");
}

#[test]
fn features_that_cannot_be_written_are_named() {
    let scratch = Scratch::new("refused-write");
    let image = scratch.path("image");
    for (features, word) in [
        ("quota", "quota"),
        ("bigalloc", "bigalloc"),
        ("ea_inode", "ea_inode"),
        ("large_dir", "large_dir"),
        ("mmp", "mmp"),
        ("meta_bg,^resize_inode", "meta_bg"),
        ("quota,project", "project"),
        ("fast_commit", "fast_commit"),
        ("^extent,^64bit", "block-mapped"),
    ] {
        mke2fs(&image, &["-t", "ext4", "-O", features]);
        let before = fs::read(&image).unwrap();
        let why = writable(&image).err();
        let why = why.unwrap_or_else(|| panic!("{features} was taken"));
        assert!(matches!(why, Error::Unsupported(_)), "{why}");
        assert!(why.to_string().contains(word), "{features}: {why}");
        assert!(fs::read(&image).unwrap() == before, "{features}: written");
        open(&image).unwrap();
    }
}

fn writable(image: &Path) -> ext4_volume::Result<Volume> {
    Volume::open_writable(Arc::new(FileDisk::open_writable(image)?))
}

/// Files of kinds that cannot be written are refused one by one.
#[test]
fn single_files_are_refused() {
    let scratch = Scratch::new("refused-file");
    let image = scratch.path("image");
    small_image(
        &image,
        &["--block-size", "1024", "--features", "inline_data"],
    );
    let inline = {
        let volume = open(&image).unwrap();
        let names = all_names(&volume);
        let found = names.iter().find(|name| {
            let inode = volume.inode(name.ino).unwrap();
            inode.is_regular() && inode.is_inline()
        });
        found.expect("no file with inline data").clone()
    };
    let volume = writable(&image).unwrap();
    let refused = |result: ext4_volume::Result<()>| {
        assert_eq!(result.unwrap_err().errno(), errno::EOPNOTSUPP);
    };
    refused(volume.truncate(inline.ino, 0));
    refused(volume.write(inline.ino, 0, b"x"));
    refused(volume.set_xattr(inline.ino, b"user.x", b"y", 0));
    refused(volume.fallocate(inline.ino, 0, 4096, 0));
    // But they can go.
    volume.unlink(inline.dir, &inline.name).unwrap();
    volume.unmount().unwrap();
    e2fsck(&image, "a file with inline data less");
}

#[test]
fn what_is_no_filesystem_is_refused() {
    let scratch = Scratch::new("no-filesystem");
    let image = scratch.path("image");
    for size in [0, 512, 4096, 1 << 20] {
        fs::write(&image, vec![0x55; size]).unwrap();
        assert!(open(&image).is_err(), "{size} bytes of nothing");
    }
    // A truncated volume.
    mke2fs(&image, &["-t", "ext4"]);
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    let why = open(&image).err().unwrap().to_string();
    assert!(why.contains("larger than the device"), "{why}");
}

#[test]
fn a_wrong_checksum_is_refused() {
    let scratch = Scratch::new("checksum");
    let image = scratch.path("image");
    mke2fs(&image, &["-t", "ext4", "-O", "metadata_csum"]);
    let mut bytes = fs::read(&image).unwrap();
    // The volume's label is covered by nothing but the checksum.
    bytes[1024 + 0x78] ^= 1;
    fs::write(&image, bytes).unwrap();
    let why = open(&image).err().unwrap();
    assert_eq!(why.errno(), errno::EBADMSG, "{why}");
}
