// SPDX-License-Identifier: GPL-2.0

//! The C side of FUSE: connection, requests, inodes, backing devices.
//!
//! Nothing but this module calls FUSE's C code or looks into its structures.
#![allow(unsafe_code)]

mod config;
mod device;
mod report;
mod request;

pub(crate) use self::{
    config::{block_sizes, configure, forget_config, pool},
    device::Device,
    report::count,
    request::{send_setattr, Patience}, //
};

use crate::{
    cache::Pool,
    config::Extensions,
    inode::State,
    mapping::Limits, //
};
use kernel::{
    bindings,
    ffi::{c_uint, c_ulong},
    fs::{Inode, LocalFile},
    sync::atomic::{Atomic, Relaxed},
    workqueue::Queue, //
};

/// An inode in iomap mode.
///
/// # Invariants
///
/// `FUSE_I_IOMAP` is set for the inode, so that the union of its `struct fuse_inode` holds a
/// [`State`], and the inode is not evicted for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct IomapInode<'a>(&'a Inode);

impl<'a> IomapInode<'a> {
    /// Checks that an inode of FUSE is in iomap mode.
    ///
    /// The functions that call this are reached through iomap inodes only.
    pub(crate) fn new(inode: &'a Inode) -> Option<Self> {
        // INVARIANT: Checked here, and the bit does not change once an inode can be found; whoever
        // has a reference for `'a` keeps the inode.
        test_state_bit(inode, bindings::FUSE_I_IOMAP).then_some(Self(inode))
    }

    /// The iomap state.
    pub(crate) fn state(self) -> &'a State {
        // SAFETY: By the type invariant the union holds an initialised `State` for `'a`, and all
        // references to it are shared.
        unsafe { &*state_ptr(self.0) }
    }

    /// Whether I/O on the inode must fail, because the server has reused its node id, or because
    /// the filesystem has been shut down.
    pub(crate) fn is_bad(self) -> bool {
        test_state_bit(self.0, bindings::FUSE_I_BAD) || self.shutdown().load(Relaxed) != 0
    }

    /// The number that the server has put into `fuse_attr.ino`.
    pub(crate) fn attr_ino(self) -> u64 {
        // SAFETY: The inode is alive by the type invariant.  The C side writes this only under
        // the inode's lock and with a value that a sane server never changes.
        unsafe { (&raw const (*fuse_inode(self.0)).orig_ino).read_volatile() }
    }

    /// What the rules for mappings need to know of the inode.
    pub(crate) fn limits(self) -> Limits {
        Limits {
            block_size: u64::from(self.0.block_size()),
            max_bytes: self.0.max_bytes().unsigned_abs(),
            may_cache: self.extensions().cache_replies(),
        }
    }

    /// The inode as the VFS knows it.
    pub(crate) fn vfs(self) -> &'a Inode {
        self.0
    }

    /// Takes note that the server may have given the file blocks, or taken some: what is cached of
    /// their number is not to be shown any more.
    ///
    /// Any context.
    pub(crate) fn blocks_changed(self) {
        // SAFETY: The inode is alive by the type invariant.
        unsafe { bindings::fuse_invalidate_attr_mask(self.0.as_ptr(), bindings::STATX_BLOCKS) };
    }

    /// What the mapping caches of the connection share, unless nothing is to be cached.
    pub(crate) fn pool(self) -> Option<&'a Pool> {
        // SAFETY: The connection is alive by the type invariant, and the pool is dropped when the
        // inodes are gone.
        unsafe { config::pool(conn(self.0)) }
    }

    /// The extensions that kernel and server use.
    pub(crate) fn extensions(self) -> Extensions {
        // SAFETY: The connection is alive by the type invariant, and this field of it is written
        // before there are inodes in iomap mode only.
        Extensions::from_bits(unsafe { (*conn(self.0)).iomap_state.extensions })
    }

    /// Where work on the completions of this connection is done.
    pub(crate) fn ioend_queue(self) -> &'a Queue {
        // SAFETY: The connection is alive by the type invariant, and its workqueue as long; it was
        // made before there were inodes in iomap mode.
        unsafe { Queue::from_raw((*conn(self.0)).iomap_state.ioend_wq) }
    }
}

/// The server's handle of an open file.
///
/// `file` must be FUSE's.
pub(crate) fn file_handle(file: &LocalFile) -> u64 {
    // SAFETY: The file is open, and FUSE keeps its `struct fuse_file` there as long.
    unsafe {
        let fuse_file: *const bindings::fuse_file = (*file.as_ptr()).private_data.cast();

        (*fuse_file).fh
    }
}

/// The mount of an inode.
fn mount(inode: &Inode) -> *mut bindings::fuse_mount {
    // SAFETY: The inode is alive, so its superblock and what that points to are too.
    unsafe { (*(*inode.as_ptr()).i_sb).s_fs_info.cast() }
}

/// The connection of an inode.
fn conn(inode: &Inode) -> *mut bindings::fuse_conn {
    // SAFETY: The mount is alive with the inode, and its connection as long.
    unsafe { (*mount(inode)).fc }
}

/// `get_fuse_inode`.
fn fuse_inode(inode: &Inode) -> *mut bindings::fuse_inode {
    // CAST: The inode is the first member, as the C side asserts too.
    const _: () = assert!(core::mem::offset_of!(bindings::fuse_inode, inode) == 0);

    inode.as_ptr().cast()
}

/// Where the iomap state of an inode is.
pub(crate) fn state_ptr(inode: &Inode) -> *mut State {
    // SAFETY: Only makes a pointer to a member of an inode that is alive.
    unsafe { (&raw mut (*fuse_inode(inode)).__bindgen_anon_1.iomap).cast() }
}

/// Tests one of the `FUSE_I_*` bits of an inode.
///
/// Any context.
fn test_state_bit(inode: &Inode, bit: c_uint) -> bool {
    // SAFETY: The inode is alive. Bits may be set meanwhile; the C side reads the word with
    // `test_bit`, a volatile read, as well.
    let state = unsafe { (&raw const (*fuse_inode(inode)).state).read_volatile() };

    state & (1 << bit) != 0
}

/// Sets the number that the server has for a new inode, see [`IomapInode::attr_ino`].
pub(crate) fn set_attr_ino(inode: &Inode, ino: u64) {
    // SAFETY: The inode is alive; who reads this meanwhile sees one value or the other.
    unsafe { (&raw mut (*fuse_inode(inode)).orig_ino).write_volatile(ino) };
}

/// Sets one of the `FUSE_I_*` bits of an inode.
///
/// Any context.
pub(crate) fn set_state_bit(inode: &Inode, bit: c_uint) {
    // SAFETY: The inode is alive, and the bits are changed with atomic operations only.
    unsafe { bindings::set_bit(bit as c_ulong, &raw mut (*fuse_inode(inode)).state) };
}

/// Whether only this mount changes an inode of FUSE's (`FUSE_I_EXCLUSIVE`).
///
/// Any context.
pub(crate) fn is_exclusive(inode: &Inode) -> bool {
    test_state_bit(inode, bindings::FUSE_I_EXCLUSIVE)
}

/// Which attributes of an inode of FUSE's are the kernel's, so that the server has to be told
/// (`STATX_*`).
///
/// Any context.
pub(crate) fn owned_attributes(inode: &Inode) -> u32 {
    // SAFETY: The inode is alive.
    unsafe { bindings::fuse_get_cache_mask(inode.as_ptr()) }
}

/// Takes note that an inode of FUSE's is being changed now.
///
/// May sleep.
pub(crate) fn update_change_time(inode: &Inode) {
    // SAFETY: The inode is alive.
    unsafe { bindings::fuse_update_ctime(inode.as_ptr()) };
}

/// Returns true for the first caller on a connection only.
pub(crate) fn first_late_attr(inode: &Inode) -> bool {
    // SAFETY: The connection is alive with the inode, and this field of it is only accessed here.
    let warned = unsafe { Atomic::from_ptr(&raw mut (*conn(inode)).iomap_state.warned.counter) };

    warned.xchg(1, Relaxed) == 0
}
