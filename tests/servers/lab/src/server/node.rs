// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Inodes and directories.

use crate::control::{Begin, Ioend};
use crate::model::FileModel;
use crate::store::Policy;
use fuse_iomap::wire::{SetattrIn, attr_flags, fattr};
use fuse_iomap::{Errno, Result};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

/// Type bits of `st_mode`.
pub const S_IFMT: u32 = 0o170_000;
/// A directory.
pub const S_IFDIR: u32 = 0o040_000;
/// A regular file.
pub const S_IFREG: u32 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u32 = 0o120_000;

pub enum Kind {
    Dir(Mutex<Dir>),
    Symlink(Vec<u8>),
    /// Has extents on devices that never change.
    Extents(FileModel),
    /// Is in the store.
    Stored,
    /// Lives in memory.
    Memory(RwLock<Vec<u8>>),
    Passthrough(PathBuf),
    /// A FIFO, socket or device.
    Special,
}

/// Seconds and nanoseconds.
pub type Time = (u64, u32);

/// What SETATTR changes, and the number of names.
#[derive(Clone, Debug)]
pub struct Meta {
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
}

/// The time of inodes from a scenario.
const EPOCH: Time = (1_700_000_000, 0);

/// Now.
pub fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(EPOCH, |d| (d.as_secs(), d.subsec_nanos()))
}

impl Meta {
    /// Of an inode from a scenario.
    pub const fn fixed(mode: u32) -> Self {
        Self {
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            atime: (0, 0),
            mtime: EPOCH,
            ctime: (0, 0),
        }
    }

    /// Changes everything but the size.
    pub fn set(&mut self, args: &SetattrIn) {
        let has = |bit| args.valid & bit != 0;
        if has(fattr::MODE) {
            self.mode = self.mode & S_IFMT | args.mode & !S_IFMT;
        }
        if has(fattr::UID) {
            self.uid = args.uid;
        }
        if has(fattr::GID) {
            self.gid = args.gid;
        }
        if has(fattr::ATIME) {
            self.atime = (args.atime, args.atimensec);
        }
        if has(fattr::ATIME_NOW) {
            self.atime = now();
        }
        if has(fattr::MTIME) {
            self.mtime = (args.mtime, args.mtimensec);
        }
        if has(fattr::MTIME_NOW) {
            self.mtime = now();
        }
        self.ctime = if has(fattr::CTIME) {
            (args.ctime, args.ctimensec)
        } else {
            now()
        };
    }
}

pub struct Node {
    pub id: u64,
    /// Of a directory.
    pub parent: AtomicU64,
    pub kind: Kind,
    /// `fuse_attr.flags`.
    pub flags: AtomicU32,
    pub blksize: u32,
    pub meta: Mutex<Meta>,
    /// How files are made in this directory.
    pub policy: Option<Policy>,
    /// How many the kernel has not forgotten.
    pub lookups: AtomicU64,
    pub reads: AtomicU64,
    pub begins: Mutex<Vec<Begin>>,
    pub ends: Mutex<Vec<(u32, u64, i64)>>,
    pub ioends: Mutex<Vec<Ioend>>,
}

/// More BEGINs, ENDs and IOENDs than this are not recorded.
pub const MOST_RECORDS: usize = 100_000;

/// What programs see of `fuse_attr.flags`: the bit there, the one of `FS_IOC_GETFLAGS`, and that of
/// `FS_IOC_FSGETXATTR`.
const VISIBLE: [(u32, u32, u32); 3] = [
    (attr_flags::SYNC, 0x08, 0x20),
    (attr_flags::IMMUTABLE, 0x10, 0x08),
    (attr_flags::APPEND, 0x20, 0x10),
];

impl Node {
    pub fn new(id: u64, parent: u64, kind: Kind, flags: u32, blksize: u32, meta: Meta) -> Self {
        Self {
            id,
            parent: AtomicU64::new(parent),
            kind,
            flags: AtomicU32::new(flags),
            blksize,
            meta: Mutex::new(meta),
            policy: None,
            lookups: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            begins: Mutex::default(),
            ends: Mutex::default(),
            ioends: Mutex::default(),
        }
    }

    /// What `FS_IOC_GETFLAGS` says, and what `FS_IOC_FSGETXATTR`.
    pub fn visible_flags(&self) -> (u32, u32) {
        let flags = self.flags.load(Ordering::Relaxed);
        let set = VISIBLE.iter().filter(|(ours, ..)| flags & ours != 0);
        set.fold((0, 0), |(f, x), (_, flag, xflag)| (f | flag, x | xflag))
    }

    /// `FS_IOC_SETFLAGS`.
    pub fn set_visible_flags(&self, wanted: u32) -> Result<()> {
        let known = VISIBLE.iter().fold(0, |all, (_, flag, _)| all | flag);
        if wanted & !known != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        for (ours, flag, _) in VISIBLE {
            if wanted & flag != 0 {
                self.flags.fetch_or(ours, Ordering::Relaxed);
            } else {
                self.flags.fetch_and(!ours, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// The entries of a directory. Each has a number of its own that stays, so that listing goes on
/// where it was however many are removed meanwhile.
#[derive(Default)]
pub struct Dir {
    numbers: HashMap<OsString, u64>,
    entries: BTreeMap<u64, (OsString, u64)>,
    next: u64,
}

/// Numbers below are those of `.` and `..`.
const FIRST: u64 = 3;

impl Dir {
    /// The node of a name.
    pub fn get(&self, name: &OsStr) -> Option<u64> {
        let number = self.numbers.get(name)?;
        self.entries.get(number).map(|(_, node)| *node)
    }

    /// Adds a name that is not there.
    pub fn add(&mut self, name: &OsStr, node: u64) {
        let number = self.next.max(FIRST);
        self.next = number + 1;
        self.numbers.insert(name.to_owned(), number);
        self.entries.insert(number, (name.to_owned(), node));
    }

    /// Removes a name.
    pub fn remove(&mut self, name: &OsStr) {
        if let Some(number) = self.numbers.remove(name) {
            self.entries.remove(&number);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }

    /// Number, name and node of all entries behind a number.
    pub fn after(&self, number: u64) -> Vec<(u64, OsString, u64)> {
        let from = number.saturating_add(1);
        self.entries
            .range(from..)
            .map(|(number, (name, node))| (*number, name.clone(), *node))
            .collect()
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = u64> {
        self.entries.values().map(|(_, node)| *node)
    }
}
