// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Adding to hashed directories: leaves that are full are split by hash, the index grows by nodes and,
//! once, by a level. That is as deep as ext4 goes without `large_dir`.

use fs_ext4::{hash, htree::DxEntry};

use crate::{
    dir::{HashPath, is_inner_node},
    dirs::{
        NewEntry, Place, find_space, name_at, needed, places, put_entry, put_len, put_record,
        put16, put32,
    },
    error::{Result, corrupt, errno, refuse},
    inode::{Inode, flags, le32},
    txn::Txn,
    volume::Volume,
};

/// Where the counters, and with them the entries, begin: in the root, and in other nodes.
const ROOT_AT: usize = 32;
const NODE_AT: usize = 8;
const ENTRY: usize = 8;
const TAIL: usize = 8;
/// Levels of index below the root.
const DEEPEST: usize = 1;
/// A new entry needs at most: a level, a node, a leaf, and the leaf again.
const ROUNDS: usize = 12;

impl Volume {
    fn index_limit(&self, at: usize) -> usize {
        let tail = if self.csum.enabled { TAIL } else { 0 };
        (self.block_size() as usize - at - tail) / ENTRY
    }

    /// Renews the checksum of a directory block, whatever it is.
    pub(crate) fn seal_dir_block(&self, dir: &Inode, index: u64, bytes: &mut [u8]) {
        let (ino, generation) = (dir.ino(), dir.generation());
        let hashed = dir.flags() & flags::INDEX != 0;
        match index {
            0 if hashed => self.csum.patch_dx_tail(ino, generation, bytes, ROOT_AT),
            _ if hashed && is_inner_node(bytes) => {
                self.csum.patch_dx_tail(ino, generation, bytes, NODE_AT)
            }
            _ => self.csum.patch_dir_entry_tail(ino, generation, bytes),
        };
    }
}

/// Writes the counters and entries of an index node.
fn put_index(bytes: &mut [u8], at: usize, limit: usize, entries: &[DxEntry]) {
    for (number, entry) in entries.iter().enumerate() {
        let place = at + number * ENTRY;
        put32(bytes, place, entry.hash);
        put32(bytes, place + 4, entry.block);
    }
    // The counters take the place of the first hash, which is always zero.
    put16(bytes, at, limit as u16);
    put16(bytes, at + 2, entries.len() as u16);
}

/// A record of a leaf that is being split.
struct Named {
    place: Place,
    hash: u32,
}

impl Txn<'_> {
    /// Gives a directory of one block an index: its entries move into a second block.
    pub fn make_hashed(&mut self, dir: u32) -> Result<()> {
        let parsed = self.vol.any_inode(dir)?;
        let (block_size, end) = (self.vol.block_size() as usize, self.vol.dir_end());
        let Some(block) = self.vol.dir_block(&parsed, 0, &mut None)? else {
            return corrupt(format!("directory {dir}: no first block"));
        };
        let old = block.bytes();
        let all = places(old, end, dir)?;
        let (Some(own), Some(parent)) = (all.first(), all.get(1)) else {
            return corrupt(format!("directory {dir}: no entries for itself"));
        };
        if name_at(old, own.at) != b"." || name_at(old, parent.at) != b".." {
            return corrupt(format!("directory {dir}: its first entries are others"));
        }
        let parent_ino = le32(old, parent.at);
        let leaf = self.pack(old, &all[2..]);

        let mut root = vec![0; block_size];
        let kind = self.vol.type_byte(crate::inode::mode::DIR);
        let first = needed(1);
        put_record(&mut root, 0, first, dir, b".", kind);
        put_record(
            &mut root,
            first,
            block_size - first,
            parent_ino,
            b"..",
            kind,
        );
        root[28] = self.vol.sb.default_hash_version;
        root[29] = 8;
        let entries = [DxEntry { hash: 0, block: 1 }];
        put_index(&mut root, ROOT_AT, self.vol.index_limit(ROOT_AT), &entries);

        drop(block);
        self.append_dir_block(dir, leaf)?;
        let mut edit = self.edit(dir)?;
        edit.set_flags(edit.flags() | flags::INDEX);
        self.store(&mut edit)?;
        let parsed = self.vol.any_inode(dir)?;
        self.change_dir_block(&parsed, 0, |bytes| bytes.copy_from_slice(&root))
    }

    /// A leaf with these records of `old`, side by side.
    fn pack(&self, old: &[u8], records: &[Place]) -> Vec<u8> {
        let end = self.vol.dir_end();
        let mut bytes = self.vol.empty_dir_block();
        let mut at = 0;
        let mut last = 0;
        for place in records.iter().filter(|place| place.used > 0) {
            let Some(source) = old.get(place.at..place.at + place.used) else {
                continue;
            };
            bytes[at..at + place.used].copy_from_slice(source);
            put_len(&mut bytes, at, place.used);
            last = at;
            at += place.used;
        }
        put_len(&mut bytes, last, end - last);
        bytes
    }

    /// Adds an entry to a hashed directory.
    pub fn add_hashed(&mut self, dir: u32, entry: NewEntry<'_>) -> Result<()> {
        let end = self.vol.dir_end();
        let need = needed(entry.name.len());
        for _ in 0..ROUNDS {
            let parsed = self.vol.any_inode(dir)?;
            let mut run = None;
            let path = self.vol.hash_path(&parsed, entry.name, &mut run)?;
            let Some(leaf) = path.levels.last().and_then(|level| level.child()) else {
                return corrupt(format!("directory {dir}: empty index"));
            };
            let leaf = u64::from(leaf);
            let Some(block) = self.vol.dir_block(&parsed, leaf, &mut run)? else {
                return corrupt(format!("directory {dir}: index points into a hole"));
            };
            let space = find_space(block.bytes(), end, need, dir)?;
            drop(block);
            if let Some(place) = space {
                let kind = self.vol.type_byte(entry.mode);
                return self.change_dir_block(&parsed, leaf, |bytes| {
                    put_entry(bytes, place, entry.ino, entry.name, kind);
                });
            }
            if !self.make_index_room(&parsed, &path)? {
                self.split_leaf(&parsed, path, leaf, need)?;
            }
        }
        corrupt(format!("directory {dir}: its index does not grow"))
    }

    /// Whether the index had to be changed so that one more leaf fits in. The path is then outdated.
    fn make_index_room(&mut self, dir: &Inode, path: &HashPath) -> Result<bool> {
        let (Some(root), Some(bottom)) = (path.levels.first(), path.levels.last()) else {
            return corrupt(format!("directory {}: empty index", dir.ino()));
        };
        let (root_limit, node_limit) =
            (self.vol.index_limit(ROOT_AT), self.vol.index_limit(NODE_AT));
        if path.levels.len() == 1 {
            if root.entries.len() < root_limit {
                return Ok(false);
            }
            // All entries of the root move into a node of their own, which has a little more room.
            let node = self.new_index_node(dir, &root.entries)?;
            let dir = self.vol.any_inode(dir.ino())?;
            let entries = [DxEntry {
                hash: 0,
                block: node,
            }];
            self.change_dir_block(&dir, 0, |bytes| {
                bytes[30] = DEEPEST as u8;
                put_index(bytes, ROOT_AT, root_limit, &entries);
            })?;
            return Ok(true);
        }
        if bottom.entries.len() < node_limit {
            return Ok(false);
        }
        if root.entries.len() >= root_limit {
            // As in the kernel: a directory can have this many names and no more.
            return refuse(errno::ENOSPC);
        }
        let (lower, upper) = bottom.entries.split_at(bottom.entries.len() / 2);
        let Some(begins) = upper.first().map(|entry| entry.hash) else {
            return corrupt(format!("directory {}: empty index node", dir.ino()));
        };
        let node = self.new_index_node(dir, upper)?;
        let dir = self.vol.any_inode(dir.ino())?;
        self.change_dir_block(&dir, u64::from(bottom.block), |bytes| {
            put_index(bytes, NODE_AT, node_limit, lower);
        })?;
        let mut entries = root.entries.clone();
        let fresh = DxEntry {
            hash: begins,
            block: node,
        };
        entries.insert(root.at + 1, fresh);
        self.change_dir_block(&dir, 0, |bytes| {
            put_index(bytes, ROOT_AT, root_limit, &entries);
        })?;
        Ok(true)
    }

    fn new_index_node(&mut self, dir: &Inode, entries: &[DxEntry]) -> Result<u32> {
        let mut bytes = vec![0; self.vol.block_size() as usize];
        let len = bytes.len();
        put_len(&mut bytes, 0, len);
        put_index(&mut bytes, NODE_AT, self.vol.index_limit(NODE_AT), entries);
        Ok(self.append_dir_block(dir.ino(), bytes)? as u32)
    }

    /// Moves the upper half of a full leaf's entries, by hash, into a new leaf.
    fn split_leaf(&mut self, dir: &Inode, path: HashPath, leaf: u64, need: usize) -> Result<()> {
        let (ino, end) = (dir.ino(), self.vol.dir_end());
        let Some(block) = self.vol.dir_block(dir, leaf, &mut None)? else {
            return corrupt(format!("directory {ino}: index points into a hole"));
        };
        let old = block.bytes();
        let seed = &self.vol.sb.hash_seed;
        let mut named: Vec<Named> = places(old, end, ino)?
            .into_iter()
            .filter(|place| place.used > 0)
            .map(|place| Named {
                place,
                hash: hash::name_hash(name_at(old, place.at), path.version, seed).major,
            })
            .collect();
        named.sort_by_key(|entry| entry.hash);
        // Halves by size, not by number.
        let mut size = 0;
        let mut split = named.len();
        while split > 1 && size < end / 2 {
            split -= 1;
            size += named[split].place.used;
        }
        let (Some(upper), Some(below)) = (named.get(split), split.checked_sub(1)) else {
            return corrupt(format!("directory {ino}: a full leaf has one entry"));
        };
        // The lowest bit says that names with this hash are in the leaf before as well.
        let begins = upper.hash | u32::from(upper.hash == named[below].hash);
        let moved: Vec<Place> = named[split..].iter().map(|entry| entry.place).collect();
        let mut kept: Vec<Place> = named[..split].iter().map(|entry| entry.place).collect();
        kept.sort_by_key(|place| place.at);
        let fresh = self.pack(old, &moved);
        // Entries that stay keep their position if there is room between them, so that nobody who is
        // just listing the directory misses them.
        let mut rest = self.thin_out(old, &kept);
        if find_space(&rest, end, need, ino)?.is_none() {
            rest = self.pack(old, &kept);
        }
        drop(block);

        let number = self.append_dir_block(ino, fresh)? as u32;
        let dir = self.vol.any_inode(ino)?;
        self.change_dir_block(&dir, leaf, |bytes| {
            bytes[..end].copy_from_slice(&rest[..end]);
        })?;
        let Some(bottom) = path.levels.last() else {
            return corrupt(format!("directory {ino}: empty index"));
        };
        let mut entries = bottom.entries.clone();
        let entry = DxEntry {
            hash: begins,
            block: number,
        };
        entries.insert(bottom.at + 1, entry);
        let at = if path.levels.len() == 1 {
            ROOT_AT
        } else {
            NODE_AT
        };
        let limit = self.vol.index_limit(at);
        self.change_dir_block(&dir, u64::from(bottom.block), |bytes| {
            put_index(bytes, at, limit, &entries);
        })
    }

    /// A leaf with only these records, where they were.
    fn thin_out(&self, old: &[u8], kept: &[Place]) -> Vec<u8> {
        let end = self.vol.dir_end();
        let mut bytes = old.to_vec();
        let starts = kept.iter().map(|place| place.at);
        let mut at = 0;
        if kept.first().is_none_or(|place| place.at > 0) {
            bytes[..needed(0)].fill(0);
        }
        for next in starts.chain([end]) {
            if next > at {
                put_len(&mut bytes, at, next - at);
                at = next;
            }
        }
        bytes
    }
}
