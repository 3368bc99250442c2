// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Operations on a volume that is mounted for writing.
//!
//! Each operation is a [`Txn`]: it holds the volume's one lock for writing, changes blocks in the cache,
//! and adds them to the running transaction, of which there is one. If the operation fails, all that
//! it changed is put back, so an operation happens as a whole or not at all, also where it runs out of
//! space or meets damage half-way. Readers hold the lock shared.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    commit::Log,
    device::Block,
    error::{Error, Result, errno, refuse},
    groups::{Group, clear_bits},
    inode::Time,
    orphans::Link,
    volume::Volume,
};

/// The transaction that operations add to.
#[derive(Default)]
pub(crate) struct Running {
    /// Its sequence number.
    pub sequence: u32,
    /// Blocks it changes.
    pub dirty: HashSet<u64>,
    /// Metadata blocks it frees.
    pub revoked: HashSet<u64>,
    /// Runs of blocks it frees, which stay out of use until it is committed.
    pub freed: Vec<(u64, u64)>,
    /// Groups whose descriptors change; some may be here twice.
    pub groups: Vec<u32>,
    /// Whether the superblock changes.
    pub super_dirty: bool,
}

impl Running {
    pub fn is_empty(&self) -> bool {
        self.dirty.is_empty() && self.groups.is_empty() && !self.super_dirty
    }

    /// An upper bound of the blocks in it.
    pub fn len(&self) -> usize {
        self.dirty.len() + self.groups.len().min(256) + 1
    }
}

/// What changes while the volume is mounted, except for the blocks.
pub(crate) struct State {
    pub groups: Vec<Group>,
    pub free_blocks: u64,
    pub free_inodes: u64,
    /// The newest inode without a name, or one whose truncation is under way.
    pub last_orphan: u32,
    pub running: Running,
    /// Freed blocks that may not be used again yet, as bitmaps of their groups.
    pub busy: HashMap<u32, Vec<u8>>,
    /// In which transaction an inode was last changed, unless that is committed.
    pub touched: HashMap<u32, u32>,
    /// Unwritten blocks behind the end of files that nobody asked for: first and end.
    pub prealloc: HashMap<u32, (u64, u64)>,
}

impl State {
    /// Lets freed blocks be used again.
    pub fn release(&mut self, vol: &Volume, freed: &[(u64, u64)]) {
        for (start, len) in freed {
            vol.each_group_part(*start, *len, |group, bit, part| {
                if let Some(busy) = self.busy.get_mut(&group) {
                    clear_bits(busy, bit, part);
                }
            });
        }
        if !freed.is_empty() {
            self.busy
                .retain(|_, busy| busy.iter().any(|byte| *byte != 0));
        }
    }
}

/// What a thread in the background waits for.
#[derive(Default)]
pub(crate) struct Signal {
    pub stop: bool,
    pub commit: bool,
}

/// The part of a [`Volume`] that exists only if it is mounted for writing. Locks are taken in this order:
/// `log`, `state`, then one of the others.
pub(crate) struct Rw {
    pub log: Mutex<Log>,
    pub state: RwLock<State>,
    /// The sequence number of the last committed transaction.
    pub committed: AtomicU32,
    /// Counts flushes of the device as they begin.
    pub flushes: AtomicU64,
    /// Set once the journal could not be written: nothing is changed any more.
    pub aborted: AtomicBool,
    /// Set with `aborted` if that was the kernel's wish.
    pub shut: AtomicBool,
    /// Set once the volume was unmounted.
    pub closed: AtomicBool,
    /// Nothing may change. Set with `state` locked for writing.
    pub frozen: AtomicBool,
    /// Inodes that the kernel forgot meanwhile.
    pub forgotten: Mutex<Vec<u32>>,
    /// Inodes on the orphan list, with their neighbours.
    pub orphans: Mutex<HashMap<u32, Link>>,
    /// How often the kernel was told of an inode and has not forgotten it.
    pub refs: Mutex<HashMap<u32, u64>>,
    pub signal: (Mutex<Signal>, Condvar),
    /// Blocks that a transaction may have before operations wait for its commit.
    pub limit: usize,
}

impl Rw {
    /// A lock that is usable even if a thread panicked with it: operations are undone or complete.
    pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire) || self.is_closed()
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether a transaction is committed; numbers wrap.
    pub fn is_committed(&self, sequence: u32) -> bool {
        let committed = self.committed.load(Ordering::Acquire);
        (committed.wrapping_sub(sequence) as i32) >= 0
    }

    /// Wakes the thread in the background.
    pub fn wake(&self, change: impl FnOnce(&mut Signal)) {
        change(&mut Self::lock(&self.signal.0));
        self.signal.1.notify_all();
    }
}

/// Keeps the volume from changing while several of its blocks are looked at.
pub struct Shared<'a>(#[allow(dead_code)] Option<RwLockReadGuard<'a, State>>);

/// A block as it was before an operation.
struct Old {
    block: Option<Arc<Block>>,
    dirty: bool,
}

/// What an operation has to put back if it fails.
pub(crate) struct Undo {
    blocks: HashMap<u64, Old>,
    pub groups: HashMap<u32, Group>,
    free_blocks: u64,
    free_inodes: u64,
    last_orphan: u32,
    super_dirty: bool,
    freed: usize,
    revoked: Vec<u64>,
    touched: Vec<(u32, Option<u32>)>,
    pub orphans: Vec<(u32, Option<Link>)>,
}

/// An operation under way.
pub(crate) struct Txn<'a> {
    pub vol: &'a Volume,
    pub rw: &'a Rw,
    pub state: RwLockWriteGuard<'a, State>,
    pub undo: Undo,
    pub now: Time,
    /// May take the blocks that are kept back for operations that must not fail for lack of space:
    /// those that make written data readable, and those that free blocks.
    pub may_dip: bool,
}

impl Volume {
    /// Whether the volume is mounted for writing.
    pub fn is_writable(&self) -> bool {
        self.rw.is_some()
    }

    pub(crate) fn rw(&self) -> Result<&Rw> {
        self.rw.as_ref().ok_or(Error::Errno(errno::EROFS))
    }

    /// Holds off changes for as long as the result lives. Reading needs it if there are writers.
    pub fn shared(&self) -> Shared<'_> {
        Shared(self.rw.as_ref().map(Rw::read))
    }

    /// Runs an operation, which is undone as a whole if it fails. If there was no space, it is run once
    /// more after a commit, which lets freed blocks be used again.
    pub(crate) fn transact<R>(&self, mut run: impl FnMut(&mut Txn<'_>) -> Result<R>) -> Result<R> {
        let rw = self.rw()?;
        let mut again = true;
        loop {
            let mut txn = self.begin(rw)?;
            let result = run(&mut txn);
            let Err(err) = result else { return result };
            txn.roll_back();
            let blocked = !txn.state.busy.is_empty() || !txn.state.prealloc.is_empty();
            drop(txn);
            if again && blocked && matches!(err, Error::Errno(errno::ENOSPC)) {
                again = false;
                self.trim_all()?;
                self.commit()?;
                continue;
            }
            return Err(err);
        }
    }

    fn begin<'a>(&'a self, rw: &'a Rw) -> Result<Txn<'a>> {
        let state = loop {
            if rw.is_aborted() {
                let shut = rw.shut.load(Ordering::Acquire);
                return refuse(if shut { errno::EIO } else { errno::EROFS });
            }
            let state = rw.write();
            if rw.frozen.load(Ordering::Acquire) {
                return refuse(errno::EBUSY);
            }
            let len = state.running.len();
            if len < rw.limit {
                if len > rw.limit / 2 {
                    rw.wake(|signal| signal.commit = true);
                }
                break state;
            }
            drop(state);
            self.commit()?;
        };
        let undo = Undo {
            blocks: HashMap::new(),
            groups: HashMap::new(),
            free_blocks: state.free_blocks,
            free_inodes: state.free_inodes,
            last_orphan: state.last_orphan,
            super_dirty: state.running.super_dirty,
            freed: state.running.freed.len(),
            revoked: Vec::new(),
            touched: Vec::new(),
            orphans: Vec::new(),
        };
        Ok(Txn {
            vol: self,
            rw,
            state,
            undo,
            now: now(),
            may_dip: false,
        })
    }
}

/// The time, as inodes record it: the clock is that of the kernel's own time stamps, so that one which
/// the kernel sets later is never the earlier.
pub(crate) fn now() -> Time {
    let (sec, nsec) = fuse_iomap::file_time();
    Time { sec, nsec }
}

impl Txn<'_> {
    /// Remembers how a block was, and adds it to the transaction. `old` is its newest copy.
    fn enlist(&mut self, block: u64, old: Option<Arc<Block>>) {
        let dirty = self.state.running.dirty.contains(&block);
        self.undo
            .blocks
            .entry(block)
            .or_insert(Old { block: old, dirty });
        if !dirty {
            self.state.running.dirty.insert(block);
            self.vol.device.pin(block);
        }
    }

    /// Changes a metadata block.
    pub fn modify<R>(&mut self, block: u64, change: impl FnOnce(&mut [u8]) -> R) -> Result<R> {
        if !self.undo.blocks.contains_key(&block) {
            let old = self.vol.device.block(block)?;
            self.enlist(block, Some(old));
        }
        self.vol.device.update(block, change)
    }

    /// Puts a new metadata block in place of whatever was there.
    pub fn fresh(&mut self, block: u64, bytes: Vec<u8>) -> Result<()> {
        let old = self.vol.device.peek(block);
        self.vol.device.replace(block, Block::new(bytes));
        self.enlist(block, old);
        Ok(())
    }

    /// A metadata block is freed: it need not be written any more, and older copies in the journal
    /// must not be replayed over what comes to be there.
    pub fn forget(&mut self, block: u64) {
        let running = &mut self.state.running;
        let dirty = running.dirty.remove(&block);
        let old = self.vol.device.peek(block);
        self.undo
            .blocks
            .entry(block)
            .or_insert(Old { block: old, dirty });
        if dirty {
            self.vol.device.unpin(block);
        }
        if running.revoked.insert(block) {
            self.undo.revoked.push(block);
        }
    }

    /// Notes that an inode is changed by the running transaction.
    pub fn touch(&mut self, ino: u32) {
        let sequence = self.state.running.sequence;
        let old = self.state.touched.insert(ino, sequence);
        if old != Some(sequence) {
            self.undo.touched.push((ino, old));
        }
    }

    fn roll_back(&mut self) {
        let state = &mut *self.state;
        let device = &self.vol.device;
        for (block, old) in self.undo.blocks.drain() {
            let dirty = state.running.dirty.contains(&block);
            if let Some(copy) = old.block {
                device.replace(block, copy);
            }
            if old.dirty && !dirty {
                state.running.dirty.insert(block);
                device.pin(block);
            }
            if dirty && !old.dirty {
                state.running.dirty.remove(&block);
                device.unpin(block);
                device.drop_clean(block);
            }
        }
        for (number, group) in self.undo.groups.drain() {
            if let Some(slot) = state.groups.get_mut(number as usize) {
                *slot = Group {
                    dirty: slot.dirty,
                    ..group
                };
            }
        }
        state.free_blocks = self.undo.free_blocks;
        state.free_inodes = self.undo.free_inodes;
        state.last_orphan = self.undo.last_orphan;
        state.running.super_dirty = self.undo.super_dirty;
        let freed = state.running.freed.split_off(self.undo.freed);
        state.release(self.vol, &freed);
        for block in self.undo.revoked.drain(..) {
            state.running.revoked.remove(&block);
        }
        for (ino, old) in self.undo.touched.drain(..).rev() {
            match old {
                Some(sequence) => state.touched.insert(ino, sequence),
                None => state.touched.remove(&ino),
            };
        }
        let mut orphans = Rw::lock(&self.rw.orphans);
        for (ino, old) in self.undo.orphans.drain(..).rev() {
            match old {
                Some(link) => orphans.insert(ino, link),
                None => orphans.remove(&ino),
            };
        }
    }
}
