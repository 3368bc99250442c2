// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Directories as they are listed: in the order of their hashes, where they have these.
//!
//! A leaf of the hash tree that is full is split, and half of its entries move to the end of the
//! directory. Whoever lists it meanwhile by the places of entries sees those again. By hash, every
//! entry has a position of its own for as long as it exists, and those that come and go do not move
//! the others. The kernel's ext4 does the same, also for directories of one block, which may
//! become hashed while somebody is in the middle of them.

use fs_ext4::hash::{self, HashVersion};

use crate::{
    dir::{DirEntry, HashPath},
    error::{Error, Result, corrupt},
    features::compat,
    inode::{Inode, flags},
    volume::Volume,
};

/// Bits of a position that tell entries with one hash apart.
const SAME: u32 = 12;
/// Positions before this are behind `.` and behind `..`.
const FIRST: u64 = 2;

/// An entry, taken out of its block.
struct Found {
    position: u64,
    ino: u32,
    kind: u8,
    name: Vec<u8>,
}

/// The first position of names with this hash: 31 bits of the major part, which orders the tree, and of
/// the minor part what is left of 63.
fn position(name: &[u8], version: HashVersion, seed: &[u32; 4]) -> u64 {
    let hash = hash::name_hash(name, version, seed);
    let minor = hash.minor >> SAME << SAME;
    FIRST + (u64::from(hash.major >> 1) << 32 | u64::from(minor))
}

/// The least major hash of names from a position on.
fn major(position: u64) -> u32 {
    ((position.saturating_sub(FIRST) >> 32) as u32) << 1
}

/// Puts the entries of a part of a directory in order, and gives those with one hash positions one
/// after the other.
fn sort(found: &mut [Found]) {
    found.sort_by(|a, b| (a.position, &a.name).cmp(&(b.position, &b.name)));
    let most = (1 << SAME) - 1;
    let (mut last, mut same) = (None, 0);
    for entry in found {
        same = if last == Some(entry.position) {
            most.min(same + 1)
        } else {
            0
        };
        last = Some(entry.position);
        entry.position += same;
    }
}

impl Volume {
    /// Calls `visit` for each entry from position `from` on, `.` and `..` included, until it returns
    /// a value.
    pub fn read_dir<T>(
        &self,
        dir: &Inode,
        from: u64,
        mut visit: impl FnMut(DirEntry<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let mut shown = false;
        if let Some(version) = self.listing_order(dir) {
            let listed = self.list_by_hash(dir, from, version, |entry| {
                shown = true;
                visit(entry)
            });
            match listed {
                // As for look-ups: a damaged index does not condemn the entries.
                Err(Error::Corrupt(_)) if !shown && from < self.size(dir) => {}
                other => return other,
            }
        }
        self.walk_dir(dir, from, visit)
    }

    /// How a directory is hashed, if it is to be listed by that.
    fn listing_order(&self, dir: &Inode) -> Option<HashVersion> {
        let indexed = dir.flags() & flags::INDEX != 0;
        let may_be = self.sb.feature_compat & compat::DIR_INDEX != 0;
        let small = self.size(dir) == u64::from(self.block_size());
        if !dir.is_dir() || dir.is_inline() || !may_be || !(indexed || small) {
            return None;
        }
        HashVersion::from_u8(self.sb.default_hash_version).map(|default| self.hash_version(default))
    }

    fn list_by_hash<T>(
        &self,
        dir: &Inode,
        from: u64,
        default: HashVersion,
        mut visit: impl FnMut(DirEntry<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let ino = dir.ino();
        let mut run = None;
        let (mut path, version) = if dir.flags() & flags::INDEX == 0 {
            (None, default)
        } else {
            let path = self.hash_path_to(dir, |_| major(from), &mut run)?;
            let version = path.version;
            (Some(path), version)
        };
        if from < FIRST {
            let Some(block) = self.dir_block(dir, 0, &mut run)? else {
                return corrupt(format!("directory {ino}: no first block"));
            };
            let mut records = self.records(block.bytes(), 0, ino);
            for (name, next) in [(&b"."[..], 1), (b"..", 2)] {
                match records.next()? {
                    Some((entry, _)) if entry.name == name => {
                        if next > from
                            && let Some(value) = visit(DirEntry { next, ..entry })?
                        {
                            return Ok(Some(value));
                        }
                    }
                    _ => return corrupt(format!("directory {ino}: its first entries are others")),
                }
            }
        }
        loop {
            let mut found = Vec::new();
            // Entries with one hash may be in several leaves, and have an order only together.
            let more = loop {
                let leaf = match &path {
                    None => Some(0),
                    Some(path) => path.levels.last().and_then(|level| level.child()),
                };
                let Some(leaf) = leaf else {
                    return corrupt(format!("directory {ino}: empty index"));
                };
                self.take_out(dir, u64::from(leaf), version, &mut run, &mut found)?;
                match &mut path {
                    None => break false,
                    Some(HashPath { levels, .. }) => match self.step(dir, levels, &mut run)? {
                        Some(hash) if hash & 1 != 0 => {}
                        next => break next.is_some(),
                    },
                }
            };
            sort(&mut found);
            for entry in found.iter().filter(|entry| entry.position >= from) {
                let entry = DirEntry {
                    ino: entry.ino,
                    name: &entry.name,
                    kind: entry.kind,
                    next: entry.position + 1,
                };
                if let Some(value) = visit(entry)? {
                    return Ok(Some(value));
                }
            }
            if !more {
                return Ok(None);
            }
        }
    }

    /// Takes the entries out of one block, but for `.` and `..`.
    fn take_out(
        &self,
        dir: &Inode,
        index: u64,
        version: HashVersion,
        run: &mut Option<crate::map::Run>,
        found: &mut Vec<Found>,
    ) -> Result<()> {
        let Some(block) = self.dir_block(dir, index, run)? else {
            return corrupt(format!("directory {}: index points into a hole", dir.ino()));
        };
        let mut records = self.records(block.bytes(), 0, dir.ino());
        while let Some((entry, _)) = records.next()? {
            if !matches!(entry.name, b"." | b"..") {
                found.push(Found {
                    position: position(entry.name, version, &self.sb.hash_seed),
                    ino: entry.ino,
                    kind: entry.kind,
                    name: entry.name.to_vec(),
                });
            }
        }
        // A tree that leads round and round must not fill the memory.
        if found.len() > 1 << 20 {
            return corrupt(format!(
                "directory {}: too many names of one hash",
                dir.ino()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(position: u64, name: &str) -> Found {
        Found {
            position,
            ino: 12,
            kind: 0,
            name: name.into(),
        }
    }

    #[test]
    fn positions_follow_the_index() {
        let seed = [1, 2, 3, 4];
        for name in ["a", "some name", "x".repeat(255).as_str()] {
            let at = position(name.as_bytes(), HashVersion::HalfMd4, &seed);
            let hash = hash::name_hash(name.as_bytes(), HashVersion::HalfMd4, &seed);
            assert_eq!(major(at), hash.major);
            assert!(at >= FIRST && at < i64::MAX as u64);
        }
        assert_eq!(major(0), 0);
        assert_eq!(major(1), 0);
    }

    #[test]
    fn those_with_one_hash_have_places_of_their_own() {
        let mut all = [
            found(9 << SAME, "z"),
            found(5 << SAME, "b"),
            found(5 << SAME, "a"),
            found(5 << SAME, "c"),
        ];
        sort(&mut all);
        let names: Vec<_> = all.iter().map(|e| (e.position, &e.name[..])).collect();
        let base = 5 << SAME;
        assert_eq!(
            names,
            [
                (base, &b"a"[..]),
                (base + 1, b"b"),
                (base + 2, b"c"),
                (9 << SAME, b"z")
            ]
        );
    }
}
