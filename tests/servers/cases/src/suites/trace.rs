// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The tracepoints: what the kernel asks, gets and refuses can be watched.

use super::{finish, start_iomap};
use crate::disks::{Layout, Machine, empty_scenario};
use crate::ensure;
use crate::files::{fails_with, open_cold, pread};
use crate::tap::{Outcome, Tap};
use crate::tracing::Tracing;
use fuse_iomap::wire::iomap_flags;
use lab::client::Lab;
use lab::misbehave::Action;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use std::os::unix::fs::MetadataExt;

/// Kilobytes for the events of a few reads.
const BUFFER: u32 = 256;
const EVENTS: &[&str] = &[
    "fuse_iomap_begin",
    "fuse_iomap_end",
    "fuse_iomap_mapping",
    "fuse_iomap_rejected",
];

/// One extent that wants END; its address on disk A comes with it.
fn scenario() -> (Scenario, u64) {
    let mut s = empty_scenario(77);
    let mut layout = Layout::new();
    let addr = layout.take(0, 65_536, 4096);
    let extent = ExtentSpec::mapped(0, 65_536, 0, addr).with_flags(iomap_flags::WANT_IOMAP_END);
    s.file("file", FileSpec::iomap(65_536, 4096, vec![extent]));
    (s, addr)
}

fn accepted(lab: &Lab, addr: u64) -> Outcome {
    let path = lab.path("file");
    let ino = std::fs::metadata(&path).map_err(|e| e.to_string())?.ino();
    let file = open_cold(&path)?;
    let tracing = Tracing::new(EVENTS, BUFFER)?;
    let read = pread(&file, 0, 65_536).map_err(|e| e.to_string());
    let addr = format!("addr 0x{addr:x} type mapped flags (want-end)");
    let range = "offset 0x0 length 0x10000";
    read?;
    tracing.expect("fuse_iomap_begin", ino, &["pos 0x0 ", "opflags ()"])?;
    tracing.expect("fuse_iomap_mapping", ino, &[range, &addr])?;
    tracing.expect("fuse_iomap_end", ino, &[range, &addr, "written "])?;
    let refused = tracing.lines("fuse_iomap_rejected", ino)?;
    ensure!(refused.is_empty(), "{refused:?}");
    Ok(())
}

fn refused(lab: &mut Lab) -> Outcome {
    let path = lab.path("file");
    let ino = std::fs::metadata(&path).map_err(|e| e.to_string())?.ino();
    let file = open_cold(&path)?;
    let set = vec![("read.length".to_owned(), 0)];
    lab.misbehave("file", Action::Fields { set })?;
    let tracing = Tracing::new(EVENTS, BUFFER)?;
    let read = fails_with("read", pread(&file, 0, 100), &[libc::EUCLEAN]);
    lab.set_rules(Vec::new())?;
    read?;
    tracing.expect(
        "fuse_iomap_rejected",
        ino,
        &["rule zero-length ", "length 0x0"],
    )?;
    let accepted = tracing.lines("fuse_iomap_mapping", ino)?;
    ensure!(accepted.is_empty(), "{accepted:?}");
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let (scenario, addr) = scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    tap.case("a read shows BEGIN, the mapping and END", || {
        accepted(&lab, addr)
    });
    tap.case("a refused reply shows its rule", || refused(&mut lab));
    finish(tap, lab);
}
