// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Replies that are no replies: of the wrong size, with impossible errors, late, or never.

use super::{finish, start_iomap, unmount_dead, wait_fired};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{Ended, ended, open_cold, pread, reader, same};
use crate::tap::{Outcome, Tap};
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::model::FileModel;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use std::process::Child;
use std::time::{Duration, Instant};

const SIZE: u64 = 65_536;

fn scenario() -> Scenario {
    let mut s = empty_scenario(23);
    let mut layout = Layout::new();
    for name in ["victim", "witness"] {
        let addr = layout.take(0, SIZE, 4096);
        let extent = ExtentSpec::mapped(0, SIZE, 0, addr);
        s.file(name, FileSpec::iomap(SIZE, 4096, vec![extent]));
    }
    s
}

fn expected(scenario: &Scenario, name: &str) -> Result<Vec<u8>, String> {
    let model = FileModel::new(scenario.seed, 0, file_spec(scenario, name)?)?;
    Ok(model.bytes(0..SIZE))
}

fn reads_well(lab: &Lab, scenario: &Scenario, name: &str) -> Outcome {
    let file = open_cold(&lab.path(name))?;
    let got = pread(&file, 0, SIZE as usize).map_err(|e| format!("{name}: {e}"))?;
    same(0, &got, &expected(scenario, name)?).map_err(|e| format!("{name}: {e}"))
}

fn rule(action: Action) -> Rule {
    Rule {
        op: "IOMAP_BEGIN".into(),
        path: Some("victim".into()),
        with: 0,
        without: 0,
        nth: None,
        action,
        then_errno: Some(libc::EIO),
    }
}

/// The read must fail, and everything else go on.
fn broken(lab: &mut Lab, scenario: &Scenario, action: Action) -> Outcome {
    let file = open_cold(&lab.path("victim"))?;
    lab.set_rules(vec![rule(action)])?;
    let result = pread(&file, 8192, 100);
    ensure!(lab.fired()? > 0, "the server did not get to misbehave");
    ensure!(result.is_err(), "the read succeeded");
    reads_well(lab, scenario, "witness")?;
    lab.set_rules(Vec::new())?;
    reads_well(lab, scenario, "victim")
}

/// Waits until a process is gone.
fn gone_within(child: &mut Child, limit: Duration) -> Outcome {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return Ok(()),
            Ok(None) if start.elapsed() > limit => {
                return Err(format!("still there after {limit:?}"));
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(e) => return Err(e.to_string()),
        }
    }
}

/// A reader that waits for a reply can be killed.
fn killable(lab: &mut Lab, scenario: &Scenario, how: &str, action: Action) -> Outcome {
    open_cold(&lab.path("victim"))?;
    lab.set_rules(vec![rule(action)])?;
    let mut child = reader(how, &lab.path("victim"), 8192, 100)?;
    wait_fired(lab, 1)?;
    child.kill().map_err(|e| e.to_string())?;
    gone_within(&mut child, Duration::from_secs(5))?;
    lab.set_rules(Vec::new())?;
    reads_well(lab, scenario, "victim")
}

fn never_answered(machine: &Machine, scenario: &Scenario) -> Outcome {
    let mut lab = Lab::start(&machine.lab, scenario, &machine.mountpoint)?;
    let path = lab.path("victim");
    open_cold(&path)?;
    lab.set_rules(vec![rule(Action::Drop {
        interruptible: false,
    })])?;
    let pread_child = reader("--pread", &path, 8192, 100)?;
    wait_fired(&mut lab, 1)?;
    let mmap_child = reader("--mmap", &path, 32_768, 100)?;
    // It must not still be on its way when the server dies: then it cannot even open the file.
    wait_fired(&mut lab, 2)?;
    // This one waits for the page that the first one has locked.
    let second_child = reader("--pread", &path, 8192, 10)?;
    std::thread::sleep(Duration::from_millis(200));
    lab.kill().map_err(|e| e.to_string())?;
    for (what, child) in [("pread", pread_child), ("second pread", second_child)] {
        let end = ended(child)?;
        let wanted = [libc::ENOTCONN, libc::EIO, libc::ECONNABORTED];
        ensure!(
            matches!(end, Ended::Errno(e) if wanted.contains(&e)),
            "{what}: {end:?}"
        );
    }
    let end = ended(mmap_child)?;
    let refused = matches!(end, Ended::Errno(libc::ENOTCONN));
    ensure!(
        refused || end == Ended::Signal(libc::SIGBUS),
        "mmap: {end:?}"
    );
    unmount_dead(&lab)
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario = scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    for payload in [0, 1, 32, 63, 65, 72, 96, 128, 4096, 1 << 20] {
        tap.case(&format!("a reply of {payload} bytes instead of 64"), || {
            broken(&mut lab, &scenario, Action::Resize { payload })
        });
    }
    for message in [1, 15, 16, 79] {
        tap.case(&format!("a message cut to {message} of 80 bytes"), || {
            broken(&mut lab, &scenario, Action::Cut { message })
        });
    }
    for value in [0, 16, 79, 81, u32::MAX] {
        tap.case(
            &format!("a message of 80 bytes that claims {value}"),
            || broken(&mut lab, &scenario, Action::HeaderLen { value }),
        );
    }
    for value in [
        5,
        1,
        i32::MAX,
        -512,
        -4096,
        i32::MIN,
        -117,
        -12,
        -38,
        -4,
        -11,
    ] {
        tap.case(&format!("error {value}"), || {
            broken(&mut lab, &scenario, Action::Error { value })
        });
    }
    for xor in [1 << 1, 1 << 40, 1 << 62] {
        tap.case(
            &format!("a reply to another request (unique ^ {xor:#x})"),
            || broken(&mut lab, &scenario, Action::Unique { xor }),
        );
    }
    tap.case("a late reply is a reply", || {
        let file = open_cold(&lab.path("victim"))?;
        lab.set_rules(vec![rule(Action::Delay {
            ms: 300,
            interruptible: false,
        })])?;
        let start = Instant::now();
        let got = pread(&file, 8192, 100).map_err(|e| e.to_string())?;
        let late = start.elapsed() >= Duration::from_millis(300);
        ensure!(late, "it did not come late");
        same(8192, &got, &expected(&scenario, "victim")?[8192..8292])?;
        lab.set_rules(Vec::new())?;
        Ok(())
    });
    tap.case("others read while a reply is late", || {
        open_cold(&lab.path("victim"))?;
        lab.set_rules(vec![rule(Action::Delay {
            ms: 1500,
            interruptible: false,
        })])?;
        let mut child = reader("--pread", &lab.path("victim"), 8192, 100)?;
        wait_fired(&mut lab, 1)?;
        reads_well(&lab, &scenario, "witness")?;
        let waiting = matches!(child.try_wait(), Ok(None));
        ensure!(waiting, "the late reply was not late");
        let end = ended(child)?;
        let want = expected(&scenario, "victim")?[8192..8292].to_vec();
        ensure!(end == Ended::Data(want), "{end:?}");
        lab.set_rules(Vec::new())?;
        Ok(())
    });
    for how in ["--pread", "--mmap"] {
        tap.case(
            &format!("SIGKILL ends a reader ({how}) whose reply is late"),
            || {
                let action = Action::Delay {
                    ms: 30_000,
                    interruptible: true,
                };
                killable(&mut lab, &scenario, how, action)
            },
        );
        tap.case(
            &format!("SIGKILL ends a reader ({how}) that gets no reply"),
            || {
                let interruptible = true;
                killable(&mut lab, &scenario, how, Action::Drop { interruptible })
            },
        );
    }
    finish(tap, lab);
    tap.case(
        "no reply, and the server is killed: readers get errors, umount does not hang",
        || never_answered(machine, &scenario),
    );
    tap.case("the server dies instead of answering", || {
        let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
        let file = open_cold(&lab.path("victim"))?;
        lab.set_rules(vec![rule(Action::Die)])?;
        let result = pread(&file, 0, 100);
        ensure!(result.is_err(), "the read succeeded");
        lab.wait(Duration::from_secs(5))?;
        drop(file);
        unmount_dead(&lab)
    });
}
