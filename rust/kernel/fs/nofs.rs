// SPDX-License-Identifier: GPL-2.0

//! Allocations that must not end up in a filesystem.
//!
//! C header: [`include/linux/sched/mm.h`](srctree/include/linux/sched/mm.h)

use crate::{bindings, ffi::c_uint, types::NotThreadSafe};

/// While one exists, memory that this task allocates is not reclaimed from filesystems.
///
/// Scopes nest, and have to end in the reverse order.
#[must_use = "the scope ends when this is dropped"]
pub struct NofsScope {
    flags: c_uint,
    // The flag is the task's.
    _not_send: NotThreadSafe,
}

impl NofsScope {
    /// Starts a scope (`memalloc_nofs_save`).
    #[expect(clippy::new_without_default, reason = "it has an effect")]
    pub fn new() -> Self {
        Self {
            // SAFETY: There are no requirements.
            flags: unsafe { bindings::memalloc_nofs_save() },
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for NofsScope {
    fn drop(&mut self) {
        // SAFETY: The flags are those that `memalloc_nofs_save` returned to this task.
        unsafe { bindings::memalloc_nofs_restore(self.flags) };
    }
}
