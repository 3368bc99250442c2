// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The filesystem that a scenario describes.

mod cache;
mod fs;
mod node;
mod tree;

use crate::control::{Activity, Ready};
use crate::devices::Device;
use crate::model::FileModel;
use crate::oracle::Context;
use crate::pattern::{MEMORY, Pattern};
use crate::random::Random;
use crate::scenario::{InodeKind, InodeSpec, Options, Scenario};
use crate::store::space::Habits;
use crate::store::{FileMap, Policy, Store, Tally};
pub use fs::LabFs;
use fuse_iomap::wire::{self, *};
use fuse_iomap::{AttrReply, BackingId, Connection, Entry, Errno, Result, Retried};
use node::{Dir, Kind, Meta, Node, S_IFDIR, S_IFLNK, S_IFREG};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

/// Inode numbers are unlike node ids, so that mixing them up does not go unnoticed.
const INO_BASE: u64 = 1000;
/// Node ids of clones that nobody can see.
const CLONES: u64 = 1 << 48;

/// Called when INIT is through.
pub type OnReady = Box<dyn Fn(&Ready) + Send + Sync>;

/// The state of a server.
pub struct Lab {
    nodes: RwLock<HashMap<u64, Arc<Node>>>,
    next: AtomicU64,
    /// Held while names change.
    names: Mutex<()>,
    store: Mutex<Store>,
    devices: Arc<Vec<Device>>,
    ids: OnceLock<Vec<BackingId>>,
    connection: OnceLock<Arc<Connection>>,
    violations: Mutex<Vec<String>>,
    /// Backing files in use, by node id, with the number of open files: all of an inode must
    /// have the same one.
    backings: Mutex<HashMap<u64, (BackingId, u64)>>,
    /// What requests with an opcode are answered with, before anything is done about them.
    refusals: Mutex<HashMap<u32, i32>>,
    options: Options,
    on_ready: OnceLock<OnReady>,
    random: Mutex<Random>,
    retried: Retried,
    /// What FREEZE_FS has said, until UNFREEZE_FS.
    frozen: Mutex<Option<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is plain data that is good at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lab {
    /// Builds the filesystem.
    pub fn new(scenario: &Scenario, devices: Vec<Device>) -> std::result::Result<Self, String> {
        let options = &scenario.options;
        let devices = Arc::new(devices);
        let habits = Habits {
            longest: options.longest,
            guards: options.guards,
            poison_again: options.poison_again,
        };
        let root_id = options.root_nodeid.unwrap_or(wire::ROOT_ID);
        let mut root = Node::new(
            root_id,
            root_id,
            Kind::Dir(Mutex::default()),
            0,
            4096,
            Meta::fixed(S_IFDIR | 0o755),
        );
        root.policy = options.policy.clone();
        if let Some(policy) = &options.policy {
            policy.check(&devices)?;
        }
        let mut store = Store::new(devices.clone(), habits, scenario.seed);
        for inode in &scenario.inodes {
            if let InodeKind::File(file) = &inode.kind {
                for (dev, range) in file.places() {
                    store.space().exclude(dev, range);
                }
            }
        }
        let lab = Self {
            nodes: RwLock::new(HashMap::from([(root_id, Arc::new(root))])),
            // Another root is far away from these.
            next: AtomicU64::new(if root_id == wire::ROOT_ID { 2 } else { 1 }),
            names: Mutex::default(),
            store: Mutex::new(store),
            devices,
            ids: OnceLock::new(),
            connection: OnceLock::new(),
            violations: Mutex::default(),
            backings: Mutex::default(),
            refusals: Mutex::default(),
            options: options.clone(),
            on_ready: OnceLock::new(),
            random: Mutex::new(Random::new(scenario.seed)),
            retried: Retried::default(),
            frozen: Mutex::default(),
        };
        for spec in &scenario.inodes {
            lab.add(scenario, spec)
                .map_err(|e| format!("{}: {e}", spec.path))?;
        }
        Ok(lab)
    }

    fn add(&self, scenario: &Scenario, spec: &InodeSpec) -> std::result::Result<(), String> {
        let path = &spec.path;
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self
            .resolve(dir)
            .map_err(|_| "its directory must come first")?;
        let parent = self.node(parent).map_err(|e| e.to_string())?;
        let Kind::Dir(entries) = &parent.kind else {
            return Err(format!("{dir} is no directory"));
        };
        if name.is_empty() || lock(entries).get(OsStr::new(name)).is_some() {
            return Err("no name, or there are two".into());
        }
        let policy = spec.policy.clone().or_else(|| parent.policy.clone());
        if let Some(policy) = &spec.policy {
            policy.check(&self.devices)?;
        }
        let id = self.new_id();
        let (kind, flags, blksize, mode) = self.kind(scenario, id, spec)?;
        let flags = spec.attr_flags.unwrap_or(flags);
        let mut node = Node::new(id, parent.id, kind, flags, blksize, Meta::fixed(mode));
        node.policy = policy;
        self.insert(node);
        lock(entries).add(OsStr::new(name), id);
        Ok(())
    }

    fn kind(
        &self,
        scenario: &Scenario,
        id: u64,
        spec: &InodeSpec,
    ) -> std::result::Result<(Kind, u32, u32, u32), String> {
        let exclusive = attr_flags::EXCLUSIVE;
        let file = S_IFREG | 0o644;
        Ok(match &spec.kind {
            InodeKind::Dir => {
                let dir = Kind::Dir(Mutex::new(Dir::default()));
                (dir, exclusive, 4096, S_IFDIR | 0o755)
            }
            InodeKind::Symlink { target } => {
                let link = Kind::Symlink(target.as_bytes().to_vec());
                (link, exclusive, 4096, S_IFLNK | 0o777)
            }
            InodeKind::Passthrough { backing } => {
                (Kind::Passthrough(backing.clone()), 0, 4096, file)
            }
            InodeKind::File(f) if spec.policy.is_some() => {
                if !f.extents.is_empty() {
                    return Err("a file with a policy has no extents at first".into());
                }
                let policy = spec.policy.clone().unwrap_or_default();
                let blksize = policy.blksize;
                lock(&self.store).create(id, policy, f.size);
                let flags = exclusive | attr_flags::IOMAP;
                (Kind::Stored, flags, blksize, file)
            }
            InodeKind::File(f) if !f.iomap && f.extents.is_empty() => {
                let mut content = vec![0; f.size as usize];
                Pattern::new(scenario.seed, MEMORY + id).fill(0, &mut content);
                (Kind::Memory(RwLock::new(content)), 0, f.blksize, file)
            }
            InodeKind::File(f) => {
                for (dev, _) in f.places() {
                    if dev >= self.devices.len() {
                        return Err(format!("there is no device {dev}"));
                    }
                }
                let model = FileModel::new(scenario.seed, MEMORY + id, f)?;
                let flags = if f.iomap {
                    exclusive | attr_flags::IOMAP
                } else {
                    0
                };
                (Kind::Extents(model), flags, f.blksize, file)
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
        let missing = || format!("there is no {path}");
        let mut id = self.options.root_nodeid.unwrap_or(wire::ROOT_ID);
        for name in path.split('/').filter(|n| !n.is_empty()) {
            let node = self.node(id).map_err(|_| missing())?;
            let Kind::Dir(dir) = &node.kind else {
                return Err(missing());
            };
            id = lock(dir).get(OsStr::new(name)).ok_or_else(missing)?;
        }
        Ok(id)
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
            ioends: lock(&node.ioends).clone(),
        })
    }

    /// Changes `fuse_attr.flags` of an inode.
    pub fn set_flags(&self, nodeid: u64, flags: u32) -> std::result::Result<(), String> {
        let node = self.node(nodeid).map_err(|e| e.to_string())?;
        node.flags.store(flags, Ordering::Relaxed);
        Ok(())
    }

    /// Where the blocks of a writable file are.
    pub fn map(&self, nodeid: u64) -> std::result::Result<FileMap, String> {
        lock(&self.store).map(nodeid).map_err(|e| e.to_string())
    }

    /// What was counted about writable files.
    pub fn tally(&self) -> Tally {
        lock(&self.store).tally()
    }

    /// Makes an invisible clone of a file, whose blocks are shared from then on.
    pub fn snapshot(&self, nodeid: u64) -> std::result::Result<(), String> {
        let id = CLONES + self.new_id();
        self.with_store(|store| store.clone_file(nodeid, id))
            .map_err(|e| e.to_string())
    }

    /// Gives up all of those.
    pub fn drop_snapshots(&self) {
        lock(&self.store).remove_from(CLONES);
    }

    /// Answers requests with an opcode with this errno from now on; 0 for no more.
    pub fn refuse(&self, op: &str, errno: i32) -> std::result::Result<(), String> {
        let opcode = opcode::from_name(op).ok_or_else(|| format!("no opcode is called {op}"))?;
        lock(&self.refusals).insert(opcode, errno);
        Ok(())
    }

    fn refused(&self, opcode: u32) -> Result<()> {
        match lock(&self.refusals).get(&opcode) {
            Some(errno) if *errno != 0 => Err(Errno::from_raw_os_error(*errno)),
            _ => Ok(()),
        }
    }

    /// How many unlinked files were open when the kernel froze the filesystem, if it is frozen.
    pub fn frozen(&self) -> Option<u64> {
        *lock(&self.frozen)
    }

    /// What the kernel did against the protocol.
    pub fn violations(&self) -> Vec<String> {
        let mut all = lock(&self.violations).clone();
        let store = lock(&self.store);
        all.extend_from_slice(store.violations());
        if self.options.policy.is_some() || self.options.fill {
            all.extend(store.check_strays().err());
        }
        all
    }

    fn violation(&self, text: String) {
        lock(&self.violations).push(text);
    }

    /// What a reply to BEGIN is judged against.
    pub fn judge(&self, nodeid: u64, begin: &IomapBeginIn) -> Option<Context> {
        let node = self.node(nodeid).ok()?;
        let ids = self.ids.get()?;
        let geometry = |d: &Device| (d.size, u64::from(d.logical_block));
        let maxbytes = self.options.maxbytes.map_or(i64::MAX as u64, |m| m as u64);
        Some(Context {
            pos: begin.pos,
            opflags: begin.opflags,
            blksize: node.blksize.into(),
            maxbytes,
            devices: ids
                .iter()
                .zip(self.devices.iter())
                .map(|(id, d)| (id.get(), geometry(d)))
                .collect(),
        })
    }

    fn node(&self, nodeid: u64) -> Result<Arc<Node>> {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&nodeid).cloned().ok_or(Errno::STALE)
    }

    fn new_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn insert(&self, node: Node) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.id, Arc::new(node));
    }

    fn attr(&self, node: &Node) -> Result<Attr> {
        let meta = lock(&node.meta).clone();
        let mut nlink = meta.nlink;
        let (size, used) = match &node.kind {
            Kind::Dir(dir) => {
                let children: Vec<u64> = lock(dir).nodes().collect();
                let is_dir = |id: &u64| {
                    let child = self.node(*id);
                    child.is_ok_and(|n| matches!(n.kind, Kind::Dir(_)))
                };
                nlink = match nlink {
                    0 => 0,
                    _ => 2 + children.iter().filter(|id| is_dir(id)).count() as u32,
                };
                (4096, 4096)
            }
            Kind::Symlink(target) => (target.len() as u64, 0),
            Kind::Extents(model) => (model.size(), model.size()),
            Kind::Stored => lock(&self.store).figures(node.id)?,
            Kind::Memory(content) => {
                let content = content.read().unwrap_or_else(PoisonError::into_inner);
                (content.len() as u64, content.len() as u64)
            }
            Kind::Passthrough(path) => {
                let len = std::fs::metadata(path).map_err(|e| fs::errno(&e))?.len();
                (len, len)
            }
            Kind::Special => (0, 0),
        };
        Ok(Attr {
            ino: INO_BASE + node.id,
            size,
            blocks: used.div_ceil(512),
            atime: meta.atime.0,
            atimensec: meta.atime.1,
            mtime: meta.mtime.0,
            mtimensec: meta.mtime.1,
            ctime: meta.ctime.0,
            ctimensec: meta.ctime.1,
            mode: meta.mode,
            nlink,
            uid: meta.uid,
            gid: meta.gid,
            rdev: meta.rdev,
            blksize: node.blksize,
            flags: node.flags.load(Ordering::Relaxed),
        })
    }

    fn valid(&self) -> Duration {
        Duration::from_secs(self.options.valid_secs)
    }

    /// An entry for the kernel, which holds one more lookup then.
    fn entry(&self, node: &Node) -> Result<Entry> {
        let entry = Entry::new(node.id, self.attr(node)?).valid_for(self.valid());
        node.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(entry)
    }

    fn attr_reply(&self, node: &Node) -> Result<AttrReply> {
        Ok(AttrReply {
            attr: self.attr(node)?,
            valid: self.valid(),
        })
    }

    fn policy(&self, node: &Node) -> Result<Policy> {
        node.policy.clone().ok_or(Errno::ROFS)
    }

    fn device_id(&self, dev: usize) -> Result<BackingId> {
        let id = self.ids.get().and_then(|ids| ids.get(dev));
        id.copied().ok_or(Errno::NODEV)
    }

    fn device_index(&self, id: u32) -> Option<usize> {
        self.ids.get()?.iter().position(|i| i.get() == id)
    }
}
