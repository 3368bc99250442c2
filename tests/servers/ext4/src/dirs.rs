// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Changing directories: adding, removing and redirecting entries. Hashed directories are in `htree`.

use crate::{
    dir::record_len,
    error::{Result, corrupt, errno, refuse},
    features::{compat, incompat},
    inode::{Inode, flags, le16, le32},
    map::Target,
    txn::Txn,
    volume::Volume,
};

/// What a record has in front of its name.
const HEAD: usize = 8;
/// The checksum at the end of a block, which looks like a record.
const TAIL: usize = 12;

/// An entry to add.
#[derive(Clone, Copy)]
pub(crate) struct NewEntry<'a> {
    pub name: &'a [u8],
    pub ino: u32,
    /// Type and permissions of the inode.
    pub mode: u16,
}

/// The file type that an entry records for an inode of `mode`.
pub(crate) fn file_type(mode: u16) -> u8 {
    match mode >> 12 {
        0o10 => 1,
        0o04 => 2,
        0o02 => 3,
        0o06 => 4,
        0o01 => 5,
        0o14 => 6,
        0o12 => 7,
        _ => 0,
    }
}

/// The length of a record with a name of `len` bytes.
pub(crate) fn needed(len: usize) -> usize {
    (HEAD + len).next_multiple_of(4)
}

pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(crate) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Stores a record's length; 65536 does not fit and has a code.
pub(crate) fn put_len(bytes: &mut [u8], at: usize, len: usize) {
    put16(bytes, at + 4, u16::try_from(len).unwrap_or(u16::MAX));
}

/// A record in a block.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub at: usize,
    pub len: usize,
    /// What its entry takes of it; 0 if it has none.
    pub used: usize,
}

/// All records of a block up to `end`.
pub(crate) fn places(bytes: &[u8], end: usize, dir: u32) -> Result<Vec<Place>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        let len = record_len(le16(bytes, at + 4), bytes.len());
        let name_len = usize::from(bytes.get(at + 6).copied().unwrap_or(0));
        if len < HEAD || !len.is_multiple_of(4) || at + len > end || HEAD + name_len > len {
            return corrupt(format!("directory {dir}: record at {at}"));
        }
        let used = if le32(bytes, at) == 0 {
            0
        } else {
            needed(name_len)
        };
        found.push(Place { at, len, used });
        at += len;
    }
    Ok(found)
}

/// The name in a record that is in use.
pub(crate) fn name_at(bytes: &[u8], at: usize) -> &[u8] {
    let len = usize::from(bytes.get(at + 6).copied().unwrap_or(0));
    bytes.get(at + HEAD..at + HEAD + len).unwrap_or(&[])
}

/// Writes a record.
pub(crate) fn put_record(bytes: &mut [u8], at: usize, len: usize, ino: u32, name: &[u8], kind: u8) {
    put32(bytes, at, ino);
    put_len(bytes, at, len);
    bytes[at + 6] = name.len() as u8;
    bytes[at + 7] = kind;
    bytes[at + HEAD..at + HEAD + name.len()].copy_from_slice(name);
}

/// The record in which an entry of `need` bytes has room.
pub(crate) fn find_space(bytes: &[u8], end: usize, need: usize, dir: u32) -> Result<Option<Place>> {
    let places = places(bytes, end, dir)?;
    Ok(places
        .into_iter()
        .find(|place| place.len - place.used >= need))
}

/// Puts an entry into a record with room, which is split if it is in use.
pub(crate) fn put_entry(bytes: &mut [u8], place: Place, ino: u32, name: &[u8], kind: u8) {
    let Place { at, len, used } = place;
    if used > 0 {
        put_len(bytes, at, used);
    }
    put_record(bytes, at + used, len - used, ino, name, kind);
}

impl Volume {
    /// Where the entries of a directory block end.
    pub(crate) fn dir_end(&self) -> usize {
        self.block_size() as usize - if self.csum.enabled { TAIL } else { 0 }
    }

    /// The type byte for an entry; without the feature it belongs to the length of the name.
    pub(crate) fn type_byte(&self, mode: u16) -> u8 {
        if self.sb.feature_incompat & incompat::FILETYPE != 0 {
            file_type(mode)
        } else {
            0
        }
    }

    /// The device block of a directory's block.
    pub(crate) fn dir_device_block(&self, dir: &Inode, index: u64) -> Result<u64> {
        match self.run(dir, index, index + 1)?.target {
            Target::Mapped(at) => Ok(at),
            _ => corrupt(format!("directory {}: no block {index}", dir.ino())),
        }
    }

    /// Whether a directory has no entries but the two that all have.
    pub(crate) fn dir_is_empty(&self, dir: &Inode) -> Result<bool> {
        let other = self.walk_dir(dir, 0, |entry| {
            Ok((!matches!(entry.name, b"." | b"..")).then_some(()))
        })?;
        Ok(other.is_none())
    }

    /// An empty directory block, without its checksum.
    pub(crate) fn empty_dir_block(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.block_size() as usize];
        let end = self.dir_end();
        put_len(&mut bytes, 0, end);
        bytes
    }
}

impl Txn<'_> {
    /// Changes a block of a directory and renews its checksum.
    pub fn change_dir_block<R>(
        &mut self,
        dir: &Inode,
        index: u64,
        change: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R> {
        let at = self.vol.dir_device_block(dir, index)?;
        let vol = self.vol;
        self.modify(at, |bytes| {
            let result = change(bytes);
            vol.seal_dir_block(dir, index, bytes);
            result
        })
    }

    /// Adds a block to the end of a directory; returns its number there.
    pub fn append_dir_block(&mut self, dir: u32, mut bytes: Vec<u8>) -> Result<u64> {
        let mut edit = self.edit(dir)?;
        let block_size = u64::from(self.vol.block_size());
        let index = edit.size() / block_size;
        let size = (index + 1) * block_size;
        if size > u64::from(u32::MAX) {
            return refuse(errno::ENOSPC);
        }
        self.fill_some(&mut edit, index, index + 1, false)?;
        edit.set_size(size);
        self.store(&mut edit)?;
        let parsed = self.vol.any_inode(dir)?;
        let at = self.vol.dir_device_block(&parsed, index)?;
        self.vol.seal_dir_block(&parsed, index, &mut bytes);
        self.fresh(at, bytes)?;
        Ok(index)
    }

    /// Adds an entry to a directory that has none of that name.
    pub fn add_entry(&mut self, dir: u32, entry: NewEntry<'_>) -> Result<()> {
        let parsed = self.vol.any_inode(dir)?;
        if parsed.flags() & (flags::INLINE_DATA | flags::EXTENTS) != flags::EXTENTS {
            return refuse(errno::EOPNOTSUPP);
        }
        let may_hash = self.vol.sb.feature_compat & compat::DIR_INDEX != 0;
        if parsed.flags() & flags::INDEX != 0 {
            if !may_hash {
                // Somebody took the feature from the volume, and the index with it is not kept up.
                return refuse(errno::EOPNOTSUPP);
            }
            return self.add_hashed(dir, entry);
        }
        let end = self.vol.dir_end();
        let need = needed(entry.name.len());
        let kind = self.vol.type_byte(entry.mode);
        let blocks = self.vol.size(&parsed) / u64::from(self.vol.block_size());
        let mut run = None;
        for index in 0..blocks {
            let Some(block) = self.vol.dir_block(&parsed, index, &mut run)? else {
                continue;
            };
            if let Some(place) = find_space(block.bytes(), end, need, dir)? {
                drop(block);
                return self.change_dir_block(&parsed, index, |bytes| {
                    put_entry(bytes, place, entry.ino, entry.name, kind);
                });
            }
        }
        if may_hash && blocks == 1 {
            self.make_hashed(dir)?;
            return self.add_hashed(dir, entry);
        }
        let mut bytes = self.vol.empty_dir_block();
        put_record(&mut bytes, 0, end, entry.ino, entry.name, kind);
        self.append_dir_block(dir, bytes)?;
        Ok(())
    }

    /// Calls `change` with the block that holds `name`, the record before it if it has one in the
    /// block, and its own.
    fn change_entry<R>(
        &mut self,
        dir: u32,
        name: &[u8],
        change: impl FnOnce(&mut [u8], Option<Place>, Place) -> R,
    ) -> Result<R> {
        let parsed = self.vol.any_inode(dir)?;
        if parsed.is_inline() {
            return refuse(errno::EOPNOTSUPP);
        }
        let Some((_, index)) = self.vol.find_name(&parsed, name)? else {
            return refuse(errno::ENOENT);
        };
        let at = self.vol.dir_device_block(&parsed, index)?;
        let block = self.vol.device.block(at)?;
        let all = places(block.bytes(), self.dir_block_end(&parsed, index), dir)?;
        let found = all
            .iter()
            .position(|place| place.used > 0 && name_at(block.bytes(), place.at) == name);
        drop(block);
        let Some(found) = found else {
            return corrupt(format!("directory {dir}: an entry moved"));
        };
        let before = found.checked_sub(1).and_then(|at| all.get(at)).copied();
        let own = all[found];
        self.change_dir_block(&parsed, index, |bytes| change(bytes, before, own))
    }

    /// Where the records of a block end; the root of a hash tree has no checksum in a record.
    fn dir_block_end(&self, dir: &Inode, index: u64) -> usize {
        if index == 0 && dir.flags() & flags::INDEX != 0 {
            self.vol.block_size() as usize
        } else {
            self.vol.dir_end()
        }
    }

    /// Removes an entry.
    pub fn remove_entry(&mut self, dir: u32, name: &[u8]) -> Result<()> {
        self.change_entry(dir, name, |bytes, before, own| match before {
            Some(before) => {
                bytes[own.at..own.at + own.used].fill(0);
                put_len(bytes, before.at, before.len + own.len);
            }
            None => {
                bytes[own.at + 6..own.at + own.used].fill(0);
                put32(bytes, own.at, 0);
            }
        })
    }

    /// Lets an entry name another inode.
    pub fn redirect_entry(&mut self, dir: u32, entry: NewEntry<'_>) -> Result<()> {
        let kind = self.vol.type_byte(entry.mode);
        self.change_entry(dir, entry.name, |bytes, _, own| {
            put32(bytes, own.at, entry.ino);
            bytes[own.at + 7] = kind;
        })
    }

    /// The first block of a new directory.
    pub fn first_dir_block(&mut self, dir: u32, parent: u32) -> Result<()> {
        let mut bytes = vec![0; self.vol.block_size() as usize];
        let kind = self.vol.type_byte(crate::inode::mode::DIR);
        let own = needed(1);
        put_record(&mut bytes, 0, own, dir, b".", kind);
        put_record(
            &mut bytes,
            own,
            self.vol.dir_end() - own,
            parent,
            b"..",
            kind,
        );
        self.append_dir_block(dir, bytes)?;
        Ok(())
    }
}
