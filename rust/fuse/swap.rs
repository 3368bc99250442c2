// SPDX-License-Identifier: GPL-2.0

//! Files that are swapped to.
//!
//! The server is asked for the blocks once, and has to leave them to the file until it is told that
//! they are no longer used.  The kernel reads and writes them without asking, also when the server
//! is dead: the device stays open as long as the inode.
#![deny(unsafe_code)]

use crate::{
    begin::{find, Question, Reply},
    fuse::IomapInode,
    ioend,
    mapping::Place,
    ops, //
};
use kernel::{
    bindings,
    fs::{
        iomap::{self, Finished, OpFlags},
        Inode,
        Offset, //
    },
    prelude::*, //
};

/// What FUSE implements of fs/iomap's interface for files that are swapped to.
pub(crate) struct FuseSwap;

/// The operation flags of what is asked.
const OP_FLAGS: u32 = bindings::FUSE_IOMAP_OP_REPORT | bindings::FUSE_IOMAP_OP_SWAPFILE;

impl iomap::Operations for FuseSwap {
    fn begin<'a>(
        inode: &'a Inode,
        pos: Offset,
        length: u64,
        _flags: OpFlags,
    ) -> Result<iomap::Mappings<'a>> {
        let inode = IomapInode::new(inode).ok_or(EIO)?;
        let pos = u64::try_from(pos)?;
        let question = Question {
            opflags: OP_FLAGS,
            pos,
            count: length,
            purpose: None,
        };
        let Reply {
            mut read, cookie, ..
        } = find(inode, &question)?;

        // All of each mapping is taken, and no page may be taken twice.
        read.skip_to(pos);
        read.limit(pos.saturating_add(length));
        match read.place() {
            // Registering it was fine on a mount that was read-only then.
            Place::Mapped(device, _) | Place::Unwritten(device, _) if !device.is_writable() => {
                Err(EROFS)
            }
            _ => Ok(ops::translate(&read, cookie)?.into()),
        }
    }

    fn end(
        inode: &Inode,
        pos: Offset,
        length: u64,
        written: u64,
        _flags: OpFlags,
        mapping: &Finished<'_>,
    ) -> Result {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        ops::end_report(inode, pos, length, written, OP_FLAGS, mapping)
    }
}

impl iomap::SwapOperations for FuseSwap {
    fn deactivate(inode: &Inode) {
        if let Some(inode) = IomapInode::new(inode) {
            ioend::tell_swapoff(inode);
        }
    }
}
