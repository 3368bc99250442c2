// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Direct I/O: aligned to blocks and not, growing files, into holes, unwritten and shared blocks;
//! beside the page cache; many requests at once; errors.

mod errors;
mod modes;
mod plain;

use super::bench::{Bench, scenario};
use crate::disks::Machine;
use crate::tap::Tap;

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let mut scenario = scenario(72, None);
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    plain::run(tap, &mut bench);
    modes::run(tap, &mut bench);
    errors::run(tap, &mut bench);
    super::finish(tap, bench.lab);
    // The disks are filled already.
    scenario.options.prepare = false;
    modes::run_apart(tap, machine, &scenario);
    errors::run_apart(tap, machine, &scenario);
}
