// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How writeback is completed: what needs no metadata is done in the completion of its I/O, the rest
//! by a work item, which makes one upcall of what lies side by side.

use super::bench::case::ways;
use super::{finish, start_iomap};
use crate::disks::{Machine, empty_scenario};
use crate::ensure;
use crate::sys;
use crate::tap::{Outcome, Tap, comment};
use crate::tracing::Tracing;
use fuse_iomap::wire::iomap_ioend;
use lab::client::Lab;
use lab::misbehave::{Action, Rule};
use lab::random::Random;
use lab::scenario::Scenario;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, MetadataExt};

const EVENTS: &[&str] = &["fuse_iomap_writeback_done", "fuse_iomap_ioend"];
/// Kilobytes for all events of a load.
const BUFFER: u32 = 8192;
const SIZE: u64 = 8 << 20;
const CHUNK: u64 = 16 << 10;

fn scenario() -> Scenario {
    let mut s = empty_scenario(91);
    s.options.fill = true;
    for (way, policy) in ways() {
        s.workshop(way, policy);
    }
    s
}

/// What a load came to.
#[derive(Default)]
struct Figures {
    /// Completions in the context of the I/O, and by the work item; unknown without tracing.
    inline: Option<(usize, usize)>,
    upcalls: u64,
}

impl Figures {
    fn tell(&self, way: &str, what: &str) {
        let upcalls = self.upcalls;
        comment(&match self.inline {
            Some((inline, deferred)) => {
                let saved = (deferred as u64).saturating_sub(upcalls);
                format!(
                    "{way}, {what}: {inline} completions inline, {deferred} by the work item, \
                     {upcalls} upcalls, {saved} saved by merging"
                )
            }
            None => format!("{way}, {what}: {upcalls} upcalls (this kernel cannot trace)"),
        });
    }
}

/// Writes the whole file in chunks: in random order, with some fsync in between, or front to back,
/// each going to the device on its own.
fn load(lab: &mut Lab, way: &str, seed: u64, in_order: bool) -> Result<Figures, String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(lab.path(way).join("file"))
        .map_err(|e| format!("open: {e}"))?;
    let ino = file.metadata().map_err(|e| e.to_string())?.ino();
    let before = lab.tally()?.ioends;
    let tracing = match Tracing::is_there() {
        true => Some(Tracing::new(EVENTS, BUFFER)?),
        false => None,
    };
    let mut random = Random::new(seed);
    let mut chunks: Vec<u64> = (0..SIZE / CHUNK).collect();
    for i in (1..chunks.len()).rev().filter(|_| !in_order) {
        chunks.swap(i, random.below(i as u64 + 1) as usize);
    }
    let data = vec![seed as u8 | 1; CHUNK as usize];
    for (i, chunk) in chunks.iter().enumerate() {
        file.write_all_at(&data, chunk * CHUNK)
            .map_err(|e| format!("write: {e}"))?;
        if in_order {
            sys::start_writeback(&file, chunk * CHUNK, CHUNK)
                .map_err(|e| format!("sync_file_range: {e}"))?;
        } else if i % 200 == 199 {
            file.sync_data().map_err(|e| format!("fdatasync: {e}"))?;
        }
    }
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let upcalls = lab.tally()?.ioends - before;
    let inline = match tracing {
        None => None,
        Some(tracing) => {
            let lines = tracing.lines("fuse_iomap_writeback_done", ino)?;
            let deferred = lines.iter().filter(|l| l.ends_with(" deferred")).count();
            let seen = tracing.lines("fuse_iomap_ioend", ino)?.len() as u64;
            ensure!(
                seen == upcalls,
                "the kernel traces {seen} upcalls, the server got {upcalls}"
            );
            Some((lines.len() - deferred, deferred))
        }
    };
    Ok(Figures { inline, upcalls })
}

/// The first load allocates and appends, the second one overwrites.
fn both(lab: &mut Lab, way: &str) -> Outcome {
    let first = load(lab, way, 1, false)?;
    first.tell(way, "new");
    let second = load(lab, way, 2, false)?;
    second.tell(way, "overwritten");
    ensure!(first.upcalls > 0, "nobody told the server of the new size");
    if let Some((_, deferred)) = first.inline {
        let upcalls = first.upcalls;
        ensure!(
            upcalls <= deferred as u64,
            "{upcalls} upcalls for {deferred} completions that need one"
        );
    }
    let always = way.starts_with("cow-always");
    if always {
        ensure!(second.upcalls > 0, "nobody told the server of new blocks");
    } else {
        ensure!(
            second.upcalls == 0,
            "{} upcalls for overwriting in place",
            second.upcalls
        );
        if let Some((inline, deferred)) = second.inline {
            ensure!(
                deferred == 0 && inline > 0,
                "{deferred} completions by the work item, {inline} inline"
            );
        }
    }
    let map = lab.map(&format!("{way}/file"))?;
    ensure!(map.size == SIZE, "size on disk {}", map.size);
    ensure!(map.staged == 0, "{} bytes were never remapped", map.staged);
    std::fs::remove_file(lab.path(way).join("file")).map_err(|e| format!("unlink: {e}"))
}

/// While the server takes its time for one upcall, others that lie beside each other gather, and
/// become one.
fn merged(lab: &mut Lab, way: &str) -> Outcome {
    let path = lab.path(way).join("file");
    let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SIZE)
        .map_err(|e| format!("fallocate: {e}"))?;
    lab.set_rules(vec![Rule {
        op: "IOMAP_IOEND".into(),
        path: Some(format!("{way}/file")),
        with: 0,
        without: 0,
        nth: None,
        action: Action::Delay {
            ms: 20,
            interruptible: false,
        },
        then_errno: None,
    }])?;
    let figures = load(lab, way, 3, true)?;
    lab.set_rules(Vec::new())?;
    figures.tell(way, "allocated before, with a slow server");
    if let Some((_, deferred)) = figures.inline {
        let upcalls = figures.upcalls;
        ensure!(
            upcalls < deferred as u64,
            "{upcalls} upcalls for {deferred} completions side by side"
        );
    }
    std::fs::remove_file(&path).map_err(|e| format!("unlink: {e}"))
}

/// Only completions that need it are deferred, and each of those is told of.
fn flags(lab: &mut Lab) -> Outcome {
    let name = "unwritten/flags";
    let path = lab.path(name);
    let file = std::fs::File::create(&path).map_err(|e| e.to_string())?;
    file.write_all_at(&[1; 10_000], 0)
        .map_err(|e| e.to_string())?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    let last = lab.last_ioend(name)?.ok_or("there was no IOEND")?;
    let want = iomap_ioend::WRITEBACK | iomap_ioend::UNWRITTEN | iomap_ioend::APPEND;
    ensure!(last.flags == want, "flags {:#x}", last.flags);
    ensure!(
        last.pos + last.written == 10_000,
        "it ends at {}",
        last.pos + last.written
    );
    Ok(())
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let Some(mut lab) = start_iomap(tap, machine, &scenario()) else {
        return;
    };
    for (way, _) in ways() {
        tap.case(
            &format!("{way}: only what needs the server waits for it"),
            || both(&mut lab, way),
        );
    }
    for way in ["unwritten", "cow", "delalloc"] {
        tap.case(
            &format!("{way}: completions side by side are one upcall"),
            || merged(&mut lab, way),
        );
    }
    tap.case("IOEND says what is to be done", || flags(&mut lab));
    finish(tap, lab);
}
