// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Changing extended attributes: all of an inode's are taken out, one is changed, and they are laid out
//! anew, in the inode as far as they fit, the others in a block.

use crate::{
    acl,
    edit::{InodeEdit, Stamp},
    error::{Error, Result, corrupt, errno, refuse},
    inode::{flags, le32},
    txn::Txn,
    volume::Volume,
    xattr::{self, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, MAGIC, MAX_VALUE},
};

/// Flags of setxattr(2).
pub mod flag {
    #![allow(missing_docs)]
    pub const CREATE: u32 = 1;
    pub const REPLACE: u32 = 2;
}

/// An entry without its name, and the header of a block.
const ENTRY: usize = 16;
const HEADER: usize = 32;
const NAME_MAX: usize = 255;
/// The list of entries ends with a word of zeros.
const END: usize = 4;
const COMPAT_EXT_ATTR: u32 = 0x8;

/// Offsets in the header of a block.
mod at {
    pub const REFCOUNT: usize = 4;
    pub const BLOCKS: usize = 8;
    pub const HASH: usize = 12;
}

/// One attribute, taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    pub index: u8,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

impl Attribute {
    /// What it takes, in entry and value.
    fn size(&self) -> usize {
        ENTRY + self.name.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    fn is(&self, index: u8, name: &[u8]) -> bool {
        self.index == index && self.name == name
    }

    fn hash(&self) -> u32 {
        let mut hash: u32 = 0;
        for byte in &self.name {
            hash = hash.rotate_left(5) ^ u32::from(*byte);
        }
        for word in self.value.chunks(4) {
            let mut padded = [0; 4];
            padded[..word.len()].copy_from_slice(word);
            hash = hash.rotate_left(16) ^ u32::from_le_bytes(padded);
        }
        hash
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Lays attributes out in `area`, entries from `first` on, values from the end. They must fit.
fn lay_out(area: &mut [u8], first: usize, attributes: &[Attribute], hashed: bool) {
    area[first..].fill(0);
    let (mut at, mut end) = (first, area.len() & !3);
    for attribute in attributes {
        let len = attribute.value.len();
        let value_at = if len > 0 {
            end -= len.next_multiple_of(4);
            area[end..end + len].copy_from_slice(&attribute.value);
            end
        } else {
            0
        };
        area[at] = attribute.name.len() as u8;
        area[at + 1] = attribute.index;
        put16(area, at + 2, value_at as u16);
        put32(area, at + 8, len as u32);
        if hashed {
            put32(area, at + 12, attribute.hash());
        }
        let name = at + ENTRY;
        area[name..name + attribute.name.len()].copy_from_slice(&attribute.name);
        at = name + attribute.name.len().next_multiple_of(4);
    }
}

impl Volume {
    /// Sets an attribute; `how` as of setxattr(2).
    pub fn set_xattr(&self, ino: u32, name: &[u8], value: &[u8], how: u32) -> Result<()> {
        let (index, name) = xattr::split_name(name)?;
        if value.len() > MAX_VALUE {
            return refuse(errno::E2BIG);
        }
        if name.len() > NAME_MAX {
            return refuse(errno::ERANGE);
        }
        self.transact(|txn| match index {
            INDEX_ACL_ACCESS => acl::set_access(txn, ino, value),
            INDEX_ACL_DEFAULT => acl::set_default(txn, ino, value),
            _ => txn.change_xattr(ino, index, name, Some(value), how),
        })
    }

    /// Removes an attribute.
    pub fn remove_xattr(&self, ino: u32, name: &[u8]) -> Result<()> {
        let (index, name) = xattr::split_name(name)?;
        self.transact(|txn| txn.change_xattr(ino, index, name, None, flag::REPLACE))
    }
}

impl Txn<'_> {
    /// Sets or removes one attribute.
    pub fn change_xattr(
        &mut self,
        ino: u32,
        index: u8,
        name: &[u8],
        value: Option<&[u8]>,
        how: u32,
    ) -> Result<()> {
        let parsed = self.vol.inode(ino)?;
        if parsed.flags() & flags::INLINE_DATA != 0 {
            // The file's data is one of the attributes, and must not move.
            return refuse(errno::EOPNOTSUPP);
        }
        let mut attributes = self.vol.attributes(&parsed)?;
        let old = attributes.iter().position(|one| one.is(index, name));
        match (old, value) {
            (None, _) if how & flag::REPLACE != 0 => return refuse(errno::ENODATA),
            (Some(_), _) if how & flag::CREATE != 0 => return refuse(errno::EEXIST),
            (Some(at), Some(value)) => attributes[at].value = value.to_vec(),
            (Some(at), None) => {
                attributes.remove(at);
            }
            (None, Some(value)) => attributes.push(Attribute {
                index,
                name: name.to_vec(),
                value: value.to_vec(),
            }),
            (None, None) => return Ok(()),
        }
        let mut inode = self.edit(ino)?;
        self.put_attributes(&mut inode, attributes)?;
        inode.set_time(Stamp::Change, self.now);
        self.store(&mut inode)
    }

    fn put_attributes(&mut self, inode: &mut InodeEdit, attributes: Vec<Attribute>) -> Result<()> {
        let mut outside = Vec::new();
        let mut inside = Vec::new();
        if let Some(area) = inode.xattr_area() {
            let (magic, area) = area.split_at_mut(4);
            let mut room = (area.len() & !3).saturating_sub(END);
            for attribute in attributes {
                if attribute.size() <= room {
                    room -= attribute.size();
                    inside.push(attribute);
                } else {
                    outside.push(attribute);
                }
            }
            lay_out(area, 0, &inside, false);
            magic.copy_from_slice(&if inside.is_empty() { 0 } else { MAGIC }.to_le_bytes());
        } else {
            outside = attributes;
        }
        if outside.is_empty() {
            return self.drop_xattr_block(inode);
        }
        if self.vol.sb.feature_compat & COMPAT_EXT_ATTR == 0 {
            return refuse(errno::EOPNOTSUPP);
        }
        // The kernel looks for a name only as far as the order allows.
        outside.sort_by(|a, b| {
            (a.index, a.name.len(), &a.name).cmp(&(b.index, b.name.len(), &b.name))
        });
        let block_size = self.vol.block_size() as usize;
        let size: usize = outside.iter().map(Attribute::size).sum();
        if HEADER + size + END > block_size {
            return refuse(errno::ENOSPC);
        }
        let mut bytes = vec![0; block_size];
        put32(&mut bytes, 0, MAGIC);
        put32(&mut bytes, at::REFCOUNT, 1);
        put32(&mut bytes, at::BLOCKS, 1);
        let hash = outside.iter().fold(0u32, |hash, attribute| {
            hash.rotate_left(16) ^ attribute.hash()
        });
        put32(&mut bytes, at::HASH, hash);
        lay_out(&mut bytes, HEADER, &outside, true);

        let block = self.own_xattr_block(inode)?;
        self.vol.csum.patch_xattr_block(block, &mut bytes);
        self.fresh(block, bytes)
    }

    /// A block for attributes that no other inode uses.
    fn own_xattr_block(&mut self, inode: &mut InodeEdit) -> Result<u64> {
        let old = inode.xattr_block();
        if old != 0 && self.xattr_users(old)? == 1 {
            return Ok(old);
        }
        self.drop_xattr_block(inode)?;
        let (block, _) = self.alloc_blocks(self.home_of(inode.ino), 1)?;
        self.add_blocks(inode, 1)?;
        inode.set_xattr_block(block);
        Ok(block)
    }

    fn xattr_users(&self, block: u64) -> Result<u32> {
        self.vol.check_blocks(block, 1, "attribute block")?;
        let bytes = self.vol.device.block(block)?;
        let users = le32(bytes.bytes(), at::REFCOUNT);
        if le32(bytes.bytes(), 0) != MAGIC || users == 0 {
            return corrupt(format!("attribute block {block}"));
        }
        Ok(users)
    }

    /// Gives up an inode's block with attributes, if it has one. Inodes with the same attributes may share it.
    pub fn drop_xattr_block(&mut self, inode: &mut InodeEdit) -> Result<()> {
        let block = inode.xattr_block();
        if block == 0 {
            return Ok(());
        }
        let users = self.xattr_users(block)?;
        if users > 1 {
            let csum = self.vol.csum;
            self.modify(block, |bytes| {
                put32(bytes, at::REFCOUNT, users - 1);
                csum.patch_xattr_block(block, bytes);
            })?;
        } else {
            self.free_blocks(block, 1, true)?;
        }
        inode.set_xattr_block(0);
        self.add_blocks(inode, -1)
    }
}

/// A value that is in an inode of its own cannot be laid out here; such volumes are not written.
pub(crate) fn not_here<T>() -> Result<T> {
    Err(Error::Unsupported(
        "changing attributes whose values are in inodes of their own (ea_inode)".into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_filled_from_both_ends() {
        let one = |name: &[u8], value: &[u8]| Attribute {
            index: 1,
            name: name.to_vec(),
            value: value.to_vec(),
        };
        let all = [one(b"a", b"12345"), one(b"long-name", b""), one(b"b", b"x")];
        let need: usize = all.iter().map(Attribute::size).sum();
        let mut area = vec![0xff; need + END];
        lay_out(&mut area, 0, &all, true);
        let read = xattr::taken_out(&area, 0, 12).unwrap();
        assert_eq!(read, all);
    }
}
