// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Plays the kernel: asks a volume for blocks, writes data past it onto the disk, and says so; beside it
//! a model in memory of what all files and directories must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ext4_volume::{
    Error, Volume,
    data::Written,
    disk::Disk,
    error::errno,
    inode::{ROOT, mode},
    map::Target,
    names::NewInode,
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
    /// The size of a block.
    pub block: u64,
    /// No file becomes longer.
    pub longest: usize,
    pub full: usize,
    names: usize,
}

const DIR: u16 = mode::DIR | 0o755;

pub fn is_full<T>(result: &ext4_volume::Result<T>) -> bool {
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

    pub fn pick(&mut self, want: impl Fn(&Node) -> bool) -> Option<u32> {
        let all: Vec<u32> = self
            .nodes
            .iter()
            .filter(|(_, node)| want(node))
            .map(|(ino, _)| *ino)
            .collect();
        (!all.is_empty()).then(|| all[self.random.below(all.len())])
    }

    pub fn pick_dir(&mut self) -> u32 {
        self.pick(|node| node.mode & mode::TYPE == mode::DIR && node.links > 0)
            .unwrap()
    }

    pub fn pick_file(&mut self) -> Option<u32> {
        self.pick(|node| node.mode & mode::TYPE == mode::REG)
    }

    pub fn pick_entry(&mut self) -> Option<(u32, Vec<u8>, u32)> {
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

    pub fn fresh_name(&mut self) -> Vec<u8> {
        self.names += 1;
        let pad = match self.random.below(6) {
            0 => self.random.below(220),
            1 => 0,
            _ => self.random.below(20),
        };
        format!("n{}{}", self.names, "x".repeat(pad)).into_bytes()
    }

    /// Whatever was promised of an inode does not hold from here on.
    pub fn touched(&mut self, ino: u32) {
        let now = self.disk.position();
        for promise in &mut self.promises {
            if promise.ino == ino && promise.until == usize::MAX {
                promise.until = now;
            }
        }
    }

    pub fn node(&mut self, ino: u32) -> &mut Node {
        self.nodes.get_mut(&ino).unwrap()
    }

    /// Unwraps, except that the disk may be full.
    pub fn fits<T>(&mut self, result: ext4_volume::Result<T>) -> Option<T> {
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

    pub fn enter(&mut self, parent: u32, name: &[u8], ino: u32) {
        let is_dir = self.nodes[&ino].mode & mode::TYPE == mode::DIR;
        let node = self.node(parent);
        assert!(node.entries.insert(name.to_vec(), ino).is_none());
        node.links += u32::from(is_dir);
    }

    pub fn leave(&mut self, parent: u32, name: &[u8]) -> u32 {
        let ino = self.node(parent).entries.remove(name).unwrap();
        if self.nodes[&ino].mode & mode::TYPE == mode::DIR {
            self.node(parent).links -= 1;
        }
        ino
    }

    /// The last name may be gone: some stay open, others are forgotten.
    pub fn dropped(&mut self, ino: u32) {
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

    pub fn forget(&mut self, ino: u32) {
        self.nodes.remove(&ino);
        self.unnamed.remove(&ino);
        self.volume.forget(ino, 1).unwrap();
    }

    /// Writes a range of the page cache (that is, of the model) back.
    pub fn write_back(&mut self, ino: u32, from: u64, to: u64, only_mapped: bool) -> bool {
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
                let result = self.volume.data_written(ino, &[written]);
                match self.fits(result) {
                    Some(now) => assert_eq!(now, [size.max(end)]),
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
    pub fn rewrite_known(&mut self, ino: u32) {
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
