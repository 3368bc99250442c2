// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writing, on files of every way of mapping: plain writes, sizes, threads, errors, and a server
//! that dies or lies.

mod dying;
mod errors;
mod hostile;
mod plain;
mod random;
mod size;
mod source;
mod threads;

use super::bench::{Bench, scenario, workshop};
use super::unmount_and_wait;
use crate::disks::Machine;
use crate::ensure;
use crate::tap::{Outcome, Tap};
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::scenario::Scenario;
use std::fs::{File, OpenOptions};
use std::path::Path;

/// Opens a new file for reading and writing.
pub(super) fn create(path: &Path) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .map_err(|e| format!("create {}: {e}", path.display()))
}

/// Bytes that tell where they belong; none is zero.
pub(super) fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    lab::pattern::Pattern::new(seed, 1).fill(0, &mut data);
    data.iter_mut().for_each(|b| *b |= 1);
    data
}

/// A rule for one file; BEGINs must have the operation flags `with` and none of `without`.
pub(super) fn rule(op: &str, path: &str, (with, without): (u32, u32), action: Action) -> Rule {
    Rule {
        op: op.into(),
        path: Some(path.into()),
        with,
        without,
        nth: None,
        action,
        then_errno: None,
    }
}

/// The file in the directory of a way of mapping with blocks of 4096 bytes.
pub(super) fn name(way: &str) -> String {
    format!("{}/file", workshop(way, 4096))
}

/// A server of its own for a case that leaves it no good.
pub(super) fn with_lab(
    machine: &Machine,
    scenario: &Scenario,
    f: impl FnOnce(&mut Lab) -> Outcome,
) -> Outcome {
    let mut lab = Lab::start(&machine.lab, scenario, &machine.mountpoint)?;
    f(&mut lab)
}

/// The same, and the server ends well.
pub(super) fn with_good_lab(
    machine: &Machine,
    scenario: &Scenario,
    f: impl FnOnce(&mut Lab) -> Outcome,
) -> Outcome {
    with_lab(machine, scenario, |lab| {
        f(lab)?;
        let violations = lab.violations()?;
        ensure!(violations.is_empty(), "{}", violations.join("; "));
        unmount_and_wait(lab)
    })
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario = scenario(71, None);
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    plain::run(tap, &mut bench);
    size::run(tap, &mut bench);
    source::run(tap, &mut bench);
    threads::run(tap, &mut bench);
    errors::run(tap, &mut bench);
    hostile::run(tap, &mut bench);
    random::run(tap, &mut bench, machine);
    super::finish(tap, bench.lab);
    let mut scenario = scenario;
    // The disks are filled already.
    scenario.options.prepare = false;
    size::run_apart(tap, machine, &scenario);
    errors::run_apart(tap, machine, &scenario);
    dying::run(tap, machine, &scenario);
}
