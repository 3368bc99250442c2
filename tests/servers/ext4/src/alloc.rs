// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Allocating and freeing blocks and inodes.

use crate::{
    error::{Result, corrupt, errno, refuse},
    groups::{all_set, clear_bits, set_bits},
    inode::ROOT,
    txn::Txn,
    volume::Volume,
};

/// Groups that are searched for a run of the full length before a shorter one is taken.
const PATIENCE: u32 = 32;
/// A run right at the goal is taken even if it is shorter than wanted, but not if it is tiny.
const GOOD_ENOUGH: u32 = 16;

fn word(map: &[u8], at: usize) -> u64 {
    map.get(at..at + 8).map_or(!0, |bytes| {
        u64::from_le_bytes([
            bytes[0], bytes[1], bytes[2], bytes[3], bytes[4], bytes[5], bytes[6], bytes[7],
        ])
    })
}

/// A group's bits that are free: neither in the bitmap nor waiting for a commit.
struct FreeBits<'a> {
    map: &'a [u8],
    busy: Option<&'a [u8]>,
    end: u32,
}

impl FreeBits<'_> {
    fn used(&self, at: usize) -> u64 {
        word(self.map, at) | self.busy.map_or(0, |busy| word(busy, at))
    }

    /// The first bit from `from` on that is set (or clear), or the end.
    fn next(&self, from: u32, set: bool) -> u32 {
        let mut at = from;
        while at < self.end {
            let mut bits = self.used((at / 64 * 8) as usize);
            if !set {
                bits = !bits;
            }
            bits &= !0 << (at % 64);
            if bits != 0 {
                return (at / 64 * 64 + bits.trailing_zeros()).min(self.end);
            }
            at = (at / 64 + 1) * 64;
        }
        self.end
    }

    /// The first free run from `from` on that has `want` bits, or the longest that is there.
    fn run(&self, from: u32, want: u32) -> Option<(u32, u32)> {
        let mut best: Option<(u32, u32)> = None;
        let mut at = from;
        loop {
            let start = self.next(at, false);
            if start >= self.end {
                return best;
            }
            let stop = self.next(start, true);
            let len = stop - start;
            if len >= want {
                return Some((start, want));
            }
            if best.is_none_or(|(_, most)| len > most) {
                best = Some((start, len));
            }
            at = stop;
        }
    }
}

impl Volume {
    /// Calls `visit` with group, bit and length for each part of a run of blocks.
    pub(crate) fn each_group_part(
        &self,
        start: u64,
        len: u64,
        mut visit: impl FnMut(u32, u32, u32),
    ) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let (group, bit) = self.group_of(at);
            let part = u64::from(self.sb.blocks_per_group - bit).min(end - at);
            visit(group, bit, part as u32);
            at += part;
        }
    }
}

impl Txn<'_> {
    /// Allocates up to `want` blocks in one run, at `goal` if possible. Returns first block and length.
    pub fn alloc_blocks(&mut self, goal: u64, want: u64) -> Result<(u64, u64)> {
        let vol = self.vol;
        let groups = self.state.groups.len() as u32;
        let kept = if self.may_dip { 0 } else { vol.kept_back() };
        let left = self.state.free_blocks.saturating_sub(kept);
        if left == 0 {
            return refuse(errno::ENOSPC);
        }
        let most = u64::from(vol.sb.blocks_per_group / 2).min(left);
        let want = want.clamp(1, most) as u32;
        let goal = goal.clamp(
            u64::from(vol.sb.first_data_block),
            vol.sb.blocks_count.saturating_sub(1),
        );
        let (first, bit) = vol.group_of(goal);
        let mut best: Option<(u32, u32, u32)> = None;
        for step in 0..groups {
            if step > PATIENCE && best.is_some() {
                break;
            }
            let number = (first + step) % groups;
            let group = *self.group(number)?;
            if group.free_blocks == 0 {
                continue;
            }
            let bitmap = self.block_bitmap(number)?;
            let map = vol.device.block(bitmap)?;
            let free = FreeBits {
                map: map.bytes(),
                busy: self.state.busy.get(&number).map(Vec::as_slice),
                end: vol.group_len(number),
            };
            if step == 0 {
                let stop = free.next(bit, true);
                let len = stop - bit;
                if len >= want.min(GOOD_ENOUGH) {
                    let len = len.min(want);
                    drop(map);
                    return self.take(number, bit, len);
                }
            }
            let from = if step == 0 { bit } else { group.hint };
            let mut found = free.run(from, want);
            if found.is_none_or(|(_, len)| len < want) && from > 0 {
                let other = free.run(0, want);
                if other.map_or(0, |(_, len)| len) > found.map_or(0, |(_, len)| len) {
                    found = other;
                }
            }
            let Some((start, len)) = found else { continue };
            if len >= want {
                drop(map);
                return self.take(number, start, len);
            }
            if best.is_none_or(|(_, _, most)| len > most) {
                best = Some((number, start, len));
            }
        }
        match best {
            Some((number, start, len)) => self.take(number, start, len),
            None => refuse(errno::ENOSPC),
        }
    }

    fn take(&mut self, number: u32, start: u32, len: u32) -> Result<(u64, u64)> {
        let bitmap = self.block_bitmap(number)?;
        self.modify(bitmap, |map| set_bits(map, start, len))?;
        let group = self.group_mut(number)?;
        group.block_bitmap_dirty = true;
        group.hint = start + len;
        if group.free_blocks < len {
            return corrupt(format!("group {number} has fewer free blocks than it says"));
        }
        group.free_blocks -= len;
        self.state.free_blocks = self.state.free_blocks.saturating_sub(u64::from(len));
        self.state.running.super_dirty = true;
        Ok((
            self.vol.group_start(number) + u64::from(start),
            u64::from(len),
        ))
    }

    /// Allocates one block for metadata, with `bytes` as its contents.
    pub fn alloc_metadata(&mut self, goal: u64, bytes: Vec<u8>) -> Result<u64> {
        let (block, _) = self.alloc_blocks(goal, 1)?;
        self.fresh(block, bytes)?;
        Ok(block)
    }

    /// Frees a run of blocks. They stay out of use until the transaction is committed.
    pub fn free_blocks(&mut self, start: u64, len: u64, metadata: bool) -> Result<()> {
        self.vol.check_blocks(start, len, "freed blocks")?;
        let mut parts = Vec::new();
        self.vol.each_group_part(start, len, |group, bit, part| {
            parts.push((group, bit, part))
        });
        let map_len = self.vol.block_size() as usize;
        for (number, bit, part) in parts {
            let bitmap = self.block_bitmap(number)?;
            let sound = self.modify(bitmap, |map| {
                let sound = all_set(map, bit, part);
                clear_bits(map, bit, part);
                sound
            })?;
            if !sound {
                return corrupt(format!("blocks {start}+{len} are free already"));
            }
            let group = self.group_mut(number)?;
            group.block_bitmap_dirty = true;
            group.free_blocks += part;
            let busy = self.state.busy.entry(number);
            set_bits(busy.or_insert_with(|| vec![0; map_len]), bit, part);
        }
        self.state.free_blocks += len;
        self.state.running.freed.push((start, len));
        self.state.running.super_dirty = true;
        if metadata {
            for block in start..start + len {
                self.forget(block);
            }
        }
        Ok(())
    }

    /// Allocates an inode: a directory where there is room to grow, anything else beside its directory.
    pub fn alloc_inode(&mut self, parent: u32, is_dir: bool) -> Result<u32> {
        let groups = self.state.groups.len() as u32;
        let home = (parent - 1) / self.vol.sb.inodes_per_group;
        let first = if is_dir {
            self.dir_group(parent, home)
        } else {
            home
        };
        for step in 0..groups {
            let number = (first + step) % groups;
            if self.group(number)?.free_inodes == 0 {
                continue;
            }
            let bitmap = self.inode_bitmap(number)?;
            let map = self.vol.device.block(bitmap)?;
            let free = FreeBits {
                map: map.bytes(),
                busy: None,
                end: self.vol.sb.inodes_per_group,
            };
            // The reserved inodes of the first group may not be marked as used.
            let from = if number == 0 {
                self.vol.sb.first_inode - 1
            } else {
                0
            };
            let bit = free.next(from, false);
            drop(map);
            if bit >= self.vol.sb.inodes_per_group {
                continue;
            }
            self.modify(bitmap, |map| set_bits(map, bit, 1))?;
            let per_group = self.vol.sb.inodes_per_group;
            let group = self.group_mut(number)?;
            group.inode_bitmap_dirty = true;
            group.free_inodes = group.free_inodes.saturating_sub(1);
            group.itable_unused = group.itable_unused.min(per_group - bit - 1);
            if is_dir {
                group.used_dirs += 1;
            }
            self.state.free_inodes = self.state.free_inodes.saturating_sub(1);
            self.state.running.super_dirty = true;
            return Ok(number * per_group + bit + 1);
        }
        refuse(errno::ENOSPC)
    }

    /// The group for a new directory: below the root they are spread, elsewhere they stay close.
    fn dir_group(&self, parent: u32, home: u32) -> u32 {
        let groups = &self.state.groups;
        let average_free = self.state.free_inodes / groups.len().max(1) as u64;
        let roomy = |number: &u32| {
            groups.get(*number as usize).is_some_and(|group| {
                u64::from(group.free_inodes) >= average_free.max(1) && group.free_blocks > 0
            })
        };
        if parent == ROOT {
            let fewest = (0..groups.len() as u32)
                .filter(roomy)
                .min_by_key(|number| groups[*number as usize].used_dirs);
            return fewest.unwrap_or(home);
        }
        home
    }

    /// Frees an inode's number.
    pub fn free_inode(&mut self, ino: u32, is_dir: bool) -> Result<()> {
        let per_group = self.vol.sb.inodes_per_group;
        let (number, bit) = ((ino - 1) / per_group, (ino - 1) % per_group);
        let bitmap = self.inode_bitmap(number)?;
        let sound = self.modify(bitmap, |map| {
            let sound = all_set(map, bit, 1);
            clear_bits(map, bit, 1);
            sound
        })?;
        if !sound {
            return corrupt(format!("inode {ino} is free already"));
        }
        let group = self.group_mut(number)?;
        group.inode_bitmap_dirty = true;
        group.free_inodes += 1;
        if is_dir {
            group.used_dirs = group.used_dirs.saturating_sub(1);
        }
        self.state.free_inodes += 1;
        self.state.running.super_dirty = true;
        Ok(())
    }

    /// Where the blocks of an inode without any should be.
    pub fn home_of(&self, ino: u32) -> u64 {
        let number = (ino - 1) / self.vol.sb.inodes_per_group;
        let hint = self.group(number).map_or(0, |group| group.hint);
        let len = self.vol.group_len(number);
        self.vol.group_start(number) + u64::from(if hint < len { hint } else { 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_runs_are_found() {
        let mut map = vec![0xff; 32];
        clear_bits(&mut map, 3, 2);
        clear_bits(&mut map, 60, 10);
        clear_bits(&mut map, 200, 5);
        let mut busy = vec![0; 32];
        set_bits(&mut busy, 64, 1);
        let free = FreeBits {
            map: &map,
            busy: Some(&busy),
            end: 203,
        };
        assert_eq!(free.run(0, 1), Some((3, 1)));
        assert_eq!(free.run(0, 4), Some((60, 4)));
        assert_eq!(free.run(61, 5), Some((65, 5)));
        assert_eq!(free.run(70, 5), Some((200, 3)));
        assert_eq!(free.run(0, 100), Some((65, 5)));
        assert_eq!(free.run(203, 1), None);
    }
}
