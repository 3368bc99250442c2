// SPDX-License-Identifier: GPL-2.0

//! Changing the size of a file.
//!
//! The kernel zeroes what a change of size exposes, or might later, and writes that back; only then
//! is the server asked to move its metadata.  It never has to write a zero.
#![deny(unsafe_code)]

use crate::{fuse::IomapInode, inline, ops::FuseIomap, write::zero};
use kernel::{
    fs::{iomap, Exclusive, Invalidate, Offset},
    prelude::*, //
};

/// Does what comes before SETATTR: afterwards the file has its new size in core, nothing of it is
/// dirty that the size on disk depends on, and no completion is in flight that would change that.
///
/// May sleep.
pub(crate) fn begin(
    inode: IomapInode<'_>,
    lock: &Exclusive<'_>,
    invalidate: &Invalidate<'_>,
    new: Offset,
) -> Result {
    if inode.vfs().is_immutable() {
        // The file may have been opened before.
        return Err(EPERM);
    }
    let writeback = inode.writeback()?;
    lock.wait_for_direct_io();

    let old = inode.vfs().size();
    if new > old {
        zero(lock, invalidate, old, new)?;
    } else {
        iomap::truncate_page::<FuseIomap>(lock, invalidate, new)?;
        inline::check(lock, old)?;
    }

    // Before the size in core moves: until the server knows of it, what it says of the size on disk
    // can be larger than both.
    writeback.layout_changes(lock);
    invalidate.truncate(lock, new);

    let kept = old.min(new).min(writeback.disk_size());
    if let Err(error) = inode.vfs().write_back(kept, Offset::MAX) {
        give_up(inode, lock, invalidate, old, new);
        writeback.layout_has_changed(lock, None);
        return Err(error);
    }
    Ok(())
}

/// Does what comes after SETATTR, given what that has returned.
///
/// May sleep.
pub(crate) fn end(
    inode: IomapInode<'_>,
    lock: &Exclusive<'_>,
    invalidate: &Invalidate<'_>,
    old: Offset,
    new: Offset,
    answer: Result,
) {
    let Some(writeback) = inode.state().writeback.as_ref() else {
        return;
    };

    if answer.is_err() {
        give_up(inode, lock, invalidate, old, new);
    }
    writeback.layout_has_changed(lock, answer.is_ok().then_some(new));
    inode.mappings_changed_in(old.min(new).unsigned_abs()..u64::MAX);
}

/// Goes back to a size that the server can agree with.
///
/// What has been dropped beyond a smaller size is what the disk has, as far as it has any.
fn give_up(
    inode: IomapInode<'_>,
    lock: &Exclusive<'_>,
    invalidate: &Invalidate<'_>,
    old: Offset,
    new: Offset,
) {
    let on_disk = match inode.state().writeback.as_ref() {
        Some(writeback) => writeback.disk_size(),
        None => old,
    };
    let size = if new > old {
        old
    } else {
        new.max(old.min(on_disk))
    };

    invalidate.truncate(lock, size);
}
