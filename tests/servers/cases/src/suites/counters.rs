// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the kernel counts is what happened, as far as the server can tell.

use super::bench::{Bench, open_direct, scenario, workshop};
use super::write::{create, pattern, rule, with_good_lab};
use crate::counted::Counted;
use crate::disks::{Machine, empty_scenario};
use crate::ensure;
use crate::files::{cool, fails_with, pread};
use crate::sys;
use crate::tap::{Outcome, Tap};
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::misbehave::{Action, Notice};
use std::os::unix::fs::FileExt;

const SIZE: usize = 256 << 10;
const BLOCK: usize = 4096;

/// How much a counter has grown.
type Grown = Box<dyn Fn(&str) -> Result<u64, String>>;

/// What has been counted while something was done.
fn during(lab: &mut Lab, what: impl FnOnce(&mut Lab) -> Outcome) -> Result<Grown, String> {
    let before = Counted::read(lab.mountpoint())?;
    what(lab)?;
    let after = Counted::read(lab.mountpoint())?;
    Ok(Box::new(move |name| after.since(&before, name)))
}

/// A file whose data is on the device and not in the page cache.
fn written(lab: &Lab, way: &str) -> Result<(String, std::fs::File), String> {
    let name = format!("{}/counted", workshop(way, BLOCK as u32));
    let file = create(&lab.path(&name))?;
    file.write_all_at(&pattern(5, SIZE), 0)
        .map_err(|e| format!("write: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    cool(&file)?;
    Ok((name, file))
}

/// The requests are those that the server has got.
fn requests(lab: &mut Lab) -> Outcome {
    for way in ["unwritten", "cow", "delalloc", "in-place"] {
        let (_, file) = written(lab, way)?;
        pread(&file, 0, SIZE).map_err(|e| format!("read: {e}"))?;
        file.set_len(100).map_err(|e| format!("truncate: {e}"))?;
    }
    let counted = Counted::read(lab.mountpoint())?;
    for (name, opcode) in [
        ("begin", "IOMAP_BEGIN"),
        ("end", "IOMAP_END"),
        ("ioend", "IOMAP_IOEND"),
        ("config", "IOMAP_CONFIG"),
        ("fallocate", "FALLOCATE"),
    ] {
        let (got, want) = (counted.get(name)?, lab.counter(opcode)?);
        ensure!(
            got == want,
            "{name} is {got}, the server has got {want} {opcode}"
        );
    }
    for name in ["begin", "ioend", "ioend-records", "config"] {
        ensure!(counted.get(name)? > 0, "{name} is 0");
    }
    for name in ["begin-errors", "ioend-errors", "config-errors", "rejected"] {
        ensure!(counted.get(name)? == 0, "{name} is not 0");
    }
    Ok(())
}

/// What is not known is a miss and put into the cache, what is known a hit.
fn cache(lab: &mut Lab) -> Outcome {
    let (name, file) = written(lab, "unwritten")?;
    let direct = open_direct(&lab.path(&name))?;
    let read = || {
        sys::read_aligned(&direct, 0, BLOCK)
            .map(|_| ())
            .map_err(|e| format!("read: {e}"))
    };
    let all = (0, u64::MAX);
    lab.notify(&name, Notice::Inval(all, all))?;
    let cold = during(lab, |_| read())?;
    for (name, want) in [("cache-misses", 1), ("begin", 1)] {
        let got = cold(name)?;
        ensure!(got == want, "a cold read: {name} +{got}");
    }
    ensure!(cold("cache-insertions")? > 0, "nothing was inserted");
    let warm = during(lab, |_| (0..10).try_for_each(|_| read()))?;
    for (name, want) in [("cache-hits", 10), ("cache-misses", 0), ("begin", 0)] {
        let got = warm(name)?;
        ensure!(got == want, "ten warm reads: {name} +{got}");
    }

    let full = Counted::read(lab.mountpoint())?;
    let (bytes, most) = (full.get("cache-bytes")?, full.get("cache-maxbytes")?);
    ensure!(0 < bytes && bytes <= most, "{bytes} bytes of {most}");
    drop(file);
    let told = during(lab, |lab| Ok(lab.notify(&name, Notice::Inval(all, all))?))?;
    ensure!(told("inval")? == 1, "the notification was not counted");
    let less = Counted::read(lab.mountpoint())?.get("cache-bytes")?;
    ensure!(less < bytes, "{bytes} bytes, and {less} when forgotten");
    Ok(())
}

/// Errors and broken rules are counted apart.
fn errors(lab: &mut Lab) -> Outcome {
    let (name, file) = written(lab, "in-place")?;
    let all = (0, u64::MAX);
    let fresh = |lab: &mut Lab| -> Outcome {
        cool(&file)?;
        Ok(lab.notify(&name, Notice::Inval(all, all))?)
    };
    fresh(lab)?;
    lab.misbehave(&name, Action::Error { value: -libc::EIO })?;
    let error = during(lab, |_| {
        fails_with("read", pread(&file, 0, BLOCK), &[libc::EIO])
    })?;
    lab.set_rules(Vec::new())?;
    let (sent, failed) = (error("begin")?, error("begin-errors")?);
    ensure!(
        sent > 0 && failed == sent,
        "{sent} were sent and {failed} failed"
    );

    fresh(lab)?;
    let set = vec![("read.length".to_owned(), 0)];
    lab.misbehave(&name, Action::Fields { set })?;
    let rejected = during(lab, |_| {
        fails_with("read", pread(&file, 0, BLOCK), &[libc::EUCLEAN])
    })?;
    lab.set_rules(Vec::new())?;
    let all = rejected("rejected")?;
    let those = rejected("rejected-zero-length")?;
    ensure!(
        all > 0 && those == all,
        "{all} were rejected, {those} by this rule"
    );
    ensure!(
        rejected("begin-errors")? == 0,
        "an answer that breaks a rule is no error"
    );
    Ok(())
}

/// Writeback ends at once if nobody has to be told.
fn ioends(lab: &mut Lab) -> Outcome {
    let name = format!("{}/counted", workshop("unwritten", BLOCK as u32));
    let file = create(&lab.path(&name))?;
    let write = || -> Outcome {
        file.write_all_at(&pattern(6, SIZE), 0)
            .map_err(|e| format!("write: {e}"))?;
        file.sync_all().map_err(|e| format!("fsync: {e}"))
    };
    let first = during(lab, |_| write())?;
    let (queued, merged) = (first("ioends-queued")?, first("ioends-merged")?);
    let told = first("ioend-records")?;
    ensure!(
        queued > 0 && told == queued - merged,
        "{queued} were queued, {merged} merged, and {told} told"
    );
    let again = during(lab, |_| write())?;
    ensure!(
        again("ioends-inline")? > 0 && again("ioends-queued")? == 0,
        "overwriting has queued something"
    );
    Ok(())
}

/// A failed notification is counted, too.
fn notices(lab: &mut Lab) -> Outcome {
    let (name, _file) = written(lab, "unwritten")?;
    let bad = during(lab, |lab| {
        let past = (u64::MAX - 10, 4096);
        match lab.notify(&name, Notice::Inval(past, past)) {
            Ok(()) => Err("a range that overflows was taken".into()),
            Err(_) => Ok(()),
        }
    })?;
    let (sent, failed) = (bad("inval")?, bad("inval-errors")?);
    ensure!(
        (sent, failed) == (1, 1),
        "{sent} were sent and {failed} failed"
    );
    Ok(())
}

/// Inline data is read and written with requests that are counted.
fn inline(lab: &mut Lab) -> Outcome {
    let name = format!("{}/counted", workshop("inline", BLOCK as u32));
    let file = create(&lab.path(&name))?;
    let counted = during(lab, |_| {
        file.write_all_at(&pattern(7, 60), 0)
            .map_err(|e| format!("write: {e}"))?;
        cool(&file)
    })?;
    ensure!(counted("write")? > 0, "no WRITE was counted");
    Ok(())
}

/// What the server refuses to hear is an error once, and then not sent.
fn missing(lab: &mut Lab) -> Outcome {
    let name = format!("{}/counted", workshop("unwritten", BLOCK as u32));
    lab.set_rules(vec![rule(
        "IOMAP_IOEND",
        &name,
        (0, 0),
        Action::Error {
            value: -libc::ENOSYS,
        },
    )])?;
    let file = create(&lab.path(&name))?;
    let counted = during(lab, |_| {
        for at in [0, 1 << 20] {
            file.write_all_at(&pattern(8, BLOCK), at)
                .map_err(|e| format!("write: {e}"))?;
            file.sync_all().map_err(|e| format!("fsync: {e}"))?;
        }
        Ok(())
    })?;
    lab.set_rules(Vec::new())?;
    let (sent, failed) = (counted("ioend")?, counted("ioend-errors")?);
    ensure!(
        (sent, failed) == (1, 1),
        "{sent} were sent and {failed} failed"
    );
    Ok(())
}

/// Without iomap there is nothing to count.
fn without(machine: &Machine) -> Outcome {
    let mut scenario = empty_scenario(6);
    scenario.options.accept_iomap = false;
    with_good_lab(machine, &scenario, |lab| {
        let counted = Counted::read(lab.mountpoint())?;
        ensure!(counted.is_empty(), "{counted:?}");
        Ok(())
    })
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let scenario = scenario(79, Some(CacheSpec::mode(CacheMode::Replies)));
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    let lab = &mut bench.lab;
    for (name, case) in [
        ("requests are counted", requests as fn(&mut Lab) -> Outcome),
        ("hits, misses and memory of the cache", cache),
        ("errors and broken rules", errors),
        ("completions, at once and later", ioends),
        ("notifications that fail", notices),
        ("inline data", inline),
        ("what the server does not know", missing),
    ] {
        tap.case(name, || case(lab));
    }
    super::finish(tap, bench.lab);
    tap.case("the file is empty without iomap", || without(machine));
}
