// SPDX-License-Identifier: GPL-2.0

//! Direct I/O: between a device and the caller's memory, past the page cache.

use super::{Ioend, Operations, OperationsVTable, WritebackOperations};
use crate::{
    bindings,
    error::{
        code::{EIO, EIOCBQUEUED, ENOTBLK},
        from_result,
        to_result,
        Result, //
    },
    ffi::{c_int, c_uint},
    fs::{
        file::Offset,
        inode::{Inode, Lock, SharedGuard},
        request::{length_or_error, ReadRequest, WriteRequest}, //
    },
    impl_flags, //
};
use core::{marker::PhantomData, ptr::NonNull};

impl_flags!(
    /// How a direct write is done: `IOMAP_DIO_FORCE_WAIT` and so on.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct DirectFlags(u32);

    /// One of [`DirectFlags`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum DirectFlag {
        /// Wait for the I/O even if the caller would not.
        ForceWait = bindings::IOMAP_DIO_FORCE_WAIT,
        /// Fail with `EAGAIN` where blocks would have to be allocated or parts of them zeroed.
        OverwriteOnly = bindings::IOMAP_DIO_OVERWRITE_ONLY,
    }
);

impl_flags!(
    /// What a direct write has met: `IOMAP_DIO_UNWRITTEN` and `IOMAP_DIO_COW`.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct WrittenFlags(u32);

    /// One of [`WrittenFlags`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum WrittenFlag {
        /// Blocks that read as zeroes until the filesystem says otherwise.
        Unwritten = bindings::IOMAP_DIO_UNWRITTEN,
        /// Blocks that do not belong to the file until the filesystem says so.
        Cow = bindings::IOMAP_DIO_COW,
    }
);

/// What a filesystem adds to [`Operations`] for direct I/O: `struct iomap_dio_ops`, and a short
/// way for small reads.
pub trait DirectOperations: Operations {
    /// As [`Operations::begin`] for a read of at most a block, but without an
    /// [`Operations::end`].
    ///
    /// Fails with `ENOTBLK` if the caller should take the long way.
    fn begin_simple<'a>(inode: &'a Inode, pos: Offset, length: u64) -> Result<super::Mapping<'a>>;

    /// Called when all I/O of a write is complete: `size` bytes from `pos` were submitted, with
    /// this result.  What it returns is the result of the write.
    ///
    /// May sleep if the write was not all right, met anything of [`WrittenFlags`], went beyond the
    /// end of the file, or was waited for ([`DirectFlag::ForceWait`]).  Else any context.
    fn end_io(inode: &Inode, pos: Offset, size: u64, result: Result, flags: WrittenFlags)
        -> Result;
}

/// Holds the `struct iomap_dio_ops` that calls `T`.
struct DirectVTable<T: DirectOperations>(PhantomData<T>);

impl<T: DirectOperations> DirectVTable<T> {
    /// For fs/iomap.
    const OPS: bindings::iomap_dio_ops = bindings::iomap_dio_ops {
        end_io: Some(Self::end_io),
        ..pin_init::zeroed()
    };

    /// `iomap_dio_ops.end_io`.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this for a write of [`file_direct_write`]: the file is open.
    unsafe extern "C" fn end_io(
        iocb: *mut bindings::kiocb,
        size: isize,
        error: c_int,
        flags: c_uint,
    ) -> c_int {
        const FLAGS: u32 = bindings::IOMAP_DIO_UNWRITTEN | bindings::IOMAP_DIO_COW;
        // SAFETY: By the safety requirements; the position moves only after this.
        let (inode, pos) = unsafe { (Inode::from_raw((*(*iocb).ki_filp).f_inode), (*iocb).ki_pos) };

        from_result(|| {
            let size = u64::try_from(size).map_err(|_| EIO)?;
            T::end_io(
                inode,
                pos,
                size,
                to_result(error),
                WrittenFlags(flags & FLAGS),
            )?;
            Ok(0)
        })
    }

    /// The `iomap_begin` of small reads.
    ///
    /// # Safety
    ///
    /// As for `iomap_ops.iomap_begin`.
    unsafe extern "C" fn begin_simple(
        inode: *mut bindings::inode,
        pos: bindings::loff_t,
        length: bindings::loff_t,
        _flags: c_uint,
        iomap: *mut bindings::iomap,
        _srcmap: *mut bindings::iomap,
    ) -> c_int {
        // SAFETY: The inode is alive by the safety requirements.
        let inode = unsafe { Inode::from_raw(inode) };

        from_result(|| {
            let length = u64::try_from(length).map_err(|_| EIO)?;
            let mapping = T::begin_simple(inode, pos, length)?;
            if !mapping.contains(pos) {
                return Err(EIO);
            }

            // SAFETY: By the safety requirements `iomap` is valid and nobody else's.
            mapping.fill(unsafe { &mut *iomap });
            Ok(0)
        })
    }
}

/// Holds the `struct iomap_dio_ops` of writes that nobody waits for.
struct QueuedVTable<T: WritebackOperations>(PhantomData<T>);

impl<T: WritebackOperations> QueuedVTable<T> {
    /// For fs/iomap.
    const OPS: bindings::iomap_dio_ops = bindings::iomap_dio_ops {
        submit_io: Some(Self::submit_io),
        bio_set: &raw mut bindings::iomap_ioend_bioset,
        ..pin_init::zeroed()
    };

    /// `iomap_dio_ops.submit_io`: makes an ioend of what changes mappings.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this for a write of [`file_direct_write_queued`], with a bio of its own that
    /// is from `bio_set`.
    unsafe extern "C" fn submit_io(
        iter: *const bindings::iomap_iter,
        bio: *mut bindings::bio,
        pos: bindings::loff_t,
    ) {
        // SAFETY: The iteration is valid by the safety requirements.
        let (inode, iomap) = unsafe { ((*iter).inode, &(*iter).iomap) };
        let mut flags = 0;
        if u32::from(iomap.type_) == bindings::IOMAP_UNWRITTEN {
            flags |= bindings::IOMAP_IOEND_UNWRITTEN;
        }
        if u32::from(iomap.flags) & bindings::IOMAP_F_SHARED != 0 {
            flags |= bindings::IOMAP_IOEND_SHARED;
        }

        if flags != 0 {
            // CAST: The flags are small.
            let flags = (flags | bindings::IOMAP_IOEND_DIRECT) as u16;
            // SAFETY: The bio has an ioend around it, as all of that set, and is not submitted yet.
            unsafe {
                let ioend = bindings::iomap_init_ioend(inode, bio, pos, flags);
                (*ioend).io_private = iomap.private;
                (*bio).bi_end_io = Some(Self::end_bio);
            }
        }
        // SAFETY: The bio is ready, and the block layer's from now on.
        unsafe { bindings::blk_crypto_submit_bio(bio) };
    }

    /// `bio.bi_end_io`.
    ///
    /// # Safety
    ///
    /// The block layer calls this, once, for the bio of an ioend of [`Self::submit_io`].
    unsafe extern "C" fn end_bio(bio: *mut bindings::bio) {
        // SAFETY: The bio is that of an ioend.
        let ioend = NonNull::new(unsafe { bindings::iomap_ioend_from_bio(bio) });
        // SAFETY: The I/O is complete, and the block layer will not touch it again. The request
        // that it is a part of keeps the inode.
        let ioend = ioend.map(|ioend| unsafe { Ioend::from_raw(ioend) });

        if ioend.is_none_or(|ioend| T::complete(ioend).is_some()) {
            // SAFETY: The bio is still ours, and this is the C side's own completion of it.
            unsafe { bindings::iomap_dio_bio_end_io(bio) };
        }
    }
}

/// What has become of a request.
pub enum Submitted<R> {
    /// Its completion ends it, perhaps before this was returned.
    Queued,
    /// It is the caller's again, with the number of bytes that were moved.
    Done(R, Result<usize>),
}

impl<R> Submitted<R> {
    /// Translates what fs/iomap returns.
    fn new(request: R, ret: isize) -> Self {
        match length_or_error(ret) {
            Err(error) if error == EIOCBQUEUED => Self::Queued,
            result => Self::Done(request, result),
        }
    }
}

/// Reads past the page cache, after writing back what that has of the range.
///
/// May sleep, unless the request must not.  Fails with `ENOTBLK`, or returns less than was asked
/// for, where a mapping's [`Operations::begin`] failed with `ENOTBLK`: the caller reads the rest
/// through the page cache.
pub fn file_direct_read<'a, T: DirectOperations>(
    _lock: &SharedGuard<'_>,
    mut request: ReadRequest<'a>,
) -> Submitted<ReadRequest<'a>> {
    let (iocb, to) = request.as_raw();

    // SAFETY: Both pointers are good by the type invariant of `Request`, and the functions live
    // for ever.  If the request is queued, neither pointer is used any more.
    let ret =
        unsafe { bindings::iomap_dio_read_simple(iocb, to, Some(DirectVTable::<T>::begin_simple)) };
    if ret != ENOTBLK.to_errno() as isize {
        return Submitted::new(request, ret);
    }

    // SAFETY: As above.
    let ret = unsafe {
        bindings::iomap_dio_rw(
            iocb,
            to,
            &OperationsVTable::<T>::OPS,
            core::ptr::null(),
            0,
            core::ptr::null_mut(),
            0,
        )
    };
    Submitted::new(request, ret)
}

/// Writes past the page cache, after writing back and dropping what that has of the range.
///
/// May sleep, unless the request must not.  Fails with `ENOTBLK`, or returns less than was asked
/// for, where the page cache could not be dropped or [`Operations::begin`] failed with that: the
/// caller writes the rest through the page cache.
///
/// Does not change the size of the file: a write beyond its end needs the exclusive lock and
/// [`DirectFlag::ForceWait`], and then the caller does.
pub fn file_direct_write<'a, 'b, T: DirectOperations>(
    _lock: &impl Lock<'b>,
    request: WriteRequest<'a>,
    flags: DirectFlags,
) -> Submitted<WriteRequest<'a>> {
    submit_write::<T>(request, &DirectVTable::<T>::OPS, flags)
}

/// Submits a write, whose I/O is completed as `ops` say.
fn submit_write<'a, T: Operations>(
    mut request: WriteRequest<'a>,
    ops: &'static bindings::iomap_dio_ops,
    flags: DirectFlags,
) -> Submitted<WriteRequest<'a>> {
    let (iocb, from) = request.as_raw();

    // SAFETY: Both pointers are good by the type invariant of `Request`, and the tables live for
    // ever.  If the request is queued, neither pointer is used any more.
    let ret = unsafe {
        bindings::iomap_dio_rw(
            iocb,
            from,
            &OperationsVTable::<T>::OPS,
            ops,
            flags.into(),
            core::ptr::null_mut(),
            0,
        )
    };
    Submitted::new(request, ret)
}

/// As [`file_direct_write`], for a request that is asynchronous: I/O to blocks that become the
/// file's by it, or another's, is completed like writeback, with [`WritebackOperations::complete`],
/// so that it can be told of together with that of other requests.
///
/// For whole blocks inside the file, and without `O_DSYNC`, which would wait where other writes are
/// completed.
pub fn file_direct_write_queued<'a, 'b, T: WritebackOperations>(
    _lock: &impl Lock<'b>,
    request: WriteRequest<'a>,
) -> Submitted<WriteRequest<'a>> {
    submit_write::<T>(request, &QueuedVTable::<T>::OPS, DirectFlags::default())
}
