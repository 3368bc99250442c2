// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One case for each rule that a BEGIN reply must keep: the I/O fails (with EUCLEAN), the log names
//! the rule, and the rest of the mount does not notice.

use super::{finish, start_iomap};
use crate::disks::{Layout, Machine, empty_scenario};
use crate::ensure;
use crate::files::{Ended, cool, ended, fails_with, open_cold, pread, reader, same};
use crate::kmsg::Kmsg;
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{ADDR_NULL, iomap_type};
use lab::client::Lab;
use lab::misbehave::Action;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use std::os::unix::fs::MetadataExt;

const REJECTED: &str = "reply rejected";
const MAXBYTES_BLOCK: u64 = 1 << 63;

/// A rule, where to read, and what is changed in a good reply so that it breaks just this rule.
type Case = (&'static str, u64, &'static [(&'static str, u64)]);

const HOLE: u64 = iomap_type::HOLE as u64;
const INLINE: u64 = iomap_type::INLINE as u64;
const RETRY: u64 = iomap_type::RETRY_CACHE as u64;

/// The good reply is: mapped, offset 0, length 65536, on disk A; and a pure overwrite.
const CASES: &[Case] = &[
    ("unknown-type", 8192, &[("read.type", 5)]),
    ("unknown-type", 8192, &[("read.type", 0x0102)]),
    ("unknown-type", 8192, &[("write.type", 252)]),
    (
        "nocache-in-reply",
        8192,
        &[
            ("read.type", 253),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
        ],
    ),
    ("nocache-in-reply", 8192, &[("write.type", 253)]),
    (
        "retry-without-cache",
        8192,
        &[
            ("read.type", RETRY),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
        ],
    ),
    (
        "pure-overwrite-in-read",
        8192,
        &[
            ("read.type", 255),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
        ],
    ),
    ("unknown-flags", 8192, &[("read.flags", 1 << 15)]),
    ("unknown-flags", 8192, &[("read.flags", 1 << 10)]),
    ("unknown-flags", 8192, &[("write.flags", 1 << 11)]),
    ("zero-length", 0, &[("read.length", 0)]),
    ("zero-length", 8192, &[("write.length", 0)]),
    ("unaligned-offset", 8192, &[("read.offset", 512)]),
    ("unaligned-offset", 8192, &[("write.offset", 1)]),
    ("unaligned-length", 8192, &[("read.length", 65_024)]),
    ("unaligned-length", 8192, &[("write.length", 65_537)]),
    (
        "range-overflow",
        8192,
        &[
            ("read.type", HOLE),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
            ("read.offset", 4096),
            ("read.length", !4095),
        ],
    ),
    (
        "range-overflow",
        8192,
        &[("write.offset", 8192), ("write.length", !4095)],
    ),
    (
        "beyond-maxbytes",
        8192,
        &[
            ("read.type", HOLE),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
            ("read.offset", MAXBYTES_BLOCK),
        ],
    ),
    ("beyond-maxbytes", 8192, &[("write.offset", MAXBYTES_BLOCK)]),
    ("not-containing-pos", 8192, &[("read.length", 4096)]),
    ("not-containing-pos", 8192, &[("read.length", 8192)]),
    ("no-device", 8192, &[("read.dev", 0)]),
    ("no-device", 8192, &[("read.dev", 12_345)]),
    ("no-device", 8192, &[("read.dev", 0xffff_ffff)]),
    ("no-address", 8192, &[("read.addr", ADDR_NULL)]),
    (
        "unexpected-address",
        8192,
        &[("read.type", HOLE), ("read.dev", 0)],
    ),
    ("unexpected-address", 8192, &[("write.addr", 0)]),
    ("unaligned-address", 8192, &[("read.addr", 4096 + 256)]),
    ("unaligned-address", 8192, &[("read.addr", 4097)]),
    // The disk has 64 MiB.
    ("beyond-device", 8192, &[("read.addr", (64 << 20) - 61_440)]),
    ("beyond-device", 8192, &[("read.addr", 1 << 50)]),
    ("beyond-device", 8192, &[("read.addr", !511)]),
    (
        "beyond-device",
        8192,
        &[("read.type", 3), ("read.addr", 64 << 20)],
    ),
    (
        "inline-not-at-zero",
        8192,
        &[
            ("read.type", INLINE),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
            ("read.offset", 8192),
            ("read.length", 4096),
        ],
    ),
    (
        "inline-too-long",
        4096,
        &[
            ("read.type", INLINE),
            ("read.addr", ADDR_NULL),
            ("read.dev", 0),
            ("read.length", 8192),
        ],
    ),
];

fn scenario() -> Scenario {
    let mut s = empty_scenario(17);
    let mut layout = Layout::new();
    for name in ["victim", "witness"] {
        let addr = layout.take(0, 65_536, 4096);
        let extent = ExtentSpec::mapped(0, 65_536, 0, addr);
        s.file(name, FileSpec::iomap(65_536, 4096, vec![extent]));
    }
    // Disk C has logical blocks of 4096 bytes.
    let addr = layout.take(2, 65_536, 4096);
    let extent = ExtentSpec::mapped(0, 65_536, 2, addr);
    s.file("on-big-blocks", FileSpec::iomap(65_536, 4096, vec![extent]));
    let addr = layout.take(2, 65_536, 4096);
    let extent = ExtentSpec::mapped(0, 65_536, 2, addr);
    s.file(
        "blocks-too-small",
        FileSpec::iomap(65_536, 512, vec![extent]),
    );
    s
}

fn reads_well(lab: &Lab, scenario: &Scenario, name: &str) -> Outcome {
    let file = open_cold(&lab.path(name))?;
    let got = pread(&file, 0, 65_536).map_err(|e| format!("{name}: {e}"))?;
    let spec = crate::disks::file_spec(scenario, name)?;
    let model = lab::model::FileModel::new(scenario.seed, 0, spec)?;
    same(0, &got, &model.bytes(0..65_536)).map_err(|e| format!("{name}: {e}"))
}

/// The log must have lines of rejection, and all of them must name this inode and this rule.
fn check_log(log: &mut Kmsg, ino: u64, rule: &str) -> Outcome {
    let lines = log.wait_for(REJECTED, 1);
    ensure!(!lines.is_empty(), "the log says nothing");
    let inode = format!("inode {ino} ");
    let rule = format!(": BEGIN {REJECTED}: {rule}: ");
    for line in &lines {
        let right = line.contains(&inode) && line.contains(&rule);
        ensure!(right, "the log says {line:?}, not {inode:?} and {rule:?}");
    }
    Ok(())
}

fn rejected(lab: &mut Lab, scenario: &Scenario, name: &str, case: &Case) -> Outcome {
    let (rule, pos, changes) = case;
    let path = lab.path(name);
    let ino = std::fs::metadata(&path).map_err(|e| e.to_string())?.ino();
    let file = open_cold(&path)?;
    let mut log = Kmsg::open()?;
    let set = changes.iter().map(|(f, v)| ((*f).to_owned(), *v)).collect();
    lab.misbehave(name, Action::Fields { set })?;
    // That is not wrong in itself, but the kernel has looked often enough.
    let errno = match *rule {
        "retry-without-cache" => libc::EIO,
        _ => libc::EUCLEAN,
    };
    let result = fails_with("read", pread(&file, *pos, 100), &[errno]);
    ensure!(lab.fired()? > 0, "the server did not get to misbehave");
    check_log(&mut log, ino, rule)?;
    result?;
    reads_well(lab, scenario, "witness")?;
    lab.set_rules(Vec::new())?;
    cool(&file)?;
    if *rule != "block-below-device" {
        reads_well(lab, scenario, name)?;
    }
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario = scenario();
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    for case in CASES {
        let (rule, _, changes) = case;
        let changes: Vec<String> = changes.iter().map(|(f, v)| format!("{f}={v:#x}")).collect();
        tap.case(&format!("{rule} ({})", changes.join(" ")), || {
            rejected(&mut lab, &scenario, "victim", case)
        });
    }
    let unaligned = ("unaligned-address", 8192, &[("read.addr", 4096 + 512)][..]);
    tap.case(
        "unaligned-address (512 on a disk with blocks of 4096)",
        || rejected(&mut lab, &scenario, "on-big-blocks", &unaligned),
    );
    let too_small = ("block-below-device", 8192, &[][..]);
    tap.case(
        "block-below-device (blocks of 512 on a disk with blocks of 4096)",
        || rejected(&mut lab, &scenario, "blocks-too-small", &too_small),
    );
    tap.case(
        "a read mapping that starts later is a hole up to there",
        || {
            let file = open_cold(&lab.path("victim"))?;
            // The rest of the block device behind it is still within bounds.
            let set = vec![
                ("read.offset".to_owned(), 32_768),
                ("read.length".to_owned(), 32_768),
            ];
            lab.misbehave("victim", Action::Fields { set })?;
            let got = pread(&file, 8192, 4096).map_err(|e| e.to_string())?;
            same(8192, &got, &[0; 4096])?;
            lab.set_rules(Vec::new())?;
            reads_well(&lab, &scenario, "victim")
        },
    );
    for (what, f) in [
        (
            "FIEMAP",
            (|f| sys::fiemap(f, 0, 1 << 20, 8).map(|_| ())) as fn(&std::fs::File) -> _,
        ),
        ("SEEK_DATA", |f| {
            let to = rustix::fs::SeekFrom::Data(0);
            Ok(rustix::fs::seek(f, to).map(|_| ())?)
        }),
        ("SEEK_HOLE", |f| {
            let to = rustix::fs::SeekFrom::Hole(0);
            Ok(rustix::fs::seek(f, to).map(|_| ())?)
        }),
    ] {
        tap.case(&format!("{what} fails on a rejected reply"), || {
            let file = open_cold(&lab.path("victim"))?;
            let set = vec![("read.dev".to_owned(), 999)];
            lab.misbehave("victim", Action::Fields { set })?;
            fails_with(what, f(&file), &[libc::EUCLEAN])?;
            lab.set_rules(Vec::new())?;
            f(&file).map_err(|e| format!("{what} afterwards: {e}"))
        });
    }
    tap.case("mmap of what cannot be read gives SIGBUS", || {
        open_cold(&lab.path("victim"))?;
        let set = vec![("read.type".to_owned(), 77)];
        lab.misbehave("victim", Action::Fields { set })?;
        let ended = ended(reader("--mmap", &lab.path("victim"), 0, 65_536)?)?;
        ensure!(ended == Ended::Signal(libc::SIGBUS), "{ended:?}");
        lab.set_rules(Vec::new())?;
        reads_well(&lab, &scenario, "victim")
    });
    finish(tap, lab);
}
