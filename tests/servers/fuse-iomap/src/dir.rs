// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Building replies to READDIR and READDIRPLUS.

use crate::reply::Entry;
use crate::wire::{Dirent, EntryOut, rec_align};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use zerocopy::IntoBytes;

/// The type of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileKind(u32);

#[allow(missing_docs)] // The names are those of stat(2).
impl FileKind {
    pub const UNKNOWN: Self = Self(0);
    pub const FIFO: Self = Self(1);
    pub const CHAR_DEVICE: Self = Self(2);
    pub const DIRECTORY: Self = Self(4);
    pub const BLOCK_DEVICE: Self = Self(6);
    pub const REGULAR: Self = Self(8);
    pub const SYMLINK: Self = Self(10);
    pub const SOCKET: Self = Self(12);

    /// From the type bits of `st_mode`.
    pub const fn from_mode(mode: u32) -> Self {
        Self((mode & 0o170000) >> 12)
    }
}

/// Bounded space in which entries are laid out. `base` bytes of `out` are already in use.
struct Space<'a> {
    out: &'a mut Vec<u8>,
    limit: usize,
}

impl<'a> Space<'a> {
    fn new(out: &'a mut Vec<u8>, size: usize) -> Self {
        let limit = out.len().saturating_add(size);
        Self { out, limit }
    }

    fn fits(&self, len: usize) -> bool {
        self.out
            .len()
            .checked_add(len)
            .is_some_and(|end| end <= self.limit)
    }

    fn push_dirent(&mut self, ino: u64, off: u64, kind: FileKind, name: &OsStr) {
        let dirent = Dirent {
            ino,
            off,
            namelen: name.len() as u32,
            kind: kind.0,
        };
        self.out.extend_from_slice(dirent.as_bytes());
        self.out.extend_from_slice(name.as_bytes());
        let pad = rec_align(name.len()) - name.len();
        self.out.extend_from_slice(&[0; 8][..pad]);
    }
}

/// The reply to READDIR.
pub struct DirBuffer<'a>(Space<'a>);

impl<'a> DirBuffer<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, size: usize) -> Self {
        Self(Space::new(out, size))
    }

    /// Adds an entry unless it does not fit any more; returns whether it did.
    ///
    /// `next` is the offset at which reading goes on after this entry. It must not be 0.
    #[must_use = "an entry that did not fit must come again"]
    pub fn add(&mut self, ino: u64, next: u64, kind: FileKind, name: &OsStr) -> bool {
        let fits = self.0.fits(size_of::<Dirent>() + rec_align(name.len()));
        if fits {
            self.0.push_dirent(ino, next, kind, name);
        }
        fits
    }
}

/// The reply to READDIRPLUS.
pub struct DirPlusBuffer<'a>(Space<'a>);

impl<'a> DirPlusBuffer<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>, size: usize) -> Self {
        Self(Space::new(out, size))
    }

    /// Whether an entry with this name would fit. Ask before taking a lookup reference.
    pub fn fits(&self, name: &OsStr) -> bool {
        self.0
            .fits(size_of::<EntryOut>() + size_of::<Dirent>() + rec_align(name.len()))
    }

    /// Adds an entry unless it does not fit any more; returns whether it did.
    ///
    /// The kernel counts each entry with a node id as one lookup, except `.` and `..`, which must
    /// be added with [`DirPlusBuffer::add_plain`].
    #[must_use = "an entry that did not fit must come again"]
    pub fn add(&mut self, entry: &Entry, next: u64, name: &OsStr) -> bool {
        let fits = self.fits(name);
        if fits {
            self.0.out.extend_from_slice(entry.to_wire().as_bytes());
            let kind = FileKind::from_mode(entry.attr.mode);
            self.0.push_dirent(entry.attr.ino, next, kind, name);
        }
        fits
    }

    /// Adds a name without looking it up, as for `.` and `..`.
    #[must_use = "an entry that did not fit must come again"]
    pub fn add_plain(&mut self, ino: u64, next: u64, kind: FileKind, name: &OsStr) -> bool {
        let fits = self.fits(name);
        if fits {
            self.0.out.extend_from_slice(EntryOut::default().as_bytes());
            self.0.push_dirent(ino, next, kind, name);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_and_bounded() {
        let mut out = vec![0xee; 16];
        let mut dir = DirBuffer::new(&mut out, 64);
        assert!(dir.add(5, 1, FileKind::REGULAR, OsStr::new("abc")));
        assert!(dir.add(6, 2, FileKind::DIRECTORY, OsStr::new("12345678")));
        assert!(!dir.add(7, 3, FileKind::REGULAR, OsStr::new("x")));
        assert_eq!(out.len(), 16 + 32 + 32);
        assert_eq!(&out[16..24], 5u64.to_ne_bytes());
        assert_eq!(&out[40..48], b"abc\0\0\0\0\0");
    }

    #[test]
    fn plus_entries_carry_attributes() {
        let mut out = Vec::new();
        let mut dir = DirPlusBuffer::new(&mut out, 400);
        let mut entry = Entry::new(9, Default::default());
        entry.attr.ino = 9;
        entry.attr.mode = 0o100644;
        assert!(dir.add(&entry, 1, OsStr::new("f")));
        assert!(dir.add_plain(1, 2, FileKind::DIRECTORY, OsStr::new(".")));
        assert!(!dir.add(&entry, 3, OsStr::new("g")));
        assert_eq!(out.len(), 2 * 160);
        assert_eq!(&out[..8], 9u64.to_ne_bytes());
        assert_eq!(&out[160..168], 0u64.to_ne_bytes());
    }

    #[test]
    fn kinds_follow_the_mode() {
        assert_eq!(FileKind::from_mode(0o040755), FileKind::DIRECTORY);
        assert_eq!(FileKind::from_mode(0o120777), FileKind::SYMLINK);
    }
}
