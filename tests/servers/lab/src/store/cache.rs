// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What of an answer the kernel may remember: what stays true until the kernel itself changes it, or is
//! told.

use super::begin::side;
use super::extents::State;
use super::file::{Answer, File};
use super::space::Space;
use super::{Store, Style};
use fuse_iomap::wire::{iomap_flags, iomap_op, iomap_type};
use fuse_iomap::{Errno, Result};
use std::ops::Range;

/// The kernel does not look these up.
pub const ALWAYS_ASKED: u32 = iomap_op::SWAPFILE | iomap_op::ATOMIC;

impl Store {
    /// From now on the kernel may remember answers, which get at most `more` further mappings.
    pub const fn cache(&mut self, more: usize) {
        self.cached = Some(more);
    }

    /// Files and ranges of which the kernel has to forget what it knows.
    pub fn take_changed(&mut self) -> Vec<(u64, Range<u64>)> {
        std::mem::take(&mut self.changed)
    }

    /// Notes what an operation has changed.
    pub(super) fn gather(&mut self, id: u64) {
        if let Some(file) = self.files.get_mut(&id) {
            let ranges = file.changed.drain(..).map(|range| (id, range));
            self.changed.extend(ranges);
        }
    }

    /// What is true at a position of a file: an answer that nobody asked for.
    pub fn truth(&mut self, id: u64, pos: u64) -> Result<Answer> {
        let most = self.cached.ok_or(Errno::INVAL)?;
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        let asked = file.outwards(pos, 1)?;
        if file.inline.is_some() {
            return Err(Errno::NODATA);
        }
        let (mut answer, in_place) = file.as_is(&self.space, asked.start);
        let opflags = if in_place { iomap_op::WRITE } else { 0 };
        file.mark(&self.space, &mut answer, asked.start, opflags, most);
        Ok(answer)
    }
}

impl File {
    /// What was a hole to the kernel has become data, and there is no IOEND to say so.
    pub(super) fn becomes_data(&mut self, range: Range<u64>) {
        self.changed.push(range);
    }

    /// Marks those parts of an answer about `pos` that may be remembered.
    pub(super) fn mark(
        &mut self,
        space: &Space,
        answer: &mut Answer,
        pos: u64,
        opflags: u32,
        more: usize,
    ) {
        // Blocks that are mapped to be written, but not to be read, are so for one write only.
        let new = |state| matches!(state, Some(State::New(_)));
        if new(self.map.get(pos).state) || answer.read.kind == iomap_type::INLINE {
            return;
        }
        let in_place = answer.write.is_none();
        if in_place && self.policy.style == Style::Cow {
            self.cut_to_own(space, answer, pos);
        }
        let cache = iomap_flags::CACHE;
        answer.read.flags |= cache;
        let writes = opflags & iomap_op::WRITE != 0;
        let known = match answer.read.kind {
            // A read does not find out whether these may be overwritten.
            iomap_type::MAPPED => writes || self.policy.style != Style::Cow,
            iomap_type::UNWRITTEN => true,
            _ => false,
        };
        if let Some(write) = &mut answer.write {
            // The kernel keeps nothing that is new for one write only; this is not.
            write.flags = write.flags & !iomap_flags::NEW | cache;
        } else if known && answer.read.kind == iomap_type::UNWRITTEN {
            // Said even though it is the same: an older answer that is still on its way may say that
            // there is a hole to read.
            answer.write = Some(answer.read);
        } else if known {
            answer.write_flags |= cache;
        }
        if answer.write.is_some() || known {
            self.dirtied = true;
            self.issued.set(answer.target(), State::Reserved);
        }
        let mut at = answer.read.end;
        let end = self.size.next_multiple_of(self.block());
        // What may be moved to be written has to be asked for.
        let mut steady = answer.write_flags & cache != 0 && self.policy.style != Style::Cow;
        while at < end && answer.more.len() < more {
            let piece = self.map.get(at).within(&(at..end));
            if new(piece.state) {
                break;
            }
            answer.more.push(side(&piece, piece.state, 0));
            steady = steady && matches!(piece.state, Some(State::Written(_)));
            if steady {
                answer.in_place_to = piece.end;
                self.issued.set(at..piece.end, State::Reserved);
            }
            at = piece.end;
        }
    }

    /// Cuts an answer to overwrite in place to the blocks around `pos` that belong to this file alone.
    fn cut_to_own(&self, space: &Space, answer: &mut Answer, pos: u64) {
        let piece = self.map.get(pos);
        let mut end = answer.read.end.min(piece.end);
        let staged = self.staged.get(pos);
        if staged.state.is_none() {
            end = end.min(staged.end);
        }
        if let Some(State::Written(_)) = piece.state {
            let here = piece.within(&(pos..end));
            let (moves, own) = self.must_move(space, &here);
            if !moves {
                end = end.min(own.end);
            }
        }
        if end <= pos || answer.read.start > pos {
            return;
        }
        let flags = answer.read.flags;
        let here = piece.within(&(pos..end));
        answer.read = side(&here, here.state, flags);
    }

    /// What is at a position, without changing anything, and whether it may be overwritten in place.
    fn as_is(&self, space: &Space, pos: u64) -> (Answer, bool) {
        if let Some(staged) = self.staged_at(pos) {
            return (self.answer_staged(staged), false);
        }
        let piece = self.map.get(pos);
        // The last hole has no end.
        let end = match piece.state {
            None => self.size.next_multiple_of(self.block()),
            Some(_) => piece.end,
        };
        let here = piece.within(&(pos..end.max(pos + self.block())));
        let (moves, range) = self.must_move(space, &here);
        let here = here.within(&range);
        (Answer::new(side(&here, here.state, 0), None), !moves)
    }
}
