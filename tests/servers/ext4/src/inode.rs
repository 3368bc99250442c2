// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Inodes: finding and checking one, and its attributes as the kernel's ext4 reports them.

use std::sync::Arc;

use crate::{
    device::Block,
    error::{Error, Result, corrupt, errno},
    features::{incompat, ro_compat},
    volume::Volume,
};

/// The root directory's inode number.
pub const ROOT: u32 = 2;

/// `i_flags` bits.
pub mod flags {
    #![allow(missing_docs)]
    pub const SYNC: u32 = 0x8;
    pub const IMMUTABLE: u32 = 0x10;
    pub const APPEND: u32 = 0x20;
    pub const ENCRYPT: u32 = 0x800;
    pub const INDEX: u32 = 0x1000;
    pub const HUGE_FILE: u32 = 0x4_0000;
    pub const EXTENTS: u32 = 0x8_0000;
    pub const VERITY: u32 = 0x10_0000;
    pub const EA_INODE: u32 = 0x20_0000;
    pub const INLINE_DATA: u32 = 0x1000_0000;
    /// What `FS_IOC_GETFLAGS` shows of them.
    pub const USER_VISIBLE: u32 = 0x725b_dfff;
    /// Changeable by users of the kernel's ext4, but with another layout of data: its journaling,
    /// extents, projects, folded names.
    pub const STORED: u32 = 0x6048_4000;
    /// What only directories can have: synchronous changes of names, the top of a hierarchy.
    pub const DIR_ONLY: u32 = 0x3_0000;
    /// What users may change, beyond what would change how the inode is stored.
    pub const SETTABLE: u32 = 0x80ff | DIR_ONLY;
    /// Of those, what other inodes than files and directories can have: not dumped, no access times.
    pub const ANY_TYPE: u32 = 0xc0;
}

/// `S_IFMT` and its values.
pub mod mode {
    #![allow(missing_docs)]
    pub const TYPE: u16 = 0o170000;
    pub const FIFO: u16 = 0o010000;
    pub const CHAR: u16 = 0o020000;
    pub const DIR: u16 = 0o040000;
    pub const BLOCK: u16 = 0o060000;
    pub const REG: u16 = 0o100000;
    pub const LINK: u16 = 0o120000;
    pub const SOCK: u16 = 0o140000;
}

/// A time with the range and precision that ext4 stores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970, negative before.
    pub sec: i64,
    /// Nanoseconds, below 10^9.
    pub nsec: u32,
}

impl Time {
    /// So many nanoseconds later, less than a second.
    pub(crate) fn later(self, nanoseconds: u32) -> Self {
        let nsec = self.nsec.saturating_add(nanoseconds);
        Self {
            sec: self.sec.saturating_add(i64::from(nsec / 1_000_000_000)),
            nsec: nsec % 1_000_000_000,
        }
    }
}

impl Time {
    /// The time now.
    pub fn now() -> Self {
        crate::txn::now()
    }
}

/// Attributes of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number on the volume.
    pub ino: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of contents.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
    /// Creation, if the inode is large enough to record it.
    pub crtime: Option<Time>,
    /// Type and permissions.
    pub mode: u16,
    /// Link count; 1 for a directory means "too many to count".
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node, in the kernel's 32-bit encoding.
    pub rdev: u32,
    /// Changes when the inode number is used again.
    pub generation: u32,
    /// `i_flags`.
    pub flags: u32,
}

/// An inode that passed its checks.
pub struct Inode {
    ino: u32,
    parsed: fs_ext4::inode::Inode,
    block: Arc<Block>,
    at: usize,
    len: usize,
}

impl Inode {
    /// Its number.
    pub fn ino(&self) -> u32 {
        self.ino
    }

    /// `i_mode`.
    pub fn mode(&self) -> u16 {
        self.parsed.mode
    }

    /// `i_flags`.
    pub fn flags(&self) -> u32 {
        self.parsed.flags
    }

    /// `i_generation`.
    pub fn generation(&self) -> u32 {
        self.parsed.generation
    }

    /// `i_links_count`.
    pub fn links(&self) -> u16 {
        self.parsed.links_count
    }

    /// `i_dtime`.
    pub(crate) fn dtime(&self) -> u32 {
        le32(self.raw(), 0x14)
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode() & mode::TYPE == mode::DIR
    }

    /// Whether it is a regular file.
    pub fn is_regular(&self) -> bool {
        self.mode() & mode::TYPE == mode::REG
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.mode() & mode::TYPE == mode::LINK
    }

    /// Whether its contents are in the inode itself.
    pub fn is_inline(&self) -> bool {
        self.flags() & flags::INLINE_DATA != 0
    }

    /// The inode's bytes on disk.
    pub(crate) fn raw(&self) -> &[u8] {
        &self.block.bytes()[self.at..self.at + self.len]
    }

    /// `i_block`: extent root, block pointers, inline data, device number, or short link target.
    pub(crate) fn i_block(&self) -> &[u8; 60] {
        &self.parsed.block
    }

    /// The block with further extended attributes; 0 if there is none.
    pub(crate) fn xattr_block(&self) -> u64 {
        self.parsed.file_acl
    }
}

/// The little-endian u32 at `at`, or 0 past the end.
pub(crate) fn le32(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .map_or(0, |b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
}

/// The little-endian u16 at `at`, or 0 past the end.
pub(crate) fn le16(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

/// Glues the kernel's two on-disk forms of a device number into its 32-bit user-space form.
fn device_number(i_block: &[u8; 60]) -> u32 {
    let old = le32(i_block, 0);
    if old != 0 {
        // 16 bits, major above minor; the same bits in the new form as majors and minors fit.
        old & 0xffff
    } else {
        le32(i_block, 4)
    }
}

/// Flags of inodes, and how `struct fsxattr` has them.
const XFLAGS: &[(u32, u32)] = &[
    (flags::SYNC, 0x20),
    (flags::IMMUTABLE, 0x8),
    (flags::APPEND, 0x10),
    (0x40, 0x80),         // nodump
    (0x80, 0x40),         // noatime
    (0x200_0000, 0x8000), // dax
    (0x2000_0000, 0x200), // projinherit
];

/// What becomes of flags when `FS_IOC_FSSETXATTR` stores these bytes; `None` if they ask for what no
/// volume has that is written here: projects, hints for extents.
pub fn from_fsxattr(old: u32, fsx: &[u8]) -> Option<u32> {
    let xflags = le32(fsx.get(..28)?, 0);
    if fsx[4..28].iter().any(|byte| *byte != 0) {
        return None;
    }
    let mut new = old;
    for (flag, bit) in XFLAGS {
        new = if xflags & bit == 0 {
            new & !flag
        } else {
            new | flag
        };
    }
    Some(new)
}

/// The flags as `struct fsxattr` of `FS_IOC_FSGETXATTR` has them.
pub fn fsxattr(flags: u32) -> [u8; 28] {
    let shown = XFLAGS.iter().filter(|(on_disk, _)| flags & on_disk != 0);
    let xflags = shown.fold(0u32, |all, (_, bit)| all | bit);
    let mut out = [0; 28];
    out[..4].copy_from_slice(&xflags.to_ne_bytes());
    out
}

impl Volume {
    /// Reads, checks and parses inode `ino`, whoever it belongs to.
    pub(crate) fn any_inode(&self, ino: u32) -> Result<Inode> {
        let (block, at) = fs_ext4::bgd::locate_inode(&self.sb, &self.groups, ino)?;
        let block = self.device.block(block)?;
        let (at, len) = (at as usize, usize::from(self.sb.inode_size));
        let raw = at
            .checked_add(len)
            .and_then(|end| block.bytes().get(at..end));
        let Some(raw) = raw.filter(|raw| raw.len() >= 128) else {
            return corrupt(format!("inode {ino} does not fit its block"));
        };
        let parsed = fs_ext4::inode::Inode::parse(raw)?;
        if self.csum.enabled && !self.csum.verify_inode(ino, parsed.generation, raw) {
            return Err(Error::Checksum(format!("inode {ino}")));
        }
        Ok(Inode {
            ino,
            parsed,
            block,
            at,
            len,
        })
    }

    /// Reads inode `ino`, which a user can reach: the root or an ordinary one, in use.
    pub fn inode(&self, ino: u32) -> Result<Inode> {
        if ino != ROOT && ino < self.sb.first_inode {
            return corrupt(format!("reserved inode {ino} is linked into the tree"));
        }
        let inode = self.any_inode(ino)?;
        let unnamed = inode.parsed.links_count == 0 && !self.is_orphan(ino);
        if unnamed || inode.mode() == 0 {
            return Err(Error::Errno(errno::ESTALE));
        }
        let refused = inode.flags() & (flags::ENCRYPT | flags::VERITY | flags::EA_INODE);
        if refused != 0 {
            return corrupt(format!(
                "inode {ino} has flags {refused:#x} that the volume's features exclude"
            ));
        }
        let known = matches!(
            inode.mode() & mode::TYPE,
            mode::FIFO | mode::CHAR | mode::DIR | mode::BLOCK | mode::REG | mode::LINK | mode::SOCK
        );
        if !known {
            return corrupt(format!("inode {ino} has mode {:#o}", inode.mode()));
        }
        if inode.is_inline() && self.sb.feature_incompat & incompat::INLINE_DATA == 0 {
            return corrupt(format!(
                "inode {ino} is inline on a volume without inline_data"
            ));
        }
        let size = self.size(&inode);
        if size > i64::MAX as u64 {
            return corrupt(format!("inode {ino} has size {size}"));
        }
        if inode.is_dir() && size > self.bytes() {
            return corrupt(format!("directory {ino} is larger than the volume"));
        }
        Ok(inode)
    }

    /// The inode's size. Only regular files, and directories where the volume says so, have 64 bits.
    pub fn size(&self, inode: &Inode) -> u64 {
        if inode.is_regular() || self.sb.feature_incompat & incompat::LARGEDIR != 0 {
            inode.parsed.size
        } else {
            inode.parsed.size & 0xffff_ffff
        }
    }

    /// The space `i_blocks` accounts for, in units of 512 bytes.
    pub(crate) fn sectors(&self, inode: &Inode) -> u64 {
        let stored = inode.parsed.blocks;
        if self.sb.feature_ro_compat & ro_compat::HUGE_FILE == 0 {
            stored & 0xffff_ffff
        } else if inode.flags() & flags::HUGE_FILE != 0 {
            // 48 bits shifted by at most 7.
            stored * (u64::from(self.block_size()) / 512)
        } else {
            stored
        }
    }

    /// The inode's attributes.
    pub fn attr(&self, inode: &Inode) -> Attr {
        let p = &inode.parsed;
        let size = self.size(inode);
        let mut blocks = self.sectors(inode);
        if inode.is_regular() && inode.is_inline() {
            // As the kernel's ext4 does, so that nobody takes the file for all hole.
            blocks += size.div_ceil(512);
        }
        let nsec = |nsec: u32| nsec.min(999_999_999);
        let has_crtime = inode.len > 128 && le16(inode.raw(), 128) >= 24;
        let is_device = matches!(inode.mode() & mode::TYPE, mode::CHAR | mode::BLOCK);
        Attr {
            ino: inode.ino,
            size,
            blocks,
            atime: Time {
                sec: p.atime,
                nsec: nsec(p.atime_nsec),
            },
            mtime: Time {
                sec: p.mtime,
                nsec: nsec(p.mtime_nsec),
            },
            ctime: Time {
                sec: p.ctime,
                nsec: nsec(p.ctime_nsec),
            },
            crtime: has_crtime.then(|| Time {
                sec: p.crtime,
                nsec: nsec(p.crtime_nsec),
            }),
            mode: p.mode,
            nlink: u32::from(p.links_count),
            uid: p.uid,
            gid: p.gid,
            rdev: if is_device {
                device_number(inode.i_block())
            } else {
                0
            },
            generation: p.generation,
            flags: p.flags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_device_number_forms_are_read() {
        let mut i_block = [0; 60];
        i_block[..4].copy_from_slice(&0x0801u32.to_le_bytes());
        assert_eq!(device_number(&i_block), 0x0801);
        i_block[..4].fill(0);
        i_block[4..8].copy_from_slice(&0x1234_5678u32.to_le_bytes());
        assert_eq!(device_number(&i_block), 0x1234_5678);
    }
}
