// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Compares one name in both trees: attributes, extended attributes, link target, contents.

use crate::options::Options;
use crate::report::{Report, add};
use crate::{contents, sys};
use rustix::fs::{AtFlags, CWD, FileType, OFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The largest value of an extended attribute.
const XATTR_MAX: usize = 65536;

/// Compares names.
pub struct Comparer<'a> {
    options: &'a Options,
    report: &'a Report,
    /// Inode numbers with several names whose contents were compared already.
    seen: Mutex<HashSet<u64>>,
}

fn time(t: StatxTimestamp) -> String {
    format!("{}.{:09}", t.tv_sec, t.tv_nsec)
}

fn shown<T>(result: &Result<T, Errno>) -> String {
    result
        .as_ref()
        .map_or_else(|err| err.to_string(), |_| "fine".to_owned())
}

fn statx(path: &Path) -> Result<Statx, Errno> {
    let want = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, want)
}

/// Names of all extended attributes, sorted.
fn xattr_names(path: &Path) -> Result<Vec<Vec<u8>>, Errno> {
    let mut buf = vec![0u8; XATTR_MAX];
    let len = rustix::fs::llistxattr(path, &mut buf)?;
    let list = buf[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut names: Vec<Vec<u8>> = list.map(<[u8]>::to_vec).collect();
    names.sort();
    Ok(names)
}

fn xattr(path: &Path, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut buf = vec![0u8; XATTR_MAX];
    let len = rustix::fs::lgetxattr(path, name, &mut buf)?;
    buf.truncate(len);
    Ok(buf)
}

fn text(bytes: &[u8]) -> String {
    let short = &bytes[..bytes.len().min(40)];
    format!("\"{}\" ({} bytes)", short.escape_ascii(), bytes.len())
}

impl<'a> Comparer<'a> {
    /// A comparer for these options.
    pub fn new(options: &'a Options, report: &'a Report) -> Self {
        Self {
            options,
            report,
            seen: Mutex::default(),
        }
    }

    /// `path` in both trees.
    pub fn both(&self, path: &Path) -> [PathBuf; 2] {
        self.options.roots.each_ref().map(|root| {
            if path.as_os_str().is_empty() {
                root.clone()
            } else {
                root.join(path)
            }
        })
    }

    /// Compares the roots, and the filesystems' figures.
    pub fn roots(&self) -> io::Result<()> {
        let [a, b] = &self.options.roots;
        fs::metadata(a)?;
        fs::metadata(b)?;
        let root = Path::new("");
        self.entry(root);
        if self.options.statfs {
            let (a, b) = (rustix::fs::statvfs(a)?, rustix::fs::statvfs(b)?);
            self.report
                .same(root, "statfs block size", a.f_bsize, b.f_bsize);
            self.report
                .same(root, "statfs fragment size", a.f_frsize, b.f_frsize);
            self.report
                .same(root, "statfs blocks", a.f_blocks, b.f_blocks);
            self.report.same(root, "statfs free", a.f_bfree, b.f_bfree);
            self.report
                .same(root, "statfs available", a.f_bavail, b.f_bavail);
            self.report
                .same(root, "statfs inodes", a.f_files, b.f_files);
            self.report
                .same(root, "statfs free inodes", a.f_ffree, b.f_ffree);
            self.report
                .same(root, "statfs longest name", a.f_namemax, b.f_namemax);
        }
        Ok(())
    }

    /// Compares one name; returns whether both are directories.
    pub fn entry(&self, path: &Path) -> bool {
        let [a, b] = self.both(path);
        let (stat_a, stat_b) = match (statx(&a), statx(&b)) {
            (Ok(a), Ok(b)) => (a, b),
            (a, b) => {
                self.report.differ(path, "statx", shown(&a), shown(&b));
                return false;
            }
        };
        self.attributes(path, &stat_a, &stat_b);
        self.xattrs(path, &a, &b);

        let kind = FileType::from_raw_mode(stat_a.stx_mode.into());
        if kind != FileType::from_raw_mode(stat_b.stx_mode.into()) {
            return false;
        }
        let figures = &self.report.figures;
        match kind {
            FileType::Directory => {
                add(&figures.directories, 1);
                self.flags(path, &a, &b);
                return true;
            }
            FileType::RegularFile => {
                add(&figures.files, 1);
                if stat_a.stx_nlink > 1 {
                    add(&figures.hard_links, 1);
                    let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    if !seen.insert(stat_a.stx_ino) {
                        return false;
                    }
                }
                self.file(path, &a, &b, &stat_a);
            }
            FileType::Symlink => {
                add(&figures.symlinks, 1);
                let targets =
                    [&a, &b].map(|link| fs::read_link(link).map_err(|err| err.to_string()));
                if targets[0] != targets[1] {
                    let [a, b] = targets.map(|target| format!("{target:?}"));
                    self.report.differ(path, "link target", a, b);
                }
            }
            _ => add(&figures.specials, 1),
        }
        false
    }

    fn attributes(&self, path: &Path, a: &Statx, b: &Statx) {
        let r = self.report;
        r.same(
            path,
            "mode",
            format!("{:#o}", a.stx_mode),
            format!("{:#o}", b.stx_mode),
        );
        r.same(path, "inode number", a.stx_ino, b.stx_ino);
        r.same(path, "uid", a.stx_uid, b.stx_uid);
        r.same(path, "gid", a.stx_gid, b.stx_gid);
        r.same(path, "size", a.stx_size, b.stx_size);
        r.same(path, "blocks", a.stx_blocks, b.stx_blocks);
        r.same(path, "block size", a.stx_blksize, b.stx_blksize);
        r.same(path, "links", a.stx_nlink, b.stx_nlink);
        r.same(path, "device major", a.stx_rdev_major, b.stx_rdev_major);
        r.same(path, "device minor", a.stx_rdev_minor, b.stx_rdev_minor);
        r.same(path, "atime", time(a.stx_atime), time(b.stx_atime));
        r.same(path, "mtime", time(a.stx_mtime), time(b.stx_mtime));
        r.same(path, "ctime", time(a.stx_ctime), time(b.stx_ctime));
        let btime = |s: &Statx| {
            let has = s.stx_mask & StatxFlags::BTIME.bits() != 0;
            if has {
                time(s.stx_btime)
            } else {
                "none".to_owned()
            }
        };
        r.same(path, "creation time", btime(a), btime(b));
    }

    fn xattrs(&self, path: &Path, a: &Path, b: &Path) {
        let names = match (xattr_names(a), xattr_names(b)) {
            (Ok(a), Ok(b)) if a == b => a,
            (Ok(a), Ok(b)) => {
                let join =
                    |names: Vec<Vec<u8>>| String::from_utf8_lossy(&names.join(&b' ')).into_owned();
                self.report
                    .differ(path, "extended attributes", join(a), join(b));
                return;
            }
            (Err(a), Err(b)) if a == b => return,
            (a, b) => {
                self.report.differ(path, "listxattr", shown(&a), shown(&b));
                return;
            }
        };
        for name in names {
            add(&self.report.figures.xattrs, 1);
            let values = [a, b].map(|file| xattr(file, &name));
            if values[0] != values[1] {
                let [a, b] = values.map(|v| v.map_or_else(|err| err.to_string(), |v| text(&v)));
                let what = format!("attribute {}", String::from_utf8_lossy(&name));
                self.report.differ(path, what, a, b);
            }
        }
    }

    /// Compares inode flags and generation.
    fn flags(&self, path: &Path, a: &Path, b: &Path) {
        let open = |path: &Path| OpenOptions::new().read(true).open(path);
        let (Ok(a), Ok(b)) = (open(a), open(b)) else {
            return;
        };
        self.open_flags(path, &a, &b);
    }

    fn open_flags(&self, path: &Path, a: &fs::File, b: &fs::File) {
        add(&self.report.figures.flags, 1);
        let hex =
            |r: Result<u32, Errno>| r.map_or_else(|err| err.to_string(), |v| format!("{v:#x}"));
        self.report.same(
            path,
            "inode flags",
            hex(sys::inode_flags(a)),
            hex(sys::inode_flags(b)),
        );
        self.report.same(
            path,
            "generation",
            hex(sys::generation(a)),
            hex(sys::generation(b)),
        );
    }

    fn file(&self, path: &Path, a: &Path, b: &Path, stat: &Statx) {
        let nofollow = OFlags::NOFOLLOW.bits() as i32;
        let open = |path: &Path| {
            OpenOptions::new()
                .read(true)
                .custom_flags(nofollow)
                .open(path)
        };
        let (a, b) = match (open(a), open(b)) {
            (Ok(a), Ok(b)) => (a, b),
            (a, b) => {
                let show =
                    |r: io::Result<_>| r.map_or_else(|err| err.to_string(), |_| "fine".into());
                let (a, b): (String, String) = (show(a), show(b));
                self.report.differ(path, "open", a, b);
                return;
            }
        };
        let closely = stat.stx_ino % self.options.sample == 0;
        if closely {
            self.open_flags(path, &a, &b);
        }
        contents::compare(
            self.options,
            self.report,
            path,
            &a,
            &b,
            stat.stx_size,
            closely,
        );
    }
}
