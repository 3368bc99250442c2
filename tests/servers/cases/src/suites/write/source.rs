// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Where what is written comes from: memory that is not there yet, such as a mapping of the same page of
//! the same file, and memory that never will be.

use super::super::bench::Bench;
use super::super::bench::case::ways;
use super::{create, name, pattern};
use crate::ensure;
use crate::files::{cool, fails_with};
use crate::sys;
use crate::tap::{Outcome, Tap};
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: usize = 50_000;

/// A file, its name, and what is in it.
fn filled(bench: &Bench, way: &str) -> Result<(String, File, Vec<u8>), String> {
    let name = name(way);
    let file = create(&bench.lab.path(&name))?;
    let model = pattern(31, SIZE);
    file.write_all_at(&model, 0)
        .map_err(|e| format!("write: {e}"))?;
    Ok((name, file, model))
}

/// A file is written from a mapping of itself, of which nothing is in memory when the write begins.
fn itself(bench: &mut Bench, way: &str) -> Outcome {
    let (name, file, mut model) = filled(bench, way)?;
    for (from, to, length) in [
        (4096, 4096, 4096),
        (4100, 4100, 50),
        (4096, 6000, 1500),
        (20_000, 8192, 8192),
        (8192, 30_000, 15_000),
        (0, SIZE, 10_000),
        (100, SIZE + 30_000, 5000),
    ] {
        file.sync_all().map_err(|e| format!("fsync: {e}"))?;
        cool(&file)?;
        sys::write_from_mapping(&file, from as u64, length, to as u64)
            .map_err(|e| format!("{length} bytes from {from} to {to}: {e}"))?;
        let data = model[from..from + length].to_vec();
        model.resize(model.len().max(to + length), 0);
        model[to..to + length].copy_from_slice(&data);
    }
    bench.compare(&file, &name, &model)
}

/// Of memory that is not there nothing is written, and the file is as large as it was; of memory that ends
/// half way, what there is.
fn absent(bench: &mut Bench, way: &str) -> Outcome {
    let (name, file, mut model) = filled(bench, way)?;
    for cold in [false, true] {
        for at in [0, 5000, SIZE - 100, model.len(), model.len() + 20_000] {
            if cold {
                file.sync_all().map_err(|e| format!("fsync: {e}"))?;
                cool(&file)?;
            }
            for length in [1, 4096, 20_000] {
                let written = sys::write_cut_short(&file, at as u64, &[], length);
                fails_with("nothing", written, &[libc::EFAULT])?;
                let size = file.metadata().map_err(|e| e.to_string())?.len();
                let known = model.len() as u64;
                ensure!(size == known, "size {size} instead of {known}, at {at}");
            }
            for there in [1, 1000, 4096, 10_000] {
                let data = pattern((at + there) as u64, there);
                let written = sys::write_cut_short(&file, at as u64, &data, 9000);
                let written = written.map_err(|e| format!("{there} bytes at {at}: {e}"))?;
                ensure!(written == there, "{written} of {there} bytes at {at}");
                model.resize(model.len().max(at + there), 0);
                model[at..at + there].copy_from_slice(&data);
            }
        }
    }
    bench.compare(&file, &name, &model)
}

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (way, _) in ways() {
        tap.case(&format!("{way}: from a mapping of the file"), || {
            itself(bench, way)
        });
        tap.case(&format!("{way}: from memory that is not there"), || {
            absent(bench, way)
        });
    }
}
