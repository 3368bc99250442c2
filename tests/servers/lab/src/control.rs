// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The control channel: one JSON command per line in, one JSON answer per line out.

use crate::misbehave::{Garbled, Notice, RandomSpec, Rule};
use crate::store::{FileMap, Tally};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a server is asked over its control channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Requests received per opcode.
    Counters,
    /// What happened to one inode.
    Activity {
        /// Its path.
        path: String,
    },
    /// What the kernel did against the protocol.
    Violations,
    /// How many unlinked files are open, if it is frozen.
    Frozen,
    /// Replaces the rules.
    Rules {
        /// By these.
        rules: Vec<Rule>,
    },
    /// Starts or stops random misbehaviour.
    Random {
        /// `None` to stop.
        spec: Option<RandomSpec>,
    },
    /// How often each rule fired.
    Fired,
    /// What the random misbehaviour did.
    Garbled,
    /// Changes `fuse_attr.flags` of an inode from now on.
    SetFlags {
        /// Its path.
        path: String,
        /// The flags.
        flags: u32,
    },
    /// Makes the kernel drop what it cached of an inode's attributes and data.
    InvalInode {
        /// Its path.
        path: String,
    },
    /// Does ioctl BACKING_OPEN.
    BackingOpen {
        /// A file to open and pass; none for descriptor -1.
        path: Option<PathBuf>,
        /// Open it read-only instead of for reading and writing.
        #[serde(default)]
        read_only: bool,
        /// `fuse_backing_map.flags`.
        flags: u32,
        /// `fuse_backing_map.padding`.
        #[serde(default)]
        padding: u64,
        /// Do it this often and answer with the last result.
        #[serde(default = "once")]
        times: u32,
    },
    /// Does ioctl BACKING_CLOSE.
    BackingClose {
        /// The id.
        id: u32,
        /// This many ids, counting up; stops at the first error.
        #[serde(default = "once")]
        times: u32,
    },
    /// Where the blocks of a writable file are.
    Map {
        /// Its path.
        path: String,
    },
    /// What was counted about writable files.
    Tally,
    /// Makes an invisible clone of a file, so that its blocks are shared.
    Snapshot {
        /// Its path.
        path: String,
    },
    /// Gives up all invisible clones.
    DropSnapshots,
    /// Answers requests with this errno, and does nothing about them.
    Refuse {
        /// Name of the opcode.
        op: String,
        /// 0 for no more.
        errno: i32,
    },
    /// Says something about the mappings of an inode, true or not.
    Notify {
        /// The inode.
        path: String,
        /// What.
        notice: Notice,
        /// Another node id than that of the inode.
        #[serde(default)]
        nodeid: Option<u64>,
        /// Another inode number.
        #[serde(default)]
        attr_ino: Option<u64>,
        /// Another size of the message, without its header.
        #[serde(default)]
        size: Option<usize>,
    },
    /// Dies without unmounting.
    Die,
}

const fn once() -> u32 {
    1
}

/// What a server answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Sent once, unasked, when INIT is through.
    Ready(Ready),
    /// Done.
    Done,
    /// A system call failed with this errno, after this many successes.
    Errno {
        /// The errno.
        errno: i32,
        /// Successes before.
        after: u32,
    },
    /// The command could not be carried out.
    Failed(String),
    /// To [`Command::Counters`].
    Counters(BTreeMap<String, u64>),
    /// To [`Command::Activity`].
    Activity(Activity),
    /// To [`Command::Violations`].
    Violations(Vec<String>),
    /// To [`Command::Frozen`].
    Frozen(Option<u64>),
    /// To [`Command::Fired`].
    Fired(Vec<u64>),
    /// To [`Command::Garbled`].
    Garbled(Vec<Garbled>),
    /// To [`Command::Map`].
    Map(FileMap),
    /// To [`Command::Tally`].
    Tally(Tally),
    /// To [`Command::BackingOpen`]: the first and the last id.
    Backing(u32, u32),
}

/// What INIT came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Ready {
    /// INIT flags that the kernel offered.
    pub offered: u64,
    /// INIT flags in the reply.
    pub flags: u64,
    /// Backing ids of the devices, if iomap is on.
    pub devices: Vec<u32>,
}

/// What happened to one inode.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Activity {
    /// READ requests.
    pub reads: u64,
    /// BEGINs, in order.
    pub begins: Vec<Begin>,
    /// ENDs, in order: operation flags, position, bytes.
    pub ends: Vec<(u32, u64, i64)>,
    /// IOENDs, in order.
    pub ioends: Vec<Ioend>,
}

/// One IOEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ioend {
    /// Its flags.
    pub flags: u32,
    /// 0 or a negative errno.
    pub error: i32,
    /// Where.
    pub pos: u64,
    /// How much.
    pub written: u64,
}

/// One BEGIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Operation flags.
    pub opflags: u32,
    /// Where.
    pub pos: u64,
    /// How much.
    pub count: u64,
}
