// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The block device (or image file) below the volume, the in-memory result of a journal replay, and
//! the cache of metadata blocks.
//!
//! Reads are positioned (`pread`), so no lock is held while the device works. The cache is split into
//! shards, each with its own short lock around a map operation; a reader keeps the block by reference
//! count and needs no lock at all while it parses.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::error::{Error, Result, corrupt};

/// A metadata block as it is after journal replay.
pub struct Block {
    data: Box<[u8]>,
    /// What the block was last checked as; see [`Block::checked_once`].
    checked: AtomicU64,
    /// Set by every look-up, cleared by the eviction clock.
    recent: AtomicBool,
}

impl Block {
    fn new(data: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            data: data.into_boxed_slice(),
            checked: AtomicU64::new(0),
            recent: AtomicBool::new(true),
        })
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

#[derive(Default)]
struct Shard {
    blocks: HashMap<u64, Arc<Block>>,
    clock: VecDeque<u64>,
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

    /// The filesystem's block size.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The file the device was opened as.
    pub fn file(&self) -> &File {
        &self.raw.file
    }

    /// The device's size in bytes.
    pub fn size(&self) -> u64 {
        self.raw.size
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
            found.recent.store(true, Ordering::Relaxed);
            return Ok(found.clone());
        }

        let offset = block.checked_mul(u64::from(self.block_size));
        let Some(offset) = offset else {
            return corrupt(format!("block number {block} is absurd"));
        };
        let mut data = vec![0; self.block_size as usize];
        self.raw.read_exact_at(offset, &mut data)?;
        let fresh = Block::new(data);

        let mut shard = self.shard(block);
        // Somebody else may have read it meanwhile; keep the copy that carries a check mark.
        if let Some(found) = shard.blocks.get(&block) {
            return Ok(found.clone());
        }
        while shard.blocks.len() >= self.blocks_per_shard {
            let Some(victim) = shard.clock.pop_front() else {
                break;
            };
            let keep = shard
                .blocks
                .get(&victim)
                .is_some_and(|b| b.recent.swap(false, Ordering::Relaxed));
            if keep {
                shard.clock.push_back(victim);
            } else {
                shard.blocks.remove(&victim);
            }
        }
        shard.clock.push_back(block);
        shard.blocks.insert(block, fresh.clone());
        Ok(fresh)
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
        self.raw.size
    }
}

/// The device alone.
pub struct RawDevice {
    file: File,
    size: u64,
}

impl RawDevice {
    /// Takes a device or image that is open for reading.
    pub fn new(file: File) -> Result<Self> {
        // The length of a block device is zero in its metadata; seeking finds the true one.
        let size = (&file).seek(SeekFrom::End(0))?;
        Ok(Self { file, size })
    }

    /// A second handle on the same device.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            size: self.size,
        })
    }

    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        match offset.checked_add(buf.len() as u64) {
            Some(end) if end <= self.size => Ok(self.file.read_exact_at(buf, offset)?),
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
        self.size
    }
}
