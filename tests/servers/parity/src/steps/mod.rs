// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The suites: steps that are taken on both sides.

mod acls;
mod attributes;
mod direct;
mod extents;
mod fadvise;
mod flags;
mod idmap;
mod listing;
mod names;
mod offsets;
mod privileges;
mod space;
mod statx;
mod swap;
mod times;
mod users;

use crate::pair::{Pair, Side};
use crate::seen::Broken;
use rustix::fs::{Mode, OFlags};
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
    suite("times", &[], times::run),
    suite("privileges", &[], privileges::run),
    suite("acls", &[], acls::run),
    suite("flags", &[], flags::run),
    Suite {
        options: ",idmap",
        ..suite("idmap", &[], idmap::run)
    },
    suite("users", &[], users::run),
    suite("statx", &[], statx::run),
    suite("fadvise", &[], fadvise::run),
    suite("swap", &[], swap::run),
    suite("names", &["-N", "4096"], names::steps),
    suite("listing", &["-N", "8192"], listing::run),
    suite("offsets", &[], offsets::run),
    suite("extents", &[], extents::run),
    // So few inodes that they can all be used, and a volume that is soon full.
    suite("space", &["-N", "512"], space::run),
    suite("direct", &[], direct::run),
    suite("attributes", &[], attributes::run),
];

const fn suite(name: &'static str, mkfs: &'static [&'static str], run: fn(&mut Pair)) -> Suite {
    Suite {
        name,
        mkfs,
        options: "",
        run,
    }
}

/// Opens a file that is there.
fn open(side: &Side, name: &str, flags: OFlags) -> Result<File, Broken> {
    Ok(rustix::fs::open(side.path(name), flags, Mode::empty())?.into())
}

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
