// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Generated cases of everything that leaves zeroes behind.

use super::bench::case::{Case, ways};
use super::bench::{Bench, cache_modes, scenario};
use crate::disks::Machine;
use crate::ensure;
use crate::tap::{Outcome, Tap, comment};
use lab::caching::CacheSpec;
use std::ops::Range;

/// Cases between two lines of output.
const BATCH: u64 = 250;
/// Failures that are reduced and told of, per batch.
const TOLD: usize = 3;
/// Tries to make a failing case smaller.
const TRIES: usize = 400;

/// Makes a failing case as small as it gets.
fn reduce(bench: &mut Bench, case: Case, why: String) -> (Case, String) {
    let (mut case, mut why) = (case, why);
    let mut tries = 0;
    'again: loop {
        for less in case.smaller() {
            tries += 1;
            if tries > TRIES {
                return (case, why);
            }
            if let Err(e) = bench.run(&less) {
                (case, why) = (less, e);
                continue 'again;
            }
        }
        return (case, why);
    }
}

/// Runs the cases with these numbers; tells of those that fail.
fn batch(bench: &mut Bench, (mode, numbers): (&str, Range<u64>), ways: &[&str]) -> Outcome {
    let mut failed = Vec::new();
    for number in numbers {
        let case = Case::generate(number, ways, &bench.blocks);
        if let Err(why) = bench.run(&case) {
            if failed.len() < TOLD {
                comment(&format!("case {number} failed: {case}: {why}"));
                let (case, why) = reduce(bench, case, why);
                comment(&format!(
                    "smallest: cases zeroing --cache {mode} --case '{case}': {why}"
                ));
                failed.push(format!("'{case}': {why}"));
            } else {
                comment(&format!("case {number} failed: {case}: {why}"));
                failed.push(format!("case {number}"));
            }
        }
    }
    bench.violations()?;
    ensure!(
        failed.is_empty(),
        "{} cases: {}",
        failed.len(),
        failed.join(" | ")
    );
    Ok(())
}

/// Runs cases with numbers from `first` on with a server that uses the kernel's cache like this.
fn with_cache(
    tap: &mut Tap,
    machine: &Machine,
    (mode, cache): (&str, Option<CacheSpec>),
    numbers: Range<u64>,
) {
    let scenario = scenario(numbers.start, cache);
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    let names: Vec<&str> = ways().iter().map(|(name, _)| *name).collect();
    if let Some(text) = &machine.options.case {
        tap.case(&format!("cache {mode}: {text}"), || {
            bench.run(&text.parse()?)?;
            bench.violations()
        });
    } else {
        for start in numbers.clone().step_by(BATCH as usize) {
            let numbers = start..numbers.end.min(start + BATCH);
            let last = numbers.end - 1;
            let name = format!("cache {mode}: cases {start} to {last}");
            tap.case(&name, || batch(&mut bench, (mode, numbers), &names));
        }
    }
    super::finish(tap, bench.lab);
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let options = &machine.options;
    let seed = options.seed.unwrap_or_else(super::fresh_seed);
    let count = options.count.unwrap_or(3000);
    comment(&format!("{count} cases from --seed {seed} on"));
    let wanted = |mode: &str| options.cache.as_deref().is_none_or(|only| only == mode);
    let mut modes = cache_modes();
    modes.retain(|(mode, _)| wanted(mode));
    let each = count.div_ceil(modes.len().max(1) as u64);
    let mut first = seed;
    for mode in modes {
        with_cache(tap, machine, mode, first..first + each);
        first += each;
    }
}
