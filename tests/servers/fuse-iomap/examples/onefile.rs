// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A whole server: one file, `disk`, that is the block device given on the command line. The
//! kernel reads and writes the device itself; this process only says where, and tells on standard
//! output what it was asked.
//!
//! ```text
//! onefile /dev/vdb /mnt
//! ```
//!
//! `make example` shows it in a virtual machine.

use fuse_iomap::wire::{self, Attr, GetattrIn, IomapBeginIn, OpenIn, ReadIn, SetattrIn};
use fuse_iomap::wire::{attr_flags, fattr, init, iomap_op};
use fuse_iomap::{
    AttrReply, BackingId, BackingType, BeginReply, Connection, DirBuffer, Entry, Errno, FileKind,
    Filesystem, InitConfig, Mapping, MountOptions, Opened, Request, Result, Session,
    SessionOptions,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

const FILE: u64 = 2;
const NAME: &str = "disk";
const BLOCK: u32 = 4096;

struct OneFile {
    device: PathBuf,
    /// In bytes, whole blocks. It never changes, and neither does that of the file.
    size: u64,
    backing: OnceLock<BackingId>,
}

impl OneFile {
    fn attr(&self, nodeid: u64) -> Result<Attr> {
        let (mode, nlink, size, flags) = match nodeid {
            wire::ROOT_ID => (0o040755, 2, 0, 0),
            FILE => {
                // Nobody else changes the file, and its I/O is the kernel's.
                let flags = attr_flags::EXCLUSIVE | attr_flags::IOMAP;
                (0o100644, 1, self.size, flags)
            }
            _ => return Err(Errno::NOENT),
        };
        Ok(Attr {
            ino: nodeid,
            size,
            blocks: size / 512,
            mode,
            nlink,
            blksize: BLOCK,
            flags,
            ..Default::default()
        })
    }
}

impl Filesystem for OneFile {
    fn init(&self, config: &mut InitConfig) -> Result<()> {
        // This server cannot read for the kernel, so without iomap it is of no use.
        if !config.request_iomap() {
            eprintln!("the kernel does not offer iomap (fuse.enable_iomap=1? CAP_SYS_RAWIO?)");
            return Err(Errno::PROTONOSUPPORT);
        }
        config.refuse(init::DO_READDIRPLUS);
        Ok(())
    }

    fn ready(&self, connection: &Arc<Connection>) -> io::Result<()> {
        // From here on the kernel has the device open until umount. A server that reads metadata
        // from it would keep the file, too, and close it in `destroy`.
        let device = File::options().read(true).write(true).open(&self.device)?;
        let id = connection.backing_open(&device, BackingType::Iomap)?;
        // `ready` runs once, so the cell is empty.
        let _ = self.backing.set(id);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        if parent == wire::ROOT_ID && name == NAME {
            Ok(Entry::new(FILE, self.attr(FILE)?))
        } else {
            Err(Errno::NOENT)
        }
    }

    fn getattr(&self, _: &Request, nodeid: u64, _: &GetattrIn) -> Result<AttrReply> {
        Ok(AttrReply::new(self.attr(nodeid)?))
    }

    fn setattr(&self, _: &Request, nodeid: u64, args: &SetattrIn) -> Result<AttrReply> {
        // The kernel stamps the file when it is written, and says so here. There is no place to
        // store that; but a size or an owner that was not taken has to be refused.
        let refused = fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE;
        if args.valid & refused != 0 {
            return Err(Errno::PERM);
        }
        Ok(AttrReply::new(self.attr(nodeid)?))
    }

    fn open(&self, _: &Request, _: u64, _: &OpenIn) -> Result<Opened> {
        Ok(Opened::default())
    }

    fn opendir(&self, _: &Request, _: u64, _: &OpenIn) -> Result<Opened> {
        Ok(Opened::default())
    }

    fn readdir(&self, _: &Request, _: u64, args: &ReadIn, dir: &mut DirBuffer<'_>) -> Result<()> {
        if args.offset == 0 {
            let _ = dir.add(FILE, 1, FileKind::REGULAR, OsStr::new(NAME));
        }
        Ok(())
    }

    fn iomap_begin(&self, _: &Request, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        let backing = *self.backing.get().ok_or(Errno::IO)?;
        let what = match args.opflags {
            flags if flags & iomap_op::WRITEBACK != 0 => "to write back",
            flags if flags & iomap_op::WRITE != 0 => "to write",
            flags if flags & iomap_op::REPORT != 0 => "to report",
            _ => "to read",
        };
        let direct = if args.opflags & iomap_op::DIRECT != 0 {
            " directly"
        } else {
            ""
        };
        println!(
            "BEGIN {what}{direct}: pos {} count {}",
            args.pos, args.count
        );
        if nodeid != FILE {
            return Err(Errno::INVAL);
        }
        if args.pos >= self.size {
            // Only a write gets here: the kernel reads nothing beyond the size.
            return Err(Errno::NOSPC);
        }
        // The whole file is one extent, so the whole of it is the answer, and a write goes where
        // the data is. Blocks never change, so there is nothing to do when it is there:
        // `iomap_ioend` is left out, as is `fsync`, for which the kernel flushes the device.
        Ok(BeginReply::read(Mapping::mapped(backing, 0, self.size, 0)))
    }
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, device, mountpoint] = args.as_slice() else {
        return Err(io::Error::other("usage: onefile DEVICE MOUNTPOINT"));
    };
    let size = File::open(device)?.seek(SeekFrom::End(0))? / u64::from(BLOCK) * u64::from(BLOCK);
    let fs = OneFile {
        device: device.into(),
        size,
        backing: OnceLock::new(),
    };
    let options = MountOptions::new(device).subtype("onefile");
    Session::mount(fs, mountpoint, &options, SessionOptions::default())?.run()
}
