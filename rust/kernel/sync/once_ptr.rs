// SPDX-License-Identifier: GPL-2.0

//! A pointer that is set at most once.

use super::atomic::{
    ordering::{Acquire, Full},
    Atomic, //
};
use crate::{
    error::Result,
    ffi::c_void,
    types::ForeignOwnable, //
};
use core::{marker::PhantomData, ptr};

/// Holds nothing at first, and from some time on an owning pointer, which stays.
///
/// As [`SetOnce`](super::SetOnce), but of the size of a pointer: for what most instances of a
/// structure never need.
///
/// # Examples
///
/// ```
/// use kernel::sync::OncePtr;
///
/// let place: OncePtr<KBox<u32>> = OncePtr::new();
/// assert!(place.as_ref().is_none());
///
/// assert_eq!(*place.get_or_make(|| Ok(KBox::new(42, GFP_KERNEL)?))?, 42);
/// // It has been made.
/// assert_eq!(*place.get_or_make(|| Err(ENOMEM))?, 42);
/// assert_eq!(place.as_ref(), Some(&42));
/// # Ok::<_, Error>(())
/// ```
///
/// # Invariants
///
/// `ptr` is null, or what [`ForeignOwnable::into_foreign`] has returned for a `P` that is owned by
/// this.  Once it is not null, it does not change.
pub struct OncePtr<P: ForeignOwnable> {
    ptr: Atomic<*mut c_void>,
    _owns: PhantomData<P>,
}

impl<P: ForeignOwnable> OncePtr<P> {
    /// Makes one that holds nothing.
    pub const fn new() -> Self {
        // INVARIANT: It is null.
        Self {
            ptr: Atomic::new(ptr::null_mut()),
            _owns: PhantomData,
        }
    }

    /// What it holds.
    ///
    /// Any context.
    #[inline]
    pub fn as_ref(&self) -> Option<P::Borrowed<'_>> {
        let ptr = self.ptr.load(Acquire);

        // SAFETY: By the type invariant it is a `P` that lives as long as `self`, and is only
        // borrowed shared until `self` is dropped.
        (!ptr.is_null()).then(|| unsafe { P::borrow(ptr) })
    }

    /// What it holds, after setting it to what `make` returns if it holds nothing.
    ///
    /// If tasks race, one of them is quicker, and what the others have made is dropped.
    pub fn get_or_make(&self, make: impl FnOnce() -> Result<P>) -> Result<P::Borrowed<'_>> {
        if let Some(there) = self.as_ref() {
            return Ok(there);
        }

        let made = make()?.into_foreign();
        // INVARIANT: If this succeeds, it owns what was made.
        let there = match self.ptr.cmpxchg(ptr::null_mut(), made, Full) {
            Ok(_) => made,
            Err(there) => {
                // SAFETY: It was just made of a `P` and has not been lent to anybody.
                drop(unsafe { P::from_foreign(made) });
                there
            }
        };
        // SAFETY: As in `as_ref`.
        Ok(unsafe { P::borrow(there) })
    }
}

impl<P: ForeignOwnable> Default for OncePtr<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: ForeignOwnable> Drop for OncePtr<P> {
    fn drop(&mut self) {
        let ptr = *self.ptr.get_mut();

        if !ptr.is_null() {
            // SAFETY: By the type invariant it is ours, and nobody borrows from `self` any more.
            drop(unsafe { P::from_foreign(ptr) });
        }
    }
}

// SAFETY: It owns a `P`, or nothing.
unsafe impl<P: ForeignOwnable + Send> Send for OncePtr<P> {}

// SAFETY: A shared reference gives out shared borrows of the `P`, and lets any task put one in,
// which another drops.
unsafe impl<P: ForeignOwnable + Send + Sync> Sync for OncePtr<P> {}
