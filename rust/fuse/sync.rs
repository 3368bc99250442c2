// SPDX-License-Identifier: GPL-2.0

//! Making a file stable.
#![deny(unsafe_code)]

use crate::fuse::IomapInode;
use kernel::{
    fs::{LocalFile, Offset},
    prelude::*, //
};

/// Does `fsync` or, with `datasync`, `fdatasync`, for the data from `start` to `end`, both
/// included.
///
/// May sleep.  Fails with the error of writeback that this open file has not seen yet, if any.
///
/// When all data is on the devices and the server knows that, it commits its metadata and flushes
/// the devices.  For a server that has no FSYNC the kernel flushes them.
pub(crate) fn fsync(
    inode: IomapInode<'_>,
    file: &LocalFile,
    start: Offset,
    end: Offset,
    datasync: bool,
) -> Result {
    if inode.is_bad() {
        return Err(EIO);
    }

    if let Some(writeback) = inode.state().writeback.as_ref() {
        // If it fails, so does the next step, which reports each error once.
        let _ = inode.vfs().start_write_back(start, end);
        writeback.finish_pending();
    }
    file.write_back(start, end)?;
    if !datasync {
        // The times: the size is the matter of IOEND.
        inode.vfs().write_inode()?;
    }
    if !inode.send_fsync(file, datasync)? {
        inode
            .state()
            .devices
            .try_for_each(|device| device.block_device().flush())?;
    }
    Ok(())
}
