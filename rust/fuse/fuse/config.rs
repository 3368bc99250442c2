// SPDX-License-Identifier: GPL-2.0

//! Setting up a connection, and tearing it down.
#![allow(unsafe_code)]

use crate::{
    cache::{Bounds, Pool},
    config::Config, //
};
use core::ops::RangeInclusive;
use kernel::{
    bindings,
    fs::BlockDevice,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release}, //
};

/// The block sizes that a mount can have, given the devices that are known by now.
///
/// May sleep.
///
/// # Safety
///
/// The mount is valid and has a superblock.
pub(crate) unsafe fn block_sizes(mount: *mut bindings::fuse_mount) -> RangeInclusive<u32> {
    // SAFETY: The mount is valid by the safety requirements, and so are its connection, its
    // superblock, and the device of that, if any.
    let (mut min, max) = unsafe {
        let device = (*(*mount).sb).s_bdev;
        let registered = bindings::fuse_iomap_logical_block_size((*mount).fc);

        if device.is_null() {
            (registered, bindings::mapping_max_folio_size_supported())
        } else {
            // It is the block size of the device's own page cache, too.
            let logical = BlockDevice::from_raw(device).logical_block_size();
            (registered.max(logical), PAGE_SIZE)
        }
    };

    min = min.max(512);
    min..=u32::try_from(max).unwrap_or(u32::MAX)
}

/// Sets up a mount and its connection as the server wants them.
///
/// May sleep.
///
/// # Safety
///
/// The connection has just accepted iomap: nothing but its root has been looked at. The mount is
/// valid and has a superblock, and what `config` says has been checked for it.
pub(crate) unsafe fn configure(mount: *mut bindings::fuse_mount, config: &Config) -> Result {
    // SAFETY: The mount is valid by the safety requirements.
    let (conn, sb) = unsafe { ((*mount).fc, (*mount).sb) };
    let pool = match config.cache_bytes {
        0 => core::ptr::null_mut(),
        bytes => KBox::into_raw(KBox::new(Pool::new(Bounds::of_inodes(bytes))?, GFP_KERNEL)?),
    };

    // SAFETY: By the safety requirements nobody else uses these fields yet.
    unsafe {
        (*conn).iomap_state.extensions = config.extensions.bits();
        pool_ptr(conn).store(pool, Release);
    }
    // SAFETY: By the safety requirements.
    unsafe { set_up_super(sb, config) }
}

/// Sets what a superblock says of its filesystem.
///
/// # Safety
///
/// As for [`configure`], for this superblock.
unsafe fn set_up_super(sb: *mut bindings::super_block, config: &Config) -> Result {
    // SAFETY: By the safety requirements the superblock is valid, and these fields of it, which
    // are read without locks, are of no use to anybody before there are files.
    unsafe {
        if let Some(bytes) = config.block_size {
            if (*sb).s_bdev.is_null() {
                (*sb).s_blocksize = bytes as usize;
                // CAST: It is below 32.
                (*sb).s_blocksize_bits = bytes.ilog2() as u8;
            // CAST: It is at most a page.
            } else if bindings::sb_set_blocksize(sb, bytes as i32) == 0 {
                return Err(EINVAL);
            }
        }
        if let Some(name) = config.name {
            (*sb).s_id = name;
        }
        if let Some((uuid, length)) = config.uuid {
            (*sb).s_uuid.b = uuid;
            (*sb).s_uuid_len = length;
        }
        if let Some(links) = config.max_links {
            (*sb).s_max_links = links;
        }
        if let Some(times) = config.times {
            (*sb).s_time_gran = times.granularity;
            (*sb).s_time_min = times.first;
            (*sb).s_time_max = times.last;
        }
        if let Some(bytes) = config.max_bytes {
            (*sb).s_maxbytes = bytes;
        }
    }
    Ok(())
}

/// Where the pool of a connection is kept.
///
/// # Safety
///
/// The connection is alive for `'a`.
unsafe fn pool_ptr<'a>(conn: *mut bindings::fuse_conn) -> &'a Atomic<*mut Pool> {
    // SAFETY: The connection is alive by the safety requirements, and this field of it is only
    // accessed through this function.
    unsafe { Atomic::from_ptr((&raw mut (*conn).iomap_state.cache_pool).cast()) }
}

/// What the mapping caches of a connection share, unless nothing is to be cached, or it is not set
/// up yet.
///
/// # Safety
///
/// The connection is alive and keeps its pool for `'a`.
pub(crate) unsafe fn pool<'a>(conn: *mut bindings::fuse_conn) -> Option<&'a Pool> {
    // SAFETY: By the safety requirements; `configure` has made it of a box.
    unsafe { pool_ptr(conn).load(Acquire).as_ref() }
}

/// Undoes [`configure`].
///
/// May sleep.
///
/// # Safety
///
/// The connection's inodes are gone.
pub(crate) unsafe fn forget_config(conn: *mut bindings::fuse_conn) {
    // SAFETY: By the safety requirements nobody else uses the pool any more.
    let pool = unsafe { pool_ptr(conn).xchg(core::ptr::null_mut(), Relaxed) };

    if !pool.is_null() {
        // SAFETY: `configure` has made it of a box, and it is not used any more.
        drop(unsafe { KBox::from_raw(pool) });
    }
}
