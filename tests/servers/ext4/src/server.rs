// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The FUSE side: requests in, a [`Volume`]'s answers out.
//!
//! Node ids are inode numbers, except that FUSE calls the root 1 and ext4 calls it 2. So there is no
//! table of nodes to keep, and FORGET has nothing to do. The volume does not change while it is
//! mounted, so the kernel may keep every name, attribute and page it was told about.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use fuse_iomap::{
    AttrReply, BackingId, BackingType, BeginReply, Connection, DirBuffer, DirPlusBuffer, Entry,
    Errno, FileKind, Filesystem, InitConfig, IoctlReply, Mapping, Opened, Request, Result,
    wire::{
        self, Attr, GetattrIn, IoctlIn, IomapBeginIn, Kstatfs, LseekIn, OpenIn, ReadIn, Statx,
        StatxIn, StatxOut, SxTime, attr_flags, init, iomap_op,
    },
};

use ext4_volume::{
    Error, Volume,
    dir::{DirEntry, NAME_MAX},
    inode::{self, Inode, ROOT, Time, flags},
    map::{Run, Target},
};

/// How long the kernel may trust what it was told: for as long as the mount exists.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

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
    /// The device as the kernel knows it; `None` without iomap.
    device: Option<BackingId>,
}

/// A volume as a FUSE filesystem.
pub struct Server {
    volume: Volume,
    mode: IomapMode,
    running: OnceLock<Running>,
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
    /// Serves `volume`; calls `on_ready` once the kernel can ask.
    pub fn new(volume: Volume, mode: IomapMode, on_ready: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            volume,
            mode,
            running: OnceLock::new(),
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
        if inode.is_dir() {
            bits |= attr_flags::EXCLUSIVE;
        } else if self.iomap(inode).is_some() {
            bits |= attr_flags::EXCLUSIVE | attr_flags::IOMAP;
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

    fn entry(&self, inode: &Inode) -> Entry {
        let mut entry = Entry::new(node_id(inode.ino()), self.attr(inode)).valid_for(FOREVER);
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

impl Filesystem for Server {
    fn init(&self, config: &mut InitConfig) -> Result<()> {
        match self.mode {
            IomapMode::Off => {}
            mode => {
                if !config.request_iomap() {
                    let why = "the kernel does not offer iomap (is fuse.enable_iomap on, and does \
                               the mounter have CAP_SYS_RAWIO?)";
                    if mode == IomapMode::Require {
                        eprintln!("ext4: {why}");
                        return Err(Errno::PROTONOSUPPORT);
                    }
                    eprintln!("ext4: {why}; serving data by FUSE_READ");
                }
            }
        }
        config.request(
            init::POSIX_ACL
                | init::CACHE_SYMLINKS
                | init::NO_OPEN_SUPPORT
                | init::NO_OPENDIR_SUPPORT
                | init::EXPORT_SUPPORT,
        );
        Ok(())
    }

    fn ready(&self, connection: &Arc<Connection>) -> io::Result<()> {
        let device = if connection.has_iomap() {
            let file = self
                .volume
                .file()
                .ok_or_else(|| io::Error::other("the volume is not on a device"))?;
            let id = connection
                .backing_open(file, BackingType::Iomap)
                .map_err(|err| {
                    io::Error::new(
                        err.kind(),
                        format!("the kernel does not take the device: {err}"),
                    )
                })?;
            Some(id)
        } else {
            None
        };
        let stats = Stats::new(connection);
        // INIT comes once, so the cell is empty.
        let _ = self.running.set(Running { stats, device });
        (self.on_ready)();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        let dir = self.inode(parent)?;
        let found = self
            .volume
            .lookup(&dir, name.as_bytes())
            .map_err(|err| self.fail(err))?;
        match found {
            Some(ino) => {
                let inode = self.volume.inode(ino).map_err(|err| self.fail(err))?;
                Ok(self.entry(&inode))
            }
            // The kernel remembers that there is no such name.
            None => Ok(Entry::new(0, Attr::default()).valid_for(FOREVER)),
        }
    }

    fn getattr(&self, _: &Request, nodeid: u64, _: &GetattrIn) -> Result<AttrReply> {
        let inode = self.inode(nodeid)?;
        let mut reply = AttrReply::new(self.attr(&inode));
        reply.valid = FOREVER;
        Ok(reply)
    }

    fn statx(&self, _: &Request, nodeid: u64, _: &StatxIn) -> Result<StatxOut> {
        const BASIC: u32 = 0x7ff;
        const BTIME: u32 = 0x800;
        let inode = self.inode(nodeid)?;
        let attr = self.volume.attr(&inode);
        let time = |time: Time| SxTime {
            tv_sec: time.sec,
            tv_nsec: time.nsec,
            reserved: 0,
        };
        let stat = Statx {
            mask: BASIC | attr.crtime.map_or(0, |_| BTIME),
            blksize: self.volume.block_size(),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode,
            ino: u64::from(attr.ino),
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime),
            btime: time(attr.crtime.unwrap_or_default()),
            ctime: time(attr.ctime),
            mtime: time(attr.mtime),
            rdev_major: (attr.rdev >> 8) & 0xfff,
            rdev_minor: (attr.rdev & 0xff) | ((attr.rdev >> 12) & 0xf_ff00),
            ..Default::default()
        };
        Ok(StatxOut {
            attr_valid: FOREVER.as_secs(),
            stat,
            ..Default::default()
        })
    }

    fn readlink(&self, _: &Request, nodeid: u64) -> Result<Vec<u8>> {
        let inode = self.inode(nodeid)?;
        self.volume.read_link(&inode).map_err(|err| self.fail(err))
    }

    // Opening needs nothing: with ENOSYS the kernel stops asking.
    fn open(&self, _: &Request, _: u64, _: &OpenIn) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    fn opendir(&self, _: &Request, _: u64, _: &OpenIn) -> Result<Opened> {
        Err(Errno::NOSYS)
    }

    fn read(&self, _: &Request, nodeid: u64, args: &ReadIn, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode(nodeid)?;
        if !inode.is_regular() {
            return Err(Errno::INVAL);
        }
        if let Some(running) = self.running.get() {
            let stats = &running.stats;
            let counter = if self.iomap(&inode).is_some() {
                &stats.reads_of_iomap_inodes
            } else {
                &stats.reads_of_other_inodes
            };
            count(counter, 1);
        }
        self.volume
            .read(&inode, args.offset, buf)
            .map_err(|err| self.fail(err))
    }

    fn statfs(&self, _: &Request, _: u64) -> Result<Kstatfs> {
        let stat = self.volume.statfs();
        Ok(Kstatfs {
            blocks: stat.blocks,
            bfree: stat.free,
            bavail: stat.available,
            files: stat.files,
            ffree: stat.files_free,
            bsize: stat.block_size,
            namelen: NAME_MAX as u32,
            frsize: stat.block_size,
            ..Default::default()
        })
    }

    fn getxattr(&self, _: &Request, nodeid: u64, name: &OsStr) -> Result<Vec<u8>> {
        let inode = self.inode(nodeid)?;
        self.volume
            .xattr(&inode, name.as_bytes())
            .map_err(|err| self.fail(err))
    }

    fn listxattr(&self, req: &Request, nodeid: u64) -> Result<Vec<u8>> {
        let inode = self.inode(nodeid)?;
        let names = self.volume.xattr_names(&inode, req.uid() == 0);
        let names = names.map_err(|err| self.fail(err))?;
        let mut list = Vec::new();
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    fn readdir(
        &self,
        _: &Request,
        nodeid: u64,
        args: &ReadIn,
        out: &mut DirBuffer<'_>,
    ) -> Result<()> {
        let dir = self.inode(nodeid)?;
        let add = |entry: DirEntry<'_>| {
            let kind = FileKind::from_mode(u32::from(entry.kind) << 12);
            let name = OsStr::from_bytes(entry.name);
            let added = out.add(u64::from(entry.ino), entry.next, kind, name);
            Ok((!added).then_some(()))
        };
        let result = self.volume.read_dir(&dir, args.offset, add);
        result.map_err(|err| self.fail(err))?;
        Ok(())
    }

    fn readdirplus(
        &self,
        _: &Request,
        nodeid: u64,
        args: &ReadIn,
        out: &mut DirPlusBuffer<'_>,
    ) -> Result<()> {
        let dir = self.inode(nodeid)?;
        let add = |entry: DirEntry<'_>| {
            let name = OsStr::from_bytes(entry.name);
            if !out.fits(name) {
                return Ok(Some(()));
            }
            let kind = FileKind::from_mode(u32::from(entry.kind) << 12);
            let dots = matches!(entry.name, b"." | b"..");
            let inode = if dots {
                None
            } else {
                Some(self.volume.inode(entry.ino))
            };
            let added = match inode {
                Some(Ok(inode)) => out.add(&self.entry(&inode), entry.next, name),
                // A damaged inode keeps its name in the list; looking it up tells the reason.
                Some(Err(_)) | None => out.add_plain(u64::from(entry.ino), entry.next, kind, name),
            };
            Ok((!added).then_some(()))
        };
        let result = self.volume.read_dir(&dir, args.offset, add);
        result.map_err(|err| self.fail(err))?;
        Ok(())
    }

    fn lseek(&self, _: &Request, nodeid: u64, args: &LseekIn) -> Result<u64> {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let want_data = match args.whence {
            SEEK_DATA => true,
            SEEK_HOLE => false,
            _ => return Err(Errno::INVAL),
        };
        let inode = self.inode(nodeid)?;
        if !inode.is_regular() {
            return Err(Errno::INVAL);
        }
        let size = self.volume.size(&inode);
        let block_size = u64::from(self.volume.block_size());
        seek(args.offset, size, block_size, want_data, |block| {
            if inode.is_inline() {
                let len = size.div_ceil(block_size).max(1);
                return Ok(Run {
                    start: 0,
                    len,
                    target: Target::Mapped(0),
                });
            }
            let run = self.volume.run(&inode, block, block + 1);
            run.map_err(|err| self.fail(err))
        })
    }

    fn ioctl(&self, _: &Request, nodeid: u64, args: &IoctlIn, _: &[u8]) -> Result<IoctlReply> {
        // The directions and sizes in these numbers are those of 64-bit and of 32-bit programs.
        const GETFLAGS: [u32; 2] = [0x8008_6601, 0x8004_6601];
        const GETVERSION: [u32; 4] = [0x8008_7601, 0x8004_7601, 0x8008_6603, 0x8004_6603];
        const FSGETXATTR: u32 = 0x801c_581f;
        let inode = self.inode(nodeid)?;
        let visible = inode.flags() & flags::USER_VISIBLE;
        let data = if GETFLAGS.contains(&args.cmd) {
            visible.to_ne_bytes().to_vec()
        } else if GETVERSION.contains(&args.cmd) {
            inode.generation().to_ne_bytes().to_vec()
        } else if args.cmd == FSGETXATTR {
            inode::fsxattr(visible).to_vec()
        } else {
            return Err(Errno::NOTTY);
        };
        Ok(IoctlReply { result: 0, data })
    }

    fn iomap_begin(&self, _: &Request, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        if args.opflags & (iomap_op::WRITE | iomap_op::ZERO) != 0 {
            return Err(Errno::ROFS);
        }
        let inode = self.inode(nodeid)?;
        let device = self.iomap(&inode).ok_or(Errno::INVAL)?;
        let block_size = u64::from(self.volume.block_size());
        let first = args.pos / block_size;
        // Offsets are signed in the kernel, so neither of these can wrap there; here they must not.
        let end = args.pos.saturating_add(args.count).min(i64::MAX as u64);
        let run = self
            .volume
            .run(&inode, first, end.div_ceil(block_size))
            .map_err(|err| self.fail(err))?;
        let mapping = self.mapping(&run, device, self.volume.size(&inode), end);
        if let Some(running) = self.running.get() {
            let stats = &running.stats;
            let counter = match run.target {
                Target::Mapped(_) => &stats.begin_mapped,
                Target::Unwritten(_) => &stats.begin_unwritten,
                Target::Hole => &stats.begin_hole,
            };
            count(counter, 1);
            count(&stats.begin_bytes, mapping.length());
        }
        Ok(BeginReply::read(mapping))
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
