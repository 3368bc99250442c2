// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The block device below everything: positioned reads and writes, and its flush.
//!
//! It is a trait so that tests can put a disk there whose power fails.

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::Path,
    sync::{PoisonError, RwLock},
};

use rustix::fs::OFlags;

/// A disk with a volatile cache, as disks are.
pub trait Disk: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// Writes `data` at `offset`, both multiples of the filesystem's block size.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Returns once all that was written before is on stable storage, by whomever.
    fn flush(&self) -> io::Result<()>;
    /// What the kernel can be told to use, if it is a device that it knows.
    fn file(&self) -> Option<File> {
        None
    }
    /// Lets go of the device, so that others can have it. Whatever comes after that fails.
    fn close(&self) {}
    /// Gives up using the device alone; `path` leads to it.
    fn share(&self, path: &Path) -> io::Result<()> {
        let _ = path;
        Ok(())
    }
}

/// Buffers for direct I/O begin at, and reads are rounded to, multiples of this. No logical block is
/// larger.
const ALIGN: usize = 4096;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs `f` on `len` bytes of memory that direct I/O accepts.
fn with_aligned<R>(len: usize, f: impl FnOnce(&mut [u8]) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| {
        if scratch.len() < len + ALIGN {
            scratch.resize(len + ALIGN, 0);
        }
        let skip = scratch.as_ptr().align_offset(ALIGN).min(ALIGN);
        f(&mut scratch[skip..skip + len])
    })
}

/// A block device, or an image in a file.
pub struct FileDisk {
    /// `None` once it is closed.
    file: RwLock<Option<File>>,
    size: u64,
    direct: bool,
}

impl FileDisk {
    /// Takes a file that is already open, and goes through its page cache.
    pub fn new(file: File) -> io::Result<Self> {
        // The length of a block device is zero in its metadata; seeking finds the true one.
        let size = (&file).seek(SeekFrom::End(0))?;
        Ok(Self {
            file: RwLock::new(Some(file)),
            size,
            direct: false,
        })
    }

    /// Takes a file that somebody else has opened for writing, as [`FileDisk::open_writable`] does.
    pub fn from_open(file: File) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        if !flags.contains(OFlags::RDWR) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Self {
            direct: flags.contains(OFlags::DIRECT),
            ..Self::new(file)?
        })
    }

    /// Opens a device for writing past its page cache. The kernel moves file data past it too, so
    /// a page in there could be stale, or be written over newer data. A block device is opened
    /// exclusively: it cannot be mounted meanwhile by anybody else.
    pub fn open_writable(path: &Path) -> io::Result<Self> {
        let is_device = std::fs::metadata(path)?.file_type().is_block_device();
        // Of other files it would mean that they must not exist yet.
        let exclusive = if is_device {
            OFlags::EXCL
        } else {
            OFlags::empty()
        };
        let open = |flags: OFlags| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(flags.bits() as i32)
                .open(path)
        };
        // Images on filesystems without direct I/O are of use for tests, and nobody else writes there.
        match open(exclusive | OFlags::DIRECT) {
            Ok(file) => Ok(Self {
                direct: true,
                ..Self::new(file)?
            }),
            Err(err) if err.kind() == io::ErrorKind::InvalidInput => Self::new(open(exclusive)?),
            Err(err) => Err(err),
        }
    }
}

impl FileDisk {
    fn with<R>(&self, f: impl FnOnce(&File) -> io::Result<R>) -> io::Result<R> {
        let file = self.file.read().unwrap_or_else(PoisonError::into_inner);
        match &*file {
            Some(file) => f(file),
            None => Err(io::Error::other("the device is closed")),
        }
    }

    fn replace(&self, file: Option<File>) {
        *self.file.write().unwrap_or_else(PoisonError::into_inner) = file;
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !self.direct {
            return self.with(|file| file.read_exact_at(buf, offset));
        }
        let align = ALIGN as u64;
        let start = offset / align * align;
        let end = (offset + buf.len() as u64)
            .next_multiple_of(align)
            .min(self.size);
        with_aligned((end - start) as usize, |aligned| {
            self.with(|file| file.read_exact_at(aligned, start))?;
            let from = (offset - start) as usize;
            buf.copy_from_slice(&aligned[from..from + buf.len()]);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.direct {
            return self.with(|file| file.write_all_at(data, offset));
        }
        with_aligned(data.len(), |aligned| {
            aligned.copy_from_slice(data);
            self.with(|file| file.write_all_at(aligned, offset))
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.with(File::sync_data)
    }

    fn file(&self) -> Option<File> {
        self.with(File::try_clone).ok()
    }

    fn close(&self) {
        self.replace(None);
    }

    fn share(&self, path: &Path) -> io::Result<()> {
        let direct = if self.direct {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        };
        let shared = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(direct.bits() as i32)
            .open(path)?;
        self.replace(Some(shared));
        Ok(())
    }
}
