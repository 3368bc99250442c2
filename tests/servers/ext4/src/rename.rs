// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Renaming, with and without a victim, and exchanging.

use crate::{
    dirs::NewEntry,
    edit::Stamp,
    error::{Result, errno, refuse},
    inode::mode,
    names::{NewInode, check_name},
    txn::Txn,
    volume::Volume,
};

/// Flags of renameat2(2).
pub mod flag {
    #![allow(missing_docs)]
    pub const NOREPLACE: u32 = 1;
    pub const EXCHANGE: u32 = 2;
    pub const WHITEOUT: u32 = 4;
}

/// One end of a renaming.
#[derive(Clone, Copy)]
struct Place<'a> {
    dir: u32,
    name: &'a [u8],
}

impl Volume {
    /// Renames; `how` as of renameat2(2). The kernel has made sure that no directory becomes its own
    /// descendant. A whiteout belongs to `owner`.
    pub fn rename(
        &self,
        from: (u32, &[u8]),
        to: (u32, &[u8]),
        how: u32,
        owner: &NewInode,
    ) -> Result<()> {
        let from = Place {
            dir: from.0,
            name: from.1,
        };
        let to = Place {
            dir: to.0,
            name: to.1,
        };
        check_name(to.name)?;
        // Device 0:0, and no permissions: the name is to be taken for missing by who puts this
        // directory over another.
        let whiteout = NewInode {
            mode: mode::CHAR,
            rdev: 0,
            ..*owner
        };
        let whiteout = (how & flag::WHITEOUT != 0).then_some(&whiteout);
        let replace = how & flag::NOREPLACE == 0;
        let gone = match how {
            flag::EXCHANGE => self.transact(|txn| txn.exchange(from, to))?,
            _ if how & !(flag::NOREPLACE | flag::WHITEOUT) == 0 => {
                self.transact(|txn| txn.rename(from, to, replace, whiteout))?
            }
            _ => return refuse(errno::EINVAL),
        };
        self.after_removal(gone)
    }
}

impl Txn<'_> {
    /// Returns the inode that lost its last name, if one did.
    fn rename(
        &mut self,
        from: Place<'_>,
        to: Place<'_>,
        replace: bool,
        whiteout: Option<&NewInode>,
    ) -> Result<Option<u32>> {
        let (ino, is_dir) = self.named(from.dir, from.name)?;
        let target_dir = self.parent(to.dir)?;
        let victim = match self.vol.lookup(&target_dir, to.name)? {
            Some(_) if !replace => return refuse(errno::EEXIST),
            // Two names of one inode: nothing happens.
            Some(other) if other == ino => return Ok(None),
            Some(other) => Some((other, self.vol.inode(other)?.is_dir())),
            None => None,
        };
        let mode = self.vol.inode(ino)?.mode();
        let entry = NewEntry {
            name: to.name,
            ino,
            mode,
        };
        let mut gone = None;
        match victim {
            Some((_, false)) if is_dir => return refuse(errno::ENOTDIR),
            Some((_, true)) if !is_dir => return refuse(errno::EISDIR),
            Some((other, true)) if !self.vol.dir_is_empty(&self.vol.inode(other)?)? => {
                return refuse(errno::ENOTEMPTY);
            }
            Some((other, other_is_dir)) => {
                self.redirect_entry(to.dir, entry)?;
                gone = if other_is_dir {
                    self.drop_dir(other)?
                } else {
                    self.drop_link(other)?
                };
            }
            None => self.add_entry(to.dir, entry)?,
        }
        match whiteout {
            Some(new) => self.leave_whiteout(from, new)?,
            None => self.remove_entry(from.dir, from.name)?,
        }

        let leaves = i32::from(is_dir);
        let replaced_dir = i32::from(victim.is_some_and(|(_, is_dir)| is_dir));
        self.dir_changed(from.dir, -leaves)?;
        self.dir_changed(to.dir, leaves - replaced_dir)?;
        if is_dir && from.dir != to.dir {
            self.set_parent(ino, to.dir)?;
        }
        self.stamp_change(ino)?;
        Ok(gone)
    }

    /// Has a new inode take over a name.
    fn leave_whiteout(&mut self, place: Place<'_>, new: &NewInode) -> Result<()> {
        let mut inode = self.new_inode(place.dir, new)?;
        inode.set_links(1);
        self.store(&mut inode)?;
        let entry = NewEntry {
            name: place.name,
            ino: inode.ino,
            mode: new.mode,
        };
        self.redirect_entry(place.dir, entry)
    }

    fn exchange(&mut self, from: Place<'_>, to: Place<'_>) -> Result<Option<u32>> {
        let (one, one_is_dir) = self.named(from.dir, from.name)?;
        let (other, other_is_dir) = self.named(to.dir, to.name)?;
        if one == other {
            return Ok(None);
        }
        for (place, ino) in [(from, other), (to, one)] {
            let mode = self.vol.inode(ino)?.mode();
            let entry = NewEntry {
                name: place.name,
                ino,
                mode,
            };
            self.redirect_entry(place.dir, entry)?;
        }
        let difference = i32::from(other_is_dir) - i32::from(one_is_dir);
        self.dir_changed(from.dir, difference)?;
        self.dir_changed(to.dir, -difference)?;
        if from.dir != to.dir {
            for (ino, is_dir, dir) in [(one, one_is_dir, to.dir), (other, other_is_dir, from.dir)] {
                if is_dir {
                    self.set_parent(ino, dir)?;
                }
            }
        }
        self.stamp_change(one)?;
        self.stamp_change(other)?;
        Ok(None)
    }

    fn set_parent(&mut self, dir: u32, parent: u32) -> Result<()> {
        let entry = NewEntry {
            name: b"..",
            ino: parent,
            mode: mode::DIR,
        };
        self.redirect_entry(dir, entry)
    }

    fn stamp_change(&mut self, ino: u32) -> Result<()> {
        let mut inode = self.edit(ino)?;
        inode.set_time(Stamp::Change, self.now);
        self.store(&mut inode)
    }
}
