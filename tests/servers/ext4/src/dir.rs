// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Directories: linear, hashed and inline.
//!
//! Walking through one is in the order of its blocks, which needs no hash; a position is then the byte
//! offset of the next entry. Look-ups go through the hash tree, and so does what users list
//! (`listing`), because there positions have to stay valid while the directory changes.

use std::sync::Arc;

use fs_ext4::{
    hash::{self, HashVersion},
    htree::{self, DxEntry},
};

use crate::{
    device::Block,
    error::{Error, Result, corrupt, errno},
    features::{compat, incompat},
    inode::{Inode, flags, le16, le32},
    map::{Run, Target},
    volume::Volume,
};

/// The longest name.
pub const NAME_MAX: usize = 255;

/// One entry, borrowed from its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// The inode it names.
    pub ino: u32,
    /// Its name.
    pub name: &'a [u8],
    /// The type as `d_type` has it; 0 if the volume does not record types.
    pub kind: u8,
    /// The position behind this entry.
    pub next: u64,
}

/// The file types of directory entries as `DT_*` values.
const DT: [u8; 8] = [0, 8, 4, 2, 6, 1, 12, 10];
const DT_DIR: u8 = 4;

/// Walks the records of one block, or of a part of an inline directory.
pub(crate) struct Records<'a> {
    bytes: &'a [u8],
    at: usize,
    has_types: bool,
    max_ino: u32,
    dir: u32,
}

impl<'a> Records<'a> {
    /// The next record that is in use, with the offset behind it.
    pub(crate) fn next(&mut self) -> Result<Option<(DirEntry<'a>, usize)>> {
        while self.at < self.bytes.len() {
            let left = self.bytes.len() - self.at;
            let head = self.at;
            let ino = le32(self.bytes, head);
            let len = record_len(le16(self.bytes, head + 4), self.bytes.len());
            let name_len = usize::from(self.bytes.get(head + 6).copied().unwrap_or(0));
            let kind = self.bytes.get(head + 7).copied().unwrap_or(0);
            if left < 8 || len < 8 || !len.is_multiple_of(4) || len > left || 8 + name_len > len {
                return corrupt(format!("directory {}: record at {head}", self.dir));
            }
            self.at += len;
            if ino == 0 {
                // Free space, an inner node of the hash tree, or the checksum.
                continue;
            }
            let name = &self.bytes[head + 8..head + 8 + name_len];
            if ino > self.max_ino || name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                return corrupt(format!("directory {}: entry at {head}", self.dir));
            }
            let kind = if self.has_types {
                DT.get(usize::from(kind)).copied().unwrap_or(0)
            } else {
                0
            };
            return Ok(Some((
                DirEntry {
                    ino,
                    name,
                    kind,
                    next: 0,
                },
                self.at,
            )));
        }
        Ok(None)
    }
}

/// A record length as stored; in blocks of 64 KiB two values mean "all of it".
pub(crate) fn record_len(stored: u16, block: usize) -> usize {
    match stored {
        0 | 0xffff if block == 65536 => block,
        other => usize::from(other),
    }
}

/// Whether `block` is an inner node of the hash tree, hidden behind one empty record.
pub(crate) fn is_inner_node(block: &[u8]) -> bool {
    le32(block, 0) == 0 && record_len(le16(block, 4), block.len()) == block.len()
}

const TAG_DIR: u64 = 3 << 60;

/// One node on a path through the hash tree: its entries and the one that was taken.
pub(crate) struct Level {
    /// The block of the directory that it is in.
    pub block: u32,
    pub entries: Vec<DxEntry>,
    pub at: usize,
}

/// A path through the hash tree.
pub(crate) struct HashPath {
    /// From the root down.
    pub levels: Vec<Level>,
    /// How names are hashed.
    pub version: HashVersion,
    /// The hash of the name that was looked for.
    pub wanted: u32,
}

impl Volume {
    pub(crate) fn records<'a>(&self, bytes: &'a [u8], at: usize, dir: u32) -> Records<'a> {
        let has_types = self.sb.feature_incompat & incompat::FILETYPE != 0;
        Records {
            bytes,
            at,
            has_types,
            max_ino: self.sb.inodes_count,
            dir,
        }
    }

    /// Reads block `index` of a directory and checks it; `None` is a hole. `run` remembers the last
    /// answer of the block map.
    pub(crate) fn dir_block(
        &self,
        dir: &Inode,
        index: u64,
        run: &mut Option<Run>,
    ) -> Result<Option<Arc<Block>>> {
        if !run.is_some_and(|run| (run.start..run.end()).contains(&index)) {
            *run = Some(self.run(dir, index, index + 1)?);
        }
        let Some(found) = *run else { return Ok(None) };
        let at = match found.target {
            Target::Mapped(at) => at + (index - found.start),
            Target::Hole => return Ok(None),
            Target::Unwritten(_) => {
                return corrupt(format!(
                    "directory {}: block {index} is unwritten",
                    dir.ino()
                ));
            }
        };
        let block = self.device.block(at)?;
        if self.csum.enabled {
            let tag = TAG_DIR | u64::from(index == 0) << 32 | u64::from(dir.ino());
            block.checked_once(tag, |bytes| self.check_dir_block(dir, index, bytes))?;
        }
        Ok(Some(block))
    }

    fn check_dir_block(&self, dir: &Inode, index: u64, bytes: &[u8]) -> Result<()> {
        let (ino, generation) = (dir.ino(), dir.generation());
        let hashed = dir.flags() & flags::INDEX != 0;
        let count_at = match index {
            0 if hashed => Some(32),
            _ if hashed && is_inner_node(bytes) => Some(8),
            _ => None,
        };
        let good = match count_at {
            Some(at) => self.csum.verify_dx_tail(ino, generation, bytes, at) == Some(true),
            None => {
                fs_ext4::dir::has_csum_tail(bytes)
                    && self.csum.verify_dir_entry_tail(ino, generation, bytes)
            }
        };
        if good {
            Ok(())
        } else {
            Err(Error::Checksum(format!("directory {ino}, block {index}")))
        }
    }

    /// Calls `visit` for each entry from byte `from` on, `.` and `..` included, until it returns a
    /// value. Positions change with the directory.
    pub(crate) fn walk_dir<T>(
        &self,
        dir: &Inode,
        from: u64,
        mut visit: impl FnMut(DirEntry<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if !dir.is_dir() {
            return Err(Error::Errno(errno::ENOTDIR));
        }
        if dir.is_inline() {
            return self.read_inline_dir(dir, from, visit);
        }
        let block_size = u64::from(self.block_size());
        let size = self.size(dir);
        let mut run = None;
        let mut index = from / block_size;
        while index.saturating_mul(block_size) < size {
            let start = index * block_size;
            if let Some(block) = self.dir_block(dir, index, &mut run)? {
                let mut records = self.records(block.bytes(), 0, dir.ino());
                while let Some((entry, end)) = records.next()? {
                    let next = start + end as u64;
                    // A position may be in the middle of a block, and after lseek(2) anywhere.
                    if next > from
                        && let Some(value) = visit(DirEntry { next, ..entry })?
                    {
                        return Ok(Some(value));
                    }
                }
                index += 1;
            } else {
                index = run.map_or(index + 1, |run| run.end());
            }
        }
        Ok(None)
    }

    /// An inline directory has no records for `.` and `..`: its first four bytes are the parent.
    /// Positions 1 and 2 are behind those two, all others count bytes of the contents.
    fn read_inline_dir<T>(
        &self,
        dir: &Inode,
        from: u64,
        mut visit: impl FnMut(DirEntry<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let data = self.inline_data(dir)?;
        let parent = le32(&data, 0);
        if data.len() < 4 || parent == 0 || parent > self.sb.inodes_count {
            return corrupt(format!("directory {}: parent", dir.ino()));
        }
        for (ino, name, next) in [(dir.ino(), &b"."[..], 1), (parent, b"..", 2)] {
            if next > from
                && let Some(value) = visit(DirEntry {
                    ino,
                    name,
                    kind: DT_DIR,
                    next,
                })?
            {
                return Ok(Some(value));
            }
        }
        // Records do not cross from i_block into the attribute that holds the rest.
        let split = data.len().min(60);
        for (start, part) in [(4, &data[4..split]), (split, &data[split..])] {
            let mut records = self.records(part, 0, dir.ino());
            while let Some((entry, end)) = records.next()? {
                let next = (start + end) as u64;
                if next > from
                    && let Some(value) = visit(DirEntry { next, ..entry })?
                {
                    return Ok(Some(value));
                }
            }
        }
        Ok(None)
    }

    /// Finds `name` in a directory.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        Ok(self.find_name(dir, name)?.map(|(ino, _)| ino))
    }

    /// Finds `name` in a directory: its inode, and the block of the directory that it is in.
    pub(crate) fn find_name(&self, dir: &Inode, name: &[u8]) -> Result<Option<(u32, u64)>> {
        if !dir.is_dir() {
            return Err(Error::Errno(errno::ENOTDIR));
        }
        if name.len() > NAME_MAX {
            return Err(Error::Errno(errno::ENAMETOOLONG));
        }
        let hashed = dir.flags() & flags::INDEX != 0
            && self.sb.feature_compat & compat::DIR_INDEX != 0
            && !dir.is_inline()
            && name != b"."
            && name != b"..";
        if hashed {
            match self.lookup_hashed(dir, name) {
                // Without checksums a damaged index does not condemn the entries, which are still
                // there for a walk; the kernel does the same.
                Err(Error::Corrupt(_)) if !self.csum.enabled => {}
                other => return other,
            }
        }
        // The position behind an entry may be the beginning of the next block, but not that of the entry.
        let block_size = u64::from(self.block_size());
        self.walk_dir(dir, 0, |entry| {
            let block = entry.next.saturating_sub(1) / block_size;
            Ok((entry.name == name).then_some((entry.ino, block)))
        })
    }

    /// Reads the node at directory block `index` of the hash tree.
    fn hash_node(&self, dir: &Inode, index: u32, run: &mut Option<Run>) -> Result<Vec<DxEntry>> {
        let block = self.dir_block(dir, u64::from(index), run)?;
        let Some(block) = block else {
            return corrupt(format!("directory {}: index has a hole", dir.ino()));
        };
        if !is_inner_node(block.bytes()) {
            return corrupt(format!("directory {}: index node {index}", dir.ino()));
        }
        Ok(htree::parse_node_entries(block.bytes())?.1)
    }

    /// Walks down the hash tree to the leaf for `name`.
    pub(crate) fn hash_path(
        &self,
        dir: &Inode,
        name: &[u8],
        run: &mut Option<Run>,
    ) -> Result<HashPath> {
        let hash = |version| hash::name_hash(name, version, &self.sb.hash_seed).major;
        self.hash_path_to(dir, hash, run)
    }

    /// Walks down to the leaf for a hash, which `wanted` knows once it is told how to.
    pub(crate) fn hash_path_to(
        &self,
        dir: &Inode,
        wanted: impl FnOnce(HashVersion) -> u32,
        run: &mut Option<Run>,
    ) -> Result<HashPath> {
        let ino = dir.ino();
        let Some(root) = self.dir_block(dir, 0, run)? else {
            return corrupt(format!("directory {ino}: no index root"));
        };
        let info = htree::parse_root_info(root.bytes())?;
        let deepest = if self.sb.feature_incompat & incompat::LARGEDIR != 0 {
            2
        } else {
            1
        };
        if info.info_length != 8 || info.unused_flags & 1 != 0 || info.indirect_levels > deepest {
            return corrupt(format!("directory {ino}: index root"));
        }
        let entries = htree::parse_root_entries(root.bytes())?.1;
        let version = self.hash_version(info.hash_version);
        let wanted = wanted(version);

        let mut levels = vec![Level {
            block: 0,
            at: position(&entries, wanted),
            entries,
        }];
        while levels.len() <= usize::from(info.indirect_levels) {
            let Some(child) = levels.last().and_then(Level::child) else {
                break;
            };
            let entries = self.hash_node(dir, child, run)?;
            levels.push(Level {
                block: child,
                at: position(&entries, wanted),
                entries,
            });
        }
        Ok(HashPath {
            levels,
            version,
            wanted,
        })
    }

    fn lookup_hashed(&self, dir: &Inode, name: &[u8]) -> Result<Option<(u32, u64)>> {
        let ino = dir.ino();
        let mut run = None;
        let HashPath {
            levels: mut path,
            wanted,
            ..
        } = self.hash_path(dir, name, &mut run)?;
        loop {
            let Some(leaf) = path.last().and_then(Level::child) else {
                return corrupt(format!("directory {ino}: empty index"));
            };
            let Some(block) = self.dir_block(dir, u64::from(leaf), &mut run)? else {
                return corrupt(format!("directory {ino}: index points into a hole"));
            };
            let mut records = self.records(block.bytes(), 0, ino);
            while let Some((entry, _)) = records.next()? {
                if entry.name == name {
                    return Ok(Some((entry.ino, u64::from(leaf))));
                }
            }
            // Names with one hash may fill more than one leaf; the next one then says so in the
            // lowest bit of its own hash.
            if !self.next_leaf(dir, &mut path, wanted, &mut run)? {
                return Ok(None);
            }
        }
    }

    /// Goes on to the next leaf if it may have names with that hash.
    fn next_leaf(
        &self,
        dir: &Inode,
        path: &mut [Level],
        wanted: u32,
        run: &mut Option<Run>,
    ) -> Result<bool> {
        let next = path
            .iter()
            .rev()
            .find_map(|level| level.entries.get(level.at + 1));
        match next {
            Some(next) if next.hash & 1 != 0 && next.hash & !1 == wanted => {
                Ok(self.step(dir, path, run)?.is_some())
            }
            _ => Ok(false),
        }
    }

    /// Goes on to the next leaf, and returns the hash from which its names are.
    pub(crate) fn step(
        &self,
        dir: &Inode,
        path: &mut [Level],
        run: &mut Option<Run>,
    ) -> Result<Option<u32>> {
        let Some(level) = path
            .iter()
            .rposition(|level| level.at + 1 < level.entries.len())
        else {
            return Ok(None);
        };
        path[level].at += 1;
        let hash = path[level].entries[path[level].at].hash;
        for below in level + 1..path.len() {
            let Some(child) = path[below - 1].child() else {
                return Ok(None);
            };
            path[below] = Level {
                block: child,
                entries: self.hash_node(dir, child, run)?,
                at: 0,
            };
        }
        Ok(Some(hash))
    }

    /// The hash a directory uses: its own, with the volume's idea of the signedness of `char`.
    pub(crate) fn hash_version(&self, stored: HashVersion) -> HashVersion {
        hash::effective_version(stored, self.sb.unsigned_hash())
    }
}

impl Level {
    /// The directory block below. The upper bits of the number are reserved.
    pub(crate) fn child(&self) -> Option<u32> {
        self.entries
            .get(self.at)
            .map(|entry| entry.block & 0x0fff_ffff)
    }
}

/// The last entry whose range begins at or before `hash`; the first entry begins at 0.
fn position(entries: &[DxEntry], hash: u32) -> usize {
    let after = entries
        .get(1..)
        .unwrap_or(&[])
        .partition_point(|entry| entry.hash <= hash);
    after.min(entries.len().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(hashes: &[u32]) -> Vec<DxEntry> {
        hashes
            .iter()
            .map(|hash| DxEntry {
                hash: *hash,
                block: 1,
            })
            .collect()
    }

    #[test]
    fn the_right_range_is_taken() {
        let table = entries(&[0, 10, 20, 30]);
        for (hash, want) in [(0, 0), (9, 0), (10, 1), (29, 2), (30, 3), (u32::MAX, 3)] {
            assert_eq!(position(&table, hash), want, "hash {hash}");
        }
        assert_eq!(position(&entries(&[0]), 7), 0);
        assert_eq!(position(&[], 7), 0);
    }

    #[test]
    fn record_lengths_of_the_largest_blocks() {
        assert_eq!(record_len(0xffff, 65536), 65536);
        assert_eq!(record_len(0, 65536), 65536);
        assert_eq!(record_len(0, 4096), 0);
        assert_eq!(record_len(12, 4096), 12);
    }
}
