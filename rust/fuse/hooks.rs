// SPDX-License-Identifier: GPL-2.0

//! What the C side of FUSE calls, see fuse_iomap.h.
//!
//! Each hook turns pointers into references and leaves the rest to safe code.
#![allow(unsafe_code)]

use crate::{
    cache::Bounds,
    config,
    direct,
    fallocate,
    fuse::{self, IomapInode},
    inode::{self, State},
    notify,
    ops::FuseIomap,
    sync,
    truncate,
    write, //
};
use kernel::{
    bindings,
    error::{from_result, to_result},
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
static fuse_iomap_aops: AddressSpaceOperations<FuseIomap> = AddressSpaceOperations::new_writable();

/// Puts a new inode into iomap mode if the server wants that for it.
///
/// Context: may sleep; `inode` is `I_NEW` and not seen by anybody else.
///
/// # Safety
///
/// As the context says; `inode` is one of FUSE's, on a connection with iomap on, and `attr` valid.
#[export]
unsafe extern "C" fn fuse_iomap_init_inode(
    inode: *mut bindings::inode,
    attr: *const bindings::fuse_attr,
) {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, attr) = unsafe { (Inode::from_raw(inode), &*attr) };

    if attr.flags & bindings::FUSE_ATTR_EXCLUSIVE != 0 {
        fuse::set_state_bit(inode, bindings::FUSE_I_EXCLUSIVE);
    }
    if !inode::wants_iomap(attr) {
        return;
    }

    let block_size = inode::block_size(attr);
    // SAFETY: By the safety requirements nobody else uses the inode.
    if unsafe { inode.set_block_size(block_size) }.is_err() {
        pr_warn!(
            "inode {}: no iomap with a block size of {} bytes\n",
            attr.ino,
            block_size
        );
        fuse::set_state_bit(inode, bindings::FUSE_I_BAD);
    }

    // SAFETY: The union of a new inode is zeroed and nobody else uses it; the C side has room of
    // this size and alignment there. The state stays until `fuse_iomap_evict_inode`.
    unsafe { pin_init::raw_init(fuse::state_ptr(inode), State::new(attr)) };
    // The C side does this too, but only when the inode can be found already.
    fuse::set_attr_ino(inode, attr.ino);
    fuse::set_state_bit(inode, bindings::FUSE_I_IOMAP);
}

/// Drops the state of an iomap inode.
///
/// Context: may sleep; the page cache is empty and no I/O is in flight.
///
/// # Safety
///
/// `inode` is an iomap inode that is being evicted, and nobody uses its state after this.
#[export]
unsafe extern "C" fn fuse_iomap_evict_inode(inode: *mut bindings::inode) {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };

    // SAFETY: `fuse_iomap_init_inode` has initialised the state, and by the safety requirements
    // this is its last use.
    unsafe { core::ptr::drop_in_place(fuse::state_ptr(inode)) };
}

/// Warns, once on a connection, if a server asks for iomap when it is too late.
///
/// Context: any.
///
/// # Safety
///
/// `inode` is one of FUSE's, on a connection with iomap on, and `attr` valid.
#[export]
unsafe extern "C" fn fuse_iomap_check_attr(
    inode: *mut bindings::inode,
    attr: *const bindings::fuse_attr,
) {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, attr) = unsafe { (Inode::from_raw(inode), &*attr) };

    if inode::wants_iomap(attr) && IomapInode::new(inode).is_none() && fuse::first_late_attr(inode)
    {
        pr_warn!(
            "inode {}: FUSE_ATTR_IOMAP ignored, the inode is in use without it\n",
            attr.ino
        );
    }
}

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

/// `inode_operations.fiemap`.
///
/// Context: may sleep.
///
/// # Safety
///
/// The VFS calls this for an iomap inode, with its own `info`.
#[export]
unsafe extern "C" fn fuse_iomap_fiemap(
    inode: *mut bindings::inode,
    info: *mut bindings::fiemap_extent_info,
    start: u64,
    length: u64,
) -> c_int {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    let guard = inode.lock_shared();

    from_result(|| {
        // SAFETY: `info` is the VFS's by the safety requirements.
        unsafe { iomap::fiemap::<FuseIomap>(&guard, info, start, length) }?;
        Ok(0)
    })
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

/// Prepares an iomap inode for SETATTR with a new size.
///
/// Context: may sleep; the caller holds `i_rwsem` and `invalidate_lock`, both exclusively, until
/// [`fuse_iomap_truncate_end`], which it calls if this succeeds.
///
/// # Safety
///
/// As the context says; `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_truncate_begin(
    inode: *mut bindings::inode,
    size: bindings::loff_t,
) -> c_int {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    // SAFETY: The locks are held by the safety requirements.
    let (lock, invalidate) = unsafe { (inode.assume_locked(), inode.assume_invalidate_locked()) };

    from_result(|| {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        truncate::begin(inode, &lock, &invalidate, size)?;
        Ok(0)
    })
}

/// Ends what [`fuse_iomap_truncate_begin`] has begun, when SETATTR has returned `error`.
///
/// Context: as there.
///
/// # Safety
///
/// As the context says; `inode` is an iomap inode.
#[export]
unsafe extern "C" fn fuse_iomap_truncate_end(
    inode: *mut bindings::inode,
    old_size: bindings::loff_t,
    new_size: bindings::loff_t,
    error: c_int,
) {
    // SAFETY: The inode is alive by the safety requirements.
    let inode = unsafe { Inode::from_raw(inode) };
    // SAFETY: The locks are held by the safety requirements.
    let (lock, invalidate) = unsafe { (inode.assume_locked(), inode.assume_invalidate_locked()) };

    if let Some(inode) = IomapInode::new(inode) {
        truncate::end(
            inode,
            &lock,
            &invalidate,
            old_size,
            new_size,
            to_result(error),
        );
    }
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

/// Says what the kernel can do, for `FUSE_IOMAP_CONFIG`.
///
/// Context: any.
///
/// # Safety
///
/// `request` is valid and nobody else's.
#[export]
unsafe extern "C" fn fuse_iomap_offer(request: *mut bindings::fuse_iomap_config_in) {
    // CAST: The default is some megabytes.
    let offer = config::offer(Bounds::of_system().inode as u32);

    // SAFETY: By the safety requirements.
    unsafe { request.write(offer) };
}

/// Sets up a connection as the answer to `FUSE_IOMAP_CONFIG` has it, or fails with the error that
/// is the answer: but a server need not know the request.
///
/// Context: may sleep.
///
/// # Safety
///
/// All are valid, and the connection has no inodes in iomap mode yet.
#[export]
unsafe extern "C" fn fuse_iomap_configure(
    conn: *mut bindings::fuse_conn,
    offered: *const bindings::fuse_iomap_config_in,
    answer: *const bindings::fuse_iomap_config_out,
    error: c_int,
) -> c_int {
    // SAFETY: Both are valid by the safety requirements.
    let (offered, answer) = unsafe { (&*offered, &*answer) };

    from_result(|| {
        let config = match to_result(error) {
            Ok(()) => config::parse(offered, answer),
            Err(error) if error == ENOSYS => config::parse(offered, &Default::default()),
            Err(error) => return Err(error),
        };
        let config = config.map_err(|wrong| {
            pr_warn!("CONFIG reply rejected: {}\n", wrong);
            EINVAL
        })?;
        // SAFETY: By the safety requirements.
        unsafe { fuse::configure(conn, &config) }?;
        Ok(0)
    })
}

/// Undoes [`fuse_iomap_configure`], if that was done.
///
/// Context: may sleep.
///
/// # Safety
///
/// The connection is valid, and its inodes are gone.
#[export]
unsafe extern "C" fn fuse_iomap_forget_config(conn: *mut bindings::fuse_conn) {
    // SAFETY: By the safety requirements.
    unsafe { fuse::forget_config(conn) };
}

/// Puts mappings that the server has sent into the cache of an inode.
///
/// Context: may sleep; the server is waiting.
///
/// # Safety
///
/// `inode` is a referenced inode of FUSE's, and `upsert` valid.
#[export]
unsafe extern "C" fn fuse_iomap_upsert(
    inode: *mut bindings::inode,
    upsert: *const bindings::fuse_iomap_upsert_mappings_out,
) -> c_int {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, upsert) = unsafe { (Inode::from_raw(inode), &*upsert) };

    from_result(|| {
        notify::upsert(IomapInode::new(inode).ok_or(EINVAL)?, upsert)?;
        Ok(0)
    })
}

/// Drops mappings that the server has named from the cache of an inode.
///
/// Context: may sleep; the server is waiting.
///
/// # Safety
///
/// `inode` is a referenced inode of FUSE's, and `inval` valid.
#[export]
unsafe extern "C" fn fuse_iomap_inval(
    inode: *mut bindings::inode,
    inval: *const bindings::fuse_iomap_inval_mappings_out,
) -> c_int {
    // SAFETY: Both are valid by the safety requirements.
    let (inode, inval) = unsafe { (Inode::from_raw(inode), &*inval) };

    from_result(|| {
        notify::invalidate(IomapInode::new(inode).ok_or(EINVAL)?, inval)?;
        Ok(0)
    })
}
