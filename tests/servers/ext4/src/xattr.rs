// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Extended attributes, in the inode, in their block, and in inodes of their own; POSIX ACLs; and
//! inline data, which is stored as one of them.

use crate::{
    error::{Error, Result, corrupt, errno, refuse},
    inode::{Inode, flags, le16, le32},
    map::Target,
    volume::Volume,
    xattrs::{self, Attribute},
};

pub(crate) const MAGIC: u32 = 0xea02_0000;
const ENTRY: usize = 16;
/// No attribute is longer (`XATTR_SIZE_MAX`).
pub(crate) const MAX_VALUE: usize = 65536;

pub(crate) const INDEX_ACL_ACCESS: u8 = 2;
pub(crate) const INDEX_ACL_DEFAULT: u8 = 3;
const INDEX_SYSTEM: u8 = 7;

/// Name indices with their prefixes, as far as users see them. Index 7 (`system.`) holds inline data.
const PREFIXES: &[(u8, &[u8])] = &[
    (1, b"user."),
    (INDEX_ACL_ACCESS, b"system.posix_acl_access"),
    (INDEX_ACL_DEFAULT, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (10, b"gnu."),
];

struct Entry<'a> {
    index: u8,
    name: &'a [u8],
    value: Value<'a>,
}

enum Value<'a> {
    Here(&'a [u8]),
    InInode { ino: u32, size: usize },
}

impl Entry<'_> {
    fn taken_out(&self) -> Result<Attribute> {
        let Value::Here(value) = self.value else {
            return xattrs::not_here();
        };
        Ok(Attribute {
            index: self.index,
            name: self.name.to_vec(),
            value: value.to_vec(),
        })
    }
}

/// A name as users see it, as index and rest.
pub(crate) fn split_name(name: &[u8]) -> Result<(u8, &[u8])> {
    for (index, prefix) in PREFIXES {
        let Some(rest) = name.strip_prefix(*prefix) else {
            continue;
        };
        // The ACLs' names are complete, all other prefixes need something behind them.
        let whole = matches!(*index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT);
        match (whole, rest.is_empty()) {
            (true, true) | (false, false) => return Ok((*index, rest)),
            (true, false) => {}
            (false, true) => return refuse(errno::EINVAL),
        }
    }
    refuse(errno::EOPNOTSUPP)
}

/// The attributes in an area, for tests of what writes them.
#[cfg(test)]
pub(crate) fn taken_out(area: &[u8], first: usize, ino: u32) -> Result<Vec<Attribute>> {
    let all = entries(area, first, ino)?;
    all.iter().map(Entry::taken_out).collect()
}

/// Splits the entries from `first` on. Value offsets count from the start of `area`.
fn entries<'a>(area: &'a [u8], first: usize, ino: u32) -> Result<Vec<Entry<'a>>> {
    let mut found = Vec::new();
    let mut at = first;
    loop {
        // The list ends with four zero bytes, or where no such word fits.
        let Some(head) = area.get(at..at + 4) else {
            return if at == area.len() {
                Ok(found)
            } else {
                corrupt(format!("inode {ino}: attribute list"))
            };
        };
        if head == [0; 4] {
            return Ok(found);
        }
        let name_len = usize::from(head[0]);
        let Some(name) = area.get(at + ENTRY..at + ENTRY + name_len) else {
            return corrupt(format!("inode {ino}: attribute name"));
        };
        let from = usize::from(le16(area, at + 2));
        let in_inode = le32(area, at + 4);
        let size = le32(area, at + 8) as usize;
        if size > MAX_VALUE {
            return corrupt(format!("inode {ino}: attribute of {size} bytes"));
        }
        let value = if in_inode != 0 {
            Value::InInode {
                ino: in_inode,
                size,
            }
        } else if size == 0 {
            Value::Here(&[])
        } else {
            let Some(value) = area.get(from..from + size) else {
                return corrupt(format!("inode {ino}: attribute value"));
            };
            Value::Here(value)
        };
        found.push(Entry {
            index: head[1],
            name,
            value,
        });
        at += ENTRY + name_len.next_multiple_of(4);
    }
}

/// The area for attributes inside the inode, if it has one. It begins with the first entry.
fn inode_area(inode: &Inode) -> Result<Option<&[u8]>> {
    let raw = inode.raw();
    if raw.len() <= 128 {
        return Ok(None);
    }
    let extra = usize::from(le16(raw, 128));
    if extra == 0 {
        return Ok(None);
    }
    let at = 128 + extra;
    if extra % 4 != 0 || at > raw.len() {
        return corrupt(format!("inode {}: i_extra_isize {extra}", inode.ino()));
    }
    // No magic number means no attributes.
    Ok(if le32(raw, at) == MAGIC {
        raw.get(at + 4..)
    } else {
        None
    })
}

/// The version of the ACL format on disk, and of the one system calls carry.
pub(crate) const ACL_ON_DISK: u32 = 1;
pub(crate) const ACL_XATTR: u32 = 2;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;
const ACL_NO_ID: u32 = u32::MAX;

/// Turns an ACL from its form on disk, where only named entries have an id, into the form that
/// getxattr(2) returns.
pub fn acl_from_disk(disk: &[u8]) -> Result<Vec<u8>> {
    let bad = || Err(Error::Errno(errno::EINVAL));
    if disk.len() < 4 || le32(disk, 0) != ACL_ON_DISK {
        return bad();
    }
    let mut out = ACL_XATTR.to_le_bytes().to_vec();
    let mut rest = &disk[4..];
    while !rest.is_empty() {
        if rest.len() < 4 {
            return bad();
        }
        let (id, len) = match le16(rest, 0) {
            ACL_USER | ACL_GROUP if rest.len() < 8 => return bad(),
            ACL_USER | ACL_GROUP => (le32(rest, 4), 8),
            // The owner, the owning group, the mask and others.
            0x01 | 0x04 | 0x10 | 0x20 => (ACL_NO_ID, 4),
            _ => return bad(),
        };
        out.extend_from_slice(&rest[..4]);
        out.extend_from_slice(&id.to_le_bytes());
        rest = &rest[len..];
    }
    Ok(out)
}

impl Volume {
    /// Calls `visit` for each attribute until it returns a result.
    fn each_xattr<T>(
        &self,
        inode: &Inode,
        mut visit: impl FnMut(&Entry<'_>) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        if let Some(area) = inode_area(inode)? {
            for entry in entries(area, 0, inode.ino())? {
                if let Some(found) = visit(&entry)? {
                    return Ok(Some(found));
                }
            }
        }
        let at = inode.xattr_block();
        if at != 0 {
            self.check_blocks(at, 1, &format!("inode {}: attribute block", inode.ino()))?;
            let block = self.device.block(at)?;
            let bytes = block.bytes();
            if le32(bytes, 0) != MAGIC || le32(bytes, 8) != 1 {
                return corrupt(format!("inode {}: attribute block", inode.ino()));
            }
            block.checked_once(TAG_XATTR | at, |bytes| {
                if self.csum.verify_xattr_block(at, bytes) {
                    Ok(())
                } else {
                    Err(Error::Checksum(format!(
                        "attribute block of inode {}",
                        inode.ino()
                    )))
                }
            })?;
            for entry in entries(bytes, 32, inode.ino())? {
                if let Some(found) = visit(&entry)? {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    fn value(&self, value: &Value<'_>) -> Result<Vec<u8>> {
        match value {
            Value::Here(bytes) => Ok(bytes.to_vec()),
            Value::InInode { ino, size } => {
                let inode = self.any_inode(*ino)?;
                let sound = inode.flags() & flags::EA_INODE != 0
                    && inode.is_regular()
                    && self.size(&inode) == *size as u64;
                if !sound {
                    return corrupt(format!(
                        "inode {ino} does not hold an attribute of {size} bytes"
                    ));
                }
                let mut out = vec![0; *size];
                self.read(&inode, 0, &mut out)?;
                Ok(out)
            }
        }
    }

    /// All attributes whose values are with them.
    pub(crate) fn attributes(&self, inode: &Inode) -> Result<Vec<Attribute>> {
        let mut all = Vec::new();
        self.each_xattr(inode, |entry| -> Result<Option<()>> {
            all.push(entry.taken_out()?);
            Ok(None)
        })?;
        Ok(all)
    }

    /// The stored value of one attribute.
    pub(crate) fn find_xattr(
        &self,
        inode: &Inode,
        index: u8,
        name: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        self.find(inode, index, name)
    }

    fn find(&self, inode: &Inode, index: u8, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.each_xattr(inode, |entry| {
            if entry.index == index && entry.name == name {
                self.value(&entry.value).map(Some)
            } else {
                Ok(None)
            }
        })
    }

    /// The names of all attributes, with their prefixes. `trusted.` ones are for the privileged.
    pub fn xattr_names(&self, inode: &Inode, privileged: bool) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        self.each_xattr(inode, |entry| -> Result<Option<()>> {
            let prefix = PREFIXES.iter().find(|(index, _)| *index == entry.index);
            if let Some((index, prefix)) = prefix {
                let whole = matches!(*index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT);
                let hidden = *prefix == b"trusted." && !privileged;
                if !hidden && (whole == entry.name.is_empty()) && !entry.name.contains(&0) {
                    names.push([prefix, entry.name].concat());
                }
            }
            Ok(None)
        })?;
        Ok(names)
    }

    /// The value of one attribute, as getxattr(2) returns it.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        let (index, rest) = split_name(name)?;
        let value = self
            .find(inode, index, rest)?
            .ok_or(Error::Errno(errno::ENODATA))?;
        if matches!(index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT) {
            return acl_from_disk(&value);
        }
        Ok(value)
    }

    /// The contents of an inode that has no blocks: 60 bytes of `i_block`, then the attribute
    /// `system.data`.
    ///
    /// A regular file may be longer than that, and then reads as zeros: mke2fs makes such files of
    /// those that consist of a hole, and the kernel takes them. Nothing else may.
    pub(crate) fn inline_data(&self, inode: &Inode) -> Result<Vec<u8>> {
        let size = self.size(inode);
        let mut data = inode.i_block().to_vec();
        let rest = self.find(inode, INDEX_SYSTEM, b"data")?;
        if let Some(rest) = &rest {
            data.extend_from_slice(rest);
        }
        if rest.is_none() || (size > data.len() as u64 && !inode.is_regular()) {
            return corrupt(format!("inode {}: inline data is missing", inode.ino()));
        }
        data.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(data)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>> {
        if !inode.is_symlink() {
            return Err(Error::Errno(errno::EINVAL));
        }
        let size = self.size(inode);
        let bad = || corrupt(format!("inode {}: link target", inode.ino()));
        if size == 0 || size >= u64::from(self.block_size()).max(4096) {
            return bad();
        }
        let mut target = if inode.is_inline() {
            self.inline_data(inode)?
        } else if self.is_fast_symlink(inode) {
            match inode.i_block().get(..size as usize) {
                Some(target) if target.len() < 60 => target.to_vec(),
                _ => return bad(),
            }
        } else if size > u64::from(self.block_size()) {
            let mut target = vec![0; size as usize];
            self.read(inode, 0, &mut target)?;
            target
        } else {
            // Written as metadata, so the newest copy may be in memory alone.
            let Target::Mapped(at) = self.run(inode, 0, 1)?.target else {
                return bad();
            };
            match self.device.block(at)?.bytes().get(..size as usize) {
                Some(target) => target.to_vec(),
                None => return bad(),
            }
        };
        // The kernel takes the target as a string.
        if let Some(end) = target.iter().position(|byte| *byte == 0) {
            target.truncate(end);
        }
        if target.is_empty() { bad() } else { Ok(target) }
    }

    /// Whether the target is in `i_block`: the link has no blocks but perhaps one for attributes.
    fn is_fast_symlink(&self, inode: &Inode) -> bool {
        let attributes = if inode.xattr_block() != 0 {
            self.cluster_blocks() * u64::from(self.block_size()) / 512
        } else {
            0
        };
        self.sectors(inode) == attributes
    }
}

const TAG_XATTR: u64 = 2 << 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_gain_ids() {
        let mut disk = vec![1, 0, 0, 0];
        disk.extend([0x01, 0, 7, 0]);
        disk.extend([0x02, 0, 6, 0, 0xe8, 0x03, 0, 0]);
        disk.extend([0x04, 0, 5, 0]);
        disk.extend([0x10, 0, 7, 0]);
        disk.extend([0x20, 0, 4, 0]);
        let none = [0xff; 4];
        let mut want = vec![2, 0, 0, 0];
        want.extend([0x01, 0, 7, 0]);
        want.extend(none);
        want.extend([0x02, 0, 6, 0, 0xe8, 0x03, 0, 0]);
        want.extend([0x04, 0, 5, 0]);
        want.extend(none);
        want.extend([0x10, 0, 7, 0]);
        want.extend(none);
        want.extend([0x20, 0, 4, 0]);
        want.extend(none);
        assert_eq!(acl_from_disk(&disk).unwrap(), want);
    }

    #[test]
    fn broken_acls_are_refused() {
        for disk in [
            &[][..],
            &[2, 0, 0, 0],
            &[1, 0, 0, 0, 2, 0, 7, 0],
            &[1, 0, 0, 0, 9, 9, 0, 0],
            &[1, 0, 0, 0, 1, 0],
        ] {
            assert_eq!(acl_from_disk(disk).unwrap_err().errno(), errno::EINVAL);
        }
    }

    #[test]
    fn attribute_lists_are_bounded() {
        // A name that runs out of the area, a value that does, and a list without an end.
        let mut area = vec![0; 64];
        area[0] = 60;
        assert!(entries(&area, 0, 1).is_err());
        area[0] = 4;
        area[1] = 1;
        area[2] = 60;
        area[8] = 8;
        assert!(entries(&area, 0, 1).is_err());
        area[2] = 40;
        assert_eq!(entries(&area, 0, 1).unwrap().len(), 1);
    }
}
