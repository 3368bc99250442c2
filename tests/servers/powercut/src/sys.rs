// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Writing through a shared mapping.

use crate::random::fill;
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, msync, munmap};
use std::fs::File;
use std::io;

const PAGE: u64 = 4096;

/// Puts `fill(stamp, pos)` into the file, which must reach that far, and returns when it is on disk.
pub fn write_mapped(file: &File, stamp: u64, pos: u64, length: u64) -> io::Result<()> {
    let start = pos / PAGE * PAGE;
    let skip = usize::try_from(pos - start).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    let size = skip + length;
    // SAFETY: the kernel chooses an address that nothing else uses. The file is at least
    // `start + size` long and nobody truncates it: this thread is the only one that changes it.
    let base = unsafe {
        mmap(
            std::ptr::null_mut(),
            size,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            start,
        )
    }?;
    // SAFETY: the mapping is `size` bytes long, and no other reference into it exists.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), size) };
    if let Some(bytes) = bytes.get_mut(skip..) {
        fill(stamp, pos, bytes);
    }
    // SAFETY: this is the whole of the mapping made above.
    let synced = unsafe { msync(base, size, MsyncFlags::SYNC) };
    // SAFETY: as before; `bytes` is not used any more.
    unsafe { munmap(base, size) }?;
    Ok(synced?)
}
