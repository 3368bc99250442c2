// SPDX-License-Identifier: GPL-2.0

//! Shrinkers: caches that give memory back when there is little of it.
//!
//! C header: [`include/linux/shrinker.h`](srctree/include/linux/shrinker.h)

use crate::{
    bindings,
    ffi::c_ulong,
    prelude::*,
    types::ForeignOwnable, //
};
use core::{marker::PhantomData, ptr::NonNull};

/// A cache that can be made smaller.
///
/// The methods are called by tasks that reclaim memory, several at the same time.  So they must not
/// wait for a lock that somebody holds while allocating memory, nor allocate memory themselves.
///
/// # Examples
///
/// ```
/// use kernel::{
///     mm::shrinker::{Registration, Scan, Shrinker},
///     sync::{
///         atomic::{Atomic, Relaxed},
///         Arc,
///         ArcBorrow, //
///     },
/// };
///
/// /// Objects that are easy to come by.
/// struct Pebbles(Atomic<usize>);
///
/// impl Shrinker for Pebbles {
///     type Data = Arc<Self>;
///
///     fn count(pebbles: ArcBorrow<'_, Self>) -> usize {
///         pebbles.0.load(Relaxed)
///     }
///
///     fn scan(pebbles: ArcBorrow<'_, Self>, scan: &mut Scan<'_>) -> Option<usize> {
///         let freed = scan.wanted().min(pebbles.0.load(Relaxed));
///
///         pebbles.0.fetch_sub(freed, Relaxed);
///         Some(freed)
///     }
/// }
///
/// let pebbles = Arc::new(Pebbles(Atomic::new(1000usize)), GFP_KERNEL)?;
/// let shrinker = Registration::<Pebbles>::new(c"pebbles", pebbles.clone())?;
/// # drop(shrinker);
/// # Ok::<(), Error>(())
/// ```
pub trait Shrinker {
    /// What the methods are called with.
    type Data: ForeignOwnable + Send + Sync;

    /// Returns how many objects could be freed, about.
    ///
    /// This is to be quick.
    fn count(data: <Self::Data as ForeignOwnable>::Borrowed<'_>) -> usize;

    /// Frees objects, about as many as are wanted, and returns how many.
    ///
    /// `None` says that there is nothing to be had now, because of locks for example.
    fn scan(
        data: <Self::Data as ForeignOwnable>::Borrowed<'_>,
        scan: &mut Scan<'_>,
    ) -> Option<usize>;
}

/// What a cache is asked for.
pub struct Scan<'a>(&'a mut bindings::shrink_control);

impl Scan<'_> {
    /// How many objects are to be looked at, and freed if they can be.
    pub fn wanted(&self) -> usize {
        self.0.nr_to_scan
    }

    /// Says how many objects have been looked at, if it is not the number that was wanted.
    pub fn set_scanned(&mut self, objects: usize) {
        // With 0 there would be no end of calls.
        self.0.nr_scanned = objects.max(1);
    }
}

/// A shrinker that memory management knows of.
///
/// Dropping it may sleep, and waits for calls of its methods.
///
/// # Invariants
///
/// The shrinker is registered with the callbacks of `T`, and its private data is a `T::Data` that
/// it owns.
pub struct Registration<T: Shrinker> {
    shrinker: NonNull<bindings::shrinker>,
    _owns: PhantomData<T::Data>,
}

// SAFETY: A registration belongs to no task, and the data may be dropped by any.
unsafe impl<T: Shrinker> Send for Registration<T> {}

// SAFETY: A registration has no method that takes a shared reference; the data is shared by the
// callbacks, which get it borrowed.
unsafe impl<T: Shrinker> Sync for Registration<T> {}

impl<T: Shrinker> Registration<T> {
    /// Registers a shrinker; the name is for debugfs.
    ///
    /// May sleep.
    pub fn new(name: &CStr, data: T::Data) -> Result<Self> {
        // SAFETY: The format has one argument, a string, and so has the call.
        let shrinker =
            unsafe { bindings::shrinker_alloc(0, c"%s".as_char_ptr(), name.as_char_ptr()) };
        let shrinker = NonNull::new(shrinker).ok_or(ENOMEM)?;

        // SAFETY: The shrinker is allocated and not registered, so nobody else uses it.
        unsafe {
            let shrinker = shrinker.as_ptr();

            (*shrinker).count_objects = Some(Self::count_objects);
            (*shrinker).scan_objects = Some(Self::scan_objects);
            (*shrinker).private_data = data.into_foreign();
            bindings::shrinker_register(shrinker);
        }

        // INVARIANT: Just registered, with all of that.
        Ok(Self {
            shrinker,
            _owns: PhantomData,
        })
    }

    /// `shrinker.count_objects`.
    ///
    /// # Safety
    ///
    /// Memory management calls this for a shrinker of a [`Registration`].
    unsafe extern "C" fn count_objects(
        shrinker: *mut bindings::shrinker,
        _sc: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: While callbacks run, the registration is not dropped, and its private data is a
        // `T::Data` by the type invariant, which is only borrowed as shared.
        let data = unsafe { T::Data::borrow((*shrinker).private_data) };

        match T::count(data) {
            0 => SHRINK_EMPTY,
            // The higher numbers have a meaning.
            count => count.min(SHRINK_EMPTY - 1),
        }
    }

    /// `shrinker.scan_objects`.
    ///
    /// # Safety
    ///
    /// Memory management calls this for a shrinker of a [`Registration`], with its own `sc`.
    unsafe extern "C" fn scan_objects(
        shrinker: *mut bindings::shrinker,
        sc: *mut bindings::shrink_control,
    ) -> c_ulong {
        // SAFETY: As in `count_objects`, and `sc` is ours for the call.
        let (data, scan) = unsafe { (T::Data::borrow((*shrinker).private_data), &mut *sc) };

        match T::scan(data, &mut Scan(scan)) {
            Some(freed) => freed.min(SHRINK_EMPTY - 1),
            None => SHRINK_STOP,
        }
    }
}

// CAST: The two highest numbers, which C writes as complements.
const SHRINK_STOP: c_ulong = bindings::SHRINK_STOP as c_ulong;
const SHRINK_EMPTY: c_ulong = bindings::SHRINK_EMPTY as c_ulong;

impl<T: Shrinker> Drop for Registration<T> {
    fn drop(&mut self) {
        let shrinker = self.shrinker.as_ptr();

        // SAFETY: The shrinker is registered by the type invariant, and not freed yet.
        let data = unsafe { (*shrinker).private_data };
        // SAFETY: As above.  This waits for callbacks that run, and there are none later.
        unsafe { bindings::shrinker_free(shrinker) };
        // SAFETY: By the type invariant this is a `T::Data`, and nobody borrows it any more.
        drop(unsafe { T::Data::from_foreign(data) });
    }
}
