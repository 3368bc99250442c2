// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Inodes that are in use without a name, and those whose truncation is under way.
//!
//! They are on a list on disk, from the superblock through each inode's `i_dtime`, so that whoever
//! mounts or checks the volume after a crash finishes the job. A name's last removal puts an inode there;
//! when the kernel has forgotten it, its blocks are freed, in several transactions if there are many.

use std::collections::HashMap;

use crate::{
    edit::InodeEdit,
    error::{Error, Result, corrupt, errno},
    inode::{flags, mode},
    map::{MAX_BLOCKS, Target},
    txn::{Rw, Txn, now},
    volume::Volume,
};

/// An inode's neighbours on the list; 0 is its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    /// Towards the superblock.
    before: u32,
    after: u32,
}

/// Leaves of an extent tree that are emptied in one operation.
const LEAVES: usize = 8;

impl Txn<'_> {
    fn link(&self, ino: u32) -> Option<Link> {
        Rw::lock(&self.rw.orphans).get(&ino).copied()
    }

    fn set_link(&mut self, ino: u32, link: Option<Link>) {
        let mut orphans = Rw::lock(&self.rw.orphans);
        let old = match link {
            Some(link) => orphans.insert(ino, link),
            None => orphans.remove(&ino),
        };
        self.undo.orphans.push((ino, old));
    }

    /// Puts an inode on the list, if it is not there. The caller stores it.
    pub fn add_orphan(&mut self, inode: &mut InodeEdit) {
        if self.link(inode.ino).is_some() {
            return;
        }
        let after = self.state.last_orphan;
        inode.set_dtime(after);
        self.set_link(inode.ino, Some(Link { before: 0, after }));
        if let Some(other) = self.link(after) {
            let link = Link {
                before: inode.ino,
                ..other
            };
            self.set_link(after, Some(link));
        }
        self.state.last_orphan = inode.ino;
        self.state.running.super_dirty = true;
    }

    /// Takes an inode off the list, if it is there. The caller stores it.
    pub fn remove_orphan(&mut self, inode: &mut InodeEdit) -> Result<()> {
        let Some(link) = self.link(inode.ino) else {
            return Ok(());
        };
        if link.before == 0 {
            self.state.last_orphan = link.after;
            self.state.running.super_dirty = true;
        } else {
            let mut before = self.edit(link.before)?;
            before.set_dtime(link.after);
            self.store(&mut before)?;
            let other = self.link(link.before).unwrap_or_default();
            let other = Link {
                after: link.after,
                ..other
            };
            self.set_link(link.before, Some(other));
        }
        if let Some(other) = self.link(link.after) {
            let other = Link {
                before: link.before,
                ..other
            };
            self.set_link(link.after, Some(other));
        }
        self.set_link(inode.ino, None);
        inode.set_dtime(0);
        Ok(())
    }

    /// Frees some of what an inode has from a file block on; whether that is all.
    fn shorten(&mut self, inode: &mut InodeEdit, from: u64) -> Result<bool> {
        let mut at = from;
        for _ in 0..LEAVES {
            at = self.remove_some(inode, at, MAX_BLOCKS)?;
            if at >= MAX_BLOCKS {
                return Ok(true);
            }
        }
        // What is behind `at` may be one long hole.
        let leaf = self.leaf(inode, MAX_BLOCKS - 1)?;
        Ok(leaf.extents.last().is_none_or(|last| last.end() <= from))
    }

    /// Frees an inode without blocks.
    fn delete(&mut self, inode: &mut InodeEdit) -> Result<()> {
        self.drop_xattr_block(inode)?;
        self.remove_orphan(inode)?;
        let is_dir = inode.is_dir();
        inode.set_size(0);
        inode.set_dtime(now().sec as u32);
        self.store(inode)?;
        self.state.prealloc.remove(&inode.ino);
        self.free_inode(inode.ino, is_dir)
    }
}

/// Whether an inode's `i_block` is the root of a tree whose blocks it owns.
pub(crate) fn has_blocks(inode: &InodeEdit) -> bool {
    match inode.mode() & mode::TYPE {
        mode::REG | mode::DIR => inode.flags() & flags::INLINE_DATA == 0,
        // A short target is in the inode, which then has no flag for extents.
        mode::LINK => inode.flags() & flags::EXTENTS != 0,
        _ => false,
    }
}

impl Volume {
    /// Whether an inode without links is still there for those who have it open.
    pub(crate) fn is_orphan(&self, ino: u32) -> bool {
        self.rw
            .as_ref()
            .is_some_and(|rw| Rw::lock(&rw.orphans).contains_key(&ino))
    }

    /// The kernel was told of an inode once more.
    pub fn remember(&self, ino: u32) {
        if let Some(rw) = &self.rw {
            *Rw::lock(&rw.refs).entry(ino).or_insert(0) += 1;
        }
    }

    /// The kernel forgets an inode `count` times. With the last time go its blocks if it has no name, and
    /// those that were allocated ahead of need.
    pub fn forget(&self, ino: u32, count: u64) -> Result<()> {
        let Some(rw) = &self.rw else { return Ok(()) };
        {
            let mut refs = Rw::lock(&rw.refs);
            let Some(left) = refs.get_mut(&ino) else {
                return Ok(());
            };
            *left = left.saturating_sub(count);
            if *left > 0 {
                return Ok(());
            }
            refs.remove(&ino);
        }
        match self.release_inode(ino) {
            Err(_) if self.release_later(rw, ino) => Ok(()),
            // It was frozen, and is not any more.
            Err(Error::Errno(errno::EBUSY)) => self.release_inode(ino),
            result => result,
        }
    }

    /// What remains to be done for an inode that nobody uses any more.
    pub(crate) fn release_inode(&self, ino: u32) -> Result<()> {
        if self.is_orphan(ino) {
            return self.finish_orphan(ino);
        }
        let rw = self.rw()?;
        let ahead = rw.read().prealloc.contains_key(&ino);
        if ahead { self.trim(ino) } else { Ok(()) }
    }

    pub(crate) fn has_users(&self, ino: u32) -> bool {
        self.rw
            .as_ref()
            .is_some_and(|rw| Rw::lock(&rw.refs).contains_key(&ino))
    }

    /// Frees an inode on the list, or what it has beyond its size if it still has a name.
    pub(crate) fn finish_orphan(&self, ino: u32) -> Result<()> {
        loop {
            let done = self.transact(|txn| {
                let mut inode = txn.edit(ino)?;
                let kept = if inode.links() > 0 {
                    inode.size().div_ceil(u64::from(self.block_size()))
                } else {
                    0
                };
                let done = !has_blocks(&inode) || txn.shorten(&mut inode, kept)?;
                if !done {
                    txn.store(&mut inode)?;
                } else if inode.links() > 0 {
                    txn.remove_orphan(&mut inode)?;
                    txn.store(&mut inode)?;
                } else {
                    txn.delete(&mut inode)?;
                }
                Ok(done)
            })?;
            if done {
                return Ok(());
            }
        }
    }

    /// Gives back what was allocated for a file ahead of need and was never used.
    fn trim(&self, ino: u32) -> Result<()> {
        let block_size = u64::from(self.block_size());
        self.transact(|txn| {
            let Some((from, to)) = txn.state.prealloc.get(&ino).copied() else {
                return Ok(());
            };
            let mut inode = txn.edit(ino)?;
            let mut at = from.max(inode.size().div_ceil(block_size));
            while at < to {
                let parsed = self.any_inode(ino)?;
                let run = self.run(&parsed, at, to)?;
                let end = run.end().min(to);
                if matches!(run.target, Target::Unwritten(_)) {
                    let mut next = at;
                    while next < end {
                        next = txn.remove_some(&mut inode, next, end)?;
                    }
                    txn.store(&mut inode)?;
                }
                at = end;
            }
            txn.state.prealloc.remove(&ino);
            Ok(())
        })
    }

    /// Gives back what was allocated ahead of need for all files that nobody uses.
    pub(crate) fn trim_all(&self) -> Result<()> {
        let rw = self.rw()?;
        let all: Vec<u32> = rw.read().prealloc.keys().copied().collect();
        for ino in all {
            if !self.has_users(ino) {
                self.trim(ino)?;
            }
        }
        Ok(())
    }

    /// Reads the list on disk.
    pub(crate) fn load_orphans(&self, first: u32) -> Result<HashMap<u32, Link>> {
        let mut orphans = HashMap::new();
        let (mut ino, mut before) = (first, 0);
        while ino != 0 {
            if ino > self.sb.inodes_count || orphans.contains_key(&ino) {
                return corrupt("the list of inodes without a name");
            }
            let after = self.any_inode(ino)?.dtime();
            orphans.insert(ino, Link { before, after });
            before = ino;
            ino = after;
        }
        Ok(orphans)
    }

    /// Finishes all inodes on the list that nobody uses. Damage to one does not keep the others.
    pub(crate) fn finish_orphans(&self) -> Result<usize> {
        let rw = self.rw()?;
        let all: Vec<u32> = Rw::lock(&rw.orphans).keys().copied().collect();
        let mut done = 0;
        for ino in all {
            if self.has_users(ino) {
                continue;
            }
            match self.finish_orphan(ino) {
                Ok(()) => done += 1,
                Err(err @ (Error::Io(_) | Error::Errno(errno::EIO | errno::EROFS))) => {
                    return Err(err);
                }
                Err(err) => eprintln!("ext4: inode {ino} without a name stays: {err}"),
            }
        }
        Ok(done)
    }
}
