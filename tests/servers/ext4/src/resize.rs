// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Truncation and fallocate(2). The kernel zeroes what must be zeroed; here only blocks move.

use crate::{
    edit::{InodeEdit, Stamp},
    error::{Error, Result, errno, refuse},
    map::{Extent, MAX_BLOCKS, MAX_WRITTEN},
    txn::Txn,
    volume::Volume,
};

/// Modes of fallocate(2).
pub mod mode {
    #![allow(missing_docs)]
    pub const KEEP_SIZE: u32 = 0x1;
    pub const PUNCH_HOLE: u32 = 0x2;
    pub const COLLAPSE_RANGE: u32 = 0x8;
    pub const ZERO_RANGE: u32 = 0x10;
    pub const INSERT_RANGE: u32 = 0x20;
}

/// Extents that are allocated, or leaves that are emptied, in one operation.
const STEPS: usize = 32;
/// Extents that are moved by collapse and insert, which is one operation whatever the file's size.
const MAX_MOVED: usize = 8192;

impl Volume {
    /// The largest size of a file that this volume's block maps can hold.
    pub fn max_size(&self) -> u64 {
        (MAX_BLOCKS - 1).saturating_mul(u64::from(self.block_size()))
    }

    /// Frees whole blocks behind `size`, and makes that the size.
    pub fn truncate(&self, ino: u32, size: u64) -> Result<()> {
        if size > self.max_size() {
            return refuse(errno::EFBIG);
        }
        let first = size.div_ceil(u64::from(self.block_size()));
        let more = self.transact(|txn| {
            let mut inode = txn.edit(ino)?;
            if !inode.is_regular() {
                return refuse(errno::EINVAL);
            }
            inode.check_extents()?;
            let grows = size > inode.size();
            inode.set_size(size);
            inode.advance_time(Stamp::Modify, txn.now);
            inode.advance_time(Stamp::Change, txn.now);
            let ahead = txn.state.prealloc.remove(&ino);
            // A file that grows keeps what fallocate(2) put behind its old end, but not what was
            // only taken in advance.
            let (mut at, end) = match ahead {
                _ if !grows => (first, MAX_BLOCKS),
                Some((from, to)) => (from.max(first), to),
                None => (MAX_BLOCKS, MAX_BLOCKS),
            };
            for _ in 0..STEPS {
                if at >= end {
                    break;
                }
                at = txn.remove_some(&mut inode, at, end)?;
            }
            let more = !grows && at < end;
            if more {
                // A crash from here on leaves blocks behind the size; whoever finds the inode on the
                // list frees them.
                txn.add_orphan(&mut inode);
            }
            txn.store(&mut inode)?;
            Ok(more)
        })?;
        if more {
            self.finish_truncation(ino)?;
        }
        Ok(())
    }

    fn finish_truncation(&self, ino: u32) -> Result<()> {
        // An inode without a name stays on the list, and loses all its blocks in time anyway.
        let unnamed = self.any_inode(ino)?.links() == 0;
        if unnamed {
            let first = self.size(&self.any_inode(ino)?);
            let first = first.div_ceil(u64::from(self.block_size()));
            return self.free_range(ino, first, MAX_BLOCKS);
        }
        self.finish_orphan(ino)
    }

    /// Takes what is allocated between two file blocks, in as many operations as it needs.
    fn free_range(&self, ino: u32, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            at = self.transact(|txn| {
                let mut inode = txn.edit(ino)?;
                let mut at = at;
                for _ in 0..STEPS {
                    if at < to {
                        at = txn.remove_some(&mut inode, at, to)?;
                    }
                }
                txn.changed(&mut inode)?;
                Ok(at)
            })?;
        }
        Ok(())
    }

    /// fallocate(2), without what the kernel does itself.
    pub fn fallocate(&self, ino: u32, offset: u64, length: u64, how: u32) -> Result<()> {
        let block_size = u64::from(self.block_size());
        let Some(end) = offset.checked_add(length).filter(|_| length > 0) else {
            return refuse(errno::EINVAL);
        };
        if end > self.max_size() {
            return refuse(errno::EFBIG);
        }
        // Whole blocks inside the range, and those that it touches.
        let inside = (offset.div_ceil(block_size), end / block_size);
        let touched = (offset / block_size, end.div_ceil(block_size));
        match how & !mode::KEEP_SIZE {
            0 => self.allocate(ino, touched)?,
            mode::PUNCH_HOLE => return self.free_range(ino, inside.0, inside.1),
            mode::ZERO_RANGE => {
                self.unwrite(ino, inside)?;
                self.allocate(ino, touched)?;
            }
            mode::COLLAPSE_RANGE if how == mode::COLLAPSE_RANGE => {
                return self.collapse(ino, offset, length);
            }
            mode::INSERT_RANGE if how == mode::INSERT_RANGE => {
                return self.insert_range(ino, offset, length);
            }
            _ => return refuse(errno::EOPNOTSUPP),
        }
        self.transact(|txn| {
            let mut inode = txn.edit(ino)?;
            if how & mode::KEEP_SIZE == 0 && inode.size() < end {
                inode.set_size(end);
                inode.advance_time(Stamp::Modify, txn.now);
            }
            txn.changed(&mut inode)
        })
    }

    /// Allocates all holes between two file blocks, unwritten.
    fn allocate(&self, ino: u32, (from, to): (u64, u64)) -> Result<()> {
        let mut at = from;
        while at < to {
            at = self.transact(|txn| {
                let mut inode = txn.edit(ino)?;
                inode.check_extents()?;
                // What was asked for explicitly is not given back on the quiet.
                txn.state.prealloc.remove(&ino);
                let mut at = at;
                for _ in 0..STEPS {
                    if at >= to {
                        break;
                    }
                    at = match txn.covered(&inode, at)? {
                        Some(end) => end,
                        None => txn.fill_some(&mut inode, at, to, true)?,
                    };
                }
                txn.changed(&mut inode)?;
                Ok(at)
            })?;
        }
        Ok(())
    }

    /// Lets everything between two file blocks read as zeros, where it is.
    fn unwrite(&self, ino: u32, (from, to): (u64, u64)) -> Result<()> {
        let mut at = from;
        while at < to {
            at = self.transact(|txn| {
                let mut inode = txn.edit(ino)?;
                let end = txn.leaf(&inode, at)?.limit.min(to);
                txn.transform(&mut inode, at, end, |piece| {
                    Some(Extent {
                        unwritten: true,
                        ..piece
                    })
                })?;
                txn.changed(&mut inode)?;
                Ok(end)
            })?;
        }
        Ok(())
    }

    fn aligned(&self, offset: u64, length: u64) -> Result<(u64, u64)> {
        let block_size = u64::from(self.block_size());
        if !offset.is_multiple_of(block_size) || !length.is_multiple_of(block_size) {
            return refuse(errno::EINVAL);
        }
        Ok((offset / block_size, length / block_size))
    }

    /// Takes a range out of a file; what is behind it moves down.
    fn collapse(&self, ino: u32, offset: u64, length: u64) -> Result<()> {
        let (from, blocks) = self.aligned(offset, length)?;
        self.transact(|txn| {
            let mut inode = txn.edit(ino)?;
            let size = inode.size();
            if offset + length >= size {
                return refuse(errno::EINVAL);
            }
            txn.state.prealloc.remove(&ino);
            let moved = txn.take_tail(&mut inode, from + blocks)?;
            let mut at = from;
            while at < from + blocks {
                at = txn.remove_some(&mut inode, at, from + blocks)?;
            }
            txn.put_tail(&mut inode, moved, |first| first - blocks)?;
            inode.set_size(size - length);
            inode.advance_time(Stamp::Modify, txn.now);
            txn.changed(&mut inode)
        })
    }

    /// Puts a hole into a file; what is behind `offset` moves up.
    fn insert_range(&self, ino: u32, offset: u64, length: u64) -> Result<()> {
        let (from, blocks) = self.aligned(offset, length)?;
        self.transact(|txn| {
            let mut inode = txn.edit(ino)?;
            let size = inode.size();
            if offset >= size {
                return refuse(errno::EINVAL);
            }
            let longer = size.saturating_add(length);
            if longer > self.max_size() {
                return refuse(errno::EFBIG);
            }
            txn.state.prealloc.remove(&ino);
            let moved = txn.take_tail(&mut inode, from)?;
            if moved
                .last()
                .is_some_and(|last| last.end() + blocks >= MAX_BLOCKS)
            {
                return refuse(errno::EFBIG);
            }
            txn.put_tail(&mut inode, moved, |first| first + blocks)?;
            inode.set_size(longer);
            inode.advance_time(Stamp::Modify, txn.now);
            txn.changed(&mut inode)
        })
    }
}

impl Txn<'_> {
    /// Stores an inode whose contents changed.
    fn changed(&mut self, inode: &mut InodeEdit) -> Result<()> {
        inode.advance_time(Stamp::Change, self.now);
        self.store(inode)
    }

    /// Where the extent around a file block ends; `None` in a hole.
    pub fn covered(&self, inode: &InodeEdit, block: u64) -> Result<Option<u64>> {
        let leaf = self.leaf(inode, block)?;
        let after = leaf.extents.partition_point(|other| other.first <= block);
        let before = after.checked_sub(1).and_then(|at| leaf.extents.get(at));
        Ok(before.map(Extent::end).filter(|end| *end > block))
    }

    /// Takes the extents from a file block on out of the tree, without freeing their blocks.
    fn take_tail(&mut self, inode: &mut InodeEdit, from: u64) -> Result<Vec<Extent>> {
        let mut moved = Vec::new();
        self.transform(inode, from, MAX_BLOCKS, |piece| {
            moved.push(piece);
            None
        })?;
        if moved.len() > MAX_MOVED {
            return Err(Error::Errno(errno::EOPNOTSUPP));
        }
        Ok(moved)
    }

    fn put_tail(
        &mut self,
        inode: &mut InodeEdit,
        moved: Vec<Extent>,
        shift: impl Fn(u64) -> u64,
    ) -> Result<()> {
        for extent in moved {
            debug_assert!(extent.len <= u64::from(MAX_WRITTEN));
            let first = shift(extent.first);
            self.insert(inode, Extent { first, ..extent })?;
        }
        Ok(())
    }
}
