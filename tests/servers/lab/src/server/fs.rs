// SPDX-License-Identifier: GPL-2.0 OR MIT
//! [`Lab`] as a filesystem.

use super::node::{Kind, MOST_RECORDS, Node, S_IFDIR, S_IFMT};
use super::{INO_BASE, Lab, lock};
use crate::control::{Begin, Ioend, Ready};
use crate::scenario::{ExtentKind, ExtentSpec};
use crate::store::{Answer, Side};
use fuse_iomap::wire::*;
use fuse_iomap::{
    AttrReply, BackingType, BeginReply, ConfigReply, Connection, DirBuffer, DirPlusBuffer, Entry,
    Errno, FileKind, Filesystem, InitConfig, IoctlReply, Mapping, Opened, Request, Result,
};
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// All operation flags of the protocol.
const KNOWN_OPFLAGS: u32 = 0x7ff | iomap_op::SWAPFILE | iomap_op::WRITEBACK;
/// What asks for more than where data is.
const CHANGING: u32 = iomap_op::WRITE | iomap_op::ZERO;
/// The requests of chattr(1), from programs of 64 bits.
const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
/// Blocks that statfs(2) counts in.
const STATFS_BLOCK: u64 = 4096;

pub(super) fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

impl Lab {
    pub(super) fn mapping(&self, e: &ExtentSpec) -> Result<Mapping> {
        self.side(e.offset, e.length, e.kind, (e.dev, e.addr), e.flags)
    }

    fn side(
        &self,
        offset: u64,
        length: u64,
        kind: ExtentKind,
        (dev, addr): (usize, u64),
        flags: u16,
    ) -> Result<Mapping> {
        let mapping = match kind {
            ExtentKind::Hole => Mapping::hole(offset, length),
            ExtentKind::Delalloc => Mapping::delalloc(offset, length),
            ExtentKind::Inline => Mapping::inline(length),
            ExtentKind::PureOverwrite => Mapping::pure_overwrite(offset, length),
            ExtentKind::Mapped => Mapping::mapped(self.device_id(dev)?, offset, length, addr),
            ExtentKind::Unwritten => Mapping::unwritten(self.device_id(dev)?, offset, length, addr),
        };
        Ok(mapping.with_flags(flags))
    }

    fn stored_side(&self, side: &Side) -> Result<Mapping> {
        let (offset, length) = (side.start, side.end - side.start);
        let mapping = match (side.kind, side.place) {
            (iomap_type::MAPPED, Some(p)) => {
                Mapping::mapped(self.device_id(p.dev)?, offset, length, p.addr)
            }
            (_, Some(p)) => Mapping::unwritten(self.device_id(p.dev)?, offset, length, p.addr),
            (iomap_type::INLINE, None) => Mapping::inline(length),
            (iomap_type::DELALLOC, None) => Mapping::delalloc(offset, length),
            (_, None) => Mapping::hole(offset, length),
        };
        Ok(mapping.with_flags(side.flags))
    }

    pub(super) fn stored_reply(&self, answer: &Answer) -> Result<BeginReply> {
        let read = self.stored_side(&answer.read)?;
        let mut reply = match &answer.write {
            Some(write) => BeginReply::read_write(read, self.stored_side(write)?),
            None => {
                let end = answer.in_place_to.max(read.end());
                let write = Mapping::pure_overwrite(read.offset(), end - read.offset());
                BeginReply::read_write(read, write)
            }
        };
        reply.write = reply.write.with_flags(answer.write_flags);
        let more = answer.more.iter().map(|side| self.stored_side(side));
        reply.more = more.collect::<Result<_>>()?;
        Ok(reply)
    }

    fn check_begin(&self, nodeid: u64, args: &IomapBeginIn) {
        let IomapBeginIn {
            opflags,
            reserved,
            attr_ino,
            pos,
            count,
        } = *args;
        let checks = [
            (reserved == 0, "reserved is not 0"),
            (
                attr_ino == INO_BASE + nodeid,
                "attr_ino is not fuse_attr.ino",
            ),
            (opflags & !KNOWN_OPFLAGS == 0, "unknown operation flag"),
            (count != 0, "count is 0"),
            (pos.checked_add(count).is_some(), "pos + count overflows"),
        ];
        for (_, text) in checks.iter().filter(|(ok, _)| !ok) {
            self.violation(format!("BEGIN for node {nodeid}: {text}: {args:?}"));
        }
    }

    fn flush_devices(&self) -> Result<()> {
        for device in self.devices.iter() {
            device.flush().map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    fn stored(&self, nodeid: u64) -> Result<Arc<Node>> {
        let node = self.node(nodeid)?;
        match node.kind {
            Kind::Stored => Ok(node),
            _ => Err(Errno::OPNOTSUPP),
        }
    }
}

/// [`Lab`] as a filesystem.
pub struct LabFs(pub Arc<Lab>);

impl LabFs {
    fn opened(&self) -> Opened {
        Opened {
            flags: self.0.options.open_flags,
            ..Opened::default()
        }
    }
}

impl Filesystem for LabFs {
    fn init(&self, config: &mut InitConfig) -> Result<()> {
        let options = &self.0.options;
        if options.accept_iomap {
            config.request_iomap();
        }
        if options.force_iomap {
            config.force(init::IOMAP);
        }
        if options.accept_passthrough && config.request(init::PASSTHROUGH) {
            config.max_stack_depth = 1;
        }
        if options.atomic_o_trunc {
            config.request(init::ATOMIC_O_TRUNC);
        }
        if !options.readdirplus {
            config.refuse(init::DO_READDIRPLUS | init::READDIRPLUS_AUTO);
        }
        Ok(())
    }

    fn ready(&self, connection: &Arc<Connection>) -> io::Result<()> {
        let lab = &self.0;
        // `ready` runs once, so all these cells are empty.
        let _ = lab.connection.set(connection.clone());
        let negotiated = connection.negotiated().copied();
        let offered = negotiated.map_or(0, |n| n.offered);
        let mut ids = Vec::new();
        if offered & init::IOMAP != 0 && connection.has_iomap() {
            for device in lab.devices.iter() {
                let id = connection.backing_open(&device.file, BackingType::Iomap);
                ids.push(id.map_err(|e| {
                    io::Error::other(format!("BACKING_OPEN {}: {e}", device.path.display()))
                })?);
            }
        }
        let ready = Ready {
            offered,
            flags: negotiated.map_or(0, |n| n.flags),
            devices: ids.iter().map(|id| id.get()).collect(),
        };
        let _ = lab.ids.set(ids);
        lab.be_restless();
        if let Some(on_ready) = lab.on_ready.get() {
            on_ready(&ready);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        self.0.entry(&*self.0.child(parent, name)?)
    }

    fn forget(&self, nodeid: u64, nlookup: u64) {
        self.0.forget_node(nodeid, nlookup);
    }

    fn getattr(&self, _: &Request, nodeid: u64, _: &GetattrIn) -> Result<AttrReply> {
        self.0.attr_reply(&*self.0.node(nodeid)?)
    }

    fn statx(&self, _: &Request, nodeid: u64, args: &StatxIn) -> Result<StatxOut> {
        const BASIC: u32 = 0x7ff;
        const ALIGNED: u32 = 0x2000 | 0x1_0000 | 0x2_0000;
        const SUBVOL: u32 = 0x8000;
        let subvol = self.0.options.subvol.ok_or(Errno::NOSYS)?;
        let AttrReply { attr, valid } = self.0.attr_reply(&*self.0.node(nodeid)?)?;
        let time = |sec: u64, nsec: u32| SxTime {
            tv_sec: sec as i64,
            tv_nsec: nsec,
            reserved: 0,
        };
        let stat = Statx {
            mask: BASIC | ALIGNED | args.sx_mask & SUBVOL,
            blksize: attr.blksize,
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            mode: attr.mode as u16,
            ino: attr.ino,
            size: attr.size,
            blocks: attr.blocks,
            atime: time(attr.atime, attr.atimensec),
            ctime: time(attr.ctime, attr.ctimensec),
            mtime: time(attr.mtime, attr.mtimensec),
            mnt_id: 1 << 40,
            dio_mem_align: 3,
            dio_offset_align: 5,
            dio_read_offset_align: 7,
            subvol,
            atomic_write_unit_min: 1,
            atomic_write_unit_max: 1 << 30,
            ..Default::default()
        };
        Ok(StatxOut {
            attr_valid: valid.as_secs(),
            stat,
            ..Default::default()
        })
    }

    fn setattr(&self, _: &Request, nodeid: u64, args: &SetattrIn) -> Result<AttrReply> {
        self.0.refused(opcode::SETATTR)?;
        let node = self.0.node(nodeid)?;
        if args.valid & fattr::SIZE != 0 {
            match &node.kind {
                Kind::Memory(content) => content
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .resize(args.size.min(1 << 30) as usize, 0),
                Kind::Stored => lock(&self.0.store).truncate(nodeid, args.size)?,
                _ => return Err(Errno::ROFS),
            }
        }
        lock(&node.meta).set(args);
        self.0.attr_reply(&node)
    }

    fn symlink(&self, req: &Request, parent: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        let mode = (0o120_777, 0);
        let target = Some(target.as_bytes());
        let node = self.0.make(req, parent, Some(name), mode, target)?;
        self.0.entry(&node)
    }

    fn mknod(&self, req: &Request, parent: u64, name: &OsStr, args: &MknodIn) -> Result<Entry> {
        let mode = (args.mode, args.rdev);
        let node = self.0.make(req, parent, Some(name), mode, None)?;
        self.0.entry(&node)
    }

    fn mkdir(&self, req: &Request, parent: u64, name: &OsStr, args: &MkdirIn) -> Result<Entry> {
        let mode = (S_IFDIR | args.mode & !S_IFMT, 0);
        let node = self.0.make(req, parent, Some(name), mode, None)?;
        self.0.entry(&node)
    }

    fn create(
        &self,
        req: &Request,
        parent: u64,
        name: &OsStr,
        args: &CreateIn,
    ) -> Result<(Entry, Opened)> {
        let mode = (args.mode, 0);
        let node = match self.0.make(req, parent, Some(name), mode, None) {
            // Truncation, if wanted, comes as SETATTR.
            Err(Errno::EXIST) if args.flags & O_EXCL == 0 => self.0.child(parent, name)?,
            made => made?,
        };
        Ok((self.0.entry(&node)?, self.opened()))
    }

    fn tmpfile(&self, req: &Request, parent: u64, args: &CreateIn) -> Result<(Entry, Opened)> {
        let node = self.0.make(req, parent, None, (args.mode, 0), None)?;
        Ok((self.0.entry(&node)?, self.opened()))
    }

    fn unlink(&self, _: &Request, parent: u64, name: &OsStr) -> Result<()> {
        self.0.unlink_name(parent, name, false)
    }

    fn rmdir(&self, _: &Request, parent: u64, name: &OsStr) -> Result<()> {
        self.0.unlink_name(parent, name, true)
    }

    fn rename2(
        &self,
        _: &Request,
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        flags: u32,
    ) -> Result<()> {
        self.0
            .rename_name((parent, name), (newparent, newname), flags)
    }

    fn link(&self, _: &Request, nodeid: u64, newparent: u64, newname: &OsStr) -> Result<Entry> {
        let node = self.0.link_name(nodeid, newparent, newname)?;
        self.0.entry(&node)
    }

    fn readlink(&self, _: &Request, nodeid: u64) -> Result<Vec<u8>> {
        match &self.0.node(nodeid)?.kind {
            Kind::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
    }

    fn open(&self, _: &Request, nodeid: u64, args: &OpenIn) -> Result<Opened> {
        let node = self.0.node(nodeid)?;
        if matches!(node.kind, Kind::Stored) && args.flags & O_TRUNC != 0 {
            self.0
                .violation(format!("OPEN of node {nodeid} with O_TRUNC"));
        }
        let path = match &node.kind {
            Kind::Passthrough(path) => path,
            Kind::Stored | Kind::Extents(_) => return Ok(self.opened()),
            _ => return Ok(Opened::default()),
        };
        let mut backings = lock(&self.0.backings);
        if let Some((id, users)) = backings.get_mut(&nodeid) {
            *users += 1;
            return Ok(Opened::passthrough(0, *id));
        }
        let connection = self.0.connection.get().ok_or(Errno::IO)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| errno(&e))?;
        let id = connection
            .backing_open(&file, BackingType::Passthrough)
            .map_err(|e| errno(&e))?;
        backings.insert(nodeid, (id, 1));
        Ok(Opened::passthrough(0, id))
    }

    fn release(&self, _: &Request, nodeid: u64, _: &ReleaseIn) -> Result<()> {
        let mut backings = lock(&self.0.backings);
        let Some((id, users)) = backings.get_mut(&nodeid) else {
            return Ok(());
        };
        *users -= 1;
        if *users == 0 {
            let id = *id;
            backings.remove(&nodeid);
            let connection = self.0.connection.get().ok_or(Errno::IO)?;
            connection.backing_close(id).map_err(|e| errno(&e))?;
        }
        Ok(())
    }

    fn read(&self, _: &Request, nodeid: u64, args: &ReadIn, buf: &mut [u8]) -> Result<usize> {
        let node = self.0.node(nodeid)?;
        node.reads.fetch_add(1, Ordering::Relaxed);
        match &node.kind {
            Kind::Extents(model) => Ok(model.read(args.offset, buf)),
            Kind::Memory(content) => {
                let content = content.read().unwrap_or_else(PoisonError::into_inner);
                let start = usize::try_from(args.offset).unwrap_or(usize::MAX);
                let rest = content.get(start..).unwrap_or(&[]);
                let len = rest.len().min(buf.len());
                buf[..len].copy_from_slice(&rest[..len]);
                Ok(len)
            }
            Kind::Stored => {
                self.0.refused(opcode::READ)?;
                lock(&self.0.store).read(nodeid, args.offset, buf)
            }
            Kind::Passthrough(_) | Kind::Symlink(_) | Kind::Special => Err(Errno::IO),
            Kind::Dir(_) => Err(Errno::ISDIR),
        }
    }

    fn write(&self, _: &Request, nodeid: u64, args: &WriteIn, data: &[u8]) -> Result<u32> {
        let node = self.0.node(nodeid)?;
        let content = match &node.kind {
            Kind::Memory(content) => content,
            Kind::Stored => {
                self.0.refused(opcode::WRITE)?;
                return lock(&self.0.store).write(nodeid, args.offset, data);
            }
            _ => return Err(Errno::ROFS),
        };
        let end = args.offset.checked_add(data.len() as u64);
        let end = end.filter(|end| *end <= 1 << 30).ok_or(Errno::FBIG)? as usize;
        let start = args.offset as usize;
        let mut content = content.write().unwrap_or_else(PoisonError::into_inner);
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(data);
        Ok(data.len() as u32)
    }

    fn statfs(&self, _: &Request, _: u64) -> Result<Kstatfs> {
        let (size, free) = lock(&self.0.store).space_figures();
        let nodes = self.0.nodes.read().unwrap_or_else(PoisonError::into_inner);
        Ok(Kstatfs {
            blocks: size / STATFS_BLOCK,
            bfree: free / STATFS_BLOCK,
            bavail: free / STATFS_BLOCK,
            files: nodes.len() as u64,
            bsize: STATFS_BLOCK as u32,
            frsize: STATFS_BLOCK as u32,
            namelen: 255,
            ..Default::default()
        })
    }

    fn opendir(&self, _: &Request, nodeid: u64, _: &OpenIn) -> Result<Opened> {
        match self.0.node(nodeid)?.kind {
            Kind::Dir(_) => Ok(Opened::default()),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        nodeid: u64,
        args: &ReadIn,
        dir: &mut DirBuffer<'_>,
    ) -> Result<()> {
        for (next, name, child) in self.0.listing(nodeid, args.offset)? {
            // One that was removed meanwhile is not listed.
            let Ok(node) = self.0.node(child) else {
                continue;
            };
            let kind = FileKind::from_mode(lock(&node.meta).mode);
            if !dir.add(INO_BASE + child, next, kind, &name) {
                break;
            }
        }
        Ok(())
    }

    fn readdirplus(
        &self,
        _: &Request,
        nodeid: u64,
        args: &ReadIn,
        dir: &mut DirPlusBuffer<'_>,
    ) -> Result<()> {
        for (next, name, child) in self.0.listing(nodeid, args.offset)? {
            let Ok(node) = self.0.node(child) else {
                continue;
            };
            let fits = if next <= 2 {
                dir.add_plain(INO_BASE + child, next, FileKind::DIRECTORY, &name)
            } else {
                let fits = dir.add(&self.0.entry(&node)?, next, &name);
                if !fits {
                    // The kernel did not get to see this lookup.
                    node.lookups.fetch_sub(1, Ordering::Relaxed);
                }
                fits
            };
            if !fits {
                break;
            }
        }
        Ok(())
    }

    fn fsync(&self, _: &Request, _: u64, _: &FsyncIn) -> Result<()> {
        self.0.refused(opcode::FSYNC)?;
        self.0.flush_devices()
    }

    fn fsyncdir(&self, _: &Request, _: u64, _: &FsyncIn) -> Result<()> {
        self.0.flush_devices()
    }

    fn syncfs(&self, _: &Request, _: u64) -> Result<()> {
        self.0.refused(opcode::SYNCFS)?;
        self.0.flush_devices()
    }

    fn fallocate(&self, _: &Request, nodeid: u64, args: &FallocateIn) -> Result<()> {
        self.0.refused(opcode::FALLOCATE)?;
        self.0.stored(nodeid)?;
        let end = args.offset.checked_add(args.length).ok_or(Errno::FBIG)?;
        lock(&self.0.store).fallocate(nodeid, args.mode, args.offset..end, &self.0.devices)
    }

    fn copy_file_range(&self, _: &Request, nodeid: u64, args: &CopyFileRangeIn) -> Result<u64> {
        self.0.refused(opcode::COPY_FILE_RANGE)?;
        self.0.stored(nodeid)?;
        self.0.stored(args.nodeid_out)?;
        self.0
            .with_store(|store| store.reflink(nodeid, args.nodeid_out, args))
    }

    fn ioctl(&self, _: &Request, nodeid: u64, args: &IoctlIn, given: &[u8]) -> Result<IoctlReply> {
        let node = self.0.node(nodeid)?;
        let data = match args.cmd {
            FS_IOC_GETFLAGS => node.visible_flags().0.to_ne_bytes().to_vec(),
            // `struct fsxattr` begins with the flags.
            FS_IOC_FSGETXATTR => {
                let mut fsxattr = node.visible_flags().1.to_ne_bytes().to_vec();
                fsxattr.resize(args.out_size as usize, 0);
                fsxattr
            }
            FS_IOC_SETFLAGS => {
                let wanted = given.first_chunk().ok_or(Errno::INVAL)?;
                node.set_visible_flags(u32::from_ne_bytes(*wanted))?;
                Vec::new()
            }
            _ => return Err(Errno::NOTTY),
        };
        Ok(IoctlReply { result: 0, data })
    }

    fn iomap_config(&self, _: &Request, args: &IomapConfigIn) -> Result<ConfigReply> {
        self.0.config(args)
    }

    fn freeze(&self, _: &Request, unlinked: u64) -> Result<()> {
        self.0.refused(opcode::FREEZE_FS)?;
        *lock(&self.0.frozen) = Some(unlinked);
        self.0.flush_devices()
    }

    fn unfreeze(&self, _: &Request) -> Result<()> {
        self.0.refused(opcode::UNFREEZE_FS)?;
        if lock(&self.0.frozen).take().is_none() {
            self.0.violation("UNFREEZE, but it is not frozen".into());
        }
        Ok(())
    }

    fn shutdown(&self, _: &Request, _: u64) -> Result<()> {
        self.0.refused(opcode::SHUTDOWN_FS)
    }

    fn iomap_begin(&self, _: &Request, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        self.0.check_begin(nodeid, args);
        self.0.refused(opcode::IOMAP_BEGIN)?;
        let node = self.0.node(nodeid)?;
        let mut begins = lock(&node.begins);
        if begins.len() < MOST_RECORDS {
            begins.push(Begin {
                opflags: args.opflags,
                pos: args.pos,
                count: args.count,
            });
        }
        drop(begins);
        let model = match &node.kind {
            Kind::Stored => return self.0.begin(nodeid, args),
            Kind::Extents(model) => model,
            _ => {
                self.0
                    .violation(format!("BEGIN for node {nodeid}, which has no extents"));
                return Err(Errno::IO);
            }
        };
        if args.opflags & CHANGING != 0 {
            return Err(Errno::ROFS);
        }
        let extent = model.lookup(args.pos, args.count);
        let read = self.0.mapping(&extent)?;
        Ok(match &extent.write {
            None => self.0.extents_reply(args, read, model)?,
            Some(w) => {
                let to = (w.dev, w.addr);
                let write = self
                    .0
                    .side(extent.offset, extent.length, w.kind, to, w.flags)?;
                BeginReply::read_write(read, write)
            }
        })
    }

    fn iomap_end(&self, _: &Request, nodeid: u64, args: &IomapEndIn) -> Result<()> {
        self.0.refused(opcode::IOMAP_END)?;
        let node = self.0.node(nodeid)?;
        if args.attr_ino != INO_BASE + nodeid || args.reserved != 0 {
            self.0.violation(format!("END for node {nodeid}: {args:?}"));
        }
        let mut ends = lock(&node.ends);
        if ends.len() < MOST_RECORDS {
            ends.push((args.opflags, args.pos, args.written));
        }
        drop(ends);
        if matches!(node.kind, Kind::Stored) && args.opflags & CHANGING != 0 {
            self.0.with_store(|store| store.end(nodeid, args))?;
        }
        Ok(())
    }

    fn iomap_ioend(&self, _: &Request, nodeid: u64, args: &IomapIoendIn) -> Result<u64> {
        self.0.refused(opcode::IOMAP_IOEND)?;
        if args.attr_ino != INO_BASE + nodeid || args.pad != 0 {
            self.0
                .violation(format!("IOEND for node {nodeid}: {args:?}"));
        }
        let node = self.0.stored(nodeid)?;
        let mut ioends = lock(&node.ioends);
        if ioends.len() < MOST_RECORDS {
            ioends.push(Ioend {
                flags: args.flags,
                error: args.error,
                pos: args.pos,
                written: args.written,
            });
        }
        drop(ioends);
        let device = |id| self.0.device_index(id);
        lock(&self.0.store).ioend(nodeid, args, device)
    }
}
