// SPDX-License-Identifier: GPL-2.0

//! A `write` call on its way through a filesystem.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    error::{code::EINVAL, to_result, Error, Result},
    fs::{
        file::Offset,
        inode::{Exclusive, Inode}, //
    },
};
use core::{marker::PhantomData, ptr::NonNull};

/// What `file_operations.write_iter` is called with: a `struct kiocb` and the data.
///
/// # Invariants
///
/// Both pointers are valid for `'a` and nobody else uses what they point to; the file of the
/// `struct kiocb` is open and belongs to a live inode.
pub struct WriteRequest<'a> {
    iocb: NonNull<bindings::kiocb>,
    from: NonNull<bindings::iov_iter>,
    _lives: PhantomData<&'a mut bindings::kiocb>,
}

impl<'a> WriteRequest<'a> {
    /// Wraps the arguments of `write_iter`.
    ///
    /// # Safety
    ///
    /// They must be as the type invariant has it.
    pub unsafe fn from_raw(
        iocb: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> Result<Self> {
        // INVARIANT: By the safety requirements.
        Ok(Self {
            iocb: NonNull::new(iocb).ok_or(EINVAL)?,
            from: NonNull::new(from).ok_or(EINVAL)?,
            _lives: PhantomData,
        })
    }

    /// Returns the pointers that the C side uses.
    pub fn as_raw(&mut self) -> (*mut bindings::kiocb, *mut bindings::iov_iter) {
        (self.iocb.as_ptr(), self.from.as_ptr())
    }

    /// The inode that is written to.
    pub fn inode(&self) -> &'a Inode {
        // SAFETY: By the type invariant.
        unsafe { Inode::from_raw((*(*self.iocb.as_ptr()).ki_filp).f_inode) }
    }

    /// Where the next byte goes.  After [`WriteRequest::check`], that takes `O_APPEND` into account.
    pub fn pos(&self) -> Offset {
        // SAFETY: By the type invariant.
        unsafe { (*self.iocb.as_ptr()).ki_pos }
    }

    /// Whether the caller wants `EAGAIN` rather than to wait (`IOCB_NOWAIT`).
    pub fn is_nowait(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.iocb.as_ptr()).ki_flags & bindings::IOCB_NOWAIT != 0 }
    }

    /// Applies limits, and the position for `O_APPEND`; returns how much is to be written
    /// (`generic_write_checks`).
    pub fn check(&mut self, _lock: &Exclusive<'_>) -> Result<usize> {
        let (iocb, from) = self.as_raw();
        // SAFETY: By the type invariant, and the inode is locked.
        let count = unsafe { bindings::generic_write_checks(iocb, from) };

        // CAST: Error numbers are small.
        usize::try_from(count).map_err(|_| Error::from_errno(count as i32))
    }

    /// Updates the times of the inode, and strips privileges that a write takes from the file
    /// (`kiocb_modified`).
    ///
    /// May sleep, unless [`WriteRequest::is_nowait`].
    pub fn modified(&mut self, _lock: &Exclusive<'_>) -> Result {
        // SAFETY: By the type invariant, and the inode is locked.
        to_result(unsafe { bindings::kiocb_modified(self.iocb.as_ptr()) })
    }

    /// Makes `written` bytes before the position stable if the caller wants that
    /// (`generic_write_sync`), and returns them.
    ///
    /// May sleep.  No lock of the inode may be held.
    pub fn sync(&mut self, written: usize) -> Result<usize> {
        // CAST: A write is never larger than `isize::MAX`.
        // SAFETY: By the type invariant.
        let ret = unsafe { bindings::generic_write_sync(self.iocb.as_ptr(), written as isize) };

        // CAST: Error numbers are small.
        usize::try_from(ret).map_err(|_| Error::from_errno(ret as i32))
    }
}
