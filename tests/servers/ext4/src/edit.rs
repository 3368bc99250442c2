// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Changing an inode: its bytes are taken out, changed field by field, and stored with a new checksum.

use crate::{
    error::{Result, corrupt, errno, refuse},
    features::ro_compat,
    inode::{Time, flags, le16, le32, mode},
    txn::Txn,
};

/// Offsets in an inode.
mod at {
    pub const MODE: usize = 0;
    pub const UID: usize = 2;
    pub const SIZE: usize = 4;
    pub const DTIME: usize = 0x14;
    pub const GID: usize = 0x18;
    pub const LINKS: usize = 0x1a;
    pub const BLOCKS: usize = 0x1c;
    pub const FLAGS: usize = 0x20;
    pub const BLOCK: usize = 0x28;
    pub const GENERATION: usize = 0x64;
    pub const XATTR: usize = 0x68;
    pub const SIZE_HIGH: usize = 0x6c;
    pub const BLOCKS_HIGH: usize = 0x74;
    pub const XATTR_HIGH: usize = 0x76;
    pub const UID_HIGH: usize = 0x78;
    pub const GID_HIGH: usize = 0x7a;
    pub const CSUM: usize = 0x7c;
    pub const EXTRA_SIZE: usize = 0x80;
    pub const CSUM_HIGH: usize = 0x82;
}

/// Which of an inode's times.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stamp {
    Access,
    Change,
    Modify,
    Create,
}

impl Stamp {
    /// Offsets of the seconds (none in a small inode), and of the word with nanoseconds and epoch.
    fn offsets(self) -> (usize, usize) {
        match self {
            Stamp::Access => (0x08, 0x8c),
            Stamp::Change => (0x0c, 0x84),
            Stamp::Modify => (0x10, 0x88),
            Stamp::Create => (0x90, 0x94),
        }
    }
}

/// More nanoseconds than the kernel's clock is behind a finer one.
const TICKS: u32 = 50_000_000;

/// The part of an inode that all of them have.
const SMALL: usize = 128;
/// `i_block`.
const BLOCK_LEN: usize = 60;

/// An inode that is being changed.
pub(crate) struct InodeEdit {
    pub ino: u32,
    raw: Vec<u8>,
    block: u64,
    offset: usize,
}

impl InodeEdit {
    fn put16(&mut self, at: usize, value: u16) {
        if let Some(bytes) = self.raw.get_mut(at..at + 2) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn put32(&mut self, at: usize, value: u32) {
        if let Some(bytes) = self.raw.get_mut(at..at + 4) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Whether the part beyond the first 128 bytes reaches to `end`.
    fn reaches(&self, end: usize) -> bool {
        self.raw.len() > SMALL && SMALL + usize::from(le16(&self.raw, at::EXTRA_SIZE)) >= end
    }

    pub fn mode(&self) -> u16 {
        le16(&self.raw, at::MODE)
    }

    pub fn set_mode(&mut self, mode: u16) {
        self.put16(at::MODE, mode);
    }

    pub fn is_dir(&self) -> bool {
        self.mode() & mode::TYPE == mode::DIR
    }

    pub fn is_regular(&self) -> bool {
        self.mode() & mode::TYPE == mode::REG
    }

    pub fn set_owner(&mut self, uid: Option<u32>, gid: Option<u32>) {
        for (id, low, high) in [(uid, at::UID, at::UID_HIGH), (gid, at::GID, at::GID_HIGH)] {
            if let Some(id) = id {
                self.put16(low, id as u16);
                self.put16(high, (id >> 16) as u16);
            }
        }
    }

    pub fn gid(&self) -> u32 {
        u32::from(le16(&self.raw, at::GID)) | u32::from(le16(&self.raw, at::GID_HIGH)) << 16
    }

    pub fn size(&self) -> u64 {
        let high = if self.is_regular() {
            le32(&self.raw, at::SIZE_HIGH)
        } else {
            0
        };
        u64::from(le32(&self.raw, at::SIZE)) | u64::from(high) << 32
    }

    pub fn set_size(&mut self, size: u64) {
        self.put32(at::SIZE, size as u32);
        if self.is_regular() {
            self.put32(at::SIZE_HIGH, (size >> 32) as u32);
        }
    }

    pub fn links(&self) -> u16 {
        le16(&self.raw, at::LINKS)
    }

    pub fn set_links(&mut self, links: u16) {
        self.put16(at::LINKS, links);
    }

    /// When it was deleted; while it is on the orphan list, the next inode there.
    pub fn set_dtime(&mut self, value: u32) {
        self.put32(at::DTIME, value);
    }

    pub fn flags(&self) -> u32 {
        le32(&self.raw, at::FLAGS)
    }

    pub fn set_flags(&mut self, flags: u32) {
        self.put32(at::FLAGS, flags);
    }

    pub fn generation(&self) -> u32 {
        le32(&self.raw, at::GENERATION)
    }

    pub fn set_generation(&mut self, generation: u32) {
        self.put32(at::GENERATION, generation);
    }

    /// `i_block`.
    pub fn i_block(&self) -> &[u8] {
        &self.raw[at::BLOCK..at::BLOCK + BLOCK_LEN]
    }

    pub fn i_block_mut(&mut self) -> &mut [u8] {
        &mut self.raw[at::BLOCK..at::BLOCK + BLOCK_LEN]
    }

    pub fn xattr_block(&self) -> u64 {
        u64::from(le32(&self.raw, at::XATTR)) | u64::from(le16(&self.raw, at::XATTR_HIGH)) << 32
    }

    pub fn set_xattr_block(&mut self, block: u64) {
        self.put32(at::XATTR, block as u32);
        self.put16(at::XATTR_HIGH, (block >> 32) as u16);
    }

    /// The area for attributes, which begins with their magic number.
    pub fn xattr_area(&mut self) -> Option<&mut [u8]> {
        let extra = usize::from(le16(&self.raw, at::EXTRA_SIZE));
        if self.raw.len() <= SMALL || extra == 0 || extra % 4 != 0 {
            return None;
        }
        self.raw
            .get_mut(SMALL + extra..)
            .filter(|area| area.len() >= 8)
    }

    /// Sets the size of the extra fields, in a new inode.
    pub fn set_extra_size(&mut self, extra: u16) {
        self.put16(at::EXTRA_SIZE, extra);
    }

    /// Sets a time, as far as the inode can hold it.
    pub fn set_time(&mut self, which: Stamp, time: Time) {
        let (low, extra) = which.offsets();
        if which == Stamp::Create && !self.reaches(low + 4) {
            return;
        }
        if self.reaches(extra + 4) {
            let sec = time.sec.clamp(i64::from(i32::MIN), 0x3_7fff_ffff);
            // Two bits more for the seconds: how often 2^32 must be added to the signed lower half.
            let epoch = ((sec - i64::from(sec as i32)) >> 32) as u32 & 3;
            self.put32(low, sec as u32);
            self.put32(extra, epoch | time.nsec.min(999_999_999) << 2);
        } else {
            let sec = time.sec.clamp(i64::from(i32::MIN), i64::from(i32::MAX));
            self.put32(low, sec as u32);
        }
    }

    /// A time, in an inode that has room for nanoseconds.
    fn time(&self, which: Stamp) -> Option<Time> {
        let (low, extra) = which.offsets();
        if !self.reaches(extra + 4) {
            return None;
        }
        let word = le32(&self.raw, extra);
        Some(Time {
            sec: i64::from(le32(&self.raw, low) as i32) + (i64::from(word & 3) << 32),
            nsec: word >> 2,
        })
    }

    /// Sets a time to `now`, unless it is a tick or so ahead.
    ///
    /// The kernel's time stamps are never older than one that any filesystem has got from a finer clock,
    /// so they can be ahead of the clock that is read here; and what the kernel has told, it does not
    /// tell again.
    pub fn advance_time(&mut self, which: Stamp, now: Time) {
        let is_ahead = self
            .time(which)
            .is_some_and(|old| now < old && old < now.later(TICKS));
        if !is_ahead {
            self.set_time(which, now);
        }
    }

    /// Fails with what is the matter if this inode's blocks cannot be changed.
    pub fn check_extents(&self) -> Result<()> {
        // Volumes with block-mapped files are common (they were once ext3), so this is no damage.
        if self.flags() & (flags::INLINE_DATA | flags::EXTENTS) == flags::EXTENTS {
            Ok(())
        } else {
            refuse(errno::EOPNOTSUPP)
        }
    }
}

impl Txn<'_> {
    /// Takes an inode out for changing.
    pub fn edit(&self, ino: u32) -> Result<InodeEdit> {
        // For its checks.
        self.vol.any_inode(ino)?;
        self.take_out(ino)
    }

    fn take_out(&self, ino: u32) -> Result<InodeEdit> {
        let (block, at) = fs_ext4::bgd::locate_inode(&self.vol.sb, &self.vol.groups, ino)?;
        let (offset, len) = (at as usize, usize::from(self.vol.sb.inode_size));
        let bytes = self.vol.device.block(block)?;
        let Some(raw) = bytes.bytes().get(offset..offset + len) else {
            return corrupt(format!("inode {ino} does not fit its block"));
        };
        Ok(InodeEdit {
            ino,
            raw: raw.to_vec(),
            block,
            offset,
        })
    }

    /// An inode of which nothing is to be kept.
    pub fn blank(&self, ino: u32) -> Result<InodeEdit> {
        let mut inode = self.take_out(ino)?;
        inode.raw.fill(0);
        Ok(inode)
    }

    /// Stores a changed inode.
    pub fn store(&mut self, inode: &mut InodeEdit) -> Result<()> {
        let csum = &self.vol.csum;
        if let Some((low, high)) =
            csum.compute_inode_checksum(inode.ino, inode.generation(), &inode.raw)
        {
            inode.put16(at::CSUM, low);
            if inode.reaches(at::CSUM_HIGH + 2) {
                inode.put16(at::CSUM_HIGH, high);
            }
        }
        let (offset, raw) = (inode.offset, &inode.raw);
        self.modify(inode.block, |bytes| {
            if let Some(place) = bytes.get_mut(offset..offset + raw.len()) {
                place.copy_from_slice(raw);
            }
        })?;
        self.touch(inode.ino);
        Ok(())
    }

    /// Adds to (or takes from) the blocks that an inode accounts for.
    pub fn add_blocks(&self, inode: &mut InodeEdit, blocks: i64) -> Result<()> {
        let huge = self.vol.sb.feature_ro_compat & ro_compat::HUGE_FILE != 0;
        let unit = if huge && inode.flags() & flags::HUGE_FILE != 0 {
            1
        } else {
            i64::from(self.vol.block_size() / 512)
        };
        let high = if huge {
            le16(&inode.raw, at::BLOCKS_HIGH)
        } else {
            0
        };
        let old = i64::from(le32(&inode.raw, at::BLOCKS)) | i64::from(high) << 32;
        let new = old + blocks * unit;
        if new < 0 {
            return corrupt(format!("inode {} accounts for too few blocks", inode.ino));
        }
        if new >= 1 << if huge { 48 } else { 32 } {
            return refuse(errno::EFBIG);
        }
        inode.put32(at::BLOCKS, new as u32);
        if huge {
            inode.put16(at::BLOCKS_HIGH, (new >> 32) as u16);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode() -> InodeEdit {
        let mut inode = InodeEdit {
            ino: 12,
            raw: vec![0; 256],
            block: 0,
            offset: 0,
        };
        inode.set_extra_size(32);
        inode
    }

    #[test]
    fn what_the_kernel_has_told_is_not_taken_back() {
        let at = |sec, nsec| Time { sec, nsec };
        let mut inode = inode();
        let told = at(0x1_0000_0000, 4_000_000);
        inode.set_time(Stamp::Change, told);
        assert_eq!(inode.time(Stamp::Change), Some(told));
        inode.advance_time(Stamp::Change, at(0xffff_ffff, 996_000_000));
        assert_eq!(inode.time(Stamp::Change), Some(told));
        // A clock that was set is another matter.
        inode.advance_time(Stamp::Change, at(0xffff_ffff, 0));
        assert_eq!(inode.time(Stamp::Change), Some(at(0xffff_ffff, 0)));
        inode.advance_time(Stamp::Change, told);
        assert_eq!(inode.time(Stamp::Change), Some(told));
    }

    #[test]
    fn times_beyond_32_bits_are_kept() {
        let mut inode = inode();
        for sec in [
            0,
            -1,
            -0x8000_0000,
            0x7fff_ffff,
            0x8000_0000,
            0x1_8000_0000,
            0x3_7fff_ffff,
        ] {
            let time = Time {
                sec,
                nsec: 123_456_789,
            };
            inode.set_time(Stamp::Modify, time);
            inode.set_time(Stamp::Create, time);
            let parsed = fs_ext4::inode::Inode::parse(&inode.raw).unwrap();
            assert_eq!((parsed.mtime, parsed.mtime_nsec), (sec, 123_456_789));
            assert_eq!((parsed.crtime, parsed.crtime_nsec), (sec, 123_456_789));
        }
    }
}
