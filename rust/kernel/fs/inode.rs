// SPDX-License-Identifier: GPL-2.0

//! Inodes, as far as a filesystem's file I/O needs them.
//!
//! C headers: [`include/linux/fs.h`](srctree/include/linux/fs.h) and
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h)

use crate::{
    bindings,
    error::{code::EINVAL, to_result, Result},
    fs::file::{LocalFile, Offset},
    types::{NotThreadSafe, Opaque},
};
use core::ops::Deref;

/// An inode in core (`struct inode`).
///
/// Only ever seen by reference; the VFS owns it.
///
/// # Invariants
///
/// The inode is alive: it is referenced, or being instantiated (`I_NEW`) or evicted by the caller.
/// Its superblock lives at least as long.
#[repr(transparent)]
pub struct Inode(Opaque<bindings::inode>);

// SAFETY: The methods of `Inode` only do what C code may do with a live inode from any thread.
unsafe impl Sync for Inode {}

/// The times of an inode.
#[derive(Clone, Copy)]
pub struct Times {
    /// When it was read (`atime`).
    pub access: bindings::timespec64,
    /// When its data was changed (`mtime`).
    pub modification: bindings::timespec64,
    /// When anything of it was changed (`ctime`).
    pub change: bindings::timespec64,
}

impl Inode {
    /// Creates a reference from a pointer.
    ///
    /// # Safety
    ///
    /// `ptr` must point to an inode that is alive, as the type invariant has it, for `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *const bindings::inode) -> &'a Self {
        // SAFETY: The caller promises that the pointer is valid for `'a`, and the type is a
        // transparent wrapper.
        // INVARIANT: By the same promise.
        unsafe { &*ptr.cast() }
    }

    /// Returns the pointer that the C side uses.
    #[inline]
    pub fn as_ptr(&self) -> *mut bindings::inode {
        self.0.get()
    }

    /// The size of the file, in bytes.
    ///
    /// Any context.  Without a lock it may be old by the time it is used.
    #[inline]
    pub fn size(&self) -> Offset {
        // SAFETY: By the type invariant the inode is alive.
        unsafe { bindings::i_size_read(self.as_ptr()) }
    }

    /// The size of a block of the file, in bytes: a power of two.
    #[inline]
    pub fn block_size(&self) -> u32 {
        // SAFETY: By the type invariant the inode is alive.  `i_blkbits` is written while the
        // inode is new only, see `Inode::set_block_size`.
        let bits = unsafe { (*self.as_ptr()).i_blkbits };

        1u32.wrapping_shl(u32::from(bits))
    }

    /// The largest size that a file of this filesystem can have, in bytes.
    #[inline]
    pub fn max_bytes(&self) -> Offset {
        // SAFETY: By the type invariant the inode and its superblock are alive.
        unsafe { (*(*self.as_ptr()).i_sb).s_maxbytes }
    }

    /// Sets the block size of a new inode, and the folio sizes of its page cache to match.
    ///
    /// A folio holds at least a block.  Larger folios are allowed where the page cache has them.
    ///
    /// Fails with `EINVAL` if `bytes` is not a power of two from 512 to the size of the largest
    /// folio that the page cache supports.
    ///
    /// # Safety
    ///
    /// The inode must be new (`I_NEW`) and this its only user.
    pub unsafe fn set_block_size(&self, bytes: u32) -> Result {
        // SAFETY: There are no requirements.
        let max_folio = unsafe { bindings::mapping_max_folio_size_supported() };

        let fits = usize::try_from(bytes).is_ok_and(|bytes| bytes <= max_folio);
        if !bytes.is_power_of_two() || bytes < 512 || !fits {
            return Err(EINVAL);
        }

        let bits = bytes.ilog2();
        let inode = self.as_ptr();

        // SAFETY: The caller promises that nobody else uses the inode, so that the page cache is
        // empty and both may be written. `bits` is below 32.
        unsafe {
            (*inode).i_blkbits = bits as u8;
            bindings::mapping_set_folio_min_order(
                (*inode).i_mapping,
                bits.saturating_sub(bindings::PAGE_SHIFT),
            );
        }

        Ok(())
    }

    /// Writes the inode itself if it is dirty, and waits for that (`sync_inode_metadata`).
    ///
    /// May sleep.
    pub fn write_inode(&self) -> Result {
        // SAFETY: By the type invariant the inode is alive.
        to_result(unsafe { bindings::sync_inode_metadata(self.as_ptr(), 1) })
    }

    /// The flags of the inode, `S_*`.
    ///
    /// Any context.
    #[inline]
    pub fn flags(&self) -> u32 {
        // SAFETY: By the type invariant the inode is alive.  The word may change meanwhile, as it
        // may for C code that looks at it.
        unsafe { (&raw const (*self.as_ptr()).i_flags).read_volatile() }
    }

    /// Changes those flags that are in `mask` to what they are in `flags` (`inode_set_flags`).
    ///
    /// Any context.
    pub fn set_flags(&self, flags: u32, mask: u32) {
        // SAFETY: By the type invariant the inode is alive; the word is changed atomically.
        unsafe { bindings::inode_set_flags(self.as_ptr(), flags & mask, mask) };
    }

    /// Whether the file is known to have no privileges that a write takes from it (`IS_NOSEC`).
    #[inline]
    pub fn has_no_privileges(&self) -> bool {
        self.flags() & bindings::S_NOSEC != 0
    }

    /// Whether nothing of the file may be changed (`IS_IMMUTABLE`).
    #[inline]
    pub fn is_immutable(&self) -> bool {
        self.flags() & bindings::S_IMMUTABLE != 0
    }

    /// The times of the inode.
    ///
    /// Any context.  Without a lock they need not belong together.
    pub fn times(&self) -> Times {
        // SAFETY: By the type invariant the inode is alive.
        unsafe {
            Times {
                access: bindings::inode_get_atime(self.as_ptr()),
                modification: bindings::inode_get_mtime(self.as_ptr()),
                change: bindings::inode_get_ctime(self.as_ptr()),
            }
        }
    }

    /// Sets the times of the inode, and nothing else.
    ///
    /// Any context.
    pub fn set_times(&self, times: &Times) {
        // SAFETY: By the type invariant the inode is alive.
        unsafe {
            bindings::inode_set_atime_to_ts(self.as_ptr(), times.access);
            bindings::inode_set_mtime_to_ts(self.as_ptr(), times.modification);
            bindings::inode_set_ctime_to_ts(self.as_ptr(), times.change);
        }
    }

    /// Takes `i_rwsem` shared: file data and size stay as they are until the guard is dropped.
    ///
    /// May sleep.
    #[inline]
    pub fn lock_shared(&self) -> SharedGuard<'_> {
        // SAFETY: By the type invariant the inode is alive.
        unsafe { bindings::inode_lock_shared(self.as_ptr()) };

        SharedGuard {
            inode: self,
            _not_send: NotThreadSafe,
        }
    }

    /// As [`Inode::lock_shared`], if that is possible at once.
    #[inline]
    pub fn try_lock_shared(&self) -> Option<SharedGuard<'_>> {
        // SAFETY: By the type invariant the inode is alive.
        let taken = unsafe { bindings::inode_trylock_shared(self.as_ptr()) };

        (taken != 0).then(|| SharedGuard {
            inode: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Takes `i_rwsem` exclusively.
    ///
    /// May sleep.
    #[inline]
    pub fn lock(&self) -> ExclusiveGuard<'_> {
        // SAFETY: By the type invariant the inode is alive.
        unsafe { bindings::inode_lock(self.as_ptr()) };

        // INVARIANT: Just taken, and the guard releases it.
        ExclusiveGuard(Exclusive::new(self))
    }

    /// Takes `i_rwsem` exclusively if that is possible at once.
    #[inline]
    pub fn try_lock(&self) -> Option<ExclusiveGuard<'_>> {
        // SAFETY: By the type invariant the inode is alive.
        let taken = unsafe { bindings::inode_trylock(self.as_ptr()) };

        // INVARIANT: Just taken, and the guard releases it.
        (taken != 0).then(|| ExclusiveGuard(Exclusive::new(self)))
    }

    /// For a caller that has `i_rwsem` exclusively from the C side.
    ///
    /// # Safety
    ///
    /// The task must hold `i_rwsem` exclusively until it drops what is returned.
    pub unsafe fn assume_locked(&self) -> Exclusive<'_> {
        // INVARIANT: By the safety requirements.
        Exclusive::new(self)
    }
}

/// Something that shows that `i_rwsem` of an inode is held: [`SharedGuard`] or [`Exclusive`].
pub trait Lock<'a>: private::Sealed {
    /// Whether nobody else holds it.
    const IS_EXCLUSIVE: bool;

    /// The inode that is locked.
    fn inode(&self) -> &'a Inode;
}

mod private {
    /// Keeps [`super::Lock`] to the types here.
    pub trait Sealed {}
}

/// Holds `i_rwsem` of an inode shared.
///
/// A function that needs the lock takes the guard by reference.
#[must_use = "the lock is released when the guard is dropped"]
pub struct SharedGuard<'a> {
    inode: &'a Inode,
    // The task that took a read-write semaphore has to release it.
    _not_send: NotThreadSafe,
}

impl<'a> SharedGuard<'a> {
    /// The inode that is locked.
    #[inline]
    pub fn inode(&self) -> &'a Inode {
        self.inode
    }
}

impl private::Sealed for SharedGuard<'_> {}

impl<'a> Lock<'a> for SharedGuard<'a> {
    const IS_EXCLUSIVE: bool = false;

    #[inline]
    fn inode(&self) -> &'a Inode {
        self.inode
    }
}

impl Drop for SharedGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: The guard exists, so the lock was taken by this task and not released yet.
        unsafe { bindings::inode_unlock_shared(self.inode.as_ptr()) };
    }
}

/// The witness that `i_rwsem` of an inode is held exclusively.
///
/// A function that needs the lock takes this by reference, wherever the lock was taken.
///
/// # Invariants
///
/// This task holds the lock as long as the value exists.
pub struct Exclusive<'a> {
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl<'a> Exclusive<'a> {
    /// Makes a witness; the callers argue for the invariant.
    #[inline]
    fn new(inode: &'a Inode) -> Self {
        Self {
            inode,
            _not_send: NotThreadSafe,
        }
    }

    /// The inode that is locked.
    #[inline]
    pub fn inode(&self) -> &'a Inode {
        self.inode
    }

    /// Sets the size of the file, in bytes, and nothing else.
    pub fn set_size(&self, size: Offset) {
        // SAFETY: The inode is alive, and the lock that protects its size is held.
        unsafe { bindings::i_size_write(self.inode.as_ptr(), size) };
    }

    /// Makes the file larger, to `size` bytes.
    ///
    /// May sleep.  What the page cache has beyond the old size, in the same page, reads as zeroes
    /// then (`pagecache_isize_extended`); what the filesystem has there has to.
    pub fn extend(&self, size: Offset) {
        let old = self.inode.size();

        self.set_size(size);
        // SAFETY: The inode is alive, and the lock is held since before it had its new size.
        unsafe { bindings::pagecache_isize_extended(self.inode.as_ptr(), old, size) };
    }

    /// Takes note that the file has no privileges that a write takes from it (`S_NOSEC`), so that
    /// the next write need not look for them.
    ///
    /// To be called when [`super::WriteRequest::modified`] has just stripped them, by filesystems
    /// that nobody else can give a file privileges behind.
    pub fn note_no_privileges(&self) {
        let inode = self.inode.as_ptr();

        // SAFETY: The inode is alive, and the lock that protects these flags is held.
        unsafe {
            if !bindings::is_sxid((*inode).i_mode) {
                (*inode).i_flags |= bindings::S_NOSEC;
            }
        }
    }

    /// Waits for direct I/O that is in flight.  None can start while the lock is held.
    ///
    /// May sleep.
    pub fn wait_for_direct_io(&self) {
        // SAFETY: The inode is alive.
        unsafe { bindings::inode_dio_wait(self.inode.as_ptr()) };
    }

    /// Checks that the file may become `size` bytes large (`inode_newsize_ok`).
    ///
    /// Fails with `EFBIG`, after a signal if the limit is the task's, or `ETXTBSY`.
    pub fn check_new_size(&self, size: Offset) -> Result {
        // SAFETY: The inode is alive and locked.
        to_result(unsafe { bindings::inode_newsize_ok(self.inode.as_ptr(), size) })
    }

    /// Updates the times of the inode for a change of its data, and strips privileges that the
    /// change takes from the file (`file_modified`).
    ///
    /// May sleep.  `file` must be one of this inode, or the times of another change.
    pub fn file_modified(&self, file: &LocalFile) -> Result {
        // SAFETY: The file is open, and the lock that the function wants is held for its inode.
        to_result(unsafe { bindings::file_modified(file.as_ptr()) })
    }
}

impl private::Sealed for Exclusive<'_> {}

impl<'a> Lock<'a> for Exclusive<'a> {
    const IS_EXCLUSIVE: bool = true;

    #[inline]
    fn inode(&self) -> &'a Inode {
        self.inode
    }
}

/// Holds `i_rwsem` of an inode exclusively.
///
/// # Invariants
///
/// The lock was taken for this guard.
#[must_use = "the lock is released when the guard is dropped"]
pub struct ExclusiveGuard<'a>(Exclusive<'a>);

impl<'a> Deref for ExclusiveGuard<'a> {
    type Target = Exclusive<'a>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for ExclusiveGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock was taken by this task and not released yet.
        unsafe { bindings::inode_unlock(self.0.inode.as_ptr()) };
    }
}
