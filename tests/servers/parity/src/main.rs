// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `parity SUITE...`: takes the same steps on our ext4 server, through iomap, and on the kernel's own
//! ext4, each on a fresh volume, and compares what is visible after each. To be run as root in a
//! virtual machine. Prints one line for each step, with what both have shown; `parity all` runs
//! every suite.
//!
//! It wants the `ext4` binary in `$FI_BIN`, and disks of 64 MiB or more in `$FI_DISK_A` (ours) and
//! `$FI_DISK_B` (the kernel's). What is on the disks is lost.
//!
//! A new suite is a module of `steps` with a function that calls [`pair::Pair::step`], and a line in
//! [`steps::SUITES`].
#![deny(unsafe_code)]

mod memory;
mod pair;
mod seen;
mod steps;
mod stored;
mod sys;
mod user;

use pair::Pair;
use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = steps::SUITES.iter().map(|suite| suite.name).collect();
    let known = |name: &String| name == "all" || names.contains(&name.as_str());
    if wanted.is_empty() || !wanted.iter().all(known) {
        eprintln!("usage: parity all|{}...", names.join("|"));
        return ExitCode::FAILURE;
    }
    // Modes of new files are those that the steps say.
    rustix::process::umask(rustix::fs::Mode::empty());
    let mut failed = 0;
    for suite in steps::SUITES {
        if !wanted.iter().any(|w| w == "all" || w == suite.name) {
            continue;
        }
        match Pair::make(suite) {
            Ok(mut pair) => {
                (suite.run)(&mut pair);
                failed += pair.finish();
            }
            Err(why) => {
                println!("not ok - {}: both are mounted: {why}", suite.name);
                failed += 1;
            }
        }
    }
    println!("# done");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
