// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the methods of `Filesystem` answer with.

use crate::connection::BackingId;
use crate::wire::{Attr, AttrOut, EntryOut, OpenOut, fopen};
use std::time::Duration;

/// How long the kernel may trust what it was told, unless the server says otherwise. The kernel
/// asks no more about an inode that only it changes, so this only bounds what others change.
const DEFAULT_VALID: Duration = Duration::from_secs(1);

/// A name that was looked up or made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Node id, the server's name for the inode in all further requests; 0 for "no such name",
    /// which the kernel then remembers for `entry_valid`.
    pub nodeid: u64,
    /// Distinguishes inodes that had the same node id one after the other.
    pub generation: u64,
    /// The attributes.
    pub attr: Attr,
    /// How long the attributes are valid.
    pub attr_valid: Duration,
    /// How long the name is valid.
    pub entry_valid: Duration,
}

impl Entry {
    /// An entry that is valid for one second.
    pub const fn new(nodeid: u64, attr: Attr) -> Self {
        Self {
            nodeid,
            generation: 0,
            attr,
            attr_valid: DEFAULT_VALID,
            entry_valid: DEFAULT_VALID,
        }
    }

    /// The same with both validities set to `valid`.
    #[must_use]
    pub const fn valid_for(mut self, valid: Duration) -> Self {
        self.attr_valid = valid;
        self.entry_valid = valid;
        self
    }

    pub(crate) fn to_wire(self) -> EntryOut {
        EntryOut {
            nodeid: self.nodeid,
            generation: self.generation,
            entry_valid: self.entry_valid.as_secs(),
            attr_valid: self.attr_valid.as_secs(),
            entry_valid_nsec: self.entry_valid.subsec_nanos(),
            attr_valid_nsec: self.attr_valid.subsec_nanos(),
            attr: self.attr,
        }
    }
}

/// Attributes and how long they are valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrReply {
    /// The attributes.
    pub attr: Attr,
    /// How long they are valid.
    pub valid: Duration,
}

impl AttrReply {
    /// Attributes that are valid for one second.
    pub const fn new(attr: Attr) -> Self {
        Self {
            attr,
            valid: DEFAULT_VALID,
        }
    }

    pub(crate) fn to_wire(self) -> AttrOut {
        AttrOut {
            attr_valid: self.valid.as_secs(),
            attr_valid_nsec: self.valid.subsec_nanos(),
            dummy: 0,
            attr: self.attr,
        }
    }
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// File handle, the server's to choose; comes back in requests on the open file.
    pub fh: u64,
    /// See [`fopen`].
    pub flags: u32,
    /// The backing file, with [`fopen::PASSTHROUGH`].
    pub backing_id: i32,
}

impl Opened {
    /// Reads and writes go to a backing file that was registered for passthrough.
    pub const fn passthrough(fh: u64, backing: BackingId) -> Self {
        Self {
            fh,
            flags: fopen::PASSTHROUGH,
            backing_id: backing.get() as i32,
        }
    }

    pub(crate) fn to_wire(self) -> OpenOut {
        OpenOut {
            fh: self.fh,
            open_flags: self.flags,
            backing_id: self.backing_id,
        }
    }
}

/// The result of an ioctl.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoctlReply {
    /// What ioctl(2) returns.
    pub result: i32,
    /// What is copied out, at most `out_size` bytes.
    pub data: Vec<u8>,
}
