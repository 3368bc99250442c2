// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Numbers from a seed, and bytes that tell where they belong.

/// A sequence of numbers that a seed determines (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

/// The mixing step of splitmix64: every bit of the result depends on every bit of the input.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The sequence that belongs to a seed.
    pub const fn new(seed: u64) -> Self {
        Self(mix(seed.wrapping_add(STEP)))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// A number below `limit`, or 0 when there is none.
    pub const fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { self.next() % limit }
    }

    /// Whether something of the probability one in `n` happens.
    pub const fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of several things.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> Option<&'a T> {
        let index = self.below(things.len() as u64);
        things.get(usize::try_from(index).ok()?)
    }

    /// A length up to `most`: small ones and large ones are about equally frequent, and some end on
    /// a block boundary.
    pub fn length(&mut self, most: u64) -> u64 {
        let scale = most.checked_ilog2().unwrap_or(0) + 1;
        let bits = self.below(u64::from(scale)) + 1;
        let length = self.below((1 << bits).min(most)) + 1;
        if self.one_in(3) {
            length.next_multiple_of(4096).min(most)
        } else {
            length
        }
    }
}

/// Fills `bytes`, which stand at `pos` in a file, so that each depends on the position and on `stamp`.
pub fn fill(stamp: u64, pos: u64, bytes: &mut [u8]) {
    for (at, byte) in (pos..).zip(bytes.iter_mut()) {
        *byte = byte_at(stamp, at);
    }
}

/// The byte that [`fill`] puts at `pos`. It is never zero, so that it differs from a hole.
pub const fn byte_at(stamp: u64, pos: u64) -> u8 {
    let word = mix(stamp ^ (pos / 8).wrapping_mul(STEP));
    // Truncation is the purpose.
    let byte = (word >> ((pos % 8) * 8)) as u8;
    if byte == 0 { 0xff } else { byte }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_the_sequence() {
        let take = |seed| {
            let mut random = Random::new(seed);
            [random.next(), random.next(), random.below(10)]
        };
        assert_eq!(take(7), take(7));
        assert_ne!(take(7), take(8));
    }

    #[test]
    fn filling_in_parts_is_filling_at_once() {
        let mut whole = [0; 100];
        fill(3, 1000, &mut whole);
        let mut parts = [0; 100];
        fill(3, 1000, &mut parts[..33]);
        fill(3, 1033, &mut parts[33..]);
        assert_eq!(whole, parts);
        assert!(!whole.contains(&0));
    }
}
