// SPDX-License-Identifier: GPL-2.0

//! Setting up a connection, and tearing it down.
#![allow(unsafe_code)]

use crate::{
    cache::{Bounds, Pool},
    config::Config, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release}, //
};

/// Sets up a connection as its server wants it.
///
/// May sleep.
///
/// # Safety
///
/// The connection has just accepted iomap: it has no inodes in iomap mode yet.
pub(crate) unsafe fn configure(conn: *mut bindings::fuse_conn, config: &Config) -> Result {
    let pool = match config.cache_bytes {
        0 => core::ptr::null_mut(),
        bytes => KBox::into_raw(KBox::new(Pool::new(Bounds::of_inodes(bytes))?, GFP_KERNEL)?),
    };

    // SAFETY: By the safety requirements nobody else uses these fields yet.
    unsafe {
        (*conn).iomap_state.extensions = config.extensions.bits();
        pool_ptr(conn).store(pool, Release);
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
