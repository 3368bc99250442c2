// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Files that share blocks.

use super::extents::State;
use super::file::MAX_END;
use super::{Policy, Store, Style};
use fuse_iomap::wire::CopyFileRangeIn;
use fuse_iomap::{Errno, Result};

impl Store {
    /// Makes a range of `to` the same blocks as a range of `from`; returns its length.
    ///
    /// What is not whole blocks, or not between files of the same kind, is left to the kernel.
    pub fn reflink(&mut self, from: u64, to: u64, args: &CopyFileRangeIn) -> Result<u64> {
        let source = self.files.get(&from).ok_or(Errno::STALE)?;
        let target = self.files.get(&to).ok_or(Errno::STALE)?;
        let block = source.block();
        let cow = |style| style == Style::Cow;
        if source.inline.is_some() || target.inline.is_some() {
            return Err(Errno::OPNOTSUPP);
        }
        if !cow(source.policy.style) || !cow(target.policy.style) || target.block() != block {
            return Err(Errno::OPNOTSUPP);
        }
        let len = args.len.min(source.size.saturating_sub(args.off_in));
        let end = args.off_out.checked_add(len).filter(|e| *e <= MAX_END);
        let end = end.ok_or(Errno::FBIG)?;
        if args.off_in % block != 0 || args.off_out % block != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        // A last part of a block is good only if it is the last of both files.
        let whole = len / block * block;
        let tail = len - whole;
        let len = if tail != 0 && args.off_in + len == source.size && end >= target.size {
            len
        } else {
            whole
        };
        if len == 0 && tail != 0 {
            return Err(Errno::OPNOTSUPP);
        }
        let range = args.off_in..(args.off_in + len).next_multiple_of(block);
        let moved = |pos: u64| pos - args.off_in + args.off_out;
        if from == to && range.start < moved(range.end) && moved(range.start) < range.end {
            return Err(Errno::INVAL);
        }
        let pieces = source.map.pieces(range.clone());
        // The kernel must not overwrite these blocks in place any more.
        self.changed.push((from, range.clone()));
        let space = &mut self.space;
        for piece in &pieces {
            if let Some(State::Written(place)) = piece.state {
                space.share(place, piece.end - piece.start, block);
            }
        }
        let target = self.files.get_mut(&to).ok_or(Errno::STALE)?;
        target.drop_range(space, moved(range.start)..moved(range.end));
        for piece in pieces {
            if let Some(state @ State::Written(_)) = piece.state {
                target.map.set(moved(piece.start)..moved(piece.end), state);
            }
        }
        target.size = target.size.max(args.off_out + len);
        Ok(len)
    }

    /// Makes `to` a file with all the blocks of `from`.
    pub fn clone_file(&mut self, from: u64, to: u64) -> Result<()> {
        let source = self.files.get_mut(&from).ok_or(Errno::STALE)?;
        source.take_blocks(&mut self.space)?;
        let policy = Policy {
            inline: false,
            ..source.policy.clone()
        };
        let size = source.size;
        self.create(to, policy, 0);
        let args = CopyFileRangeIn {
            len: size,
            ..Default::default()
        };
        self.reflink(from, to, &args).map(|_| ())
    }
}
