// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Block groups as a writer sees them: counters and flags in memory, the two bitmaps as blocks.

use fs_ext4::checksum::group_desc_csum;

use crate::{
    device::Block,
    error::{Error, Result, corrupt},
    features::ro_compat,
    txn::Txn,
    volume::Volume,
};

/// `bg_flags`.
pub(crate) mod flags {
    pub const INODE_UNINIT: u16 = 0x1;
    pub const BLOCK_UNINIT: u16 = 0x2;
}

/// A group descriptor, and what is remembered about the group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    pub block_bitmap: u64,
    pub inode_bitmap: u64,
    pub inode_table: u64,
    pub free_blocks: u32,
    pub free_inodes: u32,
    pub used_dirs: u32,
    pub flags: u16,
    /// Inodes at the end of the table that were never used.
    pub itable_unused: u32,
    pub block_csum: u32,
    pub inode_csum: u32,
    /// Where the next search without a better idea begins.
    pub hint: u32,
    pub dirty: bool,
    pub block_bitmap_dirty: bool,
    pub inode_bitmap_dirty: bool,
}

/// Check tag of [`Block::checked_once`].
const TAG_BITMAP: u64 = 4 << 60;

/// Sets `len` bits from `start` on.
pub(crate) fn set_bits(map: &mut [u8], start: u32, len: u32) {
    each_byte(start, len, |at, mask| {
        if let Some(byte) = map.get_mut(at) {
            *byte |= mask;
        }
    });
}

/// Clears `len` bits from `start` on.
pub(crate) fn clear_bits(map: &mut [u8], start: u32, len: u32) {
    each_byte(start, len, |at, mask| {
        if let Some(byte) = map.get_mut(at) {
            *byte &= !mask;
        }
    });
}

/// Whether all of `len` bits from `start` on are set.
pub(crate) fn all_set(map: &[u8], start: u32, len: u32) -> bool {
    let mut all = true;
    each_byte(start, len, |at, mask| {
        all &= map.get(at).is_some_and(|byte| byte & mask == mask);
    });
    all
}

fn each_byte(start: u32, len: u32, mut visit: impl FnMut(usize, u8)) {
    let (mut at, end) = (start, start + len);
    while at < end {
        let first = at % 8;
        let count = (8 - first).min(end - at);
        let mask = ((0xffu16 >> (8 - count)) << first) as u8;
        visit((at / 8) as usize, mask);
        at += count;
    }
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Writes a 32-bit value whose halves are apart; the upper one exists in large descriptors only.
fn put_split(desc: &mut [u8], low: usize, high: usize, value: u32) {
    put16(desc, low, value as u16);
    if desc.len() >= 64 {
        put16(desc, high, (value >> 16) as u16);
    }
}

impl Volume {
    /// The groups as the descriptors on disk have them.
    pub(crate) fn load_groups(&self) -> Vec<Group> {
        let descriptors = self.groups.iter();
        descriptors
            .map(|desc| Group {
                block_bitmap: desc.block_bitmap,
                inode_bitmap: desc.inode_bitmap,
                inode_table: desc.inode_table,
                free_blocks: desc.free_blocks_count,
                free_inodes: desc.free_inodes_count,
                used_dirs: desc.used_dirs_count,
                flags: desc.flags,
                itable_unused: desc.itable_unused,
                block_csum: desc.block_bitmap_csum,
                inode_csum: desc.inode_bitmap_csum,
                hint: 0,
                dirty: false,
                block_bitmap_dirty: false,
                inode_bitmap_dirty: false,
            })
            .collect()
    }

    /// Whether descriptors have a checksum, and with it flags.
    pub(crate) fn has_group_flags(&self) -> bool {
        self.sb.feature_ro_compat & (ro_compat::GDT_CSUM | ro_compat::METADATA_CSUM) != 0
    }

    /// The group and the bit of a block.
    pub(crate) fn group_of(&self, block: u64) -> (u32, u32) {
        let from = block.saturating_sub(u64::from(self.sb.first_data_block));
        let per_group = u64::from(self.sb.blocks_per_group);
        ((from / per_group) as u32, (from % per_group) as u32)
    }

    /// The first block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u64 {
        u64::from(self.sb.first_data_block) + u64::from(group) * u64::from(self.sb.blocks_per_group)
    }

    /// Blocks in a group; the last one may be short.
    pub(crate) fn group_len(&self, group: u32) -> u32 {
        let left = self.sb.blocks_count.saturating_sub(self.group_start(group));
        left.min(u64::from(self.sb.blocks_per_group)) as u32
    }

    fn bitmap_bytes(&self, bits: u32) -> usize {
        (bits as usize / 8).min(self.block_size() as usize)
    }

    /// The checksum of a bitmap, as far as descriptors of this volume hold it.
    fn bitmap_csum(&self, map: &[u8], bits: u32) -> u32 {
        let csum = self.csum.crc(&map[..self.bitmap_bytes(bits)]);
        if self.sb.desc_size >= 64 {
            csum
        } else {
            csum & 0xffff
        }
    }

    fn check_bitmap(&self, block: &Block, number: u64, bits: u32, want: u32) -> Result<()> {
        if !self.csum.enabled {
            return Ok(());
        }
        block.checked_once(TAG_BITMAP | number, |map| {
            if self.bitmap_csum(map, bits) == want {
                Ok(())
            } else {
                Err(Error::Checksum(format!("bitmap in block {number}")))
            }
        })
    }

    /// The block and the offset in it of a group's descriptor.
    fn descriptor_at(&self, group: u32) -> (u64, usize) {
        let size = usize::from(self.sb.desc_size.max(32));
        let per_block = self.block_size() as usize / size;
        let block = u64::from(self.sb.first_data_block) + 1 + group as u64 / per_block as u64;
        (block, group as usize % per_block * size)
    }

    /// Puts a group's descriptor, with all checksums, into the newest copy of its block, which it
    /// returns the number of.
    pub(crate) fn write_descriptor(&self, number: u32, group: &mut Group) -> Result<u64> {
        if self.csum.enabled {
            if group.block_bitmap_dirty {
                let map = self.device.block(group.block_bitmap)?;
                group.block_csum = self.bitmap_csum(map.bytes(), self.sb.blocks_per_group);
            }
            if group.inode_bitmap_dirty {
                let map = self.device.block(group.inode_bitmap)?;
                group.inode_csum = self.bitmap_csum(map.bytes(), self.sb.inodes_per_group);
            }
        }
        group.dirty = false;
        group.block_bitmap_dirty = false;
        group.inode_bitmap_dirty = false;

        let (block, at) = self.descriptor_at(number);
        let size = usize::from(self.sb.desc_size.max(32));
        self.device.update(block, |bytes| {
            let Some(desc) = bytes.get_mut(at..at + size) else {
                return;
            };
            put_split(desc, 0x0c, 0x2c, group.free_blocks);
            put_split(desc, 0x0e, 0x2e, group.free_inodes);
            put_split(desc, 0x10, 0x30, group.used_dirs);
            put16(desc, 0x12, group.flags);
            put_split(desc, 0x18, 0x38, group.block_csum);
            put_split(desc, 0x1a, 0x3a, group.inode_csum);
            put_split(desc, 0x1c, 0x32, group.itable_unused);
            if let Some(csum) = group_desc_csum(&self.sb, &self.csum, number, desc) {
                put16(desc, 0x1e, csum);
            }
        })?;
        Ok(block)
    }
}

impl Txn<'_> {
    /// A group, for looking.
    pub fn group(&self, number: u32) -> Result<&Group> {
        match self.state.groups.get(number as usize) {
            Some(group) => Ok(group),
            None => corrupt(format!("group {number} does not exist")),
        }
    }

    /// A group, for changing.
    pub fn group_mut(&mut self, number: u32) -> Result<&mut Group> {
        let state = &mut *self.state;
        let Some(group) = state.groups.get_mut(number as usize) else {
            return corrupt(format!("group {number} does not exist"));
        };
        self.undo.groups.entry(number).or_insert(*group);
        if !group.dirty {
            group.dirty = true;
            state.running.groups.push(number);
        }
        Ok(group)
    }

    /// Makes sure that a group has a block bitmap, and returns its block number.
    pub fn block_bitmap(&mut self, number: u32) -> Result<u64> {
        let group = *self.group(number)?;
        if self.vol.has_group_flags() && group.flags & flags::BLOCK_UNINIT != 0 {
            let map = self.initial_block_bitmap(number)?;
            self.fresh(group.block_bitmap, map)?;
            let changed = self.group_mut(number)?;
            changed.flags &= !flags::BLOCK_UNINIT;
            changed.block_bitmap_dirty = true;
            return Ok(group.block_bitmap);
        }
        if !group.block_bitmap_dirty {
            let block = self.vol.device.block(group.block_bitmap)?;
            let bits = self.vol.sb.blocks_per_group;
            self.vol
                .check_bitmap(&block, group.block_bitmap, bits, group.block_csum)?;
        }
        Ok(group.block_bitmap)
    }

    /// Makes sure that a group has an inode bitmap, and returns its block number.
    pub fn inode_bitmap(&mut self, number: u32) -> Result<u64> {
        let group = *self.group(number)?;
        if self.vol.has_group_flags() && group.flags & flags::INODE_UNINIT != 0 {
            let bits = self.vol.block_size() * 8;
            let used = self.vol.sb.inodes_per_group;
            let mut map = vec![0; self.vol.block_size() as usize];
            set_bits(&mut map, used, bits.saturating_sub(used));
            self.fresh(group.inode_bitmap, map)?;
            let changed = self.group_mut(number)?;
            changed.flags &= !flags::INODE_UNINIT;
            changed.inode_bitmap_dirty = true;
            changed.itable_unused = used;
            return Ok(group.inode_bitmap);
        }
        if !group.inode_bitmap_dirty {
            let block = self.vol.device.block(group.inode_bitmap)?;
            let bits = self.vol.sb.inodes_per_group;
            self.vol
                .check_bitmap(&block, group.inode_bitmap, bits, group.inode_csum)?;
        }
        Ok(group.inode_bitmap)
    }

    /// The bitmap of a group in which nothing was ever allocated: the group's share of the
    /// filesystem's own blocks, and what is behind its end.
    fn initial_block_bitmap(&self, number: u32) -> Result<Vec<u8>> {
        let vol = self.vol;
        let mut map = vec![0; vol.block_size() as usize];
        let bits = vol.block_size() * 8;
        let (start, len) = (vol.group_start(number), vol.group_len(number));
        set_bits(&mut map, len, bits.saturating_sub(len));
        let head = vol.sb.group_head_metadata_blocks(u64::from(number));
        set_bits(&mut map, 0, (head as u32).min(len));
        let table = u64::from(vol.sb.inodes_per_group) * u64::from(vol.sb.inode_size);
        let table = table.div_ceil(u64::from(vol.block_size()));
        // With flex_bg the tables of one group may be in another.
        for group in &self.state.groups {
            for (at, blocks) in [
                (group.block_bitmap, 1),
                (group.inode_bitmap, 1),
                (group.inode_table, table),
            ] {
                let from = at.max(start);
                let to = (at + blocks).min(start + u64::from(len));
                if from < to {
                    set_bits(&mut map, (from - start) as u32, (to - from) as u32);
                }
            }
        }
        Ok(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_bits() {
        for (start, len) in [
            (0, 1),
            (0, 8),
            (3, 2),
            (5, 3),
            (5, 4),
            (7, 18),
            (9, 0),
            (16, 16),
        ] {
            let mut map = [0u8; 5];
            set_bits(&mut map, start, len);
            for bit in 0..40 {
                let set = map[bit as usize / 8] & (1 << (bit % 8)) != 0;
                assert_eq!(
                    set,
                    (start..start + len).contains(&bit),
                    "{start}+{len}: {bit}"
                );
            }
            assert!(all_set(&map, start, len));
            assert!(!all_set(&map, start, len + 1));
            clear_bits(&mut map, start, len);
            assert_eq!(map, [0; 5]);
        }
    }
}
