// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which blocks of the devices are in use, and by how many files.

use super::extents::Place;
use crate::devices::Device;
use crate::pattern::fill_poison;
use crate::random::Random;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// How blocks are given out.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    /// At most this many blocks in one piece; 0 for no limit.
    pub longest: u64,
    /// Keep the block behind each piece, so that a write beyond one shows.
    pub guards: bool,
    /// Fill blocks with poison when they are given out again.
    pub poison_again: bool,
}

/// The free ranges of one device.
struct Free {
    ranges: BTreeMap<u64, u64>,
    /// Search starts here, so that blocks are not used again soon.
    next: u64,
    /// Everything from here on was never given out.
    virgin: u64,
    /// Blocks that nobody gets, as long as there are others.
    guards: BTreeMap<u64, u64>,
    size: u64,
}

impl Free {
    fn new(size: u64) -> Self {
        Self {
            ranges: BTreeMap::from([(0, size)]),
            next: 0,
            virgin: 0,
            guards: BTreeMap::new(),
            size,
        }
    }

    /// Up to `wanted` bytes at a multiple of `align`, at least `align` of them.
    fn take(&mut self, wanted: u64, align: u64) -> Option<Range<u64>> {
        let fits = |(start, end): (&u64, &u64)| {
            let at = start.checked_next_multiple_of(align)?;
            (at < *end && *end - at >= align).then_some((*start, *end, at))
        };
        let from = self.next;
        // What begins before the search's start may reach behind it.
        let (start, end, at) = self
            .ranges
            .range(from..)
            .find_map(fits)
            .or_else(|| self.ranges.range(..from).find_map(fits))?;
        let len = wanted.min((end - at) / align * align);
        self.ranges.remove(&start);
        if start < at {
            self.ranges.insert(start, at);
        }
        if at + len < end {
            self.ranges.insert(at + len, end);
        }
        self.next = at + len;
        Some(at..at + len)
    }

    /// Takes what is free of a range.
    fn cut(&mut self, range: Range<u64>) {
        let hit: Vec<(u64, u64)> = self
            .ranges
            .range(..range.end)
            .filter(|(_, end)| **end > range.start)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in hit {
            self.ranges.remove(&start);
            if start < range.start {
                self.ranges.insert(start, range.start);
            }
            if range.end < end {
                self.ranges.insert(range.end, end);
            }
        }
    }

    fn give(&mut self, range: Range<u64>) {
        let (mut start, mut end) = (range.start, range.end);
        if let Some((before, its_end)) = self.ranges.range(..start).next_back() {
            if *its_end == start {
                start = *before;
            }
        }
        if let Some(its_end) = self.ranges.remove(&end) {
            end = its_end;
        }
        self.ranges.insert(start, end);
    }

    fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }
}

/// All devices.
pub struct Space {
    devices: Arc<Vec<Device>>,
    free: Vec<Free>,
    /// Users of blocks that have more than one.
    users: HashMap<Place, u32>,
    habits: Habits,
    random: Random,
}

impl Space {
    /// Everything is free.
    pub fn new(devices: Arc<Vec<Device>>, habits: Habits, seed: u64) -> Self {
        let free = devices.iter().map(|d| Free::new(d.size)).collect();
        Self {
            devices,
            free,
            users: HashMap::new(),
            habits,
            random: Random::new(seed),
        }
    }

    /// Takes a range out of use for good, because a file of fixed extents has it.
    pub fn exclude(&mut self, dev: usize, range: Range<u64>) {
        if let Some(free) = self.free.get_mut(dev) {
            free.cut(range);
        }
    }

    /// Writes to the devices, past their page cache.
    pub fn write(&self, place: Place, data: &[u8]) -> io::Result<()> {
        let device = self.devices.get(place.dev);
        let device = device.ok_or(io::ErrorKind::NotFound)?;
        device.write_direct(place.addr, data)
    }

    /// Allocates up to `wanted` bytes in blocks of `block`; `None` if nothing is free.
    pub fn take(
        &mut self,
        dev: usize,
        wanted: u64,
        block: u64,
    ) -> io::Result<Option<(Place, u64)>> {
        let logical = self.devices.get(dev).map_or(512, |d| d.logical_block);
        let align = block.max(logical.into());
        let mut wanted = wanted.next_multiple_of(align);
        if self.habits.longest != 0 {
            let blocks = 1 + self.random.below(self.habits.longest);
            wanted = wanted.min(blocks * align);
        }
        let Some(free) = self.free.get_mut(dev) else {
            return Ok(None);
        };
        let Some(range) = free.take(wanted, align).or_else(|| {
            // What is left are guards.
            for (start, end) in std::mem::take(&mut free.guards) {
                free.give(start..end);
            }
            free.take(wanted, align)
        }) else {
            return Ok(None);
        };
        let again = range.start < free.virgin;
        free.virgin = free.virgin.max(range.end);
        // Only what was never in use is known to hold poison.
        if self.habits.guards && free.virgin == range.end && range.end + align <= free.size {
            free.cut(range.end..range.end + align);
            free.guards.insert(range.end, range.end + align);
            free.next = range.end + align;
            free.virgin = free.next;
        }
        let place = Place {
            dev,
            addr: range.start,
        };
        let len = range.end - range.start;
        if again && self.habits.poison_again {
            self.poison(place, len)?;
        }
        Ok(Some((place, len)))
    }

    fn poison(&self, place: Place, len: u64) -> io::Result<()> {
        let Some(device) = self.devices.get(place.dev) else {
            return Ok(());
        };
        let mut buf = vec![0; len as usize];
        fill_poison(&mut buf);
        device.write_direct(place.addr, &buf)
    }

    /// One user less of some blocks; the last one frees them.
    pub fn give(&mut self, place: Place, len: u64, block: u64) {
        let mut by = 0;
        while by < len {
            let one = Place {
                dev: place.dev,
                addr: place.addr + by,
            };
            match self.users.get_mut(&one) {
                Some(users) if *users > 2 => *users -= 1,
                Some(_) => {
                    self.users.remove(&one);
                }
                None => {
                    if let Some(free) = self.free.get_mut(one.dev) {
                        free.give(one.addr..one.addr + block);
                    }
                }
            }
            by += block;
        }
    }

    /// One user more of some blocks.
    pub fn share(&mut self, place: Place, len: u64, block: u64) {
        for by in (0..len).step_by(block as usize) {
            let one = Place {
                dev: place.dev,
                addr: place.addr + by,
            };
            *self.users.entry(one).or_insert(1) += 1;
        }
    }

    /// Whether the first of some blocks has several users, and how many bytes agree with it.
    pub fn shared(&self, place: Place, len: u64, block: u64) -> (bool, u64) {
        let is = |by: u64| {
            let addr = place.addr + by;
            self.users.contains_key(&Place { addr, ..place })
        };
        let first = is(0);
        let mut by = block;
        while by < len && is(by) == first {
            by += block;
        }
        (first, by.min(len))
    }

    /// Size and free bytes of all devices.
    pub fn figures(&self) -> (u64, u64) {
        let size = self.free.iter().map(|f| f.size).sum();
        (size, self.free.iter().map(Free::bytes).sum())
    }

    /// Bytes that are kept as guards.
    #[cfg(test)]
    pub fn guarded(&self) -> u64 {
        let guards = self.free.iter().flat_map(|f| f.guards.iter());
        guards.map(|(start, end)| end - start).sum()
    }

    /// Looks at what nobody was ever given: the first place that does not hold poison any more.
    pub fn strayed(&self) -> io::Result<Option<Place>> {
        let mut want = vec![0; CHUNK as usize];
        fill_poison(&mut want);
        for (dev, (free, device)) in self.free.iter().zip(self.devices.iter()).enumerate() {
            let virgin = free.ranges.iter().map(|(s, e)| ((*s).max(free.virgin), *e));
            let guards = free.guards.iter().map(|(s, e)| (*s, *e));
            for (start, end) in virgin.chain(guards) {
                let end = end.min(device.filled());
                let mut at = start;
                while at < end {
                    let n = (end - at).min(CHUNK) as usize;
                    let got = device.read_direct(at, n)?;
                    if let Some(i) = (0..n).find(|i| got.get(*i) != want.get(*i)) {
                        let addr = at + i as u64;
                        return Ok(Some(Place { dev, addr }));
                    }
                    at += n as u64;
                }
            }
        }
        Ok(None)
    }
}

/// How much is read at once.
const CHUNK: u64 = 1 << 20;
