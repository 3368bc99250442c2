// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Making changes durable: commit, checkpoint, flush, and the thread that does so every few seconds.
//!
//! One commit runs at a time, under the lock of the log. It closes the running transaction under the
//! volume's lock, which takes no I/O, and writes it while operations go on with the next one. Whoever
//! waits for the same commit finds it done when the log's lock is free: that is the group commit.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
    thread,
    time::Duration,
};

use crate::{
    device::Block,
    error::{Result, errno, refuse},
    journal::{Batch, Journal},
    txn::{Running, Rw, now},
    volume::Volume,
};

/// How long a change may wait for its commit if nobody asks for it.
const INTERVAL: Duration = Duration::from_secs(5);
/// Blocks that are written in one go when they lie side by side.
const CHUNK: usize = 64;

/// What the log knows.
pub(crate) struct Log {
    /// `None` on a volume without journal.
    pub journal: Option<Journal>,
    /// Blocks that are committed and not yet in place.
    pub checkpoint: HashMap<u64, Arc<Block>>,
}

/// Offsets in the superblock.
mod at {
    pub const FREE_BLOCKS: usize = 0x0c;
    pub const FREE_INODES: usize = 0x10;
    pub const WRITTEN: usize = 0x30;
    pub const LAST_ORPHAN: usize = 0xe8;
    pub const FREE_BLOCKS_HIGH: usize = 0x158;
    pub const WRITTEN_HIGH: usize = 0x274;
}

impl Volume {
    /// Commits what was changed so far. Returns once it is stable.
    pub fn commit(&self) -> Result<()> {
        let rw = self.rw()?;
        self.commit_log(rw, &mut Rw::lock(&rw.log))
    }

    /// Makes an inode durable, with all data that was written to the device before.
    pub fn sync_inode(&self, ino: u32) -> Result<()> {
        let rw = self.rw()?;
        let target = rw.read().touched.get(&ino).copied();
        self.sync_to(rw, target)
    }

    /// Makes everything durable.
    pub fn sync_all(&self) -> Result<()> {
        let rw = self.rw()?;
        let target = rw.read().running.sequence;
        self.sync_to(rw, Some(target))
    }

    fn sync_to(&self, rw: &Rw, target: Option<u32>) -> Result<()> {
        let seen = rw.flushes.load(Ordering::Acquire);
        let mut log = Rw::lock(&rw.log);
        if let Some(target) = target
            && !rw.is_committed(target)
        {
            self.commit_log(rw, &mut log)?;
        }
        if rw.is_aborted() {
            return refuse(errno::EIO);
        }
        // A flush that began after this call began covers the data of this caller too, and it is done,
        // because the lock is held for as long as one takes.
        if rw.flushes.load(Ordering::Acquire) == seen {
            self.flush_device(rw)?;
        }
        Ok(())
    }

    fn flush_device(&self, rw: &Rw) -> Result<()> {
        rw.flushes.fetch_add(1, Ordering::AcqRel);
        let result = self.device.flush();
        if result.is_err() {
            // What was in the device's cache may be lost, and no second flush would say so.
            rw.aborted.store(true, Ordering::Release);
        }
        result
    }

    pub(crate) fn commit_log(&self, rw: &Rw, log: &mut Log) -> Result<()> {
        if rw.is_aborted() {
            return refuse(errno::EIO);
        }
        let batch = self.close_running(rw)?;
        let Some(batch) = batch else { return Ok(()) };
        rw.flushes.fetch_add(1, Ordering::AcqRel);
        let result = self.write_batch(rw, log, &batch);
        if let Err(err) = result {
            rw.aborted.store(true, Ordering::Release);
            eprintln!("ext4: the journal cannot be written, the volume is read-only now: {err}");
            return Err(err);
        }
        let mut state = rw.write();
        state.release(self, &batch.freed);
        rw.committed.store(batch.sequence, Ordering::Release);
        state
            .touched
            .retain(|_, sequence| !rw.is_committed(*sequence));
        Ok(())
    }

    /// Ends the running transaction and begins the next; `None` if nothing is in it.
    fn close_running(&self, rw: &Rw) -> Result<Option<Batch>> {
        let mut guard = rw.write();
        let state = &mut *guard;
        if state.running.is_empty() {
            return Ok(None);
        }
        let mut numbers = std::mem::take(&mut state.running.groups);
        numbers.sort_unstable();
        numbers.dedup();
        let running = &mut state.running;
        let mut add = |block: u64| {
            if running.dirty.insert(block) {
                self.device.pin(block);
            }
        };
        for number in &numbers {
            if let Some(group) = state.groups.get_mut(*number as usize) {
                add(self.write_descriptor(*number, group)?);
            }
        }
        let (free_blocks, free_inodes) = (state.free_blocks, state.free_inodes);
        let last_orphan = state.last_orphan;
        // An append into blocks that the file has already changes nothing there.
        if running.super_dirty {
            add(self.write_super(|sb| {
                put32(sb, at::FREE_BLOCKS, free_blocks as u32);
                if self.sb.feature_incompat & crate::features::incompat::BIT64 != 0 {
                    put32(sb, at::FREE_BLOCKS_HIGH, (free_blocks >> 32) as u32);
                }
                put32(sb, at::FREE_INODES, free_inodes as u32);
                put32(sb, at::LAST_ORPHAN, last_orphan);
                stamp(sb, at::WRITTEN, at::WRITTEN_HIGH);
            })?);
        }

        let sequence = state.running.sequence;
        let next = Running {
            sequence: sequence.wrapping_add(1),
            ..Default::default()
        };
        let running = std::mem::replace(&mut state.running, next);
        let mut numbers: Vec<u64> = running.dirty.into_iter().collect();
        numbers.sort_unstable();
        let mut blocks = Vec::with_capacity(numbers.len());
        for number in numbers {
            blocks.push((number, self.device.block(number)?));
        }
        let mut revoked: Vec<u64> = running.revoked.into_iter().collect();
        revoked.sort_unstable();
        Ok(Some(Batch {
            sequence,
            blocks,
            revoked,
            freed: running.freed,
        }))
    }

    fn write_batch(&self, rw: &Rw, log: &mut Log, batch: &Batch) -> Result<()> {
        let Some(journal) = &mut log.journal else {
            self.write_in_place(batch.blocks.iter().map(|(at, block)| (*at, block)))?;
            self.device.flush()?;
            for (at, _) in &batch.blocks {
                self.device.unpin(*at);
            }
            return Ok(());
        };
        let needed = journal.blocks_for(batch.blocks.len(), batch.revoked.len());
        if needed > journal.free() {
            self.checkpoint_log(log)?;
        }
        let Some(journal) = &mut log.journal else {
            return Ok(());
        };
        journal.write(&self.device, batch)?;
        // What a freed block held must not be written over what comes to be there.
        for at in &batch.revoked {
            if log.checkpoint.remove(at).is_some() {
                self.device.unpin(*at);
            }
        }
        for (at, block) in &batch.blocks {
            if log.checkpoint.insert(*at, block.clone()).is_some() {
                self.device.unpin(*at);
            }
        }
        if journal.free() < journal.capacity() / 2 {
            rw.wake(|signal| signal.commit = true);
        }
        Ok(())
    }

    /// Writes everything that is committed in place, and empties the log.
    pub(crate) fn checkpoint_log(&self, log: &mut Log) -> Result<()> {
        let Some(journal) = &mut log.journal else {
            return Ok(());
        };
        let mut blocks: Vec<(u64, &Arc<Block>)> = log
            .checkpoint
            .iter()
            .map(|(at, block)| (*at, block))
            .collect();
        blocks.sort_unstable_by_key(|(at, _)| *at);
        self.write_in_place(blocks.into_iter())?;
        self.device.flush()?;
        journal.restart(&self.device)?;
        for (at, _) in log.checkpoint.drain() {
            self.device.unpin(at);
        }
        Ok(())
    }

    /// Writes blocks, which are in ascending order, where they belong.
    fn write_in_place<'a>(
        &self,
        blocks: impl Iterator<Item = (u64, &'a Arc<Block>)>,
    ) -> Result<()> {
        let size = self.block_size() as usize;
        let mut start = 0;
        let mut bytes: Vec<u8> = Vec::new();
        for (at, block) in blocks {
            let pending = bytes.len() / size;
            if pending > 0 && (start + pending as u64 != at || pending >= CHUNK) {
                self.device.write(start, &bytes)?;
                bytes.clear();
            }
            if bytes.is_empty() {
                start = at;
            }
            bytes.extend_from_slice(block.bytes());
        }
        if !bytes.is_empty() {
            self.device.write(start, &bytes)?;
        }
        Ok(())
    }

    /// Changes the newest copy of the superblock, and returns the number of its block.
    pub(crate) fn write_super(&self, change: impl FnOnce(&mut [u8])) -> Result<u64> {
        const OFFSET: u64 = 1024;
        const LEN: usize = 1024;
        let block_size = u64::from(self.block_size());
        let (block, at) = (OFFSET / block_size, (OFFSET % block_size) as usize);
        self.device.update(block, |bytes| {
            let Some(sb) = bytes.get_mut(at..at + LEN) else {
                return;
            };
            change(sb);
            if self.csum.enabled {
                let csum = fs_ext4::checksum::linux_crc32c(!0, &sb[..LEN - 4]);
                put32(sb, LEN - 4, csum);
            }
        })?;
        Ok(block)
    }

    /// Starts the thread that commits every few seconds. It ends when the volume is closed or gone.
    pub fn start_committer(self: &Arc<Self>) -> std::io::Result<()> {
        if !self.is_writable() {
            return Ok(());
        }
        let weak = Arc::downgrade(self);
        thread::Builder::new()
            .name("commit".into())
            .spawn(move || while background(&weak) {})?;
        Ok(())
    }
}

/// One round of the thread in the background; `false` at its end.
fn background(volume: &Weak<Volume>) -> bool {
    let Some(volume) = volume.upgrade() else {
        return false;
    };
    let Ok(rw) = volume.rw() else { return false };
    let signal = Rw::lock(&rw.signal.0);
    let waited = rw
        .signal
        .1
        .wait_timeout_while(signal, INTERVAL, |signal| !signal.stop && !signal.commit);
    let mut signal = match waited {
        Ok((signal, _)) => signal,
        Err(poisoned) => poisoned.into_inner().0,
    };
    if signal.stop {
        return false;
    }
    signal.commit = false;
    drop(signal);
    let mut log = Rw::lock(&rw.log);
    // Whoever syncs next hears of an error; here it was printed.
    if volume.commit_log(rw, &mut log).is_err() {
        return false;
    }
    let full = log
        .journal
        .as_ref()
        .is_some_and(|journal| journal.free() < journal.capacity() / 2);
    if full && let Err(err) = volume.checkpoint_log(&mut log) {
        rw.aborted.store(true, Ordering::Release);
        eprintln!("ext4: metadata cannot be written in place, the volume is read-only now: {err}");
    }
    true
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// Writes the time into one of the superblock's fields, whose upper 8 bits are elsewhere.
pub(crate) fn stamp(sb: &mut [u8], low: usize, high: usize) {
    let seconds = now().sec as u64;
    put32(sb, low, seconds as u32);
    sb[high] = (seconds >> 32) as u8;
}
