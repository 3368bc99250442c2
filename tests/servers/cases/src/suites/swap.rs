// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Files that are swapped to: what is asked and told, what is refused, and that what was swapped out comes
//! back, also when the server is dead.

use super::bench::scenario;
use super::write::{create, name, pattern, rule, with_good_lab, with_lab};
use super::{finish, start_iomap};
use crate::disks::{Machine, disk};
use crate::ensure;
use crate::files::{fails_with, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{ADDR_NULL, iomap_ioend, iomap_op, iomap_type};
use lab::client::Lab;
use lab::control::Answer;
use lab::misbehave::Action;
use lab::scenario::Scenario;
use rustix::fs::FallocateFlags;
use rustix::mount::{MountFlags, mount_remount};
use std::ffi::CString;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const SIZE: usize = 2 << 20;
/// What is swapped out, in bytes.
const MEMORY: usize = 256 << 10;

/// A file with the header of swap space.
struct Subject {
    name: String,
    path: CString,
    file: File,
}

impl Subject {
    fn new(lab: &Lab, way: &str) -> Result<Self, String> {
        let name = name(way);
        let path = lab.path(&name);
        let file = create(&path)?;
        file.write_all_at(&pattern(1, SIZE), 0)
            .map_err(|e| format!("write: {e}"))?;
        let made = Command::new("mkswap")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let made = made.map_err(|e| format!("mkswap: {e}"))?;
        ensure!(made.success(), "mkswap: {made}");
        file.sync_all().map_err(|e| format!("fsync: {e}"))?;
        let path = CString::new(path.as_os_str().as_bytes()).map_err(|e| e.to_string())?;
        Ok(Self { name, path, file })
    }

    fn on(&self) -> Outcome {
        sys::swapon(&self.path).map_err(|e| format!("swapon: {e}"))
    }

    fn off(&self) -> Outcome {
        sys::swapoff(&self.path).map_err(|e| format!("swapoff: {e}"))
    }

    /// How many times the server was told that it is over.
    fn told_off(&self, lab: &mut Lab) -> Result<usize, String> {
        let ioends = lab.activity(&self.name)?.ioends;
        let off = |e: &&lab::control::Ioend| e.flags & iomap_ioend::SWAPOFF != 0;
        Ok(ioends.iter().filter(off).count())
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        // A case that failed half-way must not leave it to the next one.
        let _ = sys::swapoff(&self.path);
    }
}

/// Pages that have been swapped out.
fn swapped_out() -> Result<u64, String> {
    let stat = std::fs::read_to_string("/proc/vmstat").map_err(|e| format!("vmstat: {e}"))?;
    let line = stat.lines().find_map(|l| l.strip_prefix("pswpout "));
    line.and_then(|n| n.parse().ok())
        .ok_or("no pswpout".to_owned())
}

/// Memory with a pattern, which is swapped out.
fn swap_out(seed: u64) -> Result<Vec<u8>, String> {
    let mut data = pattern(seed, MEMORY);
    let before = swapped_out()?;
    let mut pages = 0;
    // It is advice: what is in use at the moment may stay.
    for _ in 0..20 {
        sys::page_out(&mut data).map_err(|e| format!("MADV_PAGEOUT: {e}"))?;
        pages = swapped_out()? - before;
        // All but what is not a whole page.
        if pages >= 60 {
            return Ok(data);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{pages} pages were swapped out"))
}

/// It has come back.
fn is_back(data: &[u8], seed: u64) -> Outcome {
    same(0, data, &pattern(seed, MEMORY)).map_err(|e| format!("swapped in: {e}"))
}

/// What was swapped out comes back.
fn works(lab: &mut Lab, way: &str) -> Outcome {
    let subject = Subject::new(lab, way)?;
    let before = lab.activity(&subject.name)?.begins.len();
    subject.on()?;
    let begins = lab.activity(&subject.name)?.begins.split_off(before);
    let asked = |b: &&lab::control::Begin| b.opflags & iomap_op::SWAPFILE != 0;
    let reports = begins.iter().filter(asked).count();
    ensure!(reports > 0, "the server was not asked");
    let other = |b: &&lab::control::Begin| {
        b.opflags & iomap_op::SWAPFILE != 0 && b.opflags & iomap_op::REPORT == 0
    };
    ensure!(
        !begins.iter().any(|b| other(&b)),
        "asked for what is no report"
    );
    for seed in 2..5 {
        is_back(&swap_out(seed)?, seed)?;
    }
    let data = swap_out(7)?;
    ensure!(subject.told_off(lab)? == 0, "it was told too early");
    subject.off()?;
    is_back(&data, 7)?;
    let told = subject.told_off(lab)?;
    ensure!(
        told == 1,
        "the server was told {told} times that it is over"
    );
    // It is a file like any other again.
    subject
        .file
        .write_all_at(b"again", 0)
        .map_err(|e| format!("write: {e}"))?;
    let got = pread(&subject.file, 0, 5).map_err(|e| format!("read: {e}"))?;
    ensure!(got == b"again", "what was written is not there");
    Ok(())
}

/// A mapping may begin before what is asked for. No page is taken twice for that: the header would be
/// overwritten.
fn overlapping(lab: &mut Lab) -> Outcome {
    let subject = Subject::new(lab, "in-place")?;
    let set = vec![("read.length".to_owned(), 4096)];
    let asked = (iomap_op::SWAPFILE, 0);
    let mut short = rule("IOMAP_BEGIN", &subject.name, asked, Action::Fields { set });
    // The first one is about the device.
    short.nth = Some(2);
    lab.set_rules(vec![short])?;
    subject.on()?;
    ensure!(lab.fired()? == 1, "there was no short mapping");
    lab.set_rules(Vec::new())?;
    is_back(&swap_out(14)?, 14)?;
    subject.off()?;
    subject.on()?;
    subject.off()
}

/// Nothing changes a file that is swapped to.
fn busy(lab: &mut Lab) -> Outcome {
    let subject = Subject::new(lab, "in-place")?;
    subject.on()?;
    let checked = refusals(lab, &subject);
    subject.off()?;
    checked
}

fn refusals(lab: &Lab, subject: &Subject) -> Outcome {
    let file = &subject.file;
    let busy = &[libc::ETXTBSY];
    fails_with("write", file.write_at(b"x", 8192), busy)?;
    let direct = super::bench::open_direct(&lab.path(&subject.name))?;
    let direct = sys::write_aligned(&direct, 8192, &[0; 4096]);
    fails_with("direct write", direct, busy)?;
    fails_with("truncate", file.set_len(4096), busy)?;
    for (what, mode) in [
        ("fallocate", FallocateFlags::empty()),
        (
            "punch",
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        ),
        ("zero", FallocateFlags::ZERO_RANGE),
        ("collapse", FallocateFlags::COLLAPSE_RANGE),
    ] {
        let result = rustix::fs::fallocate(file, mode, 8192, 4096);
        fails_with(what, result.map_err(Into::into), busy)?;
    }
    let mapped = sys::mmap_poke(file, 8192, b"x");
    fails_with("store through a mapping", mapped, busy)?;
    let gone = std::fs::remove_file(lab.path(&subject.name));
    fails_with("unlink", gone, &[libc::EPERM])?;
    let twice = sys::swapon(&subject.path);
    fails_with("swapon again", twice, &[libc::EBUSY])
}

/// What cannot be swapped to is refused as ext4 does it, and the server told that it is over.
fn refused(lab: &mut Lab) -> Outcome {
    let subject = Subject::new(lab, "in-place")?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&subject.file, punch, 65_536, 65_536).map_err(|e| e.to_string())?;
    expect_refused(lab, &subject, "a hole", libc::EINVAL)?;

    let subject = Subject::new(lab, "in-place")?;
    for (what, set, wanted) in [
        (
            "inline data",
            &[
                ("read.type", u64::from(iomap_type::INLINE)),
                ("read.length", 4096),
                ("read.addr", ADDR_NULL),
                ("read.dev", 0),
            ][..],
            libc::EINVAL,
        ),
        ("metadata in flight", &[("read.flags", 2)], libc::EINVAL),
        ("shared blocks", &[("read.flags", 4)], libc::EINVAL),
        (
            "a reservation",
            &[
                ("read.type", u64::from(iomap_type::DELALLOC)),
                ("read.addr", ADDR_NULL),
                ("read.dev", 0),
            ],
            libc::EINVAL,
        ),
        ("a broken rule", &[("read.length", 0)], libc::EUCLEAN),
        ("another rule", &[("read.addr", 1 << 50)], libc::EUCLEAN),
    ] {
        let set = set.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
        misbehave(lab, &subject, Action::Fields { set })?;
        expect_refused(lab, &subject, what, wanted)?;
    }
    // That of the first answer is that of the file.
    let other = *lab.ready().devices.get(1).ok_or("no second device")?;
    let set = vec![("read.dev".to_owned(), u64::from(other))];
    let asked = (iomap_op::SWAPFILE, 0);
    let mut later = rule("IOMAP_BEGIN", &subject.name, asked, Action::Fields { set });
    later.nth = Some(2);
    lab.set_rules(vec![later])?;
    expect_refused(lab, &subject, "another device later", libc::EINVAL)?;
    ensure!(lab.fired()? == 1, "there was no second answer");
    misbehave(lab, &subject, Action::Error { value: -libc::EIO })?;
    expect_refused(lab, &subject, "an error", libc::EIO)?;
    lab.set_rules(Vec::new())?;
    // It was for these reasons alone.
    subject.on()?;
    subject.off()
}

fn misbehave(lab: &mut Lab, subject: &Subject, action: Action) -> Outcome {
    let asked = (iomap_op::SWAPFILE, 0);
    Ok(lab.set_rules(vec![rule("IOMAP_BEGIN", &subject.name, asked, action)])?)
}

fn expect_refused(lab: &mut Lab, subject: &Subject, what: &str, wanted: i32) -> Outcome {
    let before = subject.told_off(lab)?;
    fails_with(what, sys::swapon(&subject.path), &[wanted])?;
    let told = subject.told_off(lab)? - before;
    ensure!(
        told == 1,
        "{what}: the server was told {told} times that it is over"
    );
    Ok(())
}

/// A server that dies does not take what was swapped out with it.
fn dead(lab: &mut Lab) -> Outcome {
    // swapoff(2) opens the file once more, which must not need the server.
    let enosys = Action::Error {
        value: -libc::ENOSYS,
    };
    let mut never = rule("OPEN", "", (0, 0), enosys);
    never.path = None;
    lab.set_rules(vec![never])?;
    let subject = Subject::new(lab, "unwritten")?;
    subject.on()?;
    let before = swap_out(9)?;
    lab.kill().map_err(|e| format!("kill: {e}"))?;
    is_back(&before, 9)?;
    is_back(&swap_out(10)?, 10)?;
    let left = swap_out(11)?;
    subject.off()?;
    is_back(&left, 11)?;
    drop(subject);
    super::unmount_dead(lab)
}

/// Not even the device goes away, if the server lets go of it.
fn let_go(lab: &mut Lab) -> Outcome {
    let subject = Subject::new(lab, "in-place")?;
    subject.on()?;
    let data = swap_out(13)?;
    let id = *lab.ready().devices.first().ok_or("no device")?;
    let closed = lab.ask(&lab::control::Command::BackingClose { id, times: 1 });
    let refused = matches!(closed, Err(lab::client::Error::Errno(libc::EBUSY, _)));
    is_back(&data, 13)?;
    subject.off()?;
    ensure!(refused, "the device could be closed");
    Ok(())
}

/// A device that was registered for reading only, while the mount was, is not written to later on: not by
/// swapping, and not otherwise.
fn read_only_device(lab: &mut Lab) -> Outcome {
    let top = lab.mountpoint().to_owned();
    let remount = |flags| mount_remount(&top, flags, "").map_err(|e| format!("remount: {e}"));
    remount(MountFlags::RDONLY)?;
    let device = disk("FI_DISK_A").and_then(|path| {
        let command = lab::control::Command::BackingOpen {
            path: Some(path),
            read_only: true,
            flags: 1,
            padding: 0,
            times: 1,
        };
        match lab.ask(&command) {
            Ok(Answer::Backing(id, _)) => Ok(id),
            other => Err(format!("BACKING_OPEN: {other:?}")),
        }
    });
    remount(MountFlags::empty())?;
    let device = device?;

    let subject = Subject::new(lab, "in-place")?;
    let set = || Action::Fields {
        set: vec![("read.dev".to_owned(), u64::from(device))],
    };
    misbehave(lab, &subject, set())?;
    expect_refused(lab, &subject, "a device for reading", libc::EROFS)?;
    let direct = super::bench::open_direct(&lab.path(&subject.name))?;
    let asked = (iomap_op::WRITE, 0);
    lab.set_rules(vec![rule("IOMAP_BEGIN", &subject.name, asked, set())])?;
    let written = sys::write_aligned(&direct, 8192, &[0; 4096]);
    fails_with("a write", written, &[libc::EROFS])?;
    lab.set_rules(Vec::new())?;
    subject.on()?;
    is_back(&swap_out(15)?, 15)?;
    subject.off()
}

/// The server is told by IOEND even if it does not want to know of others.
fn unknown(lab: &mut Lab) -> Outcome {
    let subject = Subject::new(lab, "in-place")?;
    let enosys = Action::Error {
        value: -libc::ENOSYS,
    };
    lab.set_rules(vec![rule("IOMAP_IOEND", &subject.name, (0, 0), enosys)])?;
    subject.on()?;
    let data = swap_out(12)?;
    subject.off()?;
    lab.set_rules(Vec::new())?;
    is_back(&data, 12)
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario: Scenario = scenario(89, None);
    let Some(mut lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    for way in ["in-place", "unwritten", "delalloc"] {
        tap.case(&format!("{way}: what was swapped out comes back"), || {
            works(&mut lab, way)
        });
    }
    tap.case("mappings that overlap", || overlapping(&mut lab));
    tap.case("the file cannot be changed meanwhile", || busy(&mut lab));
    tap.case("files that cannot be swapped to", || refused(&mut lab));
    tap.case("the device is in use", || let_go(&mut lab));
    tap.case("a device for reading only", || read_only_device(&mut lab));
    finish(tap, lab);
    let mut apart = scenario;
    apart.options.prepare = false;
    tap.case("a server without IOEND", || {
        with_good_lab(machine, &apart, unknown)
    });
    tap.case("the server dies", || with_lab(machine, &apart, dead));
}
