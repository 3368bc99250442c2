// SPDX-License-Identifier: GPL-2.0

//! Data in the inode, which the server has: it is read and written with the ordinary requests, but
//! without a file handle.
#![deny(unsafe_code)]

use crate::{begin::InodeMapping, fuse::IomapInode};
use kernel::{
    error::to_result,
    fs::{
        iomap::{Finished, InlineData},
        Exclusive,
        NofsScope,
        Offset, //
    },
    prelude::*,
    sync::atomic::Relaxed, //
};

/// Gets the data of a mapping.
///
/// May sleep.  Fails with `EIO` if the server does not have all of it.
pub(crate) fn load(inode: IomapInode<'_>, mapping: &InodeMapping<'_>) -> Result<KBox<InlineData>> {
    // The caller may hold the lock of a folio.
    let _nofs = NofsScope::new();
    let mut data = InlineData::new()?;
    let size = inode.vfs().size().unsigned_abs().min(mapping.length());

    if let Some(room) = data.get_mut(..usize::try_from(size)?) {
        if !room.is_empty() && inode.send_read(0, room)? != room.len() {
            return Err(EIO);
        }
    }
    Ok(data)
}

/// Stores what was written to a mapping: `written` bytes from `pos`, as far as they are in the
/// file.
///
/// May sleep.  An error is found by [`check`].
pub(crate) fn store(inode: IomapInode<'_>, pos: Offset, written: u64, mapping: &Finished<'_>) {
    // Zeroing goes on to the end of the block.
    let end = pos.saturating_add_unsigned(written).min(inode.vfs().size());
    let Ok(length @ 1..) = u64::try_from(end.saturating_sub(pos)) else {
        return;
    };
    let Some(writeback) = inode.state().writeback.as_ref() else {
        return;
    };
    let stored = bytes(mapping, pos, length)
        .ok_or(EIO)
        .and_then(|bytes| inode.send_write(pos.unsigned_abs(), bytes));

    match stored {
        Ok(()) => writeback.grow_disk_size(end),
        Err(error) => writeback.inline_error.store(error.to_errno(), Relaxed),
    }
    // If reclaim was so quick to drop what was just written that another task has read it again,
    // that was before the server had it. Who holds the folio meanwhile has the right one.
    let _ = inode.vfs().drop_clean(pos, end);
}

/// Fails with the error that [`store`] has met, if any, since this was called last.
///
/// fs/iomap has no way to pass it on.  To be called when it has written or zeroed, with the lock
/// that it was called with: `old_size` is that of the file before, which it has again after an
/// error.
pub(crate) fn check(lock: &Exclusive<'_>, old_size: Offset) -> Result {
    let writeback =
        IomapInode::new(lock.inode()).and_then(|inode| inode.state().writeback.as_ref());
    let Some(writeback) = writeback else {
        return Ok(());
    };

    let result = to_result(writeback.inline_error.xchg(0, Relaxed));
    if result.is_err() {
        lock.set_size(old_size.max(writeback.disk_size()));
    }
    result
}

/// The bytes of a mapping that were written.
fn bytes<'a>(mapping: &'a Finished<'_>, pos: Offset, written: u64) -> Option<&'a [u8]> {
    let start = usize::try_from(pos.checked_sub(mapping.offset())?).ok()?;
    let end = start.checked_add(usize::try_from(written).ok()?)?;

    mapping.inline_data()?.get(start..end)
}
