// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Servers that have mount(2) wait for INIT and CONFIG: it succeeds or fails with them, and does not
//! hang.

use super::unmount_and_wait;
use crate::disks::Machine;
use crate::ensure;
use crate::files::{open_cold, pread};
use crate::kmsg::Kmsg;
use crate::tap::{Outcome, Tap};
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::scenario::Scenario;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// What is over sooner did not hang, even where everything is emulated.
const SOON: Duration = Duration::from_secs(20);

/// The scenario, with a server that waits, and answers one request like this.
fn with(scenario: &Scenario, op: &str, action: Option<Action>) -> Scenario {
    let mut scenario = scenario.clone();
    scenario.options.sync_init = true;
    // So that the server can do without what CONFIG may not bring.
    scenario.options.cache = Some(CacheSpec::mode(CacheMode::Off));
    scenario.rules = action
        .map(|action| Rule {
            op: op.into(),
            path: None,
            with: 0,
            without: 0,
            nth: None,
            action,
            then_errno: None,
        })
        .into_iter()
        .collect();
    scenario
}

fn mounts(machine: &Machine, scenario: &Scenario, configs: u64) -> Outcome {
    let mut lab = Lab::start(&machine.lab, scenario, &machine.mountpoint)?;
    let asked = lab.counter("IOMAP_CONFIG")?;
    ensure!(asked == configs, "{asked} CONFIGs");
    let got = pread(&open_cold(&lab.path("file"))?, 0, 8192).map_err(|e| format!("read: {e}"))?;
    ensure!(got.len() == 8192, "{} bytes", got.len());
    unmount_and_wait(&mut lab)
}

/// Nothing is mounted there.
fn no_mount(path: &Path) -> Outcome {
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
    let path = path.to_string_lossy();
    let found = mounts
        .lines()
        .find(|line| line.split(' ').nth(1) == Some(&path));
    ensure!(found.is_none(), "there is a mount: {found:?}");
    Ok(())
}

/// Mounting fails, and the log says this of it, if anything.
fn fails(machine: &Machine, scenario: &Scenario, log: Option<&str>) -> Outcome {
    let mut kmsg = Kmsg::open()?;
    let start = Instant::now();
    if Lab::start(&machine.lab, scenario, &machine.mountpoint).is_ok() {
        return Err("it mounts".into());
    }
    ensure!(start.elapsed() < SOON, "after {:?}", start.elapsed());
    if let Some(text) = log {
        let said = kmsg.wait_for(text, 1);
        ensure!(!said.is_empty(), "the log does not say \"{text}\"");
    }
    no_mount(&machine.mountpoint)
}

fn ended(child: &mut Child) -> Outcome {
    let start = Instant::now();
    while start.elapsed() < SOON {
        if child.try_wait().map_err(|e| e.to_string())?.is_some() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("the server does not end".into())
}

/// The server never answers, so it is killed while it mounts.
fn killed(machine: &Machine, scenario: &Scenario) -> Outcome {
    let file = machine.scratch.join("scenario.json");
    std::fs::write(&file, scenario.to_json()).map_err(|e| format!("the scenario: {e}"))?;
    let mut child = Command::new(&machine.lab)
        .args([OsStr::new("--scenario"), file.as_os_str()])
        .arg(&machine.mountpoint)
        .spawn()
        .map_err(|e| format!("spawn: {e}"))?;
    // Long enough to get to mount(2).
    let waiting = Instant::now();
    let task = format!("/proc/{}/syscall", child.id());
    let mount = format!("{} ", libc::SYS_mount);
    let in_mount = || std::fs::read_to_string(&task).is_ok_and(|text| text.starts_with(&mount));
    while !in_mount() && waiting.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    ensure!(
        child.try_wait().map_err(|e| e.to_string())?.is_none(),
        "mount(2) did not wait"
    );
    child.kill().map_err(|e| format!("kill: {e}"))?;
    ended(&mut child)?;
    no_mount(&machine.mountpoint)
}

/// Runs them, on a scenario with an iomap file "file".
pub fn run(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    let config = |action| with(scenario, "IOMAP_CONFIG", Some(action));
    let flags = |bits| Action::Fields {
        set: vec![("config.flags".into(), bits)],
    };
    let error = |errno: i32| Action::Error { value: -errno };
    tap.case("SYNC_INIT: mounted when CONFIG is answered", || {
        mounts(machine, &with(scenario, "INIT", None), 1)
    });
    tap.case("SYNC_INIT: ENOSYS in answer to CONFIG", || {
        mounts(machine, &config(error(libc::ENOSYS)), 1)
    });
    tap.case("SYNC_INIT: no iomap, so no CONFIG", || {
        let mut scenario = with(scenario, "INIT", None);
        scenario.options.accept_iomap = false;
        mounts(machine, &scenario, 0)
    });
    for (what, action, log) in [
        (
            "with unknown flags",
            flags(1 << 20),
            Some("CONFIG reply rejected"),
        ),
        ("with an error", error(libc::EIO), None),
    ] {
        tap.case(&format!("SYNC_INIT: CONFIG is answered {what}"), || {
            fails(machine, &config(action), log)
        });
    }
    for op in ["INIT", "IOMAP_CONFIG"] {
        tap.case(&format!("SYNC_INIT: the server dies of {op}"), || {
            fails(machine, &with(scenario, op, Some(Action::Die)), None)
        });
        tap.case(&format!("SYNC_INIT: {op} is never answered"), || {
            let never = Action::Drop {
                interruptible: false,
            };
            killed(machine, &with(scenario, op, Some(never)))
        });
    }
    tap.case("SYNC_INIT: after all that it mounts", || {
        mounts(machine, &with(scenario, "INIT", None), 1)
    });
}
