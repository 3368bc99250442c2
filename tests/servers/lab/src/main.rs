// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `lab --scenario FILE [--control] [--counters FILE] MOUNTPOINT`
//!
//! Serves what a scenario describes until it is unmounted. With `--control`, commands come on
//! standard input and answers go to standard output, one JSON value per line; with
//! `--scenario -` the scenario is the first line of standard input.
//!
//! `lab serve --device DEV [OPTIONS] MOUNTPOINT`, described in [`serve`], is an empty filesystem for
//! loads to run on.
#![forbid(unsafe_code)]

mod serve;

use fuse_iomap::wire::{BackingMap, IomapBeginIn};
use fuse_iomap::{FuseDevice, MountOptions, Session, SessionOptions};
use lab::control::{Answer, Command};
use lab::devices;
use lab::misbehave::Misbehave;
use lab::scenario::Scenario;
use lab::server::{Lab, LabFs};
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::fs::OpenOptions;
use std::io::{BufRead, Write, stdin, stdout};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "usage: lab --scenario FILE [--control] [--counters FILE] MOUNTPOINT\n       \
    lab serve --device DEV [OPTIONS] MOUNTPOINT";

struct Args {
    scenario: PathBuf,
    control: bool,
    counters: Option<PathBuf>,
    mountpoint: PathBuf,
}

fn parse_args() -> Result<Args, String> {
    let mut scenario = None;
    let mut control = false;
    let mut counters = None;
    let mut mountpoint = None;
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--scenario") => scenario = args.next().map(PathBuf::from),
            Some("--counters") => counters = args.next().map(PathBuf::from),
            Some("--control") => control = true,
            Some(option) if option.starts_with("--") => return Err(USAGE.into()),
            _ => mountpoint = Some(PathBuf::from(arg)),
        }
    }
    Ok(Args {
        scenario: scenario.ok_or(USAGE)?,
        control,
        counters,
        mountpoint: mountpoint.ok_or(USAGE)?,
    })
}

fn read_scenario(path: &Path) -> Result<Scenario, String> {
    let text = if path == Path::new("-") {
        let mut line = String::new();
        stdin()
            .read_line(&mut line)
            .map_err(|e| format!("standard input: {e}"))?;
        line
    } else {
        std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?
    };
    Scenario::from_json(&text)
}

fn drop_sys_rawio() -> Result<(), String> {
    let context = |e| format!("cannot drop CAP_SYS_RAWIO: {e}");
    let mut sets = capabilities(None).map_err(context)?;
    sets.effective.remove(CapabilitySet::SYS_RAWIO);
    sets.permitted.remove(CapabilitySet::SYS_RAWIO);
    sets.inheritable.remove(CapabilitySet::SYS_RAWIO);
    set_capabilities(None, sets).map_err(context)
}

/// A FUSE device that may use iomap, and again, to serve it.
fn marked() -> Result<(FuseDevice, OwnedFd), String> {
    let device = FuseDevice::open().map_err(|e| e.to_string())?;
    device.add_iomap().map_err(|e| format!("ADD_IOMAP: {e}"))?;
    let own = device.as_fd().try_clone_to_owned();
    Ok((device, own.map_err(|e| e.to_string())?))
}

fn say(answer: &Answer) {
    // Whoever started this server and does not listen any more does not need the answer.
    if let Ok(line) = serde_json::to_string(answer) {
        let _ = writeln!(stdout(), "{line}");
    }
}

fn backing_open(
    lab: &Lab,
    path: Option<&Path>,
    read_only: bool,
    flags: u32,
    padding: u64,
    times: u32,
) -> Result<Answer, String> {
    let file = path
        .map(|p| OpenOptions::new().read(true).write(!read_only).open(p))
        .transpose()
        .map_err(|e| e.to_string())?;
    let map = BackingMap {
        fd: file.as_ref().map_or(-1, |f| f.as_fd().as_raw_fd()),
        flags,
        padding,
    };
    let mut first = None;
    let mut last = 0;
    for after in 0..times {
        match lab.connection()?.backing_open_raw(map) {
            Ok(id) => {
                last = id.get();
                first.get_or_insert(last);
            }
            Err(e) => return Ok(errno_answer(&e, after)),
        }
    }
    Ok(Answer::Backing(first.unwrap_or(last), last))
}

fn errno_answer(error: &std::io::Error, after: u32) -> Answer {
    match error.raw_os_error() {
        Some(errno) => Answer::Errno { errno, after },
        None => Answer::Failed(error.to_string()),
    }
}

fn execute(lab: &Lab, misbehave: &Misbehave, command: Command) -> Result<Answer, String> {
    let resolve = |path: &str| lab.resolve(path);
    Ok(match command {
        Command::Counters => {
            let snapshot = lab.connection()?.counters().snapshot();
            Answer::Counters(
                snapshot
                    .into_iter()
                    .map(|(n, v)| (n.to_owned(), v))
                    .collect(),
            )
        }
        Command::Activity { path } => Answer::Activity(lab.activity(resolve(&path)?)?),
        Command::Frozen => Answer::Frozen(lab.frozen()),
        Command::Violations => Answer::Violations(lab.violations()),
        Command::Rules { rules } => {
            misbehave.set_rules(rules, resolve)?;
            Answer::Done
        }
        Command::Random { spec } => {
            misbehave.set_random(spec, resolve)?;
            Answer::Done
        }
        Command::Fired => Answer::Fired(misbehave.fired()),
        Command::Garbled => Answer::Garbled(misbehave.garbled()),
        Command::SetFlags { path, flags } => {
            lab.set_flags(resolve(&path)?, flags)?;
            Answer::Done
        }
        Command::InvalInode { path } => {
            match lab.connection()?.inval_inode(resolve(&path)?, 0, 0) {
                Ok(()) => Answer::Done,
                Err(e) => errno_answer(&e, 0),
            }
        }
        Command::BackingOpen {
            path,
            read_only,
            flags,
            padding,
            times,
        } => backing_open(lab, path.as_deref(), read_only, flags, padding, times)?,
        Command::BackingClose { id, times } => {
            for after in 0..times {
                let id = fuse_iomap::BackingId::from_raw(id.wrapping_add(after));
                if let Err(e) = lab.connection()?.backing_close(id) {
                    return Ok(errno_answer(&e, after));
                }
            }
            Answer::Done
        }
        Command::Map { path } => Answer::Map(lab.map(resolve(&path)?)?),
        Command::Tally => Answer::Tally(lab.tally()),
        Command::Snapshot { path } => {
            lab.snapshot(resolve(&path)?)?;
            Answer::Done
        }
        Command::DropSnapshots => {
            lab.drop_snapshots();
            Answer::Done
        }
        Command::Refuse { op, errno } => {
            lab.refuse(&op, errno)?;
            Answer::Done
        }
        Command::Notify {
            path,
            notice,
            nodeid,
            attr_ino,
            size,
        } => match lab.notify(resolve(&path)?, &notice, (nodeid, attr_ino), size)? {
            Ok(()) => Answer::Done,
            Err(e) => errno_answer(&e, 0),
        },
        Command::Die => std::process::exit(9),
    })
}

fn control(lab: &Lab, misbehave: &Misbehave) {
    for line in stdin().lock().lines() {
        let Ok(line) = line else { break };
        let answer = match serde_json::from_str(&line) {
            Ok(command) => execute(lab, misbehave, command).unwrap_or_else(Answer::Failed),
            Err(e) => Answer::Failed(format!("command: {e}")),
        };
        say(&answer);
    }
    // Whoever started this server is gone, so nobody will unmount it.
    let _ = kill_process(getpid(), Signal::TERM);
}

fn run() -> Result<(), String> {
    if std::env::args_os().nth(1).is_some_and(|a| a == "serve") {
        return serve::run();
    }
    let args = parse_args()?;
    let scenario = read_scenario(&args.scenario)?;
    let devices = devices::open_all(&scenario)?;
    if scenario.options.prepare {
        devices::prepare(&scenario, &devices)?;
    }
    let lab = Arc::new(Lab::new(&scenario, devices)?);
    let judged = lab.clone();
    let judge = move |nodeid, begin: &IomapBeginIn| judged.judge(nodeid, begin);
    let misbehave = Arc::new(Misbehave::new(Box::new(judge)));
    misbehave.set_rules(scenario.rules.clone(), |p| lab.resolve(p))?;
    misbehave.set_random(scenario.random.clone(), |p| lab.resolve(p))?;
    if let Some(random) = &scenario.random {
        eprintln!(
            "lab: garbling {} of 256 replies, seed {}",
            random.of_256, random.seed
        );
    }
    let marked = scenario.options.add_iomap.then(marked).transpose()?;
    if scenario.options.drop_sys_rawio {
        drop_sys_rawio()?;
    }
    let options = SessionOptions {
        threads: scenario.options.threads,
        counters_file: args.counters,
        sync_init: scenario.options.sync_init,
        hook: Some(misbehave.clone()),
        uring: scenario.options.uring || std::env::var_os("FI_URING").is_some(),
        ..SessionOptions::default()
    };
    let mut mount = MountOptions::new("lab").subtype("lab");
    mount.root_nodeid = scenario.options.root_nodeid;
    let fs = LabFs(lab.clone());
    let session = match marked {
        None => Session::mount(fs, &args.mountpoint, &mount, options),
        Some((device, own)) => device
            .mount(&args.mountpoint, &mount)
            .map(|()| Session::from_device(fs, own, options)),
    };
    let session = session.map_err(|e| e.to_string())?;
    misbehave.connect(session.connection().clone());
    if args.control {
        lab.on_ready(Box::new(|ready| say(&Answer::Ready(ready.clone()))));
        std::thread::spawn(move || control(&lab, &misbehave));
    }
    session.run().map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab: {e}");
            ExitCode::FAILURE
        }
    }
}
