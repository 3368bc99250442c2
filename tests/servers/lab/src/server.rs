// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The filesystem that a scenario describes.

use crate::control::{Activity, Begin, Ready};
use crate::devices::Device;
use crate::model::FileModel;
use crate::oracle::Context;
use crate::pattern::{MEMORY, Pattern};
use crate::scenario::{ExtentKind, ExtentSpec, InodeKind, Options, Scenario};
use fuse_iomap::wire::{self, *};
use fuse_iomap::{
    AttrReply, BackingId, BackingType, BeginReply, Connection, DirBuffer, DirPlusBuffer, Entry,
    Errno, FileKind, Filesystem, InitConfig, Mapping, Opened, Request, Result,
};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// Inode numbers are unlike node ids, so that mixing them up does not go unnoticed.
const INO_BASE: u64 = 1000;
/// All operation flags of the protocol.
const KNOWN_OPFLAGS: u32 = 0x7ff | iomap_op::SWAPFILE | iomap_op::WRITEBACK;

enum Kind {
    Dir(Vec<(String, u64)>),
    Symlink(String),
    /// Has extents on devices.
    Extents(FileModel),
    /// Lives in memory.
    Memory(RwLock<Vec<u8>>),
    Passthrough(PathBuf),
}

struct Node {
    parent: u64,
    kind: Kind,
    flags: AtomicU32,
    blksize: u32,
    reads: AtomicU64,
    begins: Mutex<Vec<Begin>>,
    ends: Mutex<Vec<(u32, u64, i64)>>,
}

/// Called when INIT is through.
pub type OnReady = Box<dyn Fn(&Ready) + Send + Sync>;

/// The state of a server.
pub struct Lab {
    nodes: Vec<Node>,
    paths: HashMap<String, u64>,
    devices: Vec<Device>,
    ids: OnceLock<Vec<BackingId>>,
    connection: OnceLock<Arc<Connection>>,
    violations: Mutex<Vec<String>>,
    /// Backing files in use, by node id, with the number of open files: all of an inode must
    /// have the same one.
    backings: Mutex<HashMap<u64, (BackingId, u64)>>,
    options: Options,
    on_ready: OnceLock<OnReady>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is plain data that is good at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lab {
    /// Builds the filesystem.
    pub fn new(scenario: &Scenario, devices: Vec<Device>) -> std::result::Result<Self, String> {
        let root = Node::new(wire::ROOT_ID, Kind::Dir(Vec::new()), 0, 4096);
        let mut nodes = vec![root];
        let mut paths = HashMap::from([(String::new(), wire::ROOT_ID)]);
        for spec in &scenario.inodes {
            let path = &spec.path;
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = *paths
                .get(dir)
                .ok_or_else(|| format!("{path}: its directory must come first"))?;
            let nodeid = nodes.len() as u64 + 1;
            let (kind, flags, blksize) = Self::kind(scenario, nodeid, &spec.kind, devices.len())
                .map_err(|e| format!("{path}: {e}"))?;
            let flags = spec.attr_flags.unwrap_or(flags);
            nodes.push(Node::new(parent, kind, flags, blksize));
            match &mut nodes[parent as usize - 1].kind {
                Kind::Dir(children) => children.push((name.to_owned(), nodeid)),
                _ => return Err(format!("{path}: {dir} is no directory")),
            }
            if name.is_empty() || paths.insert(path.clone(), nodeid).is_some() {
                return Err(format!("{path}: no name, or there are two"));
            }
        }
        Ok(Self {
            nodes,
            paths,
            devices,
            ids: OnceLock::new(),
            connection: OnceLock::new(),
            violations: Mutex::default(),
            backings: Mutex::default(),
            options: scenario.options.clone(),
            on_ready: OnceLock::new(),
        })
    }

    fn kind(
        scenario: &Scenario,
        nodeid: u64,
        kind: &InodeKind,
        devices: usize,
    ) -> std::result::Result<(Kind, u32, u32), String> {
        Ok(match kind {
            InodeKind::Dir => (Kind::Dir(Vec::new()), attr_flags::EXCLUSIVE, 4096),
            InodeKind::Symlink { target } => {
                (Kind::Symlink(target.clone()), attr_flags::EXCLUSIVE, 4096)
            }
            InodeKind::Passthrough { backing } => (Kind::Passthrough(backing.clone()), 0, 4096),
            InodeKind::File(file) if !file.iomap && file.extents.is_empty() => {
                let mut content = vec![0; file.size as usize];
                Pattern::new(scenario.seed, MEMORY + nodeid).fill(0, &mut content);
                (Kind::Memory(RwLock::new(content)), 0, file.blksize)
            }
            InodeKind::File(file) => {
                let sides = file.extents.iter().flat_map(|e| {
                    let write = e.write.as_ref().map(|w| (w.kind, w.dev));
                    [Some((e.kind, e.dev)), write].into_iter().flatten()
                });
                for (kind, dev) in sides {
                    if kind.has_address() && dev >= devices {
                        return Err(format!("there is no device {dev}"));
                    }
                }
                let model = FileModel::new(scenario.seed, MEMORY + nodeid, file)?;
                let flags = if file.iomap {
                    attr_flags::EXCLUSIVE | attr_flags::IOMAP
                } else {
                    0
                };
                (Kind::Extents(model), flags, file.blksize)
            }
        })
    }

    /// Sets what is called when INIT is through.
    pub fn on_ready(&self, f: OnReady) {
        // Set once, before the session starts.
        let _ = self.on_ready.set(f);
    }

    /// The node id of a path.
    pub fn resolve(&self, path: &str) -> std::result::Result<u64, String> {
        let found = self.paths.get(path).copied();
        found.ok_or_else(|| format!("there is no {path}"))
    }

    /// The connection, once INIT is through.
    pub fn connection(&self) -> std::result::Result<&Arc<Connection>, String> {
        self.connection
            .get()
            .ok_or_else(|| "not mounted yet".into())
    }

    /// What happened to an inode.
    pub fn activity(&self, nodeid: u64) -> std::result::Result<Activity, String> {
        let node = self.node(nodeid).map_err(|e| e.to_string())?;
        Ok(Activity {
            reads: node.reads.load(Ordering::Relaxed),
            begins: lock(&node.begins).clone(),
            ends: lock(&node.ends).clone(),
        })
    }

    /// Changes `fuse_attr.flags` of an inode.
    pub fn set_flags(&self, nodeid: u64, flags: u32) -> std::result::Result<(), String> {
        let node = self.node(nodeid).map_err(|e| e.to_string())?;
        node.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// What the kernel did against the protocol.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.violations).clone()
    }

    fn violation(&self, text: String) {
        lock(&self.violations).push(text);
    }

    /// What a reply to BEGIN is judged against.
    pub fn judge(&self, nodeid: u64, pos: u64) -> Option<Context> {
        let node = self.node(nodeid).ok()?;
        let ids = self.ids.get()?;
        let geometry = |d: &Device| (d.size, u64::from(d.logical_block));
        let maxbytes = self.options.maxbytes.map_or(i64::MAX as u64, |m| m as u64);
        Some(Context {
            pos,
            blksize: node.blksize.into(),
            maxbytes,
            devices: ids
                .iter()
                .zip(&self.devices)
                .map(|(id, d)| (id.get(), geometry(d)))
                .collect(),
        })
    }

    fn node(&self, nodeid: u64) -> Result<&Node> {
        let index = nodeid.checked_sub(1).and_then(|i| usize::try_from(i).ok());
        index.and_then(|i| self.nodes.get(i)).ok_or(Errno::STALE)
    }

    fn attr(&self, nodeid: u64) -> Result<Attr> {
        let node = self.node(nodeid)?;
        let (mode, nlink, size) = match &node.kind {
            Kind::Dir(children) => (0o040755, 2 + children.len() as u32, 4096),
            Kind::Symlink(target) => (0o120777, 1, target.len() as u64),
            Kind::Extents(model) => (0o100644, 1, model.size()),
            Kind::Memory(content) => {
                let content = content.read().unwrap_or_else(PoisonError::into_inner);
                (0o100644, 1, content.len() as u64)
            }
            Kind::Passthrough(path) => {
                let meta = std::fs::metadata(path).map_err(|e| errno(&e))?;
                (0o100644, 1, meta.len())
            }
        };
        Ok(Attr {
            ino: INO_BASE + nodeid,
            size,
            blocks: size.div_ceil(512),
            mtime: 1_700_000_000,
            mode,
            nlink,
            blksize: node.blksize,
            flags: node.flags.load(Ordering::Relaxed),
            ..Default::default()
        })
    }

    fn valid(&self) -> Duration {
        Duration::from_secs(self.options.valid_secs)
    }

    fn entry(&self, nodeid: u64) -> Result<Entry> {
        Ok(Entry::new(nodeid, self.attr(nodeid)?).valid_for(self.valid()))
    }

    fn attr_reply(&self, nodeid: u64) -> Result<AttrReply> {
        Ok(AttrReply {
            attr: self.attr(nodeid)?,
            valid: self.valid(),
        })
    }

    fn children(&self, nodeid: u64) -> Result<&[(String, u64)]> {
        match &self.node(nodeid)?.kind {
            Kind::Dir(children) => Ok(children),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Calls `f` with the offset after each entry, its name and node id, until it says false.
    fn list(
        &self,
        nodeid: u64,
        offset: u64,
        mut f: impl FnMut(u64, &str, u64) -> Result<bool>,
    ) -> Result<()> {
        let parent = self.node(nodeid)?.parent;
        let dots = [(".".to_owned(), nodeid), ("..".to_owned(), parent)];
        let all = dots.iter().chain(self.children(nodeid)?);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (name, child)) in (1..).zip(all).skip(skip) {
            if !f(next, name, *child)? {
                break;
            }
        }
        Ok(())
    }

    fn device_id(&self, dev: usize) -> Result<BackingId> {
        let id = self.ids.get().and_then(|ids| ids.get(dev));
        id.copied().ok_or(Errno::NODEV)
    }

    fn mapping(&self, e: &ExtentSpec) -> Result<Mapping> {
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
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

impl Node {
    fn new(parent: u64, kind: Kind, flags: u32, blksize: u32) -> Self {
        Self {
            parent,
            kind,
            flags: AtomicU32::new(flags),
            blksize,
            reads: AtomicU64::new(0),
            begins: Mutex::default(),
            ends: Mutex::default(),
        }
    }
}

/// [`Lab`] as a filesystem.
pub struct LabFs(pub Arc<Lab>);

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
            for device in &lab.devices {
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
        if let Some(on_ready) = lab.on_ready.get() {
            on_ready(&ready);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: u64, name: &OsStr) -> Result<Entry> {
        let children = self.0.children(parent)?;
        let (_, child) = children
            .iter()
            .find(|(n, _)| OsStr::new(n) == name)
            .ok_or(Errno::NOENT)?;
        self.0.entry(*child)
    }

    fn getattr(&self, _: &Request, nodeid: u64, _: &GetattrIn) -> Result<AttrReply> {
        self.0.attr_reply(nodeid)
    }

    fn setattr(&self, _: &Request, nodeid: u64, args: &SetattrIn) -> Result<AttrReply> {
        if args.valid & fattr::SIZE != 0 {
            match &self.0.node(nodeid)?.kind {
                Kind::Memory(content) => content
                    .write()
                    .unwrap_or_else(PoisonError::into_inner)
                    .resize(args.size.min(1 << 30) as usize, 0),
                _ => return Err(Errno::ROFS),
            }
        }
        self.0.attr_reply(nodeid)
    }

    fn readlink(&self, _: &Request, nodeid: u64) -> Result<Vec<u8>> {
        match &self.0.node(nodeid)?.kind {
            Kind::Symlink(target) => Ok(target.as_bytes().to_vec()),
            _ => Err(Errno::INVAL),
        }
    }

    fn open(&self, _: &Request, nodeid: u64, _: &OpenIn) -> Result<Opened> {
        let Kind::Passthrough(path) = &self.0.node(nodeid)?.kind else {
            return Ok(Opened::default());
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
            Kind::Passthrough(_) | Kind::Symlink(_) => Err(Errno::IO),
            Kind::Dir(_) => Err(Errno::ISDIR),
        }
    }

    fn write(&self, _: &Request, nodeid: u64, args: &WriteIn, data: &[u8]) -> Result<u32> {
        let Kind::Memory(content) = &self.0.node(nodeid)?.kind else {
            return Err(Errno::ROFS);
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
        Ok(Kstatfs {
            blocks: self.0.devices.iter().map(|d| d.size / 4096).sum(),
            files: self.0.nodes.len() as u64,
            bsize: 4096,
            frsize: 4096,
            namelen: 255,
            ..Default::default()
        })
    }

    fn opendir(&self, _: &Request, nodeid: u64, _: &OpenIn) -> Result<Opened> {
        self.0.children(nodeid)?;
        Ok(Opened::default())
    }

    fn readdir(
        &self,
        _: &Request,
        nodeid: u64,
        args: &ReadIn,
        dir: &mut DirBuffer<'_>,
    ) -> Result<()> {
        self.0.list(nodeid, args.offset, |next, name, child| {
            let attr = self.0.attr(child)?;
            Ok(dir.add(
                attr.ino,
                next,
                FileKind::from_mode(attr.mode),
                OsStr::new(name),
            ))
        })
    }

    fn readdirplus(
        &self,
        _: &Request,
        nodeid: u64,
        args: &ReadIn,
        dir: &mut DirPlusBuffer<'_>,
    ) -> Result<()> {
        self.0.list(nodeid, args.offset, |next, name, child| {
            if next <= 2 {
                let ino = INO_BASE + child;
                return Ok(dir.add_plain(ino, next, FileKind::DIRECTORY, OsStr::new(name)));
            }
            Ok(dir.add(&self.0.entry(child)?, next, OsStr::new(name)))
        })
    }

    fn iomap_config(&self, _: &Request, _: &IomapConfigIn) -> Result<IomapConfigOut> {
        let s_maxbytes = self.0.options.maxbytes.ok_or(Errno::NOSYS)?;
        Ok(IomapConfigOut {
            flags: iomap_config::MAXBYTES,
            s_maxbytes,
            ..Default::default()
        })
    }

    fn iomap_begin(&self, _: &Request, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        self.0.check_begin(nodeid, args);
        let node = self.0.node(nodeid)?;
        lock(&node.begins).push(Begin {
            opflags: args.opflags,
            pos: args.pos,
            count: args.count,
        });
        let Kind::Extents(model) = &node.kind else {
            self.0
                .violation(format!("BEGIN for node {nodeid}, which has no extents"));
            return Err(Errno::IO);
        };
        let extent = model.lookup(args.pos, args.count);
        let read = self.0.mapping(&extent)?;
        Ok(match &extent.write {
            None => BeginReply::read(read),
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
        let node = self.0.node(nodeid)?;
        if args.attr_ino != INO_BASE + nodeid || args.reserved != 0 {
            self.0.violation(format!("END for node {nodeid}: {args:?}"));
        }
        lock(&node.ends).push((args.opflags, args.pos, args.written));
        Ok(())
    }
}
