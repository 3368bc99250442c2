// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Mounting for writing, and the orderly end of that.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use crate::{
    commit::{Log, stamp},
    device::RawDevice,
    disk::Disk,
    error::{Error, Result, errno},
    features::{self, compat, incompat},
    inode::{le16, le32},
    journal::Journal,
    txn::{Running, Rw, State},
    volume::Volume,
};

/// Offsets in the superblock.
mod at {
    pub const MOUNTED: usize = 0x2c;
    pub const MOUNT_COUNT: usize = 0x34;
    pub const STATE: usize = 0x3a;
    pub const INCOMPAT: usize = 0x60;
    pub const MOUNTED_HIGH: usize = 0x275;
}

/// `s_state`: unmounted in order. Volumes without journal lose it while they are mounted.
const VALID: u16 = 1;
/// What a transaction may have if there is no journal to limit it.
const LIMIT: usize = 8192;

impl Volume {
    /// Opens a volume for writing: replays its journal, marks it as in use, and finishes what a crash
    /// left half done. End it with [`Volume::unmount`].
    pub fn open_writable(disk: Arc<dyn Disk>) -> Result<Self> {
        let raw = RawDevice::new(disk);
        let (mut volume, next) = {
            let volume = Self::open_device(raw.clone())?;
            let sb = &volume.sb;
            features::check_write(sb.feature_compat, sb.feature_incompat, sb.feature_ro_compat)?;
            let has_journal = sb.feature_compat & compat::HAS_JOURNAL != 0;
            if has_journal && sb.journal_inode == 0 {
                return Err(Error::Unsupported(
                    "writing to a volume whose journal is on another device".into(),
                ));
            }
            if sb.feature_incompat & incompat::RECOVER != 0 {
                let next = volume.recover()?;
                // All that was read may be different now.
                (Self::open_device(raw)?, next)
            } else {
                (volume, None)
            }
        };
        let journal = if volume.sb.feature_compat & compat::HAS_JOURNAL != 0 {
            let inode = volume.any_inode(volume.sb.journal_inode)?;
            Some(Journal::open(&volume, &inode, next)?)
        } else {
            None
        };
        let sequence = journal.as_ref().map_or(1, Journal::next_sequence);
        let limit = journal.as_ref().map_or(LIMIT, |journal| {
            (journal.capacity() as usize / 4).min(LIMIT)
        });
        let groups = volume.load_groups();
        let state = State {
            free_blocks: groups
                .iter()
                .map(|group| u64::from(group.free_blocks))
                .sum(),
            free_inodes: groups
                .iter()
                .map(|group| u64::from(group.free_inodes))
                .sum(),
            groups,
            last_orphan: volume.sb.last_orphan,
            running: Running {
                sequence,
                ..Default::default()
            },
            busy: HashMap::new(),
            touched: HashMap::new(),
            prealloc: HashMap::new(),
        };
        let orphans = volume.load_orphans(volume.sb.last_orphan)?;
        volume.rw = Some(Rw {
            log: Mutex::new(Log {
                journal,
                checkpoint: HashMap::new(),
            }),
            state: RwLock::new(state),
            committed: AtomicU32::new(sequence.wrapping_sub(1)),
            flushes: AtomicU64::new(0),
            aborted: AtomicBool::new(false),
            shut: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            forgotten: Mutex::default(),
            orphans: Mutex::new(orphans),
            refs: Mutex::default(),
            signal: (Mutex::default(), Condvar::new()),
            limit,
        });
        volume.mark_mounted()?;
        let finished = volume.finish_orphans()?;
        if finished > 0 {
            eprintln!("ext4: {finished} inodes without a name were freed or truncated");
            volume.commit()?;
        }
        Ok(volume)
    }

    /// Replays the journal onto the device. Returns the sequence number to go on with.
    fn recover(&self) -> Result<Option<u32>> {
        let blocks = self.device.overlay_blocks();
        for (at, block) in &blocks {
            self.device.write(*at, block.bytes())?;
        }
        self.device.flush()?;
        // What is found to be the last transaction may be followed by pieces of the next one. They must
        // not be taken for it after another crash.
        let next = self.last_replayed.map(|last| last.wrapping_add(2));
        let inode = self.any_inode(self.sb.journal_inode)?;
        let mut journal = Journal::open(self, &inode, next)?;
        journal.close(&self.device)?;
        if !blocks.is_empty() {
            eprintln!("ext4: the journal was replayed ({} blocks)", blocks.len());
        }
        Ok(Some(journal.next_sequence()))
    }

    /// Says on disk that the volume is in use.
    fn mark_mounted(&self) -> Result<()> {
        let rw = self.rw()?;
        let mut log = Rw::lock(&rw.log);
        let has_journal = log.journal.is_some();
        self.put_super(|sb| {
            stamp(sb, at::MOUNTED, at::MOUNTED_HIGH);
            let count = le16(sb, at::MOUNT_COUNT).saturating_add(1);
            sb[at::MOUNT_COUNT..at::MOUNT_COUNT + 2].copy_from_slice(&count.to_le_bytes());
            if has_journal {
                set_recover(sb, true);
            } else {
                set_state(sb, |state| state & !VALID);
            }
        })?;
        self.device.flush()?;
        if let Some(journal) = &mut log.journal {
            journal.restart(&self.device)?;
        }
        Ok(())
    }

    /// Says on disk whether the journal has to be replayed.
    pub(crate) fn put_recover(&self, on: bool) -> Result<()> {
        self.put_super(|sb| set_recover(sb, on))
    }

    /// Changes the superblock on disk, past the journal: it must be empty.
    fn put_super(&self, change: impl FnOnce(&mut [u8])) -> Result<()> {
        let block = self.write_super(change)?;
        self.device.write(block, self.device.block(block)?.bytes())
    }

    /// Ends the use of the volume: everything goes in place, and the volume is marked as clean. Later calls
    /// do nothing.
    pub fn unmount(&self) -> Result<()> {
        let Some(rw) = &self.rw else { return Ok(()) };
        if rw.is_closed() {
            return Ok(());
        }
        rw.wake(|signal| signal.stop = true);
        if rw.is_aborted() {
            return Err(Error::Errno(errno::EIO));
        }
        self.unfreeze()?;
        // Nobody uses anything any more.
        Rw::lock(&rw.refs).clear();
        self.trim_all()?;
        self.finish_orphans()?;
        let mut log = Rw::lock(&rw.log);
        self.commit_log(rw, &mut log)?;
        self.checkpoint_log(&mut log)?;
        if let Some(journal) = &mut log.journal {
            journal.close(&self.device)?;
        }
        let has_journal = log.journal.is_some();
        self.put_super(|sb| {
            if has_journal {
                set_recover(sb, false);
            } else {
                set_state(sb, |state| state | VALID);
            }
        })?;
        self.device.flush()?;
        // From now on the device belongs to others.
        rw.closed.store(true, Ordering::Release);
        Ok(())
    }
}

fn set_recover(sb: &mut [u8], on: bool) {
    let old = le32(sb, at::INCOMPAT);
    let new = if on {
        old | incompat::RECOVER
    } else {
        old & !incompat::RECOVER
    };
    sb[at::INCOMPAT..at::INCOMPAT + 4].copy_from_slice(&new.to_le_bytes());
}

fn set_state(sb: &mut [u8], change: impl FnOnce(u16) -> u16) {
    let new = change(le16(sb, at::STATE));
    sb[at::STATE..at::STATE + 2].copy_from_slice(&new.to_le_bytes());
}
