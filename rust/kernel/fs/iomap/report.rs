// SPDX-License-Identifier: GPL-2.0

//! Reporting the mappings of a file: FIEMAP, SEEK_HOLE and SEEK_DATA.

use super::{Operations, OperationsVTable};
use crate::{
    bindings,
    error::{to_result, Error, Result},
    fs::{file::Offset, inode::SharedGuard}, //
};

/// Fills in the answer to a FIEMAP ioctl for `length` bytes from `start`.
///
/// May sleep.  The lock keeps the file from being truncated meanwhile.
///
/// # Safety
///
/// `info` must be what the VFS has given to `inode_operations.fiemap` for this inode.
pub unsafe fn fiemap<T: Operations>(
    guard: &SharedGuard<'_>,
    info: *mut bindings::fiemap_extent_info,
    start: u64,
    length: u64,
) -> Result {
    // SAFETY: `info` is good by the safety requirements, the inode is alive and `OPS` lives for
    // ever.
    to_result(unsafe {
        bindings::iomap_fiemap(
            guard.inode().as_ptr(),
            info,
            start,
            length,
            &OperationsVTable::<T>::OPS,
        )
    })
}

/// Finds the first hole at or after `pos`: `lseek` with `SEEK_HOLE`.
///
/// May sleep.  Fails with `ENXIO` if `pos` is not in the file.
pub fn seek_hole<T: Operations>(guard: &SharedGuard<'_>, pos: Offset) -> Result<Offset> {
    // SAFETY: The inode is alive and `OPS` lives for ever.
    found(unsafe {
        bindings::iomap_seek_hole(guard.inode().as_ptr(), pos, &OperationsVTable::<T>::OPS)
    })
}

/// Finds the first data at or after `pos`: `lseek` with `SEEK_DATA`.
///
/// May sleep.  Fails with `ENXIO` if there is none.
pub fn seek_data<T: Operations>(guard: &SharedGuard<'_>, pos: Offset) -> Result<Offset> {
    // SAFETY: The inode is alive and `OPS` lives for ever.
    found(unsafe {
        bindings::iomap_seek_data(guard.inode().as_ptr(), pos, &OperationsVTable::<T>::OPS)
    })
}

/// Turns a position or negative error number into a result.
fn found(pos: Offset) -> Result<Offset> {
    if pos < 0 {
        // CAST: Error numbers are small.
        Err(Error::from_errno(pos as i32))
    } else {
        Ok(pos)
    }
}
