// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The kernel's cache of mappings: what is known is not asked for, what was taken back is; servers that
//! say what is not allowed; and completions told in batches.

mod batches;
mod bounds;
mod hostile;
mod notices;
mod warm;

use super::bench::{Bench, scenario, workshop};
use super::write::{create, pattern};
use crate::disks::Machine;
use crate::files::{cool, pread, same};
use crate::tap::{Outcome, Tap};
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::control::Begin;
use lab::misbehave::Notice;
use std::fs::File;
use std::os::unix::fs::FileExt;

const SIZE: usize = 512 << 10;

/// A file that is on the device, and its contents.
struct Subject {
    name: String,
    file: File,
    model: Vec<u8>,
}

impl Subject {
    /// In the directory of a way of mapping; in pieces of at most 5 blocks.
    fn new(lab: &Lab, way: &str) -> Result<Self, String> {
        let name = format!("{}/file", workshop(way, 4096));
        let file = create(&lab.path(&name))?;
        let model = pattern(21, SIZE);
        file.write_all_at(&model, 0)
            .map_err(|e| format!("write: {e}"))?;
        let subject = Self { name, file, model };
        subject.cool()?;
        Ok(subject)
    }

    /// Nothing of it is in the page cache.
    fn cool(&self) -> Outcome {
        self.file.sync_all().map_err(|e| format!("fsync: {e}"))?;
        cool(&self.file)
    }

    /// The kernel remembers none of its mappings.
    fn forget(&self, lab: &mut Lab) -> Outcome {
        let all = (0, u64::MAX);
        Ok(lab.notify(&self.name, Notice::Inval(all, all))?)
    }

    /// Reads all of it, and compares.
    fn read(&self) -> Outcome {
        let got = pread(&self.file, 0, SIZE + 1).map_err(|e| format!("read: {e}"))?;
        same(0, &got, &self.model)
    }

    fn path(&self, lab: &Lab) -> std::path::PathBuf {
        lab.path(&self.name)
    }

    /// The BEGINs of what is done.
    fn asked(
        &self,
        lab: &mut Lab,
        what: impl FnOnce(&mut Lab) -> Outcome,
    ) -> Result<Vec<Begin>, String> {
        let before = lab.activity(&self.name)?.begins.len();
        what(lab)?;
        Ok(lab.activity(&self.name)?.begins.split_off(before))
    }
}

fn spec(mode: CacheMode, batch_mappings: usize) -> CacheSpec {
    CacheSpec {
        mode,
        batch_mappings,
        ..CacheSpec::default()
    }
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    for (mode, more) in [
        (CacheMode::Replies, 126),
        (CacheMode::Replies, 0),
        (CacheMode::Upsert, 0),
    ] {
        let mut scenario = scenario(73, Some(spec(mode, more)));
        // Little of the disks is used.
        scenario.options.prepare = (mode, more) == (CacheMode::Replies, 126);
        let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
            return;
        };
        warm::run(tap, &mut bench, mode, more);
        if more > 0 {
            notices::run(tap, &mut bench);
            bounds::run(tap, &mut bench.lab);
        }
        super::finish(tap, bench.lab);
    }
    let mut scenario = scenario(74, None);
    scenario.options.prepare = false;
    warm::run_apart(tap, machine, &scenario);
    hostile::run(tap, machine, &scenario);
    batches::run(tap, machine, &scenario);
    bounds::run_apart(tap, machine);
}
