// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Repeatable randomness.

/// The seed of a test: its own, or another one for each `EXT4_SEED`.
pub fn seed(own: u64) -> u64 {
    let other = std::env::var("EXT4_SEED")
        .ok()
        .and_then(|n| n.parse::<u64>().ok());
    match other {
        Some(other) => (own << 32 | other).max(1),
        None => own,
    }
}

/// A xorshift generator; the seed must not be 0.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Bytes that no other call returns.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next().to_le_bytes());
        }
        out.truncate(len);
        out
    }
}
