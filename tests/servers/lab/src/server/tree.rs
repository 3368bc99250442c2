// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Names: what makes, moves and removes them.

use super::node::{Dir, Kind, Meta, Node, S_IFDIR, S_IFMT, S_IFREG, now};
use super::{Lab, lock};
use fuse_iomap::wire::attr_flags;
use fuse_iomap::{Errno, Request, Result};
use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const RENAME_NOREPLACE: u32 = 1;
const RENAME_EXCHANGE: u32 = 2;
const NAME_MAX: usize = 255;
const S_ISGID: u32 = 0o2000;

fn entries(node: &Node) -> Result<MutexGuard<'_, Dir>> {
    match &node.kind {
        Kind::Dir(dir) => Ok(lock(dir)),
        _ => Err(Errno::NOTDIR),
    }
}

fn changed(dir: &Node) {
    let mut meta = lock(&dir.meta);
    meta.mtime = now();
    meta.ctime = meta.mtime;
}

const fn is_dir(node: &Node) -> bool {
    matches!(node.kind, Kind::Dir(_))
}

impl Lab {
    pub(super) fn child(&self, parent: u64, name: &OsStr) -> Result<Arc<Node>> {
        let parent = self.node(parent)?;
        let child = entries(&parent)?.get(name).ok_or(Errno::NOENT)?;
        self.node(child)
    }

    /// Makes an inode of the type that `mode` names, with a name unless there is none. `target` is
    /// that of a symbolic link.
    pub(super) fn make(
        &self,
        req: &Request,
        parent: u64,
        name: Option<&OsStr>,
        (mode, rdev): (u32, u32),
        target: Option<&[u8]>,
    ) -> Result<Arc<Node>> {
        let _names = lock(&self.names);
        let dir = self.node(parent)?;
        let policy = self.policy(&dir)?;
        if let Some(name) = name {
            if name.len() > NAME_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            if entries(&dir)?.get(name).is_some() {
                return Err(Errno::EXIST);
            }
        }
        if lock(&dir.meta).nlink == 0 {
            return Err(Errno::NOENT);
        }
        let id = self.new_id();
        let mut flags = attr_flags::EXCLUSIVE;
        let mut blksize = 4096;
        let kind = match (mode & S_IFMT, target) {
            (_, Some(target)) => Kind::Symlink(target.to_vec()),
            (S_IFDIR, _) => Kind::Dir(Mutex::default()),
            (S_IFREG, _) => {
                flags |= attr_flags::IOMAP;
                if policy.atomic {
                    flags |= attr_flags::ATOMIC;
                }
                blksize = policy.blksize;
                lock(&self.store).create(id, policy.clone(), 0);
                Kind::Stored
            }
            _ => Kind::Special,
        };
        let mut meta = Meta {
            uid: req.uid(),
            gid: req.gid(),
            rdev,
            nlink: name.map_or(0, |_| 1),
            atime: now(),
            mtime: now(),
            ctime: now(),
            ..Meta::fixed(mode)
        };
        let (its_mode, its_gid) = {
            let its = lock(&dir.meta);
            (its.mode, its.gid)
        };
        if its_mode & S_ISGID != 0 {
            meta.gid = its_gid;
            if mode & S_IFMT == S_IFDIR {
                meta.mode |= S_ISGID;
            }
        }
        let mut node = Node::new(id, parent, kind, flags, blksize, meta);
        node.policy = Some(policy);
        self.insert(node);
        if let Some(name) = name {
            entries(&dir)?.add(name, id);
            changed(&dir);
        }
        self.node(id)
    }

    /// One name less for an inode; `last` for all, as for a directory.
    fn drop_name(&self, node: &Node, last: bool) {
        let nlink = {
            let mut meta = lock(&node.meta);
            meta.nlink = if last {
                0
            } else {
                meta.nlink.saturating_sub(1)
            };
            meta.ctime = now();
            meta.nlink
        };
        if nlink == 0 {
            self.reap(node);
        }
    }

    /// Gives up an inode that has no name once the kernel has forgotten it.
    fn reap(&self, node: &Node) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if node.lookups.load(Ordering::Relaxed) == 0 && lock(&node.meta).nlink == 0 {
            nodes.remove(&node.id);
            if matches!(node.kind, Kind::Stored) {
                lock(&self.store).remove(node.id);
            }
        }
    }

    pub(super) fn forget_node(&self, nodeid: u64, nlookup: u64) {
        let Ok(node) = self.node(nodeid) else {
            return;
        };
        let before = node.lookups.fetch_sub(nlookup, Ordering::Relaxed);
        if before < nlookup {
            self.violation(format!("FORGET of more lookups than node {nodeid} has"));
            node.lookups.store(0, Ordering::Relaxed);
        }
        if before <= nlookup && lock(&node.meta).nlink == 0 {
            self.reap(&node);
        }
    }

    pub(super) fn unlink_name(&self, parent: u64, name: &OsStr, dir_wanted: bool) -> Result<()> {
        let _names = lock(&self.names);
        let dir = self.node(parent)?;
        self.policy(&dir)?;
        let node = self.child(parent, name)?;
        match (&node.kind, dir_wanted) {
            (Kind::Dir(_), false) => return Err(Errno::ISDIR),
            (Kind::Dir(inside), true) if !lock(inside).is_empty() => return Err(Errno::NOTEMPTY),
            (Kind::Dir(_), true) | (_, false) => {}
            (_, true) => return Err(Errno::NOTDIR),
        }
        entries(&dir)?.remove(name);
        changed(&dir);
        self.drop_name(&node, dir_wanted);
        Ok(())
    }

    pub(super) fn link_name(&self, nodeid: u64, parent: u64, name: &OsStr) -> Result<Arc<Node>> {
        let _names = lock(&self.names);
        let node = self.node(nodeid)?;
        let dir = self.node(parent)?;
        self.policy(&dir)?;
        if is_dir(&node) {
            return Err(Errno::PERM);
        }
        if name.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        if entries(&dir)?.get(name).is_some() {
            return Err(Errno::EXIST);
        }
        entries(&dir)?.add(name, nodeid);
        changed(&dir);
        let mut meta = lock(&node.meta);
        meta.nlink += 1;
        meta.ctime = now();
        drop(meta);
        Ok(node)
    }

    pub(super) fn rename_name(
        &self,
        (parent, name): (u64, &OsStr),
        (newparent, newname): (u64, &OsStr),
        flags: u32,
    ) -> Result<()> {
        if flags & !(RENAME_NOREPLACE | RENAME_EXCHANGE) != 0 {
            return Err(Errno::INVAL);
        }
        if newname.len() > NAME_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let _names = lock(&self.names);
        let (dir, newdir) = (self.node(parent)?, self.node(newparent)?);
        self.policy(&dir)?;
        self.policy(&newdir)?;
        let node = self.child(parent, name)?;
        let target = match self.child(newparent, newname) {
            Ok(target) => Some(target),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(e),
        };
        if flags & RENAME_EXCHANGE != 0 {
            let target = target.ok_or(Errno::NOENT)?;
            entries(&dir)?.remove(name);
            entries(&newdir)?.remove(newname);
            entries(&dir)?.add(name, target.id);
            target.parent.store(parent, Ordering::Relaxed);
        } else {
            if let Some(target) = target {
                if flags & RENAME_NOREPLACE != 0 {
                    return Err(Errno::EXIST);
                }
                // Two names of one inode stay as they are.
                if target.id == node.id {
                    return Ok(());
                }
                match (&target.kind, is_dir(&node)) {
                    (Kind::Dir(_), false) => return Err(Errno::ISDIR),
                    (Kind::Dir(inside), true) if !lock(inside).is_empty() => {
                        return Err(Errno::NOTEMPTY);
                    }
                    (Kind::Dir(_), true) | (_, false) => {}
                    (_, true) => return Err(Errno::NOTDIR),
                }
                entries(&newdir)?.remove(newname);
                self.drop_name(&target, is_dir(&target));
            }
            entries(&dir)?.remove(name);
        }
        entries(&newdir)?.add(newname, node.id);
        node.parent.store(newparent, Ordering::Relaxed);
        lock(&node.meta).ctime = now();
        changed(&dir);
        changed(&newdir);
        Ok(())
    }

    /// Number, name and node of the entries behind a number; `.` and `..` are 1 and 2.
    pub(super) fn listing(
        &self,
        nodeid: u64,
        offset: u64,
    ) -> Result<Vec<(u64, std::ffi::OsString, u64)>> {
        let node = self.node(nodeid)?;
        let parent = node.parent.load(Ordering::Relaxed);
        let mut all = vec![(1, ".".into(), nodeid), (2, "..".into(), parent)];
        all.retain(|(number, _, _)| *number > offset);
        all.extend(entries(&node)?.after(offset));
        Ok(all)
    }
}
