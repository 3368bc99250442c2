// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Files whose data is not on a device as long as there is little of it. The kernel reads and writes it
//! with FUSE_READ and FUSE_WRITE; what needs blocks gets them.

use super::Store;
use super::extents::State;
use super::file::{Answer, File, PAGE, Side};
use super::space::Space;
use fuse_iomap::wire::{IomapBeginIn, iomap_op, iomap_type};
use fuse_iomap::{Errno, Result};
use std::ops::Range;

impl Store {
    /// Reads inline data.
    pub fn read(&mut self, id: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let file = self.files.get(&id).ok_or(Errno::STALE)?;
        let Some(data) = &file.inline else {
            self.violation(id, "READ of what is not inline");
            return Err(Errno::IO);
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = data.get(start..).unwrap_or(&[]);
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }

    /// Writes inline data.
    pub fn write(&mut self, id: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let file = self.files.get_mut(&id).ok_or(Errno::STALE)?;
        let end = offset.saturating_add(data.len() as u64);
        let wrong = match &mut file.inline {
            None => "WRITE to what is not inline",
            Some(_) if data.is_empty() => "WRITE of nothing",
            Some(_) if end > PAGE => "WRITE behind the end of what is inline",
            Some(inline) => {
                let (start, end) = (offset as usize, end as usize);
                inline.resize(inline.len().max(end), 0);
                inline[start..end].copy_from_slice(data);
                file.size = inline.len() as u64;
                return Ok(data.len() as u32);
            }
        };
        self.violation(id, wrong);
        Err(Errno::IO)
    }
}

impl File {
    /// The answer to a BEGIN that can be had without blocks; or what is inline gets them.
    pub(super) fn begin_inline(
        &mut self,
        space: &mut Space,
        asked: &Range<u64>,
        args: &IomapBeginIn,
    ) -> Result<Option<Answer>> {
        if self.inline.is_none() {
            return Ok(None);
        }
        const NEEDS_BLOCKS: u32 =
            iomap_op::FAULT | iomap_op::DIRECT | iomap_op::WRITEBACK | iomap_op::UNSHARE;
        let write = args.opflags & iomap_op::WRITE != 0;
        let end = args.pos.saturating_add(args.count);
        if write && (args.opflags & NEEDS_BLOCKS != 0 || end > PAGE) {
            self.take_blocks(space)?;
            return Ok(None);
        }
        let side = |kind, range: Range<u64>| Side {
            kind,
            start: range.start,
            end: range.end,
            place: None,
            flags: 0,
        };
        if args.pos >= PAGE {
            let hole = side(iomap_type::HOLE, asked.clone());
            return Ok(Some(Answer::new(hole, None)));
        }
        let inline = side(iomap_type::INLINE, 0..PAGE);
        // Both ways to say where to write are good.
        let other = write && args.pos % 2 == 1;
        Ok(Some(Answer::new(inline, other.then_some(inline))))
    }

    /// Gives inline data blocks of its own.
    pub(super) fn take_blocks(&mut self, space: &mut Space) -> Result<()> {
        let Some(data) = self.inline.take() else {
            return Ok(());
        };
        let result = self.fill_blocks(space, &data);
        if result.is_err() {
            self.drop_range(space, 0..u64::MAX);
            self.inline = Some(data);
        }
        result
    }

    fn fill_blocks(&mut self, space: &mut Space, data: &[u8]) -> Result<()> {
        let end = (data.len() as u64).next_multiple_of(self.block());
        let mut padded = data.to_vec();
        padded.resize(end as usize, 0);
        let mut pos = 0;
        while pos < end {
            let (place, got) = self.allocate(space, self.policy.dev, &(pos..end))?;
            let part = &padded[got.start as usize..got.end as usize];
            let written = space.write(place, part);
            self.map.set(got.clone(), State::Written(place));
            written.map_err(|e| super::errno(&e))?;
            pos = got.end;
        }
        Ok(())
    }
}
