// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Doing what the plan says to a real directory, and telling when it was acknowledged.

use crate::model::{Model, parent};
use crate::plan::{Change, Op, Plan, Sync, Write};
use crate::random::{Random, fill};
use crate::sys;
use rustix::fs::{FallocateFlags, XattrFlags, fallocate, fsetxattr, syncfs};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The attribute that [`Change::SetXattr`] sets.
pub const XATTR: &str = "user.powercut";
/// The suffix of the name under which a replacement is written.
pub const TEMPORARY: &str = ".new";
/// The directory that is written without ever being synced, and the stamp of its contents.
pub const NOISE: &str = "noise";
/// The stamp of the bytes in there.
pub const NOISE_STAMP: u64 = 0x006e_6f69_7365;

/// Where acknowledgements go: into the log between the writes, so that they are ordered with them.
#[derive(Clone, Debug)]
pub struct Marks {
    /// The device-mapper device of the kind log-writes.
    pub device: Option<String>,
}

impl Marks {
    /// Tells that `count` operations of a worker are durable.
    fn acknowledge(&self, worker: u64, count: u64) -> io::Result<()> {
        let Some(device) = &self.device else {
            return Ok(());
        };
        let status = Command::new("dmsetup")
            .args(["message", device, "0", "mark"])
            .arg(format!("ack:{worker}:{count}"))
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err(io::Error::other(format!("dmsetup message: {status}")))
        }
    }
}

/// One worker: it changes nothing but its own directory.
pub struct Worker<'a> {
    root: PathBuf,
    number: u64,
    marks: &'a Marks,
    /// Deliberately forget to sync every so manyth operation before acknowledging it.
    pub forget: Option<u64>,
}

impl<'a> Worker<'a> {
    /// A worker in `dir`.
    pub fn new(dir: &Path, number: u64, marks: &'a Marks) -> Self {
        Self {
            root: dir.join(format!("w{number}")),
            number,
            marks,
            forget: None,
        }
    }

    /// Makes the worker's directory durable, then does `count` operations.
    pub fn run(&self, seed: u64, count: u64) -> Result<(), String> {
        self.start()
            .map_err(|why| format!("{}: {why}", self.root.display()))?;
        let mut plan = Plan::new(seed, self.number);
        let mut model = Model::default();
        for number in 1..=count {
            let op = plan.next(&model);
            let forgotten = self.forget.is_some_and(|every| number % every == 0);
            self.perform(&op, !forgotten)
                .and_then(|()| self.marks.acknowledge(self.number, number))
                .map_err(|why| {
                    format!("{}: operation {number}, {op:?}: {why}", self.root.display())
                })?;
            for change in &op.changes {
                model.apply(change);
            }
        }
        Ok(())
    }

    fn start(&self) -> io::Result<()> {
        fs::create_dir(&self.root)?;
        syncfs(File::open(&self.root)?)?;
        self.marks.acknowledge(self.number, 0)
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() {
            self.root.clone()
        } else {
            self.root.join(path)
        }
    }

    fn perform(&self, op: &Op, durable: bool) -> io::Result<()> {
        for change in &op.changes {
            // Some ways to make a change durable are part of making it.
            match (change, op.sync) {
                (Change::Write { path, write }, Sync::Dsync) if durable => {
                    let file = OpenOptions::new()
                        .write(true)
                        .custom_flags(O_DSYNC)
                        .open(self.path(path))?;
                    put(&file, write)?;
                }
                (Change::Write { path, write }, Sync::Direct) if durable => {
                    let file = OpenOptions::new()
                        .write(true)
                        .custom_flags(O_DIRECT | O_DSYNC)
                        .open(self.path(path))?;
                    put(&file, write)?;
                }
                (Change::Write { path, write }, Sync::Mapped) if durable => {
                    let file = self.open(path)?;
                    let end = write.pos + write.length;
                    if file.metadata()?.len() < end {
                        file.set_len(end)?;
                    }
                    sys::write_mapped(&file, write.stamp, write.pos, write.length)?;
                    // A new size counts as data, which msync need not write.
                    file.sync_data()?;
                }
                _ => self.change(change)?,
            }
        }
        if !durable {
            return Ok(());
        }
        match op.sync {
            Sync::Fsync | Sync::Fdatasync => {
                for change in &op.changes {
                    self.sync(change, op.sync == Sync::Fdatasync)?;
                }
                Ok(())
            }
            Sync::Dsync | Sync::Direct | Sync::Mapped => Ok(()),
            Sync::Syncfs => Ok(syncfs(File::open(&self.root)?)?),
        }
    }

    fn open(&self, path: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path(path))
    }

    fn create(&self, path: &Path, write: &Write) -> io::Result<File> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        put(&file, write)?;
        Ok(file)
    }

    fn change(&self, change: &Change) -> io::Result<()> {
        let range = |path: &str, flags, pos, length| -> io::Result<()> {
            Ok(fallocate(self.open(path)?, flags, pos, length)?)
        };
        match change {
            Change::Create { path, write } => {
                self.create(&self.path(path), write)?;
            }
            Change::Replace { path, write } => {
                let temporary = self.path(&format!("{path}{TEMPORARY}"));
                self.create(&temporary, write)?.sync_all()?;
                fs::rename(temporary, self.path(path))?;
            }
            Change::Write { path, write } => put(&self.open(path)?, write)?,
            Change::Truncate { path, size } => self.open(path)?.set_len(*size)?,
            Change::Allocate { path, pos, length } => {
                range(path, FallocateFlags::empty(), *pos, *length)?;
            }
            Change::Punch { path, pos, length } => range(
                path,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                *pos,
                *length,
            )?,
            Change::Zero { path, pos, length } => {
                range(path, FallocateFlags::ZERO_RANGE, *pos, *length)?;
            }
            Change::Collapse { path, pos, length } => {
                range(path, FallocateFlags::COLLAPSE_RANGE, *pos, *length)?;
            }
            Change::Insert { path, pos, length } => {
                range(path, FallocateFlags::INSERT_RANGE, *pos, *length)?;
            }
            Change::SetXattr { path, value } => {
                fsetxattr(self.open(path)?, XATTR, value, XattrFlags::empty())?;
            }
            Change::Rename { from, to } => fs::rename(self.path(from), self.path(to))?,
            Change::Link { from, to } => fs::hard_link(self.path(from), self.path(to))?,
            Change::Symlink { path, target } => symlink(target, self.path(path))?,
            Change::Mkdir { path } => fs::create_dir(self.path(path))?,
            Change::Unlink { path } => fs::remove_file(self.path(path))?,
            Change::Rmdir { path } => fs::remove_dir(self.path(path))?,
        }
        Ok(())
    }

    /// Syncs the file that a change concerns, and the directories whose names it changed.
    fn sync(&self, change: &Change, data_only: bool) -> io::Result<()> {
        let mut dirs = BTreeSet::new();
        match change {
            Change::Create { path, .. } => {
                self.open(path)?.sync_all()?;
                dirs.insert(parent(path));
            }
            Change::Replace { path, .. }
            | Change::Symlink { path, .. }
            | Change::Mkdir { path }
            | Change::Unlink { path }
            | Change::Rmdir { path } => {
                dirs.insert(parent(path));
            }
            Change::Rename { from, to } | Change::Link { from, to } => {
                dirs.insert(parent(from));
                dirs.insert(parent(to));
            }
            Change::Write { path, .. }
            | Change::Truncate { path, .. }
            | Change::Allocate { path, .. }
            | Change::Punch { path, .. }
            | Change::Zero { path, .. }
            | Change::Collapse { path, .. }
            | Change::Insert { path, .. }
            | Change::SetXattr { path, .. } => {
                let file = self.open(path)?;
                if data_only {
                    file.sync_data()?;
                } else {
                    file.sync_all()?;
                }
            }
        }
        for dir in dirs {
            File::open(self.path(dir))?.sync_all()?;
        }
        Ok(())
    }
}

/// The value of O_DSYNC on every architecture of Linux that matters here.
const O_DSYNC: i32 = rustix::fs::OFlags::DSYNC.bits() as i32;
/// The same of O_DIRECT.
const O_DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;
/// Memory for direct I/O begins at a multiple of this.
const ALIGN: usize = 4096;

fn put(file: &File, write: &Write) -> io::Result<()> {
    let length = usize::try_from(write.length).map_err(io::Error::other)?;
    let mut memory = vec![0; length + ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN);
    let bytes = memory
        .get_mut(start..start.saturating_add(length))
        .ok_or_else(|| io::Error::other("memory cannot be aligned"))?;
    fill(write.stamp, write.pos, bytes);
    file.write_all_at(bytes, write.pos)
}

/// Writes without ever syncing, until told to stop: the disk then always has something in flight
/// that nobody was promised.
pub fn make_noise(dir: &Path, seed: u64, stop: &dyn Fn() -> bool) -> io::Result<()> {
    let dir = dir.join(NOISE);
    fs::create_dir_all(&dir)?;
    let mut random = Random::new(!seed);
    while !stop() {
        let path = dir.join(format!("n{}", random.below(8)));
        match random.below(6) {
            0 => match fs::remove_file(&path) {
                Err(why) if why.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            },
            1 => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)?;
                file.set_len(random.below(256 << 10))?;
            }
            _ => {
                let file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)?;
                let write = Write {
                    pos: random.below(256 << 10),
                    length: random.length(64 << 10),
                    stamp: NOISE_STAMP,
                };
                put(&file, &write)?;
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}
