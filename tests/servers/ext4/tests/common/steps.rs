// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The random work that the model's kernel does.

use ext4_volume::{
    Error,
    data::Change,
    error::errno,
    inode::{Time, mode},
    names::NewInode,
    rename::flag,
    resize::mode as how,
};

use super::kernel::{Kernel, Node, is_full};

const DIR: u16 = mode::DIR | 0o755;
const FILE: u16 = mode::REG | 0o644;

impl Kernel {
    /// One random step.
    pub fn step(&mut self) {
        match self.random.below(100) {
            0..14 => {
                let (dir, name) = (self.pick_dir(), self.fresh_name());
                let kind = match self.random.below(8) {
                    0 | 1 => DIR,
                    2 => mode::FIFO | 0o600,
                    3 => mode::CHAR | 0o600,
                    _ => FILE,
                };
                self.create(dir, &name, kind);
            }
            14..18 => self.symlink(),
            18..22 => self.link(),
            22..34 => {
                if let Some((dir, name, ino)) = self.pick_entry() {
                    self.unlink(dir, &name, ino);
                }
            }
            34..40 => self.rename(),
            40..46 => self.xattr(),
            46..50 => {
                if let Some(ino) = self.unnamed.iter().next().copied() {
                    self.forget(ino);
                }
            }
            50..54 => self.attributes(),
            54..62 => {
                if let Some(ino) = self.pick_file() {
                    self.fsync(ino);
                }
            }
            62..64 => self.volume.commit().unwrap(),
            64..70 => {
                if let Some(ino) = self.pick_file() {
                    let size = self.random.below(self.longest);
                    self.truncate(ino, size);
                }
            }
            70..80 => {
                if let Some(ino) = self.pick_file() {
                    self.fallocate(ino);
                }
            }
            _ => {
                if let Some(ino) = self.pick_file() {
                    let size = self.nodes[&ino].data.len();
                    let offset = match self.random.below(3) {
                        0 => self.random.below(self.longest),
                        1 => self.random.below(size + 1),
                        _ => size,
                    };
                    let len = 1 + self.random.below(40_000);
                    if offset + len <= self.longest {
                        self.write(ino, offset, len);
                    }
                }
            }
        }
    }

    fn symlink(&mut self) {
        let (dir, name) = (self.pick_dir(), self.fresh_name());
        let len = 1 + self
            .random
            .below([50, 200, 800][self.random.0 as usize % 3]);
        let target = vec![b't'; len];
        let new = NewInode::default();
        let result = self.volume.symlink(dir, &name, &target, &new);
        if let Some(ino) = self.fits(result) {
            self.volume.remember(ino);
            let node = Node {
                mode: mode::LINK | 0o777,
                links: 1,
                target,
                ..Default::default()
            };
            assert!(self.nodes.insert(ino, node).is_none());
            self.enter(dir, &name, ino);
        }
    }

    fn link(&mut self) {
        let Some(ino) = self.pick_file() else { return };
        if self.nodes[&ino].links == 0 {
            return;
        }
        let (dir, name) = (self.pick_dir(), self.fresh_name());
        let result = self.volume.link(ino, dir, &name);
        if self.fits(result).is_some() {
            self.node(ino).links += 1;
            self.enter(dir, &name, ino);
        }
    }

    fn attributes(&mut self) {
        let Some((_, _, ino)) = self.pick_entry() else {
            return;
        };
        self.touched(ino);
        let permissions = self.random.below(0o1000) as u16;
        let mtime = Time {
            sec: self.random.next() as u32 as i64 - 0x8000_0000,
            nsec: self.random.below(1_000_000_000) as u32,
        };
        let change = Change {
            mode: Some(permissions),
            mtime: Some(mtime),
            uid: Some(self.random.next() as u32),
            ..Default::default()
        };
        let result = self.volume.change_attr(ino, &change);
        if self.fits(result).is_some() {
            let node = self.node(ino);
            if node.mode & mode::TYPE != mode::LINK {
                node.mode = node.mode & mode::TYPE | permissions;
            } else {
                node.mode = mode::LINK | permissions;
            }
        }
    }

    fn fallocate(&mut self, ino: u32) {
        self.touched(ino);
        let size = self.nodes[&ino].data.len();
        let offset = self.random.below(size + 20_000);
        let len = 1 + self.random.below(60_000);
        let block = self.block as usize;
        let modes = [
            0,
            how::KEEP_SIZE,
            how::PUNCH_HOLE | how::KEEP_SIZE,
            how::ZERO_RANGE,
            how::ZERO_RANGE | how::KEEP_SIZE,
            how::COLLAPSE_RANGE,
            how::INSERT_RANGE,
        ];
        let how = modes[self.random.below(modes.len())];
        let (mut offset, mut len) = (offset, len);
        if how == how::COLLAPSE_RANGE || how == how::INSERT_RANGE {
            offset = offset / block * block;
            len = len.next_multiple_of(block);
        }
        if offset + len > self.longest + 100_000 {
            return;
        }
        let result = self.volume.fallocate(ino, offset as u64, len as u64, how);
        if is_full(&result) {
            // Blocks may have been allocated or made unwritten; what is read is known.
            self.full += 1;
            self.rewrite_known(ino);
            return;
        }
        let end = offset + len;
        match how {
            how::COLLAPSE_RANGE if end >= size => {
                assert!(matches!(result, Err(Error::Errno(errno::EINVAL))));
            }
            how::INSERT_RANGE if offset >= size => {
                assert!(matches!(result, Err(Error::Errno(errno::EINVAL))));
            }
            how::COLLAPSE_RANGE => {
                result.unwrap();
                self.node(ino).data.drain(offset..end);
            }
            how::INSERT_RANGE => {
                result.unwrap();
                let zeros = vec![0; len];
                self.node(ino).data.splice(offset..offset, zeros);
            }
            _ => {
                result.unwrap();
                if how & (how::PUNCH_HOLE | how::ZERO_RANGE) != 0 {
                    let to = end.min(size);
                    if offset < to {
                        self.node(ino).data[offset..to].fill(0);
                        // The kernel zeroes what does not make up whole blocks.
                        self.write_back(ino, offset as u64, (offset + 1) as u64, true);
                        self.write_back(ino, to as u64 - 1, to as u64, true);
                    }
                }
                if how & how::KEEP_SIZE == 0 && end > size {
                    self.node(ino).data.resize(end, 0);
                }
            }
        }
    }

    /// Whether `dir` is `ino` or below it.
    fn is_below(&self, ino: u32, dir: u32) -> bool {
        ino == dir
            || self.nodes[&ino]
                .entries
                .values()
                .any(|child| self.is_below(*child, dir))
    }

    fn rename(&mut self) {
        let Some((from, name, ino)) = self.pick_entry() else {
            return;
        };
        let (to, new_name, victim) = match self.random.below(3) {
            0 => match self.pick_entry() {
                Some((dir, name, victim)) => (dir, name, Some(victim)),
                None => return,
            },
            _ => (self.pick_dir(), self.fresh_name(), None),
        };
        let how = match self.random.below(4) {
            0 if victim.is_some() => flag::EXCHANGE,
            1 => flag::NOREPLACE,
            _ => 0,
        };
        let below = self.is_below(ino, to)
            || (how == flag::EXCHANGE && self.is_below(victim.unwrap(), from));
        if below {
            return;
        }
        self.touched(ino);
        let is_dir = |node: &Node| node.mode & mode::TYPE == mode::DIR;
        let result = self.volume.rename(
            (from, &name),
            (to, &new_name),
            how,
            &ext4_volume::names::NewInode::default(),
        );
        if is_full(&result) {
            self.full += 1;
            return;
        }
        let Some(victim) = victim else {
            result.unwrap();
            self.leave(from, &name);
            self.enter(to, &new_name, ino);
            return;
        };
        if how == flag::NOREPLACE {
            assert!(matches!(result, Err(Error::Errno(errno::EEXIST))));
            return;
        }
        if victim == ino {
            return result.unwrap();
        }
        self.touched(victim);
        if how == flag::EXCHANGE {
            result.unwrap();
            self.leave(from, &name);
            self.leave(to, &new_name);
            self.enter(from, &name, victim);
            self.enter(to, &new_name, ino);
            return;
        }
        let (one, other) = (&self.nodes[&ino], &self.nodes[&victim]);
        let want = match (is_dir(one), is_dir(other)) {
            (true, false) => Some(errno::ENOTDIR),
            (false, true) => Some(errno::EISDIR),
            (true, true) if !other.entries.is_empty() => Some(errno::ENOTEMPTY),
            _ => None,
        };
        if let Some(want) = want {
            assert_eq!(result.unwrap_err().errno(), want);
            return;
        }
        result.unwrap();
        self.leave(from, &name);
        self.leave(to, &new_name);
        let node = self.node(victim);
        node.links = if is_dir(node) { 0 } else { node.links - 1 };
        self.enter(to, &new_name, ino);
        self.dropped(victim);
    }

    fn xattr(&mut self) {
        let Some(ino) = self
            .pick(|node| matches!(node.mode & mode::TYPE, mode::REG | mode::DIR) && node.links > 0)
        else {
            return;
        };
        self.touched(ino);
        let name = format!("user.{}", "k".repeat(1 + self.random.below(12))).into_bytes();
        let known = self.nodes[&ino].xattrs.contains_key(&name);
        if self.random.below(3) == 0 {
            let result = self.volume.remove_xattr(ino, &name);
            if !known {
                assert_eq!(result.unwrap_err().errno(), errno::ENODATA);
            } else if self.fits(result).is_some() {
                self.node(ino).xattrs.remove(&name);
            }
            return;
        }
        let len = match self.random.below(4) {
            0 => 0,
            1 => self.random.below(300),
            _ => self.random.below(40),
        };
        let value = self.random.bytes(len);
        let result = self.volume.set_xattr(ino, &name, &value, 0);
        if self.fits(result).is_some() {
            self.node(ino).xattrs.insert(name, value);
        }
    }
}
