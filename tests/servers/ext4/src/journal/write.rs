// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writing one transaction into the log.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use fs_ext4::{
    jbd2::{block_tail_checksum, commit_block_checksum, tag_checksum},
    journal::{TAG_ESCAPED, TAG_LAST, TAG_SAME_UUID},
};

use super::{
    COMMIT_CHECKSUM_AT, JBD2_COMMIT_BLOCK, JBD2_DESCRIPTOR_BLOCK, JBD2_MAGIC_NUMBER,
    JBD2_REVOKE_BLOCK, Journal, get32, header, put32,
};
use crate::{
    device::{Block, Device},
    error::{Result, corrupt},
};

const HEADER: usize = 12;
const UUID: usize = 16;
const TAIL: usize = 4;
/// Where the entries of a revoke block begin.
const REVOKES: usize = 16;
const COMMIT_SECONDS_AT: usize = 48;
/// Blocks that are handed to the device in one write.
const CHUNK: usize = 64;

/// What a transaction changed.
pub(crate) struct Batch {
    /// Its sequence number.
    pub sequence: u32,
    /// The new contents of blocks, ascending.
    pub blocks: Vec<(u64, Arc<Block>)>,
    /// Blocks that must not be replayed from earlier transactions.
    pub revoked: Vec<u64>,
    /// Runs of blocks that may be used for something else now.
    pub freed: Vec<(u64, u64)>,
}

/// Collects blocks of the log and writes neighbours together.
struct Writer<'a> {
    journal: &'a mut Journal,
    device: &'a Device,
    start: u64,
    bytes: Vec<u8>,
}

impl Writer<'_> {
    fn push(&mut self, block: &[u8]) -> Result<()> {
        let size = self.journal.block_size;
        if self.journal.free() == 0 {
            return corrupt("a transaction is larger than the journal");
        }
        let at = self.journal.physical(self.journal.head)?;
        let pending = (self.bytes.len() / size) as u64;
        if pending > 0 && (self.start + pending != at || pending as usize >= CHUNK) {
            self.write()?;
        }
        if self.bytes.is_empty() {
            self.start = at;
        }
        self.bytes.extend_from_slice(block);
        self.journal.head += 1;
        if self.journal.head == self.journal.end {
            self.journal.head = self.journal.first;
        }
        self.journal.used += 1;
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        if !self.bytes.is_empty() {
            self.device.write(self.start, &self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }
}

impl Journal {
    fn tag_size(&self) -> usize {
        match (self.has_checksums, self.has_64bit) {
            (true, _) => 16,
            (false, true) => 12,
            (false, false) => 8,
        }
    }

    fn usable(&self) -> usize {
        self.block_size - if self.has_checksums { TAIL } else { 0 }
    }

    fn tags_per_block(&self) -> usize {
        (self.usable() - HEADER - UUID) / self.tag_size()
    }

    fn revokes_per_block(&self) -> usize {
        (self.usable() - REVOKES) / if self.has_64bit { 8 } else { 4 }
    }

    /// The blocks of the log that a transaction takes.
    pub fn blocks_for(&self, blocks: usize, revoked: usize) -> u32 {
        let descriptors = blocks.div_ceil(self.tags_per_block());
        let revokes = revoked.div_ceil(self.revokes_per_block());
        u32::try_from(blocks + descriptors + revokes + 1).unwrap_or(u32::MAX)
    }

    fn seal(&self, block: &mut [u8]) {
        if self.has_checksums {
            let csum = block_tail_checksum(self.seed, block);
            let at = block.len() - TAIL;
            put32(block, at, csum);
        }
    }

    fn descriptor(&self, sequence: u32, tags: &[(u64, u32, u32)]) -> Vec<u8> {
        let mut block = header(JBD2_DESCRIPTOR_BLOCK, sequence, self.block_size);
        let mut at = HEADER;
        for (index, (target, flags, csum)) in tags.iter().enumerate() {
            let mut flags = *flags;
            if index > 0 {
                flags |= TAG_SAME_UUID;
            }
            if index + 1 == tags.len() {
                flags |= TAG_LAST;
            }
            let (low, high) = (*target as u32, (*target >> 32) as u32);
            put32(&mut block, at, low);
            if self.has_checksums {
                put32(&mut block, at + 4, flags);
                put32(&mut block, at + 8, high);
                put32(&mut block, at + 12, *csum);
            } else {
                // The upper half would be the checksum of the second version.
                put32(&mut block, at + 4, flags & 0xffff);
                if self.has_64bit {
                    put32(&mut block, at + 8, high);
                }
            }
            at += self.tag_size();
            if index == 0 {
                // The UUID may stay zero in a journal that no other filesystem shares.
                at += UUID;
            }
        }
        self.seal(&mut block);
        block
    }

    fn revoke_block(&self, sequence: u32, revoked: &[u64]) -> Vec<u8> {
        let mut block = header(JBD2_REVOKE_BLOCK, sequence, self.block_size);
        let mut at = REVOKES;
        for target in revoked {
            if self.has_64bit {
                block[at..at + 8].copy_from_slice(&target.to_be_bytes());
                at += 8;
            } else {
                put32(&mut block, at, *target as u32);
                at += 4;
            }
        }
        put32(&mut block, HEADER, at as u32);
        self.seal(&mut block);
        block
    }

    fn commit_block(&self, sequence: u32) -> Vec<u8> {
        let mut block = header(JBD2_COMMIT_BLOCK, sequence, self.block_size);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        block[COMMIT_SECONDS_AT..COMMIT_SECONDS_AT + 8]
            .copy_from_slice(&now.as_secs().to_be_bytes());
        put32(&mut block, COMMIT_SECONDS_AT + 8, now.subsec_nanos());
        if self.has_checksums {
            let csum = commit_block_checksum(self.seed, &block);
            put32(&mut block, COMMIT_CHECKSUM_AT, csum);
        }
        block
    }

    /// Writes a transaction and returns once it is stable, with all file data that was written before
    /// this call. There must be room.
    pub fn write(&mut self, device: &Device, batch: &Batch) -> Result<()> {
        let sequence = batch.sequence;
        let (per_tags, per_revokes) = (self.tags_per_block(), self.revokes_per_block());
        let mut writer = Writer {
            journal: self,
            device,
            start: 0,
            bytes: Vec::new(),
        };
        let mut copies: Vec<Option<Vec<u8>>> = Vec::new();
        for blocks in batch.blocks.chunks(per_tags) {
            let mut tags = Vec::with_capacity(blocks.len());
            copies.clear();
            for (target, block) in blocks {
                // A copy that begins like a block of the log would be taken for one.
                let escaped = (get32(block.bytes(), 0) == JBD2_MAGIC_NUMBER).then(|| {
                    let mut copy = block.bytes().to_vec();
                    put32(&mut copy, 0, 0);
                    copy
                });
                let flags = if escaped.is_some() { TAG_ESCAPED } else { 0 };
                let bytes = escaped.as_deref().unwrap_or(block.bytes());
                let csum = if writer.journal.has_checksums {
                    tag_checksum(writer.journal.seed, sequence, bytes)
                } else {
                    0
                };
                tags.push((*target, flags, csum));
                copies.push(escaped);
            }
            let descriptor = writer.journal.descriptor(sequence, &tags);
            writer.push(&descriptor)?;
            for ((_, block), copy) in blocks.iter().zip(&copies) {
                writer.push(copy.as_deref().unwrap_or(block.bytes()))?;
            }
        }
        for revoked in batch.revoked.chunks(per_revokes) {
            let block = writer.journal.revoke_block(sequence, revoked);
            writer.push(&block)?;
        }
        writer.write()?;
        // All of it, and the data it speaks of, must be stable before the block that makes it count.
        device.flush()?;
        let commit = writer.journal.commit_block(sequence);
        writer.push(&commit)?;
        writer.write()?;
        device.flush()?;
        self.next = sequence.wrapping_add(1);
        Ok(())
    }
}
