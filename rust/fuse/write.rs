// SPDX-License-Identifier: GPL-2.0

//! Writes.
#![deny(unsafe_code)]

use crate::{
    direct::{self, Direct},
    fuse::IomapInode,
    inline,
    ops::FuseIomap, //
};
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

/// Does a `write`, and returns how many bytes are in the page cache or on the device then, or
/// stable if the caller wants that.
///
/// May sleep, unless the request must not: then it fails with `EAGAIN`.  Fails with `EIOCBQUEUED`
/// if the request ends later.  `forced` says that it was the server who wanted a direct one.
pub(crate) fn write(
    inode: IomapInode<'_>,
    mut request: WriteRequest<'_>,
    forced: bool,
) -> Result<usize> {
    if inode.is_bad() {
        return Err(EIO);
    }
    if inode.vfs().is_immutable() {
        // The file may have been opened before.
        return Err(EPERM);
    }
    if request.is_atomic() {
        direct::check_atomic(inode, &mut request)?;
    }
    if !request.is_direct() {
        return write_cached(inode, request);
    }

    match direct::write(inode, request, forced) {
        Direct::Done(result) => result,
        Direct::Rest(request, done) => match write_through(inode, request) {
            Ok(rest) => Ok(done.saturating_add(rest)),
            Err(_) if done > 0 => Ok(done),
            Err(error) => Err(error),
        },
    }
}

/// Writes to the page cache.
fn write_cached(inode: IomapInode<'_>, mut request: WriteRequest<'_>) -> Result<usize> {
    let written = write_locked(inode, &mut request)?;
    // An fsync takes the lock.
    request.sync(written)
}

/// Does a direct write by way of the page cache: the data is on the device in the end, and nothing
/// is left in the cache.
fn write_through(inode: IomapInode<'_>, mut request: WriteRequest<'_>) -> Result<usize> {
    request.set_direct(false);
    let written = write_locked(inode, &mut request)?;
    // CAST: A write is never larger than `isize::MAX`.
    let start = request.pos().saturating_sub(written as Offset);
    let last = request.pos().saturating_sub(1);

    if written > 0 {
        inode.vfs().write_back(start, last)?;
        inode.vfs().forget_clean(start, last);
    }
    request.sync(written)
}

/// The part of a write to the page cache that needs `i_rwsem`.
fn write_locked(inode: IomapInode<'_>, request: &mut WriteRequest<'_>) -> Result<usize> {
    let lock = request.lock()?;

    if request.check(&*lock)? == 0 {
        return Ok(0);
    }
    prepare(&lock, request)?;

    let size = inode.vfs().size();
    let written = iomap::file_buffered_write::<FuseIomap>(&lock, request);
    inline::check(&lock, size)?;
    written
}

/// Prepares the file for a write that has been checked: there are zeroes up to its start, and its
/// times and privileges are as after it.
pub(crate) fn prepare(lock: &Exclusive<'_>, request: &mut WriteRequest<'_>) -> Result {
    let size = lock.inode().size();
    if request.pos() > size {
        if request.is_nowait() {
            return Err(EAGAIN);
        }
        lock.wait_for_direct_io();
        zero(lock, &lock.inode().lock_invalidate(), size, request.pos())?;
    }

    request.modified(lock)?;
    // Only this mount changes the inode, see `FUSE_ATTR_EXCLUSIVE`.
    lock.note_no_privileges();
    Ok(())
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
            iomap::zero_range::<FuseIomap>(lock, invalidate, start, length.unsigned_abs())?;
            inline::check(lock, lock.inode().size())
        }
        _ => Ok(()),
    }
}
