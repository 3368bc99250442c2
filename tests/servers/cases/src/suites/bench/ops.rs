// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What is done to a file, and what that must come to, by the plain words of the manual pages.

use crate::sys;
use lab::random::mix;
use rustix::fs::{FallocateFlags, fallocate};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::str::FromStr;

/// Files do not get larger than this.
pub const LARGEST: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// What direct I/O is aligned to: the blocks of the disks.
const SECTOR: u64 = 512;

/// The kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// write(2).
    Write,
    /// The same past the page cache.
    WriteDirect,
    /// A store through a shared mapping, inside the file.
    Store,
    /// A store through a shared mapping behind the end of the file, in its last page.
    Tail,
    /// ftruncate(2), to the offset.
    Truncate,
    /// fallocate(2).
    Allocate,
    /// The same, keeping the size.
    AllocateKeep,
    Punch,
    Zero,
    ZeroKeep,
    Collapse,
    Insert,
    Unshare,
    /// copy_file_range(2) within the file, to where the third number says.
    Copy,
    /// read(2), to be compared.
    Read,
    /// The same past the page cache, of whole sectors.
    ReadDirect,
    /// fsync(2).
    Sync,
    /// fsync(2), and the page cache forgets the file.
    Cold,
    /// The server shares all blocks with an invisible file.
    Share,
}

/// Names for what is printed and read, and how many numbers follow.
const NAMES: [(What, &str, usize); 19] = [
    (What::Write, "write", 2),
    (What::WriteDirect, "dwrite", 2),
    (What::Store, "store", 2),
    (What::Tail, "tail", 0),
    (What::Truncate, "truncate", 1),
    (What::Allocate, "alloc", 2),
    (What::AllocateKeep, "alloc-keep", 2),
    (What::Punch, "punch", 2),
    (What::Zero, "zero", 2),
    (What::ZeroKeep, "zero-keep", 2),
    (What::Collapse, "collapse", 2),
    (What::Insert, "insert", 2),
    (What::Unshare, "unshare", 2),
    (What::Copy, "copy", 3),
    (What::Read, "read", 2),
    (What::ReadDirect, "dread", 2),
    (What::Sync, "sync", 0),
    (What::Cold, "cold", 0),
    (What::Share, "share", 0),
];

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub what: What,
    pub offset: u64,
    pub length: u64,
    pub to: u64,
}

impl Op {
    pub const fn new(what: What, offset: u64, length: u64) -> Self {
        Self {
            what,
            offset,
            length,
            to: 0,
        }
    }

    pub const fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// Whether it means anything for a file of this size.
    fn applies(&self, size: u64, block: u64) -> bool {
        let aligned = self.offset % block == 0 && self.length % block == 0;
        let some = self.length != 0;
        let sectors = self.offset % SECTOR == 0 && self.length % SECTOR == 0;
        match self.what {
            What::Store | What::Read => some && self.end() <= size,
            What::WriteDirect => some && sectors && self.end() <= LARGEST,
            // The last sector need not be full.
            What::ReadDirect => some && sectors && self.end() <= size.next_multiple_of(SECTOR),
            What::Tail => size % PAGE != 0,
            What::Collapse => some && aligned && self.end() < size,
            What::Insert => some && aligned && self.offset < size && size + self.length <= LARGEST,
            // It is refused for what lies behind the end.
            What::Unshare => some && self.end() <= size,
            What::Copy => {
                let apart = self.end() <= self.to || self.to + self.length <= self.offset;
                some && apart && self.end() <= size && self.to + self.length <= LARGEST
            }
            What::Sync | What::Cold | What::Share => true,
            What::Truncate => self.offset <= LARGEST,
            _ => some && self.end() <= LARGEST,
        }
    }

    /// Does it to the model; `index` makes the data unlike that of other operations. Returns whether
    /// it is to be done at all.
    pub fn model(&self, model: &mut Vec<u8>, block: u64, index: u64) -> bool {
        if !self.applies(model.len() as u64, block) {
            return false;
        }
        let range = self.offset as usize..self.end() as usize;
        let size = model.len();
        match self.what {
            What::Write | What::WriteDirect | What::Store => {
                model.resize(size.max(range.end), 0);
                self.data(index, &mut model[range]);
            }
            What::Truncate => model.resize(self.offset as usize, 0),
            What::Allocate => model.resize(size.max(range.end), 0),
            What::Zero => {
                model.resize(size.max(range.end), 0);
                model[range].fill(0);
            }
            What::Punch | What::ZeroKeep => {
                let end = range.end.min(size);
                model[range.start.min(end)..end].fill(0);
            }
            What::Collapse => drop(model.drain(range)),
            What::Insert => {
                let tail = model.split_off(range.start);
                model.resize(range.end, 0);
                model.extend_from_slice(&tail);
            }
            What::Copy => {
                let part = model[range].to_vec();
                let to = self.to as usize;
                model.resize(size.max(to + part.len()), 0);
                model[to..to + part.len()].copy_from_slice(&part);
            }
            _ => {}
        }
        true
    }

    /// The bytes that are written: none is zero.
    fn data(&self, index: u64, buf: &mut [u8]) {
        for (i, byte) in buf.iter_mut().enumerate() {
            let at = self.offset + i as u64;
            *byte = (mix(index * 0x1_0000_0001 + at / 8) >> (at % 8 * 8)) as u8 | 1;
        }
    }

    /// Whether it goes past the page cache.
    pub fn is_direct(&self) -> bool {
        matches!(self.what, What::WriteDirect | What::ReadDirect)
    }

    /// Does it to the file, which has this size and is open for direct I/O if that is what it takes.
    pub fn apply(&self, file: &File, size: u64, index: u64) -> io::Result<()> {
        let allocate = |flags| Ok(fallocate(file, flags, self.offset, self.length)?);
        let keep = FallocateFlags::KEEP_SIZE;
        match self.what {
            What::Write | What::WriteDirect | What::Store => {
                let mut data = vec![0; self.length as usize];
                self.data(index, &mut data);
                match self.what {
                    What::Write => file.write_all_at(&data, self.offset),
                    What::WriteDirect => sys::write_aligned(file, self.offset, &data),
                    _ => sys::mmap_poke(file, self.offset, &data),
                }
            }
            What::Tail => {
                let length = (PAGE - size % PAGE) as usize;
                sys::mmap_poke(file, size, &vec![0xee; length])
            }
            What::Truncate => file.set_len(self.offset),
            What::Allocate => allocate(FallocateFlags::empty()),
            What::AllocateKeep => allocate(keep),
            What::Punch => allocate(FallocateFlags::PUNCH_HOLE | keep),
            What::Zero => allocate(FallocateFlags::ZERO_RANGE),
            What::ZeroKeep => allocate(FallocateFlags::ZERO_RANGE | keep),
            What::Collapse => allocate(FallocateFlags::COLLAPSE_RANGE),
            What::Insert => allocate(FallocateFlags::INSERT_RANGE),
            What::Unshare => allocate(FallocateFlags::UNSHARE_RANGE),
            What::Copy => self.copy(file),
            What::Sync => file.sync_all(),
            What::Cold => {
                file.sync_all()?;
                Ok(rustix::fs::fadvise(
                    file,
                    0,
                    None,
                    rustix::fs::Advice::DontNeed,
                )?)
            }
            // Done elsewhere.
            What::Read | What::ReadDirect | What::Share => Ok(()),
        }
    }

    fn copy(&self, file: &File) -> io::Result<()> {
        let (mut from, mut to) = (self.offset, self.to);
        while from < self.end() {
            let left = (self.end() - from) as usize;
            let n = rustix::fs::copy_file_range(file, Some(&mut from), file, Some(&mut to), left)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [self.offset, self.length, self.to];
        let Some((_, name, n)) = NAMES.iter().find(|(what, ..)| *what == self.what) else {
            return Err(fmt::Error);
        };
        f.write_str(name)?;
        numbers.iter().take(*n).try_for_each(|n| write!(f, " {n}"))
    }
}

impl FromStr for Op {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let word = words.next().unwrap_or_default();
        let found = NAMES.iter().find(|(_, name, _)| *name == word);
        let (what, _, n) = found.ok_or_else(|| format!("no operation is called {word:?}"))?;
        let numbers: Result<Vec<u64>, _> = words.map(str::parse).collect();
        let mut numbers = numbers.map_err(|e| format!("{text:?}: {e}"))?;
        if numbers.len() != *n {
            return Err(format!("{text:?}: {n} numbers are wanted"));
        }
        numbers.resize(3, 0);
        Ok(Self {
            what: *what,
            offset: numbers[0],
            length: numbers[1],
            to: numbers[2],
        })
    }
}
