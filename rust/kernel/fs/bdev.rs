// SPDX-License-Identifier: GPL-2.0

//! Open block devices, as filesystems see them.
//!
//! C header: [`include/linux/blkdev.h`](srctree/include/linux/blkdev.h)

use crate::{
    bindings,
    error::{to_result, Result},
    fs::nofs::NofsScope,
    types::Opaque, //
};

/// A block device that is open (`struct block_device`).
///
/// Only ever seen by reference.  Whoever hands out the reference keeps the device open for as
/// long as it lives.
///
/// # Invariants
///
/// The device is open, so its disk and its request queue exist.
#[repr(transparent)]
pub struct BlockDevice(Opaque<bindings::block_device>);

// SAFETY: What this type offers of a `struct block_device` may be read from any context while the
// device is open, which the type invariant says it is.
unsafe impl Sync for BlockDevice {}

impl BlockDevice {
    /// Creates a reference from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to a block device that stays open for `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::block_device) -> &'a Self {
        // SAFETY: The caller promises that the pointer is valid for `'a`, and the type is a
        // transparent wrapper.
        // INVARIANT: The caller promises that the device is open.
        unsafe { &*ptr.cast() }
    }

    /// Returns the pointer that the C side uses.
    #[inline]
    pub fn as_ptr(&self) -> *mut bindings::block_device {
        self.0.get()
    }

    /// The size of the device, in bytes.
    ///
    /// Any context.  It can change while the device is open.
    #[inline]
    pub fn size(&self) -> u64 {
        // SAFETY: By the type invariant the device is open.
        let bytes = unsafe { bindings::bdev_nr_bytes(self.as_ptr()) };

        u64::try_from(bytes).unwrap_or(0)
    }

    /// The smallest unit that the device can address, in bytes: a power of two, at least 512.
    ///
    /// Any context.
    #[inline]
    pub fn logical_block_size(&self) -> u32 {
        // SAFETY: By the type invariant the device is open.
        unsafe { bindings::bdev_logical_block_size(self.as_ptr()) }
    }

    /// Whether the device writes `length` bytes, at a multiple of that, in one piece or not at all.
    ///
    /// Any context.
    pub fn can_write_atomically(&self, length: u64) -> bool {
        // SAFETY: By the type invariant the device is open.
        let (min, max) = unsafe {
            (
                bindings::bdev_atomic_write_unit_min_bytes(self.as_ptr()),
                bindings::bdev_atomic_write_unit_max_bytes(self.as_ptr()),
            )
        };

        // The block layer says 0 for a device that cannot.
        max != 0 && (u64::from(min)..=u64::from(max)).contains(&length)
    }

    /// Makes the device write its volatile cache to stable storage.
    ///
    /// May sleep.
    pub fn flush(&self) -> Result {
        // SAFETY: By the type invariant the device is open.
        to_result(unsafe { bindings::blkdev_issue_flush(self.as_ptr()) })
    }

    /// Writes zeroes to `length` bytes from `addr`, both multiples of the logical block size.
    ///
    /// May sleep, and waits until it is done.
    pub fn write_zeroes(&self, addr: u64, length: u64) -> Result {
        let sector = addr >> bindings::SECTOR_SHIFT;
        let sectors = length >> bindings::SECTOR_SHIFT;
        // Who zeroes blocks of a file may hold its locks.
        let _nofs = NofsScope::new();

        // SAFETY: By the type invariant the device is open, and the block layer checks the range.
        to_result(unsafe {
            bindings::blkdev_issue_zeroout(
                self.as_ptr(),
                sector,
                sectors,
                bindings::GFP_KERNEL,
                bindings::BLKDEV_ZERO_NOUNMAP,
            )
        })
    }
}
