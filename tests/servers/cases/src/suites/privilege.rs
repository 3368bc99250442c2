// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Who may let a mount use iomap: ADD_IOMAP, and mounts in user namespaces.

use super::unmount_and_wait;
use crate::disks::{Machine, empty_scenario};
use crate::ensure;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{BackingMap, InHeader, InitIn, init};
use fuse_iomap::{FuseDevice, MountOptions};
use lab::client::Lab;
use lab::scenario::Options;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::process::{Command, ExitCode, Stdio};
use zerocopy::FromBytes;

const PARAMETER: &str = "/sys/module/fuse/parameters/enable_iomap";
/// What makes this program a mounter in a user namespace.
const HELPER: &str = "--mount-and-tell";

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn set_parameter(value: &str) -> Outcome {
    std::fs::write(PARAMETER, value).map_err(|e| format!("{PARAMETER}: {e}"))
}

fn refused(result: io::Result<()>, errno: i32) -> Outcome {
    match result {
        Err(e) if e.raw_os_error() == Some(errno) => Ok(()),
        other => Err(format!("{other:?}, wanted errno {errno}")),
    }
}

/// Runs `f` in a thread without CAP_SYS_RAWIO.
fn without_rawio<R: Send>(f: impl FnOnce() -> R + Send) -> Result<R, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let mut sets = capabilities(None).map_err(text)?;
            sets.effective.remove(CapabilitySet::SYS_RAWIO);
            set_capabilities(None, sets).map_err(text)?;
            Ok(f())
        });
        thread.join().map_err(|_| "panicked".to_owned())?
    })
}

/// What INIT offers to who has `device` open.
fn offered(device: &impl AsFd) -> Result<bool, String> {
    let mut message = vec![0; 1 << 17];
    let len = rustix::io::read(device, &mut message[..]).map_err(text)?;
    let body = message
        .get(size_of::<InHeader>()..len)
        .ok_or("no request")?;
    let (init_in, _) = InitIn::read_from_prefix(body).map_err(|_| "no INIT")?;
    Ok(u64::from(init_in.flags2) << 32 & init::IOMAP != 0)
}

/// Mounts, and says what is offered.
fn mount_and_look(machine: &Machine, device: FuseDevice) -> Result<(bool, OwnedFd), String> {
    let own = device.as_fd().try_clone_to_owned().map_err(text)?;
    device
        .mount(&machine.mountpoint, &MountOptions::new("privilege"))
        .map_err(text)?;
    let offered = offered(&own)?;
    unmount(&machine.mountpoint, UnmountFlags::DETACH).map_err(text)?;
    Ok((offered, own))
}

/// The descriptor of an open file of another process.
fn take(pid: u32, number: RawFd) -> Result<OwnedFd, String> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or("pid")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(text)?;
    pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).map_err(text)
}

/// The FUSE device of a server.
fn device_of(lab: &Lab) -> Result<FuseDevice, String> {
    let dir = format!("/proc/{}/fd", lab.pid());
    for entry in std::fs::read_dir(dir).map_err(text)?.flatten() {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.as_os_str() == "/dev/fuse" {
            let number = entry.file_name().to_string_lossy().parse().map_err(text)?;
            return take(lab.pid(), number).map(FuseDevice::from);
        }
    }
    Err("the server has no FUSE device".into())
}

fn served(machine: &Machine, change: impl FnOnce(&mut Options)) -> Result<(Lab, bool), String> {
    let mut scenario = empty_scenario(43);
    change(&mut scenario.options);
    let lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
    let offered = lab.ready().offered & init::IOMAP != 0;
    Ok((lab, offered))
}

fn clones(machine: &Machine) -> Outcome {
    let (mut lab, _) = served(machine, |o| o.add_iomap = true)?;
    let served = device_of(&lab)?;
    let errno = libc::EINVAL;
    refused(served.add_iomap(), errno).map_err(|e| format!("ADD_IOMAP when mounted: {e}"))?;
    let clone = FuseDevice::open().map_err(text)?;
    clone
        .clone_from(&served)
        .map_err(|e| format!("CLONE: {e}"))?;
    refused(clone.add_iomap(), errno).map_err(|e| format!("ADD_IOMAP on a clone: {e}"))?;
    let disk = std::env::var_os("FI_DISK_A").ok_or("$FI_DISK_A")?;
    let disk = File::options().read(true).write(true).open(disk);
    let disk = disk.map_err(text)?;
    let register = |fd: RawFd| {
        clone.backing_open_raw(BackingMap {
            fd,
            flags: 1,
            padding: 0,
        })
    };
    let (number, _) = (disk.as_raw_fd(), &disk);
    without_rawio(|| register(number))?.map_err(|e| format!("BACKING_OPEN by a clone: {e}"))?;
    // A number that stands for nothing here.
    refused(register(1 << 20).map(drop), libc::EBADF)?;
    drop((clone, served));
    unmount_and_wait(&mut lab)
}

/// A mounter in a user namespace of its own, whose device is marked by us if `mark` is set.
fn in_user_namespace(machine: &Machine, mark: bool) -> Result<bool, String> {
    let mut child = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--"])
        .arg(std::env::current_exe().map_err(text)?)
        .arg(HELPER)
        .arg(&machine.mountpoint)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(text)?;
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("no pipes".into());
    };
    let mut lines = BufReader::new(output).lines();
    let mut line = || lines.next().ok_or("it has ended")?.map_err(text);
    // unshare(1) becomes the mounter, so the child is that.
    let number = line()?.parse().map_err(text)?;
    if mark {
        let device = FuseDevice::from(take(child.id(), number)?);
        device.add_iomap().map_err(|e| format!("ADD_IOMAP: {e}"))?;
    }
    writeln!(input).map_err(text)?;
    let answer = line()?;
    child.wait().map_err(text)?;
    match answer.as_str() {
        "offered" => Ok(true),
        "not offered" => Ok(false),
        other => Err(other.to_owned()),
    }
}

/// Is such a mounter, if the arguments say so.
pub fn helper(args: &[String]) -> Option<ExitCode> {
    let [HELPER, mountpoint] = [args.first()?.as_str(), args.get(1)?.as_str()] else {
        return None;
    };
    let run = || -> Result<bool, String> {
        let device = FuseDevice::open().map_err(text)?;
        println!("{}", device.as_fd().as_raw_fd());
        let mut line = String::new();
        io::stdin().read_line(&mut line).map_err(text)?;
        // Here, the capabilities are all there, and mean nothing.
        if device.add_iomap().is_ok() {
            return Err("ADD_IOMAP succeeds in a user namespace".into());
        }
        let own = device.as_fd().try_clone_to_owned().map_err(text)?;
        let options = MountOptions::new("privilege");
        device.mount(mountpoint, &options).map_err(text)?;
        offered(&own)
    };
    match run() {
        Ok(true) => println!("offered"),
        Ok(false) => println!("not offered"),
        Err(e) => println!("{e}"),
    }
    Some(ExitCode::SUCCESS)
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    tap.case(
        "ADD_IOMAP, twice, and a mounter without CAP_SYS_RAWIO: offered",
        || {
            let device = FuseDevice::open().map_err(text)?;
            device.add_iomap().map_err(text)?;
            device.add_iomap().map_err(|e| format!("again: {e}"))?;
            let (offered, _own) = without_rawio(|| mount_and_look(machine, device))??;
            ensure!(offered, "not offered");
            Ok(())
        },
    );
    tap.case("without ADD_IOMAP it is not", || {
        let device = FuseDevice::open().map_err(text)?;
        let (offered, _own) = without_rawio(|| mount_and_look(machine, device))??;
        ensure!(!offered, "offered");
        Ok(())
    });
    tap.case("the mark is good for one device", || {
        let marked = FuseDevice::open().map_err(text)?;
        marked.add_iomap().map_err(text)?;
        let other = FuseDevice::open().map_err(text)?;
        let (offered, _own) = without_rawio(|| mount_and_look(machine, other))??;
        ensure!(!offered, "offered");
        Ok(())
    });
    tap.case("ADD_IOMAP needs CAP_SYS_RAWIO", || {
        let device = FuseDevice::open().map_err(text)?;
        refused(without_rawio(|| device.add_iomap())?, libc::EPERM)
    });
    tap.case(
        "ADD_IOMAP needs enable_iomap, and so does the mount",
        || {
            let marked = FuseDevice::open().map_err(text)?;
            marked.add_iomap().map_err(text)?;
            set_parameter("N")?;
            let late = FuseDevice::open().and_then(|device| device.add_iomap());
            let mounted = mount_and_look(machine, marked);
            set_parameter("Y")?;
            refused(late, libc::EOPNOTSUPP)?;
            ensure!(!mounted?.0, "offered");
            Ok(())
        },
    );
    tap.case("marked, a server without CAP_SYS_RAWIO uses iomap", || {
        let (mut lab, offered) = served(machine, |o| {
            o.add_iomap = true;
            o.drop_sys_rawio = true;
        })?;
        ensure!(offered, "not offered");
        ensure!(!lab.ready().devices.is_empty(), "no device registered");
        unmount(&machine.mountpoint, UnmountFlags::empty()).map_err(text)?;
        lab.kill().map_err(text)
    });
    tap.case(
        "too late: mounted, or a clone; clones register devices",
        || clones(machine),
    );
    tap.case("a mount in a user namespace is not offered iomap", || {
        ensure!(!in_user_namespace(machine, false)?, "offered");
        Ok(())
    });
    tap.case("but it is if its device was marked from outside", || {
        ensure!(in_user_namespace(machine, true)?, "not offered");
        Ok(())
    });
}
