// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Names: making inodes, links to them, and removing both.

use crate::{
    acl,
    dir::NAME_MAX,
    dirs::NewEntry,
    edit::{InodeEdit, Stamp},
    error::{Result, corrupt, errno, refuse},
    extents::empty_root,
    features::ro_compat,
    inode::{Inode, ROOT, flags, le16, mode},
    orphans::has_blocks,
    txn::Txn,
    volume::Volume,
};

/// More links a file cannot have; a directory with more counts as having one.
pub const LINK_MAX: u16 = 65000;
/// The longest target that is kept in the inode.
const FAST_LINK: usize = 59;
/// Flags that a directory hands down.
const INHERITED: u32 = flags::SYNC | 0x40 | 0x80 | 0x1_0000;
/// Of those, what only directories can have: synchronous changes of names.
const DIR_ONLY: u32 = 0x1_0000;

/// What a new inode is to be.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewInode {
    /// Type and permissions, before the umask.
    pub mode: u16,
    /// Permissions to take away, unless the directory has a default ACL.
    pub umask: u16,
    /// Owner.
    pub uid: u32,
    /// Group, unless the directory hands its own down.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit encoding.
    pub rdev: u32,
}

/// Checks a name that is to be created.
pub(crate) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" | b"." | b".." => refuse(errno::EEXIST),
        _ if name.contains(&b'/') || name.contains(&0) => refuse(errno::EINVAL),
        _ if name.len() > NAME_MAX => refuse(errno::ENAMETOOLONG),
        _ => Ok(()),
    }
}

impl Volume {
    /// Makes an inode of any type but a symbolic link, with a name. Returns its number.
    pub fn create(&self, parent: u32, name: &[u8], new: &NewInode) -> Result<u32> {
        check_name(name)?;
        self.transact(|txn| {
            let dir = txn.parent(parent)?;
            if self.lookup(&dir, name)?.is_some() {
                return refuse(errno::EEXIST);
            }
            let is_dir = new.mode & mode::TYPE == mode::DIR;
            let mut inode = txn.new_inode(parent, new)?;
            let ino = inode.ino;
            if is_dir {
                inode.set_links(2);
                txn.store(&mut inode)?;
                txn.first_dir_block(ino, parent)?;
            } else {
                inode.set_links(1);
                txn.store(&mut inode)?;
            }
            acl::inherit(txn, &dir, ino, new.umask)?;
            let entry = NewEntry {
                name,
                ino,
                mode: new.mode,
            };
            txn.add_entry(parent, entry)?;
            txn.dir_changed(parent, i32::from(is_dir))?;
            Ok(ino)
        })
    }

    /// Makes an inode without a name, as for `O_TMPFILE`. It lives while it is in use.
    pub fn create_unnamed(&self, parent: u32, new: &NewInode) -> Result<u32> {
        self.transact(|txn| {
            let dir = txn.parent(parent)?;
            let mut inode = txn.new_inode(parent, new)?;
            txn.add_orphan(&mut inode);
            txn.store(&mut inode)?;
            acl::inherit(txn, &dir, inode.ino, new.umask)?;
            Ok(inode.ino)
        })
    }

    /// Makes a symbolic link. Returns its number.
    pub fn symlink(&self, parent: u32, name: &[u8], target: &[u8], new: &NewInode) -> Result<u32> {
        check_name(name)?;
        let block_size = self.block_size() as usize;
        if target.is_empty() || target.contains(&0) {
            return refuse(errno::EINVAL);
        }
        if target.len() >= block_size {
            return refuse(errno::ENAMETOOLONG);
        }
        self.transact(|txn| {
            let dir = txn.parent(parent)?;
            if self.lookup(&dir, name)?.is_some() {
                return refuse(errno::EEXIST);
            }
            let mode = mode::LINK | 0o777;
            let new = NewInode { mode, ..*new };
            let mut inode = txn.new_inode(parent, &new)?;
            inode.set_links(1);
            inode.set_size(target.len() as u64);
            if target.len() <= FAST_LINK {
                inode.set_flags(inode.flags() & !flags::EXTENTS);
                inode.i_block_mut().fill(0);
                inode.i_block_mut()[..target.len()].copy_from_slice(target);
                txn.store(&mut inode)?;
            } else {
                txn.fill_some(&mut inode, 0, 1, false)?;
                txn.store(&mut inode)?;
                let parsed = self.any_inode(inode.ino)?;
                let at = self.dir_device_block(&parsed, 0)?;
                let mut bytes = vec![0; block_size];
                bytes[..target.len()].copy_from_slice(target);
                txn.fresh(at, bytes)?;
            }
            let ino = inode.ino;
            txn.add_entry(parent, NewEntry { name, ino, mode })?;
            txn.dir_changed(parent, 0)?;
            Ok(ino)
        })
    }

    /// Gives an inode one more name.
    pub fn link(&self, ino: u32, parent: u32, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.transact(|txn| {
            let dir = txn.parent(parent)?;
            if self.lookup(&dir, name)?.is_some() {
                return refuse(errno::EEXIST);
            }
            let mut inode = txn.edit(ino)?;
            if inode.is_dir() {
                return refuse(errno::EISDIR);
            }
            if inode.links() >= LINK_MAX {
                return refuse(errno::EMLINK);
            }
            if inode.links() == 0 {
                // Made without a name, and gets one now.
                txn.remove_orphan(&mut inode)?;
            }
            inode.set_links(inode.links() + 1);
            inode.set_time(Stamp::Change, txn.now);
            txn.store(&mut inode)?;
            let mode = inode.mode();
            txn.add_entry(parent, NewEntry { name, ino, mode })?;
            txn.dir_changed(parent, 0)
        })
    }

    /// Removes a name that is not a directory's.
    pub fn unlink(&self, parent: u32, name: &[u8]) -> Result<()> {
        let gone = self.transact(|txn| {
            let (ino, is_dir) = txn.named(parent, name)?;
            if is_dir {
                return refuse(errno::EISDIR);
            }
            txn.remove_entry(parent, name)?;
            txn.dir_changed(parent, 0)?;
            txn.drop_link(ino)
        })?;
        self.after_removal(gone)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, parent: u32, name: &[u8]) -> Result<()> {
        if matches!(name, b"." | b"..") {
            return refuse(errno::EINVAL);
        }
        let gone = self.transact(|txn| {
            let (ino, is_dir) = txn.named(parent, name)?;
            if !is_dir {
                return refuse(errno::ENOTDIR);
            }
            if !self.dir_is_empty(&self.inode(ino)?)? {
                return refuse(errno::ENOTEMPTY);
            }
            txn.remove_entry(parent, name)?;
            txn.dir_changed(parent, -1)?;
            txn.drop_dir(ino)
        })?;
        self.after_removal(gone)
    }

    /// Frees an inode that lost its last name, unless it is in use.
    pub(crate) fn after_removal(&self, gone: Option<u32>) -> Result<()> {
        match gone {
            Some(ino) if !self.has_users(ino) => self.finish_orphan(ino),
            _ => Ok(()),
        }
    }
}

impl Txn<'_> {
    /// A directory that is to be changed.
    pub fn parent(&self, ino: u32) -> Result<Inode> {
        let dir = self.vol.inode(ino)?;
        if !dir.is_dir() {
            return refuse(errno::ENOTDIR);
        }
        if dir.links() == 0 {
            return refuse(errno::ENOENT);
        }
        Ok(dir)
    }

    /// The inode of a name, and whether it is a directory.
    pub fn named(&self, parent: u32, name: &[u8]) -> Result<(u32, bool)> {
        let dir = self.parent(parent)?;
        match self.vol.lookup(&dir, name)? {
            Some(ino) => Ok((ino, self.vol.inode(ino)?.is_dir())),
            None => refuse(errno::ENOENT),
        }
    }

    /// An inode that is new in everything; it has no links yet and is not stored.
    pub fn new_inode(&mut self, parent: u32, new: &NewInode) -> Result<InodeEdit> {
        const WANTED_EXTRA: usize = 0x15e;
        let dir = self.edit(parent)?;
        let kind = new.mode & mode::TYPE;
        let is_dir = kind == mode::DIR;
        let ino = self.alloc_inode(parent, is_dir)?;
        let mut inode = self.blank(ino)?;

        let mut permissions = new.mode;
        let mut gid = new.gid;
        if dir.mode() & 0o2000 != 0 {
            gid = dir.gid();
            if is_dir {
                permissions |= 0o2000;
            }
        }
        inode.set_mode(permissions);
        inode.set_owner(Some(new.uid), Some(gid));
        let mut inherited = dir.flags() & INHERITED;
        if !is_dir {
            inherited &= !DIR_ONLY;
        }
        match kind {
            mode::REG | mode::DIR | mode::LINK => {
                inode.set_flags(inherited | flags::EXTENTS);
                empty_root(inode.i_block_mut());
            }
            mode::CHAR | mode::BLOCK => {
                inode.set_flags(inherited & 0xc0);
                put_device(inode.i_block_mut(), new.rdev);
            }
            mode::FIFO | mode::SOCK => inode.set_flags(inherited & 0xc0),
            _ => return refuse(errno::EINVAL),
        }
        if usize::from(self.vol.sb.inode_size) > 128 {
            let room = self.vol.sb.inode_size - 128;
            let wanted = le16(&self.vol.sb.raw, WANTED_EXTRA);
            let extra = if wanted == 0 { 32 } else { wanted };
            inode.set_extra_size(extra.min(room) & !3);
        }
        for which in [Stamp::Access, Stamp::Modify, Stamp::Change, Stamp::Create] {
            inode.set_time(which, self.now);
        }
        inode.set_generation(self.generation(ino));
        Ok(inode)
    }

    /// A generation that an earlier inode of this number hardly had.
    fn generation(&self, ino: u32) -> u32 {
        let mut mixed = self.now.sec as u64 ^ u64::from(self.now.nsec) << 32 ^ u64::from(ino);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) as u32
    }

    /// Entries of a directory changed, and `dirs` directories came to it.
    pub fn dir_changed(&mut self, dir: u32, dirs: i32) -> Result<()> {
        let mut edit = self.edit(dir)?;
        let links = edit.links();
        if dirs != 0 && links != 1 {
            let counts_on = self.vol.sb.feature_ro_compat & ro_compat::DIR_NLINK != 0;
            let new = i32::from(links) + dirs;
            if new >= i32::from(LINK_MAX) {
                if !counts_on {
                    return refuse(errno::EMLINK);
                }
                edit.set_links(1);
            } else {
                edit.set_links(new.max(2) as u16);
            }
        }
        edit.set_time(Stamp::Modify, self.now);
        edit.set_time(Stamp::Change, self.now);
        self.store(&mut edit)
    }

    /// An inode loses a name; returns it if that was the last one.
    pub fn drop_link(&mut self, ino: u32) -> Result<Option<u32>> {
        let mut inode = self.edit(ino)?;
        if inode.links() == 0 {
            return corrupt(format!("inode {ino} has a name and no links"));
        }
        let left = inode.links() - 1;
        if left == 0 && has_blocks(&inode) {
            // Or its blocks could never be freed.
            inode.check_extents()?;
        }
        inode.set_links(left);
        inode.set_time(Stamp::Change, self.now);
        if left == 0 {
            self.add_orphan(&mut inode);
        }
        self.store(&mut inode)?;
        Ok((left == 0).then_some(ino))
    }

    /// An empty directory loses its name.
    pub fn drop_dir(&mut self, ino: u32) -> Result<Option<u32>> {
        if ino == ROOT {
            return corrupt("the root has a name");
        }
        let mut inode = self.edit(ino)?;
        inode.check_extents()?;
        inode.set_links(0);
        inode.set_size(0);
        inode.set_time(Stamp::Change, self.now);
        self.add_orphan(&mut inode);
        self.store(&mut inode)?;
        Ok(Some(ino))
    }
}

/// Stores a device number: the old form if it fits, else the new one.
fn put_device(i_block: &mut [u8], rdev: u32) {
    let (major, minor) = (
        (rdev >> 8) & 0xfff,
        (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00),
    );
    if major < 256 && minor < 256 {
        i_block[..4].copy_from_slice(&(major << 8 | minor).to_le_bytes());
    } else {
        i_block[4..8].copy_from_slice(&rdev.to_le_bytes());
    }
}
