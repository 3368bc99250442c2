// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server says of its filesystem in CONFIG: it is so, or the mount fails and the log says why.

use super::{finish, unmount_and_wait};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{errno, same};
use crate::kmsg::Kmsg;
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{Attr, AttrOut};
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::model::FileModel;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use lab::store::Policy;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};
use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, MetadataExt};

const SIZE: u64 = 65_536;
/// What everything fails with when CONFIG was refused.
const REFUSED: [i32; 3] = [libc::ENOTCONN, libc::ECONNREFUSED, libc::EIO];
const SID: usize = 8;

fn scenario() -> Scenario {
    let mut s = empty_scenario(51);
    // Others may have larger blocks than are said here.
    s.devices.truncate(1);
    let addr = Layout::new().take(0, 2 * SIZE, 4096);
    s.file(
        "file",
        FileSpec::iomap(SIZE, 4096, vec![ExtentSpec::mapped(0, SIZE, 0, addr)]),
    );
    // In blocks that only the filesystem as a whole is said to have, see `without_blksize`.
    let addr = addr + SIZE;
    let extent = ExtentSpec::mapped(0, 1024, 0, addr);
    s.file("small", FileSpec::iomap(3072, 1024, vec![extent]));
    s.options.identity = true;
    s.options.policy = Some(Policy::default());
    s
}

fn rule(action: Action) -> Rule {
    Rule {
        op: "IOMAP_CONFIG".into(),
        path: None,
        with: 0,
        without: 0,
        nth: None,
        action,
        then_errno: None,
    }
}

fn fields(set: &[(&str, u64)]) -> Action {
    let set = set.iter().map(|(name, value)| ((*name).to_owned(), *value));
    Action::Fields { set: set.collect() }
}

/// The mount fails, and the log says this, once.
fn refused(machine: &Machine, mut scenario: Scenario, action: Action, why: &str) -> Outcome {
    scenario.rules = vec![rule(action)];
    let mut log = Kmsg::open()?;
    let lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint);
    let _lab = match (lab, scenario.options.sync_init) {
        (Ok(_), true) => return Err("it is mounted".into()),
        (Err(_), true) => None,
        (lab, false) => {
            let lab = lab?;
            match std::fs::metadata(lab.path("file")) {
                Err(e) if REFUSED.contains(&errno(&e)) => {}
                other => return Err(format!("stat: {other:?}")),
            }
            // It goes on when this ends.
            Some(lab)
        }
    };
    let lines = log.wait_for("CONFIG", 1);
    ensure!(
        lines.len() == 1,
        "{} lines in the log: {lines:?}",
        lines.len()
    );
    let end = format!("rejected: {why}");
    ensure!(lines[0].ends_with(&end), "the log says {:?}", lines[0]);
    Ok(())
}

fn logical_block_size(disk: &str) -> Option<u32> {
    let path = std::env::var(disk).ok()?;
    let name = path.rsplit('/').next()?;
    let text = std::fs::read_to_string(format!("/sys/class/block/{name}/queue/logical_block_size"));
    text.ok()?.trim().parse().ok()
}

/// The mount works with this change.
fn accepted(machine: &Machine, mut scenario: Scenario, action: Action) -> Outcome {
    scenario.rules = vec![rule(action)];
    let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
    std::fs::metadata(lab.path("file")).map_err(|e| format!("stat: {e}"))?;
    ensure!(lab.fired()? == 1, "CONFIG was asked {} times", lab.fired()?);
    unmount_and_wait(&mut lab)
}

fn open(lab: &Lab, name: &str) -> Result<File, String> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    options
        .open(lab.path(name))
        .map_err(|e| format!("{name}: {e}"))
}

fn links(lab: &Lab) -> Outcome {
    drop(open(lab, "linked")?);
    let link = |n: u32| std::fs::hard_link(lab.path("linked"), lab.path(&format!("link-{n}")));
    for n in [1, 2] {
        link(n).map_err(|e| format!("link {n}: {e}"))?;
    }
    match link(3) {
        Err(e) if errno(&e) == libc::EMLINK => Ok(()),
        other => Err(format!("the fourth name: {other:?}")),
    }
}

fn times(lab: &Lab) -> Outcome {
    drop(open(lab, "timed")?);
    let path = lab.path("timed");
    for (set, wanted) in [
        ((5000, 123_456_789), (5000, 123_000_000)),
        ((1, 5), (1000, 0)),
        ((5_000_000_000, 5), (4_000_000_000, 0)),
    ] {
        let time = Timespec {
            tv_sec: set.0,
            tv_nsec: set.1,
        };
        let both = Timestamps {
            last_access: time,
            last_modification: time,
        };
        rustix::fs::utimensat(CWD, &path, &both, AtFlags::empty())
            .map_err(|e| format!("utimensat: {e}"))?;
        let found = std::fs::metadata(&path).map_err(|e| e.to_string())?;
        let found = (found.mtime(), found.mtime_nsec());
        ensure!(found == wanted, "{set:?} has become {found:?}");
    }
    Ok(())
}

fn largest(lab: &Lab) -> Outcome {
    let file = open(lab, "large")?;
    let most = 1 << 30;
    file.set_len(most)
        .map_err(|e| format!("truncate to {most}: {e}"))?;
    for result in [
        file.set_len(most + 1),
        file.write_at(b"x", most).map(|_| ()),
    ] {
        match result {
            Err(e) if e.kind() == ErrorKind::FileTooLarge => {}
            other => return Err(format!("beyond the largest size: {other:?}")),
        }
    }
    let n = file
        .write_at(b"xyz", most - 1)
        .map_err(|e| format!("write: {e}"))?;
    ensure!(n == 1, "{n} bytes at the end");
    Ok(())
}

fn identity(lab: &Lab) -> Outcome {
    let root = File::open(lab.mountpoint()).map_err(|e| e.to_string())?;
    let uuid = sys::fs_uuid(&root).map_err(|e| format!("GETFSUUID: {e}"))?;
    let wanted: Vec<u8> = (1..=16).collect();
    ensure!(uuid == wanted, "UUID {uuid:?}");
    let size = sys::fs_block_size(&root).map_err(|e| format!("FIGETBSZ: {e}"))?;
    ensure!(size == 1024, "blocks of {size}");
    // The two halves of the UUID, one upon the other.
    let fsid = sys::fsid(&root).map_err(|e| format!("statfs: {e}"))?;
    let half = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&wanted[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    ensure!(fsid == half(0) ^ half(8), "fsid {fsid:x}");
    Ok(())
}

/// The block size of an inode that has none is that of the filesystem.
fn without_blksize(machine: &Machine) -> Outcome {
    const BLKSIZE_IN_ENTRY: usize = 120;
    let mut scenario = scenario();
    let mut lookup = rule(Action::Patch {
        at: BLKSIZE_IN_ENTRY,
        bytes: vec![0; 4],
    });
    lookup.op = "LOOKUP".into();
    scenario.rules = vec![lookup];
    let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
    let attr = std::fs::metadata(lab.path("small")).map_err(|e| format!("stat: {e}"))?;
    ensure!(attr.blksize() == 1024, "blocks of {}", attr.blksize());
    let data = std::fs::read(lab.path("small")).map_err(|e| format!("read: {e}"))?;
    let model = FileModel::new(scenario.seed, 0, file_spec(&scenario, "small")?)?;
    same(0, &data, &model.bytes(0..3072))?;
    unmount_and_wait(&mut lab)
}

/// Root with another number.
fn other_root(machine: &Machine, id: u64) -> Outcome {
    let mut scenario = scenario();
    scenario.options.identity = false;
    scenario.options.root_nodeid = Some(id);
    let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
    let attr = std::fs::metadata(lab.mountpoint()).map_err(|e| format!("stat: {e}"))?;
    ensure!(attr.is_dir(), "the root is no directory");
    // Its first file has the number that the root would have.
    std::fs::metadata(lab.path("file")).map_err(|e| format!("file: {e}"))?;
    drop(open(&lab, "made")?);
    let names = std::fs::read_dir(lab.mountpoint()).map_err(|e| format!("readdir: {e}"))?;
    ensure!(names.count() == 3, "not three names");
    let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
    let shown = format!("root_nodeid={id}");
    let at = lab.mountpoint().display().to_string();
    let line = mounts.lines().find(|line| line.contains(&at));
    let found = line.is_some_and(|line| line.contains(&shown)) || id == 1;
    ensure!(found, "/proc/self/mounts does not say {shown}");
    let violations = lab.violations()?;
    ensure!(violations.is_empty(), "{violations:?}");
    unmount_and_wait(&mut lab)
}

/// The root has this number, and the server says it of something else, or something else of the root:
/// the call fails, and unmounting works.
fn false_root(machine: &Machine, id: u64, op: &str, action: Action) -> Outcome {
    let mut scenario = scenario();
    scenario.options.identity = false;
    scenario.options.root_nodeid = Some(id);
    // So that the server is asked for the root, too.
    scenario.options.valid_secs = 0;
    let mut lie = rule(action);
    lie.op = op.into();
    scenario.rules = vec![lie];
    let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
    let result = match op {
        "CREATE" => File::create(lab.path("made")).map(drop),
        "GETATTR" => std::fs::read_dir(lab.mountpoint()).map(drop),
        _ => std::fs::metadata(lab.path("file")).map(drop),
    };
    // Its errno may be that of the server, which was asked for the root's attributes as a file's.
    ensure!(result.is_err(), "it is taken");
    ensure!(lab.fired()? > 0, "the server did not get to that");
    lab.set_rules(Vec::new())?;
    // Whatever comes of these, they end.
    let _ = std::fs::metadata(lab.mountpoint());
    let _ = std::fs::metadata(lab.path("file"));
    unmount_and_wait(&mut lab)
}

/// All that a server can say, and that it is so, when mount(2) waits for it and when not.
fn everything(tap: &mut Tap, machine: &Machine, sync_init: bool) {
    let how = if sync_init {
        "CONFIG, SYNC_INIT"
    } else {
        "CONFIG"
    };
    let lab = tap.case(&format!("{how}: every field is set"), || {
        let mut scenario = scenario();
        scenario.options.sync_init = sync_init;
        Lab::start(&machine.lab, &scenario, &machine.mountpoint)
    });
    if let Some(lab) = lab {
        tap.case(&format!("{how}: UUID, fsid and block size"), || {
            identity(&lab)
        });
        tap.case(&format!("{how}: most links"), || links(&lab));
        tap.case(&format!("{how}: range and granularity of times"), || {
            times(&lab)
        });
        tap.case(&format!("{how}: the largest size"), || largest(&lab));
        finish(tap, lab);
    }
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    everything(tap, machine, false);
    everything(tap, machine, true);

    let patch = |at, bytes: &[u8]| Action::Patch {
        at,
        bytes: bytes.to_vec(),
    };
    let small = "s_blocksize: less than 512 or the logical block size of a device";
    for (what, action, why) in [
        ("an empty name", patch(SID, &[0]), "s_id: empty"),
        (
            "a name with a line break",
            patch(SID, b"a\nb"),
            "s_id: not a word of printable characters",
        ),
        (
            "a UUID of no bytes",
            fields(&[("config.s_uuid_len", 0)]),
            "s_uuid_len: not from 1 to 16",
        ),
        (
            "a UUID of 17 bytes",
            fields(&[("config.s_uuid_len", 17)]),
            "s_uuid_len: not from 1 to 16",
        ),
        (
            "blocks of 0",
            fields(&[("config.s_blocksize", 0)]),
            "s_blocksize: not a power of two",
        ),
        (
            "blocks of 1536",
            fields(&[("config.s_blocksize", 1536)]),
            "s_blocksize: not a power of two",
        ),
        (
            "blocks of 256",
            fields(&[("config.s_blocksize", 256)]),
            small,
        ),
        (
            "blocks of 2 GiB",
            fields(&[("config.s_blocksize", 1 << 31)]),
            "s_blocksize: more than the page cache supports",
        ),
        (
            "a granularity of 0",
            fields(&[("config.s_time_gran", 0)]),
            "s_time_gran: not from 1 to 1000000000",
        ),
        (
            "a granularity of more than a second",
            fields(&[("config.s_time_gran", 1_000_000_001)]),
            "s_time_gran: not from 1 to 1000000000",
        ),
        (
            "times that end before they begin",
            fields(&[("config.s_time_min", 5_000_000_000)]),
            "s_time_min: after s_time_max",
        ),
        (
            "a largest size of 0",
            fields(&[("config.s_maxbytes", 0)]),
            "s_maxbytes: not positive",
        ),
        (
            "a negative largest size",
            fields(&[("config.s_maxbytes", u64::MAX)]),
            "s_maxbytes: not positive",
        ),
        (
            "flags that do not exist",
            fields(&[("config.flags", 1 << 7)]),
            "unknown flags",
        ),
        ("padding", patch(57, &[1]), "padding is not zero"),
        (
            "an end before a field that is set",
            Action::Resize { payload: 92 },
            "s_maxbytes: set but missing",
        ),
        (
            "flags without fields",
            Action::Resize { payload: 8 },
            "s_id: set but missing",
        ),
    ] {
        tap.case(&format!("CONFIG: {what} is refused"), || {
            refused(machine, scenario(), action.clone(), why)
        });
        tap.case(&format!("CONFIG, SYNC_INIT: {what} is refused"), || {
            let mut scenario = scenario();
            scenario.options.sync_init = true;
            refused(machine, scenario, action, why)
        });
    }
    if logical_block_size("FI_DISK_C") == Some(4096) {
        tap.case(
            "CONFIG: blocks smaller than those of a device are refused",
            || {
                let mut scenario = scenario();
                scenario.devices = empty_scenario(51).devices;
                refused(machine, scenario, fields(&[]), small)
            },
        );
    }
    for (what, action) in [
        ("a short UUID", fields(&[("config.s_uuid_len", 1)])),
        ("any number of links", fields(&[("config.s_max_links", 0)])),
        (
            "all of time",
            fields(&[
                ("config.s_time_min", i64::MIN as u64),
                ("config.s_time_max", i64::MAX as u64),
            ]),
        ),
        (
            "an odd granularity",
            fields(&[("config.s_time_gran", 999_999_999)]),
        ),
        (
            "a granularity of a second",
            fields(&[("config.s_time_gran", 1_000_000_000)]),
        ),
        (
            "one time only",
            fields(&[("config.s_time_min", 7), ("config.s_time_max", 7)]),
        ),
        ("a file of one byte", fields(&[("config.s_maxbytes", 1)])),
        (
            "the largest file of all",
            fields(&[("config.s_maxbytes", i64::MAX as u64)]),
        ),
        ("no cache", fields(&[("config.cache_maxbytes", 0)])),
        ("a cache of a byte", fields(&[("config.cache_maxbytes", 1)])),
        (
            "a cache without bound",
            fields(&[("config.cache_maxbytes", u64::from(u32::MAX))]),
        ),
        (
            "a name without an end",
            patch(SID, b"abcdefghijklmnopqrstuvwxyz012345"),
        ),
    ] {
        tap.case(&format!("CONFIG: {what} is accepted"), || {
            accepted(machine, scenario(), action)
        });
    }
    tap.case(
        "CONFIG: an answer that ends behind what is set is accepted",
        || {
            let mut scenario = scenario();
            scenario.options.identity = false;
            scenario.options.maxbytes = Some(1 << 30);
            accepted(machine, scenario, Action::Resize { payload: 96 })
        },
    );
    tap.case("CONFIG: the block size of files that state none", || {
        without_blksize(machine)
    });
    for id in [1, 1 << 40, u64::MAX] {
        tap.case(&format!("root_nodeid={id}"), || other_root(machine, id));
    }
    for id in [1, 7, u64::MAX] {
        let number = || patch(0, &id.to_ne_bytes());
        let mode = offset_of!(AttrOut, attr) + offset_of!(Attr, mode);
        for (what, op, action) in [
            ("a file has it", "LOOKUP", number()),
            ("a new file has it", "CREATE", number()),
            (
                "it is a file",
                "GETATTR",
                patch(mode, &0o100_644_u32.to_ne_bytes()),
            ),
        ] {
            tap.case(&format!("root_nodeid={id}, and {what}"), || {
                false_root(machine, id, op, action)
            });
        }
    }
    tap.case("root_nodeid=0 is refused", || {
        let mut scenario = scenario();
        scenario.options.root_nodeid = Some(0);
        match Lab::start(&machine.lab, &scenario, &machine.mountpoint) {
            Ok(_) => Err("it is mounted".into()),
            Err(_) => Ok(()),
        }
    });
}
