// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The block devices: their geometry, and writing the data that the scenario promises.

use crate::pattern::{Pattern, fill_poison};
use crate::scenario::{ExtentKind, InodeKind, Scenario};
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Poison reaches this far behind the last extent of a device.
const MARGIN: u64 = 1 << 20;
const CHUNK: usize = 1 << 20;
const ALIGN: usize = 4096;

/// An open block device.
#[derive(Debug)]
pub struct Device {
    /// Where it was opened.
    pub path: PathBuf,
    /// Open for reading and writing.
    pub file: File,
    /// The same past the page cache, which does not see what the kernel writes into files.
    direct: File,
    /// Size in bytes.
    pub size: u64,
    /// Up to here there is poison or the data of a file.
    filled: AtomicU64,
    /// Smallest unit of I/O in bytes.
    pub logical_block: u32,
}

impl Device {
    fn open(path: PathBuf) -> Result<Self, String> {
        let context = |e: std::io::Error| format!("{}: {e}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(context)?;
        let meta = file.metadata().map_err(context)?;
        let size = file.seek(SeekFrom::End(0)).map_err(context)?;
        // Ordinary files serve to try scenarios out without iomap.
        let (logical_block, flags) = if meta.file_type().is_block_device() {
            let logical = logical_block(meta.rdev()).map_err(context)?;
            (logical, OFlags::DIRECT.bits())
        } else {
            (512, 0)
        };
        let direct = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags as i32)
            .open(&path)
            .map_err(context)?;
        Ok(Self {
            path,
            file,
            direct,
            size,
            filled: AtomicU64::new(0),
            logical_block,
        })
    }

    /// Up to where [`prepare`] has written.
    pub fn filled(&self) -> u64 {
        self.filled.load(Ordering::Relaxed)
    }

    /// Reads what is on the device now; position and length are multiples of its logical block.
    pub fn read_direct(&self, at: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let mut memory = Aligned::new(len);
        self.direct.read_exact_at(memory.bytes(), at)?;
        Ok(memory.bytes().to_vec())
    }

    /// Writes past the page cache; position and length are multiples of the logical block.
    pub fn write_direct(&self, at: u64, data: &[u8]) -> std::io::Result<()> {
        let mut memory = Aligned::new(data.len());
        memory.bytes().copy_from_slice(data);
        self.direct.write_all_at(memory.bytes(), at)
    }

    /// Has the device write out its volatile cache.
    pub fn flush(&self) -> std::io::Result<()> {
        self.file.sync_data()
    }
}

/// Memory as direct I/O wants it.
struct Aligned {
    memory: Vec<u8>,
    skip: usize,
    len: usize,
}

impl Aligned {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let skip = memory.as_ptr().align_offset(ALIGN);
        Self { memory, skip, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + self.len]
    }
}

/// The device's logical block size, from sysfs; a partition has it in its parent.
fn logical_block(rdev: u64) -> std::io::Result<u32> {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let dir = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let own = dir.join("queue/logical_block_size");
    let file = if own.exists() {
        own
    } else {
        dir.join("../queue/logical_block_size")
    };
    let text = std::fs::read_to_string(file)?;
    text.trim().parse().map_err(std::io::Error::other)
}

/// Opens all devices of a scenario.
pub fn open_all(scenario: &Scenario) -> Result<Vec<Device>, String> {
    scenario
        .devices
        .iter()
        .map(|spec| Device::open(spec.resolve()?))
        .collect()
}

/// The ranges of one device that files refer to: start, end, and whether there is data.
fn used_ranges(scenario: &Scenario, dev: usize) -> Vec<(u64, u64, bool)> {
    let mut ranges = Vec::new();
    for inode in &scenario.inodes {
        let InodeKind::File(file) = &inode.kind else {
            continue;
        };
        for e in &file.extents {
            if e.kind.has_address() && e.dev == dev {
                let data = e.kind == ExtentKind::Mapped;
                ranges.push((e.addr, e.addr.saturating_add(e.length), data));
            }
            if let Some(w) = e
                .write
                .as_ref()
                .filter(|w| w.kind.has_address() && w.dev == dev)
            {
                ranges.push((w.addr, w.addr.saturating_add(e.length), false));
            }
        }
    }
    ranges
}

/// Checks that the extents fit the devices and writes what they must hold: data where a mapped
/// extent is, poison everywhere else.
pub fn prepare(scenario: &Scenario, devices: &[Device]) -> Result<(), String> {
    for (index, device) in devices.iter().enumerate() {
        let ranges = used_ranges(scenario, index);
        let end = ranges.iter().map(|r| r.1).max().unwrap_or(0);
        if end > device.size {
            let path = device.path.display();
            return Err(format!(
                "{path}: an extent ends at {end}, behind the device"
            ));
        }
        for (start, end, data) in &ranges {
            let clash = |r: &&(u64, u64, bool)| r.2 != *data && r.0 < *end && *start < r.1;
            if let Some(other) = ranges.iter().find(clash) {
                return Err(format!("device {index}: {start} and {} overlap", other.0));
            }
        }
        let end = if scenario.options.fill {
            device.size
        } else {
            end
        };
        write_device(scenario.seed, index, device, &ranges, end)
            .map_err(|e| format!("{}: {e}", device.path.display()))?;
    }
    Ok(())
}

fn write_device(
    seed: u64,
    index: usize,
    device: &Device,
    ranges: &[(u64, u64, bool)],
    end: u64,
) -> std::io::Result<()> {
    let mut buf = vec![0; CHUNK];
    let filled = (end + MARGIN).min(device.size);
    fill_poison(&mut buf);
    for_chunks(0, filled, |at, len| {
        device.file.write_all_at(&buf[..len], at)
    })?;
    device.filled.store(filled, Ordering::Relaxed);
    let pattern = Pattern::new(seed, index as u64);
    for (start, end, _) in ranges.iter().filter(|r| r.2) {
        for_chunks(*start, *end, |at, len| {
            pattern.fill(at, &mut buf[..len]);
            device.file.write_all_at(&buf[..len], at)
        })?;
    }
    // The kernel reads the device itself, past the page cache of the block device, which must not
    // keep what gets old there.
    device.file.sync_all()?;
    rustix::fs::fadvise(&device.file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn for_chunks(
    start: u64,
    end: u64,
    mut f: impl FnMut(u64, usize) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let mut at = start;
    while at < end {
        let len = (end - at).min(CHUNK as u64) as usize;
        f(at, len)?;
        at += len as u64;
    }
    Ok(())
}
