// SPDX-License-Identifier: GPL-2.0

//! Completions of writeback, and of direct writes (`struct iomap_ioend`).

use crate::{
    bindings,
    container_of,
    error::{to_result, Error, Result},
    fs::{file::Offset, inode::Inode},
    new_spinlock_irq,
    prelude::*,
    sync::SpinLockIrq, //
};
use core::ptr::NonNull;

/// Writeback of contiguous blocks that has left the device, or failed there.
///
/// Its folios stay under writeback until [`Ioend::finish`], so whoever has one must not lose it.
///
/// # Invariants
///
/// The I/O is complete, and nobody else uses the `struct iomap_ioend` or will free it.  It keeps
/// its inode alive, whose eviction waits for the folios; or which the file of a direct write has.
#[must_use = "the folios are under writeback until it is finished"]
pub struct Ioend(NonNull<bindings::iomap_ioend>);

// SAFETY: By the type invariant nobody else uses it, and nothing in it is of the task that
// submitted the I/O or of the CPU that completed it: `iomap_finish_ioends` is made for being called
// by a work item.
unsafe impl Send for Ioend {}

impl Ioend {
    /// Takes over a completed I/O.
    ///
    /// # Safety
    ///
    /// It must be as the type invariant has it.
    pub(super) unsafe fn from_raw(ioend: NonNull<bindings::iomap_ioend>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(ioend)
    }

    /// Gives it to the C side.
    pub(super) fn into_raw(self) -> NonNull<bindings::iomap_ioend> {
        self.0
    }

    /// The fields, which are not written to until it is finished.
    fn fields(&self) -> &bindings::iomap_ioend {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_ref() }
    }

    /// The inode that was written.
    pub fn inode(&self) -> &Inode {
        // SAFETY: By the type invariant the inode is alive as long as `self`.
        unsafe { Inode::from_raw(self.fields().io_inode) }
    }

    /// Where in the file the data starts, in bytes.
    pub fn offset(&self) -> Offset {
        self.fields().io_offset
    }

    /// Length of the data in bytes, as far as it is inside the file.
    pub fn size(&self) -> u64 {
        self.fields().io_size as u64
    }

    /// Where on the device the data starts, in bytes.
    pub fn addr(&self) -> u64 {
        self.fields().io_sector << bindings::SECTOR_SHIFT
    }

    /// Whether the blocks were unwritten before.
    pub fn is_unwritten(&self) -> bool {
        self.has_flag(bindings::IOMAP_IOEND_UNWRITTEN)
    }

    /// Whether the blocks replace shared ones.
    pub fn is_shared(&self) -> bool {
        self.has_flag(bindings::IOMAP_IOEND_SHARED)
    }

    /// Whether it is a part of a direct write, not writeback.
    pub fn is_direct(&self) -> bool {
        self.has_flag(bindings::IOMAP_IOEND_DIRECT)
    }

    /// Whether it must not be merged with what lies before it.
    pub fn is_boundary(&self) -> bool {
        self.has_flag(bindings::IOMAP_IOEND_BOUNDARY)
    }

    /// Tests one of the flags.
    fn has_flag(&self, flag: u32) -> bool {
        u32::from(self.fields().io_flags) & flag != 0
    }

    /// What the device says.
    pub fn status(&self) -> Result {
        // SAFETY: There are no requirements.
        to_result(unsafe { bindings::blk_status_to_errno(self.fields().io_bio.bi_status) })
    }

    /// The word of the mapping, see [`super::Mapping::with_private`].
    pub fn private(&self) -> usize {
        self.fields().io_private as usize
    }

    /// How many others have been merged into it by [`IoendList::drain`].
    pub fn merged(&self) -> usize {
        let head = &raw const self.fields().io_list;
        let mut count = 0;

        // SAFETY: Only makes a pointer to the next of what is ours.
        let mut link = unsafe { (*head).next };
        while !core::ptr::eq(link, head) {
            count += 1;
            // SAFETY: The list is that of ioends which are merged into this one, and so ours too.
            link = unsafe { (*link).next };
        }
        count
    }

    /// Ends writeback of the folios.  An error is kept for who waits for the data.  If it is a part
    /// of a direct write, ends that, if it is the last one.
    ///
    /// May sleep.
    pub fn finish(self, result: Result) {
        let error = result.map_or_else(Error::to_errno, |()| 0);

        // SAFETY: By the type invariant it is ours to finish, and this consumes it.
        unsafe { bindings::iomap_finish_ioends(self.into_raw().as_ptr(), error) };
    }
}

/// [`Ioend`]s that wait for a task that may sleep.
#[pin_data]
pub struct IoendList {
    #[pin]
    top: SpinLockIrq<Top>,
}

/// A stack of [`Ioend`]s.
///
/// # Invariants
///
/// `io_private` and all else are as they were; each points to the next one with `io_list.next`,
/// the last one to nothing.  All are owned by the stack.
struct Top {
    link: Option<NonNull<bindings::list_head>>,
    /// How many there are.
    count: usize,
}

// SAFETY: By the type invariant the stack owns all that it points to, each of which was an `Ioend`,
// and those may be sent.
unsafe impl Send for Top {}

impl IoendList {
    /// Makes an empty list.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            top <- new_spinlock_irq!(Top { link: None, count: 0 }, "IoendList::top"),
        })
    }

    /// Adds one.  If the list was empty, `first` is called with the inode to see to it that
    /// [`IoendList::drain`] will be.
    ///
    /// Any context.  The list is locked meanwhile, so that the inode, and all that goes with it,
    /// stays until `first` has returned.
    pub fn push(&self, ioend: Ioend, first: impl FnOnce(&Inode)) {
        let mut top = self.top.lock();
        if top.link.is_none() {
            first(ioend.inode());
        }

        let ioend = ioend.into_raw();
        // SAFETY: `ioend` was an `Ioend`, so that it is valid and ours.
        let link = unsafe { &raw mut (*ioend.as_ptr()).io_list };
        // SAFETY: `link` is in what is ours, and `io_list` is used by nobody before `drain`.
        unsafe { (*link).next = top.link.map_or(core::ptr::null_mut(), NonNull::as_ptr) };
        // INVARIANT: It points to the former top.
        top.link = NonNull::new(link);
        top.count += 1;
    }

    /// How many there are, not counting those that are being drained.
    ///
    /// Any context.
    pub fn len(&self) -> usize {
        self.top.lock().count
    }

    /// Whether there are none.
    ///
    /// Any context.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all, in the order of the file, and calls `f` for each after what lies contiguously
    /// behind it has been merged into it.
    ///
    /// May sleep.
    pub fn drain(&self, mut f: impl FnMut(Ioend)) {
        let mut next = {
            let mut top = self.top.lock();

            top.count = 0;
            top.link.take()
        };
        let mut head = bindings::list_head::default();
        let head = &raw mut head;

        // SAFETY: `head` is a local variable.
        unsafe { bindings::INIT_LIST_HEAD(head) };
        while let Some(link) = next {
            // SAFETY: By the invariant of `Top` the link is that of an ioend which is now ours,
            // and points to the next one.
            unsafe {
                next = NonNull::new((*link.as_ptr()).next);
                bindings::list_add(link.as_ptr(), head);
            }
        }

        // SAFETY: The list has ioends that are ours, and nothing else.
        unsafe { bindings::iomap_sort_ioends(head) };
        loop {
            // SAFETY: The head is a local variable.
            let link = unsafe { (*head).next };
            if core::ptr::eq(link, head) {
                break;
            }

            // SAFETY: All entries but the head are in an ioend.
            let ioend = unsafe { container_of!(link, bindings::iomap_ioend, io_list) };
            // SAFETY: The ioend is on the list and ours, as are those that follow it.
            unsafe {
                bindings::list_del_init(link);
                bindings::iomap_ioend_try_merge(ioend, head);
            }
            if let Some(ioend) = NonNull::new(ioend) {
                // INVARIANT: It was pushed as an `Ioend` and is on no list any more.
                f(Ioend(ioend));
            }
        }
    }
}
