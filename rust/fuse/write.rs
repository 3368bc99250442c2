// SPDX-License-Identifier: GPL-2.0

//! Writes through the page cache.
#![deny(unsafe_code)]

use crate::{fuse::IomapInode, ops::FuseIomap};
use kernel::{
    fs::{
        iomap,
        Exclusive,
        Invalidate,
        Offset,
        WriteRequest, //
    },
    prelude::*, //
};

/// Does a `write`, and returns how many bytes are in the page cache then, or stable if the caller
/// wants that.
///
/// May sleep, unless the request must not: then it fails with `EAGAIN`.
pub(crate) fn write(inode: IomapInode<'_>, request: &mut WriteRequest<'_>) -> Result<usize> {
    if inode.is_bad() {
        return Err(EIO);
    }

    let written = write_locked(inode, request)?;
    // An fsync takes the lock.
    request.sync(written)
}

/// The part of [`write`] that needs `i_rwsem`.
fn write_locked(inode: IomapInode<'_>, request: &mut WriteRequest<'_>) -> Result<usize> {
    let lock = if request.is_nowait() {
        inode.vfs().try_lock().ok_or(EAGAIN)?
    } else {
        inode.vfs().lock()
    };

    if request.check(&lock)? == 0 {
        return Ok(0);
    }

    let size = inode.vfs().size();
    if request.pos() > size {
        if request.is_nowait() {
            return Err(EAGAIN);
        }
        lock.wait_for_direct_io();
        zero(&lock, &inode.vfs().lock_invalidate(), size, request.pos())?;
    }

    request.modified(&lock)?;
    iomap::file_buffered_write::<FuseIomap>(&lock, request)
}

/// Makes the file read as zeroes from `start` to before `end`.
///
/// May sleep.  Page faults are kept out, since they would dirty what is looked at.
pub(crate) fn zero(
    lock: &Exclusive<'_>,
    invalidate: &Invalidate<'_>,
    start: Offset,
    end: Offset,
) -> Result {
    match end.checked_sub(start) {
        Some(length) if length > 0 => {
            iomap::zero_range::<FuseIomap>(lock, invalidate, start, length.unsigned_abs())
        }
        _ => Ok(()),
    }
}
