// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Loading and unloading fuse.ko with mounts in between.

use super::unmount_and_wait;
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{open_cold, pread, same};
use crate::tap::{Outcome, Tap, comment};
use lab::client::Lab;
use lab::model::FileModel;
use lab::random::Random;
use lab::scenario::Scenario;
use std::path::Path;
use std::process::Command;

const ROUNDS: u64 = 5;
const SIZE: u64 = 300_000;

fn scenario() -> Scenario {
    let mut s = empty_scenario(71);
    let file = Layout::new().random_file(&mut Random::new(71), SIZE, 4096, 8);
    s.file("file", file);
    s
}

fn run_program(program: &str, args: &[&str]) -> Outcome {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(format!("{program}: {}: {why}", output.status))
}

fn loaded() -> bool {
    Path::new("/sys/module/fuse").exists()
}

fn insert(module: &Path) -> Outcome {
    let path = module.to_string_lossy();
    run_program("/sbin/insmod", &[&path, "enable_iomap=1"])
}

fn remove() -> Outcome {
    run_program("/sbin/rmmod", &["fuse"])
}

fn round(machine: &Machine, module: &Path, scenario: &Scenario) -> Outcome {
    insert(module)?;
    let mut lab = Lab::start(&machine.lab, scenario, &machine.mountpoint)?;
    let file = open_cold(&lab.path("file"))?;
    let got = pread(&file, 0, SIZE as usize).map_err(|e| e.to_string())?;
    let model = FileModel::new(scenario.seed, 0, file_spec(scenario, "file")?)?;
    same(0, &got, &model.bytes(0..SIZE))?;
    ensure!(lab.activity("file")?.reads == 0, "READ");
    ensure!(remove().is_err(), "rmmod of a module in use succeeded");
    drop(file);
    unmount_and_wait(&mut lab)?;
    remove()?;
    ensure!(!loaded(), "the module is still there");
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let Some(module) = &machine.module else {
        comment("FUSE is built in: nothing to load");
        println!("ok - module: loading and unloading # SKIP FUSE is built in");
        return;
    };
    // Its mount holds the module.
    let _ = rustix::mount::unmount(
        "/sys/fs/fuse/connections",
        rustix::mount::UnmountFlags::empty(),
    );
    if loaded() && tap.case("rmmod of what the boot loaded", remove).is_none() {
        return;
    }
    let scenario = scenario();
    for i in 0..ROUNDS {
        let name = format!("insmod, mount, read, umount, rmmod ({i})");
        tap.case(&name, || round(machine, module, &scenario));
    }
    tap.case("iomap is off unless asked for", || {
        run_program("/sbin/insmod", &[&module.to_string_lossy()])?;
        let path = "/sys/module/fuse/parameters/enable_iomap";
        let value = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
        ensure!(value.trim() == "N", "enable_iomap is {value:?}");
        remove()
    });
    tap.case("insmod for those who come after", || insert(module));
}
