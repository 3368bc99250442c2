// SPDX-License-Identifier: GPL-2.0 OR MIT
//! FUSE passthrough works as it did before there was iomap.

use super::{finish, start};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{mmap_in_child, open_cold, pread, same, write_both_ways};
use crate::tap::{Tap, comment};
use fuse_iomap::wire::init;
use lab::client::Error;
use lab::control::{Answer, Command};
use lab::pattern::Pattern;
use lab::scenario::{InodeKind, Options, Scenario};
use std::path::Path;

const SIZE: usize = 300_000;

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    with_or_without(tap, machine, false);
    if Path::new("/sys/module/fuse/parameters/enable_iomap").exists() {
        with_or_without(tap, machine, true);
    } else {
        comment("this kernel has no iomap for FUSE, so passthrough is not tried beside it");
    }
}

fn with_or_without(tap: &mut Tap, machine: &Machine, iomap: bool) {
    let which = if iomap { "with iomap" } else { "without iomap" };
    let backing = machine.scratch.join("backing");
    let mut content = vec![0; SIZE];
    Pattern::new(61, 0).fill(0, &mut content);
    let mut scenario = Scenario {
        options: Options {
            accept_passthrough: true,
            accept_iomap: iomap,
            ..Options::default()
        },
        ..Scenario::default()
    };
    scenario.inode(
        "through",
        InodeKind::Passthrough {
            backing: backing.clone(),
        },
    );
    let made = tap.case(&format!("{which}: there is a backing file"), || {
        std::fs::write(&backing, &content).map_err(|e| e.to_string())
    });
    let Some(mut lab) = made.and_then(|()| start(tap, machine, &scenario)) else {
        return;
    };
    tap.case(&format!("{which}: passthrough is on"), || {
        let flags = lab.ready().flags;
        ensure!(flags & init::PASSTHROUGH != 0, "not offered");
        ensure!(
            (flags & init::IOMAP != 0) == iomap,
            "iomap: flags {flags:#x}"
        );
        Ok(())
    });
    let path = lab.path("through");
    tap.case(&format!("{which}: read and mmap"), || {
        let file = open_cold(&path)?;
        let got = pread(&file, 0, SIZE + 10).map_err(|e| e.to_string())?;
        same(0, &got, &content)?;
        same(0, &mmap_in_child(&path, 0, SIZE as u64)?, &content)
    });
    tap.case(&format!("{which}: write, mmap write, fsync"), || {
        let file = write_both_ways(&path)?;
        content[5000..5007].copy_from_slice(b"written");
        content[9000..9006].copy_from_slice(b"mapped");
        let below = std::fs::read(&backing).map_err(|e| e.to_string())?;
        same(0, &below, &content)?;
        let got = pread(&file, 0, SIZE).map_err(|e| e.to_string())?;
        same(0, &got, &content)
    });
    tap.case(
        &format!("{which}: the server saw neither READ nor WRITE"),
        || {
            let (reads, writes) = (lab.counter("READ")?, lab.counter("WRITE")?);
            ensure!(reads == 0 && writes == 0, "{reads} READs, {writes} WRITEs");
            Ok(())
        },
    );
    tap.case(&format!("{which}: BACKING_OPEN and BACKING_CLOSE"), || {
        let open = |flags, padding| Command::BackingOpen {
            path: Some(backing.clone()),
            read_only: false,
            flags,
            padding,
            times: 1,
        };
        let id = match lab.ask(&open(0, 0))? {
            Answer::Backing(id, _) => id,
            other => return Err(format!("{other:?}")),
        };
        lab.ask(&Command::BackingClose { id, times: 1 })?;
        match lab.ask(&Command::BackingClose { id, times: 1 }) {
            Err(Error::Errno(libc::ENOENT, _)) => {}
            other => return Err(format!("closing twice: {other:?}")),
        }
        for (flags, padding) in [(0x100, 0), (2, 0), (0, 1)] {
            match lab.ask(&open(flags, padding)) {
                Err(Error::Errno(libc::EINVAL, _)) => {}
                other => return Err(format!("flags {flags:#x} padding {padding}: {other:?}")),
            }
        }
        Ok(())
    });
    finish(tap, lab);
}
