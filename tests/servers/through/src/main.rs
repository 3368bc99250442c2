// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `through [--stats FILE] DIRECTORY MOUNTPOINT`: the regular files of one directory, read and
//! written through FUSE passthrough. Everything but their data goes through this process.
//!
//! It is what the benchmark compares iomap with, so it does what a load needs and no more: there
//! are no directories below, and no listing.
#![forbid(unsafe_code)]

use fuse_iomap::wire::{
    self, Attr, CreateIn, FallocateIn, FsyncIn, GetattrIn, Kstatfs, OpenIn, ReleaseIn, SetattrIn,
    fattr, fopen, init, request_flags,
};
use fuse_iomap::{
    AttrReply, BackingId, BackingType, Connection, Entry, Errno, Filesystem, InitConfig,
    MountOptions, Opened, Request, Result, Session, SessionOptions,
};
use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Nobody changes the files but through this mount.
const VALID: Duration = Duration::from_secs(3600);

/// A file that the kernel knows of.
struct Node {
    file: Arc<File>,
    lookups: u64,
    /// Its registration, which all that have it open share, and how many those are.
    backing: Option<(BackingId, u32)>,
}

struct Through {
    directory: File,
    /// By inode number, which serves as node id. No filesystem gives a file number 1, which is the
    /// root's node id.
    nodes: Mutex<HashMap<u64, Node>>,
    connection: OnceLock<Arc<Connection>>,
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn attributes(file: impl AsFd) -> Result<Attr> {
    let stat = rustix::fs::fstat(file)?;
    Ok(Attr {
        ino: stat.st_ino,
        size: stat.st_size.unsigned_abs(),
        blocks: stat.st_blocks.unsigned_abs(),
        // The kernel reads these as signed.
        atime: stat.st_atime as u64,
        mtime: stat.st_mtime as u64,
        ctime: stat.st_ctime as u64,
        atimensec: stat.st_atime_nsec as u32,
        mtimensec: stat.st_mtime_nsec as u32,
        ctimensec: stat.st_ctime_nsec as u32,
        mode: stat.st_mode,
        nlink: stat.st_nlink as u32,
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: 0,
        blksize: stat.st_blksize as u32,
        flags: 0,
    })
}

impl Through {
    fn nodes(&self) -> MutexGuard<'_, HashMap<u64, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, nodeid: u64) -> Result<Arc<File>> {
        let nodes = self.nodes();
        let node = nodes.get(&nodeid).ok_or(Errno::STALE)?;
        Ok(node.file.clone())
    }

    fn attr(&self, nodeid: u64) -> Result<Attr> {
        if nodeid == wire::ROOT_ID {
            let attr = attributes(&self.directory)?;
            return Ok(Attr {
                ino: nodeid,
                ..attr
            });
        }
        attributes(&*self.file(nodeid)?)
    }

    /// Opens a file of the directory, and remembers it as looked up once more.
    fn find(&self, name: &OsStr, flags: OFlags, mode: Mode) -> Result<Entry> {
        let flags = flags | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.directory, name, flags, mode)?;
        let attr = attributes(&file)?;
        if FileType::from_raw_mode(attr.mode) != FileType::RegularFile {
            return Err(Errno::OPNOTSUPP);
        }
        let mut nodes = self.nodes();
        let node = nodes.entry(attr.ino).or_insert_with(|| Node {
            file: Arc::new(file.into()),
            lookups: 0,
            backing: None,
        });
        node.lookups += 1;
        Ok(Entry::new(attr.ino, attr).valid_for(VALID))
    }

    fn open_node(&self, nodeid: u64) -> Result<Opened> {
        let connection = self.connection.get().ok_or(Errno::IO)?;
        let mut nodes = self.nodes();
        let node = nodes.get_mut(&nodeid).ok_or(Errno::STALE)?;
        let (id, users) = match node.backing {
            Some(backing) => backing,
            None => {
                let id = connection.backing_open(&*node.file, BackingType::Passthrough);
                (id.map_err(|e| errno(&e))?, 0)
            }
        };
        node.backing = Some((id, users.saturating_add(1)));
        let mut opened = Opened::passthrough(nodeid, id);
        opened.flags |= fopen::NOFLUSH;
        Ok(opened)
    }
}

impl Filesystem for Through {
    fn init(&self, config: &mut InitConfig) -> Result<()> {
        if !config.request(init::PASSTHROUGH) {
            eprintln!("through: the kernel does not offer passthrough");
            return Err(Errno::PROTONOSUPPORT);
        }
        config.max_stack_depth = 1;
        config.refuse(init::DO_READDIRPLUS);
        Ok(())
    }

    fn ready(&self, connection: &Arc<Connection>) -> io::Result<()> {
        // `ready` runs once, so the cell is empty.
        let _ = self.connection.set(connection.clone());
        Ok(())
    }

    fn lookup(&self, _: &Request, _: u64, name: &OsStr) -> Result<Entry> {
        self.find(name, OFlags::empty(), Mode::empty())
    }

    fn forget(&self, nodeid: u64, nlookup: u64) {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get_mut(&nodeid) {
            node.lookups = node.lookups.saturating_sub(nlookup);
            if node.lookups == 0 {
                nodes.remove(&nodeid);
            }
        }
    }

    fn getattr(&self, _: &Request, nodeid: u64, _: &GetattrIn) -> Result<AttrReply> {
        let mut reply = AttrReply::new(self.attr(nodeid)?);
        reply.valid = VALID;
        Ok(reply)
    }

    fn setattr(&self, req: &Request, nodeid: u64, args: &SetattrIn) -> Result<AttrReply> {
        let file = self.file(nodeid)?;
        if args.valid & fattr::SIZE != 0 {
            rustix::fs::ftruncate(&*file, args.size)?;
        }
        if args.valid & fattr::MODE != 0 {
            rustix::fs::fchmod(&*file, Mode::from_raw_mode(args.mode))?;
        }
        self.getattr(req, nodeid, &GetattrIn::default())
    }

    fn create(
        &self,
        _: &Request,
        _: u64,
        name: &OsStr,
        args: &CreateIn,
    ) -> Result<(Entry, Opened)> {
        let exclusive = OFlags::from_bits_retain(args.flags) & OFlags::EXCL;
        let mode = Mode::from_raw_mode(args.mode & !args.umask);
        let entry = self.find(name, OFlags::CREATE | exclusive, mode)?;
        let opened = self.open_node(entry.nodeid)?;
        Ok((entry, opened))
    }

    fn unlink(&self, _: &Request, _: u64, name: &OsStr) -> Result<()> {
        rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
    }

    fn open(&self, _: &Request, nodeid: u64, _: &OpenIn) -> Result<Opened> {
        self.open_node(nodeid)
    }

    fn release(&self, _: &Request, nodeid: u64, _: &ReleaseIn) -> Result<()> {
        let connection = self.connection.get().ok_or(Errno::IO)?;
        let mut nodes = self.nodes();
        let node = nodes.get_mut(&nodeid).ok_or(Errno::STALE)?;
        let (id, users) = node.backing.take().ok_or(Errno::BADF)?;
        if users > 1 {
            node.backing = Some((id, users - 1));
            return Ok(());
        }
        connection.backing_close(id).map_err(|e| errno(&e))
    }

    fn opendir(&self, _: &Request, _: u64, _: &OpenIn) -> Result<Opened> {
        Ok(Opened::default())
    }

    fn fsync(&self, _: &Request, nodeid: u64, args: &FsyncIn) -> Result<()> {
        let file = self.file(nodeid)?;
        if args.fsync_flags & request_flags::FSYNC_FDATASYNC != 0 {
            rustix::fs::fdatasync(&*file)
        } else {
            rustix::fs::fsync(&*file)
        }
    }

    fn fallocate(&self, _: &Request, nodeid: u64, args: &FallocateIn) -> Result<()> {
        let mode = FallocateFlags::from_bits_retain(args.mode);
        rustix::fs::fallocate(&*self.file(nodeid)?, mode, args.offset, args.length)
    }

    fn statfs(&self, _: &Request, _: u64) -> Result<Kstatfs> {
        let stat = rustix::fs::fstatvfs(&self.directory)?;
        Ok(Kstatfs {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: stat.f_bsize as u32,
            namelen: stat.f_namemax as u32,
            frsize: stat.f_frsize as u32,
            ..Default::default()
        })
    }
}

fn run() -> io::Result<()> {
    let mut stats = None;
    let mut paths = Vec::new();
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        if arg == "--stats" {
            stats = args.next().map(PathBuf::from);
        } else {
            paths.push(PathBuf::from(arg));
        }
    }
    let [directory, mountpoint] = paths.as_slice() else {
        let usage = "usage: through [--stats FILE] DIRECTORY MOUNTPOINT";
        return Err(io::Error::other(usage));
    };
    let through = Through {
        directory: File::open(directory)?,
        nodes: Mutex::default(),
        connection: OnceLock::new(),
    };
    let mount = MountOptions::new(directory).subtype("through");
    let options = SessionOptions {
        counters_file: stats,
        ..SessionOptions::default()
    };
    Session::mount(through, mountpoint, &mount, options)?.run()
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("through: {error}");
            ExitCode::FAILURE
        }
    }
}
