// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One case: a way of mapping, a block size and a list of operations. Made from a number, printed
//! as a line that can be given again, and made smaller when it fails.

use super::ops::{LARGEST, Op, What};
use lab::random::Random;
use lab::store::{Policy, Style};
use std::fmt;
use std::str::FromStr;

/// The block sizes that are tried.
pub const BLOCK_SIZES: [u32; 7] = [512, 1024, 2048, 4096, 8192, 16_384, 65_536];

/// The ways of mapping, by name.
pub fn ways() -> Vec<(&'static str, Policy)> {
    let policy = |style, f: fn(&mut Policy)| {
        let mut policy = Policy {
            style,
            ..Policy::default()
        };
        f(&mut policy);
        policy
    };
    vec![
        ("in-place", policy(Style::InPlace, |_| {})),
        ("unwritten", policy(Style::Unwritten, |_| {})),
        (
            "unwritten-more",
            policy(Style::Unwritten, |p| {
                p.extra = 3;
                p.want_end = true;
            }),
        ),
        ("cow", policy(Style::Cow, |_| {})),
        (
            "cow-mapped",
            policy(Style::Cow, |p| {
                p.cow_mapped = true;
                p.cow_dev = Some(1);
            }),
        ),
        ("cow-always", policy(Style::Cow, |p| p.cow_always = true)),
        (
            "cow-always-mapped",
            policy(Style::Cow, |p| {
                p.cow_always = true;
                p.cow_mapped = true;
                p.want_end = true;
            }),
        ),
        ("delalloc", policy(Style::Delalloc, |_| {})),
        ("delalloc-more", policy(Style::Delalloc, |p| p.extra = 3)),
        ("inline", policy(Style::Unwritten, |p| p.inline = true)),
    ]
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// Name of the way of mapping.
    pub way: String,
    pub block: u32,
    pub ops: Vec<Op>,
}

/// A position near something that matters.
fn position(random: &mut Random, block: u64, size: u64) -> u64 {
    let unit = random.pick(&[512, block, 4096, 4096, 16_384]);
    let base = match random.below(4) {
        0 => size,
        _ => random.below(96 << 10) / unit * unit,
    };
    let off = random.pick(&[0, 0, 0, 1, 7, 511, 512, 2047, 4095]);
    let pos = if random.chance(128) {
        base.saturating_add(off)
    } else {
        base.saturating_sub(off)
    };
    pos.min(LARGEST / 2)
}

fn length(random: &mut Random, block: u64) -> u64 {
    let unit = random.pick(&[1, 512, block, 4096]);
    let n = unit * (1 + random.below(6));
    match random.below(4) {
        0 => n + 1,
        1 => n - 1,
        2 => n + random.below(20_000),
        _ => n,
    }
    .max(1)
}

const SETUP: [What; 11] = [
    What::Write,
    What::Write,
    What::Write,
    What::WriteDirect,
    What::AllocateKeep,
    What::Truncate,
    What::Store,
    What::Sync,
    What::Cold,
    What::Cold,
    What::Share,
];
const MAIN: [What; 24] = [
    What::Write,
    What::Write,
    What::WriteDirect,
    What::WriteDirect,
    What::WriteDirect,
    What::ReadDirect,
    What::Store,
    What::Tail,
    What::Truncate,
    What::Truncate,
    What::Truncate,
    What::Punch,
    What::Punch,
    What::Zero,
    What::ZeroKeep,
    What::Collapse,
    What::Insert,
    What::Allocate,
    What::AllocateKeep,
    What::Unshare,
    What::Copy,
    What::Read,
    What::Cold,
    What::Sync,
];

impl Case {
    /// The case with a number, of one of these ways and block sizes.
    pub fn generate(number: u64, ways: &[&str], blocks: &[u32]) -> Self {
        let mut random = Random::new(number);
        let way = random.pick(ways).to_owned();
        let block = random.pick(blocks);
        let setup = 1 + random.below(5);
        let main = 1 + random.below(5);
        let mut case = Self {
            way,
            block,
            ops: Vec::new(),
        };
        let mut model = Vec::new();
        for i in 0..setup + main {
            let what = if i < setup {
                random.pick(&SETUP)
            } else {
                random.pick(&MAIN)
            };
            let op = case.op(&mut random, what, model.len() as u64);
            if op.model(&mut model, block.into(), i) {
                case.ops.push(op);
            }
        }
        case
    }

    fn op(&self, random: &mut Random, what: What, size: u64) -> Op {
        let block = u64::from(self.block);
        let mut op = Op::new(what, position(random, block, size), length(random, block));
        if self.way == "inline" && random.chance(200) {
            // Most of it stays where there are no blocks.
            op.offset %= 4200;
            op.length = 1 + op.length % 1500;
        }
        match what {
            What::Store | What::Read | What::Unshare | What::Copy if size > 0 => {
                op.offset = op.offset.min(size - 1);
                op.length = op.length.min(size - op.offset);
                if what == What::Copy {
                    op.to = position(random, block, size);
                }
                if what == What::Copy && random.chance(128) {
                    // So that blocks can be shared.
                    op.offset = op.offset / block * block;
                    op.to = op.to / block * block;
                    op.length = op.length.next_multiple_of(block).min(size - op.offset);
                }
            }
            What::WriteDirect => {
                // Half of them are whole blocks, if those are larger.
                let unit = random.pick(&[512, block]);
                op.offset = op.offset / unit * unit;
                op.length = op.length.next_multiple_of(unit);
            }
            What::ReadDirect => {
                op.offset = op.offset.min(size) / 512 * 512;
                op.length = op.length.min(size - op.offset).next_multiple_of(512);
            }
            What::Collapse | What::Insert => {
                op.offset = op.offset.min(size) / block * block;
                op.length = op.length.next_multiple_of(block);
            }
            What::Truncate | What::Tail | What::Sync | What::Cold | What::Share => op.length = 0,
            _ => {}
        }
        if matches!(what, What::Tail | What::Sync | What::Cold | What::Share) {
            op.offset = 0;
        }
        op
    }

    /// Cases that are a little smaller.
    pub fn smaller(&self) -> Vec<Self> {
        let mut all = Vec::new();
        for i in (0..self.ops.len()).rev() {
            let mut less = self.clone();
            less.ops.remove(i);
            all.push(less);
        }
        for i in 0..self.ops.len() {
            let op = self.ops[i];
            for (offset, length) in [
                (0, op.length),
                (op.offset / 2, op.length),
                (op.offset / 4096 * 4096, op.length),
                (op.offset.saturating_sub(4096), op.length),
                (op.offset, 1),
                (op.offset, op.length / 2),
                (op.offset, op.length / 512 * 512),
                (op.offset, op.length.saturating_sub(1)),
            ] {
                if length == 0 && op.length != 0 || (offset, length) == (op.offset, op.length) {
                    continue;
                }
                let mut less = self.clone();
                less.ops[i] = Op {
                    offset,
                    length,
                    ..op
                };
                all.push(less);
            }
        }
        all
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:", self.way, self.block)?;
        for (i, op) in self.ops.iter().enumerate() {
            f.write_str(if i == 0 { " " } else { "; " })?;
            write!(f, "{op}")?;
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("{text:?} is not like \"cow/4096: write 0 100; truncate 50\"");
        let (head, ops) = text.split_once(':').ok_or_else(usage)?;
        let (way, block) = head.split_once('/').ok_or_else(usage)?;
        let ops: Result<Vec<Op>, String> = ops
            .split(';')
            .filter(|op| !op.trim().is_empty())
            .map(str::parse)
            .collect();
        Ok(Self {
            way: way.trim().to_owned(),
            block: block.trim().parse().map_err(|_| usage())?,
            ops: ops?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_what_its_line_says() {
        for number in 0..500 {
            let case = Case::generate(number, &["cow", "in-place"], &BLOCK_SIZES);
            assert_eq!(case.to_string().parse::<Case>(), Ok(case.clone()));
            assert_eq!(
                case,
                Case::generate(number, &["cow", "in-place"], &BLOCK_SIZES)
            );
        }
        assert!("cow/4096: jump 1".parse::<Case>().is_err());
        assert!("cow/4096: write 1".parse::<Case>().is_err());
        assert!("cow: write 1 2".parse::<Case>().is_err());
    }

    #[test]
    fn every_operation_comes_up() {
        let mut seen = Vec::new();
        for number in 0..2000 {
            for op in Case::generate(number, &["cow"], &BLOCK_SIZES).ops {
                if !seen.contains(&op.what) {
                    seen.push(op.what);
                }
            }
        }
        assert_eq!(seen.len(), 19);
    }

    #[test]
    fn smaller_cases_get_smaller_and_smaller() {
        let mut case = Case::generate(7, &["cow"], &[4096]);
        let weight = |c: &Case| {
            let numbers = c.ops.iter().map(|o| o.offset + o.length + 1_000_000);
            numbers.sum::<u64>()
        };
        while let Some(less) = case.smaller().into_iter().next() {
            assert!(weight(&less) < weight(&case));
            case = less;
        }
        assert!(case.ops.is_empty());
    }
}
