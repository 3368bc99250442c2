// SPDX-License-Identifier: GPL-2.0

//! Hooks for a connection: what is agreed upon with the server, and what it says unasked.
#![allow(unsafe_code)]

use crate::{
    cache::{Bounds, Pool},
    config,
    counters,
    fuse::{self, IomapInode},
    notify, //
};
use kernel::{
    bindings,
    error::{from_result, to_result},
    ffi::{c_int, c_uint},
    fs::Inode,
    prelude::*,
    seq_file::SeqFile, //
};

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

/// Sets up a mount as the answer to `FUSE_IOMAP_CONFIG` has it, or fails with the error that
/// is the answer: but a server need not know the request.
///
/// Context: may sleep.
///
/// # Safety
///
/// All are valid, the mount has a superblock, and its connection no inodes but the root yet. What
/// lies beyond the `length` bytes of the answer is zero.
#[export]
unsafe extern "C" fn fuse_iomap_configure(
    mount: *mut bindings::fuse_mount,
    offered: *const bindings::fuse_iomap_config_in,
    answer: *const bindings::fuse_iomap_config_out,
    length: u32,
    error: c_int,
) -> c_int {
    // SAFETY: Both are valid by the safety requirements.
    let (offered, answer) = unsafe { (&*offered, &*answer) };

    from_result(|| {
        // SAFETY: By the safety requirements.
        let block_sizes = unsafe { fuse::block_sizes(mount) };
        let config = match to_result(error) {
            Ok(()) => config::parse(offered, answer, length as usize, &block_sizes),
            Err(error) if error == ENOSYS => {
                config::parse(offered, &Default::default(), 0, &block_sizes)
            }
            Err(error) => return Err(error),
        };
        let config = config.map_err(|wrong| {
            pr_warn!("CONFIG reply rejected: {}\n", wrong);
            EINVAL
        })?;
        // SAFETY: By the safety requirements.
        unsafe { fuse::configure(mount, &config) }?;
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

/// Counts a request or notification about iomap, by its opcode or code, and whether it failed.
///
/// Context: any.
///
/// # Safety
///
/// The connection is alive and has iomap on.
#[export]
unsafe extern "C" fn fuse_iomap_count_message(
    conn: *mut bindings::fuse_conn,
    number: u32,
    error: c_int,
) {
    if let Some((all, errors)) = counters::of_message(number) {
        // SAFETY: By the safety requirements.
        unsafe { fuse::count(conn, all) };
        if error != 0 {
            // SAFETY: By the safety requirements.
            unsafe { fuse::count(conn, errors) };
        }
    }
}

/// Shows what has been counted.
///
/// Context: may sleep.
///
/// # Safety
///
/// The connection is alive, has its counters, and `seq` is valid and used by nobody else.
#[export]
unsafe extern "C" fn fuse_iomap_show_counters(
    conn: *mut bindings::fuse_conn,
    seq: *mut bindings::seq_file,
) {
    // SAFETY: By the safety requirements.
    let (seq, pool) = unsafe { (SeqFile::from_raw(seq), fuse::pool(conn)) };
    let usage = pool.map(Pool::usage).unwrap_or_default();

    counters::show(
        seq,
        // SAFETY: The connection has its counters by the safety requirements.
        |counter| unsafe { bindings::fuse_iomap_counted(conn, counter as c_uint) },
        &usage,
    );
}
