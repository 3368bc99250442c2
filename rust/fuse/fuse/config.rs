// SPDX-License-Identifier: GPL-2.0

//! Setting up a connection, and tearing it down.
#![allow(unsafe_code)]

use crate::{
    cache::{Bounds, Pool},
    config::Config, //
};
use kernel::{bindings, prelude::*};

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
        (*conn).iomap_state.cache_pool = pool.cast();
    }
    Ok(())
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
    let pool = unsafe {
        let pool = (*conn).iomap_state.cache_pool.cast::<Pool>();
        (*conn).iomap_state.cache_pool = core::ptr::null_mut();
        pool
    };

    if !pool.is_null() {
        // SAFETY: `configure` has made it of a box, and it is not used any more.
        drop(unsafe { KBox::from_raw(pool) });
    }
}
