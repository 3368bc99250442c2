// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The command line.

use crate::cuts::Cuts;
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
powercut workload [--dm NAME] [--seed N] [--workers N] [--count N] [--noise] [--forget N] DIR
    Changes files below DIR, makes every change durable, and then puts a mark \"ack:WORKER:COUNT\"
    into the log of the device NAME (of the kind log-writes). With --noise also writes that are
    never synced. With --forget, every Nth operation is acknowledged without being synced: then the
    cuts must find something missing.

powercut cuts --log DEVICE --base IMAGE --disk FILE [--most N] [--from N] [--seed N] -- CHECK...
    Makes the disk as it was at each moment of the log (at most N of them): up to each flush, each
    write past the cache and each mark, and between flushes with some of the writes that the next
    one makes durable. Each is put into FILE, and CHECK run with two more arguments: FILE, and what
    was acknowledged by then, as \"WORKER:COUNT,WORKER:COUNT\". With --from only moments after each
    worker has acknowledged so many operations.

powercut verify [--seed N] --acked WORKER:COUNT,... DIR
    Is everything below DIR that was acknowledged, and nothing that was never written?

Exit status: 0 good, 1 something is missing or wrong, 2 trouble.
";

/// What is to be done.
#[derive(Debug)]
pub enum Mode {
    /// Change files.
    Workload,
    /// Look at a mounted filesystem.
    Verify,
    /// Make disks and have each checked.
    Cuts(Cuts),
}

/// The options.
#[derive(Debug)]
pub struct Options {
    /// What is to be done.
    pub mode: Mode,
    /// Where.
    pub dir: PathBuf,
    /// The device whose log gets the marks.
    pub device: Option<String>,
    /// Determines the operations.
    pub seed: u64,
    /// Workers at the same time.
    pub workers: u64,
    /// Operations of each.
    pub count: u64,
    /// Whether there are also writes that nobody syncs.
    pub noise: bool,
    /// Every so manyth operation is not synced.
    pub forget: Option<u64>,
    /// What each worker was acknowledged.
    pub acks: Vec<(u64, u64)>,
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("'{text}' is no number"))
}

fn acknowledged(text: &str) -> Result<Vec<(u64, u64)>, String> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (worker, count) = part
                .split_once(':')
                .ok_or(format!("'{part}' is no WORKER:COUNT"))?;
            Ok((number(worker)?, number(count)?))
        })
        .collect()
}

impl Options {
    /// Parses the arguments; `None` means that help is wanted.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut args = args.into_iter();
        let command = args.next().ok_or("what is to be done?")?;
        let mut options = Self {
            mode: Mode::Workload,
            dir: PathBuf::new(),
            device: None,
            seed: 1,
            workers: 1,
            count: 100,
            noise: false,
            forget: None,
            acks: Vec::new(),
        };
        let (mut log, mut base, mut disk) = (None, None, None);
        let (mut most, mut from) = (u64::MAX, None);
        let mut rest = Vec::new();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--dm" => options.device = Some(value()?),
                "--seed" => options.seed = number(&value()?)?,
                "--workers" => options.workers = number(&value()?)?.clamp(1, 64),
                "--count" => options.count = number(&value()?)?,
                "--noise" => options.noise = true,
                "--forget" => options.forget = Some(number(&value()?)?.max(1)),
                "--acked" => options.acks = acknowledged(&value()?)?,
                "--log" => log = Some(PathBuf::from(value()?)),
                "--base" => base = Some(PathBuf::from(value()?)),
                "--disk" => disk = Some(PathBuf::from(value()?)),
                "--most" => most = number(&value()?)?,
                "--from" => from = Some(number(&value()?)?),
                "--help" | "-h" => return Ok(None),
                "--" => rest.extend(args.by_ref()),
                _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
                _ => rest.push(arg),
            }
        }
        match command.as_str() {
            "workload" | "verify" => {
                let [dir] = rest.as_slice() else {
                    return Err(format!("{command} needs one directory"));
                };
                options.dir = dir.into();
                if command == "verify" {
                    options.mode = Mode::Verify;
                }
            }
            "cuts" => {
                if rest.is_empty() {
                    return Err("cuts needs a check".into());
                }
                options.mode = Mode::Cuts(Cuts {
                    log: log.ok_or("cuts needs --log")?,
                    base: base.ok_or("cuts needs --base")?,
                    disk: disk.ok_or("cuts needs --disk")?,
                    most: usize::try_from(most).unwrap_or(usize::MAX),
                    from_ack: from,
                    seed: options.seed,
                    check: rest,
                });
            }
            "--help" | "-h" | "help" => return Ok(None),
            _ => return Err(format!("unknown command '{command}'")),
        }
        Ok(Some(options))
    }
}
