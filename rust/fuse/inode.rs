// SPDX-License-Identifier: GPL-2.0

//! The iomap state of an inode.
//!
//! It lives in the union of `struct fuse_inode`, from the inode's instantiation until its eviction.
#![deny(unsafe_code)]

use crate::{cache::Cache, devices::DeviceSet, writeback::Writeback};
use core::mem::{align_of, size_of};
use kernel::{
    bindings,
    prelude::*,
    sync::{Arc, OncePtr}, //
};

/// What is kept for an inode whose file I/O goes through iomap.
#[pin_data]
pub(crate) struct State {
    /// The devices that it has mappings to.
    pub(crate) devices: DeviceSet,
    /// The mappings that are known without asking.
    pub(crate) cache: Cache,
    /// What is needed once the file may become dirty: most files in core never do.
    pub(crate) writeback: OncePtr<Arc<Writeback>>,
    /// Whether the server can have a block written in one piece or not at all.
    pub(crate) atomic: bool,
}

// The C side reserves the room, see fuse_iomap.h.
const _: () = assert!(size_of::<State>() <= size_of::<bindings::fuse_iomap_inode>());
const _: () = assert!(align_of::<State>() <= align_of::<bindings::fuse_iomap_inode>());

impl State {
    /// Initialises the state of a new inode with these attributes.
    pub(crate) fn new(attr: &bindings::fuse_attr) -> impl PinInit<Self> {
        let atomic = attr.flags & bindings::FUSE_ATTR_ATOMIC != 0;

        pin_init!(Self {
            devices: DeviceSet::new(),
            cache: Cache::new(),
            writeback: OncePtr::new(),
            atomic,
        })
    }
}

/// Whether the attributes with which a server instantiates an inode ask for iomap.
///
/// A server may only have its data moved by the kernel where nobody else changes it, and only
/// regular files have data on a device.
pub(crate) fn wants_iomap(attr: &bindings::fuse_attr) -> bool {
    const BOTH: u32 = bindings::FUSE_ATTR_EXCLUSIVE | bindings::FUSE_ATTR_IOMAP;

    attr.mode & bindings::S_IFMT == bindings::S_IFREG && attr.flags & BOTH == BOTH
}

/// The block size that a server states for an inode, or that of the filesystem if it does not.
pub(crate) fn block_size(attr: &bindings::fuse_attr, filesystem: u32) -> u32 {
    match attr.blksize {
        0 => filesystem,
        bytes => bytes,
    }
}
