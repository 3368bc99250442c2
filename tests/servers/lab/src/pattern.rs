// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What every byte is: a function of a seed, a space (a device, or the memory of an ordinary
//! file) and an address. What belongs to no file is poison, which no reader may ever see.

use crate::random::mix;

/// What the devices hold where no file has data.
pub const POISON: [u8; 8] = *b"\xdePOISON\xed";

/// The space of ordinary files' memory starts here, above all device indices.
pub const MEMORY: u64 = 1 << 32;

/// A seed and a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    key: u64,
}

impl Pattern {
    /// The pattern of one space.
    pub const fn new(seed: u64, space: u64) -> Self {
        Self {
            key: mix(seed ^ mix(space.wrapping_add(0x51))),
        }
    }

    /// The aligned word at `index * 8`. Never poison.
    const fn word(self, index: u64) -> [u8; 8] {
        let word = mix(self
            .key
            .wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let bytes = word.to_le_bytes();
        if u64::from_le_bytes(POISON) == word {
            (word ^ 1).to_le_bytes()
        } else {
            bytes
        }
    }

    /// Fills `buf` with the bytes from `addr` on.
    pub fn fill(self, addr: u64, buf: &mut [u8]) {
        let skip = (addr % 8) as usize;
        let mut index = addr / 8;
        let mut rest = buf;
        if skip != 0 {
            let word = self.word(index);
            let n = rest.len().min(8 - skip);
            let (head, tail) = rest.split_at_mut(n);
            head.copy_from_slice(&word[skip..skip + n]);
            rest = tail;
            index = index.wrapping_add(1);
        }
        for chunk in rest.chunks_mut(8) {
            chunk.copy_from_slice(&self.word(index)[..chunk.len()]);
            index = index.wrapping_add(1);
        }
    }
}

/// Fills `buf`, which starts at a multiple of 8, with poison.
pub fn fill_poison(buf: &mut [u8]) {
    for chunk in buf.chunks_mut(8) {
        chunk.copy_from_slice(&POISON[..chunk.len()]);
    }
}

/// Position of poison in bytes read from file offset `offset` on. Extents start at multiples of
/// 512, so poison that leaks keeps its alignment.
pub fn find_poison(offset: u64, data: &[u8]) -> Option<u64> {
    let skip = ((8 - offset % 8) % 8) as usize;
    data.get(skip..)?
        .chunks_exact(8)
        .position(|word| word == POISON)
        .map(|i| offset + (skip + i * 8) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_is_the_same_as_the_whole() {
        let p = Pattern::new(7, 3);
        let mut whole = [0; 100];
        p.fill(1000, &mut whole);
        for start in 0..40 {
            for len in 0..40 {
                let mut part = vec![0; len];
                p.fill(1000 + start as u64, &mut part);
                assert_eq!(part, whole[start..start + len], "{start} {len}");
            }
        }
    }

    #[test]
    fn spaces_and_seeds_differ() {
        let mut a = [0; 64];
        let mut b = [0; 64];
        Pattern::new(1, 0).fill(0, &mut a);
        Pattern::new(1, 1).fill(0, &mut b);
        assert_ne!(a, b);
        Pattern::new(2, 0).fill(0, &mut b);
        assert_ne!(a, b);
    }

    #[test]
    fn poison_is_found_at_its_alignment() {
        let mut data = vec![1; 64];
        data[16..24].copy_from_slice(&POISON);
        assert_eq!(find_poison(0, &data), Some(16));
        assert_eq!(find_poison(4096, &data), Some(4112));
        assert_eq!(find_poison(3, &data[3..]), Some(16));
        data[16] = 0;
        assert_eq!(find_poison(0, &data), None);
    }
}
