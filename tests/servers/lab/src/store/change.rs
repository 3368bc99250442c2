// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Changes of size and of blocks: truncate and fallocate.

use super::Store;
use super::extents::{Place, State};
use super::file::{File, MAX_END, PAGE};
use super::space::Space;
use crate::devices::Device;
use fuse_iomap::wire::falloc;
use fuse_iomap::{Errno, Result};
use std::ops::Range;

impl Store {
    /// Sets the size.
    pub fn truncate(&mut self, id: u64, size: u64) -> Result<()> {
        if size > MAX_END {
            return Err(Errno::FBIG);
        }
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        match &mut file.inline {
            Some(data) if size <= PAGE => {
                data.resize(size as usize, 0);
                file.size = size;
                return Ok(());
            }
            _ => file.take_blocks(&mut self.space)?,
        }
        // The kernel knows the file to be larger than it is on disk, so this may cut as well when the
        // size on disk grows.
        let gone = size.next_multiple_of(file.block())..u64::MAX;
        file.drop_range(&mut self.space, gone);
        file.size = size;
        Ok(())
    }

    /// As fallocate(2).
    pub fn fallocate(
        &mut self,
        id: u64,
        mode: u32,
        range: Range<u64>,
        devices: &[Device],
    ) -> Result<()> {
        if range.is_empty() || range.end > MAX_END {
            return Err(Errno::INVAL);
        }
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        let space = &mut self.space;
        file.take_blocks(space)?;
        let keep = mode & falloc::KEEP_SIZE != 0;
        match mode & !falloc::KEEP_SIZE {
            0 => file.preallocate(space, &range)?,
            falloc::PUNCH_HOLE if keep => {
                let inner = file.inwards(&range);
                file.drop_range(space, inner);
                return Ok(());
            }
            falloc::ZERO_RANGE => {
                let inner = file.inwards(&range);
                file.drop_range(space, inner);
                file.preallocate(space, &range)?;
            }
            falloc::COLLAPSE_RANGE if !keep => return file.collapse(space, &range),
            falloc::INSERT_RANGE if !keep => return file.insert(space, &range),
            falloc::UNSHARE_RANGE => file.unshare(space, &range, devices)?,
            _ => return Err(Errno::OPNOTSUPP),
        }
        if !keep {
            file.size = file.size.max(range.end);
        }
        Ok(())
    }
}

impl File {
    /// Sees to blocks for everything.
    fn preallocate(&mut self, space: &mut Space, range: &Range<u64>) -> Result<()> {
        let range = self.outwards(range.start, range.end - range.start)?;
        let mut pos = range.start;
        while pos < range.end {
            let piece = self.map.get(pos).within(&(pos..range.end));
            pos = piece.end;
            if piece.state.and_then(State::place).is_none() {
                let (place, got) = self.allocate(space, self.policy.dev, &piece.range())?;
                pos = got.end;
                self.map.set(got, State::Unwritten(place));
            }
        }
        self.forget_grants(&range);
        Ok(())
    }

    fn aligned(&self, range: &Range<u64>) -> Result<()> {
        let block = self.block();
        if range.start % block == 0 && range.end % block == 0 {
            Ok(())
        } else {
            Err(Errno::INVAL)
        }
    }

    fn collapse(&mut self, space: &mut Space, range: &Range<u64>) -> Result<()> {
        self.aligned(range)?;
        if range.end >= self.size {
            return Err(Errno::INVAL);
        }
        self.drop_staged(space, range.start..u64::MAX);
        self.issued.remove(range.start..u64::MAX);
        self.forget_grants(&(range.start..u64::MAX));
        self.drop_range(space, range.clone());
        let by = range.end - range.start;
        self.map.shift(range.end, -(by as i64));
        self.size -= by;
        Ok(())
    }

    fn insert(&mut self, space: &mut Space, range: &Range<u64>) -> Result<()> {
        self.aligned(range)?;
        let by = range.end - range.start;
        if range.start >= self.size {
            return Err(Errno::INVAL);
        }
        let end = self.size.max(self.map.end()).checked_add(by);
        end.filter(|end| *end <= MAX_END).ok_or(Errno::FBIG)?;
        self.drop_staged(space, range.start..u64::MAX);
        self.issued.remove(range.start..u64::MAX);
        self.forget_grants(&(range.start..u64::MAX));
        self.map.shift(range.start, by as i64);
        self.size += by;
        Ok(())
    }

    /// Gives the file its own blocks, with a copy of what is in the shared ones, and blocks where
    /// there are none.
    fn unshare(&mut self, space: &mut Space, range: &Range<u64>, devices: &[Device]) -> Result<()> {
        let range = self.outwards(range.start, range.end - range.start)?;
        let mut pos = range.start;
        while pos < range.end {
            let piece = self.map.get(pos).within(&(pos..range.end));
            pos = piece.end;
            let Some(State::Written(old)) = piece.state else {
                continue;
            };
            let (shared, len) = space.shared(old, piece.end - piece.start, self.block());
            pos = piece.start + len;
            if !shared {
                continue;
            }
            let (new, got) = self.allocate(space, self.policy.dev, &(piece.start..pos))?;
            pos = got.end;
            copy(devices, old, new, got.end - got.start).map_err(|e| super::errno(&e))?;
            self.map.set(got.clone(), State::Written(new));
            space.give(old, got.end - got.start, self.block());
        }
        self.preallocate(space, &range)
    }
}

fn copy(devices: &[Device], from: Place, to: Place, len: u64) -> std::io::Result<()> {
    let device = |p: Place| devices.get(p.dev).ok_or(std::io::ErrorKind::NotFound);
    let data = device(from)?.read_direct(from.addr, len as usize)?;
    device(to)?.write_direct(to.addr, &data)
}
