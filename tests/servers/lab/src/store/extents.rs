// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A map from ranges of a file to where their blocks are.

use std::collections::BTreeMap;
use std::ops::Range;

/// Somewhere on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Position of the device in the scenario.
    pub dev: usize,
    /// Address in bytes.
    pub addr: u64,
}

impl Place {
    const fn at(self, by: u64) -> Self {
        Self {
            dev: self.dev,
            addr: self.addr + by,
        }
    }
}

/// What a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Room is promised, blocks come with writeback.
    Reserved,
    /// Given out as mapped for a write that has not been written back; holds anything.
    New(Place),
    /// Allocated, reads as zeroes, holds anything.
    Unwritten(Place),
    /// Holds the data.
    Written(Place),
}

impl State {
    /// Where the blocks are.
    pub const fn place(self) -> Option<Place> {
        match self {
            Self::Reserved => None,
            Self::New(p) | Self::Unwritten(p) | Self::Written(p) => Some(p),
        }
    }

    /// The same for what lies `by` bytes further.
    const fn at(self, by: u64) -> Self {
        match self {
            Self::Reserved => Self::Reserved,
            Self::New(p) => Self::New(p.at(by)),
            Self::Unwritten(p) => Self::Unwritten(p.at(by)),
            Self::Written(p) => Self::Written(p.at(by)),
        }
    }
}

/// A range and what it is; nothing is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// What it is.
    pub state: Option<State>,
}

impl Piece {
    /// The part of it that lies in a range, which must touch it.
    #[must_use]
    pub fn within(self, range: &Range<u64>) -> Self {
        let start = self.start.max(range.start);
        Self {
            start,
            end: self.end.min(range.end),
            state: self.state.map(|s| s.at(start - self.start)),
        }
    }

    /// The range.
    pub const fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

/// The map. Neighbours that belong together are one.
#[derive(Clone, Debug, Default)]
pub struct Extents(BTreeMap<u64, (u64, State)>);

impl Extents {
    /// What lies at a position, as far as it reaches.
    pub fn get(&self, pos: u64) -> Piece {
        let before = self.0.range(..=pos).next_back();
        if let Some((start, (end, state))) = before {
            if pos < *end {
                return Piece {
                    start: *start,
                    end: *end,
                    state: Some(*state),
                };
            }
        }
        let next = pos
            .checked_add(1)
            .and_then(|p| self.0.range(p..).next())
            .map(|(start, _)| *start);
        Piece {
            start: before.map_or(0, |(_, (end, _))| *end),
            end: next.unwrap_or(u64::MAX),
            state: None,
        }
    }

    /// The pieces of a range, holes included, cut to it.
    pub fn pieces(&self, range: Range<u64>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut pos = range.start;
        while pos < range.end {
            let piece = self.get(pos).within(&range);
            pos = piece.end;
            pieces.push(piece);
        }
        pieces
    }

    /// All that is not a hole.
    pub fn iter(&self) -> impl Iterator<Item = Piece> {
        self.0.iter().map(|(start, (end, state))| Piece {
            start: *start,
            end: *end,
            state: Some(*state),
        })
    }

    /// The end of the last one.
    pub fn end(&self) -> u64 {
        self.0.last_key_value().map_or(0, |(_, (end, _))| *end)
    }

    /// Makes a hole; returns what was there.
    pub fn remove(&mut self, range: Range<u64>) -> Vec<Piece> {
        let mut removed = Vec::new();
        for piece in self.pieces(range) {
            let Some(whole) = self.get(piece.start).state.map(|_| self.get(piece.start)) else {
                continue;
            };
            self.0.remove(&whole.start);
            for rest in [whole.start..piece.start, piece.end..whole.end] {
                if rest.is_empty() {
                    continue;
                }
                if let Piece {
                    start,
                    end,
                    state: Some(state),
                } = whole.within(&rest)
                {
                    self.0.insert(start, (end, state));
                }
            }
            removed.push(piece);
        }
        removed
    }

    /// Puts something into a range, in place of what was there.
    pub fn set(&mut self, range: Range<u64>, state: State) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        let (mut start, mut end, mut state) = (range.start, range.end, state);
        if let Some((before, (its_end, its_state))) = self.0.range(..start).next_back() {
            if *its_end == start && its_state.at(start - before) == state {
                (start, state) = (*before, *its_state);
                self.0.remove(&start);
            }
        }
        if let Some((its_end, its_state)) = self.0.get(&end).copied() {
            if state.at(end - start) == its_state {
                self.0.remove(&end);
                end = its_end;
            }
        }
        self.0.insert(start, (end, state));
    }

    /// Moves everything from `from` on by `by` bytes up, or down into what must be a hole.
    pub fn shift(&mut self, from: u64, by: i64) {
        let moved = self.remove(from..u64::MAX);
        for piece in moved {
            if let Some(state) = piece.state {
                let to = |pos: u64| pos.saturating_add_signed(by);
                self.set(to(piece.start)..to(piece.end), state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn at(addr: u64) -> State {
        State::Written(Place { dev: 0, addr })
    }

    #[test]
    fn neighbours_become_one_and_are_cut_again() {
        let mut e = Extents::default();
        e.set(0..4, at(100));
        e.set(8..12, at(108));
        e.set(4..8, at(104));
        assert_eq!(e.iter().count(), 1);
        assert_eq!(e.get(5).range(), 0..12);
        let cut = e.remove(5..6);
        assert_eq!(cut.len(), 1);
        assert_eq!(cut[0].state, Some(at(105)));
        assert_eq!(e.get(6).state, Some(at(106)));
        e.shift(6, -1);
        assert_eq!(e.get(5).state, Some(at(106)));
        assert_eq!(e.end(), 11);
        e.shift(2, 10);
        assert_eq!(e.get(12).state, Some(at(102)));
        assert_eq!(e.get(3).state, None);
        assert_eq!(e.get(3).range(), 2..12);
    }

    #[test]
    fn it_is_what_a_plain_list_of_blocks_is() {
        let mut random = Random::new(4);
        for _ in 0..200 {
            let mut e = Extents::default();
            let mut plain = vec![None; 64];
            for _ in 0..40 {
                let start = random.below(60) as usize;
                let end = start + 1 + random.below(64 - start as u64) as usize;
                let range = start as u64..end as u64;
                match random.below(4) {
                    0 => {
                        e.remove(range);
                        plain[start..end].fill(None);
                    }
                    1 => {
                        e.set(range, State::Reserved);
                        plain[start..end].fill(Some(State::Reserved));
                    }
                    _ => {
                        let addr = random.below(4) * 64 + start as u64;
                        e.set(range, at(addr));
                        for (i, p) in plain[start..end].iter_mut().enumerate() {
                            *p = Some(at(addr + i as u64));
                        }
                    }
                }
            }
            for (i, want) in plain.iter().enumerate() {
                let i = i as u64;
                assert_eq!(e.get(i).within(&(i..i + 1)).state, *want);
            }
            let pieces: Vec<_> = e.iter().collect();
            assert!(pieces.windows(2).all(|w| w[0].end <= w[1].start));
        }
    }
}
