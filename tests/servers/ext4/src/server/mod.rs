// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The FUSE side: requests in, a [`Volume`]'s answers out.
//!
//! Node ids are inode numbers, except that FUSE calls the root 1 and ext4 calls it 2. Nobody changes the
//! volume but through this mount, so the kernel may keep every name, attribute and page it was told
//! about. A writable volume counts how often the kernel was told of an inode, because one without a name
//! lives until the kernel has forgotten it.
//!
//! The kernel's requests are in `fs`, and what those that change something need is in `change`; what the
//! kernel may remember is in `cache`.

mod cache;
mod change;
mod fs;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
use std::time::Duration;

use fuse_iomap::{
    BackingId, Caching, Connection, Entry, Errno, Mapping, Result, Retried,
    wire::{self, Attr, attr_flags},
};

use ext4_volume::{
    Error, Volume,
    inode::{Inode, ROOT, flags},
    map::{Run, Target},
};

/// How long the kernel may trust what it was told: for as long as the mount exists.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The same for attributes of files that the kernel writes: it does not know how much space they take.
const A_WHILE: Duration = Duration::from_secs(1);

/// Complaints about damage that are printed before the rest is only counted.
const MAX_COMPLAINTS: u32 = 20;

/// How file data is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IomapMode {
    /// By the kernel if it offers iomap, else by FUSE_READ.
    Auto,
    /// By the kernel, or not at all.
    Require,
    /// By FUSE_READ.
    Off,
}

/// Figures beyond the number of requests.
struct Stats {
    reads_of_iomap_inodes: Arc<AtomicU64>,
    reads_of_other_inodes: Arc<AtomicU64>,
    begin_mapped: Arc<AtomicU64>,
    begin_unwritten: Arc<AtomicU64>,
    begin_hole: Arc<AtomicU64>,
    begin_bytes: Arc<AtomicU64>,
    begin_for_write: Arc<AtomicU64>,
    ioend_unwritten: Arc<AtomicU64>,
    ioend_append: Arc<AtomicU64>,
    damage: Arc<AtomicU64>,
}

impl Stats {
    fn new(connection: &Connection) -> Self {
        let own = |name| connection.counters().own(name);
        Self {
            reads_of_iomap_inodes: own("reads_of_iomap_inodes"),
            reads_of_other_inodes: own("reads_of_other_inodes"),
            begin_mapped: own("begin_mapped"),
            begin_unwritten: own("begin_unwritten"),
            begin_hole: own("begin_hole"),
            begin_bytes: own("begin_bytes"),
            begin_for_write: own("begin_for_write"),
            ioend_unwritten: own("ioend_unwritten"),
            ioend_append: own("ioend_append"),
            damage: own("damage"),
        }
    }
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// What exists only once INIT was answered.
struct Running {
    stats: Stats,
    connection: Arc<Connection>,
    /// The device as the kernel knows it; `None` without iomap.
    device: Option<BackingId>,
}

/// A volume as a FUSE filesystem.
pub struct Server {
    volume: Arc<Volume>,
    /// What the kernel calls it in its log.
    name: String,
    mode: IomapMode,
    writeback_cache: bool,
    idmap: bool,
    caching: Caching,
    running: OnceLock<Running>,
    retried: Retried,
    complaints: AtomicU32,
    on_ready: Box<dyn Fn() + Send + Sync>,
}

/// The inode number behind a node id.
fn inode_number(nodeid: u64) -> Result<u32> {
    match u32::try_from(nodeid) {
        Ok(number) if nodeid == wire::ROOT_ID => Ok(number - 1 + ROOT),
        Ok(number) if number != ROOT => Ok(number),
        _ => Err(Errno::STALE),
    }
}

/// The node id of an inode number.
fn node_id(ino: u32) -> u64 {
    if ino == ROOT {
        wire::ROOT_ID
    } else {
        u64::from(ino)
    }
}

/// Where lseek(2) from `offset` arrives, given what is at each block.
fn seek(
    offset: u64,
    size: u64,
    block_size: u64,
    want_data: bool,
    mut run: impl FnMut(u64) -> Result<Run>,
) -> Result<u64> {
    if offset >= size {
        return Err(Errno::NXIO);
    }
    let mut at = offset;
    while at < size {
        let run = run(at / block_size)?;
        // Unwritten space reads as zeros and counts as a hole.
        let is_data = matches!(run.target, Target::Mapped(_));
        if is_data == want_data {
            return Ok(at);
        }
        at = run.end().saturating_mul(block_size);
    }
    if want_data {
        Err(Errno::NXIO)
    } else {
        Ok(size)
    }
}

impl Server {
    /// Serves `volume`, which the kernel calls `name`; calls `on_ready` once the kernel can ask. With `writeback_cache` the kernel
    /// collects what is written to files that it does not write itself.
    pub fn new(
        volume: Arc<Volume>,
        name: String,
        mode: IomapMode,
        writeback_cache: bool,
        idmap: bool,
        caching: Caching,
        on_ready: Box<dyn Fn() + Send + Sync>,
    ) -> Self {
        Self {
            volume,
            name,
            mode,
            writeback_cache,
            idmap,
            caching,
            running: OnceLock::new(),
            retried: Retried::default(),
            complaints: AtomicU32::new(0),
            on_ready,
        }
    }

    fn fail(&self, err: Error) -> Errno {
        if err.is_damage() {
            if let Some(running) = self.running.get() {
                count(&running.stats.damage, 1);
            }
            let earlier = self.complaints.fetch_add(1, Ordering::Relaxed);
            if earlier < MAX_COMPLAINTS {
                eprintln!("ext4: {err}");
            } else if earlier == MAX_COMPLAINTS {
                eprintln!("ext4: further complaints are only counted");
            }
        }
        Errno::from_raw_os_error(err.errno())
    }

    fn inode(&self, nodeid: u64) -> Result<Inode> {
        self.volume
            .inode(inode_number(nodeid)?)
            .map_err(|err| self.fail(err))
    }

    /// The device, if this inode's data is the kernel's business.
    fn iomap(&self, inode: &Inode) -> Option<BackingId> {
        let device = self.running.get()?.device?;
        if !inode.is_regular() || inode.is_inline() {
            return None;
        }
        // Data that is still in the journal is not on the device, where the kernel would look. If
        // the map cannot be read, reading says so.
        let in_journal = self.volume.data_in_journal(inode).unwrap_or(true);
        (!in_journal).then_some(device)
    }

    fn attr(&self, inode: &Inode) -> Attr {
        let attr = self.volume.attr(inode);
        let mut bits = 0;
        if self.iomap(inode).is_some() {
            bits |= attr_flags::EXCLUSIVE | attr_flags::IOMAP;
        } else if !inode.is_regular() {
            // Nor do others change these. Files without iomap are ordinary ones of FUSE.
            bits |= attr_flags::EXCLUSIVE;
        }
        for (on_disk, bit) in [
            (flags::SYNC, attr_flags::SYNC),
            (flags::IMMUTABLE, attr_flags::IMMUTABLE),
            (flags::APPEND, attr_flags::APPEND),
        ] {
            if attr.flags & on_disk != 0 {
                bits |= bit;
            }
        }
        Attr {
            ino: u64::from(attr.ino),
            size: attr.size,
            blocks: attr.blocks,
            // The kernel reads these as signed.
            atime: attr.atime.sec as u64,
            mtime: attr.mtime.sec as u64,
            ctime: attr.ctime.sec as u64,
            atimensec: attr.atime.nsec,
            mtimensec: attr.mtime.nsec,
            ctimensec: attr.ctime.nsec,
            mode: u32::from(attr.mode),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            rdev: attr.rdev,
            blksize: self.volume.block_size(),
            flags: bits,
        }
    }

    /// How long an inode's attributes hold.
    fn validity(&self, inode: &Inode) -> Duration {
        if inode.is_regular() && self.volume.is_writable() {
            A_WHILE
        } else {
            FOREVER
        }
    }

    fn entry(&self, inode: &Inode) -> Entry {
        let mut entry = Entry::new(node_id(inode.ino()), self.attr(inode)).valid_for(FOREVER);
        entry.attr_valid = self.validity(inode);
        entry.generation = u64::from(inode.generation());
        entry
    }

    fn mapping(&self, run: &Run, device: BackingId, size: u64, wanted_end: u64) -> Mapping {
        let block_size = u64::from(self.volume.block_size());
        let offset = run.start.saturating_mul(block_size);
        let length = run.len.saturating_mul(block_size);
        match run.target {
            Target::Mapped(at) => Mapping::mapped(device, offset, length, at * block_size),
            Target::Unwritten(at) => Mapping::unwritten(device, offset, length, at * block_size),
            Target::Hole => {
                // The hole behind the last extent has no end of its own. It is as long as it
                // matters: to the end of the file, or of what was asked for.
                let useful = size.max(wanted_end).next_multiple_of(block_size);
                let end = offset.saturating_add(length).min(useful);
                Mapping::hole(offset, end.saturating_sub(offset).max(block_size))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_has_two_numbers() {
        assert_eq!(inode_number(1).unwrap(), ROOT);
        assert_eq!(node_id(ROOT), 1);
        assert_eq!(inode_number(12).unwrap(), 12);
        assert_eq!(node_id(12), 12);
        // Nobody was ever told node 2, which would be a second name for the root.
        assert_eq!(inode_number(2), Err(Errno::STALE));
        assert_eq!(inode_number(1 << 40), Err(Errno::STALE));
    }

    /// Block 0 is data, 1 and 2 are a hole, 3 is unwritten, 4 is data, then nothing.
    fn layout(block: u64) -> Result<Run> {
        let (start, len, target) = match block {
            0 => (0, 1, Target::Mapped(100)),
            1 | 2 => (1, 2, Target::Hole),
            3 => (3, 1, Target::Unwritten(200)),
            4 => (4, 1, Target::Mapped(300)),
            _ => (5, 1000, Target::Hole),
        };
        Ok(Run { start, len, target })
    }

    #[test]
    fn seeking_treats_unwritten_space_as_hole() {
        let seek = |offset, data| seek(offset, 6 * 1024, 1024, data, layout);
        assert_eq!(seek(5, true), Ok(5));
        assert_eq!(seek(5, false), Ok(1024));
        assert_eq!(seek(1024, true), Ok(4096));
        assert_eq!(seek(3500, false), Ok(3500));
        assert_eq!(seek(4100, false), Ok(5120));
        assert_eq!(seek(5120, true), Err(Errno::NXIO));
        assert_eq!(seek(6 * 1024, false), Err(Errno::NXIO));
    }

    #[test]
    fn a_file_that_ends_in_data_has_a_hole_at_its_end() {
        assert_eq!(seek(4096, 4500, 1024, false, layout), Ok(4500));
    }
}
