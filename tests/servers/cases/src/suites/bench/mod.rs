// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Doing things to files of every way of mapping and every block size, and comparing what comes of
//! it byte by byte: through the mount, and on the block devices by way of the server's map.

pub mod case;
pub mod ops;

use super::start_iomap;
use crate::disks::{Machine, empty_scenario};
use crate::ensure;
use crate::files::{pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap, comment, doing};
use case::{BLOCK_SIZES, Case, ways};
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::devices::{self, Device};
use lab::scenario::Scenario;
use lab::store::{FileMap, MapKind};
use ops::{Op, What};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const NAME: &str = "case";
const PAGE: usize = 4096;

/// The directory for files of a way of mapping and a block size.
pub fn workshop(way: &str, block: u32) -> String {
    format!("{way}-{block}")
}

/// What servers use of the kernel's cache of mappings: without CONFIG, nothing, and each way to fill
/// it.
pub fn cache_modes() -> Vec<(&'static str, Option<CacheSpec>)> {
    let mode = |mode| Some(CacheSpec::mode(mode));
    vec![
        ("none", None),
        ("off", mode(CacheMode::Off)),
        ("upsert", mode(CacheMode::Upsert)),
        ("replies", mode(CacheMode::Replies)),
        ("eager", mode(CacheMode::Eager)),
    ]
}

/// A server with all of those directories.
pub fn scenario(seed: u64, cache: Option<CacheSpec>) -> Scenario {
    let mut s = empty_scenario(seed);
    s.options.cache = cache;
    s.options.fill = true;
    s.options.guards = true;
    s.options.poison_again = true;
    s.options.longest = 5;
    for (way, policy) in ways() {
        for block in BLOCK_SIZES {
            let mut policy = policy.clone();
            policy.blksize = block;
            s.workshop(&workshop(way, block), policy);
        }
    }
    s
}

/// Blocks of a clone, and what they hold.
struct Frozen {
    map: FileMap,
    model: Vec<u8>,
}

/// Everything that cases need.
pub struct Bench {
    pub lab: Lab,
    pub devices: Vec<Device>,
    /// Block sizes that the kernel takes.
    pub blocks: Vec<u32>,
}

impl Bench {
    /// Starts a server, as a case.
    pub fn start(tap: &mut Tap, machine: &Machine, scenario: &Scenario) -> Option<Self> {
        let devices = tap.case("the devices open", || devices::open_all(scenario))?;
        let lab = start_iomap(tap, machine, scenario)?;
        // Larger blocks than pages need large folios, which not every kernel has.
        let usable = |block: &u32| {
            let path = lab.path(&workshop("in-place", *block)).join(NAME);
            let made = File::create(&path).is_ok();
            // Where it could not be made there is nothing to remove.
            let _ = std::fs::remove_file(&path);
            made
        };
        let blocks: Vec<u32> = BLOCK_SIZES.into_iter().filter(usable).collect();
        if blocks.len() < BLOCK_SIZES.len() {
            comment(&format!("this kernel takes blocks of {blocks:?} only"));
        }
        Some(Self {
            lab,
            devices,
            blocks,
        })
    }

    /// Runs operations, as in the lines of the generated cases, for every way of mapping and every block
    /// size.
    pub fn everywhere(&mut self, ops: &str) -> Outcome {
        for (way, _) in ways() {
            for block in self.blocks.clone() {
                let case: Case = format!("{way}/{block}: {ops}").parse()?;
                self.run(&case).map_err(|e| format!("{case}: {e}"))?;
            }
        }
        Ok(())
    }

    /// Runs a case on a new file, which is removed afterwards.
    pub fn run(&mut self, case: &Case) -> Outcome {
        doing(case.to_string());
        let dir = workshop(&case.way, case.block);
        let path = self.lab.path(&dir).join(NAME);
        let result = self.steps(case, &path, &format!("{dir}/{NAME}"));
        std::fs::remove_file(&path).map_err(|e| format!("unlink: {e}"))?;
        if case.ops.iter().any(|op| op.what == What::Share) {
            self.lab.drop_snapshots()?;
        }
        result
    }

    fn steps(&mut self, case: &Case, path: &Path, name: &str) -> Outcome {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| format!("create: {e}"))?;
        let direct = match case.ops.iter().any(Op::is_direct) {
            true => Some(open_direct(path)?),
            false => None,
        };
        let block = u64::from(case.block);
        let mut model = Vec::new();
        let mut frozen = Vec::new();
        for (index, op) in (1..).zip(&case.ops) {
            let size = model.len() as u64;
            if !op.model(&mut model, block, index) {
                continue;
            }
            let through = direct.as_ref().filter(|_| op.is_direct());
            op.apply(through.unwrap_or(&file), size, index)
                .map_err(|e| format!("{op}: {e}"))?;
            match op.what {
                What::Read => {
                    let got = pread(&file, op.offset, op.length as usize);
                    let got = got.map_err(|e| format!("{op}: {e}"))?;
                    let want = &model[op.offset as usize..op.end() as usize];
                    same(op.offset, &got, want).map_err(|e| format!("{op}: {e}"))?;
                }
                What::ReadDirect => {
                    let file = direct.as_ref().ok_or("not open for direct I/O")?;
                    let end = model.len().min(op.end() as usize);
                    let want = &model[op.offset as usize..end];
                    let got = read_direct(file, op.offset, want.len());
                    same(op.offset, &got.map_err(|e| format!("{op}: {e}"))?, want)
                        .map_err(|e| format!("{op}: {e}"))?;
                }
                What::Share if case.way.starts_with("cow") => {
                    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
                    self.lab.snapshot(name)?;
                    frozen.push(Frozen {
                        map: self.lab.map(name)?,
                        model: model.clone(),
                    });
                }
                _ => {}
            }
            let size = file.metadata().map_err(|e| e.to_string())?.len();
            let want = model.len();
            ensure!(size == want as u64, "{op}: size {size} instead of {want}");
        }
        self.compare(&file, name, &model)?;
        if let Some(direct) = &direct {
            let got = read_direct(direct, 0, model.len());
            let got = got.map_err(|e| format!("direct read: {e}"))?;
            same(0, &got, &model).map_err(|e| format!("direct read: {e}"))?;
        }
        for frozen in &frozen {
            self.on_disk(&frozen.map, &frozen.model)
                .map_err(|e| format!("a clone was changed: {e}"))?;
        }
        Ok(())
    }

    /// The file must be what the model is, in every way to look at it.
    pub fn compare(&mut self, file: &File, name: &str, model: &[u8]) -> Outcome {
        let read = |how: &str| {
            let got = pread(file, 0, model.len() + 1).map_err(|e| format!("{how}: {e}"))?;
            same(0, &got, model).map_err(|e| format!("{how}: {e}"))
        };
        read("read before fsync")?;
        file.sync_all().map_err(|e| format!("fsync: {e}"))?;
        read("read after fsync")?;
        mapped(file, model).map_err(|e| format!("mmap: {e}"))?;
        rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(|e| format!("fadvise: {e}"))?;
        let map = self.lab.map(name)?;
        let (size, want) = (map.size, model.len() as u64);
        ensure!(size == want, "the size on disk is {size} instead of {want}");
        self.on_disk(&map, model)
            .map_err(|e| format!("on the device: {e}"))?;
        read("read from the device")?;
        mapped(file, model).map_err(|e| format!("mmap from the device: {e}"))
    }

    /// What the server's map leads to must be the model; what it leads nowhere must be zeroes.
    pub fn on_disk(&self, map: &FileMap, model: &[u8]) -> Outcome {
        if let Some(inline) = &map.inline {
            return same(0, inline, model);
        }
        let mut want = model.to_vec();
        for entry in map.entries.iter().filter(|e| e.kind == MapKind::Written) {
            let device = self.devices.get(entry.dev).ok_or("no such device")?;
            let start = entry.offset as usize;
            let end = model.len().min(start + entry.length as usize);
            let Some(part) = want.get_mut(start..end) else {
                continue;
            };
            let got = device.read_direct(entry.addr, entry.length as usize);
            let got = got.map_err(|e| format!("at {}: {e}", entry.addr))?;
            same(entry.offset, &got[..part.len()], part)?;
            part.fill(0);
        }
        match want.iter().position(|b| *b != 0) {
            None => Ok(()),
            Some(at) => Err(format!("at {at}: there is data, but no written block")),
        }
    }

    /// The kernel must have kept to the protocol.
    pub fn violations(&mut self) -> Outcome {
        let violations = self.lab.violations()?;
        ensure!(violations.is_empty(), "{}", violations.join("; "));
        Ok(())
    }
}

/// Opens a file for direct I/O.
pub fn open_direct(path: &Path) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(|e| format!("open for direct I/O: {e}"))
}

/// Reads past the page cache: whole sectors, of which the end of the file is in the last one.
pub fn read_direct(file: &File, offset: u64, length: usize) -> std::io::Result<Vec<u8>> {
    let whole = length.next_multiple_of(512);
    let mut data = Vec::with_capacity(length);
    while data.len() < length {
        let at = offset + data.len() as u64;
        let part = sys::read_aligned(file, at, whole - data.len())?;
        if part.is_empty() {
            break;
        }
        data.extend_from_slice(&part);
        if data.len() % 512 != 0 {
            break;
        }
    }
    Ok(data)
}

/// Through a mapping, the rest of the last page is zeroes.
fn mapped(file: &File, model: &[u8]) -> Outcome {
    if model.is_empty() {
        return Ok(());
    }
    let mut want = model.to_vec();
    want.resize(model.len().next_multiple_of(PAGE), 0);
    let got = sys::mmap_peek(file, 0, want.len());
    same(0, &got.map_err(|e| e.to_string())?, &want)
}
