// SPDX-License-Identifier: GPL-2.0 OR MIT
//! POSIX ACLs where they meet the mode: setting one, inheriting one, and chmod.

use crate::{
    edit::Stamp,
    error::{Result, errno, refuse},
    inode::{Inode, le16, le32},
    txn::Txn,
    xattr::{ACL_ON_DISK, ACL_XATTR, INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT},
};

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One entry. Only named ones have an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    perm: u16,
    id: u32,
}

impl Entry {
    fn is_named(&self) -> bool {
        matches!(self.tag, USER | GROUP)
    }
}

/// Parses an ACL, as stored or as system calls carry it: there all entries have the length of named ones.
fn parse(bytes: &[u8], version: u32) -> Result<Vec<Entry>> {
    if bytes.len() < 4 || le32(bytes, 0) != version {
        return refuse(errno::EINVAL);
    }
    let mut entries = Vec::new();
    let mut rest = &bytes[4..];
    while !rest.is_empty() {
        let mut entry = Entry {
            tag: le16(rest, 0),
            perm: le16(rest, 2),
            id: 0,
        };
        if entry.is_named() {
            entry.id = le32(rest, 4);
        }
        let len = if version == ACL_XATTR || entry.is_named() {
            8
        } else {
            4
        };
        let known = matches!(
            entry.tag,
            USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER
        );
        if rest.len() < len || !known || entry.perm & !7 != 0 {
            return refuse(errno::EINVAL);
        }
        entries.push(entry);
        rest = &rest[len..];
    }
    let count = |tag| entries.iter().filter(|entry| entry.tag == tag).count();
    let named = entries.iter().any(Entry::is_named);
    let sound = entries.is_empty()
        || (count(USER_OBJ) == 1
            && count(GROUP_OBJ) == 1
            && count(OTHER) == 1
            && count(MASK) <= 1
            && (!named || count(MASK) == 1));
    if sound {
        Ok(entries)
    } else {
        refuse(errno::EINVAL)
    }
}

fn to_disk(entries: &[Entry]) -> Vec<u8> {
    let mut out = ACL_ON_DISK.to_le_bytes().to_vec();
    for entry in entries {
        out.extend_from_slice(&entry.tag.to_le_bytes());
        out.extend_from_slice(&entry.perm.to_le_bytes());
        if entry.is_named() {
            out.extend_from_slice(&entry.id.to_le_bytes());
        }
    }
    out
}

/// Whether the mode says all that the ACL does.
fn is_minimal(entries: &[Entry]) -> bool {
    entries
        .iter()
        .all(|entry| !entry.is_named() && entry.tag != MASK)
}

/// Where an entry's permissions are in the mode, if they are. With a mask, the group's bits are the mask's.
fn shift(tag: u16, has_mask: bool) -> Option<u32> {
    match tag {
        USER_OBJ => Some(6),
        GROUP_OBJ if !has_mask => Some(3),
        MASK => Some(3),
        OTHER => Some(0),
        _ => None,
    }
}

fn has_mask(entries: &[Entry]) -> bool {
    entries.iter().any(|entry| entry.tag == MASK)
}

/// The permissions of the mode that go with an ACL.
fn mode_bits(entries: &[Entry]) -> u16 {
    let mask = has_mask(entries);
    entries
        .iter()
        .filter_map(|entry| shift(entry.tag, mask).map(|by| entry.perm << by))
        .fold(0, |all, bits| all | bits)
}

/// Limits an ACL to a mode, or sets it to it.
fn apply_mode(entries: &mut [Entry], mode: u16, only_limit: bool) {
    let mask = has_mask(entries);
    for entry in entries {
        if let Some(by) = shift(entry.tag, mask) {
            let bits = mode >> by & 7;
            entry.perm = if only_limit { entry.perm & bits } else { bits };
        }
    }
}

/// Sets the access ACL, and the mode to match.
pub(crate) fn set_access(txn: &mut Txn<'_>, ino: u32, value: &[u8]) -> Result<()> {
    let entries = parse(value, ACL_XATTR)?;
    if !entries.is_empty() {
        let mut inode = txn.edit(ino)?;
        inode.set_mode(inode.mode() & !0o777 | mode_bits(&entries));
        inode.set_time(Stamp::Change, txn.now);
        txn.store(&mut inode)?;
    }
    let stored = (!is_minimal(&entries)).then(|| to_disk(&entries));
    txn.change_xattr(ino, INDEX_ACL_ACCESS, b"", stored.as_deref(), 0)
}

/// Sets the default ACL of a directory.
pub(crate) fn set_default(txn: &mut Txn<'_>, ino: u32, value: &[u8]) -> Result<()> {
    let entries = parse(value, ACL_XATTR)?;
    if !txn.vol.inode(ino)?.is_dir() {
        return refuse(if entries.is_empty() {
            errno::ENODATA
        } else {
            errno::EACCES
        });
    }
    let stored = (!entries.is_empty()).then(|| to_disk(&entries));
    txn.change_xattr(ino, INDEX_ACL_DEFAULT, b"", stored.as_deref(), 0)
}

/// Gives a new inode what its directory's default ACL says; without one, the umask applies.
pub(crate) fn inherit(txn: &mut Txn<'_>, dir: &Inode, ino: u32, umask: u16) -> Result<()> {
    let default = txn.vol.find_xattr(dir, INDEX_ACL_DEFAULT, b"")?;
    let Some(default) = default else {
        if umask != 0 {
            let mut inode = txn.edit(ino)?;
            inode.set_mode(inode.mode() & !(umask & 0o777));
            txn.store(&mut inode)?;
        }
        return Ok(());
    };
    let mut entries = parse(&default, ACL_ON_DISK)?;
    let mut inode = txn.edit(ino)?;
    let is_dir = inode.is_dir();
    apply_mode(&mut entries, inode.mode(), true);
    inode.set_mode(inode.mode() & !0o777 | mode_bits(&entries));
    txn.store(&mut inode)?;
    if !is_minimal(&entries) {
        let access = to_disk(&entries);
        txn.change_xattr(ino, INDEX_ACL_ACCESS, b"", Some(&access), 0)?;
    }
    if is_dir {
        txn.change_xattr(ino, INDEX_ACL_DEFAULT, b"", Some(&default), 0)?;
    }
    Ok(())
}

/// Follows a change of the mode with the access ACL, if there is one.
pub(crate) fn follow_mode(txn: &mut Txn<'_>, ino: u32, mode: u16) -> Result<()> {
    let inode = txn.vol.inode(ino)?;
    let Some(stored) = txn.vol.find_xattr(&inode, INDEX_ACL_ACCESS, b"")? else {
        return Ok(());
    };
    let mut entries = parse(&stored, ACL_ON_DISK)?;
    apply_mode(&mut entries, mode, false);
    let stored = to_disk(&entries);
    txn.change_xattr(ino, INDEX_ACL_ACCESS, b"", Some(&stored), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, perm: u16) -> Entry {
        Entry {
            tag,
            perm,
            id: if matches!(tag, USER | GROUP) { 1000 } else { 0 },
        }
    }

    #[test]
    fn the_mask_stands_for_the_group() {
        let mut acl = [
            entry(USER_OBJ, 7),
            entry(USER, 7),
            entry(GROUP_OBJ, 5),
            entry(MASK, 6),
            entry(OTHER, 4),
        ];
        assert_eq!(mode_bits(&acl), 0o764);
        apply_mode(&mut acl, 0o640, true);
        assert_eq!(mode_bits(&acl), 0o640);
        assert_eq!(acl[2].perm, 5);
        assert_eq!(parse(&to_disk(&acl), ACL_ON_DISK).unwrap(), acl);
        let minimal = [entry(USER_OBJ, 6), entry(GROUP_OBJ, 4), entry(OTHER, 0)];
        assert!(is_minimal(&minimal) && !is_minimal(&acl));
        assert_eq!(mode_bits(&minimal), 0o640);
    }

    #[test]
    fn unsound_acls_are_refused() {
        for entries in [
            &[entry(USER_OBJ, 7)][..],
            &[
                entry(USER_OBJ, 7),
                entry(USER, 7),
                entry(GROUP_OBJ, 5),
                entry(OTHER, 4),
            ],
            &[entry(USER_OBJ, 8), entry(GROUP_OBJ, 5), entry(OTHER, 4)],
        ] {
            assert!(parse(&to_disk(entries), ACL_ON_DISK).is_err());
        }
    }
}
