// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a file is: where each of its ranges is, and what each of its bytes must be.

use crate::pattern::Pattern;
use crate::scenario::{ExtentKind, ExtentSpec, FileSpec};
use std::collections::BTreeMap;
use std::ops::Range;

/// A regular file with extents.
#[derive(Clone, Debug)]
pub struct FileModel {
    seed: u64,
    /// Distinguishes the inline data of files.
    inline_space: u64,
    size: u64,
    blksize: u32,
    extents: BTreeMap<u64, ExtentSpec>,
    period: Option<u64>,
}

impl FileModel {
    /// From a description, which is checked: a scenario with a mistake in it would otherwise look
    /// like a fault of the kernel.
    pub fn new(seed: u64, inline_space: u64, spec: &FileSpec) -> Result<Self, String> {
        let block = u64::from(spec.blksize);
        if !block.is_power_of_two() || !(512..=65536).contains(&block) {
            return Err(format!(
                "blksize {block} is not a power of two in 512..=65536"
            ));
        }
        let mut extents = BTreeMap::new();
        for extent in &spec.extents {
            let (offset, length) = (extent.offset, extent.length);
            let what = format!("extent at {offset}");
            if length == 0 {
                return Err(format!("{what}: no length"));
            }
            if offset % block != 0 || length % block != 0 {
                return Err(format!("{what}: not a multiple of {block}"));
            }
            if extent.kind == ExtentKind::PureOverwrite {
                return Err(format!("{what}: pure_overwrite is for the write side"));
            }
            if offset.checked_add(length).is_none() {
                return Err(format!("{what}: too long"));
            }
            if extents.insert(offset, extent.clone()).is_some() {
                return Err(format!("{what}: there are two"));
            }
        }
        let mut end = 0;
        for extent in extents.values() {
            if extent.offset < end {
                return Err(format!("extent at {}: overlaps", extent.offset));
            }
            end = extent.offset + extent.length;
        }
        if spec
            .period
            .is_some_and(|p| p < end || p == 0 || spec.size % p != 0)
        {
            return Err("the period is too short, or the size no multiple of it".into());
        }
        Ok(Self {
            seed,
            inline_space,
            size: spec.size,
            blksize: spec.blksize,
            extents,
            period: spec.period,
        })
    }

    /// Size in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Block size in bytes.
    pub const fn blksize(&self) -> u32 {
        self.blksize
    }

    /// The extents, in order.
    pub fn extents(&self) -> impl Iterator<Item = &ExtentSpec> {
        self.extents.values()
    }

    /// The extent that contains `pos`, or the hole that does.
    ///
    /// A hole ends at the next extent. Behind the last one it reaches at least to `pos + count`,
    /// rounded up to blocks.
    pub fn lookup(&self, pos: u64, count: u64) -> ExtentSpec {
        let Some(period) = self.period else {
            return self.find(pos, count);
        };
        if pos >= self.size {
            let block = u64::from(self.blksize);
            let end = pos.saturating_add(count.max(1)).min(i64::MAX as u64);
            let end = end.next_multiple_of(block);
            return ExtentSpec::hole(self.size, end - self.size);
        }
        let inside = pos % period;
        let mut extent = self.find(inside, 1);
        extent.length = extent.length.min(period - extent.offset);
        extent.offset += pos - inside;
        extent
    }

    fn find(&self, pos: u64, count: u64) -> ExtentSpec {
        let before = self.extents.range(..=pos).next_back().map(|(_, e)| e);
        if let Some(extent) = before.filter(|e| pos < e.offset + e.length) {
            return extent.clone();
        }
        let block = u64::from(self.blksize);
        let start = before.map_or(0, |e| e.offset + e.length);
        let start = start.next_multiple_of(block).min(pos / block * block);
        let end = match self.extents.range(pos..).next() {
            Some((offset, _)) => *offset,
            None => {
                let asked = pos.saturating_add(count.max(1)).max(self.size);
                asked
                    .checked_next_multiple_of(block)
                    .unwrap_or(u64::MAX / block * block)
            }
        };
        ExtentSpec::hole(start, end - start)
    }

    /// Fills `buf` with what a read at `pos` must give, as far as the file goes; returns the
    /// length.
    pub fn read(&self, pos: u64, buf: &mut [u8]) -> usize {
        let len = self.size.saturating_sub(pos).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let at = pos + done as u64;
            let extent = self.lookup(at, 1);
            let left = extent.offset + extent.length - at;
            let n = left.min((len - done) as u64) as usize;
            let part = &mut buf[done..done + n];
            match extent.kind {
                ExtentKind::Mapped => {
                    let addr = extent.addr + (at - extent.offset);
                    Pattern::new(self.seed, extent.dev as u64).fill(addr, part);
                }
                ExtentKind::Inline => Pattern::new(self.seed, self.inline_space).fill(at, part),
                _ => part.fill(0),
            }
            done += n;
        }
        len
    }

    /// The bytes of a range, as far as the file goes.
    pub fn bytes(&self, range: Range<u64>) -> Vec<u8> {
        let mut buf = vec![0; range.end.saturating_sub(range.start) as usize];
        let len = self.read(range.start, &mut buf);
        buf.truncate(len);
        buf
    }

    /// How many extents and holes a range touches: the most BEGINs that reading it once needs.
    pub fn pieces(&self, range: Range<u64>) -> u64 {
        let end = range.end.min(self.size);
        let mut pos = range.start;
        let mut n = 0;
        while pos < end {
            let extent = self.lookup(pos, end - pos);
            pos = extent.offset + extent.length;
            n += 1;
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_come_again() {
        let mut spec = FileSpec::iomap(1 << 20, 512, vec![ExtentSpec::mapped(512, 512, 0, 4096)]);
        spec.period = Some(2048);
        let model = FileModel::new(1, 0, &spec).unwrap();
        let at = |pos| {
            let e = model.lookup(pos, 1 << 20);
            (e.offset, e.length, e.kind, e.addr)
        };
        assert_eq!(at(0), (0, 512, ExtentKind::Hole, 0));
        assert_eq!(at(2048 + 600), (2048 + 512, 512, ExtentKind::Mapped, 4096));
        assert_eq!(at(4096 - 1), (2048 + 1024, 1024, ExtentKind::Hole, 0));
        assert_eq!(at(1 << 20), (1 << 20, 1 << 20, ExtentKind::Hole, 0));
        spec.period = Some(1000);
        assert!(FileModel::new(1, 0, &spec).is_err());
    }

    fn model() -> FileModel {
        let extents = vec![
            ExtentSpec::mapped(4096, 8192, 0, 1 << 20),
            ExtentSpec::unwritten(16384, 4096, 1, 0),
            ExtentSpec::mapped(20480, 4096, 1, 4096),
        ];
        FileModel::new(1, 99, &FileSpec::iomap(40_000, 4096, extents)).unwrap()
    }

    #[test]
    fn lookups_cover_the_file_without_gaps() {
        let m = model();
        let mut pos = 0;
        let mut kinds = Vec::new();
        while pos < m.size() {
            let e = m.lookup(pos, 1);
            assert_eq!(e.offset, pos);
            pos = e.offset + e.length;
            kinds.push(e.kind);
        }
        assert_eq!(pos, 40_960);
        use ExtentKind::*;
        assert_eq!(kinds, [Hole, Mapped, Hole, Unwritten, Mapped, Hole]);
        assert_eq!(m.pieces(0..m.size()), 6);
        assert_eq!(m.pieces(4096..4097), 1);
        assert_eq!(m.lookup(14_000, 1), ExtentSpec::hole(12_288, 4096));
    }

    #[test]
    fn bytes_come_from_the_device() {
        let m = model();
        let all = m.bytes(0..50_000);
        assert_eq!(all.len(), 40_000);
        assert!(all[..4096].iter().all(|b| *b == 0));
        assert!(all[16384..20480].iter().all(|b| *b == 0));
        let mut want = vec![0; 8192];
        Pattern::new(1, 0).fill(1 << 20, &mut want);
        assert_eq!(all[4096..12288], want);
        assert_eq!(m.bytes(4099..4199), all[4099..4199]);
        assert!(m.bytes(40_000..40_001).is_empty());
    }

    #[test]
    fn mistakes_in_a_scenario_are_found() {
        let bad = |e: Vec<ExtentSpec>| FileModel::new(1, 1, &FileSpec::iomap(1 << 20, 4096, e));
        assert!(bad(vec![ExtentSpec::hole(512, 4096)]).is_err());
        assert!(bad(vec![ExtentSpec::hole(0, 0)]).is_err());
        let overlap = vec![
            ExtentSpec::mapped(0, 8192, 0, 0),
            ExtentSpec::mapped(4096, 4096, 0, 0),
        ];
        assert!(bad(overlap).is_err());
    }
}
