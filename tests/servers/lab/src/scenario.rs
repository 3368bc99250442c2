// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server is to look like: the file that `lab --scenario` reads, as JSON.
//!
//! ```json
//! {
//!   "seed": 1,
//!   "devices": [{ "path": "$FI_DISK_A" }],
//!   "inodes": [
//!     { "path": "data", "kind": "file", "size": 12288, "blksize": 4096, "iomap": true,
//!       "extents": [
//!         { "offset": 0, "length": 4096, "kind": "mapped", "dev": 0, "addr": 1048576 },
//!         { "offset": 8192, "length": 4096, "kind": "unwritten", "dev": 0, "addr": 2097152 }
//!       ] },
//!     { "path": "plain", "kind": "file", "size": 1000 },
//!     { "path": "dir", "kind": "dir" },
//!     { "path": "dir/link", "kind": "symlink", "target": "../data" }
//!   ]
//! }
//! ```

use crate::caching::CacheSpec;
use crate::misbehave::{RandomSpec, Rule};
use crate::store::Policy;
use fuse_iomap::wire::iomap_type;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::PathBuf;

/// Everything about one server.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Seed of the data on the devices.
    #[serde(default)]
    pub seed: u64,
    /// Block devices, referred to by position.
    #[serde(default)]
    pub devices: Vec<DeviceSpec>,
    /// Inodes below the root; a directory comes before what is in it.
    #[serde(default)]
    pub inodes: Vec<InodeSpec>,
    /// How the server as a whole behaves.
    #[serde(default)]
    pub options: Options,
    /// Misbehaviour by rule.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Misbehaviour by seed.
    #[serde(default)]
    pub random: Option<RandomSpec>,
}

/// One block device.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceSpec {
    /// Its path; one that starts with `$` names an environment variable that holds it.
    pub path: String,
}

impl DeviceSpec {
    /// The path with a variable resolved.
    pub fn resolve(&self) -> Result<PathBuf, String> {
        match self.path.strip_prefix('$') {
            Some(variable) => std::env::var_os(variable)
                .map(PathBuf::from)
                .ok_or_else(|| format!("device: ${variable} is not set")),
            None => Ok(PathBuf::from(&self.path)),
        }
    }
}

/// How the server as a whole behaves.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Accept iomap if it is offered.
    pub accept_iomap: bool,
    /// Claim iomap in the reply to INIT even if it was not offered.
    pub force_iomap: bool,
    /// Accept passthrough if it is offered.
    pub accept_passthrough: bool,
    /// Have the FUSE device marked for iomap first.
    pub add_iomap: bool,
    /// Have mount(2) wait for INIT and CONFIG.
    pub sync_init: bool,
    /// Drop CAP_SYS_RAWIO before mounting.
    pub drop_sys_rawio: bool,
    /// Have requests come over io_uring; so has `$FI_URING`.
    pub uring: bool,
    /// Write the data onto the devices at start.
    pub prepare: bool,
    /// Worker threads.
    pub threads: usize,
    /// Offer READDIRPLUS.
    pub readdirplus: bool,
    /// Seconds for which names and attributes are valid.
    pub valid_secs: u64,
    /// IOMAP_CONFIG says all that it can, see `Lab::identity`.
    pub identity: bool,
    /// Node id of the root, if not 1. Others are counted from 1 then.
    pub root_nodeid: Option<u64>,
    /// What IOMAP_CONFIG answers as `s_maxbytes`.
    pub maxbytes: Option<i64>,
    /// What is used of the kernel's cache of mappings. Without this, `identity` and `maxbytes`, CONFIG
    /// answers ENOSYS.
    pub cache: Option<CacheSpec>,
    /// Accept O_TRUNC in OPEN.
    pub atomic_o_trunc: bool,
    /// Flags of open files that are writable or have extents.
    pub open_flags: u32,
    /// How files are made in the root, and in what is made there; without it, nothing can be made.
    pub policy: Option<Policy>,
    /// Answer STATX with this subvolume and, though they are the kernel's, senseless alignments;
    /// without it, not at all.
    pub subvol: Option<u64>,
    /// Fill the devices with poison to their ends.
    pub fill: bool,
    /// At most this many blocks are allocated in one piece, a random number of them; 0 for any.
    pub longest: u64,
    /// Leave a block of poison behind each piece.
    pub guards: bool,
    /// Fill blocks with poison again when they are given out again.
    pub poison_again: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            accept_iomap: true,
            force_iomap: false,
            accept_passthrough: false,
            add_iomap: false,
            sync_init: false,
            drop_sys_rawio: false,
            uring: false,
            prepare: true,
            threads: 4,
            readdirplus: true,
            valid_secs: 3600,
            identity: false,
            root_nodeid: None,
            maxbytes: None,
            cache: None,
            atomic_o_trunc: false,
            open_flags: 0,
            policy: None,
            subvol: None,
            fill: false,
            longest: 0,
            guards: false,
            poison_again: false,
        }
    }
}

/// One inode.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InodeSpec {
    /// Path below the root, without a leading slash.
    pub path: String,
    /// What it is.
    #[serde(flatten)]
    pub kind: InodeKind,
    /// Overrides `fuse_attr.flags`, which otherwise follow from the kind.
    #[serde(default)]
    pub attr_flags: Option<u32>,
    /// Makes a file writable; or how files are made in a directory.
    #[serde(default)]
    pub policy: Option<Policy>,
}

/// What an inode is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum InodeKind {
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: String,
    },
    /// A regular file.
    File(FileSpec),
    /// A regular file whose open files are passed through to another file.
    Passthrough {
        /// That file.
        backing: PathBuf,
    },
}

/// One regular file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Size in bytes.
    pub size: u64,
    /// Block size, a power of two.
    #[serde(default = "default_blksize")]
    pub blksize: u32,
    /// The kernel does the I/O. An ordinary file without extents lives in the server's memory and
    /// can be written.
    #[serde(default)]
    pub iomap: bool,
    /// Extents in any order; what lies between them is a hole.
    #[serde(default)]
    pub extents: Vec<ExtentSpec>,
    /// The extents come again and again up to the size, each time this many bytes further, at the
    /// same addresses.
    #[serde(default)]
    pub period: Option<u64>,
}

const fn default_blksize() -> u32 {
    4096
}

impl FileSpec {
    /// An iomap file.
    pub const fn iomap(size: u64, blksize: u32, extents: Vec<ExtentSpec>) -> Self {
        Self {
            size,
            blksize,
            iomap: true,
            extents,
            period: None,
        }
    }

    /// The places on devices that it has: which device, and from where to where.
    pub fn places(&self) -> impl Iterator<Item = (usize, Range<u64>)> {
        self.extents.iter().flat_map(|e| {
            let place = |kind: ExtentKind, dev, addr: u64| {
                let end = addr.saturating_add(e.length);
                kind.has_address().then_some((dev, addr..end))
            };
            let write = e.write.as_ref();
            let write = write.and_then(|w| place(w.kind, w.dev, w.addr));
            [place(e.kind, e.dev, e.addr), write].into_iter().flatten()
        })
    }

    /// A file in the server's memory.
    pub const fn ordinary(size: u64) -> Self {
        Self {
            size,
            blksize: default_blksize(),
            iomap: false,
            extents: Vec::new(),
            period: None,
        }
    }
}

/// The kinds of extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExtentKind {
    /// Explicitly nothing.
    Hole,
    /// Reserved, nowhere yet.
    Delalloc,
    /// Data on a device.
    Mapped,
    /// Allocated on a device, never written.
    Unwritten,
    /// Data inside the inode.
    Inline,
    /// Write side only: in place.
    PureOverwrite,
}

impl ExtentKind {
    /// The number of the protocol.
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::Hole => iomap_type::HOLE,
            Self::Delalloc => iomap_type::DELALLOC,
            Self::Mapped => iomap_type::MAPPED,
            Self::Unwritten => iomap_type::UNWRITTEN,
            Self::Inline => iomap_type::INLINE,
            Self::PureOverwrite => iomap_type::PURE_OVERWRITE,
        }
    }

    /// Whether it has a place on a device.
    pub const fn has_address(self) -> bool {
        matches!(self, Self::Mapped | Self::Unwritten)
    }
}

/// One extent of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtentSpec {
    /// File offset, a multiple of the block size.
    pub offset: u64,
    /// Length, a multiple of the block size.
    pub length: u64,
    /// What it is.
    pub kind: ExtentKind,
    /// Position of the device in [`Scenario::devices`].
    #[serde(default)]
    pub dev: usize,
    /// Address on that device.
    #[serde(default)]
    pub addr: u64,
    /// Mapping flags as in the protocol.
    #[serde(default)]
    pub flags: u16,
    /// Where writes go; in place if it is missing.
    #[serde(default)]
    pub write: Option<WriteSide>,
}

/// The write side of an extent that is not written in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriteSide {
    /// What it is.
    pub kind: ExtentKind,
    /// Position of the device.
    #[serde(default)]
    pub dev: usize,
    /// Address on that device.
    #[serde(default)]
    pub addr: u64,
    /// Mapping flags.
    #[serde(default)]
    pub flags: u16,
}

impl ExtentSpec {
    const fn new(kind: ExtentKind, offset: u64, length: u64, dev: usize, addr: u64) -> Self {
        Self {
            offset,
            length,
            kind,
            dev,
            addr,
            flags: 0,
            write: None,
        }
    }

    /// Data on a device.
    pub const fn mapped(offset: u64, length: u64, dev: usize, addr: u64) -> Self {
        Self::new(ExtentKind::Mapped, offset, length, dev, addr)
    }

    /// Never written.
    pub const fn unwritten(offset: u64, length: u64, dev: usize, addr: u64) -> Self {
        Self::new(ExtentKind::Unwritten, offset, length, dev, addr)
    }

    /// Not allocated yet.
    pub const fn delalloc(offset: u64, length: u64) -> Self {
        Self::new(ExtentKind::Delalloc, offset, length, 0, 0)
    }

    /// Nothing.
    pub const fn hole(offset: u64, length: u64) -> Self {
        Self::new(ExtentKind::Hole, offset, length, 0, 0)
    }

    /// In the inode, from the start of the file on.
    pub const fn inline(length: u64) -> Self {
        Self::new(ExtentKind::Inline, 0, length, 0, 0)
    }

    /// The same with writes going elsewhere.
    #[must_use]
    pub fn with_write(mut self, kind: ExtentKind, dev: usize, addr: u64) -> Self {
        self.write = Some(WriteSide {
            kind,
            dev,
            addr,
            flags: 0,
        });
        self
    }

    /// The same with mapping flags.
    #[must_use]
    pub const fn with_flags(mut self, flags: u16) -> Self {
        self.flags = flags;
        self
    }
}

impl Scenario {
    /// Reads a scenario.
    pub fn from_json(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| format!("scenario: {e}"))
    }

    /// Writes a scenario.
    pub fn to_json(&self) -> String {
        // Plain data with string keys: nothing in it can fail to be written.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, spec: FileSpec) -> &mut Self {
        self.inode(path, InodeKind::File(spec))
    }

    /// Adds a writable file, a hole of `size` bytes.
    pub fn writable(&mut self, path: &str, size: u64, policy: Policy) -> &mut Self {
        self.file(path, FileSpec::iomap(size, policy.blksize, Vec::new()));
        self.with_policy(policy)
    }

    /// Adds a directory in which files are made like this.
    pub fn workshop(&mut self, path: &str, policy: Policy) -> &mut Self {
        self.inode(path, InodeKind::Dir);
        self.with_policy(policy)
    }

    fn with_policy(&mut self, policy: Policy) -> &mut Self {
        if let Some(inode) = self.inodes.last_mut() {
            inode.policy = Some(policy);
        }
        self
    }

    /// Adds an inode.
    pub fn inode(&mut self, path: &str, kind: InodeKind) -> &mut Self {
        self.inodes.push(InodeSpec {
            path: path.to_owned(),
            kind,
            attr_flags: None,
            policy: None,
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_is_read() {
        let text = r#"{ "seed": 1, "devices": [{ "path": "$FI_DISK_A" }], "inodes": [
            { "path": "data", "kind": "file", "size": 12288, "blksize": 4096, "iomap": true,
              "extents": [ { "offset": 0, "length": 4096, "kind": "mapped", "dev": 0, "addr": 1048576 } ] },
            { "path": "plain", "kind": "file", "size": 1000 },
            { "path": "dir", "kind": "dir" },
            { "path": "dir/link", "kind": "symlink", "target": "../data" } ] }"#;
        let s = Scenario::from_json(text).unwrap();
        assert_eq!(s.inodes.len(), 4);
        let again = Scenario::from_json(&s.to_json()).unwrap();
        assert_eq!(again.to_json(), s.to_json());
    }

    #[test]
    fn the_scenario_for_demonstrations_is_read() {
        let s = Scenario::from_json(include_str!("../scenarios/mixed.json")).unwrap();
        for inode in &s.inodes {
            if let InodeKind::File(file) = &inode.kind {
                crate::model::FileModel::new(s.seed, 0, file).unwrap();
            }
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Scenario::from_json(r#"{ "sede": 1 }"#).is_err());
        let bad = r#"{ "inodes": [{ "path": "x", "kind": "fifo" }] }"#;
        assert!(Scenario::from_json(bad).is_err());
    }
}
