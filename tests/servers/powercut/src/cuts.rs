// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Cutting the power: the disk as it would have been at each moment, given to a check.

use crate::log::{Entry, Kind, Log};
use crate::random::Random;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Command;

/// What to cut and how to look at it.
#[derive(Debug)]
pub struct Cuts {
    /// The log of dm-log-writes.
    pub log: PathBuf,
    /// The device's contents before the log began.
    pub base: PathBuf,
    /// Where each disk is put for the check, which may change it.
    pub disk: PathBuf,
    /// At most so many cuts, chosen at random.
    pub most: usize,
    /// Whether to begin only where every worker has been acknowledged this much.
    pub from_ack: Option<u64>,
    /// For the choice.
    pub seed: u64,
    /// The program that looks at the disk, and its first arguments.
    pub check: Vec<String>,
}

/// A moment at which the power goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cut {
    /// So many entries are on the disk.
    entries: usize,
    /// Of so many entries that follow, which were only in the disk's cache, some are on the disk.
    torn: usize,
}

/// All moments worth looking at.
///
/// Durable are the entries up to a flush, a write past the cache, or a mark. The writes that the next
/// flush makes durable were in the cache at some time before it, after all that is before them in
/// the log: any of them may have reached the disk by themselves.
fn moments(entries: &[Entry], first: usize) -> Vec<Cut> {
    let mut all = Vec::new();
    let mut group = 0;
    for (index, entry) in entries.iter().enumerate() {
        let cached = !entry.flush && !entry.fua && !matches!(entry.kind, Kind::Mark(_));
        if cached {
            group += 1;
            continue;
        }
        if group > 0 && index - group >= first {
            all.push(Cut {
                entries: index - group,
                torn: group,
            });
        }
        group = 0;
        if index + 1 >= first {
            all.push(Cut {
                entries: index + 1,
                torn: 0,
            });
        }
    }
    all.push(Cut {
        entries: entries.len(),
        torn: 0,
    });
    all.dedup();
    all
}

/// Keeps `most` of the cuts, the last one among them.
fn choose(mut cuts: Vec<Cut>, most: usize, random: &mut Random) -> Vec<Cut> {
    while cuts.len() > most.max(1) {
        let index = random.below(cuts.len() as u64 - 1);
        cuts.remove(usize::try_from(index).unwrap_or(0));
    }
    cuts
}

/// The acknowledgement in a mark.
fn acknowledgement(entry: &Entry) -> Option<(u64, u64)> {
    let Kind::Mark(text) = &entry.kind else {
        return None;
    };
    let (worker, count) = text.strip_prefix("ack:")?.split_once(':')?;
    Some((worker.parse().ok()?, count.parse().ok()?))
}

/// How the cuts went.
#[derive(Debug, Default)]
pub struct Summary {
    /// Entries in the log.
    pub entries: usize,
    /// Flushes among them.
    pub flushes: usize,
    /// Operations acknowledged.
    pub acknowledged: u64,
    /// Disks that were checked.
    pub checked: usize,
    /// Of these with some unflushed writes.
    pub torn: usize,
    /// Disks that the check found bad.
    pub bad: usize,
}

impl Cuts {
    /// Goes through the log and checks.
    pub fn run(&self) -> io::Result<Summary> {
        let mut log = Log::open(File::open(&self.log)?)?;
        let mut entries = Vec::new();
        while let Some(entry) = log.next()? {
            entries.push(entry);
        }
        let mut acks: BTreeMap<u64, u64> = BTreeMap::new();
        let mut first = 0;
        for (index, entry) in entries.iter().enumerate() {
            if let Some((worker, count)) = acknowledgement(entry) {
                acks.insert(worker, count);
                if self.from_ack == Some(count) {
                    first = index + 1;
                }
            }
        }
        let mut summary = Summary {
            entries: entries.len(),
            flushes: entries.iter().filter(|entry| entry.flush).count(),
            acknowledged: acks.values().sum(),
            ..Summary::default()
        };
        let mut random = Random::new(self.seed);
        let cuts = choose(moments(&entries, first), self.most, &mut random);

        acks.clear();
        let mut image = fs::read(&self.base)?;
        let mut done = 0;
        for cut in cuts {
            for entry in entries.iter().take(cut.entries).skip(done) {
                log.apply(entry, &mut image)?;
                if let Some((worker, count)) = acknowledgement(entry) {
                    acks.insert(worker, count);
                }
            }
            done = cut.entries;
            let mut disk = image.clone();
            for entry in entries.iter().skip(cut.entries).take(cut.torn) {
                if random.one_in(2) {
                    log.apply(entry, &mut disk)?;
                }
            }
            fs::write(&self.disk, disk)?;
            summary.checked += 1;
            summary.torn += usize::from(cut.torn > 0);
            if let Err(why) = self.look(&acks)? {
                summary.bad += 1;
                println!(
                    "# cut after entry {} of {}{}: {why}",
                    cut.entries,
                    entries.len(),
                    if cut.torn > 0 {
                        format!(", with some of the {} writes that follow", cut.torn)
                    } else {
                        String::new()
                    }
                );
                if summary.bad == 1 {
                    // The first is kept for a closer look.
                    fs::copy(&self.disk, self.disk.with_extension("bad"))?;
                }
            }
        }
        Ok(summary)
    }

    /// Runs the check; its output says what is wrong.
    fn look(&self, acks: &BTreeMap<u64, u64>) -> io::Result<Result<(), String>> {
        let Some((program, arguments)) = self.check.split_first() else {
            return Ok(Err("there is no check".into()));
        };
        let acks: Vec<String> = acks
            .iter()
            .map(|(worker, count)| format!("{worker}:{count}"))
            .collect();
        let output = Command::new(program)
            .args(arguments)
            .arg(&self.disk)
            .arg(acks.join(","))
            .output()?;
        if output.status.success() {
            return Ok(Ok(()));
        }
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        Ok(Err(lines.join(" / ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: Kind, flush: bool, fua: bool) -> Entry {
        Entry::made(kind, flush, fua)
    }

    #[test]
    fn cached_writes_are_torn_before_their_flush_only() {
        let entries = [
            entry(Kind::Write, false, true),
            entry(Kind::Write, false, false),
            entry(Kind::Write, false, false),
            entry(Kind::Write, true, false),
            entry(Kind::Mark("ack:0:1".into()), false, false),
        ];
        let cut = |entries, torn| Cut { entries, torn };
        assert_eq!(
            moments(&entries, 0),
            [cut(1, 0), cut(1, 2), cut(4, 0), cut(5, 0)]
        );
        assert_eq!(moments(&entries, 4), [cut(4, 0), cut(5, 0)]);
    }

    #[test]
    fn the_last_cut_is_always_chosen() {
        let cuts: Vec<Cut> = (0..50).map(|entries| Cut { entries, torn: 0 }).collect();
        let chosen = choose(cuts.clone(), 5, &mut Random::new(1));
        assert_eq!(chosen.len(), 5);
        assert_eq!(chosen.last(), cuts.last());
    }

    #[test]
    fn marks_that_are_no_acknowledgement_are_ignored() {
        let mark = |text: &str| acknowledgement(&entry(Kind::Mark(text.into()), false, false));
        assert_eq!(mark("ack:1:22"), Some((1, 22)));
        assert_eq!(mark("dm-log-writes-end"), None);
        assert_eq!(mark("ack:1"), None);
    }
}
