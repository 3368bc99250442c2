// SPDX-License-Identifier: GPL-2.0

//! Writing dirty folios back.

use super::{Ioend, Kind, Mapping, WriteOperations};
use crate::{
    bindings,
    error::{code::EIO, Error, Result},
    ffi::{c_int, c_uint},
    fs::{file::Offset, inode::Inode}, //
};
use core::{marker::PhantomData, ptr::NonNull};

/// What a filesystem adds to [`WriteOperations`] to have dirty folios written back:
/// `struct iomap_writeback_ops`.
pub trait WritebackOperations: WriteOperations {
    /// Returns where `length` dirty bytes from `pos` are to be written (the mapping may be longer).
    ///
    /// It has to contain `pos` and to be [`Kind::Mapped`], [`Kind::Unwritten`], or [`Kind::Hole`],
    /// with which the bytes are dropped.  It is used for what follows too, as long as
    /// [`WriteOperations::is_valid`] says so.
    ///
    /// May sleep, but must not allocate memory that is reclaimed from filesystems.  The folio is
    /// locked and under writeback.
    fn map_writeback<'a>(inode: &'a Inode, pos: Offset, length: u64) -> Result<Mapping<'a>>;

    /// Called when dirty data from `pos` to the end of its folio could not be mapped and is lost.
    ///
    /// Context as for [`WritebackOperations::map_writeback`].
    fn discard(inode: &Inode, pos: Offset, length: u64, error: Error);

    /// Called when the I/O is complete: returns it if there is nothing to do, or keeps it for a
    /// task that may sleep.
    ///
    /// Any context.
    fn complete(ioend: Ioend) -> Option<Ioend>;
}

/// Holds the `struct iomap_writeback_ops` that calls `T`.
struct WritebackVTable<T: WritebackOperations>(PhantomData<T>);

impl<T: WritebackOperations> WritebackVTable<T> {
    /// For fs/iomap.
    const OPS: bindings::iomap_writeback_ops = bindings::iomap_writeback_ops {
        writeback_range: Some(Self::writeback_range),
        writeback_submit: Some(Self::writeback_submit),
    };

    /// `iomap_writeback_ops.writeback_range`.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this: `wpc` is the one of [`writepages`], `folio` is locked and in the page
    /// cache of the inode.
    unsafe extern "C" fn writeback_range(
        wpc: *mut bindings::iomap_writepage_ctx,
        folio: *mut bindings::folio,
        pos: u64,
        length: c_uint,
        end_pos: u64,
    ) -> isize {
        let (Ok(pos), Ok(end_pos)) = (Offset::try_from(pos), Offset::try_from(end_pos)) else {
            return EIO.to_errno() as isize;
        };
        // SAFETY: The inode is alive by the safety requirements.
        let inode = unsafe { Inode::from_raw((*wpc).inode) };
        // SAFETY: `wpc` is a local variable of `writepages`, whose call this is in, and fs/iomap
        // does not look at the mapping before this returns; `Self::map` gets nothing else of it.
        let iomap = unsafe { &mut (*wpc).iomap };

        if let Err(error) = Self::map(inode, iomap, pos, length) {
            // SAFETY: The folio is locked, so that it stays in the page cache.
            let end = unsafe { bindings::folio_next_pos(folio) }.min(end_pos);

            if let Some(lost) = end.checked_sub(pos) {
                T::discard(inode, pos, lost.unsigned_abs(), error);
            }
            // CAST: Error numbers are small.
            return error.to_errno() as isize;
        }

        let private = iomap.private;
        let is_hole = u32::from(iomap.type_) == bindings::IOMAP_HOLE;
        // SAFETY: By the safety requirements `wpc` and the folio are good, and `Self::map` has put
        // a mapping that contains `pos` into `wpc`. `iomap` is not used after this.
        let added = unsafe { bindings::iomap_add_to_ioend(wpc, folio, pos, end_pos, length) };

        if added > 0 && !is_hole {
            // SAFETY: The function has put the folio into this ioend, which is not submitted yet.
            unsafe {
                let ioend: *mut bindings::iomap_ioend = (*wpc).wb_ctx.cast();
                (*ioend).io_private = private;
            }
        }
        added
    }

    /// Sees to it that there is a mapping for `pos`.
    fn map(inode: &Inode, iomap: &mut bindings::iomap, pos: Offset, length: c_uint) -> Result {
        let distance = pos.checked_sub(iomap.offset).map(u64::try_from);
        let covers = matches!(distance, Some(Ok(distance)) if distance < iomap.length);

        if covers && T::is_valid(inode, iomap.validity_cookie) {
            return Ok(());
        }

        let mapping = T::map_writeback(inode, pos, u64::from(length))?;
        if !mapping.contains(pos) || matches!(mapping.kind, Kind::Delalloc | Kind::Inline) {
            return Err(EIO);
        }
        mapping.fill(iomap);
        Ok(())
    }

    /// `iomap_writeback_ops.writeback_submit`.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this: `wb_ctx` of `wpc` is an ioend that [`Self::writeback_range`] has made.
    unsafe extern "C" fn writeback_submit(
        wpc: *mut bindings::iomap_writepage_ctx,
        error: c_int,
    ) -> c_int {
        // SAFETY: By the safety requirements `wb_ctx` is an ioend. It is not submitted before the
        // call at the end, so its bio is still this task's alone; `end_bio` is what `bi_end_io`
        // asks for.
        unsafe {
            let ioend: *mut bindings::iomap_ioend = (*wpc).wb_ctx.cast();

            (*ioend).io_bio.bi_end_io = Some(Self::end_bio);
            bindings::iomap_ioend_writeback_submit(wpc, error)
        }
    }

    /// `bio.bi_end_io`.
    ///
    /// # Safety
    ///
    /// The block layer calls this, once, for the bio of an ioend that was submitted.
    unsafe extern "C" fn end_bio(bio: *mut bindings::bio) {
        // SAFETY: `writeback_submit` sets this for bios of ioends only, and each is the member of
        // one.
        let Some(ioend) = NonNull::new(unsafe { bindings::iomap_ioend_from_bio(bio) }) else {
            return;
        };
        // SAFETY: The I/O is complete, and the block layer will not touch it again.
        let ioend = unsafe { Ioend::from_raw(ioend) };

        if T::complete(ioend).is_some() {
            // SAFETY: The ioend is still ours, and this is the C side's own completion of it.
            unsafe { bindings::iomap_ioend_writeback_end_bio(bio) };
        }
    }
}

/// `address_space_operations.writepages`.
///
/// # Safety
///
/// The VFS calls this for the page cache of a live inode that is `T`'s.
pub(super) unsafe extern "C" fn writepages<T: WritebackOperations>(
    mapping: *mut bindings::address_space,
    wbc: *mut bindings::writeback_control,
) -> c_int {
    let mut wpc = bindings::iomap_writepage_ctx {
        // SAFETY: The mapping is valid by the safety requirements.
        inode: unsafe { (*mapping).host },
        wbc,
        ops: &WritebackVTable::<T>::OPS,
        ..pin_init::zeroed()
    };

    // SAFETY: `wpc` lives for the call and the table for ever; I/O that is still in flight then
    // keeps its inode.
    unsafe { bindings::iomap_writepages(&raw mut wpc) }
}
