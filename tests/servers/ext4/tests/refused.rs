// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What cannot be served is refused when it is opened, in words.

mod common;

use std::fs;

use common::{Scratch, mke2fs, open};

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
    assert_eq!(why.errno(), ext4_volume::error::errno::EBADMSG, "{why}");
}
