// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a write needs: blocks before it, and metadata that follows the data once it is on the device.
//! At the end, writing by this process itself, for mounts where the kernel does not do it.

use crate::{
    acl,
    edit::Stamp,
    error::{Result, corrupt, errno, refuse},
    inode::{Inode, Time, flags},
    map::{Extent, MAX_BLOCKS, Run, Target},
    resize,
    volume::Volume,
};

/// What is allocated ahead of a file that grows, in bytes. It only saves asking for each write;
/// neighbours are found anyway. More of it would show in the file's use of space.
const AHEAD: u64 = 128 << 10;

/// Large writes get room for some more of their size, but not for more than this.
const MAX_AHEAD: u64 = 4 << 20;

/// What happened to data that was on its way to the device.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// First byte.
    pub pos: u64,
    /// Bytes.
    pub len: u64,
    /// It went to blocks that were unwritten.
    pub unwritten: bool,
    /// The file ends behind it now.
    pub append: bool,
}

/// Attributes to change.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permissions; the type stays.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<Time>,
    /// Last change of contents.
    pub mtime: Option<Time>,
    /// Last change of the inode; otherwise now.
    pub ctime: Option<Time>,
    /// Nothing was changed: the inode was only read.
    pub only_accessed: bool,
}

impl Volume {
    /// An ordinary file, with a block map that can be changed.
    fn regular(&self, ino: u32) -> Result<Inode> {
        let inode = self.inode(ino)?;
        if !inode.is_regular() {
            return refuse(errno::EINVAL);
        }
        if inode.is_inline() {
            return refuse(errno::EOPNOTSUPP);
        }
        Ok(inode)
    }

    /// The blocks from `first` on for a write up to `end`, allocated (unwritten) if there are none.
    /// The run may be shorter or longer. If `ahead`, a file that grows gets a little more than that.
    pub fn blocks_for_write(&self, ino: u32, first: u64, end: u64, ahead: bool) -> Result<Run> {
        if end >= MAX_BLOCKS {
            return refuse(errno::EFBIG);
        }
        {
            let _shared = self.shared();
            let run = self.run(&self.regular(ino)?, first, end)?;
            if run.target != Target::Hole {
                return Ok(run);
            }
        }
        let block_size = u64::from(self.block_size());
        self.transact(|txn| {
            // The lock was free in between.
            let parsed = self.regular(ino)?;
            let run = self.run(&parsed, first, end)?;
            if run.target != Target::Hole {
                return Ok(run);
            }
            let mut inode = txn.edit(ino)?;
            inode.check_extents()?;
            let mut to = end.max(first + 1);
            let grows = ahead && first >= inode.size().div_ceil(block_size) && first > 0;
            if grows && txn.covered(&inode, first - 1)? == Some(first) {
                let some = (4 * (end - first)).clamp(AHEAD / block_size, MAX_AHEAD / block_size);
                let more = (first / 2).min(some);
                if txn.state.free_blocks / 16 > more {
                    to = (to + more).min(MAX_BLOCKS - 1);
                }
            }
            let filled = txn.fill_some(&mut inode, first, to, true)?;
            txn.store(&mut inode)?;
            if filled > end {
                let (from, upto) = txn
                    .state
                    .prealloc
                    .get(&ino)
                    .copied()
                    .unwrap_or((end, filled));
                txn.state
                    .prealloc
                    .insert(ino, (from.min(end), upto.max(filled)));
            }
            self.run(&self.regular(ino)?, first, end)
        })
    }

    /// Data is on the device: lets it be read, and moves the end of the file. Returns the size on disk
    /// after each piece; all of them are one operation.
    pub fn data_written(&self, ino: u32, pieces: &[Written]) -> Result<Vec<u64>> {
        for piece in pieces {
            match piece.pos.checked_add(piece.len) {
                None => return refuse(errno::EINVAL),
                Some(end) if end > self.max_size() => return refuse(errno::EFBIG),
                Some(_) => {}
            }
        }
        if pieces.iter().all(|piece| !piece.unwritten && !piece.append) {
            let _shared = self.shared();
            let size = self.size(&self.regular(ino)?);
            return Ok(vec![size; pieces.len()]);
        }
        let block_size = u64::from(self.block_size());
        self.transact(|txn| {
            self.regular(ino)?;
            txn.may_dip = true;
            let mut inode = txn.edit(ino)?;
            let mut sizes = Vec::with_capacity(pieces.len());
            for piece in pieces {
                // The sum was checked above.
                let end = piece.pos.saturating_add(piece.len);
                if piece.unwritten {
                    inode.check_extents()?;
                    let (from, to) = (piece.pos / block_size, end.div_ceil(block_size));
                    txn.transform(&mut inode, from, to, |piece| {
                        Some(Extent {
                            unwritten: false,
                            ..piece
                        })
                    })?;
                }
                if piece.append && inode.size() < end {
                    inode.set_size(end);
                }
                sizes.push(inode.size());
            }
            txn.store(&mut inode)?;
            Ok(sizes)
        })
    }

    /// Changes attributes other than the size.
    pub fn change_attr(&self, ino: u32, change: &Change) -> Result<()> {
        self.transact(|txn| {
            self.inode(ino)?;
            let mut inode = txn.edit(ino)?;
            let old_mode = inode.mode();
            if let Some(mode) = change.mode {
                inode.set_mode(old_mode & crate::inode::mode::TYPE | mode & 0o7777);
            }
            inode.set_owner(change.uid, change.gid);
            for (which, time) in [
                (Stamp::Access, change.atime),
                (Stamp::Modify, change.mtime),
                (
                    Stamp::Change,
                    change.ctime.or((!change.only_accessed).then_some(txn.now)),
                ),
            ] {
                if let Some(time) = time {
                    inode.set_time(which, time);
                }
            }
            txn.store(&mut inode)?;
            match change.mode {
                Some(_) if inode.mode() & 0o777 != old_mode & 0o777 => {
                    acl::follow_mode(txn, ino, inode.mode())
                }
                _ => Ok(()),
            }
        })
    }

    /// Changes the flags that users may change, as `FS_IOC_SETFLAGS` does.
    pub fn change_flags(&self, ino: u32, wanted: u32) -> Result<()> {
        if wanted & !flags::USER_VISIBLE != 0 {
            return refuse(errno::EOPNOTSUPP);
        }
        self.transact(|txn| {
            let parsed = self.inode(ino)?;
            let mut inode = txn.edit(ino)?;
            let old = inode.flags();
            if (old ^ wanted) & flags::USER_VISIBLE & flags::STORED != 0 {
                return refuse(errno::EOPNOTSUPP);
            }
            let mut settable = flags::SETTABLE;
            if parsed.is_regular() {
                settable &= !flags::DIR_ONLY;
            } else if !parsed.is_dir() {
                settable = flags::ANY_TYPE;
            }
            inode.set_flags(old & !flags::SETTABLE | wanted & settable);
            inode.set_time(Stamp::Change, txn.now);
            txn.store(&mut inode)
        })
    }

    /// Writes data, for mounts where the kernel does not.
    pub fn write(&self, ino: u32, offset: u64, data: &[u8]) -> Result<()> {
        let Some(end) = offset.checked_add(data.len() as u64) else {
            return refuse(errno::EFBIG);
        };
        if end > self.max_size() {
            return refuse(errno::EFBIG);
        }
        self.zero_tail(ino, offset)?;
        let block_size = u64::from(self.block_size());
        let mut done = 0;
        while done < data.len() {
            let pos = offset + done as u64;
            let first = pos / block_size;
            let run = self.blocks_for_write(ino, first, end.div_ceil(block_size), true)?;
            let stop = end.min(run.end().saturating_mul(block_size));
            let part = &data[done..done + (stop - pos) as usize];
            self.write_run(ino, &run, pos, part)?;
            let written = Written {
                pos,
                len: part.len() as u64,
                unwritten: matches!(run.target, Target::Unwritten(_)),
                append: true,
            };
            self.data_written(ino, &[written])?;
            done += part.len();
        }
        Ok(())
    }

    /// Writes into one run, with what is around the data in its first and last block.
    fn write_run(&self, ino: u32, run: &Run, pos: u64, data: &[u8]) -> Result<()> {
        let block_size = u64::from(self.block_size());
        let (at, old) = match run.target {
            Target::Mapped(at) => (at, true),
            Target::Unwritten(at) => (at, false),
            Target::Hole => return corrupt(format!("inode {ino}: nothing was allocated")),
        };
        let first = pos / block_size;
        let within = (pos - first * block_size) as usize;
        let mut bytes = vec![0; (within + data.len()).next_multiple_of(block_size as usize)];
        let device_block = at + (first - run.start);
        if old && (within > 0 || bytes.len() > within + data.len()) {
            let size = {
                let _shared = self.shared();
                self.size(&self.regular(ino)?)
            };
            self.device.read_data(device_block, 0, &mut bytes)?;
            // What is behind the end of the file may be anything on the device.
            let known = size
                .saturating_sub(first * block_size)
                .min(bytes.len() as u64);
            bytes[known as usize..].fill(0);
        }
        bytes[within..within + data.len()].copy_from_slice(data);
        self.device.write(device_block, &bytes)
    }

    /// The file is to grow beyond `offset`: what is behind its end in its last block becomes zero.
    pub fn zero_tail(&self, ino: u32, offset: u64) -> Result<()> {
        let block_size = u64::from(self.block_size());
        let (size, run) = {
            let _shared = self.shared();
            let inode = self.regular(ino)?;
            let size = self.size(&inode);
            if offset <= size || size.is_multiple_of(block_size) {
                return Ok(());
            }
            (
                size,
                self.run(&inode, size / block_size, size / block_size + 1)?,
            )
        };
        let Target::Mapped(at) = run.target else {
            return Ok(());
        };
        let mut bytes = vec![0; block_size as usize];
        let keep = (size % block_size) as usize;
        self.device.read_data(at, 0, &mut bytes)?;
        bytes[keep..].fill(0);
        self.device.write(at, &bytes)
    }

    /// Zeroes the parts of a range that do not make up whole blocks, after [`Volume::fallocate`] did the
    /// rest; for mounts where the kernel does not.
    pub fn zero_edges(&self, ino: u32, offset: u64, length: u64, how: u32) -> Result<()> {
        if how & (resize::mode::PUNCH_HOLE | resize::mode::ZERO_RANGE) == 0 {
            return Ok(());
        }
        let block_size = u64::from(self.block_size());
        let size = {
            let _shared = self.shared();
            self.size(&self.regular(ino)?)
        };
        let end = offset.saturating_add(length).min(size);
        let head = (offset, end.min(offset.next_multiple_of(block_size)));
        let tail = (head.1.max(end / block_size * block_size), end);
        for (from, to) in [head, tail] {
            if from >= to {
                continue;
            }
            let first = from / block_size;
            let run = {
                let _shared = self.shared();
                self.run(&self.regular(ino)?, first, first + 1)?
            };
            if let Target::Mapped(_) = run.target {
                self.write_run(ino, &run, from, &vec![0; (to - from) as usize])?;
            }
        }
        Ok(())
    }
}
