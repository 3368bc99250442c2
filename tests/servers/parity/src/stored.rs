// SPDX-License-Identifier: GPL-2.0 OR MIT
//! All attributes of a whole tree, to be compared with what is on the disk after unmounting.

use crate::seen::{Broken, look, nanos};
use crate::sys;
use rustix::fs::{Mode, OFlags, RawDir, open};
use std::ffi::OsStr;
use std::fmt::Write;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;

/// One line for each name below `root`: mode, owner, links, size, times to the nanosecond, flags and
/// extended attributes. Looking at it changes nothing.
pub fn everything(root: &Path) -> Result<Vec<String>, Broken> {
    let mut lines = Vec::new();
    let mut left = vec![PathBuf::new()];
    while let Some(below) = left.pop() {
        let path = root.join(&below);
        let s = look(&path)?;
        let mut line = format!(
            "{}: {:o} {}:{} links {} size {} a {} m {} c {}",
            below.display(),
            s.stx_mode,
            s.stx_uid,
            s.stx_gid,
            s.stx_nlink,
            s.stx_size,
            nanos(s.stx_atime),
            nanos(s.stx_mtime),
            nanos(s.stx_ctime),
        );
        let kind = s.stx_mode & S_IFMT;
        if kind == S_IFDIR || kind == S_IFREG {
            let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW;
            let file = open(&path, flags, Mode::empty())?;
            let _ = write!(line, " flags {:x}", sys::get_flags(&file)?);
            if kind == S_IFDIR {
                let mut buffer = vec![MaybeUninit::uninit(); 16384];
                let mut entries = RawDir::new(&file, &mut buffer);
                while let Some(entry) = entries.next() {
                    let name = entry?.file_name().to_bytes().to_vec();
                    if !matches!(&name[..], b"." | b".." | b"lost+found") {
                        left.push(below.join(OsStr::from_bytes(&name)));
                    }
                }
            }
        }
        for (name, value) in sys::xattrs(&path)? {
            let _ = write!(line, " {name}={}", sys::hex(&value));
        }
        lines.push(line);
    }
    lines.sort();
    Ok(lines)
}

/// Compares two of these.
pub fn same(before: &[String], after: &[String]) -> Result<(), Broken> {
    if let Some((b, a)) = before.iter().zip(after).find(|(b, a)| b != a) {
        return Err(Broken(format!("visible was [{b}], stored is [{a}]")));
    }
    if before.len() != after.len() {
        let (before, after) = (before.len(), after.len());
        return Err(Broken(format!(
            "{before} names were visible, {after} are stored"
        )));
    }
    Ok(())
}
