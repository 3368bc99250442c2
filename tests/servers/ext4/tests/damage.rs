// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Random bytes of metadata are changed. Any answer is fine, and any error; a panic, an endless loop or
//! an absurd allocation is not. Overflows panic in test builds.

mod common;

use std::{
    collections::VecDeque,
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use common::{Scratch, all_names, debugfs, dirty_image, open, small_image};
use ext4_volume::{Volume, inode::ROOT};

/// Names looked at in one damaged volume, and runs of one file: damage may multiply both.
const NAMES: usize = 3000;
const RUNS: usize = 600;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Asks about everything that can be reached.
fn visit(volume: &Volume) {
    let _ = volume.statfs();
    let mut queue = VecDeque::from([ROOT]);
    let mut seen = 0;
    while let Some(ino) = queue.pop_front() {
        let Ok(inode) = volume.inode(ino) else {
            continue;
        };
        let _ = volume.attr(&inode);
        if let Ok(names) = volume.xattr_names(&inode, true) {
            for name in names {
                let _ = volume.xattr(&inode, &name);
            }
        }
        let _ = volume.read_link(&inode);
        let _ = volume.data_in_journal(&inode);
        let mut buf = [0; 3000];
        let _ = volume.read(&inode, 0, &mut buf);
        let _ = volume.read(&inode, volume.size(&inode).saturating_sub(1500), &mut buf);
        if inode.is_regular() && !inode.is_inline() {
            let mut block = 0;
            for _ in 0..RUNS {
                match volume.run(&inode, block, block + 10) {
                    Ok(run) => block = run.end(),
                    Err(_) => break,
                }
            }
        }
        if inode.is_dir() {
            let _ = volume.lookup(&inode, b"name-77-xxxxxxxxxxxxxxxxxxxxxxxxxxx");
            let _ = volume.lookup(&inode, b"absent");
            let _ = volume.read_dir(&inode, 0, |entry| {
                seen += 1;
                if !matches!(entry.name, b"." | b"..") {
                    queue.push_back(entry.ino);
                }
                Ok((seen > NAMES).then_some(()))
            });
        }
        if seen > NAMES {
            queue.truncate(100);
        }
    }
}

/// The blocks that opening and visiting a sound volume reads as metadata.
fn metadata(image: &Path) -> Vec<u64> {
    let volume = open(image).unwrap();
    assert!(all_names(&volume).len() > 500);
    visit(&volume);
    let mut blocks = volume.cached_blocks();
    // The superblock and the first group descriptors do not go through the cache.
    blocks.extend(0..4);
    blocks.sort_unstable();
    blocks.dedup();
    assert!(blocks.len() > 50);
    blocks
}

fn survives(test: &str, image: &Path, seed: u64, more: &[u64]) {
    let rounds = rounds();
    let file = File::options().read(true).write(true).open(image).unwrap();
    let (blocks, block_size) = {
        let volume = open(image).unwrap();
        let blocks = [&metadata(image), more].concat();
        (blocks, u64::from(volume.block_size()))
    };
    let mut random = Random(seed);
    let mut opened = 0;
    for round in 0..rounds {
        let mut undo = Vec::new();
        for _ in 0..1 + random.below(6) {
            let block = blocks[random.below(blocks.len())];
            // Headers are at the beginning of a block, so favour it.
            let within = if random.below(2) == 0 {
                random.below(64)
            } else {
                random.below(block_size as usize)
            };
            let at = block * block_size + within as u64;
            let mut old = [0; 4];
            file.read_exact_at(&mut old, at).unwrap();
            undo.push((at, old));
            let new = match random.below(4) {
                0 => [old[0] ^ (1 << random.below(8)), old[1], old[2], old[3]],
                1 => [0xff; 4],
                2 => [0; 4],
                _ => (random.next() as u32).to_le_bytes(),
            };
            file.write_all_at(&new, at).unwrap();
        }
        let start = Instant::now();
        if let Ok(volume) = open(image) {
            opened += 1;
            visit(&volume);
        }
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(20),
            "{test}: round {round} of seed {seed} took {took:?}"
        );
        for (at, old) in undo.into_iter().rev() {
            file.write_all_at(&old, at).unwrap();
        }
    }
    assert!(
        opened > rounds / 4,
        "{test}: only {opened} of {rounds} damaged volumes could be opened"
    );
    // And it was put back as it was.
    visit(&open(image).unwrap());
}

fn rounds() -> usize {
    std::env::var("EXT4_DAMAGE_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(150)
}

#[test]
fn without_checksums() {
    let scratch = Scratch::new("damage");
    let image = scratch.path("image");
    small_image(
        &image,
        &["--block-size", "1024", "--features", "^metadata_csum"],
    );
    survives("extents", &image, 0x1234_5678, &[]);
}

#[test]
fn inline_data() {
    let scratch = Scratch::new("damage-inline");
    let image = scratch.path("image");
    small_image(
        &image,
        &[
            "--block-size",
            "1024",
            "--features",
            "inline_data,^metadata_csum",
        ],
    );
    survives("inline", &image, 0xabcd_ef01, &[]);
}

#[test]
fn block_pointers() {
    let scratch = Scratch::new("damage-pointers");
    let image = scratch.path("image");
    small_image(&image, &["--block-size", "1024", "--type", "ext2"]);
    survives("pointers", &image, 0x5555_1111, &[]);
}

#[test]
fn with_checksums() {
    let scratch = Scratch::new("damage-checksums");
    let image = scratch.path("image");
    small_image(&image, &["--block-size", "1024"]);
    survives("checksums", &image, 0x7777_2222, &[]);
}

#[test]
fn a_journal() {
    let scratch = Scratch::new("damage-journal");
    let (image, expected) = (scratch.path("image"), scratch.path("expected"));
    dirty_image(
        &image,
        &expected,
        &["--block-size", "1024", "--features", "^metadata_csum"],
    );
    // The log is read past the cache, so its first blocks are named here.
    assert!(open(&image).unwrap().replayed() > 0);
    let commands: Vec<String> = (0..24).map(|n| format!("bmap <8> {n}\n")).collect();
    let log: Vec<u64> = debugfs(&image, false, &commands, &scratch)
        .iter()
        .map(|answer| answer.trim().parse().unwrap())
        .collect();
    survives("journal", &image, 0x9999_3333, &log);
}
