// SPDX-License-Identifier: GPL-2.0 OR MIT
//! IOEND: data has reached the device.

use super::Store;
use super::extents::{Place, State};
use super::file::File;
use super::space::Space;
use fuse_iomap::wire::{ADDR_NULL, DEV_NULL, IomapIoendIn, iomap_ioend};
use fuse_iomap::{Errno, Result};
use std::ops::Range;

const KNOWN: u32 = iomap_ioend::SHARED
    | iomap_ioend::UNWRITTEN
    | iomap_ioend::BOUNDARY
    | iomap_ioend::DIRECT
    | iomap_ioend::APPEND
    | iomap_ioend::WRITEBACK;
const NEEDED: u32 = iomap_ioend::SHARED | iomap_ioend::UNWRITTEN | iomap_ioend::APPEND;

impl Store {
    /// Does what IOEND asks and returns the size on disk. `device` turns a backing id into a
    /// position.
    pub fn ioend(
        &mut self,
        id: u64,
        args: &IomapIoendIn,
        device: impl Fn(u32) -> Option<usize>,
    ) -> Result<u64> {
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        let mut wrong = file.check_ioend(args);
        if args.error != 0 {
            self.tally.failures += 1;
        } else if wrong.is_empty() && args.flags != iomap_ioend::SWAPOFF {
            self.tally.ioends += 1;
            match file.complete(&mut self.space, args, device(args.dev)) {
                Ok(bytes) => self.tally.blocks += bytes / file.block(),
                Err(what) => wrong.push(what),
            }
        }
        let size = file.size;
        let refused = !wrong.is_empty();
        for what in wrong {
            self.violation(id, &format!("IOEND {what}: {args:?}"));
        }
        if refused {
            return Err(Errno::IO);
        }
        Ok(size)
    }
}

impl File {
    fn check_ioend(&self, args: &IomapIoendIn) -> Vec<&'static str> {
        let flags = args.flags;
        let mut wrong = Vec::new();
        if flags == iomap_ioend::SWAPOFF {
            if (args.pos, args.written, args.error) != (0, 0, 0) {
                wrong.push("of the end of swapping with a range");
            }
            return wrong;
        }
        if flags & !KNOWN != 0 {
            wrong.push("with unknown flags");
        }
        if args.error > 0 || args.error < -4095 {
            wrong.push("with an error that is none");
        }
        if flags & (iomap_ioend::WRITEBACK | iomap_ioend::DIRECT) == 0 {
            wrong.push("of neither writeback nor direct I/O");
        }
        let range = self.outwards(args.pos, args.written);
        let Ok(range) = range else {
            wrong.push("of an impossible range");
            return wrong;
        };
        if args.error != 0 {
            return wrong;
        }
        if flags & NEEDED == 0 {
            wrong.push("without need");
        }
        if args.written == 0 {
            wrong.push("of nothing");
        }
        let direct = flags & iomap_ioend::DIRECT != 0;
        if direct && flags & iomap_ioend::WRITEBACK != 0 {
            wrong.push("of writeback as well as direct I/O");
        }
        // A direct write may be in several places; this file knows which.
        if direct && (args.new_addr != ADDR_NULL || args.dev != DEV_NULL) {
            wrong.push("of direct I/O with an address");
        }
        if !direct && args.new_addr == ADDR_NULL {
            wrong.push("without an address");
        }
        let told = self.issued.pieces(range);
        if told.iter().any(|p| p.state.is_none()) {
            wrong.push("outside of what may be written");
        }
        if flags & iomap_ioend::APPEND == 0 && args.pos.saturating_add(args.written) > self.size {
            wrong.push("beyond the size on disk, without APPEND");
        }
        wrong
    }

    /// Returns how many bytes changed their state.
    fn complete(
        &mut self,
        space: &mut Space,
        args: &IomapIoendIn,
        dev: Option<usize>,
    ) -> std::result::Result<u64, &'static str> {
        let range = self.outwards(args.pos, args.written);
        let range = range.map_err(|_| "of an impossible range")?;
        if args.flags & iomap_ioend::DIRECT != 0 {
            let bytes = self.complete_direct(space, &range, args.flags)?;
            self.append(args);
            return Ok(bytes);
        }
        let dev = dev.ok_or("with an unknown device")?;
        // `new_addr` belongs to `pos`, which may lie inside a block.
        let lead = args.pos - range.start;
        let addr = args
            .new_addr
            .checked_sub(lead)
            .ok_or("with a low address")?;
        let first = Place { dev, addr };
        let bytes = if args.flags & iomap_ioend::SHARED != 0 {
            self.remap(space, &range, first)?
        } else if args.flags & iomap_ioend::UNWRITTEN != 0 {
            self.convert(&range, first)?
        } else {
            self.check_written(&range, first)?;
            0
        };
        self.append(args);
        Ok(bytes)
    }

    fn append(&mut self, args: &IomapIoendIn) {
        if args.flags & iomap_ioend::APPEND != 0 {
            self.size = self.size.max(args.pos + args.written);
        }
    }

    /// A direct write went to where this file said, all in one: moved blocks, unwritten ones, and
    /// data.
    fn complete_direct(
        &mut self,
        space: &mut Space,
        range: &Range<u64>,
        flags: u32,
    ) -> std::result::Result<u64, &'static str> {
        let mut bytes = 0;
        for staged in self.staged.pieces(range.clone()) {
            let part = staged.range();
            if let Some(place) = staged.state.and_then(State::place) {
                if flags & iomap_ioend::SHARED == 0 {
                    return Err("of direct I/O to other blocks, without SHARED");
                }
                bytes += self.remap(space, &part, place)?;
                continue;
            }
            for piece in self.map.pieces(part) {
                match piece.state {
                    Some(State::Written(_)) => {}
                    Some(State::Unwritten(place)) if flags & iomap_ioend::UNWRITTEN != 0 => {
                        bytes += self.convert(&piece.range(), place)?;
                    }
                    Some(State::Unwritten(_)) => {
                        return Err("of direct I/O to unwritten blocks, without UNWRITTEN");
                    }
                    _ => return Err("of direct I/O where there are no blocks"),
                }
            }
        }
        Ok(bytes)
    }

    fn convert(
        &mut self,
        range: &Range<u64>,
        first: Place,
    ) -> std::result::Result<u64, &'static str> {
        let mut converted = 0;
        for piece in self.map.pieces(range.clone()) {
            let want = first.addr + (piece.start - range.start);
            let place = piece.state.and_then(State::place);
            let place = place.ok_or("converts what has no blocks")?;
            if (place.dev, place.addr) != (first.dev, want) {
                return Err("converts blocks that are elsewhere");
            }
            match piece.state {
                Some(State::Unwritten(place)) => {
                    self.map.set(piece.range(), State::Written(place));
                    converted += piece.end - piece.start;
                }
                // Two rounds of writeback may have been told the same before the first one's IOEND.
                Some(State::Written(_)) => {}
                _ => return Err("converts what was never unwritten"),
            }
        }
        Ok(converted)
    }

    fn remap(
        &mut self,
        space: &mut Space,
        range: &Range<u64>,
        first: Place,
    ) -> std::result::Result<u64, &'static str> {
        let block = self.block();
        let mut remapped = 0;
        for new in self.staged.pieces(range.clone()) {
            let place = Place {
                dev: first.dev,
                addr: first.addr + (new.start - range.start),
            };
            match new.state.and_then(State::place) {
                Some(staged) if staged == place => {
                    self.staged.remove(new.range());
                    for old in self.map.remove(new.range()) {
                        if let Some(old_place) = old.state.and_then(State::place) {
                            space.give(old_place, old.end - old.start, block);
                        }
                    }
                    self.map.set(new.range(), State::Written(place));
                    remapped += new.end - new.start;
                }
                Some(_) => return Err("remaps to other blocks than were given out"),
                // Told of twice, as above.
                None => self.check_written(&new.range(), place)?,
            }
        }
        Ok(remapped)
    }

    fn check_written(
        &self,
        range: &Range<u64>,
        first: Place,
    ) -> std::result::Result<(), &'static str> {
        for piece in self.map.pieces(range.clone()) {
            let addr = first.addr + (piece.start - range.start);
            let want = State::Written(Place { addr, ..first });
            if piece.state != Some(want) {
                return Err("for blocks that hold no data of this file");
            }
        }
        Ok(())
    }
}
