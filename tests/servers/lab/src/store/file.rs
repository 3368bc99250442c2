// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One writable file.

use super::Policy;
use super::extents::{Extents, Place, State};
use super::space::Space;
use fuse_iomap::wire::IomapIo;
use fuse_iomap::{Errno, Result};
use std::collections::VecDeque;
use std::ops::Range;

/// One side of an answer to BEGIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// One of the mapping types of the protocol.
    pub kind: u16,
    /// File offset.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// Where, if somewhere.
    pub place: Option<Place>,
    /// Mapping flags.
    pub flags: u16,
}

/// An answer to BEGIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Where data is.
    pub read: Side,
    /// Where to write, if elsewhere.
    pub write: Option<Side>,
    /// The flags of a write side that is in place.
    pub write_flags: u16,
    /// Where such a write side ends: not before `read` does, which counts if this is less.
    pub in_place_to: u64,
    /// What follows `read`.
    pub more: Vec<Side>,
}

impl Answer {
    pub(super) const fn new(read: Side, write: Option<Side>) -> Self {
        Self {
            read,
            write,
            write_flags: 0,
            in_place_to: 0,
            more: Vec::new(),
        }
    }

    /// The range that may be written, where this is an answer to a write.
    pub(super) fn target(&self) -> Range<u64> {
        let to = self.write.as_ref().unwrap_or(&self.read);
        to.start..to.end
    }
}

/// A BEGIN for a write that may still get its END.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) opflags: u32,
    pub(super) pos: u64,
    /// What was allocated or reserved just for it, and nobody else has asked for since.
    pub(super) own: Option<Range<u64>>,
}

/// More BEGINs than this are not remembered.
const GRANTS: usize = 256;

/// Longest range of a file; it leaves room for rounding.
pub(super) const MAX_END: u64 = 1 << 62;

/// Inline data is at most a page of this size.
pub(super) const PAGE: u64 = 4096;

pub(super) struct File {
    pub(super) policy: Policy,
    /// On disk.
    pub(super) size: u64,
    /// What is on disk.
    pub(super) map: Extents,
    /// Where writes of shared blocks go until IOEND puts that into the map.
    pub(super) staged: Extents,
    /// What writeback was told about: IOENDs may come for it. All states are alike.
    pub(super) issued: Extents,
    pub(super) grants: VecDeque<Grant>,
    /// Somebody wanted to write here, so writeback may come.
    pub(super) dirtied: bool,
    /// What the kernel cannot know to have changed.
    pub(super) changed: Vec<Range<u64>>,
    /// The data, as long as it has no blocks.
    pub(super) inline: Option<Vec<u8>>,
}

impl File {
    pub(super) fn new(policy: Policy, size: u64) -> Self {
        let inline = policy.inline && size == 0 && u64::from(policy.blksize) <= PAGE;
        Self {
            inline: inline.then(Vec::new),
            policy,
            size,
            map: Extents::default(),
            staged: Extents::default(),
            issued: Extents::default(),
            grants: VecDeque::new(),
            dirtied: false,
            changed: Vec::new(),
        }
    }

    pub(super) const fn block(&self) -> u64 {
        self.policy.blksize as u64
    }

    /// The blocks that a range touches.
    pub(super) fn outwards(&self, pos: u64, count: u64) -> Result<Range<u64>> {
        let end = pos.checked_add(count).filter(|end| *end <= MAX_END);
        let end = end.ok_or(Errno::FBIG)?;
        let block = self.block();
        Ok(pos / block * block..end.next_multiple_of(block))
    }

    /// The blocks that lie in a range.
    pub(super) fn inwards(&self, range: &Range<u64>) -> Range<u64> {
        let block = self.block();
        let start = range.start.next_multiple_of(block);
        start..(range.end / block * block).max(start)
    }

    /// Bytes that are allocated.
    pub(super) fn used(&self) -> u64 {
        let all = self.map.iter().chain(self.staged.iter());
        all.filter(|p| p.state.and_then(State::place).is_some())
            .map(|p| p.end - p.start)
            .sum()
    }

    /// Gives up all blocks and promises of a range.
    pub(super) fn drop_range(&mut self, space: &mut Space, range: Range<u64>) {
        self.drop_staged(space, range.clone());
        self.issued.remove(range.clone());
        let block = self.block();
        for piece in self.map.remove(range.clone()) {
            if let Some(place) = piece.state.and_then(State::place) {
                space.give(place, piece.end - piece.start, block);
            }
        }
        self.forget_grants(&range);
    }

    /// Gives up blocks for copy-on-write.
    pub(super) fn drop_staged(&mut self, space: &mut Space, range: Range<u64>) {
        let block = self.block();
        for piece in self.staged.remove(range) {
            if let Some(place) = piece.state.and_then(State::place) {
                space.give(place, piece.end - piece.start, block);
            }
        }
    }

    /// Somebody else counts on blocks that a BEGIN got.
    pub(super) fn forget_grants(&mut self, range: &Range<u64>) {
        for grant in &mut self.grants {
            let own = grant.own.take();
            // What is left in front would be good, but what is behind is what an END gives back.
            grant.own = own.filter(|o| o.end <= range.start || range.end <= o.start);
        }
    }

    pub(super) fn remember(&mut self, grant: Grant) {
        if self.grants.len() == GRANTS {
            self.grants.pop_front();
        }
        self.grants.push_back(grant);
    }

    /// Whether a mapping is one that this file could have answered with.
    pub(super) fn plausible(&self, map: &IomapIo) -> bool {
        let block = self.block();
        map.length != 0 && map.offset % block == 0 && map.length % block == 0
    }

    /// Allocates `range` in one piece, or the first part of it.
    pub(super) fn allocate(
        &self,
        space: &mut Space,
        dev: usize,
        range: &Range<u64>,
    ) -> Result<(Place, Range<u64>)> {
        let wanted = range.end - range.start;
        let got = space
            .take(dev, wanted, self.block())
            .map_err(|e| super::errno(&e))?;
        let (place, len) = got.ok_or(Errno::NOSPC)?;
        Ok((place, range.start..range.start + len.min(wanted)))
    }
}
