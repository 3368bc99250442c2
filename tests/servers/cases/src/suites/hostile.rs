// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Replies garbled at random, with printed seeds: readers see right bytes or an error, never other
//! contents of the disks, and the kernel lives.

use super::{finish, start_iomap};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{cool, open_cold, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap, comment};
use lab::client::Lab;
use lab::misbehave::{Garbled, RandomSpec};
use lab::model::FileModel;
use lab::random::Random;
use lab::scenario::{FileSpec, Scenario};
use rustix::fs::{SeekFrom, seek};
use std::fs::File;

const FILES: [&str; 3] = ["file-512", "file-4k", "file-16k"];
/// Garbled replies per seed.
const ENOUGH: usize = 150;
const READS: usize = 80;

fn scenario() -> Scenario {
    let mut s = empty_scenario(83);
    let mut layout = Layout::new();
    let mut random = Random::new(83);
    for (name, blksize, size) in [
        (FILES[0], 512, 60_001),
        (FILES[1], 4096, 400_000),
        (FILES[2], 16_384, 900_000),
    ] {
        s.file(name, layout.random_file(&mut random, size, blksize, 6));
    }
    s.file("ordinary", FileSpec::ordinary(100_000));
    s
}

struct Subject {
    file: File,
    model: FileModel,
}

fn open_all(lab: &Lab, scenario: &Scenario) -> Result<Vec<Subject>, String> {
    let open = |name: &&str| {
        Ok(Subject {
            file: open_cold(&lab.path(name))?,
            model: FileModel::new(scenario.seed, 0, file_spec(scenario, name)?)?,
        })
    };
    FILES.iter().map(open).collect()
}

/// One read, report or search somewhere. Returns whether it succeeded; a success with the wrong
/// result is an error.
fn one(random: &mut Random, subjects: &[Subject], check: bool) -> Result<bool, String> {
    let s = &subjects[random.below(subjects.len() as u64) as usize];
    let at = random.below(s.model.size());
    match random.below(10) {
        0 => Ok(sys::fiemap(&s.file, 0, u64::MAX, 8).is_ok()),
        1 => Ok(seek(&s.file, SeekFrom::Data(at)).is_ok()),
        2 => Ok(seek(&s.file, SeekFrom::Hole(at)).is_ok()),
        _ => {
            let n = 1 + random.below(30_000);
            if random.chance(128) {
                cool(&s.file)?;
            }
            match pread(&s.file, at, n as usize) {
                Err(_) => Ok(false),
                Ok(_) if !check => Ok(true),
                Ok(got) => {
                    same(at, &got, &s.model.bytes(at..at + n))?;
                    Ok(true)
                }
            }
        }
    }
}

fn last(garbled: &[Garbled]) -> String {
    let tell = |g: &Garbled| format!("at {}: {} {:?}", g.pos, g.what, g.rules);
    garbled.last().map_or_else(|| "none".into(), tell)
}

fn hostile(lab: &mut Lab, scenario: &Scenario, seed: u64, forbidden_only: bool) -> Outcome {
    let subjects = open_all(lab, scenario)?;
    lab.set_random(Some(RandomSpec {
        seed,
        of_256: 160,
        forbidden_only,
        path: None,
    }))?;
    let mut random = Random::new(seed);
    let (mut good, mut bad) = (0, 0);
    let mut garbled = Vec::new();
    for i in 1.. {
        match one(&mut random, &subjects, forbidden_only) {
            Ok(true) => good += 1,
            Ok(false) => bad += 1,
            Err(e) => {
                let garbled = lab.garbled()?;
                return Err(format!(
                    "seed {seed}: {e}; garbled last: {}",
                    last(&garbled)
                ));
            }
        }
        if i % 20 == 0 {
            garbled = lab.garbled()?;
            if i >= READS && garbled.len() >= ENOUGH {
                break;
            }
            ensure!(i < 40 * READS, "only {} garbled replies", garbled.len());
        }
    }
    comment(&format!(
        "seed {seed}: {} garbled replies, {good} calls succeeded, {bad} failed",
        garbled.len()
    ));
    ensure!(bad > 0, "seed {seed}: nothing failed");
    lab.set_random(None)?;
    for (s, name) in subjects.iter().zip(FILES) {
        cool(&s.file)?;
        let size = s.model.size();
        let got = pread(&s.file, 0, size as usize)
            .map_err(|e| format!("seed {seed}: {name} afterwards: {e}"))?;
        same(0, &got, &s.model.bytes(0..size))
            .map_err(|e| format!("seed {seed}: {name} afterwards: {e}"))?;
    }
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let fresh = super::fresh_seed();
    comment(&format!("fresh seed {fresh}; FI_SEED repeats it"));
    let scenario = scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    for seed in [1, 2, fresh] {
        tap.case(&format!("forbidden replies, seed {seed}"), || {
            hostile(&mut lab, &scenario, seed, true)
        });
    }
    // Garbled into something well-formed, a reply is believed, so only survival counts here.
    tap.case(&format!("any replies, seed {fresh}"), || {
        hostile(&mut lab, &scenario, fresh, false)
    });
    tap.case("an ordinary file is as it was", || {
        let got = std::fs::read(lab.path("ordinary")).map_err(|e| e.to_string())?;
        ensure!(got.len() == 100_000, "{} bytes", got.len());
        Ok(())
    });
    finish(tap, lab);
    super::lies::run(tap, machine);
}
