// SPDX-License-Identifier: GPL-2.0

//! Maple trees that are read without a lock.
//!
//! A tree has one [`Writer`] and any number of [`Reader`]s, which share it.  What is stored are
//! copies of plain values; they are freed when no reader can be looking at them any more.
//!
//! # What a reader sees
//!
//! Each stored value is kept together with the range that it was stored for, and the range that a
//! reader gets is taken from there.  So the two always belong together, although a reader may
//! look at a node of the tree just while it is being written to:
//!
//! - An entry is never changed.  When a part of its range is replaced, what remains gets entries of
//!   its own, before the writer's method returns.
//! - So between two calls of the writer's methods, each entry in the tree is there for its whole
//!   range and nothing else.
//! - A reader that finds an entry was looking at a node that was in the tree at some time since the
//!   reader began, and the node had the entry in it.  It returns the entry only if that covers the
//!   index.  Then the entry was true when the reader began or has been stored since.
//!
//! It follows that what a call of [`Writer::store`] or [`Writer::erase`] has replaced is not found
//! by a reader that begins after the call.
//!
//! C header: [`include/linux/maple_tree.h`](srctree/include/linux/maple_tree.h)

use crate::{
    alloc::{AllocError, Flags},
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        rcu,
        Arc, //
    },
    types::Opaque,
};
use core::{
    cell::{Cell, UnsafeCell},
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::RangeInclusive,
    ptr::{self, NonNull},
};

/// What is in the tree for a range.
///
/// # Invariants
///
/// `first <= last`.
#[repr(C)]
struct Entry<T> {
    /// For the writer alone, until it hands the entry over to RCU.
    head: UnsafeCell<Head<T>>,
    first: usize,
    last: usize,
    /// Whether it is new or a reader was here, see [`Stored::take_mark`].
    marked: Atomic<bool>,
    /// Whether the entry is in a [`Chain`]; for the writer alone.
    chained: Cell<bool>,
    value: T,
}

/// How an entry is found that is no longer in the tree.
union Head<T> {
    /// The next one in a [`Chain`].
    next: *mut Entry<T>,
    /// For the RCU core.
    rcu: ManuallyDrop<bindings::kvfree_rcu_head>,
}

impl<T: Copy> Entry<T> {
    /// Makes an entry for a range that is not empty.
    fn new(first: usize, last: usize, value: T, flags: Flags) -> Result<KBox<Self>, AllocError> {
        // INVARIANT: By what the caller promises.
        KBox::new(
            Self {
                head: UnsafeCell::new(Head {
                    next: ptr::null_mut(),
                }),
                first,
                last,
                marked: Atomic::new(true),
                chained: Cell::new(false),
                value,
            },
            flags,
        )
    }

    /// Makes an entry for what remains of this one.
    fn part(&self, first: usize, last: usize, flags: Flags) -> Result<KBox<Self>, AllocError> {
        let part = Self::new(first, last, self.value, flags)?;

        part.marked.store(self.marked.load(Relaxed), Relaxed);
        Ok(part)
    }

    /// What the entry says, if it says something of `index`.
    #[inline(always)]
    fn at(&self, index: usize) -> Option<Found<T>> {
        let range = self.first..=self.last;

        range.contains(&index).then_some(Found {
            range,
            value: self.value,
        })
    }
}

/// A value, and the range that it is stored for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T> {
    /// The range.
    pub range: RangeInclusive<usize>,
    /// The value.
    pub value: T,
}

/// Entries that are to be freed.
///
/// # Invariants
///
/// Each entry in the chain is owned by it, or will be once it is out of the tree, and is in no
/// other chain.
struct Chain<T> {
    /// The one that was added last.
    top: *mut Entry<T>,
    /// The one that was added first.
    bottom: *mut Entry<T>,
    count: usize,
}

impl<T> Chain<T> {
    /// Makes an empty one.
    const fn new() -> Self {
        // INVARIANT: There are no entries.
        Self {
            top: ptr::null_mut(),
            bottom: ptr::null_mut(),
            count: 0,
        }
    }

    /// Adds an entry, unless it is in a chain already.
    ///
    /// # Safety
    ///
    /// `entry` points to an entry that is in the tree, which the caller has the writer of.  If it
    /// is not in a chain yet, it becomes this one's: the caller takes it out of the tree before it
    /// frees the chain.
    unsafe fn push(&mut self, entry: NonNull<Entry<T>>) {
        // SAFETY: By the safety requirements the entry is in the tree, and only the writer, which
        // the caller has, frees entries: after it has taken them out.
        let shared = unsafe { entry.as_ref() };
        if shared.chained.replace(true) {
            return;
        }

        // SAFETY: Only the writer looks at this while the entry is not handed over to RCU.
        unsafe { (*shared.head.get()).next = self.top };
        // INVARIANT: As the caller promises; the entry was in no chain.
        self.top = entry.as_ptr();
        if self.bottom.is_null() {
            self.bottom = self.top;
        }
        self.count += 1;
    }

    /// Frees the entries, when no reader can be looking at them any more.
    ///
    /// # Safety
    ///
    /// The entries are not in the tree any more.
    unsafe fn free(self) {
        let mut next = self.top;
        while !next.is_null() {
            let entry = next;
            // SAFETY: The entry is ours by the type invariant and not freed yet, and until below
            // the head is not RCU's.
            let head = unsafe {
                let head = (*entry).head.get();
                next = (*head).next;
                &raw mut (*head).rcu
            };
            // SAFETY: Readers that begin now do not find the entry, by the safety requirements, and
            // nobody else has a pointer to it.  It is a `KBox` without a destructor to run, since
            // there are only entries with a `T` that is `Copy`.  The head is in it and nobody else
            // uses that.
            unsafe { bindings::kvfree_call_rcu(head.cast(), entry.cast()) };
        }
    }
}

/// The tree that a writer and its readers share.
///
/// # Invariants
///
/// - The tree is in RCU mode, and what is in it are pointers to entries that it owns.
/// - Only the one writer changes the tree, or which entries are in it.
/// - Between two calls of the writer's methods, each entry is in the tree at all indices from its
///   `first` to its `last`, and nowhere else.
/// - An entry that a reader can find is not freed before the reader has left its RCU critical
///   section.
#[pin_data]
struct Tree<T> {
    #[pin]
    tree: Opaque<bindings::maple_tree>,
    _owns: PhantomData<Entry<T>>,
}

// SAFETY: The tree itself belongs to no task, and the values in it may go to another one.
unsafe impl<T: Send + Sync> Send for Tree<T> {}

// SAFETY: Readers may look at the tree while the one writer changes it, since it is in RCU
// mode.  They do not use `head` and `chained` of an entry, `marked` is atomic, and the rest is not
// written to while they can find it.  Readers in several tasks share a `T`.
unsafe impl<T: Send + Sync> Sync for Tree<T> {}

impl<T> Tree<T> {
    /// Makes an empty one.
    fn new() -> impl PinInit<Self> {
        // The gaps that the second one keeps track of are of no use here.  But then the nodes are
        // those that processes have in RCU mode, and have room for what is kept of a node: in
        // others that is where there may be a pointer, and `mt_free_walk` takes it for one.
        const FLAGS: u32 = bindings::MT_FLAGS_USE_RCU | bindings::MT_FLAGS_ALLOC_RANGE;

        // INVARIANT: The tree is empty.
        pin_init!(Self {
            // SAFETY: This initialises a maple tree in a pinned place.  Before the place becomes
            // invalid, the writer has emptied the tree or is leaked with what is in there.
            tree <- Opaque::ffi_init(|slot| unsafe { bindings::mt_init_flags(slot, FLAGS) }),
            _owns: PhantomData,
        })
    }

    /// Finds the entry in the tree at `index`.
    fn load(&self, index: usize) -> Option<NonNull<Entry<T>>> {
        // SAFETY: The tree is valid.  The function enters an RCU critical section itself, and does
        // not look at entries.
        let entry = unsafe { bindings::mtree_load(self.tree.get(), index) };

        NonNull::new(entry.cast())
    }

    /// Finds the first entry in the tree from `index` to `last`, and an index behind it, or 0 if it
    /// goes up to the last index that there is.
    fn find(&self, index: usize, last: usize) -> Option<(NonNull<Entry<T>>, usize)> {
        let mut next = index;
        // SAFETY: As in `load`; the other pointer is one to a local variable.
        let entry = unsafe { bindings::mt_find(self.tree.get(), &mut next, last) };

        Some((NonNull::new(entry.cast())?, next))
    }
}

/// Makes an empty tree.
///
/// # Examples
///
/// ```
/// use kernel::maple_tree::rcu;
///
/// let (mut writer, reader) = rcu::new(GFP_KERNEL)?;
///
/// writer.store(10..=99, 'a', GFP_KERNEL)?;
/// assert_eq!(reader.get(9), None);
/// assert_eq!(reader.get(50).map(|found| (found.range, found.value)), Some((10..=99, 'a')));
///
/// // A value goes where it is not replaced.
/// writer.store(40..=59, 'b', GFP_KERNEL)?;
/// assert_eq!(writer.len(), 3);
/// assert_eq!(reader.get(39).map(|found| (found.range, found.value)), Some((10..=39, 'a')));
/// assert_eq!(reader.get(40).map(|found| (found.range, found.value)), Some((40..=59, 'b')));
/// assert_eq!(reader.get(60).map(|found| (found.range, found.value)), Some((60..=99, 'a')));
///
/// writer.erase(0..=69, GFP_KERNEL)?;
/// assert_eq!(reader.get(69), None);
/// assert_eq!(reader.get(70).map(|found| (found.range, found.value)), Some((70..=99, 'a')));
///
/// writer.clear();
/// assert_eq!(reader.get(70), None);
/// # Ok::<(), Error>(())
/// ```
pub fn new<T: Copy + Send + Sync>(flags: Flags) -> Result<(Writer<T>, Reader<T>)> {
    let tree = Arc::pin_init(Tree::new(), flags)?;
    let reader = Reader(tree.clone());

    Ok((Writer { tree, len: 0 }, reader))
}

/// Finds what is stored in a tree, without a lock.
///
/// When its [`Writer`] is gone, the tree is empty.
pub struct Reader<T>(Arc<Tree<T>>);

impl<T> Clone for Reader<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Copy + Send + Sync> Reader<T> {
    /// Returns what is stored at `index`.
    ///
    /// Any context.  While the writer replaces something around `index`, it may be that nothing is
    /// found although there was and will be something.
    #[inline]
    pub fn get(&self, index: usize) -> Option<Found<T>> {
        self.with(index, |entry| entry.at(index))
    }

    /// As [`Reader::get`], and leaves a mark at what it finds, for [`Stored::take_mark`].
    #[inline(always)]
    pub fn get_and_mark(&self, index: usize) -> Option<Found<T>> {
        self.with(index, |entry| {
            // Readers share the mark, so it is written to only if it has to.
            if !entry.marked.load(Relaxed) {
                entry.marked.store(true, Relaxed);
            }
            entry.at(index)
        })
    }

    /// Calls `f` with the entry in the tree at `index`.
    #[inline]
    fn with<R>(&self, index: usize, f: impl FnOnce(&Entry<T>) -> Option<R>) -> Option<R> {
        let _critical_section = rcu::Guard::new();
        let entry = self.0.load(index)?;

        // SAFETY: By the type invariant of `Tree` the entry is not freed in this critical section,
        // and until then nothing but what may be shared is written to.
        f(unsafe { entry.as_ref() })
    }
}

/// Stores values in a tree.
///
/// Methods must not be called with interrupts off.
///
/// # Invariants
///
/// - This is the only writer of the tree.
/// - `len` is the number of entries in the tree.
pub struct Writer<T: Copy + Send + Sync> {
    tree: Arc<Tree<T>>,
    len: usize,
}

impl<T: Copy + Send + Sync> Writer<T> {
    /// The number of ranges that a value is stored for.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Stores a value for a range, in place of what is there.
    ///
    /// What is stored for only partly other indices stays at those.
    ///
    /// May sleep if `flags` allow that.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is empty, and `ENOMEM`; nothing is changed then.
    pub fn store(&mut self, range: RangeInclusive<usize>, value: T, flags: Flags) -> Result {
        if range.is_empty() {
            return Err(EINVAL);
        }
        let (first, last) = range.into_inner();

        self.replace(
            first,
            last,
            Some(Entry::new(first, last, value, flags)?),
            flags,
        )
    }

    /// Removes what is stored for a range.
    ///
    /// May sleep if `flags` allow that.
    ///
    /// # Errors
    ///
    /// As [`Writer::store`].  Without memory there still is [`Writer::clear`].
    pub fn erase(&mut self, range: RangeInclusive<usize>, flags: Flags) -> Result {
        if range.is_empty() {
            return Err(EINVAL);
        }
        let (first, last) = range.into_inner();

        self.replace(first, last, None, flags)
    }

    /// Removes all.
    ///
    /// Does not sleep, and needs no memory.
    pub fn clear(&mut self) {
        self.clear_with(Chain::new());
    }

    /// Returns what is stored at `index`.
    pub fn get(&self, index: usize) -> Option<Found<T>> {
        let entry = self.tree.load(index)?;

        // SAFETY: The entry was just found in the tree. Only a writer frees entries, this is the
        // only one, and it is busy with this.
        unsafe { entry.as_ref() }.at(index)
    }

    /// Finds the first range that contains `index` or is behind it.
    pub fn next(&self, index: usize) -> Option<Stored<'_, T>> {
        let (entry, _) = self.tree.find(index, usize::MAX)?;

        // SAFETY: An entry in the tree is alive, and stays there while the writer is borrowed.
        Some(Stored(unsafe { entry.as_ref() }))
    }

    /// Puts an entry, or none, into the place of what is in the tree from `first` to `last`, which
    /// is the range of the entry and not empty.
    fn replace(
        &mut self,
        first: usize,
        last: usize,
        new: Option<KBox<Entry<T>>>,
        flags: Flags,
    ) -> Result {
        let mut old = Chain::new();
        self.collect(first, last, &mut old);
        if new.is_none() && old.count == 0 {
            // To write nothing where nothing is would take memory as well.
            return Ok(());
        }

        let remains = self
            .remains(first, last, &old, flags)
            .and_then(|remains| self.put(first, last, new, flags).map(|()| remains));
        let remains = match remains {
            Ok(remains) => remains,
            Err(error) => {
                self.take_back(old);
                return Err(error);
            }
        };

        // Now the entries at the ends are to be replaced where they still are.  These are ranges of
        // the tree as they stand, of which only the pointers change, and that needs no memory.
        for part in remains.into_iter().flatten() {
            let (first, last) = (part.first, part.last);

            if self.put(first, last, Some(part), flags).is_err() {
                // So this is never reached.  If it were, nothing of the tree would be trusted.
                self.clear_with(old);
                return Err(ENOMEM);
            }
        }

        self.len -= old.count;
        // SAFETY: Each of the entries was in the tree from `first` to `last` and in what is
        // replaced by `remains`, if anywhere else.
        unsafe { old.free() };
        Ok(())
    }

    /// Makes entries for what remains before and behind a range of the entries that are in it.
    fn remains(
        &self,
        first: usize,
        last: usize,
        old: &Chain<T>,
        flags: Flags,
    ) -> Result<[Option<KBox<Entry<T>>>; 2]> {
        // SAFETY: Entries are added to a chain in the order of their ranges and still in the tree,
        // so these are the lowest and the highest, and alive.
        let (lowest, highest) = unsafe { (old.bottom.as_ref(), old.top.as_ref()) };

        Ok([
            lowest
                .filter(|entry| entry.first < first)
                .map(|entry| entry.part(entry.first, first - 1, flags))
                .transpose()?,
            highest
                .filter(|entry| last < entry.last)
                .map(|entry| entry.part(last + 1, entry.last, flags))
                .transpose()?,
        ])
    }

    /// Writes a pointer to an entry, or none, into the tree, at a range that is not empty.
    ///
    /// The entry belongs to the tree then; on failure it is dropped, and the tree is as before.
    fn put(
        &mut self,
        first: usize,
        last: usize,
        entry: Option<KBox<Entry<T>>>,
        flags: Flags,
    ) -> Result {
        let added = usize::from(entry.is_some());
        let entry = entry.map_or(ptr::null_mut(), KBox::into_raw);

        // SAFETY: The tree is valid, and by the invariants this writer is the only one; so the
        // function may drop the lock of the tree to wait for memory.  What is written is NULL or a
        // pointer to an entry, which is aligned to more than 4 bytes and thus a normal one.
        let result = to_result(unsafe {
            bindings::mtree_store_range(
                self.tree.tree.get(),
                first,
                last,
                entry.cast(),
                flags.as_raw(),
            )
        });
        if let Err(error) = result {
            if !entry.is_null() {
                // SAFETY: It was made of a box, and the function has failed, so that it is not in
                // the tree and no reader has seen it.
                drop(unsafe { KBox::from_raw(entry) });
            }
            return Err(error);
        }

        // INVARIANT: What has been overwritten is counted by the caller.
        self.len += added;
        Ok(())
    }

    /// Adds all entries from `first` to `last` to a chain, as they are found in the tree.
    fn collect(&self, first: usize, last: usize, chain: &mut Chain<T>) {
        let mut index = first;
        while let Some((entry, next)) = self.tree.find(index, last) {
            // SAFETY: The entry is in the tree, and the callers take it out or take it back.
            unsafe { chain.push(entry) };

            if next == 0 || next > last {
                break;
            }
            index = next;
        }
    }

    /// Takes back what [`Writer::chain`] has done.
    fn take_back(&self, chain: Chain<T>) {
        let mut next = chain.top;
        while let Some(entry) = NonNull::new(next) {
            // SAFETY: The entry is still in the tree, where only the writer looks at this.
            unsafe {
                entry.as_ref().chained.set(false);
                next = (*entry.as_ref().head.get()).next;
            }
        }
    }

    /// Removes all, and frees what is in `chain`, too.
    fn clear_with(&mut self, mut chain: Chain<T>) {
        self.collect(0, usize::MAX, &mut chain);
        // INVARIANT: The tree is empty below.
        self.len = 0;

        // SAFETY: The tree is valid.  In RCU mode its nodes are freed when no reader can be looking
        // at them any more, and what is left is an empty tree.
        unsafe { bindings::mtree_destroy(self.tree.tree.get()) };
        // SAFETY: All entries of the chain were in the tree, and there is nothing in that any more.
        unsafe { chain.free() };
    }
}

impl<T: Copy + Send + Sync> Drop for Writer<T> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A value in a tree, as its [`Writer`] sees it.
pub struct Stored<'a, T>(&'a Entry<T>);

impl<T: Copy> Stored<'_, T> {
    /// The range that the value is stored for.
    pub fn range(&self) -> RangeInclusive<usize> {
        self.0.first..=self.0.last
    }

    /// The value.
    pub fn value(&self) -> T {
        self.0.value
    }

    /// Returns whether this was stored, or [`Reader::get_and_mark`] has found it, since the last
    /// call.
    ///
    /// So one can make room where nothing has happened for long.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::maple_tree::rcu;
    ///
    /// let (mut writer, reader) = rcu::new(GFP_KERNEL)?;
    /// writer.store(0..=9, 1, GFP_KERNEL)?;
    /// writer.store(20..=29, 2, GFP_KERNEL)?;
    ///
    /// let first = writer.next(0).ok_or(ENOENT)?;
    /// assert_eq!((first.range(), first.value()), (0..=9, 1));
    /// let second = writer.next(10).ok_or(ENOENT)?;
    /// assert_eq!((second.range(), second.value()), (20..=29, 2));
    /// assert!(writer.next(30).is_none());
    ///
    /// // Both are new.
    /// assert!(first.take_mark() && second.take_mark());
    /// assert!(!first.take_mark() && !second.take_mark());
    ///
    /// reader.get_and_mark(25);
    /// assert!(!first.take_mark() && second.take_mark());
    /// # Ok::<(), Error>(())
    /// ```
    pub fn take_mark(&self) -> bool {
        let was = self.0.marked.load(Relaxed);

        if was {
            self.0.marked.store(false, Relaxed);
        }
        was
    }
}
