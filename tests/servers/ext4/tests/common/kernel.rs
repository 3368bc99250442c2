// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Plays the kernel: asks a volume for blocks, writes data past it onto the disk, and says so; beside it
//! a model in memory of what all files and directories must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ext4_volume::{
    Error, Volume,
    data::{Change, Written},
    disk::Disk,
    error::errno,
    inode::{ROOT, Time, mode},
    map::Target,
    names::NewInode,
    rename::flag,
    resize::mode as how,
};

use super::{disk::MemDisk, random::Random};

/// What an inode must be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub mode: u16,
    pub links: u32,
    pub data: Vec<u8>,
    pub target: Vec<u8>,
    pub entries: BTreeMap<Vec<u8>, u32>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub mtime: Option<Time>,
}

/// Something that fsync promised.
pub struct Promise {
    pub ino: u32,
    pub data: Vec<u8>,
    /// From when on, in events of the disk.
    pub since: usize,
    /// Until when nothing else was allowed to happen to the inode.
    pub until: usize,
}

pub struct Kernel {
    pub volume: Arc<Volume>,
    pub disk: Arc<MemDisk>,
    pub random: Random,
    pub nodes: BTreeMap<u32, Node>,
    pub promises: Vec<Promise>,
    /// Open files without a name.
    pub unnamed: BTreeSet<u32>,
    block: u64,
    /// No file becomes longer.
    pub longest: usize,
    pub full: usize,
    names: usize,
}

const DIR: u16 = mode::DIR | 0o755;
const FILE: u16 = mode::REG | 0o644;

fn is_full<T>(result: &ext4_volume::Result<T>) -> bool {
    matches!(result, Err(Error::Errno(errno::ENOSPC)))
}

impl Kernel {
    pub fn new(disk: Arc<MemDisk>, seed: u64) -> Self {
        let volume = Arc::new(Volume::open_writable(disk.clone()).unwrap());
        let root = Node {
            mode: DIR,
            links: 3,
            ..Default::default()
        };
        let mut kernel = Self {
            block: u64::from(volume.block_size()),
            volume,
            disk,
            random: Random(seed),
            nodes: BTreeMap::from([(ROOT, root)]),
            promises: Vec::new(),
            unnamed: BTreeSet::new(),
            longest: 300_000,
            full: 0,
            names: 0,
        };
        // mke2fs makes one.
        kernel.adopt_lost_and_found();
        kernel
    }

    fn adopt_lost_and_found(&mut self) {
        let root = self.volume.inode(ROOT).unwrap();
        let ino = self.volume.lookup(&root, b"lost+found").unwrap().unwrap();
        let node = Node {
            mode: mode::DIR | 0o700,
            links: 2,
            ..Default::default()
        };
        self.nodes.insert(ino, node);
        let root = self.nodes.get_mut(&ROOT).unwrap();
        root.entries.insert(b"lost+found".to_vec(), ino);
    }

    fn pick(&mut self, want: impl Fn(&Node) -> bool) -> Option<u32> {
        let all: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, node)| want(node))
            .map(|(ino, _)| *ino)
            .collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())])
    }

    fn pick_dir(&mut self) -> u32 {
        self.pick(|node| node.mode & mode::TYPE == mode::DIR && node.links > 0)
            .unwrap()
    }

    fn pick_file(&mut self) -> Option<u32> {
        self.pick(|node| node.mode & mode::TYPE == mode::REG)
    }

    fn pick_entry(&mut self) -> Option<(u32, Vec<u8>, u32)> {
        for _ in 0..10 {
            let dir = self.pick_dir();
            let entries = &self.nodes[&dir].entries;
            if !entries.is_empty() {
                let at = self.random.below(entries.len());
                let (name, ino) = self.nodes[&dir].entries.iter().nth(at).unwrap();
                if name != b"lost+found" {
                    return Some((dir, name.clone(), *ino));
                }
            }
        }
        None
    }

    fn fresh_name(&mut self) -> Vec<u8> {
        self.names += 1;
        let pad = match self.random.below(6) {
            0 => self.random.below(220),
            1 => 0,
            _ => self.random.below(20),
        };
        format!("n{}{}", self.names, "x".repeat(pad)).into_bytes()
    }

    /// Whatever was promised of an inode does not hold from here on.
    fn touched(&mut self, ino: u32) {
        let now = self.disk.position();
        for promise in &mut self.promises {
            if promise.ino == ino && promise.until == usize::MAX {
                promise.until = now;
            }
        }
    }

    fn node(&mut self, ino: u32) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    /// Unwraps, except that the disk may be full.
    fn fits<T>(&mut self, result: ext4_volume::Result<T>) -> Option<T> {
        if is_full(&result) {
            self.full += 1;
            return None;
        }
        Some(result.unwrap())
    }

    pub fn create(&mut self, parent: u32, name: &[u8], mode: u16) -> Option<u32> {
        let new = NewInode {
            mode,
            uid: 1000,
            gid: 100,
            rdev: 0x1234,
            ..Default::default()
        };
        let result = self.volume.create(parent, name, &new);
        let ino = self.fits(result)?;
        self.volume.remember(ino);
        let is_dir = mode & mode::TYPE == mode::DIR;
        let node = Node {
            mode,
            links: if is_dir { 2 } else { 1 },
            ..Default::default()
        };
        assert!(
            self.nodes.insert(ino, node).is_none(),
            "inode {ino} was in use"
        );
        self.enter(parent, name, ino);
        Some(ino)
    }

    fn enter(&mut self, parent: u32, name: &[u8], ino: u32) {
        let is_dir = self.nodes[&ino].mode & mode::TYPE == mode::DIR;
        let node = self.node(parent);
        assert!(node.entries.insert(name.to_vec(), ino).is_none());
        node.links += u32::from(is_dir);
    }

    fn leave(&mut self, parent: u32, name: &[u8]) -> u32 {
        let ino = self.node(parent).entries.remove(name).unwrap();
        if self.nodes[&ino].mode & mode::TYPE == mode::DIR {
            self.node(parent).links -= 1;
        }
        ino
    }

    /// The last name may be gone: some stay open, others are forgotten.
    fn dropped(&mut self, ino: u32) {
        if self.nodes[&ino].links > 0 {
            return;
        }
        let is_file = self.nodes[&ino].mode & mode::TYPE == mode::REG;
        if is_file && self.random.below(3) == 0 {
            self.unnamed.insert(ino);
        } else {
            self.forget(ino);
        }
    }

    fn forget(&mut self, ino: u32) {
        self.nodes.remove(&ino);
        self.unnamed.remove(&ino);
        self.volume.forget(ino, 1).unwrap();
    }

    /// Writes a range of the page cache (that is, of the model) back.
    fn write_back(&mut self, ino: u32, from: u64, to: u64, only_mapped: bool) -> bool {
        let data = self.nodes[&ino].data.clone();
        let mut at = from / self.block;
        let end = to.div_ceil(self.block);
        while at < end {
            let run = if only_mapped {
                let inode = self.volume.inode(ino).unwrap();
                self.volume.run(&inode, at, end).unwrap()
            } else {
                let result = self.volume.blocks_for_write(ino, at, end, true);
                match self.fits(result) {
                    Some(run) => run,
                    None => return false,
                }
            };
            assert!(run.start == at && run.len > 0);
            let stop = run.end().min(end);
            let (start, unwritten) = match run.target {
                Target::Mapped(start) => (start, false),
                Target::Unwritten(start) => (start, true),
                Target::Hole => {
                    assert!(only_mapped);
                    at = stop;
                    continue;
                }
            };
            if !(unwritten && only_mapped) {
                let (first, last) = (at * self.block, stop * self.block);
                let mut bytes = vec![0; (last - first) as usize];
                let have = (data.len() as u64).clamp(first, last) - first;
                bytes[..have as usize]
                    .copy_from_slice(&data[first as usize..(first + have) as usize]);
                self.disk.write_at(start * self.block, &bytes).unwrap();
                let size = {
                    let inode = self.volume.inode(ino).unwrap();
                    self.volume.size(&inode)
                };
                let pos = first.max(from);
                let end = last.min(data.len() as u64);
                let written = Written {
                    pos,
                    len: end - pos,
                    unwritten,
                    append: end > size,
                };
                let result = self.volume.data_written(ino, &written);
                match self.fits(result) {
                    Some(now) => assert_eq!(now, size.max(end)),
                    None => return false,
                }
            }
            at = stop;
        }
        true
    }

    pub fn write(&mut self, ino: u32, offset: usize, len: usize) {
        self.touched(ino);
        let bytes = self.random.bytes(len);
        let old = self.nodes[&ino].data.clone();
        let node = self.node(ino);
        if node.data.len() < offset + len {
            node.data.resize(offset + len, 0);
        }
        node.data[offset..offset + len].copy_from_slice(&bytes);
        if !self.write_back(ino, offset as u64, (offset + len) as u64, false) {
            // Some of it may have arrived. Nothing is known of this file but its size.
            let size = {
                let inode = self.volume.inode(ino).unwrap();
                self.volume.size(&inode) as usize
            };
            self.node(ino).data = old;
            self.node(ino).data.resize(size, 0);
            self.rewrite_known(ino);
        }
    }

    /// After a failed write: takes over what is on the disk.
    fn rewrite_known(&mut self, ino: u32) {
        let inode = self.volume.inode(ino).unwrap();
        let mut data = vec![0; self.nodes[&ino].data.len()];
        self.volume.read(&inode, 0, &mut data).unwrap();
        self.node(ino).data = data;
    }

    pub fn truncate(&mut self, ino: u32, size: usize) {
        self.touched(ino);
        let old = self.nodes[&ino].data.len();
        self.node(ino).data.resize(size, 0);
        if size < old && !(size as u64).is_multiple_of(self.block) {
            let end = (size as u64).next_multiple_of(self.block);
            let mut zeroed = self.nodes[&ino].data.clone();
            zeroed.resize(end as usize, 0);
            let cut = std::mem::replace(&mut self.node(ino).data, zeroed);
            self.write_back(
                ino,
                size as u64 / self.block * self.block,
                (end).min(old as u64),
                true,
            );
            self.node(ino).data = cut;
        }
        self.volume.truncate(ino, size as u64).unwrap();
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

    pub fn unlink(&mut self, parent: u32, name: &[u8], ino: u32) {
        self.touched(ino);
        let is_dir = self.nodes[&ino].mode & mode::TYPE == mode::DIR;
        if is_dir {
            if !self.nodes[&ino].entries.is_empty() {
                let result = self.volume.rmdir(parent, name);
                assert!(matches!(result, Err(Error::Errno(errno::ENOTEMPTY))));
                return;
            }
            let result = self.volume.rmdir(parent, name);
            if self.fits(result).is_none() {
                return;
            }
            self.leave(parent, name);
            self.node(ino).links = 0;
        } else {
            let result = self.volume.unlink(parent, name);
            if self.fits(result).is_none() {
                return;
            }
            self.leave(parent, name);
            self.node(ino).links -= 1;
        }
        self.dropped(ino);
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
        let result = self.volume.rename((from, &name), (to, &new_name), how);
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

    pub fn fsync(&mut self, ino: u32) {
        self.volume.sync_inode(ino).unwrap();
        let since = self.disk.position();
        let data = self.nodes[&ino].data.clone();
        if self.nodes[&ino].links > 0 {
            self.promises.push(Promise {
                ino,
                data,
                since,
                until: usize::MAX,
            });
        }
    }

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

    /// All that a volume says must be what the model says.
    pub fn compare(&self, volume: &Volume) {
        for (ino, node) in &self.nodes {
            let inode = volume
                .inode(*ino)
                .unwrap_or_else(|err| panic!("inode {ino}: {err}"));
            let attr = volume.attr(&inode);
            assert_eq!(attr.mode, node.mode, "mode of {ino}");
            assert_eq!(attr.nlink, node.links, "links of {ino}");
            if inode.is_regular() {
                assert_eq!(attr.size, node.data.len() as u64, "size of {ino}");
                let mut data = vec![0; node.data.len()];
                volume.read(&inode, 0, &mut data).unwrap();
                if data != node.data {
                    let at = data.iter().zip(&node.data).position(|(a, b)| a != b);
                    panic!("data of {ino} differs at {at:?} of {}", data.len());
                }
            }
            if inode.is_symlink() {
                assert_eq!(volume.read_link(&inode).unwrap(), node.target);
            }
            if inode.is_dir() {
                let mut entries = BTreeMap::new();
                volume
                    .read_dir(&inode, 0, |entry| {
                        if !matches!(entry.name, b"." | b"..") {
                            entries.insert(entry.name.to_vec(), entry.ino);
                        }
                        Ok(None::<()>)
                    })
                    .unwrap();
                assert_eq!(entries, node.entries, "entries of {ino}");
                for (name, child) in &node.entries {
                    let found = volume.lookup(&inode, name).unwrap();
                    assert_eq!(found, Some(*child), "{}", String::from_utf8_lossy(name));
                }
            }
            let names = volume.xattr_names(&inode, true).unwrap();
            let xattrs: BTreeMap<_, _> = names
                .into_iter()
                .map(|name| {
                    let value = volume.xattr(&inode, &name).unwrap();
                    (name, value)
                })
                .collect();
            assert_eq!(xattrs, node.xattrs, "attributes of {ino}");
        }
    }

    /// Forgets all open files without a name, as at unmount.
    pub fn close_all(&mut self) {
        for ino in self.unnamed.clone() {
            self.nodes.remove(&ino);
        }
        self.unnamed.clear();
    }
}
