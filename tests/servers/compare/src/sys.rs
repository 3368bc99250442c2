// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The system calls that nobody wraps: FIEMAP, the inode flag ioctls, and comparing by mmap.
//! All `unsafe` of this program is here.

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

/// One extent as FIEMAP reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// File offset.
    pub logical: u64,
    /// Device offset.
    pub physical: u64,
    /// Length in bytes.
    pub length: u64,
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
}

impl Extent {
    /// The last of the file.
    pub const LAST: u32 = 0x1;
    /// Several blocks were reported as one extent.
    pub const MERGED: u32 = 0x1000;
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap` with room for extents.
#[repr(C)]
struct RawFiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [RawExtent; BATCH],
}

const BATCH: usize = 256;
/// `FS_IOC_FIEMAP`, that is `_IOWR('f', 11, struct fiemap)`.
const FIEMAP: libc::c_ulong = 0xc020_660b;
/// `FS_IOC_GETFLAGS`, which despite its name moves an `int`.
const GETFLAGS: libc::c_ulong = 0x8008_6601;
/// `FS_IOC_GETVERSION`.
const GETVERSION: libc::c_ulong = 0x8008_7601;

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// All extents of a file, in order.
pub fn fiemap(file: &File) -> Result<Vec<Extent>, Errno> {
    let mut found: Vec<Extent> = Vec::new();
    let mut start = 0u64;
    loop {
        let mut request = RawFiemap {
            start,
            length: u64::MAX - start,
            flags: 0,
            mapped: 0,
            count: BATCH as u32,
            reserved: 0,
            extents: [RawExtent::default(); BATCH],
        };
        // SAFETY: the kernel reads the header and writes at most `count` extents, for which there is
        // room behind it; the descriptor is open for the length of the call.
        let rc = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP as _, &raw mut request) };
        if rc < 0 {
            return Err(last_error());
        }
        let got = &request.extents[..(request.mapped as usize).min(BATCH)];
        let mut last = got.is_empty();
        for raw in got {
            let next = raw.logical.saturating_add(raw.length);
            // Without progress this would never end, which is a finding of its own.
            if next <= start && start != 0 {
                return Err(Errno::LOOP);
            }
            start = next;
            last |= raw.flags & Extent::LAST != 0;
            found.push(Extent {
                logical: raw.logical,
                physical: raw.physical,
                length: raw.length,
                flags: raw.flags,
            });
        }
        if last {
            return Ok(found);
        }
    }
}

fn get_int(file: &File, request: libc::c_ulong) -> Result<u32, Errno> {
    let mut value: libc::c_long = 0;
    // SAFETY: both requests write an int, for which a long has room, through a valid pointer.
    let rc = unsafe { libc::ioctl(file.as_raw_fd(), request as _, &raw mut value) };
    if rc < 0 {
        Err(last_error())
    } else {
        Ok(value as u32)
    }
}

/// The inode flag of ext4 that says that the contents are in the inode itself.
pub const INLINE_DATA: u32 = 0x1000_0000;

/// Inode flags as lsattr(1) shows them.
pub fn inode_flags(file: &File) -> Result<u32, Errno> {
    get_int(file, GETFLAGS)
}

/// Inode generation.
pub fn generation(file: &File) -> Result<u32, Errno> {
    get_int(file, GETVERSION)
}

/// A file mapped for reading.
pub struct Mapped {
    at: *const u8,
    len: usize,
}

impl Mapped {
    /// Maps the first `len` bytes, which must not be more than the file has.
    pub fn new(file: &File, len: usize) -> Result<Self, Errno> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let at = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                len,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file.as_fd(),
                0,
            )?
        };
        Ok(Self { at: at.cast(), len })
    }

    /// The bytes. A page that cannot be read ends the program with SIGBUS, which is a finding.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are mapped readable until drop, and the trees are mounted read-only, so
        // nobody changes them.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made, and no slice of it outlives `self`. Should
        // unmapping fail there is nothing left to do about it.
        let _ = unsafe { rustix::mm::munmap(self.at.cast_mut().cast(), self.len) };
    }
}
