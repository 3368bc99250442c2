// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The suites: steps that are taken on both sides.

mod acls;
mod fadvise;
mod flags;
mod idmap;
mod privileges;
mod statx;
mod swap;
mod times;
mod users;

use crate::pair::Pair;
use crate::seen::Broken;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Some steps on a fresh pair of volumes.
pub struct Suite {
    /// What it is called on the command line and in its lines.
    pub name: &'static str,
    /// Options of mke2fs beyond the usual.
    pub mkfs: &'static [&'static str],
    /// Mount options of our server beyond the usual, each with a comma before it.
    pub options: &'static str,
    /// Takes the steps.
    pub run: fn(&mut Pair),
}

/// All of them, in the order in which they run.
pub const SUITES: &[Suite] = &[
    Suite {
        name: "times",
        mkfs: &[],
        options: "",
        run: times::run,
    },
    Suite {
        name: "privileges",
        mkfs: &[],
        options: "",
        run: privileges::run,
    },
    Suite {
        name: "acls",
        mkfs: &[],
        options: "",
        run: acls::run,
    },
    Suite {
        name: "flags",
        mkfs: &[],
        options: "",
        run: flags::run,
    },
    Suite {
        name: "idmap",
        mkfs: &[],
        options: ",idmap",
        run: idmap::run,
    },
    Suite {
        name: "users",
        mkfs: &[],
        options: "",
        run: users::run,
    },
    Suite {
        name: "statx",
        mkfs: &[],
        options: "",
        run: statx::run,
    },
    Suite {
        name: "fadvise",
        mkfs: &[],
        options: "",
        run: fadvise::run,
    },
    Suite {
        name: "swap",
        mkfs: &[],
        options: "",
        run: swap::run,
    },
];

/// Opens a file for reading and writing.
fn writable(path: &Path) -> Result<File, Broken> {
    Ok(File::options().read(true).write(true).open(path)?)
}

/// Reads a file to its end.
fn read(path: &Path) -> Result<(), Broken> {
    File::open(path)?.read_to_end(&mut Vec::new())?;
    Ok(())
}

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
