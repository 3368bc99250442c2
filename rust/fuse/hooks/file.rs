// SPDX-License-Identifier: GPL-2.0

//! Hooks for files: the operations of the VFS and of the memory management.
#![allow(unsafe_code)]

use crate::{
    direct,
    fallocate,
    fuse::IomapInode,
    ops::FuseIomap,
    swap::FuseSwap,
    sync,
    write, //
};
use kernel::{
    bindings,
    error::from_result,
    ffi::{c_int, c_long},
    fs::{
        file::flags::{O_ACCMODE, O_RDONLY},
        iomap::{self, AddressSpaceOperations},
        Inode,
        LocalFile,
        Offset,
        ReadRequest,
        WriteRequest, //
    },
    prelude::*, //
};

/// The page cache's operations for iomap inodes.
#[no_mangle]
static fuse_iomap_aops: AddressSpaceOperations<FuseIomap> =
    AddressSpaceOperations::new_writable().with_swap::<FuseSwap>();

/// Opens a file whose inode is in iomap mode.
///
/// Context: may sleep.
///
/// # Errors
///
/// `EIO` if the server wants another I/O mode;
/// `ENOMEM`.
///
/// # Safety
///
/// `file` is being opened, and has its `struct fuse_file`.
#[export]
unsafe extern "C" fn fuse_iomap_file_open(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: By the safety requirements all are valid, and the task that opens the file is the
    // only one that uses it.
    let (inode, flags, fuse_file) = unsafe {
        let fuse_file: *mut bindings::fuse_file = (*file).private_data.cast();
        (Inode::from_raw(inode), (*file).f_flags, &mut *fuse_file)
    };

    from_result(|| {
        let inode = IomapInode::new(inode).ok_or(EIO)?;
        if flags & O_ACCMODE != O_RDONLY {
            // Page faults have no way to report that there is no memory.
            inode.writeback()?;
        }
        if fuse_file.open_flags & bindings::FOPEN_PASSTHROUGH != 0 {
            return Err(EIO);
        }

        // The page cache is filled by the kernel, so a new open is no reason to drop it.
        fuse_file.open_flags |= bindings::FOPEN_KEEP_CACHE;
        fuse_file.iomode = bindings::fuse_file_IOM_IOMAP;
        // SAFETY: As above.
        unsafe {
            (*file).f_mode |= bindings::FMODE_CAN_ODIRECT;
            if inode.state().atomic {
                (*file).f_mode |= bindings::FMODE_CAN_ATOMIC_WRITE;
            }
        }
        Ok(0)
    })
}

/// `file_operations.llseek`.
///
/// Context: may sleep.
///
/// # Safety
///
/// `file` is an open file of an iomap inode, and its position is locked.
#[export]
unsafe extern "C" fn fuse_iomap_file_llseek(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    whence: c_int,
) -> bindings::loff_t {
    // SAFETY: By the safety requirements the file is open, so its inode is alive.
    let inode = unsafe { Inode::from_raw((*file).f_inode) };

    // CAST: Not negative; nothing else is equal to one of these.
    let found = match whence as u32 {
        bindings::SEEK_HOLE => iomap::seek_hole::<FuseIomap>(&inode.lock_shared(), offset),
        bindings::SEEK_DATA => iomap::seek_data::<FuseIomap>(&inode.lock_shared(), offset),
        // SAFETY: The file is good by the safety requirements.
        _ => return unsafe { bindings::generic_file_llseek(file, offset, whence) },
    };

    match found {
        // SAFETY: The file is good by the safety requirements.
        Ok(pos) => unsafe { bindings::vfs_setpos(file, pos, inode.max_bytes()) },
        Err(error) => Offset::from(error.to_errno()),
    }
}

/// Whether the server wants all I/O of an open file to be direct.
///
/// # Safety
///
/// `iocb` must be for an open file of FUSE's.
unsafe fn is_forced_direct(iocb: *const bindings::kiocb) -> bool {
    // SAFETY: By the safety requirements.
    let open_flags = unsafe {
        let fuse_file: *const bindings::fuse_file = (*(*iocb).ki_filp).private_data.cast();
        (*fuse_file).open_flags
    };

    open_flags & bindings::FOPEN_DIRECT_IO != 0
}

/// `file_operations.read_iter`.
///
/// Context: may sleep, unless the request must not.
///
/// # Safety
///
/// The VFS calls this for an open file of an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_file_read_iter(
    iocb: *mut bindings::kiocb,
    to: *mut bindings::iov_iter,
) -> isize {
    from_result(|| {
        // SAFETY: The VFS has made both for this call.
        let (mut request, forced) =
            unsafe { (ReadRequest::from_raw(iocb, to)?, is_forced_direct(iocb)) };
        let inode = IomapInode::new(request.inode()).ok_or(EIO)?;
        let forced = forced && !request.is_direct();

        if inode.is_bad() {
            return Err(EIO);
        }
        if forced {
            request.set_direct(true);
        }
        let done = if request.is_direct() {
            direct::read(inode, request, forced)
        } else {
            request.read_cached()
        };
        // CAST: A read is never larger than `isize::MAX`.
        Ok(done? as isize)
    })
}

/// `file_operations.write_iter`.
///
/// Context: may sleep, unless the request must not.
///
/// # Safety
///
/// The VFS calls this for an open file of an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_file_write_iter(
    iocb: *mut bindings::kiocb,
    from: *mut bindings::iov_iter,
) -> isize {
    from_result(|| {
        // SAFETY: The VFS has made both for this call.
        let (mut request, forced) =
            unsafe { (WriteRequest::from_raw(iocb, from)?, is_forced_direct(iocb)) };
        let inode = IomapInode::new(request.inode()).ok_or(EIO)?;
        let forced = forced && !request.is_direct();

        if forced {
            request.set_direct(true);
        }
        // CAST: A write is never larger than `isize::MAX`.
        Ok(write::write(inode, request, forced)? as isize)
    })
}

/// `file_operations.fsync`.
///
/// Context: may sleep.
///
/// # Safety
///
/// The VFS calls this for an open file of an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_file_fsync(
    file: *mut bindings::file,
    start: bindings::loff_t,
    end: bindings::loff_t,
    datasync: c_int,
) -> c_int {
    // SAFETY: The file is open for the call, and so is its inode.
    let (file, inode) = unsafe {
        (
            LocalFile::from_raw_file(file),
            Inode::from_raw((*file).f_inode),
        )
    };

    from_result(|| {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        sync::fsync(inode, file, start, end, datasync != 0)?;
        Ok(0)
    })
}

/// `file_operations.fallocate`.
///
/// Context: may sleep.
///
/// # Safety
///
/// The VFS calls this for an open file of an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_file_fallocate(
    file: *mut bindings::file,
    mode: c_int,
    offset: bindings::loff_t,
    length: bindings::loff_t,
) -> c_long {
    // SAFETY: The file is open for the call, and so is its inode.
    let (file, inode) = unsafe {
        (
            LocalFile::from_raw_file(file),
            Inode::from_raw((*file).f_inode),
        )
    };

    from_result(|| {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        // CAST: The mode is a set of bits.
        fallocate::fallocate(inode, file, mode as u32, offset, length)?;
        Ok(0)
    })
}

/// `file_operations.fadvise`.
///
/// Context: may sleep.
///
/// # Safety
///
/// The VFS calls this for an open file of an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_file_fadvise(
    file: *mut bindings::file,
    offset: bindings::loff_t,
    length: bindings::loff_t,
    advice: c_int,
) -> c_int {
    // SAFETY: The file is open by the safety requirements, and so is its inode.
    let inode = unsafe { Inode::from_raw((*file).f_inode) };
    // What fills the page cache must not meet blocks that change hands meanwhile.
    // CAST: Not negative; nothing else is equal to this.
    let _lock = (advice as u32 == bindings::POSIX_FADV_WILLNEED).then(|| inode.lock_shared());

    // SAFETY: The file is open.
    unsafe { bindings::generic_fadvise(file, offset, length, advice) }
}

/// `vm_operations_struct.page_mkwrite`.
///
/// Context: may sleep.
///
/// # Safety
///
/// The memory management calls this for a mapping of a file of an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_page_mkwrite(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By the safety requirements.
    unsafe { iomap::page_mkwrite::<FuseIomap>(vmf) }
}

/// Prepares an iomap inode for the server copying `length` bytes to `pos` of it.
///
/// Context: may sleep; the caller holds `i_rwsem` and `invalidate_lock`, both exclusively, until
/// [`fuse_iomap_copy_end`], which it calls if this succeeds.
///
/// # Safety
///
/// As the context says; `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_copy_begin(
    inode: *mut bindings::inode,
    pos: bindings::loff_t,
    length: bindings::loff_t,
) -> c_int {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    // SAFETY: The locks are held by the safety requirements.
    let (lock, invalidate) = unsafe { (inode.assume_locked(), inode.assume_invalidate_locked()) };

    from_result(|| {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        fallocate::copy_begin(inode, &lock, &invalidate, pos, length)?;
        Ok(0)
    })
}

/// Ends what [`fuse_iomap_copy_begin`] has begun; `copied` is negative if nothing was copied.
///
/// Context: as there.
///
/// # Safety
///
/// As the context says; `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_copy_end(
    inode: *mut bindings::inode,
    pos: bindings::loff_t,
    copied: isize,
) {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    // SAFETY: The lock is held by the safety requirements.
    let lock = unsafe { inode.assume_locked() };

    if let Some(inode) = IomapInode::new(inode) {
        // CAST: Both have 64 bits.
        fallocate::copy_end(inode, &lock, pos, copied as Offset);
    }
}
