// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The tracepoints: what the kernel asks, gets and refuses can be watched.

use super::{finish, start_iomap};
use crate::disks::{Layout, Machine, empty_scenario};
use crate::ensure;
use crate::files::{fails_with, open_cold, pread};
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_flags;
use lab::client::Lab;
use lab::misbehave::Action;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use std::fs::{read_to_string, write};
use std::os::unix::fs::MetadataExt;

const TRACING: &str = "/sys/kernel/tracing";
const EVENTS: [&str; 4] = [
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

/// Switches our events on or off, and empties the buffer.
fn switch(on: bool) -> Outcome {
    for event in EVENTS {
        let file = format!("{TRACING}/events/fuse/{event}/enable");
        write(&file, if on { "1" } else { "0" }).map_err(|e| format!("{file}: {e}"))?;
    }
    write(format!("{TRACING}/trace"), "").map_err(|e| format!("trace: {e}"))
}

/// The lines of an event about an inode.
fn lines(event: &str, ino: u64) -> Result<Vec<String>, String> {
    let text = read_to_string(format!("{TRACING}/trace")).map_err(|e| format!("trace: {e}"))?;
    let (event, ino) = (format!(" {event}: "), format!(" ino {ino} "));
    let ours = text
        .lines()
        .filter(|l| l.contains(&event) && l.contains(&ino));
    Ok(ours.map(str::to_owned).collect())
}

/// There must be a line of an event with all of these in it.
fn expect(event: &str, ino: u64, parts: &[&str]) -> Outcome {
    let lines = lines(event, ino)?;
    let found = lines.iter().any(|l| parts.iter().all(|p| l.contains(p)));
    ensure!(found, "no {event} with {parts:?} in {lines:?}");
    Ok(())
}

fn accepted(lab: &Lab, addr: u64) -> Outcome {
    let path = lab.path("file");
    let ino = std::fs::metadata(&path).map_err(|e| e.to_string())?.ino();
    let file = open_cold(&path)?;
    switch(true)?;
    let read = pread(&file, 0, 65_536).map_err(|e| e.to_string());
    let addr = format!("addr 0x{addr:x} type mapped flags (want-end)");
    let range = "offset 0x0 length 0x10000";
    let seen = expect("fuse_iomap_begin", ino, &["pos 0x0 ", "opflags ()"])
        .and_then(|()| expect("fuse_iomap_mapping", ino, &[range, &addr]))
        .and_then(|()| expect("fuse_iomap_end", ino, &[range, &addr, "written "]));
    let refused = lines("fuse_iomap_rejected", ino)?;
    switch(false)?;
    read?;
    ensure!(refused.is_empty(), "{refused:?}");
    seen
}

fn refused(lab: &mut Lab) -> Outcome {
    let path = lab.path("file");
    let ino = std::fs::metadata(&path).map_err(|e| e.to_string())?.ino();
    let file = open_cold(&path)?;
    let set = vec![("read.length".to_owned(), 0)];
    lab.misbehave("file", Action::Fields { set })?;
    switch(true)?;
    let read = fails_with("read", pread(&file, 0, 100), &[libc::EUCLEAN]);
    let seen = expect(
        "fuse_iomap_rejected",
        ino,
        &["rule zero-length ", "length 0x0"],
    );
    let accepted = lines("fuse_iomap_mapping", ino)?;
    switch(false)?;
    lab.set_rules(Vec::new())?;
    read?;
    ensure!(accepted.is_empty(), "{accepted:?}");
    seen
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
