// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Structures that small random work does not reach: deep extent trees, hashed directories with two
//! levels, and truncations that take several transactions.

mod common;

use std::{collections::BTreeSet, sync::Arc};

use common::{Scratch, debugfs, disk::MemDisk, e2fsck, mke2fs_sized, open, random::Random};
use ext4_volume::{
    Volume,
    data::Written,
    inode::{ROOT, mode},
    map::Target,
    names::NewInode,
    resize::mode as how,
};

fn mount(scratch: &Scratch, options: &[&str], size: &str) -> (Arc<MemDisk>, Volume) {
    let image = scratch.path("image");
    mke2fs_sized(&image, &[&["-t", "ext4"], options].concat(), size);
    let disk = Arc::new(MemDisk::load(&image, false));
    let volume = Volume::open_writable(disk.clone()).unwrap();
    (disk, volume)
}

fn unmount(scratch: &Scratch, disk: &MemDisk, volume: &Volume, what: &str) -> Volume {
    volume.unmount().unwrap();
    let image = scratch.path("image");
    disk.store(&image);
    e2fsck(&image, what);
    open(&image).unwrap()
}

fn again(disk: &Arc<MemDisk>) -> Volume {
    Volume::open_writable(disk.clone()).unwrap()
}

fn file() -> NewInode {
    NewInode {
        mode: mode::REG | 0o600,
        ..Default::default()
    }
}

fn ask(scratch: &Scratch, command: &str) -> String {
    let image = scratch.path("image");
    debugfs(&image, false, &[format!("{command}\n")], scratch).swap_remove(0)
}

/// The depth of an extent tree, as debugfs shows it in front of each entry.
fn depth(scratch: &Scratch, name: &str) -> u16 {
    let dump = ask(scratch, &format!("dump_extents {name}"));
    let line = dump.lines().nth(1).unwrap_or_else(|| panic!("{dump}"));
    let deepest = line
        .split('/')
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    deepest
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{dump}"))
}

#[test]
fn a_deep_extent_tree() {
    const BLOCK: u64 = 1024;
    const LAST: u64 = 36_000;
    let scratch = Scratch::new("l-extents");
    let (disk, volume) = mount(&scratch, &["-b", "1024"], "80M");
    let ino = volume.create(ROOT, b"deep", &file()).unwrap();
    volume.remember(ino);
    // Every second block, in an order that hits all leaves all the time.
    let mut random = Random(77);
    let mut order: Vec<u64> = (0..LAST / 2).map(|n| n * 2).collect();
    for at in (1..order.len()).rev() {
        order.swap(at, random.below(at + 1));
    }
    // Completions come one by one, and several at a time.
    let mut pieces = Vec::new();
    for (number, block) in order.iter().enumerate() {
        let run = volume
            .blocks_for_write(ino, *block, block + 1, false)
            .unwrap();
        assert!(matches!(run.target, Target::Unwritten(_)));
        if number % 3 == 0 {
            pieces.push(Written {
                pos: block * BLOCK,
                len: BLOCK,
                unwritten: true,
                append: true,
            });
            if pieces.len() > number % 7 {
                let sizes = volume.data_written(ino, &pieces).unwrap();
                assert_eq!(sizes.len(), pieces.len());
                assert!(sizes.is_sorted() && sizes[0] >= pieces[0].pos + BLOCK);
                pieces.clear();
            }
        }
    }
    volume.data_written(ino, &pieces).unwrap();
    volume.truncate(ino, LAST * BLOCK).unwrap();
    let written: BTreeSet<u64> = order.iter().step_by(3).copied().collect();
    let check = |volume: &Volume, step: usize| {
        let inode = volume.inode(ino).unwrap();
        for block in (0..LAST).step_by(step) {
            let run = volume.run(&inode, block, block + 1).unwrap();
            let good = match run.target {
                Target::Hole => block % 2 == 1,
                Target::Mapped(_) => written.contains(&block),
                Target::Unwritten(_) => block % 2 == 0 && !written.contains(&block),
            };
            assert!(good, "block {block}: {run:?}");
        }
    };
    check(&volume, 7);
    check(&unmount(&scratch, &disk, &volume, "a deep tree"), 1);
    assert!(depth(&scratch, "deep") >= 2);

    // Take the middle out, move the rest down, and end with little.
    let volume = again(&disk);
    volume.remember(ino);
    let (from, len) = (5000 * BLOCK, 25_000 * BLOCK);
    volume
        .fallocate(ino, from, len, how::PUNCH_HOLE | how::KEEP_SIZE)
        .unwrap();
    let inode = volume.inode(ino).unwrap();
    let run = volume.run(&inode, 5000, 5001).unwrap();
    assert_eq!((run.target, run.end()), (Target::Hole, 30_000));
    volume
        .fallocate(ino, from, len, how::COLLAPSE_RANGE)
        .unwrap();
    let inode = volume.inode(ino).unwrap();
    assert_eq!(volume.size(&inode), (LAST - 25_000) * BLOCK);
    let run = volume.run(&inode, 5000, 5001).unwrap();
    assert_ne!(run.target, Target::Hole);
    unmount(&scratch, &disk, &volume, "a deep tree with its middle gone");

    let volume = again(&disk);
    volume.remember(ino);
    volume.truncate(ino, 1500).unwrap();
    unmount(&scratch, &disk, &volume, "a truncated tree");
    assert_eq!(depth(&scratch, "deep"), 0);
    let volume = again(&disk);
    volume.unlink(ROOT, b"deep").unwrap();
    unmount(&scratch, &disk, &volume, "no tree");
}

/// Makes, finds, renames and removes many names.
fn many_names(test: &str, options: &[&str], levels: u32, count: usize, pad: usize) {
    let scratch = Scratch::new(test);
    let (disk, volume) = mount(&scratch, options, "24M");
    let dir = NewInode {
        mode: mode::DIR | 0o755,
        ..Default::default()
    };
    let dir = volume.create(ROOT, b"dir", &dir).unwrap();
    let target = volume.create(ROOT, b"target", &file()).unwrap();
    let name = |n: usize| format!("{n:06}{}", "n".repeat(pad)).into_bytes();
    // One inode with all the names would have too many links, so there are more.
    let mut inodes = vec![target];
    for n in 0..count {
        if n % 60_000 == 0 {
            let more = volume
                .create(ROOT, format!("t{n}").as_bytes(), &file())
                .unwrap();
            inodes.push(more);
        }
        volume
            .link(inodes[inodes.len() - 1], dir, &name(n))
            .unwrap();
    }
    let listed = |volume: &Volume| {
        let mut seen = BTreeSet::new();
        let inode = volume.inode(dir).unwrap();
        volume
            .read_dir(&inode, 0, |entry| {
                if !matches!(entry.name, b"." | b"..") {
                    assert!(seen.insert(entry.name.to_vec()));
                }
                Ok(None::<()>)
            })
            .unwrap();
        seen
    };
    assert_eq!(listed(&volume).len(), count);
    let read = unmount(&scratch, &disk, &volume, "many names");
    let index = ask(&scratch, "htree_dump dir");
    let shown = index
        .split("Indirect levels: ")
        .nth(1)
        .map(|rest| &rest[..1]);
    let want = (levels > 0).then(|| (levels - 1).to_string());
    assert_eq!(shown, want.as_deref());
    let inode = read.inode(dir).unwrap();
    for n in (0..count).step_by(5) {
        assert!(read.lookup(&inode, &name(n)).unwrap().is_some());
    }
    drop(read);

    let volume = again(&disk);
    for n in 0..count {
        match n % 4 {
            0 => {}
            1 => volume
                .rename(
                    (dir, &name(n)),
                    (dir, &name(n + 500_000)),
                    0,
                    &NewInode::default(),
                )
                .unwrap(),
            _ => volume.unlink(dir, &name(n)).unwrap(),
        }
    }
    let left = listed(&volume);
    let want: BTreeSet<Vec<u8>> = (0..count)
        .filter(|n| n % 4 < 2)
        .map(|n| name(if n % 4 == 1 { n + 500_000 } else { n }))
        .collect();
    assert!(left == want);
    unmount(&scratch, &disk, &volume, "fewer names");
}

#[test]
fn an_index_of_two_levels() {
    // 123 leaves of four names fill the root.
    many_names("l-names", &["-b", "1024"], 2, 3000, 190);
}

#[test]
fn an_index_that_splits_nodes() {
    many_names(
        "l-nodes",
        &["-b", "1024", "-O", "^metadata_csum"],
        2,
        6000,
        230,
    );
}

#[test]
fn an_index_with_large_blocks() {
    many_names("l-4k", &["-b", "4096"], 1, 4000, 10);
}

#[test]
fn a_linear_directory() {
    many_names("l-linear", &["-b", "4096", "-O", "^dir_index"], 0, 500, 60);
}

#[test]
fn a_listing_meets_every_name_while_others_come() {
    let scratch = Scratch::new("l-listing");
    let (disk, volume) = mount(&scratch, &["-b", "4096"], "24M");
    let old: BTreeSet<Vec<u8>> = (0..400).map(|n| format!("old{n}").into_bytes()).collect();
    let target = volume.create(ROOT, b"target", &file()).unwrap();
    for name in &old {
        volume.link(target, ROOT, name).unwrap();
    }
    let mut seen = BTreeSet::new();
    let (mut at, mut added) = (0, 0);
    loop {
        let inode = volume.inode(ROOT).unwrap();
        let mut next = None;
        volume
            .read_dir(&inode, at, |entry| {
                seen.insert(entry.name.to_vec());
                next = Some(entry.next);
                Ok(Some(()))
            })
            .unwrap();
        let Some(next) = next else { break };
        at = next;
        if added < 3000 {
            for _ in 0..5 {
                added += 1;
                volume
                    .link(target, ROOT, format!("new{added}").as_bytes())
                    .unwrap();
            }
        }
    }
    let missed: Vec<_> = old.difference(&seen).collect();
    assert!(missed.is_empty(), "{} names were missed", missed.len());
    unmount(&scratch, &disk, &volume, "a busy directory");
}
