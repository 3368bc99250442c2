// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Where a file's blocks are: extent trees of any depth, and the block pointers of ext2 and ext3.
//!
//! The question is always "what is at this block, and how far does it go on?", and the answer never
//! touches file data. Holes are answered with their full length, because a caller that has to walk a
//! sparse file block by block would be slow.

use crate::{
    device::Block,
    error::{Error, Result, corrupt},
    inode::{Inode, flags, le16, le32},
    volume::Volume,
};

/// File blocks are numbered with 32 bits, so no file has more blocks than this.
pub const MAX_BLOCKS: u64 = 1 << 32;

/// Entries of 12 bytes, headers too.
pub(crate) const ENTRY: usize = 12;
pub(crate) const MAGIC: u16 = 0xf30a;
pub(crate) const MAX_DEPTH: u16 = 5;
/// An extent longer than this is unwritten, and as much shorter.
pub(crate) const MAX_WRITTEN: u16 = 32768;

/// What a run of file blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Data, from this device block on.
    Mapped(u64),
    /// Allocated from this device block on, but reads as zeros.
    Unwritten(u64),
    /// Not allocated, reads as zeros.
    Hole,
}

/// A run of file blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First file block.
    pub start: u64,
    /// Number of blocks, at least 1.
    pub len: u64,
    /// Where they are.
    pub target: Target,
}

impl Run {
    fn new(start: u64, end: u64, target: Target) -> Self {
        Self {
            start,
            len: end - start,
            target,
        }
    }

    /// The first block after the run.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// The part of the run from `block` on, which must be inside.
    fn from(self, block: u64) -> Self {
        let skip = block - self.start;
        let target = match self.target {
            Target::Mapped(at) => Target::Mapped(at + skip),
            Target::Unwritten(at) => Target::Unwritten(at + skip),
            Target::Hole => Target::Hole,
        };
        Self {
            start: block,
            len: self.len - skip,
            target,
        }
    }

    /// Appends `next` if it carries on where this run ends, in the file and on the device.
    fn join(&mut self, next: &Run) -> bool {
        let fits = match (self.target, next.target) {
            (Target::Mapped(a), Target::Mapped(b))
            | (Target::Unwritten(a), Target::Unwritten(b)) => a + self.len == b,
            (Target::Hole, Target::Hole) => true,
            _ => false,
        };
        if fits && self.end() == next.start {
            self.len += next.len;
            return true;
        }
        false
    }
}

/// One record of a leaf of the extent tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub first: u64,
    pub len: u64,
    pub at: u64,
    pub unwritten: bool,
}

impl Extent {
    fn run(&self) -> Run {
        let target = if self.unwritten {
            Target::Unwritten(self.at)
        } else {
            Target::Mapped(self.at)
        };
        Run {
            start: self.first,
            len: self.len,
            target,
        }
    }
}

/// A node of the extent tree whose header fits the bytes it is in.
pub(crate) struct Node<'a> {
    bytes: &'a [u8],
    pub depth: u16,
    pub entries: usize,
}

impl<'a> Node<'a> {
    pub(crate) fn parse(bytes: &'a [u8], ino: u32) -> Result<Self> {
        let entries = usize::from(le16(bytes, 2));
        let max = usize::from(le16(bytes, 4));
        let depth = le16(bytes, 6);
        let room = (bytes.len() / ENTRY).saturating_sub(1);
        if le16(bytes, 0) != MAGIC || entries > max || max > room || depth > MAX_DEPTH {
            return corrupt(format!("inode {ino}: extent header"));
        }
        Ok(Self {
            bytes,
            depth,
            entries,
        })
    }

    pub(crate) fn entry(&self, index: usize) -> &'a [u8] {
        &self.bytes[(index + 1) * ENTRY..(index + 2) * ENTRY]
    }

    pub(crate) fn first_block(&self, index: usize) -> u64 {
        u64::from(le32(self.entry(index), 0))
    }

    pub(crate) fn extent(&self, index: usize) -> Extent {
        let entry = self.entry(index);
        let stored = le16(entry, 4);
        let unwritten = stored > MAX_WRITTEN;
        Extent {
            first: u64::from(le32(entry, 0)),
            len: u64::from(if unwritten {
                stored - MAX_WRITTEN
            } else {
                stored
            }),
            at: u64::from(le16(entry, 6)) << 32 | u64::from(le32(entry, 8)),
            unwritten,
        }
    }

    pub(crate) fn child(&self, index: usize) -> u64 {
        let entry = self.entry(index);
        u64::from(le16(entry, 8)) << 32 | u64::from(le32(entry, 4))
    }

    /// The last entry that starts at or before `block`.
    pub(crate) fn find(&self, block: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.first_block(middle) <= block {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }
}

/// Check tags of [`Block::checked_once`]; the low bits name the owner.
const TAG_EXTENTS: u64 = 1 << 60;

impl Volume {
    /// Checks every record of a node: ascending, not overlapping, and on the volume.
    pub(crate) fn check_node(&self, node: &Node<'_>, ino: u32) -> Result<()> {
        let mut next_free = 0;
        for index in 0..node.entries {
            let first = node.first_block(index);
            if first < next_free {
                return corrupt(format!("inode {ino}: extents overlap or are out of order"));
            }
            if node.depth == 0 {
                let extent = node.extent(index);
                next_free = first + extent.len;
                if extent.len == 0 || next_free > MAX_BLOCKS {
                    return corrupt(format!("inode {ino}: extent length"));
                }
                self.check_blocks(extent.at, extent.len, &format!("inode {ino}: extent"))?;
            } else {
                next_free = first + 1;
                self.check_blocks(node.child(index), 1, &format!("inode {ino}: extent index"))?;
            }
        }
        if node.depth > 0 && node.entries == 0 {
            return corrupt(format!("inode {ino}: extent index without entries"));
        }
        Ok(())
    }

    /// Reads the extent block `at`, which must be at `depth`, and checks it the first time.
    pub(crate) fn extent_block(
        &self,
        ino: u32,
        generation: u32,
        at: u64,
        depth: u16,
    ) -> Result<std::sync::Arc<Block>> {
        let block = self.device.block(at)?;
        let tag = TAG_EXTENTS | u64::from(depth) << 32 | u64::from(ino);
        block.checked_once(tag, |bytes| {
            if self.csum.enabled {
                self.check_extent_tail(ino, generation, bytes)?;
            }
            let node = Node::parse(bytes, ino)?;
            if node.depth != depth {
                return corrupt(format!("inode {ino}: extent tree depth"));
            }
            self.check_node(&node, ino)
        })?;
        Ok(block)
    }

    /// The checksum of an extent block follows its last possible entry.
    fn check_extent_tail(&self, ino: u32, generation: u32, bytes: &[u8]) -> Result<()> {
        let tail = ENTRY * (1 + usize::from(le16(bytes, 4)));
        let Some(end) = tail.checked_add(4).filter(|end| *end <= bytes.len()) else {
            return corrupt(format!("inode {ino}: extent header"));
        };
        if !self.csum.verify_extent_tail(ino, generation, &bytes[..end]) {
            return Err(Error::Checksum(format!("extent block of inode {ino}")));
        }
        Ok(())
    }

    /// Extents and holes, from the tree: the run around `block`, which for a hole starts at it. The run
    /// is as long as one leaf can say.
    fn extent_run(&self, inode: &Inode, block: u64) -> Result<Run> {
        let ino = inode.ino();
        let root = Node::parse(inode.i_block(), ino)?;
        self.check_node(&root, ino)?;

        let mut held;
        let mut node = root;
        // Where the part of the tree that we are in ends.
        let mut limit = MAX_BLOCKS;
        while node.depth > 0 {
            // Before the first index there is nothing, but only the leaf below knows where it begins.
            let index = node.find(block).unwrap_or(0);
            if index + 1 < node.entries {
                limit = limit.min(node.first_block(index + 1));
            }
            held = self.extent_block(ino, inode.generation(), node.child(index), node.depth - 1)?;
            node = Node::parse(held.bytes(), ino)?;
        }

        let found = node.find(block);
        let after = found.map_or(0, |index| index + 1);
        if let Some(index) = found {
            let run = node.extent(index).run();
            if block < run.end() {
                let mut run = run;
                for next in after..node.entries {
                    if !run.join(&node.extent(next).run()) {
                        break;
                    }
                }
                return Ok(run);
            }
        }
        let end = if after < node.entries {
            node.first_block(after)
        } else {
            limit
        };
        if end <= block {
            return corrupt(format!(
                "inode {ino}: extents outside the range of their index"
            ));
        }
        Ok(Run::new(block, end, Target::Hole))
    }

    /// The same for block pointers.
    fn pointer_run(&self, inode: &Inode, block: u64) -> Result<Run> {
        let ino = inode.ino();
        let per_block = u64::from(self.block_size() / 4);
        if block < 12 {
            return self.pointers(inode.i_block(), block, 12, 0, ino);
        }

        // Find the pointer in i_block whose subtree holds the block.
        let mut first = 12;
        let mut size = per_block;
        let mut slot = 12;
        while block - first >= size {
            if slot == 14 {
                return Ok(Run::new(block, MAX_BLOCKS.max(block + 1), Target::Hole));
            }
            first += size;
            // At most (64 KiB / 4)^3 = 2^42.
            size *= per_block;
            slot += 1;
        }

        let mut pointer = u64::from(le32(inode.i_block(), slot * 4));
        loop {
            if pointer == 0 {
                let end = (first + size).min(MAX_BLOCKS.max(block + 1));
                return Ok(Run::new(block, end, Target::Hole));
            }
            self.check_blocks(pointer, 1, &format!("inode {ino}: indirect block"))?;
            let table = self.device.block(pointer)?;
            if size == per_block {
                return self.pointers(table.bytes(), block, first + size, first, ino);
            }
            size /= per_block;
            let index = (block - first) / size;
            first += index * size;
            pointer = u64::from(le32(table.bytes(), index as usize * 4));
        }
    }

    /// The run at `block` in a table of pointers to the file blocks `first .. end`.
    fn pointers(&self, table: &[u8], block: u64, end: u64, first: u64, ino: u32) -> Result<Run> {
        let pointer = |block: u64| u64::from(le32(table, (block - first) as usize * 4));
        let start = pointer(block);
        let mut stop = block + 1;
        while stop < end {
            let expected = if start == 0 {
                0
            } else {
                start + (stop - block)
            };
            if pointer(stop) != expected {
                break;
            }
            stop += 1;
        }
        if start == 0 {
            return Ok(Run::new(block, stop, Target::Hole));
        }
        self.check_blocks(start, stop - block, &format!("inode {ino}: block pointer"))?;
        Ok(Run::new(block, stop, Target::Mapped(start)))
    }

    /// What is at file block `block`, joined with what carries on behind it until at least
    /// `enough` is reached. A run that begins below `enough` may end far beyond it.
    pub fn run(&self, inode: &Inode, block: u64, enough: u64) -> Result<Run> {
        Ok(self.run_around(inode, block, enough)?.from(block))
    }

    /// The same with what lies before `block` in the same extent.
    pub fn run_around(&self, inode: &Inode, block: u64, enough: u64) -> Result<Run> {
        if inode.is_inline() {
            return corrupt(format!("inode {}: inline data has no blocks", inode.ino()));
        }
        if block >= MAX_BLOCKS {
            let end = enough.max(block.saturating_add(1));
            return Ok(Run::new(block, end, Target::Hole));
        }
        let step = |block| {
            if inode.flags() & flags::EXTENTS != 0 {
                self.extent_run(inode, block)
            } else {
                self.pointer_run(inode, block)
            }
        };
        let mut run = step(block)?;
        // A hole goes on until something is found: its end is what the caller wants to know. Data
        // goes on for as long as it was asked for, because every further leaf costs a read.
        while run.end() < MAX_BLOCKS && (run.end() < enough || run.target == Target::Hole) {
            let next = step(run.end())?.from(run.end());
            if !run.join(&next) {
                break;
            }
        }
        Ok(run)
    }

    /// Whether the newest contents of some of the file's data are in the journal and not yet in place.
    pub fn data_in_journal(&self, inode: &Inode) -> Result<bool> {
        if self.in_journal.is_empty() || inode.is_inline() {
            return Ok(false);
        }
        let mut block = 0;
        while block < MAX_BLOCKS {
            let run = self.run(inode, block, block + 1)?;
            if let Target::Mapped(at) = run.target
                && self.in_journal.range(at..at + run.len).next().is_some()
            {
                return Ok(true);
            }
            block = run.end();
        }
        Ok(false)
    }

    /// Reads file contents at `offset`, short only at the end of the file, wherever they are.
    pub fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let size = self.size(inode);
        if offset >= size {
            return Ok(0);
        }
        let want = (size - offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..want];
        if inode.is_inline() {
            let data = self.inline_data(inode)?;
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(data.len());
            let have = &data[from..data.len().min(from.saturating_add(want))];
            buf[..have.len()].copy_from_slice(have);
            buf[have.len()..].fill(0);
            return Ok(want);
        }

        let block_size = u64::from(self.block_size());
        let mut done = 0;
        while done < want {
            let at = offset + done as u64;
            let run = self.run(
                inode,
                at / block_size,
                (offset + want as u64).div_ceil(block_size),
            )?;
            let within = at % block_size;
            let here = run.len.saturating_mul(block_size) - within;
            let step = here.min((want - done) as u64) as usize;
            let part = &mut buf[done..done + step];
            match run.target {
                Target::Mapped(block) => self.device.read_data(block, within, part)?,
                Target::Unwritten(_) | Target::Hole => part.fill(0),
            }
            done += step;
        }
        Ok(want)
    }
}
