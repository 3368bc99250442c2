// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Memory that system calls are given by address: mappings of files, and buffers that are aligned
//! so or otherwise. Also the few calls about files that no safe crate has.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660bu32 as libc::Ioctl;

/// Bytes at an address, readable and writable, which others may change at any time.
pub trait Memory {
    /// Where it is, and how long.
    fn range(&self) -> (*mut u8, usize);

    /// A part of it; panics if it is none.
    fn part(&self, at: usize, length: usize) -> *mut libc::c_void {
        let (base, whole) = self.range();
        assert!(at <= whole && length <= whole - at);
        base.wrapping_add(at).cast()
    }

    /// Reads from a file into a part of it.
    fn read_from(&self, at: usize, length: usize, file: &File, offset: u64) -> io::Result<usize> {
        let to = self.part(at, length);
        // SAFETY: That many bytes are there, and nobody holds references to them.
        let n = unsafe { libc::pread(file.as_raw_fd(), to, length, offset as libc::off_t) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes a part of it to a file.
    fn write_to(&self, at: usize, length: usize, file: &File, offset: u64) -> io::Result<usize> {
        let from = self.part(at, length);
        // SAFETY: That many bytes are there.
        let n = unsafe { libc::pwrite(file.as_raw_fd(), from, length, offset as libc::off_t) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// A copy of a part.
    fn get(&self, at: usize, length: usize) -> Vec<u8> {
        let from: *const u8 = self.part(at, length).cast_const().cast();
        // SAFETY: That many bytes are there, and nobody holds references to them.
        (0..length)
            .map(|i| unsafe { from.add(i).read_volatile() })
            .collect()
    }

    /// Sets a part to one byte.
    fn fill(&self, at: usize, length: usize, byte: u8) {
        let to: *mut u8 = self.part(at, length).cast();
        for i in 0..length {
            // SAFETY: As for reading.
            unsafe { to.add(i).write_volatile(byte) };
        }
    }
}

/// A buffer that begins `skew` bytes after a multiple of a page.
pub struct Buffer {
    memory: Vec<std::cell::UnsafeCell<u8>>,
    start: usize,
    length: usize,
}

impl Buffer {
    const PAGE: usize = 4096;

    /// Full of `byte`.
    pub fn new(length: usize, skew: usize, byte: u8) -> Self {
        let mut memory = Vec::<std::cell::UnsafeCell<u8>>::new();
        memory.resize_with(length + skew + Self::PAGE, || byte.into());
        let start = memory.as_ptr().align_offset(Self::PAGE) + skew;
        Self {
            memory,
            start,
            length,
        }
    }
}

impl Memory for Buffer {
    fn range(&self) -> (*mut u8, usize) {
        (self.memory[self.start].get(), self.length)
    }
}

/// A shared mapping of a file.
pub struct Mapping {
    base: *mut u8,
    length: usize,
}

impl Mapping {
    /// Maps `length` bytes from `offset` for reading and writing.
    pub fn new(file: &File, offset: u64, length: usize) -> io::Result<Self> {
        // SAFETY: A fresh mapping at an address of the kernel's choice changes no other memory.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base: base.cast(),
            length,
        })
    }

    /// Forgets its pages, so that the next access faults.
    pub fn unfault(&self) -> io::Result<()> {
        // SAFETY: The pages of a shared mapping of a file lose nothing.
        let ret = unsafe { libc::madvise(self.base.cast(), self.length, libc::MADV_DONTNEED) };
        if ret == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Memory for Mapping {
    fn range(&self) -> (*mut u8, usize) {
        (self.base, self.length)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours, and this is its last use.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// `FIEMAP_EXTENT_*`.
pub mod extent {
    /// The last one of the file.
    pub const LAST: u32 = 0x1;
    /// Never written.
    pub const UNWRITTEN: u32 = 0x800;
}

/// One extent: where in the file, how long, `FIEMAP_EXTENT_*`.
pub type Extent = (u64, u64, u32);

/// FIEMAP of a range, with room for `room` extents. Returns these, or if there is no room how many
/// there are.
pub fn fiemap(
    file: &File,
    start: u64,
    length: u64,
    flags: u32,
    room: u32,
) -> io::Result<(u32, Vec<Extent>)> {
    const HEADER: usize = 4;
    const EXTENT: usize = 7;
    let mut words = vec![0u64; HEADER + EXTENT * room as usize];
    words[0] = start;
    words[1] = length;
    words[2] = u64::from(flags);
    words[3] = u64::from(room);
    // SAFETY: `words` is a `struct fiemap` with room for as many extents as it says
    // (fm_extent_count is the low half of the fourth word), aligned and live.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, words.as_mut_ptr()) };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    let mapped = (words[2] >> 32) as u32;
    let extents = words[HEADER..].chunks_exact(EXTENT);
    let extents = extents.take(mapped.min(room) as usize);
    Ok((mapped, extents.map(|e| (e[0], e[2], e[5] as u32)).collect()))
}

/// Runs `f` with SIGXFSZ blocked, and says whether it was sent.
pub fn file_size_signal<T>(f: impl FnOnce() -> T) -> (T, bool) {
    // SAFETY: The sets are initialised by sigemptyset before they are used, and only this
    // thread's mask is changed, and put back.
    unsafe {
        let mut only: libc::sigset_t = std::mem::zeroed();
        let mut pending = only;
        libc::sigemptyset(&raw mut only);
        libc::sigaddset(&raw mut only, libc::SIGXFSZ);
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const only, std::ptr::null_mut());
        let result = f();
        libc::sigpending(&raw mut pending);
        let sent = libc::sigismember(&raw const pending, libc::SIGXFSZ) == 1;
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        libc::sigtimedwait(&raw const only, std::ptr::null_mut(), &raw const zero);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const only, std::ptr::null_mut());
        (result, sent)
    }
}
