// SPDX-License-Identifier: GPL-2.0 OR MIT
//! System calls that no safe crate has. The only unsafe code of these tests.
#![allow(unsafe_code)]

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

const FS_IOC_GETFLAGS: libc::Ioctl = 0x8008_6601u32 as libc::Ioctl;
const FS_IOC_SETFLAGS: libc::Ioctl = 0x4008_6602u32 as libc::Ioctl;
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801c_581fu32 as libc::Ioctl;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401c_5820u32 as libc::Ioctl;

/// Flags of an inode as chattr(1) knows them, `FS_*_FL`.
pub mod flag {
    /// Writes are synchronous.
    pub const SYNC: u32 = 0x8;
    /// Nothing can be changed.
    pub const IMMUTABLE: u32 = 0x10;
    /// Data can only be added.
    pub const APPEND: u32 = 0x20;
    /// Not to be dumped.
    pub const NODUMP: u32 = 0x40;
    /// Access times are not kept.
    pub const NOATIME: u32 = 0x80;
}

/// `FS_XFLAG_*`.
pub mod xflag {
    /// As [`super::flag::IMMUTABLE`].
    pub const IMMUTABLE: u32 = 0x8;
    /// As [`super::flag::APPEND`].
    pub const APPEND: u32 = 0x10;
}

fn done(ret: libc::c_int) -> io::Result<()> {
    if ret == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Reads the flags of a file.
pub fn get_flags(file: &impl AsFd) -> io::Result<u32> {
    let mut flags: libc::c_int = 0;
    // SAFETY: The kernel writes an int for this number, whatever it says of the size.
    done(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_GETFLAGS, &raw mut flags) })?;
    Ok(flags as u32)
}

/// Sets the flags of a file.
pub fn set_flags(file: &impl AsFd, flags: u32) -> io::Result<()> {
    let flags = flags as libc::c_int;
    // SAFETY: The kernel reads an int for this number.
    done(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), FS_IOC_SETFLAGS, &raw const flags) })
}

/// Reads `fsx_xflags` of a file.
pub fn get_xflags(file: &impl AsFd) -> io::Result<u32> {
    let mut fsx = [0u32; 7];
    // SAFETY: `struct fsxattr` has these 28 bytes.
    done(unsafe {
        libc::ioctl(
            file.as_fd().as_raw_fd(),
            FS_IOC_FSGETXATTR,
            fsx.as_mut_ptr(),
        )
    })?;
    Ok(fsx[0])
}

/// Sets `fsx_xflags` of a file, and leaves the rest of `struct fsxattr` as it is.
pub fn set_xflags(file: &impl AsFd, xflags: u32) -> io::Result<()> {
    let mut fsx = [0u32; 7];
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: `struct fsxattr` has these 28 bytes.
    done(unsafe { libc::ioctl(fd, FS_IOC_FSGETXATTR, fsx.as_mut_ptr()) })?;
    fsx[0] = xflags;
    // SAFETY: As above.
    done(unsafe { libc::ioctl(fd, FS_IOC_FSSETXATTR, fsx.as_ptr()) })
}

/// A shared mapping of the first page of a file.
pub struct Page(*mut libc::c_void);

impl Page {
    const LENGTH: usize = 4096;

    /// Maps it, for writing as well if that is wanted.
    pub fn map(file: &File, write: bool) -> io::Result<Self> {
        let prot = if write {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: A fresh mapping at an address of the kernel's choice changes no other memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Self::LENGTH,
                prot,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(base))
    }

    /// Reads the first byte.
    pub fn load(&self) -> u8 {
        // SAFETY: The mapping is a page long, and lives as long as `self`.
        unsafe { self.0.cast::<u8>().read_volatile() }
    }

    /// Writes the first byte of a mapping for writing.
    pub fn store(&self, byte: u8) {
        // SAFETY: As for reading; nobody holds references into the mapping.
        unsafe { self.0.cast::<u8>().write_volatile(byte) }
    }

    /// Writes it back.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: The mapping lives as long as `self`.
        done(unsafe { libc::msync(self.0, Self::LENGTH, libc::MS_SYNC) })
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and this is its last use.
        unsafe { libc::munmap(self.0, Self::LENGTH) };
    }
}

/// Extended attributes, sorted by name.
pub fn xattrs(path: &Path) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let mut names = vec![0; 65536];
    let length = llistxattr(path, &mut names[..])?;
    let mut all = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        all.push((name.clone(), xattr(path, &name)?));
    }
    all.sort();
    Ok(all)
}

/// The value of an extended attribute.
pub fn xattr(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; 65536];
    let length = lgetxattr(path, name, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// Sets an extended attribute.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    lsetxattr(path, name, value, XattrFlags::empty())
}

/// Removes an extended attribute.
pub fn remove_xattr(path: &Path, name: &str) -> Result<(), Errno> {
    lremovexattr(path, name)
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
