// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A volume whose newest state is in its journal must read as if it had been replayed, and its device
//! must stay as it is.

mod common;

use std::fs;

use common::{Name, Scratch, all_names, debugfs, dirty_image, open};
use ext4_volume::Volume;

/// Everything there is to know about a name, but for the position of journaled data.
fn facts(volume: &Volume, name: &Name) -> String {
    let inode = volume.inode(name.ino).unwrap();
    let mut data = vec![0; 100_000];
    let len = if inode.is_regular() {
        volume.read(&inode, 0, &mut data).unwrap()
    } else {
        0
    };
    let target = if inode.is_symlink() {
        volume.read_link(&inode).unwrap()
    } else {
        Vec::new()
    };
    let names = volume.xattr_names(&inode, true).unwrap();
    let values: Vec<_> = names
        .iter()
        .map(|name| volume.xattr(&inode, name).unwrap())
        .collect();
    let run = (inode.is_regular() && !inode.is_inline()).then(|| volume.run(&inode, 0, 1).unwrap());
    format!(
        "{name:?} {:?} {:?} {target:?} {names:?} {values:?} {run:?}",
        volume.attr(&inode),
        &data[..len]
    )
}

fn replays(test: &str, options: &[&str]) {
    let scratch = Scratch::new(test);
    let (image, expected) = (scratch.path("image"), scratch.path("expected"));
    dirty_image(&image, &expected, options);
    let before = fs::read(&image).unwrap();

    let dirty = open(&image).unwrap();
    assert!(dirty.replayed() > 0);
    let clean = open(&expected).unwrap();
    assert_eq!(clean.replayed(), 0);
    let (mut got, mut want) = (all_names(&dirty), all_names(&clean));
    got.sort();
    want.sort();
    assert!(got == want, "the names differ");
    for name in &want {
        assert_eq!(facts(&dirty, name), facts(&clean, name));
    }
    assert_eq!(dirty.statfs(), clean.statfs());

    // The data of exactly one file is in the journal.
    let journaled: Vec<&Name> = want
        .iter()
        .filter(|name| {
            let inode = dirty.inode(name.ino).unwrap();
            inode.is_regular() && dirty.data_in_journal(&inode).unwrap()
        })
        .collect();
    let names: Vec<&[u8]> = journaled.iter().map(|name| &name.name[..]).collect();
    assert_eq!(names, [b"written"]);
    assert!(
        fs::read(&image).unwrap() == before,
        "the device was written"
    );
}

#[test]
fn with_checksums() {
    replays("journal", &["--block-size", "1024"]);
}

#[test]
fn with_checksums_and_large_blocks() {
    replays("journal-4k", &["--block-size", "4096"]);
}

#[test]
fn of_ext3() {
    replays("journal-ext3", &["--block-size", "1024", "--type", "ext3"]);
}

#[test]
fn a_journal_with_fast_commits_is_refused() {
    let scratch = Scratch::new("journal-fc");
    let (image, expected) = (scratch.path("image"), scratch.path("expected"));
    dirty_image(&image, &expected, &["--block-size", "1024"]);
    debugfs(
        &image,
        true,
        &["feature fast_commit\n".to_owned()],
        &scratch,
    );
    let why = open(&image).err().unwrap().to_string();
    assert!(why.contains("fast commits"), "{why}");
}

#[test]
fn a_torn_transaction_is_not_replayed() {
    let scratch = Scratch::new("journal-torn");
    let (image, expected) = (scratch.path("image"), scratch.path("expected"));
    dirty_image(&image, &expected, &["--block-size", "1024"]);
    // Without its commit block the transaction never happened. It is the last block of the log that
    // is not zero.
    let answers = debugfs(&image, false, &["logdump\n".to_owned()], &scratch);
    let commit = answers[0]
        .lines()
        .find(|line| line.contains("type 2 (commit block)"));
    let at = commit.and_then(|line| {
        line.split("at block ")
            .nth(1)?
            .split(|c: char| !c.is_ascii_digit())
            .next()
    });
    let at: u64 = at
        .and_then(|at| at.parse().ok())
        .unwrap_or_else(|| panic!("{}", answers[0]));
    let answers = debugfs(&image, false, &[format!("bmap <8> {at}\n")], &scratch);
    let block: u64 = answers[0].trim().parse().unwrap();
    let mut bytes = fs::read(&image).unwrap();
    bytes[block as usize * 1024..][..1024].fill(0);
    fs::write(&image, bytes).unwrap();

    let volume = open(&image).unwrap();
    assert_eq!(volume.replayed(), 0);
    assert!(
        all_names(&volume)
            .iter()
            .all(|name| name.name != b"written")
    );
}
