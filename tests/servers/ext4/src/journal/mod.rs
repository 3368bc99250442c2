// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The jbd2 journal: a ring of blocks in an inode of its own, in the format that the kernel's ext4 and
//! e2fsck replay.
//!
//! A transaction is written as descriptor blocks, each followed by the copies of blocks it names, then
//! revoke blocks, then, after a flush, the commit block. The journal's superblock says where the oldest
//! transaction begins that may have to be replayed; what is before it may be overwritten.

mod write;

use fs_ext4::{
    checksum::linux_crc32c,
    jbd2::{
        COMMIT_CHECKSUM_AT, JBD2_COMMIT_BLOCK, JBD2_CRC32C_CHKSUM, JBD2_DESCRIPTOR_BLOCK,
        JBD2_MAGIC_NUMBER, JBD2_REVOKE_BLOCK, JbdIncompat, JournalSuperblock,
    },
};

use crate::{
    device::Device,
    error::{Error, Result, corrupt},
    inode::Inode,
    map::{Run, Target},
    volume::Volume,
};

pub(crate) use write::Batch;

/// Offsets in the journal's superblock, which is big-endian.
mod at {
    pub const MAX_LEN: usize = 0x10;
    pub const FIRST: usize = 0x14;
    pub const SEQUENCE: usize = 0x18;
    pub const START: usize = 0x1c;
    pub const COMPAT: usize = 0x24;
    pub const INCOMPAT: usize = 0x28;
    pub const CHECKSUM_TYPE: usize = 0x50;
    pub const HEAD: usize = 0x58;
    pub const CHECKSUM: usize = 0xfc;
    /// What the checksum covers.
    pub const END: usize = 0x400;
}

/// An empty log needs room for a few transactions at least.
const MIN_BLOCKS: u32 = 64;

/// The journal of a volume that is mounted for writing.
pub(crate) struct Journal {
    /// Where its blocks are, in order.
    runs: Vec<Run>,
    sb: Vec<u8>,
    block_size: usize,
    first: u32,
    end: u32,
    /// Where the next block of the log goes.
    head: u32,
    /// Blocks between the tail and the head.
    used: u32,
    /// The sequence number of the next transaction.
    next: u32,
    has_checksums: bool,
    has_64bit: bool,
    seed: u32,
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn get32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Journal {
    /// Opens the journal in `inode`, whose log must have been replayed. The next transaction will be
    /// `next`, or what the superblock says.
    pub fn open(volume: &Volume, inode: &Inode, next: Option<u32>) -> Result<Self> {
        let runs = blocks_of(volume, inode)?;
        let block_size = volume.block_size() as usize;
        let mut journal = Self {
            runs,
            sb: Vec::new(),
            block_size,
            first: 0,
            end: 0,
            head: 0,
            used: 0,
            next: 0,
            has_checksums: volume.csum.enabled,
            has_64bit: volume.sb.feature_incompat & crate::features::incompat::BIT64 != 0,
            seed: 0,
        };
        let sb_block = journal.physical(0)?;
        journal.sb = volume.device.block(sb_block)?.bytes().to_vec();
        let sb = JournalSuperblock::parse(&journal.sb)?;
        let blocks = journal.runs.last().map_or(0, Run::end);
        let sane = sb.block_size as usize == block_size
            && sb.block_type == fs_ext4::jbd2::JBD2_SUPERBLOCK_V2
            && sb.first >= 1
            && u64::from(sb.max_len) <= blocks
            && sb.max_len.saturating_sub(sb.first) >= MIN_BLOCKS;
        if !sane {
            return corrupt("journal superblock");
        }
        let unknown = sb.feature_incompat & !JbdIncompat::all().bits();
        if unknown != 0 || sb.feature_ro_compat != 0 {
            return Err(Error::Unsupported(format!(
                "a journal with unknown features {unknown:#x}, {:#x}",
                sb.feature_ro_compat
            )));
        }
        if sb.errno != 0 {
            return Err(Error::Unsupported(format!(
                "the journal records error {}; let e2fsck look at the volume first",
                sb.errno as i32
            )));
        }
        journal.first = sb.first;
        journal.end = sb.max_len;
        journal.seed = sb.csum_seed();
        journal.next = next.unwrap_or(sb.sequence).max(1);
        journal.head = sb.first;
        journal.set_features();
        Ok(journal)
    }

    /// As the kernel does at mount: the log is empty, so the format of what will be in it is free.
    fn set_features(&mut self) {
        let mut incompat = JbdIncompat::REVOKE;
        if self.has_64bit {
            incompat |= JbdIncompat::BIT64;
        }
        if self.has_checksums {
            incompat |= JbdIncompat::CSUM_V3;
        }
        put32(&mut self.sb, at::COMPAT, 0);
        put32(&mut self.sb, at::INCOMPAT, incompat.bits());
        self.sb[at::CHECKSUM_TYPE] = if self.has_checksums {
            JBD2_CRC32C_CHKSUM
        } else {
            0
        };
        put32(&mut self.sb, at::HEAD, 0);
    }

    /// The sequence number that the next transaction gets.
    pub fn next_sequence(&self) -> u32 {
        self.next
    }

    /// Blocks of the whole log.
    pub fn capacity(&self) -> u32 {
        self.end - self.first
    }

    /// Blocks in front of the head that may be overwritten. One is kept, so that a full log does not
    /// look like an empty one.
    pub fn free(&self) -> u32 {
        self.capacity().saturating_sub(self.used + 1)
    }

    /// The device block of a block of the log.
    fn physical(&self, block: u32) -> Result<u64> {
        let block = u64::from(block);
        let after = self.runs.partition_point(|run| run.start <= block);
        let run = after.checked_sub(1).and_then(|at| self.runs.get(at));
        match run {
            Some(run) if block < run.end() => match run.target {
                Target::Mapped(at) => Ok(at + (block - run.start)),
                _ => corrupt("the journal has a hole"),
            },
            _ => corrupt("the journal is too short"),
        }
    }

    /// Writes the journal's superblock; the caller flushes.
    fn write_super(&mut self, device: &Device, start: u32) -> Result<()> {
        put32(&mut self.sb, at::MAX_LEN, self.end);
        put32(&mut self.sb, at::FIRST, self.first);
        put32(&mut self.sb, at::SEQUENCE, self.next);
        put32(&mut self.sb, at::START, start);
        if self.has_checksums {
            put32(&mut self.sb, at::CHECKSUM, 0);
            let csum = linux_crc32c(!0, &self.sb[..at::END]);
            put32(&mut self.sb, at::CHECKSUM, csum);
        }
        device.write(self.physical(0)?, &self.sb)
    }

    /// Declares the log empty, with the next transaction at its head: all that was committed is in
    /// place, and stable. The flush is part of it, for after this the old log gets overwritten.
    pub fn restart(&mut self, device: &Device) -> Result<()> {
        let head = self.head;
        self.write_super(device, head)?;
        device.flush()?;
        self.used = 0;
        Ok(())
    }

    /// Declares the log empty and unused, as after an orderly unmount.
    pub fn close(&mut self, device: &Device) -> Result<()> {
        self.write_super(device, 0)?;
        device.flush()?;
        self.used = 0;
        self.head = self.first;
        Ok(())
    }
}

/// The runs of the journal's inode; a hole in it is an error.
fn blocks_of(volume: &Volume, inode: &Inode) -> Result<Vec<Run>> {
    let blocks = volume.size(inode) / u64::from(volume.block_size());
    if !inode.is_regular() || inode.is_inline() || blocks > u64::from(u32::MAX) {
        return corrupt("the journal's inode");
    }
    let mut runs: Vec<Run> = Vec::new();
    let mut block = 0;
    while block < blocks {
        let run = volume.run(inode, block, blocks)?;
        if !matches!(run.target, Target::Mapped(_)) {
            return corrupt("the journal has a hole");
        }
        block = run.end();
        runs.push(run);
    }
    Ok(runs)
}

/// A block of the log with its header.
fn header(kind: u32, sequence: u32, block_size: usize) -> Vec<u8> {
    let mut block = vec![0; block_size];
    put32(&mut block, 0, JBD2_MAGIC_NUMBER);
    put32(&mut block, 4, kind);
    put32(&mut block, 8, sequence);
    block
}
