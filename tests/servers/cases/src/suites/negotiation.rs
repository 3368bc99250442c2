// SPDX-License-Identifier: GPL-2.0 OR MIT
//! When iomap is offered and taken, and the registration of devices.

use super::{finish, start_iomap, unmount_and_wait};
use crate::disks::{Layout, Machine, disk, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{open_cold, pread, same};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::init;
use lab::client::{Error, Lab};
use lab::control::{Answer, Command};
use lab::model::FileModel;
use lab::scenario::{ExtentSpec, FileSpec, Options, Scenario};
use std::path::Path;

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_iomap";
const SIZE: u64 = 65_536;
const MAX_DEVICES: u32 = 1024;
/// What is not iomap is subject to the rules of passthrough first, which is not on here.
const UNKNOWN_TYPE: &[i32] = &[libc::EINVAL, libc::EOPNOTSUPP, libc::EPERM];

fn scenario() -> Scenario {
    let mut s = empty_scenario(41);
    let addr = Layout::new().take(0, SIZE, 4096);
    let extent = ExtentSpec::mapped(0, SIZE, 0, addr);
    s.file("file", FileSpec::iomap(SIZE, 4096, vec![extent]));
    s
}

/// Mounts with these options, and checks what was offered and how the file is read.
fn mounted(
    machine: &Machine,
    change: impl FnOnce(&mut Options),
    offered: bool,
    iomap: bool,
) -> Outcome {
    let mut scenario = scenario();
    change(&mut scenario.options);
    let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
    let was = lab.ready().offered & init::IOMAP != 0;
    ensure!(was == offered, "offered: {was}");
    read(&lab, &scenario)?;
    let activity = lab.activity("file")?;
    let (reads, begins) = (activity.reads, activity.begins.len());
    ensure!((begins > 0) == iomap, "{begins} BEGINs");
    ensure!((reads > 0) != iomap, "{reads} READs");
    if !iomap {
        match open(&mut lab, backing(&disk("FI_DISK_A")?, 1)) {
            Err(Error::Errno(..)) => {}
            other => return Err(format!("BACKING_OPEN without iomap: {other:?}")),
        }
    }
    unmount_and_wait(&mut lab)
}

fn read(lab: &Lab, scenario: &Scenario) -> Outcome {
    let file = open_cold(&lab.path("file"))?;
    let got = pread(&file, 0, SIZE as usize).map_err(|e| e.to_string())?;
    let model = FileModel::new(scenario.seed, 0, file_spec(scenario, "file")?)?;
    same(0, &got, &model.bytes(0..SIZE))
}

fn with_parameter(value: &str, f: impl FnOnce() -> Outcome) -> Outcome {
    let set = |v: &str| std::fs::write(PARAMETER, v).map_err(|e| format!("{PARAMETER}: {e}"));
    let before = std::fs::read_to_string(PARAMETER).map_err(|e| format!("{PARAMETER}: {e}"))?;
    set(value)?;
    let result = f();
    set(before.trim())?;
    result
}

fn backing(path: &Path, flags: u32) -> Command {
    Command::BackingOpen {
        path: Some(path.to_owned()),
        read_only: false,
        flags,
        padding: 0,
        times: 1,
    }
}

fn open(lab: &mut Lab, command: Command) -> Result<(u32, u32), Error> {
    match lab.ask(&command)? {
        Answer::Backing(first, last) => Ok((first, last)),
        other => Err(Error::Other(format!("{other:?}"))),
    }
}

fn close(lab: &mut Lab, id: u32, times: u32) -> Result<(), Error> {
    lab.ask(&Command::BackingClose { id, times }).map(|_| ())
}

/// The ioctl must fail, with one of these if any are given.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, errnos: &[i32]) -> Outcome {
    match result {
        Err(Error::Errno(e, _)) if errnos.is_empty() || errnos.contains(&e) => Ok(()),
        Err(e) => Err(format!("{e}, wanted errno {errnos:?}")),
        Ok(value) => Err(format!("succeeded: {value:?}")),
    }
}

fn fill_up(lab: &mut Lab) -> Outcome {
    let registered = lab.ready().devices.len() as u32;
    let path = disk("FI_DISK_B")?;
    let many = Command::BackingOpen {
        path: Some(path.clone()),
        read_only: false,
        flags: 1,
        padding: 0,
        times: 2 * MAX_DEVICES,
    };
    let after = match open(lab, many) {
        Err(Error::Errno(_, after)) => after,
        other => return Err(format!("no end of devices: {other:?}")),
    };
    ensure!(
        after + registered == MAX_DEVICES,
        "{after} devices besides {registered}"
    );
    // Which ids they have is the kernel's business; those that it does not know are passed over.
    let mut closed = 0;
    let mut id = 1;
    while closed < after && id < 1 << 20 {
        if !lab.ready().devices.contains(&id) && close(lab, id, 1).is_ok() {
            closed += 1;
        }
        id += 1;
    }
    ensure!(closed == after, "only {closed} of {after} could be closed");
    let (id, _) = open(lab, backing(&path, 1))?;
    Ok(close(lab, id, 1)?)
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    tap.case("offered, accepted: iomap", || {
        mounted(machine, |_| {}, true, true)
    });
    tap.case("enable_iomap off: not offered", || {
        with_parameter("N", || mounted(machine, |_| {}, false, false))
    });
    tap.case("enable_iomap off, but the server insists: no iomap", || {
        with_parameter("N", || {
            mounted(machine, |o| o.force_iomap = true, false, false)
        })
    });
    tap.case("mounter without CAP_SYS_RAWIO: not offered", || {
        mounted(machine, |o| o.drop_sys_rawio = true, false, false)
    });
    tap.case("mounter without CAP_SYS_RAWIO insists: no iomap", || {
        let change = |o: &mut Options| {
            o.drop_sys_rawio = true;
            o.force_iomap = true;
        };
        mounted(machine, change, false, false)
    });
    tap.case("offered, but the server does not accept: no iomap", || {
        mounted(machine, |o| o.accept_iomap = false, true, false)
    });
    tap.case("the parameter only counts when a mount is made", || {
        let scenario = scenario();
        let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
        with_parameter("N", || read(&lab, &scenario))?;
        ensure!(lab.activity("file")?.reads == 0, "READ");
        unmount_and_wait(&mut lab)
    });

    let scenario = scenario();
    super::sync_init::run(tap, machine, &scenario);
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    let regular = machine.scratch.join("regular");
    let bad: [(&str, Result<Command, String>, &[i32]); 9] = [
        ("a regular file", Ok(backing(&regular, 1)), &[]),
        (
            "a character device",
            Ok(backing(Path::new("/dev/null"), 1)),
            &[],
        ),
        (
            "type 2",
            disk("FI_DISK_A").map(|d| backing(&d, 2)),
            UNKNOWN_TYPE,
        ),
        (
            "type 255",
            disk("FI_DISK_A").map(|d| backing(&d, 255)),
            UNKNOWN_TYPE,
        ),
        (
            "flag 0x100",
            disk("FI_DISK_A").map(|d| backing(&d, 0x101)),
            &[libc::EINVAL],
        ),
        (
            "flag 0x80000000",
            disk("FI_DISK_A").map(|d| backing(&d, 0x8000_0001)),
            &[libc::EINVAL],
        ),
        (
            "padding",
            disk("FI_DISK_A").map(|d| Command::BackingOpen {
                path: Some(d),
                read_only: false,
                flags: 1,
                padding: 1,
                times: 1,
            }),
            &[libc::EINVAL],
        ),
        (
            "a bad descriptor",
            Ok(Command::BackingOpen {
                path: None,
                read_only: false,
                flags: 1,
                padding: 0,
                times: 1,
            }),
            &[libc::EBADF],
        ),
        (
            "a disk that is open for reading only, on a writable mount",
            disk("FI_DISK_A").map(|d| Command::BackingOpen {
                path: Some(d),
                read_only: true,
                flags: 1,
                padding: 0,
                times: 1,
            }),
            &[libc::EACCES, libc::EPERM, libc::EBADF, libc::EROFS],
        ),
    ];
    tap.case("there is a regular file", || {
        std::fs::write(&regular, vec![0; 65_536]).map_err(|e| e.to_string())
    });
    for (what, command, errnos) in bad {
        tap.case(&format!("BACKING_OPEN refuses {what}"), || {
            let opened = open(&mut lab, command?);
            if let Ok((id, _)) = opened {
                // Later cases count devices.
                close(&mut lab, id, 1)?;
            }
            refused(opened, errnos)
        });
    }
    tap.case("BACKING_CLOSE of unknown ids", || {
        for id in [4000, i32::MAX as u32] {
            refused(close(&mut lab, id, 1), &[libc::ENOENT]).map_err(|e| format!("{id}: {e}"))?;
        }
        // These are no ids at all.
        for id in [0, u32::MAX] {
            let errnos = [libc::ENOENT, libc::EINVAL];
            refused(close(&mut lab, id, 1), &errnos).map_err(|e| format!("{id}: {e}"))?;
        }
        Ok(())
    });
    tap.case(
        "BACKING_CLOSE of a device that is not in use, twice",
        || {
            let (id, _) = open(&mut lab, backing(&disk("FI_DISK_B")?, 1))?;
            close(&mut lab, id, 1)?;
            refused(close(&mut lab, id, 1), &[libc::ENOENT])
        },
    );
    tap.case("BACKING_CLOSE of a device in use", || {
        read(&lab, &scenario)?;
        let file = open_cold(&lab.path("file"))?;
        let id = *lab.ready().devices.first().ok_or("no device")?;
        refused(close(&mut lab, id, 1), &[libc::EBUSY])?;
        let got = pread(&file, 0, 4096).map_err(|e| e.to_string())?;
        ensure!(got.len() == 4096, "{} bytes", got.len());
        drop(file);
        read(&lab, &scenario)
    });
    tap.case("1024 devices and no more", || fill_up(&mut lab));
    tap.case("after all that the file is as it was", || {
        read(&lab, &scenario)
    });
    finish(tap, lab);
}
