// SPDX-License-Identifier: GPL-2.0

//! Reads and writes past the page cache.
#![deny(unsafe_code)]

use crate::{
    fuse::IomapInode,
    ops::FuseIomap,
    write::prepare, //
};
use kernel::{
    fs::{
        iomap::{self, DirectFlag, DirectFlags, Submitted},
        Exclusive,
        ReadRequest,
        WriteRequest, //
    },
    prelude::*, //
};

/// Does a direct read, and falls back to the page cache where that has to be.
///
/// `forced` says that it was the server who wanted it direct: then the caller does not know of any
/// alignment.  May sleep, unless the request must not.
pub(crate) fn read(inode: IomapInode<'_>, request: ReadRequest<'_>, forced: bool) -> Result<usize> {
    if inode.is_bad() {
        return Err(EIO);
    }

    let lock = request.lock_shared()?;
    let count = request.count();
    request.accessed();
    let Submitted::Done(mut request, result) = iomap::file_direct_read::<FuseIomap>(&lock, request)
    else {
        return Err(EIOCBQUEUED);
    };
    drop(lock);

    match result {
        Err(error) if needs_cache(error, forced) => {
            request.rewind(count);
            request.read_cached()
        }
        // What is left is not at the end of the file, so the direct way ended early.
        Ok(done) if request.count() > 0 && request.pos() < inode.vfs().size() => {
            Ok(done.saturating_add(request.read_cached().unwrap_or(0)))
        }
        result => result,
    }
}

/// Whether I/O that failed like this can be done through the page cache.
fn needs_cache(error: Error, forced: bool) -> bool {
    error == ENOTBLK || (forced && error == EINVAL)
}

/// What has become of a direct write.
pub(crate) enum Direct<'a> {
    /// It is done, or fails, or is queued, which is an error too: `EIOCBQUEUED`.
    Done(Result<usize>),
    /// So much is done, and the rest has to go through the page cache.
    Rest(WriteRequest<'a>, usize),
}

/// Does a direct write.
///
/// May sleep, unless the request must not.
///
/// Writes of whole blocks inside the file share `i_rwsem`, also those that allocate: the server
/// orders what it is asked.  So do others, if they only overwrite: the blocks at their ends are
/// nobody else's matter then.  All that remains has the lock for itself and is waited for: writes
/// that make the file larger (in core or on disk, of which only the order of their ends is known),
/// and those that zero the rest of a block that another might write to at the same time.
pub(crate) fn write<'a>(
    inode: IomapInode<'_>,
    mut request: WriteRequest<'a>,
    forced: bool,
) -> Direct<'a> {
    let alone = request.is_append()
        || !inode.vfs().has_no_privileges()
        || Range::of(inode, &request, request.count()).extends;
    if !alone {
        match write_shared(inode, request, forced) {
            Shared::Finished(direct) => return direct,
            Shared::Alone(back) => request = back,
        }
    }
    write_alone(inode, request, forced)
}

/// Checks what an atomic write has to keep, beyond what the mapping has: it is direct, and as on
/// ext4 and XFS, of one block.
pub(crate) fn check_atomic(inode: IomapInode<'_>, request: &mut WriteRequest<'_>) -> Result {
    if !inode.state().atomic {
        return Err(EOPNOTSUPP);
    }
    request.check_atomic()?;
    // CAST: A block has at most 32 bits of bytes.
    if request.count() != inode.vfs().block_size() as usize {
        return Err(EINVAL);
    }
    Ok(())
}

/// What matters of the range of a write.
struct Range {
    /// It goes beyond the end of the file, in core or on disk.
    extends: bool,
    /// It is made of whole blocks.
    aligned: bool,
}

impl Range {
    /// Looks at `count` bytes at the request's position.
    fn of(inode: IomapInode<'_>, request: &WriteRequest<'_>, count: usize) -> Self {
        let pos = request.pos().unsigned_abs();
        // CAST: `usize` has 64 bits.
        let end = pos.saturating_add(count as u64);
        let size = inode.vfs().size().min(inode.disk_size()).unsigned_abs();

        Self {
            extends: end > size,
            aligned: (pos | end).is_multiple_of(u64::from(inode.vfs().block_size())),
        }
    }
}

/// What has become of a write that shares the lock.
enum Shared<'a> {
    Finished(Direct<'a>),
    /// It needs the lock for itself.
    Alone(WriteRequest<'a>),
}

/// The part of [`write`] that shares `i_rwsem`.
fn write_shared<'a>(
    inode: IomapInode<'_>,
    mut request: WriteRequest<'a>,
    forced: bool,
) -> Shared<'a> {
    let lock = match request.lock_shared() {
        Ok(lock) => lock,
        Err(error) => return Shared::Finished(Direct::Done(Err(error))),
    };

    let count = match request.check(&lock) {
        Ok(0) => return Shared::Finished(Direct::Done(Ok(0))),
        Ok(count) => count,
        Err(error) => return Shared::Finished(Direct::Done(Err(error))),
    };
    let range = Range::of(inode, &request, count);
    if range.extends || !inode.vfs().has_no_privileges() {
        return Shared::Alone(request);
    }
    if let Err(error) = request.modified(&lock) {
        return Shared::Finished(Direct::Done(Err(error)));
    }

    let batches = inode.extensions().batch_ioend();
    let submitted = if range.aligned && batches && request.is_queued() {
        iomap::file_direct_write_queued::<FuseIomap>(&lock, request)
    } else if range.aligned {
        iomap::file_direct_write::<FuseIomap>(&lock, request, DirectFlags::default())
    } else {
        iomap::file_direct_write::<FuseIomap>(&lock, request, DirectFlag::OverwriteOnly.into())
    };
    match submitted {
        Submitted::Done(mut request, Err(error))
            if error == EAGAIN && !range.aligned && !request.is_nowait() =>
        {
            request.rewind(count);
            Shared::Alone(request)
        }
        submitted => Shared::Finished(judge(submitted, count, forced)),
    }
}

/// The part of [`write`] that has `i_rwsem` for itself.
fn write_alone<'a>(
    inode: IomapInode<'_>,
    mut request: WriteRequest<'a>,
    forced: bool,
) -> Direct<'a> {
    let lock = match request.lock() {
        Ok(lock) => lock,
        Err(error) => return Direct::Done(Err(error)),
    };

    let flags = match prepare_alone(inode, &lock, &mut request) {
        Ok(Some(flags)) => flags,
        Ok(None) => return Direct::Done(Ok(0)),
        Err(error) => return Direct::Done(Err(error)),
    };
    let count = request.count();
    // The size on disk moves before that in core: other completions are judged by both.
    let writeback = match inode.writeback() {
        Ok(writeback) => writeback,
        Err(error) => return Direct::Done(Err(error)),
    };
    writeback.layout_changes(&lock);
    let submitted = iomap::file_direct_write::<FuseIomap>(&*lock, request, flags);
    if let Submitted::Done(request, Ok(_)) = &submitted {
        // The position is behind what was written. The server knows already.
        if request.pos() > inode.vfs().size() {
            lock.extend(request.pos());
        }
    }
    writeback.layout_has_changed(&lock, None);
    judge(submitted, count, forced)
}

/// Finds out how to do a write with the lock held, or `None` if there is nothing to write.
fn prepare_alone(
    inode: IomapInode<'_>,
    lock: &Exclusive<'_>,
    request: &mut WriteRequest<'_>,
) -> Result<Option<DirectFlags>> {
    let count = request.check(lock)?;
    if count == 0 {
        return Ok(None);
    }

    let range = Range::of(inode, request, count);
    let waits = range.extends || !range.aligned;
    if waits && request.is_nowait() {
        return Err(EAGAIN);
    }
    if !range.aligned {
        // What is in flight may convert the block that is going to be zeroed in part.
        lock.wait_for_direct_io();
    }
    prepare(lock, request)?;

    Ok(Some(if waits {
        DirectFlag::ForceWait.into()
    } else {
        DirectFlags::default()
    }))
}

/// Decides what is left to do of a write that was of `count` bytes.
fn judge(submitted: Submitted<WriteRequest<'_>>, count: usize, forced: bool) -> Direct<'_> {
    match submitted {
        Submitted::Queued => Direct::Done(Err(EIOCBQUEUED)),
        Submitted::Done(mut request, Err(error)) if needs_cache(error, forced) => {
            request.rewind(count);
            rest_of(request, 0)
        }
        Submitted::Done(request, Ok(done)) if request.count() > 0 => rest_of(request, done),
        Submitted::Done(_, result) => Direct::Done(result),
    }
}

/// Leaves the rest to the page cache, which can tear it.
fn rest_of(request: WriteRequest<'_>, done: usize) -> Direct<'_> {
    if request.is_atomic() {
        Direct::Done(Err(EOPNOTSUPP))
    } else {
        Direct::Rest(request, done)
    }
}
