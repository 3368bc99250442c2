// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Answers to writes that the protocol forbids: whoever waits for the data gets EUCLEAN, the log
//! names the rule, and nothing is written anywhere.

use super::super::bench::Bench;
use super::{create, name, pattern, rule};
use crate::ensure;
use crate::files::{fails_with, pread, same};
use crate::kmsg::Kmsg;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{ADDR_NULL, iomap_flags, iomap_op, iomap_type};
use lab::misbehave::Action;
use std::os::unix::fs::{FileExt, MetadataExt};

const SIZE: usize = 65_536;

/// A rule, and what is changed in a good answer so that it breaks just this rule.
type Case = (&'static str, &'static [(&'static str, u64)]);

const HOLE: u64 = iomap_type::HOLE as u64;
const MAPPED: u64 = iomap_type::MAPPED as u64;
const UNWRITTEN: u64 = iomap_type::UNWRITTEN as u64;
const DELALLOC: u64 = iomap_type::DELALLOC as u64;
const INLINE: u64 = iomap_type::INLINE as u64;
const ANON: u64 = iomap_flags::ANON_WRITE as u64;
/// Stand for the address and the device of the first block.
const ADDR: u64 = u64::MAX - 1;
const DEV: u64 = u64::MAX - 2;
/// A write side of its own, with blocks.
const BLOCKS: [(&str, u64); 3] = [
    ("write.type", MAPPED),
    ("write.addr", ADDR),
    ("write.dev", DEV),
];

/// The good answer is: mapped blocks to read at 8192, and a pure overwrite to write.
const WRITES: &[Case] = &[
    (
        "not-containing-pos",
        &[BLOCKS[0], BLOCKS[1], BLOCKS[2], ("write.offset", 12_288)],
    ),
    (
        "not-containing-pos",
        &[
            BLOCKS[0],
            BLOCKS[1],
            BLOCKS[2],
            ("write.offset", 4096),
            ("write.length", 4096),
        ],
    ),
    (
        "not-containing-pos",
        &[
            ("write.type", DELALLOC),
            ("write.offset", 0),
            ("write.length", 8192),
        ],
    ),
    ("zero-length", &[("write.length", 0)]),
    ("unaligned-offset", &[("write.offset", 512)]),
    ("unaligned-length", &[("write.length", 100)]),
    ("unknown-type", &[("write.type", 99)]),
    ("nocache-in-reply", &[("write.type", 253)]),
    ("unknown-flags", &[("write.flags", 1 << 15)]),
    ("unexpected-address", &[("write.addr", 4096)]),
    ("hole-for-write", &[("write.type", HOLE)]),
    (
        "anon-write",
        &[BLOCKS[0], BLOCKS[1], BLOCKS[2], ("write.flags", ANON)],
    ),
    ("no-device", &[("write.type", MAPPED), ("write.addr", 4096)]),
    (
        "no-device",
        &[
            ("write.type", UNWRITTEN),
            ("write.addr", 4096),
            ("write.dev", 4242),
        ],
    ),
    ("no-address", &[("write.type", MAPPED), ("write.dev", DEV)]),
    (
        "unaligned-address",
        &[BLOCKS[0], BLOCKS[2], ("write.addr", 4096 + 100)],
    ),
    (
        "beyond-device",
        &[BLOCKS[0], BLOCKS[2], ("write.addr", 1 << 50)],
    ),
];

/// The same for writeback, at 0.
const WRITEBACKS: &[Case] = &[
    (
        "not-containing-pos",
        &[BLOCKS[0], BLOCKS[1], BLOCKS[2], ("write.offset", 131_072)],
    ),
    ("zero-length", &[("write.length", 0)]),
    ("unknown-type", &[("write.type", 77)]),
    ("delalloc-in-writeback", &[("write.type", DELALLOC)]),
    (
        "delalloc-in-writeback",
        &[
            ("read.type", DELALLOC),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
            ("read.flags", 0),
        ],
    ),
    (
        "inline-in-writeback",
        &[
            ("write.type", INLINE),
            ("write.offset", 0),
            ("write.length", 4096),
        ],
    ),
    (
        "anon-write",
        &[BLOCKS[0], BLOCKS[1], BLOCKS[2], ("write.flags", ANON)],
    ),
    ("no-device", &[("write.type", MAPPED), ("write.addr", 0)]),
    (
        "beyond-device",
        &[BLOCKS[0], BLOCKS[2], ("write.addr", 1 << 50)],
    ),
];

/// For IOEND of a file that had 65536 bytes on disk and gets some more.
const IOENDS: &[Case] = &[
    ("newsize-shrinks", &[("ioend.newsize", 0)]),
    ("newsize-shrinks", &[("ioend.newsize", SIZE as u64 - 1)]),
    (
        "newsize-beyond-data",
        &[("ioend.newsize", SIZE as u64 + 4097)],
    ),
    ("newsize-beyond-data", &[("ioend.newsize", 1 << 40)]),
    ("newsize-beyond-data", &[("ioend.newsize", u64::MAX)]),
];

/// The log must name the rule for this inode, and no other.
fn check_log(log: &mut Kmsg, ino: u64, what: &str, rule: &str) -> Outcome {
    let lines = log.wait_for("reply rejected", 1);
    ensure!(!lines.is_empty(), "the log says nothing");
    let inode = format!("inode {ino} ");
    let rule = format!(": {what} reply rejected: {rule}: ");
    let wrong = lines
        .iter()
        .find(|l| !(l.contains(&inode) && l.contains(&rule)));
    match wrong {
        None => Ok(()),
        Some(line) => Err(format!("the log says {line:?}, not {inode:?} and {rule:?}")),
    }
}

fn changes(case: &Case) -> String {
    let changes: Vec<String> = case.1.iter().map(|(f, v)| format!("{f}={v:#x}")).collect();
    changes.join(" ")
}

fn lie(bench: &mut Bench, way: &str, when: When, case: &Case) -> Outcome {
    let name = name(way);
    let file = create(&bench.lab.path(&name))?;
    let ino = file.metadata().map_err(|e| e.to_string())?.ino();
    let mut model = pattern(11, SIZE);
    file.write_all_at(&model, 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let mut log = Kmsg::open()?;
    let first = *bench.lab.map(&name)?.entries.first().ok_or("no blocks")?;
    let dev = bench.lab.ready().devices.get(first.dev);
    let dev = u64::from(*dev.ok_or("no device")?);
    let value = |v: u64| match v {
        ADDR => first.addr,
        DEV => dev,
        v => v,
    };
    let set = case.1.iter();
    let set = set.map(|(f, v)| ((*f).to_owned(), value(*v))).collect();
    let (op, flags) = match when {
        When::Write => ("BEGIN", (iomap_op::WRITE, iomap_op::WRITEBACK)),
        When::Writeback => ("BEGIN", (iomap_op::WRITEBACK, 0)),
        When::Ioend => ("IOEND", (0, 0)),
    };
    let lie = rule(&format!("IOMAP_{op}"), &name, flags, Action::Fields { set });
    bench.lab.set_rules(vec![lie])?;
    let (offset, data) = match when {
        When::Ioend => (SIZE as u64, &[0x77; 4096][..]),
        When::Write => (8192, &[0x77; 100][..]),
        When::Writeback => (0, &[0x77; 100][..]),
    };
    let written = file.write_at(data, offset);
    if when == When::Write {
        fails_with("write", written, &[libc::EUCLEAN])?;
        let store = crate::sys::mmap_poke(&file, offset, data);
        fails_with("a store", store, &[libc::EFAULT])?;
    } else {
        written.map_err(|e| format!("write: {e}"))?;
        fails_with("fsync", file.sync_all(), &[libc::EUCLEAN, libc::EIO])?;
    }
    ensure!(
        bench.lab.fired()? > 0,
        "the server did not get to misbehave"
    );
    check_log(&mut log, ino, op, case.0)?;
    bench.lab.set_rules(Vec::new())?;
    // Once the server is honest, all is well again.
    if when != When::Write {
        model.resize(model.len().max(offset as usize + data.len()), 0);
        model[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        file.write_all_at(data, offset)
            .map_err(|e| format!("write afterwards: {e}"))?;
    }
    file.sync_all()
        .map_err(|e| format!("fsync afterwards: {e}"))?;
    let got = pread(&file, 0, SIZE * 2).map_err(|e| format!("read: {e}"))?;
    same(0, &got, &model)?;
    bench.compare(&file, &name, &model)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Write,
    Writeback,
    Ioend,
}

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    for (when, cases) in [
        (When::Write, WRITES),
        (When::Writeback, WRITEBACKS),
        (When::Ioend, IOENDS),
    ] {
        let what = match when {
            When::Write => "a write",
            When::Writeback => "writeback",
            When::Ioend => "IOEND",
        };
        for case in cases {
            tap.case(&format!("{what}: {} ({})", case.0, changes(case)), || {
                // With "unwritten", there is always an IOEND for what is appended.
                let result = lie(bench, "unwritten", when, case);
                bench.lab.set_rules(Vec::new())?;
                result
            });
        }
    }
}
