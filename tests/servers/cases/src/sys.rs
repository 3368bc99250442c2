// SPDX-License-Identifier: GPL-2.0 OR MIT
//! System calls that no safe crate has. The only unsafe code of these tests.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const FS_IOC_FIEMAP: libc::Ioctl = 0xc020_660bu32 as libc::Ioctl;
const FIBMAP: libc::Ioctl = 1;
/// Header and one extent of `struct fiemap`, in words of 8 bytes.
const FIEMAP_HEADER: usize = 4;
const FIEMAP_EXTENT: usize = 7;

/// One extent as FIEMAP reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FiemapExtent {
    /// File offset.
    pub logical: u64,
    /// Device address.
    pub physical: u64,
    /// Length.
    pub length: u64,
    /// `FIEMAP_EXTENT_*`.
    pub flags: u32,
}

/// `FIEMAP_EXTENT_*`.
pub mod fiemap {
    /// The last extent of the file.
    pub const LAST: u32 = 0x1;
    /// There is no address.
    pub const UNKNOWN: u32 = 0x2;
    /// Reserved, not allocated.
    pub const DELALLOC: u32 = 0x4;
    /// The address is no block of its own.
    pub const NOT_ALIGNED: u32 = 0x100;
    /// In the inode.
    pub const DATA_INLINE: u32 = 0x200;
    /// Never written.
    pub const UNWRITTEN: u32 = 0x800;
    /// Put together by the filesystem.
    pub const MERGED: u32 = 0x1000;
    /// Shared with another file.
    pub const SHARED: u32 = 0x2000;
}

/// The UUID of the filesystem that a file is on.
pub fn fs_uuid(file: &File) -> io::Result<Vec<u8>> {
    const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500u32 as libc::Ioctl;
    // Its length, and room for it.
    let mut uuid = [0u8; 17];
    // SAFETY: `uuid` is as large as `struct fsuuid2`, which this writes to.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_GETFSUUID, uuid.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let length = usize::from(uuid[0]).min(16);
    Ok(uuid[1..1 + length].to_vec())
}

/// The block size of the filesystem that a file is on.
pub fn fs_block_size(file: &File) -> io::Result<i32> {
    const FIGETBSZ: libc::Ioctl = 2;
    let mut size: libc::c_int = 0;
    // SAFETY: This writes an int.
    match unsafe { libc::ioctl(file.as_raw_fd(), FIGETBSZ, &raw mut size) } {
        0 => Ok(size),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The number of the filesystem that a file is on, as statfs(2) has it.
pub fn fsid(file: &File) -> io::Result<u64> {
    // SAFETY: Zeroes are a valid value of this structure of integers.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: The structure is there to be written to.
    match unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut stat) } {
        0 => Ok(stat.f_fsid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// All extents in a range, asked for `batch` at a time.
pub fn fiemap(file: &File, start: u64, length: u64, batch: u32) -> io::Result<Vec<FiemapExtent>> {
    let end = start.saturating_add(length);
    let mut at = start;
    let mut extents = Vec::new();
    while at < end {
        let mut words = vec![0u64; FIEMAP_HEADER + FIEMAP_EXTENT * batch as usize];
        words[0] = at;
        words[1] = end - at;
        words[3] = u64::from(batch);
        // SAFETY: `words` is a `struct fiemap` with room for as many extents as it says
        // (fm_extent_count is the low half of the fourth word), aligned and live.
        let ret = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, words.as_mut_ptr()) };
        if ret != 0 {
            return Err(io::Error::last_os_error());
        }
        let mapped = (words[2] >> 32) as usize;
        for e in words[FIEMAP_HEADER..]
            .chunks_exact(FIEMAP_EXTENT)
            .take(mapped)
        {
            let extent = FiemapExtent {
                logical: e[0],
                physical: e[1],
                length: e[2],
                flags: e[5] as u32,
            };
            let next = extent.logical.saturating_add(extent.length);
            if next <= at {
                return Err(io::Error::other("FIEMAP does not get on"));
            }
            at = next;
            extents.push(extent);
            if extent.flags & fiemap::LAST != 0 {
                return Ok(extents);
            }
        }
        if mapped < batch as usize {
            break;
        }
    }
    Ok(extents)
}

/// Device block of a file block, 0 if it has none.
pub fn fibmap(file: &File, block: u32) -> io::Result<u32> {
    let mut number = block as libc::c_int;
    // SAFETY: FIBMAP reads and writes one int.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), FIBMAP, &raw mut number) };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(number as u32)
}

/// Reads through a mapping of the file. The process dies of SIGBUS if that fails.
pub fn mmap_read(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let skip = (offset % 4096) as usize;
    let mapped = skip + length;
    // SAFETY: A fresh mapping at an address of the kernel's choice changes no other memory.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            mapped,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            (offset - skip as u64) as libc::off_t,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mut data = vec![0; length];
    // SAFETY: The mapping is `skip + length` bytes long and nobody else has `data`. Should the file
    // change meanwhile, then what is copied is unknown bytes, which u8 may be.
    unsafe {
        let from = base.cast::<u8>().add(skip);
        std::ptr::copy_nonoverlapping(from, data.as_mut_ptr(), length);
        libc::munmap(base, mapped);
    }
    Ok(data)
}

/// Writes through a shared mapping of the file.
pub fn mmap_write(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let skip = (offset % 4096) as usize;
    let mapped = skip + data.len();
    // SAFETY: As in `mmap_read`.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            mapped,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            (offset - skip as u64) as libc::off_t,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The mapping is writable and `skip + data.len()` bytes long.
    let synced = unsafe {
        let to = base.cast::<u8>().add(skip);
        std::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        let synced = libc::msync(base, mapped, libc::MS_SYNC);
        libc::munmap(base, mapped);
        synced
    };
    if synced != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// truncate(2), which opens nothing.
pub fn truncate(path: &std::ffi::CStr, size: u64) -> io::Result<()> {
    // SAFETY: The path is a live C string.
    let ret = unsafe { libc::truncate(path.as_ptr(), size as libc::off_t) };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Starts to write a range of a file back, and does not wait for it.
pub fn start_writeback(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: No memory is passed.
    let ret = unsafe {
        libc::sync_file_range(
            file.as_raw_fd(),
            offset as libc::off64_t,
            length as libc::off64_t,
            flags,
        )
    };
    if ret != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads into memory that is aligned to a page, as direct I/O wants it.
pub fn read_aligned(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut memory = vec![0u8; length + 4096];
    let skip = memory.as_ptr().align_offset(4096);
    let n = file.read_at(&mut memory[skip..skip + length], offset)?;
    Ok(memory[skip..skip + n].to_vec())
}

/// Writes from memory that is aligned to a page, as direct I/O wants it.
pub fn write_aligned(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    aligned(data, |data| file.write_all_at(data, offset))
}

/// The same by one pwrite(2), which may write less.
pub fn write_aligned_once(file: &File, offset: u64, data: &[u8]) -> io::Result<usize> {
    aligned(data, |data| file.write_at(data, offset))
}

/// Calls `f` with a copy of `data` that is aligned to a page.
fn aligned<R>(data: &[u8], f: impl FnOnce(&[u8]) -> R) -> R {
    let mut memory = vec![0u8; data.len() + 4096];
    let skip = memory.as_ptr().align_offset(4096);
    let aligned = &mut memory[skip..skip + data.len()];
    aligned.copy_from_slice(data);
    f(aligned)
}

/// A mapping of part of a file that is gone at the end.
struct Mapping {
    base: *mut libc::c_void,
    mapped: usize,
    skip: usize,
}

impl Mapping {
    fn new(file: &File, offset: u64, length: usize, prot: libc::c_int) -> io::Result<Self> {
        let skip = (offset % 4096) as usize;
        let mapped = skip + length;
        // SAFETY: As in `mmap_read`.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                prot,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                (offset - skip as u64) as libc::off_t,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { base, mapped, skip })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: The mapping is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.base, self.mapped) };
    }
}

/// Reads through a mapping of the file without dying: what cannot be read is `EFAULT`, because the
/// kernel does the reading.
pub fn mmap_peek(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mapping = Mapping::new(file, offset, length, libc::PROT_READ)?;
    let memory = File::from(rustix::fs::memfd_create(
        "peek",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    let mut done = 0;
    while done < length {
        // SAFETY: The range lies within the mapping; the kernel copes with what cannot be read.
        let n = unsafe {
            let from = mapping.base.cast::<u8>().add(mapping.skip + done);
            libc::pwrite(memory.as_raw_fd(), from.cast(), length - done, done as i64)
        };
        match n {
            1.. => done += n as usize,
            0 => return Err(io::ErrorKind::WriteZero.into()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    let mut data = vec![0; length];
    memory.read_exact_at(&mut data, 0)?;
    Ok(data)
}

/// Writes `length` bytes that are at `from` in a file to `to`, by pwrite(2) from a mapping that nothing is
/// in yet.
pub fn write_from_mapping(file: &File, from: u64, length: usize, to: u64) -> io::Result<()> {
    let mapping = Mapping::new(file, from, length, libc::PROT_READ)?;
    // SAFETY: The range lies within the mapping; the kernel copes with what cannot be read.
    let n = unsafe {
        let from = mapping.base.cast::<u8>().add(mapping.skip);
        libc::pwrite(file.as_raw_fd(), from.cast(), length, to as libc::off_t)
    };
    match n {
        n if n < 0 => Err(io::Error::last_os_error()),
        n if n as usize == length => Ok(()),
        n => Err(io::Error::other(format!("{n} bytes were written"))),
    }
}

/// Does one pwrite(2) of `data` and `missing` bytes behind it that are no memory.
pub fn write_cut_short(file: &File, offset: u64, data: &[u8], missing: usize) -> io::Result<usize> {
    let there = data.len().next_multiple_of(4096);
    let memory = Mapping {
        // SAFETY: A new mapping, wherever the kernel likes.
        base: unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                there + missing,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        },
        mapped: there + missing,
        skip: there - data.len(),
    };
    if memory.base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The first `there` bytes are ours, and `data` fits right before what cannot be touched.
    unsafe {
        let readable = libc::PROT_READ | libc::PROT_WRITE;
        if there > 0 && libc::mprotect(memory.base, there, readable) != 0 {
            return Err(io::Error::last_os_error());
        }
        let start = memory.base.cast::<u8>().add(memory.skip);
        start.copy_from_nonoverlapping(data.as_ptr(), data.len());
        let length = data.len() + missing;
        let n = libc::pwrite(
            file.as_raw_fd(),
            start.cast(),
            length,
            offset as libc::off_t,
        );
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }
}

/// Writes through a shared mapping of the file without dying, and syncs nothing.
pub fn mmap_poke(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let mapping = Mapping::new(file, offset, data.len(), prot)?;
    let memory = File::from(rustix::fs::memfd_create(
        "poke",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    memory.write_all_at(data, 0)?;
    let mut done = 0;
    while done < data.len() {
        // SAFETY: As in `mmap_peek`.
        let n = unsafe {
            let to = mapping.base.cast::<u8>().add(mapping.skip + done);
            libc::pread(
                memory.as_raw_fd(),
                to.cast(),
                data.len() - done,
                done as i64,
            )
        };
        match n {
            1.. => done += n as usize,
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// The number of an ioctl of `/dev/fuse`: `dir` is 1 for one that the kernel reads its argument of
/// `size` bytes from, and 2 for one that it writes it to.
const fn fuse_ioctl(dir: u32, size: u32, nr: u32) -> libc::Ioctl {
    (dir << 30 | size << 16 | 229 << 8 | nr) as libc::Ioctl
}

fn done(ret: libc::c_int) -> io::Result<()> {
    if ret == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `FUSE_DEV_IOC_IOMAP_SUPPORT`: flags and padding.
pub fn iomap_support(fuse: &File) -> io::Result<[u64; 2]> {
    let mut support = [u64::MAX; 2];
    // SAFETY: The kernel writes two numbers of 64 bits.
    done(unsafe {
        libc::ioctl(
            fuse.as_raw_fd(),
            fuse_ioctl(2, 16, 99),
            support.as_mut_ptr(),
        )
    })?;
    Ok(support)
}

/// `FUSE_DEV_IOC_SET_NOFS`, with any value.
pub fn set_nofs(fuse: &File, value: u32) -> io::Result<()> {
    // SAFETY: The kernel reads a number of 32 bits.
    done(unsafe { libc::ioctl(fuse.as_raw_fd(), fuse_ioctl(1, 4, 100), &raw const value) })
}

/// `FUSE_DEV_IOC_IOMAP_SET_BLOCKSIZE`.
pub fn set_blocksize(fuse: &File, id: u32, size: u32) -> io::Result<()> {
    let info = [id, size];
    // SAFETY: The kernel reads two numbers of 32 bits.
    done(unsafe { libc::ioctl(fuse.as_raw_fd(), fuse_ioctl(1, 8, 102), info.as_ptr()) })
}

/// The size of the blocks of a device's page cache.
pub fn block_size(device: &File) -> io::Result<u32> {
    const BLKBSZGET: libc::Ioctl = 0x8008_1270u32 as libc::Ioctl;
    let mut size: libc::c_int = 0;
    // SAFETY: The kernel writes an int for this number, whatever it says of the size.
    done(unsafe { libc::ioctl(device.as_raw_fd(), BLKBSZGET, &raw mut size) })?;
    Ok(size as u32)
}

/// Starts to swap to a file.
pub fn swapon(path: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: The path is a live C string.
    done(unsafe { libc::swapon(path.as_ptr(), 0) })
}

/// Ends it; what is there comes back into memory.
pub fn swapoff(path: &std::ffi::CStr) -> io::Result<()> {
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

/// What statx(2) says, as `struct statx` in words of 32 bits.
pub fn statx_words(path: &std::ffi::CStr, mask: u32) -> io::Result<[u32; 64]> {
    let mut words = [0; 64];
    // SAFETY: The path is a live C string, and the kernel writes 256 bytes.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_statx,
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            mask,
            words.as_mut_ptr(),
        )
    };
    done(ret as libc::c_int)?;
    Ok(words)
}
