// SPDX-License-Identifier: GPL-2.0

//! `read` and `write` calls on their way through a filesystem.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    error::{
        code::{EAGAIN, EINVAL},
        to_result,
        Error,
        Result, //
    },
    ffi::c_int,
    fs::{
        file::Offset,
        inode::{ExclusiveGuard, Inode, Lock, SharedGuard}, //
    },
};
use core::{
    marker::PhantomData,
    ops::{Deref, DerefMut},
    ptr::NonNull, //
};

/// What `file_operations.read_iter` and `write_iter` are called with: a `struct kiocb`, and where
/// the data goes or comes from.
///
/// # Invariants
///
/// Both pointers are valid for `'a` and nobody else uses what they point to; the file of the
/// `struct kiocb` is open and belongs to a live inode.
pub struct Request<'a> {
    iocb: NonNull<bindings::kiocb>,
    iter: NonNull<bindings::iov_iter>,
    _lives: PhantomData<&'a mut bindings::kiocb>,
}

impl<'a> Request<'a> {
    /// Wraps the arguments of `read_iter` or `write_iter`.
    ///
    /// # Safety
    ///
    /// They must be as the type invariant has it.
    #[inline]
    unsafe fn from_raw(iocb: *mut bindings::kiocb, iter: *mut bindings::iov_iter) -> Result<Self> {
        // INVARIANT: By the safety requirements.
        Ok(Self {
            iocb: NonNull::new(iocb).ok_or(EINVAL)?,
            iter: NonNull::new(iter).ok_or(EINVAL)?,
            _lives: PhantomData,
        })
    }

    /// Returns the pointers that the C side uses.
    #[inline]
    pub fn as_raw(&mut self) -> (*mut bindings::kiocb, *mut bindings::iov_iter) {
        (self.iocb.as_ptr(), self.iter.as_ptr())
    }

    /// The inode of the file.
    #[inline]
    pub fn inode(&self) -> &'a Inode {
        // SAFETY: By the type invariant.
        unsafe { Inode::from_raw((*(*self.iocb.as_ptr()).ki_filp).f_inode) }
    }

    /// Where the next byte is in the file.  For a write that is known after
    /// [`WriteRequest::check`], which takes `O_APPEND` into account.
    #[inline]
    pub fn pos(&self) -> Offset {
        // SAFETY: By the type invariant.
        unsafe { (*self.iocb.as_ptr()).ki_pos }
    }

    /// How many bytes there are to go.
    #[inline]
    pub fn count(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { bindings::iov_iter_count(self.iter.as_ptr()) }
    }

    /// Takes back what was used of the data when a submission failed, which began with `count`
    /// bytes to go: whoever tries again does so from the start.
    pub fn rewind(&mut self, count: usize) {
        let used = count.saturating_sub(self.count());

        // SAFETY: By the type invariant; so much was used.
        unsafe { bindings::iov_iter_revert(self.iter.as_ptr(), used) };
    }

    /// Whether the caller wants `EAGAIN` rather than to wait (`IOCB_NOWAIT`).
    #[inline]
    pub fn is_nowait(&self) -> bool {
        self.has_flag(bindings::IOCB_NOWAIT)
    }

    /// Whether the data is to bypass the page cache (`IOCB_DIRECT`).
    #[inline]
    pub fn is_direct(&self) -> bool {
        // CAST: The flag is bit 17.
        self.has_flag(bindings::IOCB_DIRECT as c_int)
    }

    /// Makes the data bypass the page cache, or not.
    #[inline]
    pub fn set_direct(&mut self, direct: bool) {
        // CAST: As above.
        const DIRECT: c_int = bindings::IOCB_DIRECT as c_int;

        // SAFETY: By the type invariant.
        let flags = unsafe { &mut (*self.iocb.as_ptr()).ki_flags };
        if direct {
            *flags |= DIRECT;
        } else {
            *flags &= !DIRECT;
        }
    }

    /// Takes `i_rwsem` of the inode exclusively.
    ///
    /// May sleep, unless [`Request::is_nowait`]: then it fails with `EAGAIN` instead.
    #[inline]
    pub fn lock(&self) -> Result<ExclusiveGuard<'a>> {
        if self.is_nowait() {
            self.inode().try_lock().ok_or(EAGAIN)
        } else {
            Ok(self.inode().lock())
        }
    }

    /// As [`Request::lock`], but shared.
    #[inline]
    pub fn lock_shared(&self) -> Result<SharedGuard<'a>> {
        if self.is_nowait() {
            self.inode().try_lock_shared().ok_or(EAGAIN)
        } else {
            Ok(self.inode().lock_shared())
        }
    }

    /// Tests one of the `IOCB_*` flags.
    #[inline]
    fn has_flag(&self, flag: c_int) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.iocb.as_ptr()).ki_flags & flag != 0 }
    }
}

/// A [`Request`] of `read_iter`.
pub struct ReadRequest<'a>(Request<'a>);

impl ReadRequest<'_> {
    /// Wraps the arguments of `read_iter`.
    ///
    /// # Safety
    ///
    /// They must be as the type invariant of [`Request`] has it, and stay so until the request is
    /// dropped or submitted.
    #[inline]
    pub unsafe fn from_raw(
        iocb: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> Result<Self> {
        // SAFETY: By the safety requirements.
        Ok(Self(unsafe { Request::from_raw(iocb, to) }?))
    }

    /// Updates the access time of the inode (`file_accessed`), unless there is nothing to read.
    ///
    /// May sleep.
    pub fn accessed(&self) {
        if self.count() > 0 {
            // SAFETY: By the type invariant of `Request`.
            unsafe { bindings::file_accessed((*self.0.iocb.as_ptr()).ki_filp) };
        }
    }

    /// Reads through the page cache (`generic_file_read_iter`).
    ///
    /// May sleep, unless [`Request::is_nowait`].  No lock of the inode may be held.
    #[inline]
    pub fn read_cached(mut self) -> Result<usize> {
        self.set_direct(false);
        let (iocb, to) = self.as_raw();
        // SAFETY: By the type invariant.
        length_or_error(unsafe { bindings::generic_file_read_iter(iocb, to) })
    }
}

impl<'a> Deref for ReadRequest<'a> {
    type Target = Request<'a>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for ReadRequest<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// A [`Request`] of `write_iter`.
pub struct WriteRequest<'a>(Request<'a>);

impl<'a> WriteRequest<'a> {
    /// Wraps the arguments of `write_iter`.
    ///
    /// # Safety
    ///
    /// They must be as the type invariant of [`Request`] has it, and stay so until the request is
    /// dropped or submitted.
    #[inline]
    pub unsafe fn from_raw(
        iocb: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> Result<Self> {
        // SAFETY: By the safety requirements.
        Ok(Self(unsafe { Request::from_raw(iocb, from) }?))
    }

    /// Whether the data goes to the end of the file, wherever that is (`IOCB_APPEND`).
    #[inline]
    pub fn is_append(&self) -> bool {
        self.has_flag(bindings::IOCB_APPEND)
    }

    /// Whether the data must reach the device in one piece (`IOCB_ATOMIC`).
    #[inline]
    pub fn is_atomic(&self) -> bool {
        self.has_flag(bindings::IOCB_ATOMIC)
    }

    /// Whether the caller does not wait, and just wants the data on its way to the device.
    #[inline]
    pub fn is_queued(&self) -> bool {
        // SAFETY: By the type invariant.
        let is_sync = unsafe { bindings::is_sync_kiocb(self.iocb.as_ptr()) };

        !is_sync && !self.has_flag(bindings::IOCB_DSYNC)
    }

    /// Applies limits, and the position for `O_APPEND`; returns how much is to be written
    /// (`generic_write_checks`).
    ///
    /// With a shared lock the end of the file may move, so that this is not for `O_APPEND`.
    #[inline]
    pub fn check<'b>(&mut self, _lock: &impl Lock<'b>) -> Result<usize> {
        let (iocb, from) = self.as_raw();
        // SAFETY: By the type invariant, and the inode is locked.
        length_or_error(unsafe { bindings::generic_write_checks(iocb, from) })
    }

    /// Checks what an atomic write has to keep: it is direct, and of a power of two bytes at a
    /// multiple of that (`generic_atomic_write_valid`).
    pub fn check_atomic(&mut self) -> Result {
        let (iocb, from) = self.as_raw();
        // SAFETY: By the type invariant.
        to_result(unsafe { bindings::generic_atomic_write_valid(iocb, from) })
    }

    /// Updates the times of the inode, and strips privileges that a write takes from the file
    /// (`kiocb_modified`).
    ///
    /// May sleep, unless [`Request::is_nowait`].  Privileges can be stripped with the exclusive
    /// lock only: fails with `EAGAIN` if there may be some and the lock is shared.
    pub fn modified<'b, L: Lock<'b>>(&mut self, lock: &L) -> Result {
        if !L::IS_EXCLUSIVE && !lock.inode().has_no_privileges() {
            return Err(EAGAIN);
        }
        // SAFETY: By the type invariant, and the inode is locked as this needs it.
        to_result(unsafe { bindings::kiocb_modified(self.iocb.as_ptr()) })
    }

    /// Makes `written` bytes before the position stable if the caller wants that
    /// (`generic_write_sync`), and returns them.
    ///
    /// May sleep.  No lock of the inode may be held.
    #[inline]
    pub fn sync(&mut self, written: usize) -> Result<usize> {
        // CAST: A write is never larger than `isize::MAX`.
        // SAFETY: By the type invariant.
        length_or_error(unsafe {
            bindings::generic_write_sync(self.iocb.as_ptr(), written as isize)
        })
    }
}

impl<'a> Deref for WriteRequest<'a> {
    type Target = Request<'a>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for WriteRequest<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// Translates the `ssize_t` that C returns for a number of bytes or an error.
#[inline]
pub(super) fn length_or_error(ret: isize) -> Result<usize> {
    // CAST: Error numbers are small.
    usize::try_from(ret).map_err(|_| Error::from_errno(ret as i32))
}
