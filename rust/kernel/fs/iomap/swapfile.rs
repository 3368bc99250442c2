// SPDX-License-Identifier: GPL-2.0

//! Files that are swapped to.

use super::Operations;
#[cfg(CONFIG_SWAP)]
use super::OperationsVTable;
use crate::fs::inode::Inode;
#[cfg(CONFIG_SWAP)]
use crate::{
    bindings,
    error::{from_result, to_result, Result},
    ffi::c_int,
    fs::file::Offset,
    page::PAGE_SIZE, //
};

/// What a filesystem adds to have its files swapped to.
///
/// [`Operations::begin`] is asked for mappings to report, from the start of the file to its end.
/// All have to have blocks, on one device, that are not shared and whose metadata is on disk.  The
/// swap code reads and writes these without asking again, until [`SwapOperations::deactivate`].
pub trait SwapOperations: Operations {
    /// The file is not swapped to, any more or after all.
    ///
    /// May sleep.
    fn deactivate(inode: &Inode);
}

/// `address_space_operations.swap_activate`.
///
/// # Safety
///
/// The swap code calls this: `file` is open, its inode locked, and the others valid and nobody
/// else's.
#[cfg(CONFIG_SWAP)]
pub(super) unsafe extern "C" fn activate<S: SwapOperations>(
    sis: *mut bindings::swap_info_struct,
    file: *mut bindings::file,
    span: *mut bindings::sector_t,
) -> c_int {
    // SAFETY: By the safety requirements the file is open, so its inode is alive.
    let inode = unsafe { Inode::from_raw((*file).f_inode) };

    let ret = from_result(|| {
        // What has no device is refused when all mappings are looked at.
        if let Some(device) = first_device::<S>(inode)? {
            // SAFETY: `sis` is good by the safety requirements. The device stays open as long as
            // the inode, which the file that is swapped to keeps.
            unsafe { bindings::swap_info_set_bdev(sis, device) };
        }
        // SAFETY: The arguments are good by the safety requirements, and `OPS` lives for ever.
        Ok(unsafe {
            bindings::iomap_swapfile_activate(sis, file, span, &OperationsVTable::<S>::OPS)
        })
    });
    if ret < 0 {
        S::deactivate(inode);
    }
    ret
}

/// The device that the start of a file is on, if there is one.
#[cfg(CONFIG_SWAP)]
fn first_device<S: SwapOperations>(inode: &Inode) -> Result<Option<*mut bindings::block_device>> {
    // Whole pages, as when all mappings are looked at.
    let length = inode.size() & !(PAGE_SIZE as Offset - 1);
    if length == 0 {
        return Ok(None);
    }
    let mut iomap = bindings::iomap::default();
    let mut source = bindings::iomap::default();

    // One mapping is asked for and given back unused, for which `iomap_iter` is not exported.
    // SAFETY: The inode is alive, and both mappings are local variables that are zeroed.
    to_result(unsafe {
        OperationsVTable::<S>::begin(
            inode.as_ptr(),
            0,
            length,
            bindings::IOMAP_REPORT,
            &raw mut iomap,
            &raw mut source,
        )
    })?;
    let device = iomap.bdev;
    // SAFETY: As above, and `begin` has filled `iomap`.
    to_result(unsafe {
        OperationsVTable::<S>::end(
            inode.as_ptr(),
            0,
            length,
            0,
            bindings::IOMAP_REPORT,
            &raw mut iomap,
        )
    })?;

    Ok((!device.is_null()).then_some(device))
}

/// `address_space_operations.swap_deactivate`.
///
/// # Safety
///
/// The swap code calls this: `file` is open.
#[cfg(CONFIG_SWAP)]
pub(super) unsafe extern "C" fn deactivate<S: SwapOperations>(file: *mut bindings::file) {
    // SAFETY: By the safety requirements the file is open, so its inode is alive.
    S::deactivate(unsafe { Inode::from_raw((*file).f_inode) });
}
