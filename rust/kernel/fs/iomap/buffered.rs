// SPDX-License-Identifier: GPL-2.0

//! The page cache's side of a file.

#[cfg(CONFIG_SWAP)]
use super::swapfile;
use super::{
    writeback::writepages,
    Operations,
    OperationsVTable,
    SwapOperations,
    WritebackOperations, //
};
use crate::{
    bindings,
    ffi::c_int, //
};
use core::marker::PhantomData;

/// The `struct address_space_operations` of files whose I/O goes through iomap.
///
/// To be kept in a static.
#[repr(transparent)]
pub struct AddressSpaceOperations<T: Operations> {
    ops: bindings::address_space_operations,
    _operations: PhantomData<fn() -> T>,
}

// SAFETY: A table of function pointers that is never written to.
unsafe impl<T: Operations> Sync for AddressSpaceOperations<T> {}

impl<T: Operations> AddressSpaceOperations<T> {
    /// Makes the table for files that are only read.
    #[expect(clippy::new_without_default, reason = "it has to be const")]
    pub const fn new() -> Self {
        Self {
            ops: bindings::address_space_operations {
                read_folio: Some(Self::read_folio),
                readahead: Some(Self::readahead),
                dirty_folio: Some(bindings::noop_dirty_folio),
                release_folio: Some(bindings::iomap_release_folio),
                invalidate_folio: Some(bindings::iomap_invalidate_folio),
                is_partially_uptodate: Some(bindings::iomap_is_partially_uptodate),
                #[cfg(CONFIG_MIGRATION)]
                migrate_folio: Some(bindings::filemap_migrate_folio),
                error_remove_folio: Some(bindings::generic_error_remove_folio),
                bmap: Some(Self::bmap),
                ..pin_init::zeroed()
            },
            _operations: PhantomData,
        }
    }

    /// `address_space_operations.read_folio`, as `iomap_bio_read_folio` does it, except that the
    /// reader gets the filesystem's error and not always `EIO`.
    ///
    /// # Safety
    ///
    /// The VFS calls this: `folio` is locked and in the page cache of a live inode.
    unsafe extern "C" fn read_folio(
        _file: *mut bindings::file,
        folio: *mut bindings::folio,
    ) -> c_int {
        let mut ctx = bindings::iomap_read_folio_ctx {
            ops: &raw const bindings::iomap_bio_read_ops,
            cur_folio: folio,
            ..pin_init::zeroed()
        };
        let mut error: c_int = 0;

        // SAFETY: `OPS_WITH_ERROR` lives for ever, `ctx` and `error` for the call, and the folio is
        // locked by the safety requirements. The call consumes the lock.
        unsafe {
            bindings::iomap_read_folio(
                &OperationsVTable::<T>::OPS_WITH_ERROR,
                &raw mut ctx,
                (&raw mut error).cast(),
            )
        };
        // An error of the device comes later, through the state of the folio.
        error
    }

    /// `address_space_operations.readahead`, as `iomap_bio_readahead` does it.
    ///
    /// # Safety
    ///
    /// The VFS calls this: `rac` describes locked folios in the page cache of a live inode.
    unsafe extern "C" fn readahead(rac: *mut bindings::readahead_control) {
        let mut ctx = bindings::iomap_read_folio_ctx {
            ops: &raw const bindings::iomap_bio_read_ops,
            rac,
            ..pin_init::zeroed()
        };

        // SAFETY: `OPS` lives for ever, `ctx` for the call, and `rac` is good by the safety
        // requirements.
        unsafe {
            bindings::iomap_readahead(
                &OperationsVTable::<T>::OPS,
                &raw mut ctx,
                core::ptr::null_mut(),
            )
        };
    }

    /// `address_space_operations.bmap`.  Returns 0 for what has no block, or on error.
    ///
    /// # Safety
    ///
    /// The VFS calls this: `mapping` is that of a live inode.
    unsafe extern "C" fn bmap(
        mapping: *mut bindings::address_space,
        block: bindings::sector_t,
    ) -> bindings::sector_t {
        // SAFETY: `OPS` lives for ever and `mapping` is good by the safety requirements.
        unsafe { bindings::iomap_bmap(mapping, block, &OperationsVTable::<T>::OPS) }
    }
}

impl<T: WritebackOperations> AddressSpaceOperations<T> {
    /// Makes the table for files that are read and written.
    pub const fn new_writable() -> Self {
        let mut table = Self::new();

        table.ops.dirty_folio = Some(bindings::iomap_dirty_folio);
        table.ops.writepages = Some(writepages::<T>);
        table
    }

    /// Has the files swapped to, by way of `S`.
    #[must_use]
    #[cfg_attr(not(CONFIG_SWAP), expect(unused_mut))]
    pub const fn with_swap<S: SwapOperations>(mut self) -> Self {
        #[cfg(CONFIG_SWAP)]
        {
            self.ops.swap_activate = Some(swapfile::activate::<S>);
            self.ops.swap_deactivate = Some(swapfile::deactivate::<S>);
        }
        self
    }
}
