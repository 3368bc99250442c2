// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The block device (or image file) below the volume, the in-memory result of a journal replay, and
//! the cache of metadata blocks.
//!
//! Reads are positioned (`pread`), so no lock is held while the device works. The cache is split into
//! shards, each with its own short lock around a map operation; a reader keeps the block by reference
//! count and needs no lock at all while it parses.
//!
//! A block never changes while somebody else holds it: a writer puts a changed copy in its place. So the
//! copies that wait for their transaction to commit, or to be written in place, need no care. Blocks
//! that the device does not have yet are pinned, and stay in the cache.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    disk::Disk,
    error::{Error, Result, corrupt},
};

/// A metadata block as it is after journal replay.
pub struct Block {
    data: Box<[u8]>,
    /// What the block was last checked as; see [`Block::checked_once`].
    checked: AtomicU64,
    /// Set by every look-up, cleared by the eviction clock.
    recent: AtomicBool,
}

impl Block {
    pub(crate) fn new(data: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            data: data.into_boxed_slice(),
            checked: AtomicU64::new(0),
            recent: AtomicBool::new(true),
        })
    }

    /// A copy for changing, still marked as checked: what changes it keeps it sound.
    fn copy(&self) -> Self {
        Self {
            data: self.data.clone(),
            checked: AtomicU64::new(self.checked.load(Ordering::Acquire)),
            recent: AtomicBool::new(true),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// Runs `check` unless this cached copy has already passed it under the same `tag`, which names
    /// both the kind of check and its owner. A block that two owners claim is simply checked again.
    pub(crate) fn checked_once(
        &self,
        tag: u64,
        check: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        if self.checked.load(Ordering::Acquire) != tag {
            check(&self.data)?;
            self.checked.store(tag, Ordering::Release);
        }
        Ok(())
    }
}

/// The newest copy of a block.
struct Slot {
    block: Arc<Block>,
    /// How many reasons there are to keep it that the device could not make up for.
    pins: u32,
}

#[derive(Default)]
struct Shard {
    blocks: HashMap<u64, Slot>,
    clock: VecDeque<u64>,
}

impl Shard {
    /// Makes room for one more block, unless all that is looked at must stay.
    fn evict(&mut self, limit: usize) {
        const TRIES: usize = 32;
        for _ in 0..TRIES {
            if self.blocks.len() < limit {
                return;
            }
            let Some(victim) = self.clock.pop_front() else {
                return;
            };
            match self.blocks.get(&victim) {
                Some(slot) if slot.pins > 0 || slot.block.recent.swap(false, Ordering::Relaxed) => {
                    self.clock.push_back(victim);
                }
                Some(_) => {
                    self.blocks.remove(&victim);
                }
                None => {}
            }
        }
    }
}

const SHARDS: usize = 32;

/// The device with its journal overlay and metadata cache.
pub struct Device {
    raw: RawDevice,
    block_size: u32,
    /// Blocks that a committed transaction in the journal rewrites. They never reach the device.
    overlay: HashMap<u64, Arc<Block>>,
    shards: Vec<Mutex<Shard>>,
    blocks_per_shard: usize,
}

impl Device {
    /// A device of `block_size` with at most `cache_bytes` of cached metadata.
    pub fn new(raw: RawDevice, block_size: u32, cache_bytes: usize) -> Self {
        let blocks = cache_bytes / block_size as usize;
        Self {
            raw,
            block_size,
            overlay: HashMap::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            blocks_per_shard: (blocks / SHARDS).max(8),
        }
    }

    /// Lets the journal's copy of `block` stand in for the device's.
    pub(crate) fn overlay(&mut self, block: u64, data: Vec<u8>) {
        self.overlay.insert(block, Block::new(data));
    }

    /// The blocks that exist in the journal only, in no order.
    pub(crate) fn overlaid(&self) -> impl Iterator<Item = u64> + '_ {
        self.overlay.keys().copied()
    }

    /// The same with their contents, ascending.
    pub(crate) fn overlay_blocks(&self) -> Vec<(u64, Arc<Block>)> {
        let all = self.overlay.iter();
        let mut all: Vec<_> = all.map(|(at, block)| (*at, block.clone())).collect();
        all.sort_unstable_by_key(|(at, _)| *at);
        all
    }

    /// The filesystem's block size.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The file the device was opened as, if it is one.
    pub fn file(&self) -> Option<File> {
        self.raw.0.file()
    }

    /// The device itself.
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.raw.0
    }

    /// The device's size in bytes.
    pub fn size(&self) -> u64 {
        self.raw.0.size()
    }

    fn shard(&self, block: u64) -> MutexGuard<'_, Shard> {
        // The map is consistent between any two statements, so a poisoned lock is still usable.
        self.shards[(block % SHARDS as u64) as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// One metadata block, from the journal, the cache, or the device.
    pub fn block(&self, block: u64) -> Result<Arc<Block>> {
        if let Some(found) = self.overlay.get(&block) {
            return Ok(found.clone());
        }
        if let Some(found) = self.shard(block).blocks.get(&block) {
            found.block.recent.store(true, Ordering::Relaxed);
            return Ok(found.block.clone());
        }

        let mut data = vec![0; self.block_size as usize];
        self.raw.read_exact_at(self.offset(block)?, &mut data)?;
        let fresh = Block::new(data);

        let mut shard = self.shard(block);
        // Somebody else may have read it meanwhile; keep the copy that carries a check mark.
        if let Some(found) = shard.blocks.get(&block) {
            return Ok(found.block.clone());
        }
        shard.evict(self.blocks_per_shard);
        shard.clock.push_back(block);
        shard.blocks.insert(
            block,
            Slot {
                block: fresh.clone(),
                pins: 0,
            },
        );
        Ok(fresh)
    }

    fn offset(&self, block: u64) -> Result<u64> {
        match block.checked_mul(u64::from(self.block_size)) {
            Some(offset) => Ok(offset),
            None => corrupt(format!("block number {block} is absurd")),
        }
    }

    /// The newest copy of a block, if it is in memory.
    pub(crate) fn peek(&self, block: u64) -> Option<Arc<Block>> {
        let shard = self.shard(block);
        shard.blocks.get(&block).map(|slot| slot.block.clone())
    }

    /// Puts a newer copy of a block into the cache.
    pub(crate) fn replace(&self, block: u64, newer: Arc<Block>) {
        let mut shard = self.shard(block);
        if let Some(slot) = shard.blocks.get_mut(&block) {
            slot.block = newer;
            return;
        }
        shard.evict(self.blocks_per_shard);
        shard.clock.push_back(block);
        shard.blocks.insert(
            block,
            Slot {
                block: newer,
                pins: 0,
            },
        );
    }

    /// Changes the newest copy of a block, in place if nobody else holds it.
    pub(crate) fn update<R>(&self, block: u64, change: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        let old = self.block(block)?;
        let mut shard = self.shard(block);
        if let Some(slot) = shard.blocks.get_mut(&block) {
            drop(old);
            if let Some(own) = Arc::get_mut(&mut slot.block) {
                return Ok(change(&mut own.data));
            }
            let mut copy = slot.block.copy();
            let result = change(&mut copy.data);
            slot.block = Arc::new(copy);
            return Ok(result);
        }
        drop(shard);
        let mut copy = old.copy();
        let result = change(&mut copy.data);
        self.replace(block, Arc::new(copy));
        Ok(result)
    }

    /// Keeps a block in the cache, which has it, until as many calls of [`Device::unpin`].
    pub(crate) fn pin(&self, block: u64) {
        if let Some(slot) = self.shard(block).blocks.get_mut(&block) {
            slot.pins += 1;
        }
    }

    /// Takes one pin back.
    pub(crate) fn unpin(&self, block: u64) {
        if let Some(slot) = self.shard(block).blocks.get_mut(&block) {
            slot.pins = slot.pins.saturating_sub(1);
        }
    }

    /// Drops a block that nobody pinned.
    pub(crate) fn drop_clean(&self, block: u64) {
        let mut shard = self.shard(block);
        if shard.blocks.get(&block).is_some_and(|slot| slot.pins == 0) {
            shard.blocks.remove(&block);
        }
    }

    /// Writes whole blocks to the device, past the cache.
    pub(crate) fn write(&self, block: u64, data: &[u8]) -> Result<()> {
        let offset = self.offset(block)?;
        match offset.checked_add(data.len() as u64) {
            Some(end) if end <= self.size() => Ok(self.raw.0.write_at(offset, data)?),
            _ => corrupt(format!("block {block} is beyond the end of the device")),
        }
    }

    /// Flushes the device's own cache.
    pub(crate) fn flush(&self) -> Result<()> {
        Ok(self.raw.0.flush()?)
    }

    /// The blocks in the cache, in no order.
    pub(crate) fn cached(&self) -> Vec<u64> {
        let all = 0..SHARDS as u64;
        all.flat_map(|shard| self.shard(shard).blocks.keys().copied().collect::<Vec<_>>())
            .collect()
    }

    /// Reads file data: bytes `within` into `block` and onwards, across blocks, past the cache but
    /// not past the journal.
    pub fn read_data(&self, block: u64, within: u64, buf: &mut [u8]) -> Result<()> {
        let block_size = u64::from(self.block_size);
        let start = block
            .checked_mul(block_size)
            .and_then(|at| at.checked_add(within));
        let Some(start) = start else {
            return corrupt(format!("block number {block} is absurd"));
        };
        self.raw.read_exact_at(start, buf)?;
        if self.overlay.is_empty() {
            return Ok(());
        }
        let mut done = 0;
        while done < buf.len() {
            let at = start + done as u64;
            let inside = (at % block_size) as usize;
            let step = (self.block_size as usize - inside).min(buf.len() - done);
            if let Some(newer) = self.overlay.get(&(at / block_size)) {
                buf[done..done + step].copy_from_slice(&newer.data[inside..inside + step]);
            }
            done += step;
        }
        Ok(())
    }
}

impl fs_ext4::block_io::BlockDevice for Device {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fs_ext4::Result<()> {
        let block_size = u64::from(self.block_size);
        self.read_data(offset / block_size, offset % block_size, buf)
            .map_err(|err| match err {
                Error::Io(err) => fs_ext4::Error::Io(err),
                _ => fs_ext4::Error::OutOfBounds,
            })
    }

    fn size_bytes(&self) -> u64 {
        self.size()
    }
}

/// The device alone.
#[derive(Clone)]
pub struct RawDevice(Arc<dyn Disk>);

impl RawDevice {
    /// Takes a device or image.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self(disk)
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.0.size() => Ok(self.0.read_at(offset, buf)?),
            _ => corrupt(format!(
                "{} bytes at {offset} are beyond the end of the device",
                buf.len()
            )),
        }
    }
}

impl fs_ext4::block_io::BlockDevice for RawDevice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> fs_ext4::Result<()> {
        self.read_exact_at(offset, buf).map_err(|err| match err {
            Error::Io(err) => fs_ext4::Error::Io(err),
            _ => fs_ext4::Error::OutOfBounds,
        })
    }

    fn size_bytes(&self) -> u64 {
        self.0.size()
    }
}
