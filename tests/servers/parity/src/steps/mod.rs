// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The suites: steps that are taken on both sides.

mod times;
mod users;

use crate::pair::Pair;
use crate::seen::Broken;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Some steps on a fresh pair of volumes.
pub struct Suite {
    /// What it is called on the command line and in its lines.
    pub name: &'static str,
    /// Options of mke2fs beyond the usual.
    pub mkfs: &'static [&'static str],
    /// Takes the steps.
    pub run: fn(&mut Pair),
}

/// All of them, in the order in which they run.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "times",
        mkfs: &[],
        run: times::run,
    },
    Suite {
        name: "users",
        mkfs: &[],
        run: users::run,
    },
];

/// Makes a file with some contents.
fn make(path: &Path, contents: &[u8]) -> Result<File, Broken> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    file.write_all(contents)?;
    Ok(file)
}
