// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The ioctls of `/dev/fuse`.
#![allow(unsafe_code)]

use crate::wire::{BackingMap, IomapBackingInfo, IomapSupport};
use rustix::ioctl::{Getter, Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl, opcode};
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

const MAGIC: u8 = 229;
const CLONE: Opcode = opcode::read::<u32>(MAGIC, 0);
const BACKING_OPEN: Opcode = opcode::write::<BackingMap>(MAGIC, 1);
const BACKING_CLOSE: Opcode = opcode::write::<u32>(MAGIC, 2);
const SYNC_INIT: Opcode = opcode::none(MAGIC, 3);
const IOMAP_SUPPORT: Opcode = opcode::read::<IomapSupport>(MAGIC, 99);
const SET_NOFS: Opcode = opcode::write::<u32>(MAGIC, 100);
const ADD_IOMAP: Opcode = opcode::none(MAGIC, 101);
const IOMAP_SET_BLOCKSIZE: Opcode = opcode::write::<IomapBackingInfo>(MAGIC, 102);

/// BACKING_OPEN, whose result is the return value of ioctl(2).
struct BackingOpen(BackingMap);

// SAFETY: BACKING_OPEN reads a `struct fuse_backing_map`, which `BackingMap` mirrors field by
// field, and writes nothing; the pointer is to a live value for the duration of the call.
unsafe impl Ioctl for BackingOpen {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        BACKING_OPEN
    }

    fn as_ptr(&mut self) -> *mut c_void {
        (&raw mut self.0).cast()
    }

    unsafe fn output_from_ptr(ret: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        // A success that is negative cannot be told from an error by the caller of ioctl(2).
        u32::try_from(ret).map_err(|_| rustix::io::Errno::RANGE)
    }
}

/// Takes the descriptor by value of its number: an invalid one must reach the kernel as well.
pub(crate) fn backing_open(dev: BorrowedFd<'_>, map: BackingMap) -> io::Result<u32> {
    // SAFETY: `BackingOpen` describes this ioctl truthfully, see there.
    Ok(unsafe { ioctl(dev, BackingOpen(map)) }?)
}

pub(crate) fn backing_close(dev: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    // SAFETY: BACKING_CLOSE reads one u32.
    Ok(unsafe { ioctl(dev, Setter::<BACKING_CLOSE, u32>::new(id)) }?)
}

pub(crate) fn clone_device(dev: BorrowedFd<'_>, other: BorrowedFd<'_>) -> io::Result<()> {
    let other = other.as_raw_fd() as u32;
    // SAFETY: CLONE reads one u32, whatever its number says.
    Ok(unsafe { ioctl(dev, Setter::<CLONE, u32>::new(other)) }?)
}

pub(crate) fn sync_init(dev: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: SYNC_INIT takes no argument.
    Ok(unsafe { ioctl(dev, NoArg::<SYNC_INIT>::new()) }?)
}

pub(crate) fn iomap_support(dev: BorrowedFd<'_>) -> io::Result<IomapSupport> {
    // SAFETY: IOMAP_SUPPORT fills in one `struct fuse_iomap_support`.
    Ok(unsafe { ioctl(dev, Getter::<IOMAP_SUPPORT, IomapSupport>::new()) }?)
}

pub(crate) fn set_nofs(dev: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // SAFETY: SET_NOFS reads one u32.
    Ok(unsafe { ioctl(dev, Setter::<SET_NOFS, u32>::new(on.into())) }?)
}

pub(crate) fn add_iomap(dev: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: ADD_IOMAP takes no argument.
    Ok(unsafe { ioctl(dev, NoArg::<ADD_IOMAP>::new()) }?)
}

pub(crate) fn set_blocksize(dev: BorrowedFd<'_>, info: IomapBackingInfo) -> io::Result<()> {
    // SAFETY: IOMAP_SET_BLOCKSIZE reads one `struct fuse_iomap_backing_info`.
    Ok(unsafe { ioctl(dev, Setter::<IOMAP_SET_BLOCKSIZE, _>::new(info)) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_have_the_documented_numbers() {
        // dir << 30 | size << 16 | magic << 8 | nr, as in <asm-generic/ioctl.h>.
        assert_eq!(BACKING_OPEN as u64, 1 << 30 | 16 << 16 | 229 << 8 | 1);
        assert_eq!(BACKING_CLOSE as u64, 1 << 30 | 4 << 16 | 229 << 8 | 2);
        assert_eq!(CLONE as u64, 2 << 30 | 4 << 16 | 229 << 8);
        assert_eq!(SYNC_INIT as u64, 229 << 8 | 3);
        assert_eq!(IOMAP_SUPPORT as u64, 2 << 30 | 16 << 16 | 229 << 8 | 99);
        assert_eq!(SET_NOFS as u64, 1 << 30 | 4 << 16 | 229 << 8 | 100);
        assert_eq!(ADD_IOMAP as u64, 229 << 8 | 101);
        assert_eq!(
            IOMAP_SET_BLOCKSIZE as u64,
            1 << 30 | 8 << 16 | 229 << 8 | 102
        );
    }
}
