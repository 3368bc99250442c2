// SPDX-License-Identifier: GPL-2.0

//! Allocating, freeing and moving blocks of a file: `fallocate` and `copy_file_range`.
//!
//! The server moves whole blocks; the kernel zeroes the rest.
#![deny(unsafe_code)]

use crate::{
    fuse::{file_handle, IomapInode},
    ops::FuseIomap,
    write::zero,
    writeback::Writeback, //
};
use kernel::{
    bindings::{self, fuse_fallocate_in},
    fs::{
        iomap,
        Exclusive,
        Invalidate,
        LocalFile,
        Offset, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// What `fallocate` is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Allocate,
    Unshare,
    PunchHole,
    ZeroRange,
    CollapseRange,
    InsertRange,
}

impl Operation {
    /// Understands the mode, and whether the file keeps its size.
    ///
    /// The VFS has refused what makes no sense.
    fn parse(mode: u32) -> Result<(Self, bool)> {
        let keep_size = mode & bindings::FALLOC_FL_KEEP_SIZE != 0;

        let operation = match mode & !bindings::FALLOC_FL_KEEP_SIZE {
            bindings::FALLOC_FL_ALLOCATE_RANGE => Self::Allocate,
            bindings::FALLOC_FL_UNSHARE_RANGE => Self::Unshare,
            bindings::FALLOC_FL_PUNCH_HOLE => Self::PunchHole,
            bindings::FALLOC_FL_ZERO_RANGE => Self::ZeroRange,
            bindings::FALLOC_FL_COLLAPSE_RANGE => Self::CollapseRange,
            bindings::FALLOC_FL_INSERT_RANGE => Self::InsertRange,
            _ => return Err(EOPNOTSUPP),
        };
        Ok((operation, keep_size))
    }

    /// Whether blocks that are in the file go away, or elsewhere.
    fn takes_blocks(self) -> bool {
        !matches!(self, Self::Allocate | Self::Unshare)
    }

    /// Whether all up to the end of the file moves.
    fn moves_tail(self) -> bool {
        matches!(self, Self::CollapseRange | Self::InsertRange)
    }
}

/// A `fallocate` call, with what it is about.
struct Request<'a> {
    inode: IomapInode<'a>,
    writeback: &'a Writeback,
    operation: Operation,
    offset: Offset,
    end: Offset,
    /// The size of the file before and after.
    old_size: Offset,
    new_size: Offset,
    /// Whether the server changes the size on disk.
    changes_disk_size: bool,
}

/// Does `fallocate` for `length` bytes from `offset`.
///
/// May sleep.
pub(crate) fn fallocate(
    inode: IomapInode<'_>,
    file: &LocalFile,
    mode: u32,
    offset: Offset,
    length: Offset,
) -> Result {
    let (operation, keep_size) = Operation::parse(mode)?;
    if inode.is_bad() {
        return Err(EIO);
    }
    let writeback = inode.writeback()?;

    let lock = inode.vfs().lock();
    lock.wait_for_direct_io();
    let invalidate = inode.vfs().lock_invalidate();

    let old_size = inode.vfs().size();
    let end = offset.checked_add(length).ok_or(EFBIG)?;
    let new_size = match operation {
        Operation::CollapseRange => old_size.checked_sub(length).ok_or(EINVAL)?,
        Operation::InsertRange => old_size.checked_add(length).ok_or(EFBIG)?,
        Operation::PunchHole => old_size,
        _ if keep_size => old_size,
        _ => old_size.max(end),
    };
    let changes_disk_size = match operation {
        Operation::CollapseRange | Operation::InsertRange => true,
        Operation::PunchHole => false,
        // Dirty data may lie beyond it, so that the file is larger in core already.
        _ => !keep_size && end > writeback.disk_size(),
    };
    let request = Request {
        inode,
        writeback: &writeback,
        operation,
        offset,
        end,
        old_size,
        new_size,
        changes_disk_size,
    };

    request.check(&lock)?;
    lock.file_modified(file)?;
    request.prepare(&lock, &invalidate)?;

    writeback.layout_changes(&lock);
    let answer = inode.send_fallocate(&fuse_fallocate_in {
        fh: file_handle(file),
        offset: offset.unsigned_abs(),
        length: length.unsigned_abs(),
        mode,
        padding: 0,
    });
    let disk_size = match (answer, operation) {
        (Err(_), _) => None,
        (Ok(()), _) if !changes_disk_size => None,
        (Ok(()), Operation::CollapseRange | Operation::InsertRange) => Some(new_size),
        (Ok(()), _) => Some(end.max(writeback.disk_size())),
    };
    writeback.layout_has_changed(&lock, disk_size);
    request.forget_mappings();
    inode.blocks_changed();
    answer?;

    request.finish(&lock, &invalidate)
}

impl Request<'_> {
    /// Refuses what the file does not allow.
    fn check(&self, lock: &Exclusive<'_>) -> Result {
        if self.operation.moves_tail() {
            let block_size = i64::from(self.inode.vfs().block_size());
            if self.offset % block_size != 0 || self.end % block_size != 0 {
                return Err(EINVAL);
            }
            // What is left of the file would not be moved but cut off.
            if self.operation == Operation::CollapseRange && self.end >= self.old_size {
                return Err(EINVAL);
            }
            if self.operation == Operation::InsertRange && self.offset >= self.old_size {
                return Err(EINVAL);
            }
        }
        if self.new_size > self.old_size {
            lock.check_new_size(self.new_size)?;
        }
        Ok(())
    }

    /// Does what comes before the server is asked.
    fn prepare(&self, lock: &Exclusive<'_>, invalidate: &Invalidate<'_>) -> Result {
        let vfs = self.inode.vfs();

        if self.changes_disk_size {
            // The server will take all up to there as being on disk.
            vfs.write_back(self.writeback.disk_size().min(self.old_size), Offset::MAX)?;
        }
        if self.operation == Operation::Unshare {
            let length = self.end.checked_sub(self.offset).ok_or(EINVAL)?;

            iomap::unshare_range::<FuseIomap>(lock, self.offset, length.unsigned_abs())?;
            vfs.write_back(self.offset, self.end)?;
        }
        if self.new_size > self.old_size && self.operation != Operation::InsertRange {
            // The rest of the last block becomes a part of the file.
            let block_size = Offset::from(vfs.block_size());
            let block_end = round_up(self.old_size, block_size)?;

            zero(lock, invalidate, self.old_size, block_end)?;
            vfs.write_back(self.old_size, Offset::MAX)?;
        }
        if self.operation.takes_blocks() {
            let to = if self.operation.moves_tail() {
                Offset::MAX
            } else {
                self.end
            };
            drop_cache(self.inode, invalidate, self.offset, to)?;
        }
        Ok(())
    }

    /// Drops what is cached of the mappings that the server may have changed.
    fn forget_mappings(&self) {
        let end = if self.operation.moves_tail() {
            u64::MAX
        } else {
            self.end.unsigned_abs()
        };

        self.inode
            .mappings_changed_in(self.offset.unsigned_abs()..end);
    }

    /// Does what comes after the server has done its part.
    fn finish(&self, lock: &Exclusive<'_>, invalidate: &Invalidate<'_>) -> Result {
        let vfs = self.inode.vfs();

        if matches!(self.operation, Operation::PunchHole | Operation::ZeroRange) {
            zero(lock, invalidate, self.offset, self.end.min(self.old_size))?;

            if self.end >= self.old_size && self.old_size % PAGE_SIZE as Offset != 0 {
                // Of the page that the file ends in, the part beyond can be seen through a mapping.
                // Writing it back clears that.
                vfs.write_back(self.old_size, Offset::MAX)?;
            }
        }
        if self.operation != Operation::InsertRange {
            zero(lock, invalidate, self.old_size, self.new_size)?;
        }
        if self.new_size != self.old_size {
            invalidate.truncate(lock, self.new_size);
        }
        Ok(())
    }
}

/// Does what comes before the server copies `length` bytes to `pos` of a file.
///
/// May sleep.  [`copy_end`] has to follow if this succeeds.
pub(crate) fn copy_begin(
    inode: IomapInode<'_>,
    lock: &Exclusive<'_>,
    invalidate: &Invalidate<'_>,
    pos: Offset,
    length: Offset,
) -> Result {
    let writeback = inode.writeback()?;
    lock.wait_for_direct_io();

    let size = inode.vfs().size();
    let end = pos.checked_add(length).ok_or(EFBIG)?;
    zero(lock, invalidate, size, pos)?;
    if end > writeback.disk_size() {
        // The server will take all up to there as being on disk.
        inode
            .vfs()
            .write_back(writeback.disk_size().min(size), Offset::MAX)?;
    }
    drop_cache(inode, invalidate, pos, end)?;

    writeback.layout_changes(lock);
    Ok(())
}

/// Does what comes after the server has copied `copied` bytes to `pos` of a file.
///
/// May sleep.
pub(crate) fn copy_end(inode: IomapInode<'_>, lock: &Exclusive<'_>, pos: Offset, copied: Offset) {
    let Some(writeback) = inode.state().writeback.as_ref() else {
        return;
    };
    let disk_size = match pos.checked_add(copied) {
        Some(end) if copied > 0 && end > writeback.disk_size() => Some(end),
        _ => None,
    };

    writeback.layout_has_changed(lock, disk_size);
    let start = pos.unsigned_abs();
    // After an error nobody knows how far the server has got.
    let end = u64::try_from(copied).map_or(u64::MAX, |copied| start.saturating_add(copied));
    inode.mappings_changed_in(start..end);
}

/// Writes back and drops what the page cache has from `start` to before `end`, and what shares
/// blocks or pages with that.
fn drop_cache(
    inode: IomapInode<'_>,
    invalidate: &Invalidate<'_>,
    start: Offset,
    end: Offset,
) -> Result {
    let granule = Offset::from(inode.vfs().block_size()).max(PAGE_SIZE as Offset);
    let first = start - start % granule;
    let last = match round_up(end, granule) {
        Ok(end) => end.saturating_sub(1),
        Err(_) => Offset::MAX,
    };

    inode.vfs().write_back(first, last)?;
    invalidate.drop_range(first, last);
    Ok(())
}

/// Rounds up to a multiple, neither being negative.
fn round_up(value: Offset, multiple: Offset) -> Result<Offset> {
    match value % multiple {
        0 => Ok(value),
        rest => value.checked_add(multiple - rest).ok_or(EFBIG),
    }
}
