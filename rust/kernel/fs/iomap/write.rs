// SPDX-License-Identifier: GPL-2.0

//! Making the page cache dirty: writes, page faults, zeroing and unsharing.

use super::{Operations, OperationsVTable};
use crate::{
    bindings,
    error::{to_result, Result},
    fs::{
        file::Offset,
        inode::{Exclusive, Inode},
        pagecache::Invalidate,
        request::{length_or_error, WriteRequest}, //
    },
};
use core::marker::PhantomData;

/// What a filesystem adds to [`Operations`] to have its files written: `struct iomap_write_ops`.
pub trait WriteOperations: Operations {
    /// Whether a mapping with this cookie ([`super::Mapping::with_cookie`]) is still true.
    ///
    /// Called with a folio of the mapping locked, which holds off what changes mappings under
    /// cached data: writeback and invalidation.
    fn is_valid(inode: &Inode, cookie: u64) -> bool;
}

/// Holds the `struct iomap_write_ops` that calls `T`.
struct WriteVTable<T: WriteOperations>(PhantomData<T>);

impl<T: WriteOperations> WriteVTable<T> {
    /// For fs/iomap.
    const OPS: bindings::iomap_write_ops = bindings::iomap_write_ops {
        iomap_valid: Some(Self::iomap_valid),
        ..pin_init::zeroed()
    };

    /// `iomap_write_ops.iomap_valid`.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this with a live inode, and a mapping that `T` made for it.
    unsafe extern "C" fn iomap_valid(
        inode: *mut bindings::inode,
        iomap: *const bindings::iomap,
    ) -> bool {
        // SAFETY: By the safety requirements.
        let (inode, cookie) = unsafe { (Inode::from_raw(inode), (*iomap).validity_cookie) };

        T::is_valid(inode, cookie)
    }
}

/// Copies data of a write into the page cache, and makes the file larger if need be.
///
/// May sleep, unless the request must not.  Returns how much was copied, which is less than asked
/// for after an error.
pub fn file_buffered_write<T: WriteOperations>(
    _lock: &Exclusive<'_>,
    request: &mut WriteRequest<'_>,
) -> Result<usize> {
    let (iocb, from) = request.as_raw();
    // SAFETY: Both pointers are good by the type invariant of `WriteRequest`, the inode is locked,
    // and the tables live for ever.
    length_or_error(unsafe {
        bindings::iomap_file_buffered_write(
            iocb,
            from,
            &OperationsVTable::<T>::OPS,
            &WriteVTable::<T>::OPS,
            core::ptr::null_mut(),
        )
    })
}

/// Zeroes `length` bytes from `pos` in the page cache, except where there is nothing to zero.
///
/// May sleep.  Folios that start beyond the end of the file would not be written back, so a
/// filesystem must not have blocks with data in the range there.
pub fn zero_range<T: WriteOperations>(
    lock: &Exclusive<'_>,
    _invalidate: &Invalidate<'_>,
    pos: Offset,
    length: u64,
) -> Result {
    let length = Offset::try_from(length)?;

    // SAFETY: The inode is alive and locked, and the tables live for ever.
    to_result(unsafe {
        bindings::iomap_zero_range(
            lock.inode().as_ptr(),
            pos,
            length,
            core::ptr::null_mut(),
            &OperationsVTable::<T>::OPS,
            &WriteVTable::<T>::OPS,
            core::ptr::null_mut(),
        )
    })
}

/// Zeroes from `pos` to the end of its block in the page cache, as before the file ends there.
///
/// May sleep.
pub fn truncate_page<T: WriteOperations>(
    lock: &Exclusive<'_>,
    _invalidate: &Invalidate<'_>,
    pos: Offset,
) -> Result {
    // SAFETY: The inode is alive and locked, and the tables live for ever.
    to_result(unsafe {
        bindings::iomap_truncate_page(
            lock.inode().as_ptr(),
            pos,
            core::ptr::null_mut(),
            &OperationsVTable::<T>::OPS,
            &WriteVTable::<T>::OPS,
            core::ptr::null_mut(),
        )
    })
}

/// Makes shared blocks in `length` bytes from `pos` dirty in the page cache, so that writing them
/// back gives the file its own.
///
/// May sleep.
pub fn unshare_range<T: WriteOperations>(lock: &Exclusive<'_>, pos: Offset, length: u64) -> Result {
    let length = Offset::try_from(length)?;

    // SAFETY: The inode is alive and locked, and the tables live for ever.
    to_result(unsafe {
        bindings::iomap_file_unshare(
            lock.inode().as_ptr(),
            pos,
            length,
            &OperationsVTable::<T>::OPS,
            &WriteVTable::<T>::OPS,
        )
    })
}

/// `vm_operations_struct.page_mkwrite`: lets a page of the file be written through a mapping.
///
/// May sleep.
///
/// # Safety
///
/// The memory management calls this for a file whose inode is `T`'s.
pub unsafe fn page_mkwrite<T: WriteOperations>(
    vmf: *mut bindings::vm_fault,
) -> bindings::vm_fault_t {
    // SAFETY: By the safety requirements the fault is one in a mapping of a file, which stays open
    // as long.
    let (inode, file) = unsafe {
        let file = (*(*vmf).__bindgen_anon_1.vma).vm_file;
        (Inode::from_raw((*file).f_inode), file)
    };
    if inode.is_immutable() {
        // The mapping may be older than that.
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    }

    // SAFETY: The superblock is alive with the inode.
    let sb = unsafe { (*inode.as_ptr()).i_sb };

    // SAFETY: As above; this keeps the superblock from being frozen until the end.
    unsafe { bindings::sb_start_pagefault(sb) };
    // A file whose time cannot be updated can be written all the same.
    // SAFETY: The file of a VMA that has a fault is open: the VMA holds a reference to it.
    let _ = unsafe { bindings::file_update_time(file) };

    let invalidate = inode.lock_invalidate_shared();
    // SAFETY: By the safety requirements, and the table lives for ever.
    let ret = unsafe {
        bindings::iomap_page_mkwrite(vmf, &OperationsVTable::<T>::OPS, core::ptr::null_mut())
    };
    drop(invalidate);

    // SAFETY: Started above.
    unsafe { bindings::sb_end_pagefault(sb) };
    ret
}
