// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The suites.

pub mod atomic;
mod bench;
pub mod cache;
pub mod config;
pub mod counters;
pub mod death;
pub mod direct;
pub mod fadvise;
pub mod flags;
pub mod hostile;
pub mod inline;
pub mod ioends;
mod lies;
pub mod mixed;
pub mod module;
pub mod negotiation;
pub mod passthrough;
pub mod privilege;
pub mod readonly;
pub mod replies;
pub mod rules;
pub mod server;
pub mod statx;
pub mod swap;
pub mod sync_init;
pub mod trace;
pub mod uring;
pub mod write;
pub mod zeroing;

use crate::disks::Machine;
use crate::ensure;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::init;
use lab::client::Lab;
use lab::scenario::Scenario;
use rustix::mount::{UnmountFlags, unmount};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The seed that `FI_SEED` names, else one that is not the same every time.
pub fn fresh_seed() -> u64 {
    let given = std::env::var("FI_SEED").ok();
    if let Some(seed) = given.and_then(|seed| seed.parse().ok()) {
        return seed;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| d.as_secs())
}

/// Whether servers get their requests over io_uring.
pub fn over_uring() -> bool {
    std::env::var_os("FI_URING").is_some()
}

/// What a caller gets when the reply has a wrong size: FUSE says so in two ways.
pub fn wrong_size() -> i32 {
    if over_uring() {
        libc::EINVAL
    } else {
        libc::EIO
    }
}

/// Starts a server, as a case of its own.
pub fn start(tap: &mut Tap, machine: &Machine, scenario: &Scenario) -> Option<Lab> {
    tap.case("the server mounts", || {
        Lab::start(&machine.lab, scenario, &machine.mountpoint)
    })
}

/// Starts a server that needs iomap, as a case of its own.
pub fn start_iomap(tap: &mut Tap, machine: &Machine, scenario: &Scenario) -> Option<Lab> {
    tap.case("the server mounts, with iomap", || {
        let lab = Lab::start(&machine.lab, scenario, &machine.mountpoint)?;
        if lab.ready().flags & init::IOMAP == 0 {
            return Err("the kernel does not offer it".into());
        }
        Ok(lab)
    })
}

/// Waits until the server has misbehaved.
pub fn wait_fired(lab: &mut Lab, times: u64) -> Outcome {
    let start = Instant::now();
    while lab.fired()? < times {
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "nothing was asked"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Unmounts, and checks that the server ended well and the kernel kept to the protocol.
pub fn finish(tap: &mut Tap, mut lab: Lab) {
    tap.case("the kernel keeps to the protocol", || {
        let violations = lab.violations()?;
        if violations.is_empty() {
            Ok(())
        } else {
            Err(violations.join("; "))
        }
    });
    tap.case("umount ends the server", || unmount_and_wait(&mut lab));
}

/// Unmounts; the server must end without an error.
pub fn unmount_and_wait(lab: &mut Lab) -> Outcome {
    unmount(lab.mountpoint(), UnmountFlags::empty()).map_err(|e| format!("umount: {e}"))?;
    let status = lab.wait(Duration::from_secs(10))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("the server ended with {status}"))
    }
}

/// Unmounts what a dead server has left.
pub fn unmount_dead(lab: &Lab) -> Outcome {
    unmount(lab.mountpoint(), UnmountFlags::empty()).map_err(|e| format!("umount: {e}"))
}
