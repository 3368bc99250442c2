// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Names: renameat2 with each flag, files without name, the limits of links and of lengths.

use super::make;
use crate::pair::{Pair, Side, run};
use crate::seen::{Broken, attributes, look, outcome};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, linkat, open, openat, renameat_with, symlinkat,
};
use std::fs::{create_dir, hard_link, remove_file, symlink_metadata};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Command;

/// Takes the steps.
pub fn steps(pair: &mut Pair) {
    renames(pair);
    whiteout(pair);
    unnamed(pair);
    lengths(pair);
    links(pair);
}

/// What is there under a name.
fn kind(path: &Path) -> String {
    match symlink_metadata(path) {
        Err(err) => outcome::<(), _>(Err(err)),
        Ok(m) if m.is_dir() => format!("directory of {} links", m.nlink()),
        Ok(m) if m.is_file() => format!("file of {} bytes", m.len()),
        Ok(m) if m.file_type().is_char_device() => format!("character device {:#x}", m.rdev()),
        Ok(m) if m.file_type().is_symlink() => format!("link of {} bytes", m.len()),
        Ok(_) => "something else".into(),
    }
}

/// A directory with two of each kind, of which the second is full.
fn fixtures(side: &Side, name: &str) -> Result<std::path::PathBuf, Broken> {
    let root = side.path(name);
    create_dir(&root)?;
    make(&root.join("file"), b"1")?;
    make(&root.join("other"), b"22")?;
    create_dir(root.join("empty"))?;
    create_dir(root.join("full"))?;
    create_dir(root.join("full/below"))?;
    make(&root.join("full/file"), b"333")?;
    symlink("nowhere", root.join("link"))?;
    Ok(root)
}

fn renames(pair: &mut Pair) {
    let flags = [
        ("plain", RenameFlags::empty()),
        ("NOREPLACE", RenameFlags::NOREPLACE),
        ("EXCHANGE", RenameFlags::EXCHANGE),
        ("WHITEOUT", RenameFlags::WHITEOUT),
        (
            "NOREPLACE and WHITEOUT",
            RenameFlags::NOREPLACE.union(RenameFlags::WHITEOUT),
        ),
        (
            "EXCHANGE and NOREPLACE",
            RenameFlags::EXCHANGE.union(RenameFlags::NOREPLACE),
        ),
        (
            "EXCHANGE and WHITEOUT",
            RenameFlags::EXCHANGE.union(RenameFlags::WHITEOUT),
        ),
        ("unknown flag", RenameFlags::from_bits_retain(8)),
    ];
    let moves = [
        ("file", "other"),
        ("file", "new"),
        ("file", "empty"),
        ("file", "full/file"),
        ("file", "file"),
        ("empty", "file"),
        ("empty", "full"),
        ("full", "empty"),
        ("full", "full/below"),
        ("full", "full/below/deeper"),
        ("full/below", "full"),
        ("full/below", "moved"),
        ("full/below", "empty"),
        ("link", "file"),
        ("file", "link"),
        ("link", "full/link"),
        ("missing", "file"),
        ("full/below", "file"),
        ("file", "full/below"),
    ];
    for (i, (what, flags)) in flags.into_iter().enumerate() {
        pair.step(&format!("rename, {what}"), |side| {
            let mut shown = Vec::new();
            for (j, (from, to)) in moves.into_iter().enumerate() {
                let root = fixtures(side, &format!("rename-{i}-{j}"))?;
                let (a, b) = (root.join(from), root.join(to));
                let result = outcome(renameat_with(CWD, &a, CWD, &b, flags));
                shown.push(format!(
                    "{from} to {to}: {result}, {}, {}, {}, {}",
                    kind(&a),
                    kind(&b),
                    kind(&root),
                    kind(&root.join("full"))
                ));
                std::fs::remove_dir_all(root)?;
            }
            Ok(shown.join("; "))
        });
    }
}

fn whiteout(pair: &mut Pair) {
    pair.step("a whiteout is a device 0:0 of the caller's", |side| {
        let (a, b) = (side.path("white"), side.path("moved"));
        make(&a, b"moved")?;
        renameat_with(CWD, &a, CWD, &b, RenameFlags::WHITEOUT)?;
        let s = look(&a)?;
        let device = format!("device {}:{}", s.stx_rdev_major, s.stx_rdev_minor);
        Ok(format!(
            "{}, {device}; {}",
            attributes(&a)?,
            attributes(&b)?
        ))
    });
    pair.mount_again();
    pair.step("it lasts", |side| attributes(&side.path("white")));
    pair.step("it can be removed", |side| {
        remove_file(side.path("white"))?;
        remove_file(side.path("moved"))?;
        attributes(&side.root)
    });
}

fn unnamed(pair: &mut Pair) {
    let opened = |side: &Side, flags: OFlags| {
        let flags = OFlags::TMPFILE | OFlags::RDWR | flags;
        open(&side.root, flags, Mode::from(0o640))
    };
    // With a name in /proc, which needs no privilege.
    let link = |file: &rustix::fd::OwnedFd, to: &Path| {
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(CWD, from.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
    };
    pair.step("a file without a name gets one", |side| {
        let file = opened(side, OFlags::empty())?;
        let links = rustix::fs::fstat(&file)?.st_nlink;
        rustix::io::write(&file, b"some bytes")?;
        let path = side.path("named");
        let first = outcome(link(&file, &path));
        let again = outcome(link(&file, &path));
        let second = outcome(linkat(
            CWD,
            &path,
            CWD,
            side.path("second"),
            AtFlags::empty(),
        ));
        Ok(format!(
            "{links} links, {first}, {again}, {second}, {}",
            attributes(&path)?
        ))
    });
    pair.step("by descriptor alone", |side| {
        let file = opened(side, OFlags::empty())?;
        let result = outcome(linkat(
            &file,
            "",
            CWD,
            side.path("by-fd"),
            AtFlags::EMPTY_PATH,
        ));
        Ok(format!("{result}, {}", kind(&side.path("by-fd"))))
    });
    pair.step("with O_EXCL it never gets one", |side| {
        let file = opened(side, OFlags::EXCL)?;
        Ok(outcome(link(&file, &side.path("never"))))
    });
    pair.step("a file that lost its name gets no other", |side| {
        let path = side.path("lost");
        let file = rustix::fd::OwnedFd::from(make(&path, b"x")?);
        remove_file(&path)?;
        Ok(outcome(link(&file, &side.path("again"))))
    });
    pair.step("for reading it cannot be made, nor below a file", |side| {
        let reading = open(
            &side.root,
            OFlags::TMPFILE | OFlags::RDONLY,
            Mode::from(0o600),
        );
        let file = side.path("named");
        let below = open(&file, OFlags::TMPFILE | OFlags::RDWR, Mode::from(0o600));
        Ok(format!("{}, {}", outcome(reading), outcome(below)))
    });
    pair.mount_again();
    pair.step("what got a name lasts", |side| {
        let shown = attributes(&side.path("named"))?;
        for name in ["named", "second", "by-fd"] {
            remove_file(side.path(name))?;
        }
        Ok(shown)
    });
}

fn lengths(pair: &mut Pair) {
    pair.step("symbolic links of each length", |side| {
        let mut shown = Vec::new();
        for length in [1, 59, 60, 61, 1023, 4094, 4095, 4096] {
            let target = "t".repeat(length);
            let path = side.path(&format!("link-{length}"));
            let made = outcome(symlink(&target, &path));
            let same = std::fs::read_link(&path).is_ok_and(|t| t.as_os_str() == target.as_str());
            let size = look(&path).map_or(0, |s| s.stx_size);
            let sectors = look(&path).map_or(0, |s| s.stx_blocks);
            shown.push(format!("{length}: {made} {same} {size} {sectors}"));
        }
        shown.push(outcome(symlinkat("", CWD, side.path("empty-link"))));
        Ok(shown.join(", "))
    });
    pair.mount_again();
    pair.step("they last", |side| {
        let mut shown = Vec::new();
        for length in [1usize, 59, 60, 61, 1023, 4094, 4095] {
            let path = side.path(&format!("link-{length}"));
            let target = std::fs::read_link(&path)?;
            shown.push((target.as_os_str() == "t".repeat(length).as_str()).to_string());
            remove_file(&path)?;
        }
        Ok(shown.join(", "))
    });
    pair.step("names of each length", |side| {
        let mut shown = Vec::new();
        for length in [1, 254, 255, 256] {
            let path = side.path(&"n".repeat(length));
            shown.push(format!(
                "{length}: {}",
                outcome(std::fs::File::create(&path))
            ));
            shown.push(outcome(create_dir(side.path(&"d".repeat(length)))));
            shown.push(outcome(symlink("x", side.path(&"s".repeat(length)))));
            shown.push(outcome(hard_link(&path, side.path(&"h".repeat(length)))));
            shown.push(outcome(std::fs::rename(
                &path,
                side.path(&"r".repeat(length)),
            )));
        }
        Ok(shown.join(", "))
    });
    pair.step("what cannot be a name", |side| {
        let dir = open(&side.root, OFlags::PATH, Mode::empty())?;
        let mut shown = Vec::new();
        for name in ["", ".", "..", "a/", "missing/a", "n/a"] {
            let file = openat(
                &dir,
                name,
                OFlags::CREATE | OFlags::WRONLY,
                Mode::from(0o600),
            );
            let directory = rustix::fs::mkdirat(&dir, name, Mode::from(0o700));
            shown.push(format!("'{name}' {} {}", outcome(file), outcome(directory)));
        }
        Ok(shown.join(", "))
    });
}

/// More links a file cannot have.
const MOST_LINKS: usize = 65_000;

/// Names in one directory: with this many its index has two levels.
const MANY: usize = 45_000;
/// In a short run there are fewer, and one level.
const SOME: usize = 4000;

fn links(pair: &mut Pair) {
    let long = std::env::var_os("LOADS").is_some_and(|loads| loads == "long");
    let many = if long { MANY } else { SOME };
    pair.step("many names of one file, in one directory", |side| {
        let dir = side.path("links");
        create_dir(&dir)?;
        let first = dir.join("0");
        make(&first, b"x")?;
        for i in 1..many {
            hard_link(&first, dir.join(i.to_string()))?;
        }
        let seen = std::fs::read_dir(&dir)?.filter(Result::is_ok).count();
        Ok(format!("{seen} names, {}", attributes(&first)?))
    });
    pair.mount_again();
    pair.step("they are all there again, and can all be removed", |side| {
        let dir = side.path("links");
        let seen = std::fs::read_dir(&dir)?.filter(Result::is_ok).count();
        let links = look(&dir.join("777"))?.stx_nlink;
        for i in 1..many {
            remove_file(dir.join(i.to_string()))?;
        }
        Ok(format!("{seen}, {links}, {}", attributes(&dir.join("0"))?))
    });

    // The last ones count, and not that there are really so many.
    let set = |side: &Side, count: usize| {
        let request = format!("set_inode_field links/0 links_count {count}");
        run(Command::new("debugfs")
            .args(["-w", "-R", &request])
            .arg(&side.device))
    };
    pair.mount_again_after(|side| set(side, MOST_LINKS - 2));
    pair.step("as many links as a file can have", |side| {
        let dir = side.path("links");
        let mut shown = Vec::new();
        for i in 1..5 {
            let result = hard_link(dir.join("0"), dir.join(i.to_string()));
            shown.push(format!(
                "{}, {}",
                outcome(result),
                look(&dir.join("0"))?.stx_nlink
            ));
        }
        remove_file(dir.join("1"))?;
        shown.push(outcome(hard_link(dir.join("0"), dir.join("3"))));
        for name in ["2", "3"] {
            remove_file(dir.join(name))?;
        }
        Ok(shown.join(", "))
    });
    pair.mount_again_after(|side| set(side, 1));
}
