// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Requests over io_uring: that they come this way, and what becomes of them when the server does
//! not answer or dies. What they do is what they do over `/dev/fuse`, see `FI_URING`.

use super::{unmount_and_wait, unmount_dead};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{cool, errno, open_cold, pread, same};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::init;
use lab::client::Lab;
use lab::misbehave::Action;
use lab::model::FileModel;
use lab::random::Random;
use lab::scenario::Scenario;
use lab::store::Policy;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_uring";
const SIZE: u64 = 1 << 20;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn scenario() -> Scenario {
    let mut s = empty_scenario(44);
    let mut random = Random::new(44);
    let file = Layout::new().random_file(&mut random, SIZE, 4096, 4);
    s.file("file", file);
    s.options.policy = Some(Policy::default());
    s.options.uring = true;
    s
}

fn with_parameter<R>(value: &str, f: impl FnOnce() -> R) -> Result<R, String> {
    let set = |v: &str| std::fs::write(PARAMETER, v).map_err(|e| format!("{PARAMETER}: {e}"));
    let before = std::fs::read_to_string(PARAMETER).map_err(text)?;
    set(value)?;
    let result = f();
    set(before.trim())?;
    Ok(result)
}

fn start(machine: &Machine, scenario: &Scenario, parameter: &str) -> Result<Lab, String> {
    with_parameter(parameter, || {
        Lab::start(&machine.lab, scenario, &machine.mountpoint)
    })?
}

/// Reads what is there, and writes something new.
fn use_files(lab: &Lab, scenario: &Scenario) -> Outcome {
    let model = FileModel::new(scenario.seed, 0, file_spec(scenario, "file")?)?;
    let got = pread(&open_cold(&lab.path("file"))?, 0, SIZE as usize).map_err(text)?;
    same(0, &got, &model.bytes(0..SIZE))?;

    let data: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    let new = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(lab.path("new"))
        .map_err(text)?;
    new.write_all_at(&data, 5).map_err(text)?;
    new.sync_all().map_err(text)?;
    cool(&new)?;
    let got = pread(&new, 5, SIZE as usize).map_err(text)?;
    same(5, &got, &data)
}

/// Requests that came, and those of them that came over io_uring.
fn requests(lab: &mut Lab) -> Result<(u64, u64), String> {
    let counters = lab.counters()?;
    let all = counters.iter().filter(|(name, _)| {
        // What is in capitals is an opcode; these two never come that way.
        name.chars().all(|c| !c.is_lowercase()) && !name.ends_with("FORGET") && *name != "INTERRUPT"
    });
    let all = all.map(|(_, n)| n).sum();
    Ok((all, counters.get("uring").copied().unwrap_or(0)))
}

fn turned_off(machine: &Machine) -> Outcome {
    let scenario = scenario();
    let mut lab = start(machine, &scenario, "N")?;
    let offered = lab.ready().offered & init::OVER_IO_URING != 0;
    ensure!(!offered, "io_uring is offered");
    use_files(&lab, &scenario)?;
    let (all, uring) = requests(&mut lab)?;
    ensure!(uring == 0, "{uring} of {all} requests over io_uring");
    unmount_and_wait(&mut lab)
}

fn turned_on(machine: &Machine) -> Outcome {
    let scenario = scenario();
    let mut lab = start(machine, &scenario, "Y")?;
    use_files(&lab, &scenario)?;
    let (all, uring) = requests(&mut lab)?;
    // INIT and CONFIG come before there are rings.
    ensure!(
        uring >= 20 && all - uring == 2,
        "{uring} of {all} requests over io_uring"
    );
    let violations = lab.violations()?;
    ensure!(violations.is_empty(), "{}", violations.join("; "));
    unmount_and_wait(&mut lab)
}

/// A reader in a thread, whose BEGIN gets no answer; meanwhile `f`.
fn unanswered(
    machine: &Machine,
    f: impl FnOnce(&mut Lab, &Scenario) -> Outcome,
) -> Result<(Lab, i32), String> {
    let scenario = scenario();
    let mut lab = start(machine, &scenario, "Y")?;
    let never = Action::Drop {
        interruptible: false,
    };
    lab.misbehave("file", never)?;
    let file = open_cold(&lab.path("file"))?;
    let (result, error) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| file.read_at(&mut [0; 4096], 0));
        let begun = Instant::now();
        let mut result = Ok(());
        while result.is_ok() && !matches!(lab.fired(), Ok(1..)) {
            if begun.elapsed() > Duration::from_secs(10) {
                result = Err("no BEGIN".to_owned());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let result = result.and_then(|()| f(&mut lab, &scenario));
        // In any case, or the reader would wait for ever.
        let killed = lab.kill().map_err(text);
        let error = match reader.join() {
            Ok(Err(e)) => Ok(errno(&e)),
            other => Err(format!("the reader: {other:?}")),
        };
        (result.and(killed), error)
    });
    result?;
    Ok((lab, error?))
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    if !std::path::Path::new(PARAMETER).exists() {
        tap.case("CONFIG_FUSE_IO_URING is on", || {
            Err::<(), _>(format!("there is no {PARAMETER}"))
        });
        return;
    }
    tap.case("enable_uring is off: /dev/fuse does it", || {
        turned_off(machine)
    });
    tap.case(
        "enable_uring is on: all but INIT and CONFIG come over io_uring",
        || turned_on(machine),
    );
    tap.case(
        "others are served while a reply is missing; the server is killed",
        || {
            let served = |lab: &mut Lab, _: &Scenario| {
                let new = File::create(lab.path("other")).map_err(text)?;
                new.write_all_at(&[1; 10_000], 0).map_err(text)?;
                new.sync_all().map_err(text)
            };
            let (lab, error) = unanswered(machine, served)?;
            let gone = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO];
            ensure!(gone.contains(&error), "the reader got errno {error}");
            let after = std::fs::metadata(lab.path("other"));
            ensure!(
                matches!(&after, Err(e) if errno(e) == libc::ENOTCONN),
                "afterwards: {after:?}"
            );
            unmount_dead(&lab)
        },
    );
}
