// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The requests, one method each.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, sync::Arc};

use fuse_iomap::{
    AttrReply, BackingType, BeginReply, ConfigReply, Connection, DirBuffer, DirPlusBuffer, Entry,
    Errno, FileKind, Filesystem, InitConfig, IoctlReply, Opened, Request, Result,
    wire::{
        Attr, CreateIn, FallocateIn, FsyncIn, GetattrIn, IoctlIn, IomapBeginIn, IomapConfigIn,
        IomapIoendIn, Kstatfs, LseekIn, MkdirIn, MknodIn, OpenIn, ReadIn, SetattrIn, SetxattrIn,
        Statx, StatxIn, StatxOut, SxTime, WriteIn, init, iomap_op,
    },
};

use ext4_volume::{
    dir::{DirEntry, NAME_MAX},
    inode::{self, Time, flags, mode},
    map::{Run, Target},
    names::NewInode,
};

use super::{FOREVER, IomapMode, Running, Server, Stats, count, inode_number, seek};

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
        if self.writeback_cache {
            config.request(init::WRITEBACK_CACHE);
        }
        if self.idmap {
            config.request(init::ALLOW_IDMAP);
        }
        if self.volume.is_writable() {
            // A default ACL takes the umask's place, so it is applied here.
            config.request(init::DONT_MASK);
        }
        Ok(())
    }

    fn ready(&self, connection: &Arc<Connection>) -> io::Result<()> {
        let device = if connection.has_iomap() {
            let file = self
                .volume
                .file()
                .ok_or_else(|| io::Error::other("the volume is not on a device"))?;
            let id = connection
                .backing_open(&file, BackingType::Iomap)
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
        let _ = self.running.set(Running {
            stats,
            connection: connection.clone(),
            device,
        });
        self.volume.start_committer()?;
        (self.on_ready)();
        Ok(())
    }

    fn destroy(&self) {
        self.close();
    }

    fn forget(&self, nodeid: u64, nlookup: u64) {
        // Nobody waits for an answer, so an error can only be told to the operator.
        if let Ok(ino) = inode_number(nodeid)
            && let Err(err) = self.volume.forget(ino, nlookup)
        {
            self.fail(err);
        }
    }

    fn lookup(&self, _: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        let _shared = self.volume.shared();
        let dir = self.inode(parent)?;
        let found = self
            .volume
            .lookup(&dir, name.as_bytes())
            .map_err(|err| self.fail(err))?;
        match found {
            Some(ino) => {
                let inode = self.volume.inode(ino).map_err(|err| self.fail(err))?;
                self.volume.remember(ino);
                Ok(self.entry(&inode))
            }
            // The kernel remembers that there is no such name.
            None => Ok(Entry::new(0, Attr::default()).valid_for(FOREVER)),
        }
    }

    fn getattr(&self, _: &Request, nodeid: u64, _: &GetattrIn) -> Result<AttrReply> {
        let _shared = self.volume.shared();
        let inode = self.inode(nodeid)?;
        let mut reply = AttrReply::new(self.attr(&inode));
        reply.valid = self.validity(&inode);
        Ok(reply)
    }

    fn statx(&self, _: &Request, nodeid: u64, _: &StatxIn) -> Result<StatxOut> {
        const BASIC: u32 = 0x7ff;
        const BTIME: u32 = 0x800;
        let _shared = self.volume.shared();
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
            attr_valid: self.validity(&inode).as_secs(),
            stat,
            ..Default::default()
        })
    }

    fn readlink(&self, _: &Request, nodeid: u64) -> Result<Vec<u8>> {
        let _shared = self.volume.shared();
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
        let _shared = self.volume.shared();
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
        let _shared = self.volume.shared();
        let inode = self.inode(nodeid)?;
        self.volume
            .xattr(&inode, name.as_bytes())
            .map_err(|err| self.fail(err))
    }

    fn listxattr(&self, req: &Request, nodeid: u64) -> Result<Vec<u8>> {
        let _shared = self.volume.shared();
        let inode = self.inode(nodeid)?;
        // With idmapped mounts the kernel does not say who asks.
        let trusted = req.uid() == 0 || self.idmap;
        let names = self.volume.xattr_names(&inode, trusted);
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
        let _shared = self.volume.shared();
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
        let _shared = self.volume.shared();
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
                Some(Ok(inode)) => {
                    let added = out.add(&self.entry(&inode), entry.next, name);
                    if added {
                        self.volume.remember(entry.ino);
                    }
                    added
                }
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
        let _shared = self.volume.shared();
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

    fn ioctl(&self, _: &Request, nodeid: u64, args: &IoctlIn, given: &[u8]) -> Result<IoctlReply> {
        // The directions and sizes in these numbers are those of 64-bit and of 32-bit programs.
        const GETFLAGS: [u32; 2] = [0x8008_6601, 0x8004_6601];
        const GETVERSION: [u32; 4] = [0x8008_7601, 0x8004_7601, 0x8008_6603, 0x8004_6603];
        const FSGETXATTR: u32 = 0x801c_581f;
        const SETFLAGS: [u32; 2] = [0x4008_6602, 0x4004_6602];
        const FSSETXATTR: u32 = 0x401c_5820;
        const GETFSLABEL: u32 = 0x8100_9431;
        /// What a label is handed out in.
        const LABEL_SIZE: usize = 256;
        let shared = self.volume.shared();
        let inode = self.inode(nodeid)?;
        let visible = inode.flags() & flags::USER_VISIBLE;
        if SETFLAGS.contains(&args.cmd) || args.cmd == FSSETXATTR {
            drop(shared);
            let wanted = if args.cmd == FSSETXATTR {
                inode::from_fsxattr(visible, given).ok_or(Errno::OPNOTSUPP)?
            } else {
                let flags = given.first_chunk().ok_or(Errno::INVAL)?;
                u32::from_ne_bytes(*flags)
            };
            let changed = self.volume.change_flags(inode_number(nodeid)?, wanted);
            changed.map_err(|err| self.fail(err))?;
            return Ok(IoctlReply {
                result: 0,
                data: Vec::new(),
            });
        }
        let data = if GETFLAGS.contains(&args.cmd) {
            visible.to_ne_bytes().to_vec()
        } else if GETVERSION.contains(&args.cmd) {
            inode.generation().to_ne_bytes().to_vec()
        } else if args.cmd == FSGETXATTR {
            inode::fsxattr(visible).to_vec()
        } else if args.cmd == GETFSLABEL {
            let mut label = self.volume.label().to_vec();
            label.resize(LABEL_SIZE, 0);
            label
        } else {
            return Err(Errno::NOTTY);
        };
        Ok(IoctlReply { result: 0, data })
    }

    fn iomap_begin(&self, _: &Request, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        let block_size = u64::from(self.volume.block_size());
        let first = args.pos / block_size;
        // Offsets are signed in the kernel, so neither of these can wrap there; here they must not.
        let end = args.pos.saturating_add(args.count).min(i64::MAX as u64);
        let end = end.div_ceil(block_size);
        // Zeroing a part of a block needs to know where it is, and nothing else: what is not there, or
        // not written, reads as zeros.
        let write = args.opflags & iomap_op::WRITE != 0;
        self.count_write(write);
        {
            let _shared = self.volume.shared();
            let (inode, device, run) = self.find(nodeid, first, end)?;
            if !write || run.target != Target::Hole {
                return Ok(self.answer(nodeid, args, (&inode, device), &run));
            }
        }
        self.fill_hole(nodeid, first, end, args.opflags)?;
        let _shared = self.volume.shared();
        let (inode, device, run) = self.find(nodeid, first, end)?;
        Ok(self.answer(nodeid, args, (&inode, device), &run))
    }

    fn iomap_ioends(&self, _: &Request, nodeid: u64, records: &[IomapIoendIn]) -> Result<Vec<u64>> {
        self.ioends(nodeid, records)
    }

    fn iomap_config(&self, _: &Request, args: &IomapConfigIn) -> Result<ConfigReply> {
        Ok(self.config(args))
    }

    fn setattr(&self, _: &Request, nodeid: u64, args: &SetattrIn) -> Result<AttrReply> {
        self.set_attributes(nodeid, args)?;
        let _shared = self.volume.shared();
        let inode = self.inode(nodeid)?;
        let mut reply = AttrReply::new(self.attr(&inode));
        reply.valid = self.validity(&inode);
        Ok(reply)
    }

    fn mknod(&self, req: &Request, parent: u64, name: &OsStr, args: &MknodIn) -> Result<Entry> {
        let new = NewInode {
            mode: args.mode as u16,
            umask: args.umask as u16,
            rdev: args.rdev,
            ..Server::owner(req)
        };
        self.make(parent, name, &new)
    }

    fn mkdir(&self, req: &Request, parent: u64, name: &OsStr, args: &MkdirIn) -> Result<Entry> {
        let new = NewInode {
            mode: args.mode as u16 & 0o7777 | mode::DIR,
            umask: args.umask as u16,
            ..Server::owner(req)
        };
        self.make(parent, name, &new)
    }

    fn create(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        args: &CreateIn,
    ) -> Result<(Entry, Opened)> {
        let new = NewInode {
            mode: args.mode as u16 & 0o7777 | mode::REG,
            umask: args.umask as u16,
            ..Server::owner(req)
        };
        self.make_open(parent, name, &new, args.flags)
    }

    fn tmpfile(&self, req: &Request, parent: u64, args: &CreateIn) -> Result<(Entry, Opened)> {
        let new = NewInode {
            mode: args.mode as u16 & 0o7777 | mode::REG,
            umask: args.umask as u16,
            ..Server::owner(req)
        };
        self.make_unnamed(parent, &new)
    }

    fn symlink(&self, req: &Request, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let new = Server::owner(req);
        let dir = inode_number(parent)?;
        let target = target.as_bytes();
        let made = self.volume.symlink(dir, name.as_bytes(), target, &new);
        self.tell(made.map_err(|err| self.fail(err))?)
    }

    fn link(&self, _: &Request, nodeid: u64, newparent: u64, newname: &OsStr) -> Result<Entry> {
        let (ino, dir) = (inode_number(nodeid)?, inode_number(newparent)?);
        let linked = self.volume.link(ino, dir, newname.as_bytes());
        linked.map_err(|err| self.fail(err))?;
        self.tell(ino)
    }

    fn unlink(&self, _: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let result = self.volume.unlink(inode_number(parent)?, name.as_bytes());
        result.map_err(|err| self.fail(err))
    }

    fn rmdir(&self, _: &Request, parent: u64, name: &OsStr) -> Result<()> {
        let result = self.volume.rmdir(inode_number(parent)?, name.as_bytes());
        result.map_err(|err| self.fail(err))
    }

    fn rename2(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        flags: u32,
    ) -> Result<()> {
        let from = (inode_number(parent)?, name.as_bytes());
        let to = (inode_number(newparent)?, newname.as_bytes());
        let result = self.volume.rename(from, to, flags, &Server::owner(req));
        result.map_err(|err| self.fail(err))
    }

    fn setxattr(
        &self,
        _: &Request,
        nodeid: u64,
        name: &OsStr,
        value: &[u8],
        args: &SetxattrIn,
    ) -> Result<()> {
        self.set_xattr(nodeid, name, value, args)
    }

    fn removexattr(&self, _: &Request, nodeid: u64, name: &OsStr) -> Result<()> {
        let result = self
            .volume
            .remove_xattr(inode_number(nodeid)?, name.as_bytes());
        result.map_err(|err| self.fail(err))
    }

    fn write(&self, _: &Request, nodeid: u64, args: &WriteIn, data: &[u8]) -> Result<u32> {
        self.write_data(nodeid, args, data)
    }

    fn fallocate(&self, _: &Request, nodeid: u64, args: &FallocateIn) -> Result<()> {
        self.allocate(nodeid, args)
    }

    fn fsync(&self, _: &Request, nodeid: u64, _: &FsyncIn) -> Result<()> {
        self.sync(nodeid)
    }

    fn fsyncdir(&self, _: &Request, nodeid: u64, _: &FsyncIn) -> Result<()> {
        self.sync(nodeid)
    }

    fn syncfs(&self, _: &Request, _: u64) -> Result<()> {
        if !self.volume.is_writable() {
            return Ok(());
        }
        self.volume.sync_all().map_err(|err| self.fail(err))
    }

    fn freeze(&self, _: &Request, _: u64) -> Result<()> {
        self.volume.freeze().map_err(|err| self.fail(err))
    }

    fn unfreeze(&self, _: &Request) -> Result<()> {
        self.volume.unfreeze().map_err(|err| self.fail(err))
    }

    fn shutdown(&self, _: &Request, _: u64) -> Result<()> {
        self.volume.shut_down();
        Ok(())
    }
}
