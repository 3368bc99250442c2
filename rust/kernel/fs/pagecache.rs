// SPDX-License-Identifier: GPL-2.0

//! The page cache of a file: writing it back, dropping it, and the lock against filling it.
//!
//! C headers: [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h) and
//! [`include/linux/fs.h`](srctree/include/linux/fs.h)

use crate::{
    bindings,
    error::{to_result, Result},
    ffi::c_ulong,
    fs::{
        file::{LocalFile, Offset},
        inode::{Exclusive, Inode}, //
    },
    types::NotThreadSafe, //
};
use core::ops::Deref;

impl Inode {
    /// Writes back dirty folios from `start` to `end`, both included, and waits for all of them.
    ///
    /// May sleep.  Fails with the error that writing back has met, if any.
    pub fn write_back(&self, start: Offset, end: Offset) -> Result {
        // SAFETY: By the type invariant the inode is alive, and its mapping with it.
        to_result(unsafe { bindings::filemap_write_and_wait_range(self.mapping(), start, end) })
    }

    /// Starts to write back dirty folios from `start` to `end`, both included
    /// (`filemap_fdatawrite_range`).
    ///
    /// May sleep.
    pub fn start_write_back(&self, start: Offset, end: Offset) -> Result {
        // SAFETY: By the type invariant the inode is alive, and its mapping with it.
        to_result(unsafe { bindings::filemap_fdatawrite_range(self.mapping(), start, end) })
    }

    /// Drops clean folios from `start` to `end`, both included, as far as that is possible at once
    /// (`invalidate_mapping_pages`).
    pub fn forget_clean(&self, start: Offset, end: Offset) {
        // SAFETY: By the type invariant the inode is alive, and its mapping with it.
        unsafe { bindings::invalidate_mapping_pages(self.mapping(), page(start), page(end)) };
    }

    /// Drops clean folios from `start` to `end`, both included, also from the memory of tasks
    /// (`invalidate_inode_pages2_range`).
    ///
    /// May sleep.  Fails with `EBUSY` where a folio has become dirty.
    pub fn drop_clean(&self, start: Offset, end: Offset) -> Result {
        // SAFETY: By the type invariant the inode is alive, and its mapping with it.
        to_result(unsafe {
            bindings::invalidate_inode_pages2_range(self.mapping(), page(start), page(end))
        })
    }

    /// Takes `invalidate_lock` exclusively: no folio enters the page cache, and no page fault gets
    /// through, until the guard is dropped.
    ///
    /// May sleep.  Taken inside `i_rwsem`.
    pub fn lock_invalidate(&self) -> InvalidateGuard<'_> {
        // SAFETY: By the type invariant the inode is alive, and its mapping with it.
        unsafe { bindings::filemap_invalidate_lock(self.mapping()) };

        // INVARIANT: Just taken, and the guard releases it.
        InvalidateGuard(Invalidate::new(self))
    }

    /// Takes `invalidate_lock` shared: folios are not taken out of the page cache meanwhile.
    ///
    /// May sleep.
    pub fn lock_invalidate_shared(&self) -> InvalidateSharedGuard<'_> {
        // SAFETY: By the type invariant the inode is alive, and its mapping with it.
        unsafe { bindings::filemap_invalidate_lock_shared(self.mapping()) };

        InvalidateSharedGuard {
            inode: self,
            _not_send: NotThreadSafe,
        }
    }

    /// For a caller that has `invalidate_lock` exclusively from the C side.
    ///
    /// # Safety
    ///
    /// The task must hold the lock exclusively until it drops what is returned.
    pub unsafe fn assume_invalidate_locked(&self) -> Invalidate<'_> {
        // INVARIANT: By the safety requirements.
        Invalidate::new(self)
    }

    /// The page cache of the inode.
    fn mapping(&self) -> *mut bindings::address_space {
        // SAFETY: By the type invariant the inode is alive.
        unsafe { (*self.as_ptr()).i_mapping }
    }
}

/// The number of the page of an offset, which is not negative.
fn page(offset: Offset) -> c_ulong {
    // CAST: A page number has fewer bits than an offset.
    (offset.unsigned_abs() >> bindings::PAGE_SHIFT) as c_ulong
}

impl LocalFile {
    /// As [`Inode::write_back`], but fails once with each error that writing back the file has met
    /// since it was opened (`file_write_and_wait_range`).
    pub fn write_back(&self, start: Offset, end: Offset) -> Result {
        // SAFETY: The file is open.
        to_result(unsafe { bindings::file_write_and_wait_range(self.as_ptr(), start, end) })
    }
}

/// The witness that `invalidate_lock` of an inode's page cache is held exclusively.
///
/// # Invariants
///
/// This task holds the lock as long as the value exists.
pub struct Invalidate<'a> {
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl<'a> Invalidate<'a> {
    /// Makes a witness; the callers argue for the invariant.
    fn new(inode: &'a Inode) -> Self {
        Self {
            inode,
            _not_send: NotThreadSafe,
        }
    }

    /// Unmaps and drops what the page cache has from `start` to `end`, both included.
    ///
    /// May sleep.  Dirty data in the range is lost; parts of pages are zeroed.
    pub fn drop_range(&self, start: Offset, end: Offset) {
        // SAFETY: The inode is alive and the lock is held.
        unsafe { bindings::truncate_pagecache_range(self.inode.as_ptr(), start, end) };
    }

    /// Sets the size of the file and drops what the page cache has beyond it.
    ///
    /// May sleep.  The caller has zeroed what a larger size exposes.
    pub fn truncate(&self, _lock: &Exclusive<'_>, size: Offset) {
        // SAFETY: The inode is alive and both locks are held.
        unsafe { bindings::truncate_setsize(self.inode.as_ptr(), size) };
    }
}

/// Holds `invalidate_lock` exclusively.
///
/// # Invariants
///
/// The lock was taken for this guard.
#[must_use = "the lock is released when the guard is dropped"]
pub struct InvalidateGuard<'a>(Invalidate<'a>);

impl<'a> Deref for InvalidateGuard<'a> {
    type Target = Invalidate<'a>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Drop for InvalidateGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock was taken by this task and not released yet.
        unsafe { bindings::filemap_invalidate_unlock(self.0.inode.mapping()) };
    }
}

/// Holds `invalidate_lock` shared.
#[must_use = "the lock is released when the guard is dropped"]
pub struct InvalidateSharedGuard<'a> {
    inode: &'a Inode,
    _not_send: NotThreadSafe,
}

impl Drop for InvalidateSharedGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: The guard exists, so the lock was taken by this task and not released yet.
        unsafe { bindings::filemap_invalidate_unlock_shared(self.inode.mapping()) };
    }
}
