// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The second opinion: whatever debugfs says about an image, this crate must say too.

use std::{collections::BTreeMap, fs, path::Path};

use super::{Name, Scratch, all_names, debugfs, open, superblock_field};
use ext4_volume::{
    Volume,
    inode::{Attr, Inode, mode},
    map::Target,
};

/// File blocks of one file that are looked up one by one.
const BLOCKS: u64 = 400;
/// Larger files are not read as a whole.
const WHOLE: u64 = 4 << 20;

/// The value behind `label` in the output of debugfs's `stat`.
fn field<'a>(text: &'a str, label: &str) -> &'a str {
    let at = text
        .find(label)
        .unwrap_or_else(|| panic!("no {label:?} in:\n{text}"));
    text[at + label.len()..]
        .split_whitespace()
        .next()
        .unwrap_or("")
}

fn number(text: &str, label: &str) -> u64 {
    let value = field(text, label);
    // Ids above 2^31 are printed as negative numbers.
    let parsed = value
        .parse::<i64>()
        .map(|value| value as u32 as u64 | (value as u64 & !0xffff_ffff));
    match value.strip_prefix('-') {
        Some(_) => value.parse::<i32>().unwrap() as u32 as u64,
        None => parsed.unwrap_or_else(|_| panic!("{label} {value:?} in:\n{text}")),
    }
}

fn time_field<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(label))?;
    line.split_whitespace().next()
}

/// A time as `seconds:extra` in hexadecimal; the second half is missing in small inodes.
fn check_time(text: &str, label: &str, attr: &Attr, got: ext4_volume::inode::Time) {
    let value = time_field(text, label).unwrap_or_else(|| panic!("no {label} in:\n{text}"));
    let (seconds, extra) = value.split_once(':').unwrap_or((value, "0"));
    let hex = |text: &str| u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let (seconds, extra) = (hex(seconds), hex(extra));
    let want = i64::from(seconds as i32) + (i64::from(extra & 3) << 32);
    assert_eq!(
        (got.sec, got.nsec),
        (want, (extra >> 2).min(999_999_999)),
        "{label} of {attr:?}"
    );
}

fn check_attributes(text: &str, attr: &Attr, inode: &Inode, block_size: u64) {
    let mode = u64::from_str_radix(field(text, "Mode:"), 8).unwrap();
    assert_eq!(u64::from(attr.mode) & 0o7777, mode, "mode of {attr:?}");
    let kind = match attr.mode & mode::TYPE {
        mode::REG => "regular",
        mode::DIR => "directory",
        mode::LINK => "symlink",
        mode::CHAR => "character",
        mode::BLOCK => "block",
        mode::FIFO => "FIFO",
        _ => "socket",
    };
    assert_eq!(field(text, "Type:"), kind, "type of {attr:?}");
    assert_eq!(
        number(text, "User:"),
        u64::from(attr.uid),
        "uid of {attr:?}"
    );
    assert_eq!(
        number(text, "Group:"),
        u64::from(attr.gid),
        "gid of {attr:?}"
    );
    assert_eq!(
        number(text, "Links:"),
        u64::from(attr.nlink),
        "links of {attr:?}"
    );
    assert_eq!(
        number(text, "Generation:"),
        u64::from(attr.generation),
        "generation of {attr:?}"
    );
    let flags = u64::from_str_radix(field(text, "Flags:").trim_start_matches("0x"), 16).unwrap();
    assert_eq!(flags, u64::from(attr.flags), "flags of {attr:?}");
    if !matches!(kind, "character" | "block") {
        assert_eq!(number(text, "Size:"), attr.size, "size of {attr:?}");
    } else {
        let device = text
            .lines()
            .find(|line| line.contains("Device major/minor number:"));
        let (major, minor) = (
            (attr.rdev >> 8) & 0xfff,
            (attr.rdev & 0xff) | (attr.rdev >> 12) & 0xf_ff00,
        );
        let want = format!("{major:02}:{minor:02}");
        assert!(
            device.is_some_and(|line| line.contains(&want)),
            "{want} in {device:?}"
        );
    }
    let mut blocks = number(text, "Blockcount:");
    if inode.is_inline() && inode.is_regular() {
        blocks += attr.size.div_ceil(512);
    }
    assert_eq!(
        blocks, attr.blocks,
        "blocks of {attr:?} ({block_size} bytes)"
    );
    check_time(text, "ctime:", attr, attr.ctime);
    check_time(text, "atime:", attr, attr.atime);
    check_time(text, "mtime:", attr, attr.mtime);
    match attr.crtime {
        Some(crtime) => check_time(text, "crtime:", attr, crtime),
        None => assert!(
            time_field(text, "crtime:").is_none(),
            "creation time of {attr:?}"
        ),
    }
}

/// The file blocks that are worth asking about: the first, and some spread over the rest.
fn blocks_to_ask(size: u64, block_size: u64) -> Vec<u64> {
    let end = size.div_ceil(block_size) + 40;
    if end <= BLOCKS {
        return (0..end).collect();
    }
    (0..BLOCKS).map(|i| i.max(i * (end / BLOCKS))).collect()
}

fn check_map(volume: &Volume, inode: &Inode, asked: &[u64], answers: &[String]) {
    for (block, answer) in asked.iter().zip(answers) {
        let run = volume.run(inode, *block, block + 1).unwrap();
        assert!(
            run.start == *block && run.len > 0,
            "{run:?} does not begin at {block}"
        );
        let want = match run.target {
            Target::Hole => "0".to_owned(),
            Target::Mapped(at) => at.to_string(),
            Target::Unwritten(at) => format!("{at} (uninit)"),
        };
        assert_eq!(want, answer.trim(), "inode {}, block {block}", inode.ino());
        // Asking for more must not change what is said about the beginning.
        let longer = volume.run(inode, *block, block + 5000).unwrap();
        assert_eq!((longer.start, longer.target), (run.start, run.target));
        assert!(longer.len >= run.len);
    }
}

fn check_names(volume: &Volume, names: &[Name], image: &Path, scratch: &Scratch) {
    let mut dirs: BTreeMap<u32, Vec<&Name>> = BTreeMap::new();
    for name in names {
        dirs.entry(name.dir).or_default().push(name);
    }
    let commands: Vec<String> = dirs.keys().map(|dir| format!("ls -p <{dir}>\n")).collect();
    for ((dir, names), answer) in dirs.iter().zip(debugfs(image, false, &commands, scratch)) {
        // Names with a line break span two lines, and names that are not UTF-8 come out altered, so
        // those are only counted; what was removed has inode number 0.
        let lines = answer
            .lines()
            .filter(|line| line.starts_with('/') && !line.starts_with("/0/"))
            .count();
        assert_eq!(lines, names.len(), "entries of directory {dir}");
        for name in names {
            if let Ok(text) = str::from_utf8(&name.name)
                && !text.contains('\n')
            {
                let mode = volume.inode(name.ino).unwrap().mode();
                let start = format!("/{}/{mode:06o}/", name.ino);
                let middle = format!("/{text}/");
                let found = answer
                    .lines()
                    .any(|line| line.starts_with(&start) && line.contains(&middle));
                assert!(found, "debugfs does not list {name:?}");
                assert!(
                    name.kind == 0 || u16::from(name.kind) == mode >> 12,
                    "{name:?}"
                );
            }
            let inode = volume.inode(*dir).unwrap();
            assert_eq!(
                volume.lookup(&inode, &name.name).unwrap(),
                Some(name.ino),
                "{name:?}"
            );
            let absent = [&name.name[..name.name.len().min(200)], b"-absent"].concat();
            assert_eq!(volume.lookup(&inode, &absent).unwrap(), None);
        }
    }
}

/// Listing that is interrupted after each entry arrives at the same list.
fn check_positions(volume: &Volume, names: &[Name]) {
    let dirs: BTreeMap<u32, usize> = names.iter().fold(BTreeMap::new(), |mut dirs, name| {
        *dirs.entry(name.dir).or_default() += 1;
        dirs
    });
    for (dir, count) in dirs {
        let inode = volume.inode(dir).unwrap();
        let mut at = 0;
        let mut seen = 0;
        while let Some(next) = volume
            .read_dir(&inode, at, |entry| Ok(Some(entry.next)))
            .unwrap()
        {
            assert!(next > at, "directory {dir} does not get on from {at}");
            at = next;
            seen += 1;
        }
        assert_eq!(seen, count, "directory {dir}, one at a time");
    }
}

fn check_contents(volume: &Volume, inodes: &[Inode], image: &Path, scratch: &Scratch) {
    let chosen: Vec<&Inode> = inodes
        .iter()
        .filter(|inode| (inode.is_regular() || inode.is_symlink()) && volume.size(inode) <= WHOLE)
        .collect();
    let is_fast = |inode: &Inode| inode.is_symlink() && volume.size(inode) < 60;
    let dumped = |inode: &Inode| scratch.path(&format!("dumped-{}", inode.ino()));
    let commands: Vec<String> = chosen
        .iter()
        .map(|inode| {
            if is_fast(inode) {
                format!("stat <{}>\n", inode.ino())
            } else {
                format!("dump <{}> {}\n", inode.ino(), dumped(inode).display())
            }
        })
        .collect();
    let answers = debugfs(image, false, &commands, scratch);
    for (inode, answer) in chosen.into_iter().zip(answers) {
        let got = if inode.is_symlink() {
            volume.read_link(inode).unwrap()
        } else {
            let mut got = vec![0; WHOLE as usize + 1];
            let len = volume.read(inode, 0, &mut got).unwrap();
            got.truncate(len);
            got
        };
        if is_fast(inode) {
            let want = format!("dest: \"{}\"", str::from_utf8(&got).unwrap());
            // An inline link is shown as a long one, whose target stat does not tell.
            assert!(
                inode.is_inline() || answer.contains(&want),
                "{want} in {answer}"
            );
        } else {
            let mut want = fs::read(dumped(inode)).unwrap();
            if inode.is_inline() && want.len() > got.len() {
                // debugfs dumps all of i_block, whatever the size.
                assert!(want.split_off(got.len()).iter().all(|byte| *byte == 0));
            }
            let differ = got.iter().zip(&want).position(|(a, b)| a != b);
            let lengths = (got.len(), want.len());
            assert!(
                got == want,
                "inode {}: {lengths:?} bytes, at {differ:?}",
                inode.ino()
            );
        }
    }
}

fn check_xattrs(volume: &Volume, inodes: &[Inode], image: &Path, scratch: &Scratch) -> usize {
    let mut count = 0;
    let commands: Vec<String> = inodes
        .iter()
        .map(|inode| format!("ea_list <{}>\n", inode.ino()))
        .collect();
    for (inode, answer) in inodes.iter().zip(debugfs(image, false, &commands, scratch)) {
        let listed: Vec<&str> = answer
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_once(" ("))
            .map(|(name, _)| name)
            .filter(|name| *name != "system.data")
            .collect();
        let names = volume.xattr_names(inode, true).unwrap();
        let mut names: Vec<&str> = names
            .iter()
            .map(|name| str::from_utf8(name).unwrap())
            .collect();
        let mut want = listed.clone();
        names.sort_unstable();
        want.sort_unstable();
        assert_eq!(names, want, "attributes of inode {}", inode.ino());
        for name in names {
            let file = scratch.path("value");
            let command = format!("ea_get -f {} <{}> {name}\n", file.display(), inode.ino());
            debugfs(image, false, &[command], scratch);
            let mut want = fs::read(&file).unwrap();
            if name.starts_with("system.posix_acl") {
                // debugfs leaves the id of entries without one at 0, system calls at -1.
                for entry in want[4..].chunks_mut(8) {
                    if !matches!(entry[0], 0x02 | 0x08) {
                        entry[4..].fill(0xff);
                    }
                }
            }
            assert_eq!(
                volume.xattr(inode, name.as_bytes()).unwrap(),
                want,
                "{name}"
            );
            count += 1;
        }
        assert!(volume.xattr(inode, b"user.no such").is_err());
        let unprivileged = volume.xattr_names(inode, false).unwrap();
        assert!(
            unprivileged
                .iter()
                .all(|name| !name.starts_with(b"trusted."))
        );
    }
    count
}

/// Compares everything; returns how many names and attributes there were.
pub fn agrees_with_debugfs(image: &Path, scratch: &Scratch) -> (usize, usize) {
    let volume = open(image).unwrap();
    let block_size = u64::from(volume.block_size());

    let names = all_names(&volume);
    check_names(&volume, &names, image, scratch);
    check_positions(&volume, &names);

    let mut numbers: Vec<u32> = names.iter().map(|name| name.ino).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let inodes: Vec<Inode> = numbers
        .iter()
        .map(|ino| volume.inode(*ino).unwrap())
        .collect();
    let commands: Vec<String> = numbers
        .iter()
        .map(|ino| format!("stat <{ino}>\n"))
        .collect();
    for (inode, answer) in inodes.iter().zip(debugfs(image, false, &commands, scratch)) {
        check_attributes(&answer, &volume.attr(inode), inode, block_size);
    }

    let files: Vec<&Inode> = inodes
        .iter()
        .filter(|i| i.is_regular() && !i.is_inline())
        .collect();
    let asked: Vec<(&Inode, Vec<u64>)> = files
        .iter()
        .map(|inode| (*inode, blocks_to_ask(volume.size(inode), block_size)))
        .collect();
    let commands: Vec<String> = asked
        .iter()
        .flat_map(|(inode, blocks)| {
            blocks
                .iter()
                .map(|block| format!("bmap <{}> {block}\n", inode.ino()))
        })
        .collect();
    let mut answers = debugfs(image, false, &commands, scratch).into_iter();
    for (inode, blocks) in &asked {
        let mine: Vec<String> = answers.by_ref().take(blocks.len()).collect();
        check_map(&volume, inode, blocks, &mine);
    }

    check_contents(&volume, &inodes, image, scratch);
    let xattrs = check_xattrs(&volume, &inodes, image, scratch);

    let stat = volume.statfs();
    let of = |name| superblock_field(image, name);
    assert_eq!(stat.blocks, of("Block count:") - of("Overhead clusters:"));
    assert_eq!(stat.free, of("Free blocks:"));
    assert_eq!(
        (stat.files, stat.files_free),
        (of("Inode count:"), of("Free inodes:"))
    );
    assert_eq!(u64::from(stat.block_size), of("Block size:"));
    (names.len(), xattrs)
}
