// SPDX-License-Identifier: GPL-2.0

//! Hooks in the life of an inode, and in SETATTR.
#![allow(unsafe_code)]

use crate::{
    attr,
    fuse::{self, IomapInode},
    inode::{self, State},
    ops::FuseIomap,
    truncate, //
};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi::c_int,
    fs::{iomap, Inode},
    prelude::*, //
};

/// Puts a new inode into iomap mode if the server wants that for it.
///
/// Context: may sleep; `inode` is `I_NEW` and not seen by anybody else.
///
/// # Safety
///
/// As the context says; `inode` is one of FUSE's, on a connection with iomap on, and `attr` valid.
#[export]
unsafe extern "C" fn fuse_iomap_init_inode(
    inode: *mut bindings::inode,
    attr: *const bindings::fuse_attr,
) {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, attr) = unsafe { (Inode::from_raw(inode), &*attr) };

    let wants_iomap = inode::wants_iomap(attr);
    if attr.flags & bindings::FUSE_ATTR_EXCLUSIVE != 0 {
        fuse::set_state_bit(inode, bindings::FUSE_I_EXCLUSIVE);
        attr::instantiate(inode, attr, wants_iomap);
    }
    if !wants_iomap {
        return;
    }

    // A new inode has that of its superblock.
    let block_size = inode::block_size(attr, inode.block_size());
    // SAFETY: By the safety requirements nobody else uses the inode.
    if unsafe { inode.set_block_size(block_size) }.is_err() {
        pr_warn!(
            "inode {}: no iomap with a block size of {} bytes\n",
            attr.ino,
            block_size
        );
        fuse::set_state_bit(inode, bindings::FUSE_I_BAD);
    }

    // SAFETY: The union of a new inode is zeroed and nobody else uses it; the C side has room of
    // this size and alignment there. The state stays until `fuse_iomap_evict_inode`.
    unsafe { pin_init::raw_init(fuse::state_ptr(inode), State::new(attr)) };
    // The C side does this too, but only when the inode can be found already.
    fuse::set_attr_ino(inode, attr.ino);
    fuse::set_state_bit(inode, bindings::FUSE_I_IOMAP);
}

/// Drops the state of an iomap inode.
///
/// Context: may sleep; the page cache is empty and no I/O is in flight.
///
/// # Safety
///
/// `inode` is an iomap inode that is being evicted, and nobody uses its state after this.
#[export]
unsafe extern "C" fn fuse_iomap_evict_inode(inode: *mut bindings::inode) {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };

    // SAFETY: `fuse_iomap_init_inode` has initialised the state, and by the safety requirements
    // this is its last use.
    unsafe { core::ptr::drop_in_place(fuse::state_ptr(inode)) };
}

/// Adopts what a server says of an inode, beyond what any FUSE inode has.  Warns, once on a
/// connection, if it asks for iomap when it is too late.
///
/// Context: any; the caller holds the lock of the `struct fuse_inode`.
///
/// # Safety
///
/// `inode` is one of FUSE's, on a connection with iomap on, and `attr` valid.
#[export]
unsafe extern "C" fn fuse_iomap_change_attr(
    inode: *mut bindings::inode,
    attr: *const bindings::fuse_attr,
) {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, attr) = unsafe { (Inode::from_raw(inode), &*attr) };

    attr::update(inode, attr);
    if inode::wants_iomap(attr) && IomapInode::new(inode).is_none() && fuse::first_late_attr(inode)
    {
        pr_warn!(
            "inode {}: FUSE_ATTR_IOMAP ignored, the inode is in use without it\n",
            attr.ino
        );
    }
}

/// `super_operations.write_inode` of an exclusive inode.
///
/// Context: may sleep.
///
/// # Safety
///
/// The VFS calls this for an inode of FUSE's.
#[export]
unsafe extern "C" fn fuse_iomap_write_inode(inode: *mut bindings::inode) -> c_int {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };

    from_result(|| {
        attr::write(inode)?;
        Ok(0)
    })
}

/// Adopts flags (`FS_*_FL`) that the server of an exclusive inode has stored.
///
/// Context: may sleep; the caller holds `i_rwsem` exclusively.
///
/// # Safety
///
/// As the context says; `inode` is one of FUSE's.
#[export]
unsafe extern "C" fn fuse_iomap_set_flags(inode: *mut bindings::inode, flags: u32) {
    // SAFETY: The inode is alive by the safety requirements.
    attr::flags_stored(unsafe { Inode::from_raw(inode) }, flags);
}

/// `inode_operations.fiemap`.
///
/// Context: may sleep.
///
/// # Safety
///
/// The VFS calls this for an iomap inode, with its own `info`.
#[export]
unsafe extern "C" fn fuse_iomap_fiemap(
    inode: *mut bindings::inode,
    info: *mut bindings::fiemap_extent_info,
    start: u64,
    length: u64,
) -> c_int {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    let guard = inode.lock_shared();

    from_result(|| {
        // SAFETY: `info` is the VFS's by the safety requirements.
        unsafe { iomap::fiemap::<FuseIomap>(&guard, info, start, length) }?;
        Ok(0)
    })
}

/// Prepares an iomap inode for SETATTR with a new size.
///
/// Context: may sleep; the caller holds `i_rwsem` and `invalidate_lock`, both exclusively, until
/// [`fuse_iomap_truncate_end`], which it calls if this succeeds.
///
/// # Safety
///
/// As the context says; `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_truncate_begin(
    inode: *mut bindings::inode,
    size: bindings::loff_t,
) -> c_int {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    // SAFETY: The locks are held by the safety requirements.
    let (lock, invalidate) = unsafe { (inode.assume_locked(), inode.assume_invalidate_locked()) };

    from_result(|| {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        truncate::begin(inode, &lock, &invalidate, size)?;
        Ok(0)
    })
}

/// Ends what [`fuse_iomap_truncate_begin`] has begun, when SETATTR has returned `error`.
///
/// Context: as there.
///
/// # Safety
///
/// As the context says; `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_truncate_end(
    inode: *mut bindings::inode,
    old_size: bindings::loff_t,
    new_size: bindings::loff_t,
    error: c_int,
) {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    // SAFETY: The locks are held by the safety requirements.
    let (lock, invalidate) = unsafe { (inode.assume_locked(), inode.assume_invalidate_locked()) };

    if let Some(inode) = IomapInode::new(inode) {
        truncate::end(
            inode,
            &lock,
            &invalidate,
            old_size,
            new_size,
            to_result(error),
        );
    }
}

/// Whether the server can have a block written in one piece or not at all.
///
/// Context: any.
///
/// # Safety
///
/// `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_is_atomic(inode: *mut bindings::inode) -> bool {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };

    IomapInode::new(inode).is_some_and(|inode| inode.state().atomic)
}
