// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Answers to BEGIN and END.

use super::cache::ALWAYS_ASKED;
use super::extents::{Piece, Place, State};
use super::file::{Answer, File, Grant, Side};
use super::space::Space;
use super::{Store, Style};
use fuse_iomap::wire::{IomapBeginIn, IomapEndIn, iomap_flags, iomap_op, iomap_type};
use fuse_iomap::{Errno, Result};
use std::ops::Range;

/// Longest piece of a reservation that gets its blocks at once.
const MOST_AT_ONCE: u64 = 1 << 20;

/// Data goes to the device next, so there must be blocks, which nobody else may see before.
const fn is_direct(opflags: u32) -> bool {
    const DIRECT_WRITE: u32 = iomap_op::WRITE | iomap_op::DIRECT;
    opflags & DIRECT_WRITE == DIRECT_WRITE
}

impl Store {
    /// Answers BEGIN.
    pub fn begin(&mut self, id: u64, args: &IomapBeginIn) -> Result<Answer> {
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        let opflags = args.opflags;
        let write = opflags & iomap_op::WRITE != 0;
        let writeback = opflags & iomap_op::WRITEBACK != 0;
        let zero = opflags & iomap_op::ZERO != 0;
        let asked = file.outwards(args.pos, args.count)?;
        let mut wrong = Vec::new();
        if writeback && !write {
            wrong.push("WRITEBACK without WRITE");
        }
        if zero && write {
            wrong.push("ZERO together with WRITE");
        }
        if opflags & iomap_op::NOWAIT != 0 {
            wrong.push("NOWAIT");
        }
        if opflags & iomap_op::UNSHARE != 0 && !write {
            wrong.push("UNSHARE without WRITE");
        }
        if writeback && !file.dirtied {
            wrong.push("WRITEBACK of a file that nobody wrote to");
        }
        if writeback && opflags & iomap_op::DIRECT != 0 {
            wrong.push("WRITEBACK together with DIRECT");
        }
        if writeback && file.inline.is_some() {
            wrong.push("WRITEBACK of inline data");
        }
        let inline = file.begin_inline(&mut self.space, &asked, args)?;
        let mut answer = if let Some(inline) = inline {
            if write || zero {
                file.remember(Grant {
                    opflags,
                    pos: args.pos,
                    own: None,
                });
            }
            Ok(inline)
        } else if writeback {
            self.tally.writebacks += 1;
            file.begin_writeback(&mut self.space, &asked)
        } else if write || zero {
            file.dirtied = true;
            if zero {
                self.tally.zeroes += 1;
            } else {
                self.tally.writes += 1;
            }
            file.begin_write(&mut self.space, &asked, args)
        } else {
            Ok(file.answer_as_is(file.map.get(asked.start), &asked))
        };
        if let (Some(most), Ok(answer)) = (self.cached, &mut answer) {
            if opflags & ALWAYS_ASKED == 0 {
                file.mark(&self.space, answer, asked.start, opflags, most);
            }
        }
        self.gather(id);
        for what in wrong {
            self.violation(id, &format!("BEGIN: {what}: {args:?}"));
        }
        answer
    }

    /// Takes END.
    pub fn end(&mut self, id: u64, args: &IomapEndIn) -> Result<()> {
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        let mut wrong = Vec::new();
        let known = file
            .grants
            .iter()
            .position(|g| g.opflags == args.opflags && g.pos == args.pos);
        let writes = args.opflags & (iomap_op::WRITE | iomap_op::ZERO) != 0;
        let caching = self.cached.is_some();
        if writes && known.is_none() && !file.forgetful() && !caching {
            wrong.push("END for what was not begun");
        }
        if !file.plausible(&args.map) {
            wrong.push("END with a mapping that was not answered");
        }
        let written = u64::try_from(args.written).unwrap_or(0);
        if written > args.count {
            wrong.push("END with more written than asked for");
        }
        let grant = known.and_then(|i| file.grants.remove(i));
        if let Some(own) = grant.and_then(|g| g.own) {
            let keep = args.pos.saturating_add(written);
            let block = file.block();
            let from = keep.next_multiple_of(block).max(own.start);
            if written < args.count && from < own.end {
                file.give_back(&mut self.space, from..own.end, caching);
            }
        }
        self.gather(id);
        for what in wrong {
            self.violation(id, &format!("{what}: {args:?}"));
        }
        Ok(())
    }
}

pub(super) fn side(piece: &Piece, state: Option<State>, flags: u16) -> Side {
    let (kind, place) = match state {
        None => (iomap_type::HOLE, None),
        Some(State::Reserved) => (iomap_type::DELALLOC, None),
        // The device may hold anything there.
        Some(State::New(p) | State::Unwritten(p)) => (iomap_type::UNWRITTEN, Some(p)),
        Some(State::Written(p)) => (iomap_type::MAPPED, Some(p)),
    };
    Side {
        kind,
        start: piece.start,
        end: piece.end,
        place,
        flags,
    }
}

impl File {
    /// More was begun than is remembered.
    fn forgetful(&self) -> bool {
        self.grants.len() >= 200
    }

    /// What is there, to be read or to be overwritten in place. A hole is cut to what was asked, so
    /// that it does not reach up to the end of all things.
    fn answer_as_is(&self, piece: Piece, asked: &Range<u64>) -> Answer {
        let piece = match piece.state {
            None => piece.within(&(piece.start..asked.end.max(asked.start + self.block()))),
            Some(_) => piece,
        };
        Answer::new(side(&piece, piece.state, self.flags()), None)
    }

    const fn flags(&self) -> u16 {
        let mut flags = 0;
        if self.policy.want_end {
            flags |= iomap_flags::WANT_IOMAP_END;
        }
        if self.policy.atomic {
            flags |= iomap_flags::ATOMIC_BIO;
        }
        flags
    }

    /// Whether a block must not be overwritten where it is, and how far that goes.
    pub(super) fn must_move(&self, space: &Space, piece: &Piece) -> (bool, Range<u64>) {
        let Some(State::Written(place)) = piece.state else {
            return (false, piece.range());
        };
        if self.policy.style == Style::Cow && self.policy.cow_always {
            return (true, piece.range());
        }
        let (shared, len) = space.shared(place, piece.end - piece.start, self.block());
        (shared, piece.start..piece.start + len)
    }

    /// Blocks to write to instead of shared ones.
    fn stage(&mut self, space: &mut Space, range: &Range<u64>) -> Result<Piece> {
        let dev = self.policy.cow_dev.unwrap_or(self.policy.dev);
        // What is staged already, behind the start, may be on its way to the device.
        let range = self.staged.get(range.start).within(range).range();
        let (place, range) = self.allocate(space, dev, &range)?;
        let state = if self.policy.cow_mapped {
            State::Written(place)
        } else {
            State::Unwritten(place)
        };
        self.staged.set(range.clone(), state);
        // What was staged before it may belong to another piece of the map.
        Ok(self.staged.get(range.start).within(&range))
    }

    /// The answer that sends a write of shared blocks elsewhere.
    pub(super) fn answer_staged(&self, staged: Piece) -> Answer {
        let old = self.map.get(staged.start).within(&staged.range());
        // Both sides are as long as the shorter one, since each is what it says only there.
        let new = staged.within(&old.range());
        let shared = iomap_flags::SHARED;
        Answer::new(
            side(&old, old.state, shared),
            Some(side(&new, new.state, shared | self.flags())),
        )
    }

    /// The staged blocks at a position, cut to what the map has in one piece there.
    pub(super) fn staged_at(&self, pos: u64) -> Option<Piece> {
        let staged = self.staged.get(pos);
        staged.state?;
        let old = self.map.get(pos);
        Some(staged.within(&old.range()))
    }

    fn begin_writeback(&mut self, space: &mut Space, asked: &Range<u64>) -> Result<Answer> {
        let answer = self.writeback_answer(space, asked)?;
        let told = answer.target();
        // Whatever writeback was told of may be written there.
        self.forget_grants(&told);
        self.issued.set(told, State::Reserved);
        Ok(answer)
    }

    fn writeback_answer(&mut self, space: &mut Space, asked: &Range<u64>) -> Result<Answer> {
        if let Some(staged) = self.staged_at(asked.start) {
            return Ok(self.answer_staged(staged));
        }
        let piece = self.map.get(asked.start);
        let here = piece.within(&(asked.start..asked.end));
        match piece.state {
            Some(State::Written(_)) => {
                let (moves, range) = self.must_move(space, &here);
                if moves {
                    let staged = self.stage(space, &range)?;
                    return Ok(self.answer_staged(staged));
                }
                // Behind it, other blocks may be shared.
                Ok(self.answer_as_is(piece.within(&(piece.start..range.end)), asked))
            }
            Some(State::Unwritten(_)) => Ok(self.answer_as_is(piece, asked)),
            Some(State::New(place)) => {
                // The folio stays in memory until it is written, so nobody reads this too early.
                let by = here.start - piece.start;
                let addr = place.addr + by;
                let state = State::Written(Place { addr, ..place });
                self.map.set(here.range(), state);
                self.becomes_data(here.range());
                Ok(self.answer_as_is(self.map.get(asked.start), asked))
            }
            Some(State::Reserved) | None => {
                let range = match piece.state {
                    None => here.range(),
                    Some(_) => {
                        asked.start
                            ..piece
                                .end
                                .min(asked.end.max(asked.start.saturating_add(MOST_AT_ONCE)))
                    }
                };
                let (place, range) = self.allocate(space, self.policy.dev, &range)?;
                if self.policy.style == Style::InPlace {
                    self.map.set(range.clone(), State::Written(place));
                    self.becomes_data(range);
                } else {
                    self.map.set(range, State::Unwritten(place));
                }
                Ok(self.answer_as_is(self.map.get(asked.start), asked))
            }
        }
    }

    fn begin_write(
        &mut self,
        space: &mut Space,
        asked: &Range<u64>,
        args: &IomapBeginIn,
    ) -> Result<Answer> {
        self.forget_grants(asked);
        let mut own = None;
        let answer = self.write_answer(space, asked, args.opflags, &mut own);
        if let (true, Ok(answer)) = (is_direct(args.opflags), &answer) {
            self.issued.set(answer.target(), State::Reserved);
        }
        self.remember(Grant {
            opflags: args.opflags,
            pos: args.pos,
            own,
        });
        answer
    }

    fn write_answer(
        &mut self,
        space: &mut Space,
        asked: &Range<u64>,
        opflags: u32,
        own: &mut Option<Range<u64>>,
    ) -> Result<Answer> {
        if let Some(staged) = self.staged_at(asked.start) {
            return Ok(self.answer_staged(staged));
        }
        let piece = self.map.get(asked.start);
        let here = piece.within(asked);
        let (moves, range) = self.must_move(space, &here);
        if moves {
            let staged = self.stage(space, &range)?;
            *own = Some(staged.range());
            return Ok(self.answer_staged(staged));
        }
        let no_more = iomap_op::ZERO | iomap_op::UNSHARE | iomap_op::OVERWRITE_ONLY;
        let allocates = opflags & no_more == 0;
        let direct = is_direct(opflags);
        match piece.state {
            // Behind it, other blocks may be shared.
            Some(State::Written(_)) => {
                Ok(self.answer_as_is(piece.within(&(piece.start..range.end)), asked))
            }
            // Nothing of it is in the page cache any more.
            Some(State::New(_)) if direct => {
                if let Some(State::New(place)) = here.state {
                    self.map.set(here.range(), State::Unwritten(place));
                }
                Ok(self.answer_as_is(self.map.get(here.start), asked))
            }
            Some(State::New(_)) => Ok(self.answer_new(here)),
            Some(State::Reserved) if direct && allocates => {
                let range = here.range();
                self.fill_unwritten(space, &here, range, own)
            }
            Some(State::Reserved) if asked.start / self.block() % 2 == 1 => {
                // Both ways to say it are good.
                Ok(Answer::new(
                    side(&here, None, 0),
                    Some(side(&here, piece.state, self.flags())),
                ))
            }
            None if allocates => self.fill_hole(space, piece, &here, direct, own),
            _ => Ok(self.answer_as_is(piece, asked)),
        }
    }

    /// New blocks that were not written back: nothing to read, and mapped to write.
    fn answer_new(&self, piece: Piece) -> Answer {
        let place = piece.state.and_then(State::place);
        let flags = iomap_flags::NEW | self.flags();
        Answer::new(
            side(&piece, None, 0),
            Some(side(&piece, place.map(State::Written), flags)),
        )
    }

    fn fill_hole(
        &mut self,
        space: &mut Space,
        hole: Piece,
        here: &Piece,
        direct: bool,
        own: &mut Option<Range<u64>>,
    ) -> Result<Answer> {
        let extra = self.policy.extra * self.block();
        let longer = here.start..hole.end.min(here.end.saturating_add(extra));
        let mapped = match self.policy.style {
            Style::InPlace => true,
            Style::Cow => self.policy.cow_mapped,
            Style::Unwritten | Style::Delalloc => false,
        };
        if direct {
            return self.fill_unwritten(space, here, longer, own);
        }
        if self.policy.style == Style::Delalloc {
            self.map.set(longer.clone(), State::Reserved);
            *own = Some(longer);
            let piece = self.map.get(here.start);
            return Ok(Answer::new(
                side(here, None, 0),
                Some(side(&piece, piece.state, self.flags())),
            ));
        }
        if mapped {
            let (place, range) = self.allocate(space, self.policy.dev, &here.range())?;
            *own = Some(range.clone());
            self.map.set(range.clone(), State::New(place));
            return Ok(self.answer_new(self.map.get(here.start).within(&range)));
        }
        self.fill_unwritten(space, here, longer, own)
    }

    /// Allocates the start of a range, which nobody reads before IOEND.
    fn fill_unwritten(
        &mut self,
        space: &mut Space,
        here: &Piece,
        range: Range<u64>,
        own: &mut Option<Range<u64>>,
    ) -> Result<Answer> {
        let (place, range) = self.allocate(space, self.policy.dev, &range)?;
        *own = Some(range.clone());
        self.map.set(range.clone(), State::Unwritten(place));
        let piece = self.map.get(here.start);
        let flags = self.flags();
        // Both ways to say it are good.
        Ok(if here.start / self.block() % 2 == 1 {
            let write = side(&piece, piece.state, flags | iomap_flags::NEW);
            Answer::new(side(&here.within(&range), None, 0), Some(write))
        } else {
            Answer::new(side(&piece, piece.state, flags), None)
        })
    }

    /// Gives up what a short write did not need. Where the kernel may know of blocks without having
    /// asked for just this write, another write may be on its way to them, so they stay.
    fn give_back(&mut self, space: &mut Space, range: Range<u64>, known: bool) {
        if !known {
            self.drop_staged(space, range.clone());
        }
        for piece in self.map.pieces(range) {
            match piece.state {
                Some(State::New(_) | State::Unwritten(_)) if known => {}
                Some(State::Reserved | State::New(_) | State::Unwritten(_)) => {
                    self.drop_range(space, piece.range());
                }
                // By now it holds data.
                Some(State::Written(_)) | None => {}
            }
        }
    }
}
