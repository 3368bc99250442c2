// SPDX-License-Identifier: GPL-2.0 OR MIT
//! System calls that no safe crate has. With `memory` the only unsafe code of these tests.
#![allow(unsafe_code)]

use rustix::fs::{
    CWD, MemfdFlags, XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr, memfd_create,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
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

    /// As [`Page::store`], but a fault is `EFAULT` and does not kill: the kernel stores.
    pub fn store_or_fault(&self, byte: u8) -> io::Result<()> {
        let source = File::from(memfd_create("byte", MemfdFlags::CLOEXEC)?);
        source.write_all_at(&[byte], 0)?;
        // SAFETY: The mapping is a page long; the kernel copes with what cannot be written.
        match unsafe { libc::pread(source.as_raw_fd(), self.0, 1, 0) } {
            1 => Ok(()),
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::Error::last_os_error()),
        }
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

/// A page of memory, aligned as direct I/O wants it.
pub struct Aligned(Box<AlignedPage>);

#[repr(align(4096))]
struct AlignedPage([u8; 4096]);

impl Aligned {
    /// Filled with a byte.
    pub fn new(byte: u8) -> Self {
        Self(Box::new(AlignedPage([byte; 4096])))
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        &self.0.0
    }

    /// Its contents, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0.0
    }
}

/// Changes the size of a file by its name, which is not the same as by a descriptor.
pub fn truncate(path: &Path, size: i64) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: The path ends with a NUL and lives during the call.
    done(unsafe { libc::truncate(path.as_ptr(), size) })
}

/// Whether any page of the first bytes of a file is dirty or being written (`cachestat`).
pub fn has_dirty_pages(file: &File, length: u64) -> io::Result<bool> {
    const SYS_CACHESTAT: libc::c_long = 451;
    let range = [0u64, length];
    let mut stat = [0u64; 5];
    // SAFETY: `struct cachestat_range` has two words, and `struct cachestat` five.
    let ret = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            stat.as_mut_ptr(),
            0,
        )
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat[1] + stat[2] > 0)
}

/// Mounts what is mounted at `from` a second time, at `to`, with the ids of a user namespace.
pub fn mount_idmapped(from: &Path, to: &Path, namespace: &File) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let tree = open_tree(CWD, from, OpenTreeFlags::OPEN_TREE_CLONE)?;
    // `struct mount_attr`: flags to set and to clear, propagation, the namespace.
    let attr = [MOUNT_ATTR_IDMAP, 0, 0, namespace.as_raw_fd() as u64];
    // SAFETY: The structure has the size that is said, and the path is empty and ends with a NUL.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attr.as_ptr(),
            size_of_val(&attr),
        )
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    move_mount(&tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
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

fn c_path(path: &Path) -> io::Result<std::ffi::CString> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::CString::new(path.as_os_str().as_bytes())?)
}

/// Starts to swap to a file.
pub fn swapon(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: The path is a live C string.
    done(unsafe { libc::swapon(path.as_ptr(), 0) })
}

/// Ends it; what is there comes back into memory.
pub fn swapoff(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: The path is a live C string.
    done(unsafe { libc::swapoff(path.as_ptr()) })
}

/// Has the kernel swap out the pages that are all in `data`.
pub fn page_out(data: &mut [u8]) -> io::Result<()> {
    let skip = data.as_ptr().align_offset(4096);
    let Some(pages) = data.get_mut(skip..) else {
        return Ok(());
    };
    let length = pages.len() / 4096 * 4096;
    // SAFETY: The memory is ours, and what is in it stays the same.
    done(unsafe { libc::madvise(pages.as_mut_ptr().cast(), length, libc::MADV_PAGEOUT) })
}

/// What statx(2) says, as `struct statx` in words of 32 bits. A server is asked for it.
pub fn statx_words(path: &Path, mask: u32) -> io::Result<[u32; 64]> {
    let path = c_path(path)?;
    let mut words = [0; 64];
    // SAFETY: The path is a live C string, and the kernel writes 256 bytes.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_statx,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW | libc::AT_STATX_FORCE_SYNC,
            mask,
            words.as_mut_ptr(),
        )
    };
    done(ret as libc::c_int)?;
    Ok(words)
}

/// posix_fadvise(2), with any advice.
pub fn advise(file: &File, offset: i64, length: i64, advice: i32) -> io::Result<()> {
    // SAFETY: No memory is passed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, length, advice) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// How many of the first `pages` pages of a file are in the page cache.
pub fn resident(file: &File, pages: usize) -> io::Result<usize> {
    let mut there = vec![0u8; pages];
    // SAFETY: A fresh mapping at an address of the kernel's choice changes no other memory.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            pages * 4096,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The mapping is that long, and `there` has a byte for each page of it.
    let ret = unsafe { libc::mincore(base, pages * 4096, there.as_mut_ptr()) };
    let result = done(ret);
    // SAFETY: The mapping is ours and nothing refers to it.
    unsafe { libc::munmap(base, pages * 4096) };
    result?;
    Ok(there.iter().filter(|page| **page & 1 != 0).count())
}
