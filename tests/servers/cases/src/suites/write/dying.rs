// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The server dies, or stops to answer and is killed, while somebody writes: whoever waits gets an
//! error, nothing hangs, and the mount goes away.

use super::super::bench::case::ways;
use super::super::unmount_dead;
use super::{create, name, pattern, rule, with_lab};
use crate::disks::Machine;
use crate::ensure;
use crate::files::errno;
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::iomap_op;
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::scenario::Scenario;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// What may come of a call when the server is gone.
const GONE: [i32; 4] = [libc::ENOTCONN, libc::EIO, libc::ECONNABORTED, libc::EFAULT];

/// When the server dies, what is done then, and whether that must fail.
struct Death {
    what: &'static str,
    op: &'static str,
    flags: (u32, u32),
    act: fn(&File) -> io::Result<()>,
}

const WRITE: (u32, u32) = (iomap_op::WRITE, iomap_op::WRITEBACK);
const ANY: (u32, u32) = (0, 0);

fn write(file: &File) -> io::Result<()> {
    file.write_all_at(&pattern(2, 30_000), 50_000)
}

fn write_and_sync(file: &File) -> io::Result<()> {
    write(file)?;
    file.sync_all()
}

/// Writes go on while the server dies.
const DEATHS: [Death; 11] = [
    Death {
        what: "BEGIN for a write",
        op: "IOMAP_BEGIN",
        flags: WRITE,
        act: write,
    },
    Death {
        what: "BEGIN for a store",
        op: "IOMAP_BEGIN",
        flags: (iomap_op::WRITE | iomap_op::FAULT, 0),
        act: |f| sys::mmap_poke(f, 5000, &[1; 100]),
    },
    Death {
        what: "BEGIN for zeroing",
        op: "IOMAP_BEGIN",
        flags: (iomap_op::ZERO, 0),
        act: |f| f.set_len(100),
    },
    Death {
        what: "BEGIN for writeback",
        op: "IOMAP_BEGIN",
        flags: (iomap_op::WRITEBACK, 0),
        act: write_and_sync,
    },
    Death {
        what: "IOEND",
        op: "IOMAP_IOEND",
        flags: ANY,
        act: write_and_sync,
    },
    Death {
        what: "SETATTR of the size",
        op: "SETATTR",
        flags: ANY,
        act: |f| f.set_len(10_000),
    },
    Death {
        what: "FALLOCATE",
        op: "FALLOCATE",
        flags: ANY,
        act: |f| Ok(fallocate(f, FallocateFlags::KEEP_SIZE, 0, 1 << 20)?),
    },
    Death {
        what: "FALLOCATE to punch",
        op: "FALLOCATE",
        flags: ANY,
        act: |f| {
            let flags = FallocateFlags::KEEP_SIZE | FallocateFlags::PUNCH_HOLE;
            Ok(fallocate(f, flags, 100, 20_000)?)
        },
    },
    Death {
        what: "FSYNC",
        op: "FSYNC",
        flags: ANY,
        act: write_and_sync,
    },
    Death {
        what: "SYNCFS",
        op: "SYNCFS",
        flags: ANY,
        act: |f| {
            write(f)?;
            Ok(rustix::fs::syncfs(f)?)
        },
    },
    Death {
        what: "END",
        op: "IOMAP_END",
        flags: ANY,
        // END comes when the size has changed; what became of it shows only later.
        act: |f| {
            f.write_all_at(&[1; 100], 200_000)?;
            f.sync_all()
        },
    },
];

/// Somebody else has dirty pages and writes on.
fn others(file: &File) -> io::Result<()> {
    for i in 0..2000 {
        file.write_all_at(&[3; 1000], (i % 200) * 1000)?;
        if i % 100 == 99 {
            file.sync_data()?;
        }
    }
    Ok(())
}

fn die(lab: &mut Lab, way: &str, death: &Death, silent: bool) -> Outcome {
    let name = name(way);
    let victim = create(&lab.path(&name))?;
    let other = create(&lab.path(&format!("{name}-2")))?;
    victim
        .write_all_at(&pattern(1, 60_000), 0)
        .map_err(|e| format!("write: {e}"))?;
    victim.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let action = if silent {
        Action::Drop {
            interruptible: false,
        }
    } else {
        Action::Die
    };
    // This one is about the root.
    let about = if death.op == "SYNCFS" { "" } else { &name };
    let rules: Vec<Rule> = vec![rule(death.op, about, death.flags, action)];
    lab.set_rules(rules)?;
    let (result, others) = std::thread::scope(|scope| {
        let act = scope.spawn(|| (death.act)(&victim));
        let others = scope.spawn(|| others(&other));
        if silent {
            std::thread::sleep(Duration::from_millis(150));
            lab.kill().map_err(|e| e.to_string())?;
        }
        let join = |t: std::thread::ScopedJoinHandle<'_, io::Result<()>>| t.join();
        let panicked = |_| "a thread panicked".to_owned();
        Ok::<_, String>((
            join(act).map_err(panicked)?,
            join(others).map_err(panicked)?,
        ))
    })?;
    let fine = |what: &str, e: &io::Error| {
        let known = GONE.contains(&errno(e));
        if known {
            Ok(())
        } else {
            Err(format!("{what}: {e}"))
        }
    };
    match &result {
        Ok(()) => return Err("the server was not needed".into()),
        Err(e) => fine("the call", e)?,
    }
    match &others {
        // It may have been through before.
        Ok(()) => {}
        Err(e) => fine("others", e)?,
    }
    lab.wait(Duration::from_secs(10))?;
    // What is dirty can go nowhere any more.
    match victim.sync_all() {
        Ok(()) => return Err("fsync succeeds without a server".into()),
        Err(e) => fine("fsync", &e)?,
    }
    match victim.write_at(b"x", 0).and_then(|_| victim.sync_all()) {
        Ok(()) => return Err("a write succeeds without a server".into()),
        Err(e) => fine("a write", &e)?,
    }
    drop((victim, other));
    unmount_dead(lab)
}

/// The server takes its time for everything, and that is all.
fn slow(lab: &mut Lab, way: &str) -> Outcome {
    let name = name(way);
    let file = create(&lab.path(&name))?;
    let delay = |op: &str| {
        let action = Action::Delay {
            ms: 30,
            interruptible: false,
        };
        rule(op, &name, ANY, action)
    };
    lab.set_rules(vec![
        delay("IOMAP_BEGIN"),
        delay("IOMAP_IOEND"),
        delay("IOMAP_END"),
        delay("SETATTR"),
        delay("FSYNC"),
    ])?;
    let data = pattern(1, 60_000);
    std::thread::scope(|scope| {
        let parts: Vec<_> = data
            .chunks(20_000)
            .enumerate()
            .map(|(i, part)| {
                let file = &file;
                scope.spawn(move || {
                    file.write_all_at(part, i as u64 * 20_000)?;
                    file.sync_all()
                })
            })
            .collect();
        for part in parts {
            let result = part.join().map_err(|_| "a thread panicked".to_owned())?;
            result.map_err(|e| format!("write or fsync: {e}"))?;
        }
        Ok::<_, String>(())
    })?;
    file.set_len(50_001).map_err(|e| format!("truncate: {e}"))?;
    lab.set_rules(Vec::new())?;
    let got = crate::files::pread(&file, 0, 70_000).map_err(|e| format!("read: {e}"))?;
    crate::files::same(0, &got, &data[..50_001])?;
    ensure!(lab.map(&name)?.size == 50_001, "the size on disk is wrong");
    drop(file);
    super::unmount_and_wait(lab)
}

/// Runs them.
pub fn run(tap: &mut Tap, machine: &Machine, scenario: &Scenario) {
    for (way, _) in ways() {
        let all = way == "unwritten";
        for death in &DEATHS {
            // Only some need an IOEND or zero what is shared; one way is enough for most.
            let known = ["cow", "delalloc", "in-place"].contains(&way)
                && ["IOEND", "BEGIN for writeback"].contains(&death.what);
            if !all && !known || way == "in-place" && death.what == "IOEND" {
                continue;
            }
            for silent in [false, true] {
                let how = if silent {
                    "no answer, and then death"
                } else {
                    "death"
                };
                tap.case(&format!("{way}: {how} at {}", death.what), || {
                    with_lab(machine, scenario, |lab| die(lab, way, death, silent))
                });
            }
        }
        tap.case(&format!("{way}: a slow server"), || {
            with_lab(machine, scenario, |lab| slow(lab, way))
        });
    }
}
