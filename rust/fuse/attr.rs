// SPDX-License-Identifier: GPL-2.0

//! Attributes of inodes that only this mount changes (`FUSE_ATTR_EXCLUSIVE`).
//!
//! The kernel owns their access times, and of iomap inodes the other times too: a local
//! filesystem's rules of when they move are the VFS's.  The server is told when the inode is
//! written.
#![deny(unsafe_code)]

use crate::fuse;
use kernel::{
    bindings::{self, fuse_attr, fuse_setattr_in, timespec64},
    fs::{Inode, Times},
    prelude::*, //
};

/// Flags of inodes that servers set, and the VFS enforces.
const FLAGS: u32 = bindings::S_SYNC | bindings::S_IMMUTABLE | bindings::S_APPEND;

/// A time that a server has stated; what it has beyond a second is no time.
fn time(seconds: u64, nanoseconds: u32) -> timespec64 {
    timespec64 {
        // CAST: Times before 1970 are negative numbers on the wire; nanoseconds have 30 bits.
        tv_sec: seconds as i64,
        tv_nsec: nanoseconds.min(999_999_999) as isize,
    }
}

/// Starts an inode off with the times that the server states; from now on its access time, and if
/// it is in iomap mode all of them, are the kernel's.
///
/// Context: the inode is new.
pub(crate) fn instantiate(inode: &Inode, attr: &fuse_attr, iomap: bool) {
    let mut theirs = bindings::S_NOATIME;
    if iomap {
        theirs |= bindings::S_NOCMTIME;
    }

    inode.set_flags(0, theirs);
    inode.set_times(&Times {
        access: time(attr.atime, attr.atimensec),
        modification: time(attr.mtime, attr.mtimensec),
        change: time(attr.ctime, attr.ctimensec),
    });
}

/// Adopts what the server says of an inode, unless it is older than what is known.
///
/// Any context.
pub(crate) fn update(inode: &Inode, attr: &fuse_attr) {
    let exclusive = fuse::is_exclusive(inode);

    if !exclusive {
        // The root is in core before the server has been asked anything.  Regular files cannot
        // change their ways, because of what may be in the page cache.
        if attr.flags & bindings::FUSE_ATTR_EXCLUSIVE == 0
            || attr.mode & bindings::S_IFMT == bindings::S_IFREG
        {
            return;
        }
        fuse::set_state_bit(inode, bindings::FUSE_I_EXCLUSIVE);
        inode.set_flags(0, bindings::S_NOATIME);
    }

    let mut flags = 0;
    for (wire, flag) in [
        (bindings::FUSE_ATTR_SYNC, bindings::S_SYNC),
        (bindings::FUSE_ATTR_IMMUTABLE, bindings::S_IMMUTABLE),
        (bindings::FUSE_ATTR_APPEND, bindings::S_APPEND),
    ] {
        if attr.flags & wire != 0 {
            flags |= flag;
        }
    }
    set_flags(inode, flags);
}

/// Adopts flags that the server has just stored, `FS_*_FL`.
///
/// Context: may sleep; the caller holds `i_rwsem`.
pub(crate) fn flags_stored(inode: &Inode, stored: u32) {
    let mut flags = 0;
    for (stored_flag, flag) in [
        (bindings::FS_SYNC_FL, bindings::S_SYNC),
        (bindings::FS_IMMUTABLE_FL, bindings::S_IMMUTABLE),
        (bindings::FS_APPEND_FL, bindings::S_APPEND),
    ] {
        if stored & stored_flag != 0 {
            flags |= flag;
        }
    }
    set_flags(inode, flags);
    fuse::update_change_time(inode);
}

fn set_flags(inode: &Inode, flags: u32) {
    // Attributes come without `i_rwsem`, which others who change the word rely on: only what must
    // be written is.
    if inode.flags() & FLAGS != flags {
        inode.set_flags(flags, FLAGS);
    }
}

/// Tells the server those times of an inode that are the kernel's.
///
/// May sleep, until the server answers or dies.  A server that has no SETATTR need not know.
pub(crate) fn write(inode: &Inode) -> Result {
    let owned = fuse::owned_attributes(inode);
    let times = inode.times();
    let mut request = fuse_setattr_in::default();

    // CAST: Times before 1970 are negative numbers on the wire; nanoseconds have 30 bits.
    if owned & bindings::STATX_ATIME != 0 {
        request.valid |= bindings::FATTR_ATIME;
        request.atime = times.access.tv_sec as u64;
        request.atimensec = times.access.tv_nsec as u32;
    }
    if owned & bindings::STATX_MTIME != 0 {
        request.valid |= bindings::FATTR_MTIME;
        request.mtime = times.modification.tv_sec as u64;
        request.mtimensec = times.modification.tv_nsec as u32;
    }
    if owned & bindings::STATX_CTIME != 0 {
        request.valid |= bindings::FATTR_CTIME;
        request.ctime = times.change.tv_sec as u64;
        request.ctimensec = times.change.tv_nsec as u32;
    }

    match fuse::send_setattr(inode, &request) {
        Err(error) if error == ENOSYS => Ok(()),
        answer => answer,
    }
}
