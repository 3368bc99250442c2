// SPDX-License-Identifier: GPL-2.0

//! What the C side of FUSE calls, see fuse_iomap.h.
//!
//! Each hook turns pointers into references and leaves the rest to safe code.
#![allow(unsafe_code)]

use crate::{
    fuse,
    inode::{self, State},
    ops::FuseIomap, //
};
use kernel::{
    bindings,
    error::from_result,
    ffi::c_int,
    fs::{
        file::flags::{O_ACCMODE, O_RDONLY, O_TRUNC},
        iomap::{self, AddressSpaceOperations},
        Inode,
        Offset, //
    },
    prelude::*, //
};

/// The page cache's operations for iomap inodes.
#[no_mangle]
static fuse_iomap_aops: AddressSpaceOperations<FuseIomap> = AddressSpaceOperations::new();

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

    if attr.flags & bindings::FUSE_ATTR_EXCLUSIVE != 0 {
        fuse::set_state_bit(inode, bindings::FUSE_I_EXCLUSIVE);
    }
    if !inode::wants_iomap(attr) {
        return;
    }

    let block_size = inode::block_size(attr);
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
    unsafe { pin_init::raw_init(fuse::state_ptr(inode), State::new()) };
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

/// Warns, once on a connection, if a server asks for iomap when it is too late.
///
/// Context: any.
///
/// # Safety
///
/// `inode` is one of FUSE's, on a connection with iomap on, and `attr` valid.
#[export]
unsafe extern "C" fn fuse_iomap_check_attr(
    inode: *mut bindings::inode,
    attr: *const bindings::fuse_attr,
) {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, attr) = unsafe { (Inode::from_raw(inode), &*attr) };

    if inode::wants_iomap(attr)
        && fuse::IomapInode::new(inode).is_none()
        && fuse::first_late_attr(inode)
    {
        pr_warn!(
            "inode {}: FUSE_ATTR_IOMAP ignored, the inode is in use without it\n",
            attr.ino
        );
    }
}

/// Opens a file whose inode is in iomap mode.
///
/// Context: may sleep.
///
/// # Errors
///
/// `EROFS` for writing, which is not there yet; `EIO` if the server wants another I/O mode.
///
/// # Safety
///
/// `file` is being opened, and has its `struct fuse_file`.
#[export]
unsafe extern "C" fn fuse_iomap_file_open(
    _inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: By the safety requirements both are valid, and the task that opens the file is the
    // only one that uses them.
    let (flags, fuse_file) = unsafe {
        let fuse_file: *mut bindings::fuse_file = (*file).private_data.cast();
        ((*file).f_flags, &mut *fuse_file)
    };

    from_result(|| {
        if flags & (O_ACCMODE | O_TRUNC) != O_RDONLY {
            return Err(EROFS);
        }
        if fuse_file.open_flags & bindings::FOPEN_PASSTHROUGH != 0 {
            return Err(EIO);
        }

        // The page cache is filled by the kernel, so a new open is no reason to drop it.
        fuse_file.open_flags |= bindings::FOPEN_KEEP_CACHE;
        fuse_file.iomode = bindings::fuse_file_IOM_IOMAP;
        Ok(0)
    })
}

/// `file_operations.llseek`.
///
/// Context: may sleep.
///
/// # Safety
///
/// `file` is an open file of an iomap inode, and its position is locked.
#[export]
unsafe extern "C" fn fuse_iomap_file_llseek(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    whence: c_int,
) -> bindings::loff_t {
    // SAFETY: By the safety requirements the file is open, so its inode is alive.
    let inode = unsafe { Inode::from_raw((*file).f_inode) };

    // CAST: Not negative; nothing else is equal to one of these.
    let found = match whence as u32 {
        bindings::SEEK_HOLE => iomap::seek_hole::<FuseIomap>(&inode.lock_shared(), offset),
        bindings::SEEK_DATA => iomap::seek_data::<FuseIomap>(&inode.lock_shared(), offset),
        // SAFETY: The file is good by the safety requirements.
        _ => return unsafe { bindings::generic_file_llseek(file, offset, whence) },
    };

    match found {
        // SAFETY: The file is good by the safety requirements.
        Ok(pos) => unsafe { bindings::vfs_setpos(file, pos, inode.max_bytes()) },
        Err(error) => Offset::from(error.to_errno()),
    }
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
