// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Changing extent trees of any depth.
//!
//! Every change takes one leaf out as a list, edits the list, and stores it: if the list has become too
//! long for its block, the block is split and its parent gets one more entry, which may split in turn; at
//! the root the tree grows by a level. An empty block is freed and taken out of its parent. Each index
//! entry says exactly where its child begins, as e2fsck wants it.

use crate::{
    edit::InodeEdit,
    error::{Result, corrupt, errno, refuse},
    inode::{le16, le32},
    map::{ENTRY, Extent, MAGIC, MAX_BLOCKS, MAX_DEPTH, MAX_WRITTEN, Node},
    txn::Txn,
};

/// One entry of a node, a leaf's or an index's; both begin with the first file block.
type Record = [u8; ENTRY];

/// Entries that `i_block` holds.
const ROOT_RECORDS: usize = 4;

/// An index node on the way to a leaf.
struct Index {
    /// Its block; `None` for the root.
    at: Option<u64>,
    depth: u16,
    records: Vec<Record>,
    /// The entry that was taken.
    taken: usize,
}

/// A leaf that was taken out for editing.
pub(crate) struct Leaf {
    path: Vec<Index>,
    at: Option<u64>,
    /// Its extents, ascending.
    pub extents: Vec<Extent>,
    /// The first file block that belongs to the next leaf.
    pub limit: u64,
}

fn first(record: &Record) -> u64 {
    u64::from(le32(record, 0))
}

fn set_first(record: &mut Record, block: u64) {
    record[..4].copy_from_slice(&(block as u32).to_le_bytes());
}

fn index_record(block: u64, child: u64) -> Record {
    let mut record = [0; ENTRY];
    set_first(&mut record, block);
    record[4..8].copy_from_slice(&(child as u32).to_le_bytes());
    record[8..10].copy_from_slice(&((child >> 32) as u16).to_le_bytes());
    record
}

fn extent_record(extent: &Extent) -> Record {
    let mut record = [0; ENTRY];
    set_first(&mut record, extent.first);
    let len = extent.len as u16 + if extent.unwritten { MAX_WRITTEN } else { 0 };
    record[4..6].copy_from_slice(&len.to_le_bytes());
    record[6..8].copy_from_slice(&((extent.at >> 32) as u16).to_le_bytes());
    record[8..12].copy_from_slice(&(extent.at as u32).to_le_bytes());
    record
}

impl Extent {
    pub fn end(&self) -> u64 {
        self.first + self.len
    }

    /// The part of it between two file blocks.
    fn part(&self, from: u64, to: u64) -> Option<Extent> {
        let (from, to) = (from.max(self.first), to.min(self.end()));
        (from < to).then(|| Extent {
            first: from,
            len: to - from,
            at: self.at + (from - self.first),
            unwritten: self.unwritten,
        })
    }
}

/// Appends an extent, joining it with the last one where that is possible.
pub(crate) fn push(list: &mut Vec<Extent>, mut next: Extent) {
    let longest = u64::from(MAX_WRITTEN) - u64::from(next.unwritten);
    // One block less fits if it is unwritten.
    while next.len > longest {
        list.push(Extent {
            len: longest,
            ..next
        });
        next.first += longest;
        next.at += longest;
        next.len -= longest;
    }
    if let Some(last) = list.last_mut()
        && last.end() == next.first
        && last.at + last.len == next.at
        && last.unwritten == next.unwritten
        && last.len + next.len <= longest
    {
        last.len += next.len;
        return;
    }
    list.push(next);
}

/// Rewrites the part of a list between two file blocks: `change` says what becomes of each piece.
fn rewrite(
    list: &[Extent],
    from: u64,
    to: u64,
    mut change: impl FnMut(Extent) -> Option<Extent>,
) -> Vec<Extent> {
    let mut out = Vec::with_capacity(list.len() + 2);
    for extent in list {
        let pieces = [
            extent.part(0, from),
            extent.part(from, to).and_then(&mut change),
            extent.part(to, MAX_BLOCKS),
        ];
        for piece in pieces.into_iter().flatten() {
            push(&mut out, piece);
        }
    }
    out
}

impl Txn<'_> {
    /// Takes out the leaf that holds `block`, or would.
    pub fn leaf(&self, inode: &InodeEdit, block: u64) -> Result<Leaf> {
        inode.check_extents()?;
        let ino = inode.ino;
        let mut path = Vec::new();
        let mut limit = MAX_BLOCKS;
        let mut at = None;
        let mut held;
        let mut node = Node::parse(inode.i_block(), ino)?;
        self.vol.check_node(&node, ino)?;
        while node.depth > 0 {
            let taken = node.find(block).unwrap_or(0);
            if taken + 1 < node.entries {
                limit = limit.min(node.first_block(taken + 1));
            }
            let child = node.child(taken);
            let depth = node.depth;
            path.push(Index {
                at,
                depth,
                records: records(&node),
                taken,
            });
            held = self
                .vol
                .extent_block(ino, inode.generation(), child, depth - 1)?;
            node = Node::parse(held.bytes(), ino)?;
            at = Some(child);
        }
        Ok(Leaf {
            path,
            at,
            extents: (0..node.entries).map(|index| node.extent(index)).collect(),
            limit,
        })
    }

    /// Stores an edited leaf. The inode is changed in memory and must be stored by the caller.
    pub fn store_leaf(&mut self, inode: &mut InodeEdit, leaf: Leaf) -> Result<()> {
        let records = leaf.extents.iter().map(extent_record).collect();
        self.store_node(inode, leaf.path, leaf.at, 0, records)
    }

    fn store_node(
        &mut self,
        inode: &mut InodeEdit,
        mut path: Vec<Index>,
        at: Option<u64>,
        depth: u16,
        mut records: Vec<Record>,
    ) -> Result<()> {
        let room = (self.vol.block_size() as usize - ENTRY) / ENTRY;
        let Some(block) = at else {
            if records.len() <= ROOT_RECORDS {
                // Without entries there is no index either.
                let mut depth = if records.is_empty() { 0 } else { depth };
                while let Some(shorter) = self.only_child(inode, depth, &records)? {
                    records = shorter;
                    depth -= 1;
                }
                write_node(inode.i_block_mut(), ROOT_RECORDS, depth, &records);
                return Ok(());
            }
            if depth >= MAX_DEPTH {
                return refuse(errno::EFBIG);
            }
            let child = self.new_node(inode, depth, &records)?;
            let root = [index_record(first(&records[0]), child)];
            write_node(inode.i_block_mut(), ROOT_RECORDS, depth + 1, &root);
            return Ok(());
        };
        let Some(mut parent) = path.pop() else {
            return corrupt(format!("inode {}: extent node without parent", inode.ino));
        };
        let (taken, siblings) = (parent.taken, parent.records.len().saturating_sub(1));
        let Some(own) = parent.records.get_mut(taken) else {
            return corrupt(format!("inode {}: extent index", inode.ino));
        };

        if records.is_empty() {
            parent.records.remove(taken);
            self.free_blocks(block, 1, true)?;
            self.add_blocks(inode, -1)?;
            return self.store_node(inode, path, parent.at, parent.depth, parent.records);
        }

        if path.is_empty() && siblings == 0 && records.len() <= ROOT_RECORDS {
            // The root can hold what is left.
            self.free_blocks(block, 1, true)?;
            self.add_blocks(inode, -1)?;
            return self.store_node(inode, path, parent.at, depth, records);
        }

        let begins = first(&records[0]);
        let mut changed = first(own) != begins;
        set_first(own, begins);
        if records.len() > room {
            // Files mostly grow at their end, where the full half will not be touched again.
            let last = taken + 1 == parent.records.len()
                && path
                    .iter()
                    .all(|index| index.taken + 1 == index.records.len());
            let keep = if last { room - 1 } else { records.len() / 2 };
            let right = records.split_off(keep);
            let child = self.new_node(inode, depth, &right)?;
            let entry = index_record(first(&right[0]), child);
            parent.records.insert(taken + 1, entry);
            changed = true;
        }
        self.write_block(inode, block, depth, &records)?;
        if changed {
            return self.store_node(inode, path, parent.at, parent.depth, parent.records);
        }
        Ok(())
    }

    /// Takes over what the only child of the root holds, if it fits there; the child is freed.
    fn only_child(
        &mut self,
        inode: &mut InodeEdit,
        depth: u16,
        root: &[Record],
    ) -> Result<Option<Vec<Record>>> {
        let [only] = root else { return Ok(None) };
        if depth == 0 {
            return Ok(None);
        }
        let block = u64::from(le16(only, 8)) << 32 | u64::from(le32(only, 4));
        let held = self
            .vol
            .extent_block(inode.ino, inode.generation(), block, depth - 1)?;
        let node = Node::parse(held.bytes(), inode.ino)?;
        if node.entries > ROOT_RECORDS {
            return Ok(None);
        }
        let records = records(&node);
        drop(held);
        self.free_blocks(block, 1, true)?;
        self.add_blocks(inode, -1)?;
        Ok(Some(records))
    }

    fn new_node(&mut self, inode: &mut InodeEdit, depth: u16, records: &[Record]) -> Result<u64> {
        let goal = match records.first() {
            Some(record) if depth == 0 => {
                u64::from(le16(record, 6)) << 32 | u64::from(le32(record, 8))
            }
            _ => self.home_of(inode.ino),
        };
        let block = self.alloc_metadata(goal, vec![0; self.vol.block_size() as usize])?;
        self.add_blocks(inode, 1)?;
        self.write_block(inode, block, depth, records)?;
        Ok(block)
    }

    fn write_block(
        &mut self,
        inode: &InodeEdit,
        block: u64,
        depth: u16,
        records: &[Record],
    ) -> Result<()> {
        let csum = self.vol.csum;
        let (ino, generation) = (inode.ino, inode.generation());
        self.modify(block, |bytes| {
            let room = (bytes.len() - ENTRY) / ENTRY;
            write_node(bytes, room, depth, records);
            // The checksum is right behind the last possible entry.
            let tail = ENTRY * (room + 1) + 4;
            if let Some(covered) = bytes.get_mut(..tail) {
                csum.patch_extent_tail(ino, generation, covered);
            }
        })
    }

    /// Changes what is between two file blocks: `change` says what becomes of each piece of an extent.
    pub fn transform(
        &mut self,
        inode: &mut InodeEdit,
        from: u64,
        to: u64,
        mut change: impl FnMut(Extent) -> Option<Extent>,
    ) -> Result<()> {
        let mut at = from;
        while at < to {
            let mut leaf = self.leaf(inode, at)?;
            let end = leaf.limit.min(to);
            let edited = rewrite(&leaf.extents, at, end, &mut change);
            if edited != leaf.extents {
                leaf.extents = edited;
                self.store_leaf(inode, leaf)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Takes out up to one leaf's extents between two file blocks and frees their blocks. Returns
    /// where to go on, which is `to` at the end.
    pub fn remove_some(&mut self, inode: &mut InodeEdit, from: u64, to: u64) -> Result<u64> {
        self.may_dip = true;
        let mut leaf = self.leaf(inode, from)?;
        let end = leaf.limit.min(to);
        let mut freed: Vec<(u64, u64)> = Vec::new();
        let edited = rewrite(&leaf.extents, from, end, |piece| {
            freed.push((piece.at, piece.len));
            None
        });
        if !freed.is_empty() {
            leaf.extents = edited;
            self.store_leaf(inode, leaf)?;
        }
        let metadata = !inode.is_regular();
        for (start, len) in freed {
            self.free_blocks(start, len, metadata)?;
            self.add_blocks(inode, -(len as i64))?;
        }
        Ok(end)
    }

    /// Adds an extent where there is a hole.
    pub fn insert(&mut self, inode: &mut InodeEdit, extent: Extent) -> Result<()> {
        let mut leaf = self.leaf(inode, extent.first)?;
        if extent.len == 0 || extent.end() > leaf.limit {
            return corrupt(format!("inode {}: an extent spans leaves", inode.ino));
        }
        let place = leaf
            .extents
            .partition_point(|other| other.first < extent.first);
        let before = place.checked_sub(1).and_then(|at| leaf.extents.get(at));
        let overlaps = before.is_some_and(|other| other.end() > extent.first)
            || leaf
                .extents
                .get(place)
                .is_some_and(|other| other.first < extent.end());
        if overlaps {
            return corrupt(format!("inode {}: an extent would overlap", inode.ino));
        }
        let mut edited = leaf.extents[..place].to_vec();
        push(&mut edited, extent);
        for other in &leaf.extents[place..] {
            push(&mut edited, *other);
        }
        leaf.extents = edited;
        self.store_leaf(inode, leaf)
    }

    /// Allocates blocks for the hole between two file blocks, in one extent that may be shorter.
    /// Returns the first file block behind it.
    pub fn fill_some(
        &mut self,
        inode: &mut InodeEdit,
        from: u64,
        to: u64,
        unwritten: bool,
    ) -> Result<u64> {
        let leaf = self.leaf(inode, from)?;
        let place = leaf.extents.partition_point(|other| other.first <= from);
        let before = place.checked_sub(1).and_then(|at| leaf.extents.get(at));
        if before.is_some_and(|other| other.end() > from) {
            return corrupt(format!("inode {}: block {from} is no hole", inode.ino));
        }
        let goal = match before {
            // A short distance in the file is kept on the device, for holes that are filled later.
            Some(other) if from - other.end() <= u64::from(MAX_WRITTEN) => {
                other.at + (from - other.first)
            }
            Some(other) => other.at + other.len,
            None => self.home_of(inode.ino),
        };
        let next = leaf
            .extents
            .get(place)
            .map_or(leaf.limit, |next| next.first);
        let longest = u64::from(MAX_WRITTEN) - 1;
        let end = to.min(leaf.limit).min(next);
        let want = end.saturating_sub(from).clamp(1, longest);
        let (at, len) = self.alloc_blocks(goal, want)?;
        self.add_blocks(inode, len as i64)?;
        let extent = Extent {
            first: from,
            len,
            at,
            unwritten,
        };
        self.insert(inode, extent)?;
        Ok(from + len)
    }
}

fn records(node: &Node<'_>) -> Vec<Record> {
    let all = (0..node.entries).map(|index| {
        let mut record = [0; ENTRY];
        record.copy_from_slice(node.entry(index));
        record
    });
    all.collect()
}

/// Writes header and entries of a node.
fn write_node(bytes: &mut [u8], room: usize, depth: u16, records: &[Record]) {
    bytes[..2].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[2..4].copy_from_slice(&(records.len() as u16).to_le_bytes());
    bytes[4..6].copy_from_slice(&(room as u16).to_le_bytes());
    bytes[6..8].copy_from_slice(&depth.to_le_bytes());
    for (record, place) in records.iter().zip(bytes[ENTRY..].chunks_exact_mut(ENTRY)) {
        place.copy_from_slice(record);
    }
}

/// An empty tree in `i_block`.
pub(crate) fn empty_root(i_block: &mut [u8]) {
    i_block.fill(0);
    write_node(i_block, ROOT_RECORDS, 0, &[]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first: u64, len: u64, at: u64, unwritten: bool) -> Extent {
        Extent {
            first,
            len,
            at,
            unwritten,
        }
    }

    #[test]
    fn pieces_are_split_and_joined() {
        let list = [
            extent(0, 10, 100, false),
            extent(10, 10, 110, true),
            extent(30, 5, 500, true),
        ];
        let written = rewrite(&list, 10, 13, |piece| {
            Some(Extent {
                unwritten: false,
                ..piece
            })
        });
        let want = [
            extent(0, 13, 100, false),
            extent(13, 7, 113, true),
            extent(30, 5, 500, true),
        ];
        assert_eq!(written, want);
        let punched = rewrite(&list, 5, 32, |_| None);
        assert_eq!(
            punched,
            [extent(0, 5, 100, false), extent(32, 3, 502, true)]
        );
        assert_eq!(rewrite(&list, 20, 30, |_| None), list);
    }

    #[test]
    fn extents_stay_within_their_length() {
        let mut list = vec![extent(0, 32767, 100, true)];
        push(&mut list, extent(32767, 1, 32867, true));
        assert_eq!(list.len(), 2);
        let mut list = vec![extent(0, 32767, 100, false)];
        push(&mut list, extent(32767, 1, 32867, false));
        assert_eq!(list, [extent(0, 32768, 100, false)]);
        let unwritten = rewrite(&list, 0, 40000, |piece| {
            Some(Extent {
                unwritten: true,
                ..piece
            })
        });
        let want = [extent(0, 32767, 100, true), extent(32767, 1, 32867, true)];
        assert_eq!(unwritten, want);
    }
}
