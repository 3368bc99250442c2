// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the requests that change something have in common, and the longer of them.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use fuse_iomap::{
    BackingId, Entry, Errno, Mapping, Opened, Request, Result,
    wire::{
        FallocateIn, IomapIoendIn, SetattrIn, SetxattrIn, WriteIn, attr_flags, fattr, fopen,
        iomap_ioend, iomap_op,
    },
};

use ext4_volume::{
    data::{Change, Written},
    inode::{Inode, Time},
    map::{Run, Target},
    names::NewInode,
    resize,
};

use super::{Server, count, inode_number};

/// What the kernel assumes of files that it opens without asking.
const OPENED: Opened = Opened {
    fh: 0,
    flags: fopen::KEEP_CACHE | fopen::NOFLUSH,
    backing_id: 0,
};

/// What a completion comes to.
fn written(record: &IomapIoendIn) -> Written {
    // Data that did not arrive leaves its blocks unwritten, and they read as zeros.
    let arrived = record.error == 0;
    let has = |flag| arrived && record.flags & flag != 0;
    Written {
        pos: record.pos,
        len: if arrived { record.written } else { 0 },
        unwritten: has(iomap_ioend::UNWRITTEN),
        append: has(iomap_ioend::APPEND),
    }
}

impl Server {
    /// Ends the use of the volume.
    pub(super) fn close(&self) {
        if let Err(err) = self.volume.unmount() {
            self.fail(err);
        }
        // Whoever unmounts may use it next.
        self.volume.close_device();
    }

    /// A new inode of the caller.
    pub(super) fn owner(req: &Request) -> NewInode {
        NewInode {
            uid: req.uid(),
            gid: req.gid(),
            ..Default::default()
        }
    }

    /// Tells the kernel of an inode.
    pub(super) fn tell(&self, ino: u32) -> Result<Entry> {
        let _shared = self.volume.shared();
        let inode = self.volume.inode(ino).map_err(|err| self.fail(err))?;
        self.volume.remember(ino);
        Ok(self.entry(&inode))
    }

    pub(super) fn make(&self, parent: u64, name: &OsStr, new: &NewInode) -> Result<Entry> {
        let made = self
            .volume
            .create(inode_number(parent)?, name.as_bytes(), new);
        self.tell(made.map_err(|err| self.fail(err))?)
    }

    pub(super) fn make_open(
        &self,
        parent: u64,
        name: &OsStr,
        new: &NewInode,
        flags: u32,
    ) -> Result<(Entry, Opened)> {
        const O_EXCL: u32 = 0o200;
        let made = match self.make(parent, name, new) {
            // The kernel did not know of the name. It truncates by SETATTR, if it is to.
            Err(Errno::EXIST) if flags & O_EXCL == 0 => {
                let ino = {
                    let _shared = self.volume.shared();
                    let dir = self.inode(parent)?;
                    let found = self.volume.lookup(&dir, name.as_bytes());
                    found.map_err(|err| self.fail(err))?
                };
                self.tell(ino.ok_or(Errno::NOENT)?)
            }
            made => made,
        }?;
        Ok((made, OPENED))
    }

    pub(super) fn make_unnamed(&self, parent: u64, new: &NewInode) -> Result<(Entry, Opened)> {
        let made = self.volume.create_unnamed(inode_number(parent)?, new);
        let entry = self.tell(made.map_err(|err| self.fail(err))?)?;
        Ok((entry, OPENED))
    }

    pub(super) fn count_begin(&self, run: &Run, mapping: &Mapping) {
        let Some(running) = self.running.get() else {
            return;
        };
        let stats = &running.stats;
        let counter = match run.target {
            Target::Mapped(_) => &stats.begin_mapped,
            Target::Unwritten(_) => &stats.begin_unwritten,
            Target::Hole => &stats.begin_hole,
        };
        count(counter, 1);
        count(&stats.begin_bytes, mapping.length());
    }

    pub(super) fn count_write(&self, write: bool) {
        if let Some(running) = self.running.get() {
            count(&running.stats.begin_for_write, u64::from(write));
        }
    }

    /// What is at the block `first` and around it. The caller holds the volume's lock.
    pub(super) fn find(
        &self,
        nodeid: u64,
        first: u64,
        end: u64,
    ) -> Result<(Inode, BackingId, Run)> {
        let inode = self.inode(nodeid)?;
        let device = self.iomap(&inode).ok_or(Errno::INVAL)?;
        let run = self.volume.run_around(&inode, first, end);
        Ok((inode, device, run.map_err(|err| self.fail(err))?))
    }

    /// Sees to blocks for a write to the blocks from `first` up to `end`. They are always unwritten, so
    /// that nobody reads what was there before.
    pub(super) fn fill_hole(&self, nodeid: u64, first: u64, end: u64, opflags: u32) -> Result<()> {
        // Writeback knows what it needs, and a file may be closed already.
        let ahead = opflags & iomap_op::WRITEBACK == 0;
        let filled = self
            .volume
            .blocks_for_write(inode_number(nodeid)?, first, end, ahead);
        filled.map(|_| ()).map_err(|err| self.fail(err))
    }

    pub(super) fn ioends(&self, nodeid: u64, records: &[IomapIoendIn]) -> Result<Vec<u64>> {
        let ino = inode_number(nodeid)?;
        let shared = |record: &IomapIoendIn| record.flags & iomap_ioend::SHARED != 0;
        if records.iter().any(shared) {
            // No block has two owners here.
            return Err(Errno::INVAL);
        }
        let written: Vec<Written> = records.iter().map(written).collect();
        if let Some(running) = self.running.get() {
            let sum =
                |flag: fn(&Written) -> bool| written.iter().filter(|w| flag(w)).count() as u64;
            count(&running.stats.ioend_unwritten, sum(|w| w.unwritten));
            count(&running.stats.ioend_append, sum(|w| w.append));
        }
        let sizes = self.volume.data_written(ino, &written);
        sizes.map_err(|err| self.fail(err))
    }

    /// Whether the kernel knows that nobody else changes this inode.
    fn is_exclusive(&self, nodeid: u64) -> Result<bool> {
        let _shared = self.volume.shared();
        Ok(self.attr(&self.inode(nodeid)?).flags & attr_flags::EXCLUSIVE != 0)
    }

    /// Whether the kernel moves and zeroes this inode's data.
    fn is_iomap(&self, nodeid: u64) -> Result<bool> {
        let _shared = self.volume.shared();
        Ok(self.iomap(&self.inode(nodeid)?).is_some())
    }

    pub(super) fn set_attributes(&self, nodeid: u64, args: &SetattrIn) -> Result<()> {
        let ino = inode_number(nodeid)?;
        let given = |bit: u32| args.valid & bit != 0;
        if given(fattr::SIZE) {
            if !self.is_iomap(nodeid)? {
                let zeroed = self.volume.zero_tail(ino, args.size);
                zeroed.map_err(|err| self.fail(err))?;
            }
            let truncated = self.volume.truncate(ino, args.size);
            truncated.map_err(|err| self.fail(err))?;
        }
        let time = |bit: u32, now: u32, sec: u64, nsec: u32| {
            (given(bit) && !given(now)).then_some(Time {
                sec: sec as i64,
                nsec,
            })
        };
        let mut change = Change {
            mode: given(fattr::MODE).then_some(args.mode as u16),
            uid: given(fattr::UID).then_some(args.uid),
            gid: given(fattr::GID).then_some(args.gid),
            atime: time(fattr::ATIME, fattr::ATIME_NOW, args.atime, args.atimensec),
            mtime: time(fattr::MTIME, fattr::MTIME_NOW, args.mtime, args.mtimensec),
            ctime: time(fattr::CTIME, 0, args.ctime, args.ctimensec),
            only_accessed: false,
        };
        if given(fattr::ATIME_NOW) {
            change.atime = Some(Time::now());
        }
        if given(fattr::MTIME_NOW) {
            change.mtime = Some(Time::now());
        }
        // What only this mount changes has its access time from the kernel, which also says ctime
        // if it was somebody's wish.
        if args.valid & !(fattr::FH | fattr::LOCKOWNER) == fattr::ATIME {
            change.only_accessed = self.is_exclusive(nodeid)?;
        }
        let nothing = fattr::SIZE | fattr::FH | fattr::LOCKOWNER;
        if args.valid & !nothing == 0 {
            return Ok(());
        }
        let changed = self.volume.change_attr(ino, &change);
        changed.map_err(|err| self.fail(err))
    }

    pub(super) fn set_xattr(
        &self,
        nodeid: u64,
        name: &OsStr,
        value: &[u8],
        args: &SetxattrIn,
    ) -> Result<()> {
        let ino = inode_number(nodeid)?;
        let set = self
            .volume
            .set_xattr(ino, name.as_bytes(), value, args.flags);
        set.map_err(|err| self.fail(err))
    }

    pub(super) fn write_data(&self, nodeid: u64, args: &WriteIn, data: &[u8]) -> Result<u32> {
        let ino = inode_number(nodeid)?;
        let written = self.volume.write(ino, args.offset, data);
        written.map_err(|err| self.fail(err))?;
        u32::try_from(data.len()).map_err(|_| Errno::INVAL)
    }

    pub(super) fn allocate(&self, nodeid: u64, args: &FallocateIn) -> Result<()> {
        let ino = inode_number(nodeid)?;
        let kernel_zeroes = self.is_iomap(nodeid)?;
        let end = args.offset.saturating_add(args.length);
        if !kernel_zeroes && args.mode & resize::mode::KEEP_SIZE == 0 {
            let zeroed = self.volume.zero_tail(ino, end);
            zeroed.map_err(|err| self.fail(err))?;
        }
        let done = self
            .volume
            .fallocate(ino, args.offset, args.length, args.mode);
        done.map_err(|err| self.fail(err))?;
        if !kernel_zeroes {
            let zeroed = self
                .volume
                .zero_edges(ino, args.offset, args.length, args.mode);
            zeroed.map_err(|err| self.fail(err))?;
        }
        Ok(())
    }

    pub(super) fn sync(&self, nodeid: u64) -> Result<()> {
        let ino = inode_number(nodeid)?;
        if !self.volume.is_writable() {
            return Ok(());
        }
        self.volume.sync_inode(ino).map_err(|err| self.fail(err))
    }
}
