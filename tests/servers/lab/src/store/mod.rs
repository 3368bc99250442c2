// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The files that can be written: where their blocks are, what the kernel was told about them, and
//! whether what it asks next agrees with that.
//!
//! A [`Store`] knows no data. The kernel writes it, and a test that knows what it wrote compares the
//! devices with it, block by block, with the help of [`Store::map`].

mod begin;
mod cache;
mod change;
pub mod extents;
mod file;
mod inline;
mod ioend;
mod reflink;
pub mod space;

use crate::devices::Device;
pub use cache::ALWAYS_ASKED;
use extents::State;
use file::File;
pub use file::{Answer, Side};
use fuse_iomap::{Errno, Result};
use serde::{Deserialize, Serialize};
use space::{Habits, Space};
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// How blocks come to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// New blocks are given out mapped, exactly as many as are asked for, and need no IOEND.
    InPlace,
    /// New blocks are unwritten until IOEND converts them.
    Unwritten,
    /// As unwritten, but blocks with several users, or all, are written elsewhere and remapped by
    /// IOEND.
    Cow,
    /// Room is promised; blocks are allocated when they are written back.
    Delalloc,
}

/// How a file is treated, and what is made in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How blocks come to be written.
    pub style: Style,
    /// Block size in bytes.
    pub blksize: u32,
    /// Where blocks come from.
    pub dev: usize,
    /// Where blocks for copy-on-write come from, if from elsewhere.
    pub cow_dev: Option<usize>,
    /// Blocks for copy-on-write are given out as mapped instead of unwritten.
    pub cow_mapped: bool,
    /// Blocks with a single user are not overwritten in place either.
    pub cow_always: bool,
    /// This many blocks more than asked for are reserved or allocated unwritten.
    pub extra: u64,
    /// Every mapping for a write wants END.
    pub want_end: bool,
    /// Files begin with their data inline.
    pub inline: bool,
    /// Untorn writes are promised, by devices that can do them or by copy-on-write.
    pub atomic: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            style: Style::Unwritten,
            blksize: 4096,
            dev: 0,
            cow_dev: None,
            cow_mapped: false,
            cow_always: false,
            extra: 0,
            want_end: false,
            inline: false,
            atomic: false,
        }
    }
}

impl Policy {
    /// Checks it against the devices there are.
    pub fn check(&self, devices: &[Device]) -> std::result::Result<(), String> {
        let blksize = self.blksize;
        if !blksize.is_power_of_two() || !(512..=65536).contains(&blksize) {
            return Err(format!(
                "blksize {blksize} is not a power of two in 512..=65536"
            ));
        }
        for dev in [Some(self.dev), self.cow_dev].into_iter().flatten() {
            let device = devices
                .get(dev)
                .ok_or_else(|| format!("there is no device {dev}"))?;
            if blksize < device.logical_block {
                return Err(format!("device {dev} has larger blocks than {blksize}"));
            }
        }
        Ok(())
    }
}

/// A range of a file as a test sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapEntry {
    /// File offset.
    pub offset: u64,
    /// Length.
    pub length: u64,
    /// What it is.
    pub kind: MapKind,
    /// Position of the device.
    pub dev: usize,
    /// Address on the device; 0 for what has none.
    pub addr: u64,
    /// It has several users.
    pub shared: bool,
}

/// What a [`MapEntry`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MapKind {
    /// Room is promised.
    Reserved,
    /// Reads as zeroes, whatever the device holds.
    Unwritten,
    /// The device holds the data.
    Written,
}

/// All a test needs to know about a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMap {
    /// Size on disk.
    pub size: u64,
    /// What is no hole, in order.
    pub entries: Vec<MapEntry>,
    /// Bytes given out for copy-on-write and not remapped yet.
    pub staged: u64,
    /// The data, if it is inline.
    pub inline: Option<Vec<u8>>,
}

/// What was asked for often enough to be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// BEGINs for writes.
    pub writes: u64,
    /// BEGINs for writeback.
    pub writebacks: u64,
    /// BEGINs for zeroing.
    pub zeroes: u64,
    /// IOENDs without an error.
    pub ioends: u64,
    /// IOENDs that told of an error.
    pub failures: u64,
    /// Blocks converted or remapped by IOENDs.
    pub blocks: u64,
}

/// All writable files and the space that they share.
pub struct Store {
    files: HashMap<u64, File>,
    space: Space,
    violations: Vec<String>,
    tally: Tally,
    /// The kernel may remember answers, with at most this many further mappings.
    cached: Option<usize>,
    /// What it has to forget, by file.
    changed: Vec<(u64, Range<u64>)>,
}

/// Violations kept; the first ones say most.
const MOST_VIOLATIONS: usize = 100;

pub(crate) fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

impl Store {
    /// With everything free.
    pub fn new(devices: Arc<Vec<Device>>, habits: Habits, seed: u64) -> Self {
        Self {
            files: HashMap::new(),
            space: Space::new(devices, habits, seed),
            violations: Vec::new(),
            tally: Tally::default(),
            cached: None,
            changed: Vec::new(),
        }
    }

    /// The space, to keep the places of fixed extents out of it.
    pub const fn space(&mut self) -> &mut Space {
        &mut self.space
    }

    /// A new file, with `size` bytes of hole.
    pub fn create(&mut self, id: u64, policy: Policy, size: u64) {
        self.files.insert(id, File::new(policy, size));
    }

    /// A file is gone for good.
    pub fn remove(&mut self, id: u64) {
        if let Some(mut file) = self.files.remove(&id) {
            file.drop_range(&mut self.space, 0..u64::MAX);
        }
    }

    /// All files from a number on are gone for good.
    pub fn remove_from(&mut self, id: u64) {
        let gone: Vec<u64> = self.files.keys().copied().filter(|i| *i >= id).collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Whether a node is a file of this store.
    pub fn has(&self, id: u64) -> bool {
        self.files.contains_key(&id)
    }

    fn violation(&mut self, id: u64, text: &str) {
        if self.violations.len() < MOST_VIOLATIONS {
            self.violations.push(format!("node {id}: {text}"));
        }
    }

    /// What the kernel did against the protocol.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// What was counted.
    pub const fn tally(&self) -> Tally {
        self.tally
    }

    fn file(&self, id: u64) -> Result<&File> {
        self.files.get(&id).ok_or(Errno::STALE)
    }

    /// Size on disk and bytes in use.
    pub fn figures(&self, id: u64) -> Result<(u64, u64)> {
        let file = self.file(id)?;
        Ok((file.size, file.used()))
    }

    /// Size and free bytes of all devices.
    pub fn space_figures(&self) -> (u64, u64) {
        self.space.figures()
    }

    /// Where a file's blocks are.
    pub fn map(&self, id: u64) -> Result<FileMap> {
        let file = self.file(id)?;
        let mut entries = Vec::new();
        for piece in file.map.iter() {
            let mut at = piece.start;
            while at < piece.end {
                let piece = piece.within(&(at..piece.end));
                let Some(state) = piece.state else { break };
                let left = piece.end - at;
                let (shared, length) = match state.place() {
                    Some(place) => self.space.shared(place, left, file.block()),
                    None => (false, left),
                };
                let kind = match state {
                    State::Reserved => MapKind::Reserved,
                    State::New(_) | State::Unwritten(_) => MapKind::Unwritten,
                    State::Written(_) => MapKind::Written,
                };
                entries.push(MapEntry {
                    offset: at,
                    length,
                    kind,
                    dev: state.place().map_or(0, |p| p.dev),
                    addr: state.place().map_or(0, |p| p.addr),
                    shared,
                });
                at += length;
            }
        }
        Ok(FileMap {
            size: file.size,
            entries,
            staged: file.staged.iter().map(|p| p.end - p.start).sum(),
            inline: file.inline.clone(),
        })
    }

    /// Looks whether anything was written where nobody was ever sent.
    pub fn check_strays(&self) -> std::result::Result<(), String> {
        match self.space.strayed() {
            Ok(None) => Ok(()),
            Ok(Some(p)) => Err(format!(
                "device {}: something was written at {}, which no file ever had",
                p.dev, p.addr
            )),
            Err(e) => Err(format!("cannot read the devices: {e}")),
        }
    }
}

#[cfg(test)]
mod tests;
