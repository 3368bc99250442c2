// SPDX-License-Identifier: GPL-2.0

//! The devices that a server has registered.
#![allow(unsafe_code)]

use super::{conn, IomapInode};
use core::ptr::NonNull;
use kernel::{bindings, ffi::c_int, fs::BlockDevice};

/// A device that a server has registered with a connection (`struct fuse_backing`).
///
/// # Invariants
///
/// Owns a reference to a backing of type `FUSE_BACKING_TYPE_IOMAP`, whose file is an open block
/// device.
pub(crate) struct Device {
    backing: NonNull<bindings::fuse_backing>,
    id: u32,
}

// SAFETY: The reference count is all that is ever changed of a backing, atomically; the last
// reference may be dropped by any task, which `fput` is made for.
unsafe impl Send for Device {}

// SAFETY: File and type of a backing are never written to, its reference count is atomic.
unsafe impl Sync for Device {}

impl Device {
    /// The server's id for the device.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether the server has opened the device for writing.
    pub(crate) fn is_writable(&self) -> bool {
        // SAFETY: By the type invariant the backing is alive and has a file, whose mode does not
        // change while it is open.
        let mode = unsafe { (*(*self.backing.as_ptr()).file).f_mode };

        mode & bindings::FMODE_WRITE != 0
    }

    /// The block device itself.
    pub(crate) fn block_device(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the backing is alive and its file an open block device,
        // both until `self` is dropped.
        unsafe { BlockDevice::from_raw(bindings::file_bdev((*self.backing.as_ptr()).file)) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours, and it is not used any more.
        unsafe { bindings::fuse_backing_put(self.backing.as_ptr()) };
    }
}

impl IomapInode<'_> {
    /// Looks up a device by the server's id.
    pub(crate) fn open_device(self, id: u32) -> Option<Device> {
        let id_c = c_int::try_from(id).ok()?;
        // SAFETY: The inode, and so its connection, is alive by the type invariant.
        let backing = unsafe {
            bindings::fuse_backing_lookup(conn(self.0), id_c, bindings::FUSE_BACKING_TYPE_IOMAP)
        };

        // INVARIANT: The function returns a new reference to a backing of this type or NULL, and
        // registering one checks that it is a block device.
        NonNull::new(backing).map(|backing| Device { backing, id })
    }
}
