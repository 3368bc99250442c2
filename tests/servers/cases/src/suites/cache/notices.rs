// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Notifications: what was taken back is asked for again, what was put in is used, and what breaks a
//! rule is refused.

use super::super::bench::{Bench, open_direct, workshop};
use super::super::write::create;
use super::{SIZE, Subject};
use crate::ensure;
use crate::files::same;
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::{ADDR_NULL, iomap_op, iomap_type};
use lab::client::{Error, Lab};
use lab::control::Command;
use lab::misbehave::{Notice, RawIo};
use std::os::unix::fs::FileExt;

const NONE: (u64, u64) = (0, 0);

/// A subject of which everything is known, to read and to write.
fn warm(lab: &mut Lab) -> Result<Subject, String> {
    let subject = Subject::new(lab, "unwritten")?;
    subject.read()?;
    let direct = open_direct(&subject.path(lab))?;
    sys::write_aligned(&direct, 0, &subject.model).map_err(|e| format!("write: {e}"))?;
    let begins = subject.asked(lab, |_| {
        subject.cool()?;
        subject.read()?;
        sys::write_aligned(&direct, 0, &subject.model).map_err(|e| format!("write: {e}"))
    })?;
    ensure!(begins.is_empty(), "it does not get warm: {begins:?}");
    Ok(subject)
}

/// What was taken back is asked for again, and nothing else.
fn invals(lab: &mut Lab) -> Outcome {
    let subject = warm(lab)?;
    let direct = open_direct(&subject.path(lab))?;
    let block = |at: u64| {
        let got = sys::read_aligned(&direct, at, 4096).map_err(|e| format!("read: {e}"))?;
        same(at, &got, &subject.model[at as usize..at as usize + 4096])
    };
    let read = |lab: &mut Lab, at| Ok::<_, String>(subject.asked(lab, |_| block(at))?.len());
    lab.notify(&subject.name, Notice::Inval((65_536, 4096), NONE))?;
    ensure!(read(lab, 8192)? == 0, "what is elsewhere was forgotten");
    ensure!(read(lab, 65_536)? == 1, "the range was not forgotten");
    ensure!(read(lab, 65_536)? == 0, "it is not known again");
    lab.notify(&subject.name, Notice::Inval(NONE, NONE))?;
    ensure!(read(lab, 65_536)? == 0, "nothing was something");
    lab.notify(&subject.name, Notice::Inval((131_072, u64::MAX), NONE))?;
    ensure!(read(lab, 126_976)? == 0, "what is in front was forgotten");
    ensure!(
        read(lab, SIZE as u64 - 4096)? == 1,
        "the end was not forgotten"
    );
    // The write side alone: reading does not ask, writing does.
    let subject = warm(lab)?;
    lab.notify(&subject.name, Notice::Inval(NONE, (65_536, 4096)))?;
    ensure!(read(lab, 65_536)? == 0, "the read side was forgotten");
    let data = subject.model[65_536..69_632].to_vec();
    let write = || sys::write_aligned(&direct, 65_536, &data).map_err(|e| format!("write: {e}"));
    let begins = subject.asked(lab, |_| write())?;
    let writes = begins.iter().any(|b| b.opflags & iomap_op::WRITE != 0);
    ensure!(writes && begins.len() == 1, "a write asked {begins:?}");
    Ok(())
}

/// What was put in is used. Here, it is what another file has.
fn upserts(lab: &mut Lab) -> Outcome {
    let subject = warm(lab)?;
    let name = format!("{}/other", workshop("unwritten", 4096));
    let other = create(&lab.path(&name))?;
    other
        .write_all_at(&[0x77; 4096], 0)
        .map_err(|e| format!("write: {e}"))?;
    other.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let there = *lab.map(&name)?.entries.first().ok_or("no blocks")?;
    let dev = *lab.ready().devices.get(there.dev).ok_or("no device")?;
    let lie = RawIo::mapped(65_536, 4096, there.addr, dev);
    let notice = Notice::Upsert(lie, RawIo::no_cache(65_536, 4096));
    lab.notify(&subject.name, notice)?;
    let direct = open_direct(&subject.path(lab))?;
    let read = || sys::read_aligned(&direct, 65_536, 4096).map_err(|e| format!("read: {e}"));
    let mut got = Vec::new();
    let begins = subject.asked(lab, |_| {
        got = read()?;
        Ok(())
    })?;
    ensure!(begins.is_empty(), "it asked: {begins:?}");
    same(65_536, &got, &[0x77; 4096])?;
    subject.forget(lab)?;
    same(65_536, &read()?, &subject.model[65_536..69_632])?;
    subject.cool()?;
    subject.read()
}

fn errno_of(result: Result<(), Error>) -> Result<i32, String> {
    match result {
        Ok(()) => Ok(0),
        Err(Error::Errno(errno, _)) => Ok(errno),
        Err(other) => Err(other.to_string()),
    }
}

/// What breaks a rule is refused, and leaves everything as it was.
fn rules(lab: &mut Lab) -> Outcome {
    let subject = warm(lab)?;
    let first = *lab.map(&subject.name)?.entries.first().ok_or("no blocks")?;
    let dev = *lab.ready().devices.get(first.dev).ok_or("no device")?;
    let good = RawIo::mapped(0, 4096, first.addr, dev);
    let off = RawIo::no_cache(0, 4096);
    let without = |kind| RawIo::without(kind, 0, 4096);
    let cases = [
        (
            "an unknown type",
            RawIo {
                kind: 99,
                addr: ADDR_NULL,
                ..good
            },
        ),
        (
            "an unknown flag",
            RawIo {
                flags: 1 << 15,
                ..good
            },
        ),
        ("no length", RawIo { length: 0, ..good }),
        (
            "an unaligned offset",
            RawIo {
                offset: 100,
                ..good
            },
        ),
        (
            "an unaligned length",
            RawIo {
                length: 100,
                ..good
            },
        ),
        (
            "a range that overflows",
            RawIo {
                offset: !4095,
                length: 8192,
                ..good
            },
        ),
        ("no device", RawIo { dev: 0, ..good }),
        ("an unknown device", RawIo { dev: 4242, ..good }),
        (
            "no address",
            RawIo {
                addr: ADDR_NULL,
                ..good
            },
        ),
        (
            "an address for a hole",
            RawIo {
                kind: iomap_type::HOLE,
                ..good
            },
        ),
        (
            "an unaligned address",
            RawIo {
                addr: good.addr + 100,
                ..good
            },
        ),
        (
            "beyond the device",
            RawIo {
                addr: 1 << 50,
                ..good
            },
        ),
        ("inline data", without(iomap_type::INLINE)),
        ("RETRY_CACHE", without(iomap_type::RETRY_CACHE)),
    ];
    for (what, broken) in cases {
        for (side, notice) in [
            ("read", Notice::Upsert(broken, off)),
            ("write", Notice::Upsert(off, broken)),
        ] {
            let errno = errno_of(lab.notify(&subject.name, notice))?;
            ensure!(errno == libc::EUCLEAN, "{what}, {side}: errno {errno}");
        }
    }
    let pure = without(iomap_type::PURE_OVERWRITE);
    let errno = errno_of(lab.notify(&subject.name, Notice::Upsert(pure, off)))?;
    ensure!(errno == libc::EUCLEAN, "PURE_OVERWRITE to read: {errno}");
    for (what, read, write) in [
        ("nothing", off, off),
        ("PURE_OVERWRITE to write", off, pure),
        ("a good mapping", good, off),
    ] {
        let errno = errno_of(lab.notify(&subject.name, Notice::Upsert(read, write)))?;
        ensure!(errno == 0, "{what}: errno {errno}");
    }
    subject.cool()?;
    let begins = subject.asked(lab, |_| subject.read())?;
    ensure!(begins.is_empty(), "something was lost: {begins:?}");
    Ok(())
}

/// What is not for an iomap inode that the kernel knows is refused.
fn addresses(lab: &mut Lab) -> Outcome {
    let subject = warm(lab)?;
    let off = RawIo::no_cache(0, 4096);
    let all = (0, u64::MAX);
    let dir = workshop("unwritten", 4096);
    for (kind, notice, whole) in [
        ("upsert", Notice::Upsert(off, off), 80),
        ("inval", Notice::Inval(all, all), 48),
    ] {
        let mut say = |path: &str, nodeid, attr_ino, size| {
            let command = Command::Notify {
                path: path.to_owned(),
                notice: notice.clone(),
                nodeid,
                attr_ino,
                size,
            };
            errno_of(lab.ask(&command).map(|_| ()))
        };
        let name = &subject.name;
        for (what, got, want) in [
            ("a good one", say(name, None, None, None)?, 0),
            (
                "an unknown inode",
                say(name, Some(999_999), None, None)?,
                libc::ENOENT,
            ),
            (
                "another inode number",
                say(name, None, Some(7), None)?,
                libc::EINVAL,
            ),
            ("a directory", say(&dir, None, None, None)?, libc::EINVAL),
            (
                "a short message",
                say(name, None, None, Some(whole - 8))?,
                libc::EINVAL,
            ),
            (
                "an empty message",
                say(name, None, None, Some(0))?,
                libc::EINVAL,
            ),
            (
                "a long message",
                say(name, None, None, Some(whole + 8))?,
                libc::EINVAL,
            ),
        ] {
            ensure!(got == want, "{kind}: {what}: errno {got} instead of {want}");
        }
    }
    subject.cool()?;
    subject.read()
}

/// Runs them.
pub fn run(tap: &mut Tap, bench: &mut Bench) {
    let lab = &mut bench.lab;
    tap.case("what was taken back is asked for", || invals(lab));
    tap.case("what was put in is used", || upserts(lab));
    tap.case("upserts that break a rule", || rules(lab));
    tap.case("notifications for nobody", || addresses(lab));
}
