// SPDX-License-Identifier: GPL-2.0

//! File I/O on block mappings: fs/iomap.
//!
//! A filesystem says where a range of a file lies on a block device, and fs/iomap moves the data:
//! this module mirrors its interface, name by name and contract by contract, as far as it has a
//! user.
//!
//! [`Operations`] is what a filesystem implements to have its files read, [`WriteOperations`] and
//! [`WritebackOperations`] what it adds to have them written.  [`AddressSpaceOperations`] is the
//! page cache's side of a file; [`file_buffered_write`], [`page_mkwrite`], [`zero_range`] and
//! [`unshare_range`] make it dirty; [`file_direct_read`] and [`file_direct_write`] go past it, for
//! which there is [`DirectOperations`]; [`fiemap`], [`seek_hole`] and [`seek_data`] report on
//! mappings.  Files are swapped to with [`SwapOperations`].
//!
//! # Devices
//!
//! fs/iomap keeps plain pointers to block devices, in mappings and in the I/O that it submits.  A
//! [`Mapping`] therefore borrows its device from the inode: [`Operations::begin`] can return a
//! device only if that lives as long as the inode does, and I/O in flight keeps the inode (its
//! folios are locked or under writeback until then, and eviction waits for them).
//!
//! # Units and errors
//!
//! All positions, lengths and addresses are in bytes: a position in a file is an [`Offset`], which
//! is not negative here, a length or an address a `u64`.  An error that a filesystem returns is
//! what the caller of the system call gets, but for that of a device and of writing back, which
//! come through the state of folios and the page cache's error sequence.  A filesystem may return
//! any error; two have a meaning of their own: `ENOTBLK` sends direct I/O through the page cache,
//! and `EAGAIN` is right where [`OpFlag::NoWait`] forbids to wait.
//!
//! # Context
//!
//! [`Operations::begin`] and [`Operations::end`] are called with these locks held:
//!
//! - for reading through the page cache, those of folios in the range, and `invalidate_lock`
//!   shared;
//! - for a page fault that writes, that of the folio;
//! - for writing, zeroing and unsharing in the page cache, `i_rwsem` exclusively, which the
//!   functions want to see; no folio yet;
//! - for direct I/O, `i_rwsem`, as the caller has taken it.
//!
//! [`WriteOperations::is_valid`] has the lock of a folio, and so have
//! [`WritebackOperations::map_writeback`] and [`WritebackOperations::discard`], whose folio is
//! under writeback, so that there is no reclaim into filesystems.
//! [`WritebackOperations::complete`] is called from any context, also that of an interrupt; of
//! [`DirectOperations::end_io`] see there.
//!
//! So an implementation must not touch the page cache of the inode that it is called for.
//!
//! # Examples
//!
//! A filesystem in which each file is one piece of a device.  It can be read, through the page
//! cache and by mapping it, and asked for its extents:
//!
//! ```
//! use kernel::{
//!     fs::{iomap, BlockDevice, Inode, Offset},
//!     prelude::*, //
//! };
//!
//! /// The size of a block, in bytes.
//! const BLOCK: u64 = 4096;
//!
//! /// Returns the device of an inode and where on it the file starts, in bytes.
//! fn place(_inode: &Inode) -> Result<(&BlockDevice, u64)> {
//!     // ...
//! #   Err(ENODATA)
//! }
//!
//! struct Flat;
//!
//! impl iomap::Operations for Flat {
//!     fn begin<'a>(
//!         inode: &'a Inode,
//!         _pos: Offset,
//!         _length: u64,
//!         _flags: iomap::OpFlags,
//!     ) -> Result<iomap::Mappings<'a>> {
//!         let (device, addr) = place(inode)?;
//!         // Readahead and reports do not go beyond the size, but whole blocks are read.
//!         let size = inode.size().unsigned_abs().next_multiple_of(BLOCK);
//!
//!         let mapping = iomap::Mapping::new(0, size, iomap::Kind::Mapped { device, addr });
//!         Ok(mapping.ok_or(EIO)?.into())
//!     }
//! }
//!
//! /// For the `i_mapping` of each inode.
//! static FLAT_AOPS: iomap::AddressSpaceOperations<Flat> = iomap::AddressSpaceOperations::new();
//! # let _ = &FLAT_AOPS;
//! ```
//!
//! What a mapping is made of is checked when it is made, and whether it answers the question when
//! it is used:
//!
//! ```
//! use kernel::fs::iomap::{Kind, Mapping};
//!
//! let hole = Mapping::new(4096, 8192, Kind::Hole).ok_or(EINVAL)?;
//! assert!(hole.contains(4096) && hole.contains(12287));
//! assert!(!hole.contains(0) && !hole.contains(12288));
//!
//! // Nothing is not a mapping, and nothing is before the start of a file.
//! assert!(Mapping::new(4096, 0, Kind::Hole).is_none());
//! assert!(Mapping::new(-4096, 4096, Kind::Hole).is_none());
//!
//! // One that goes beyond the largest offset ends there.
//! let rest = Mapping::new(4096, u64::MAX, Kind::Delalloc).ok_or(EINVAL)?;
//! assert!(rest.contains(i64::MAX - 1) && !rest.contains(i64::MAX));
//! # Ok::<(), Error>(())
//! ```
//!
//! C header: [`include/linux/iomap.h`](srctree/include/linux/iomap.h)

use crate::{
    alloc::{flags::*, KBox},
    bindings,
    error::{code::EIO, code::EOPNOTSUPP, from_result, Result},
    ffi::{c_int, c_uint, c_void},
    fs::{bdev::BlockDevice, file::Offset, inode::Inode},
    impl_flags,
    page::PAGE_SIZE, //
};
use core::{
    marker::PhantomData,
    ops::{Deref, DerefMut}, //
};

mod buffered;
pub use self::buffered::AddressSpaceOperations;

mod direct;
pub use self::direct::{
    file_direct_read,
    file_direct_write,
    file_direct_write_queued,
    DirectFlag,
    DirectFlags,
    DirectOperations,
    Submitted,
    WrittenFlag,
    WrittenFlags, //
};

mod ioend;
pub use self::ioend::{Ioend, IoendList};

mod report;
pub use self::report::{fiemap, seek_data, seek_hole};

mod swapfile;
pub use self::swapfile::SwapOperations;

mod write;
pub use self::write::{
    file_buffered_write,
    page_mkwrite,
    truncate_page,
    unshare_range,
    zero_range,
    WriteOperations, //
};

mod writeback;
pub use self::writeback::WritebackOperations;

impl_flags!(
    /// What an iteration is for: `IOMAP_WRITE` and so on.  None of them means a read.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct OpFlags(u32);

    /// One of [`OpFlags`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum OpFlag {
        /// Writing: blocks must be allocated.
        Write = bindings::IOMAP_WRITE,
        /// Zeroing: holes may be skipped.
        Zero = bindings::IOMAP_ZERO,
        /// Reporting the state of extents, no data is touched.
        Report = bindings::IOMAP_REPORT,
        /// A page fault.
        Fault = bindings::IOMAP_FAULT,
        /// Direct I/O.
        Direct = bindings::IOMAP_DIRECT,
        /// The caller must not block.
        NoWait = bindings::IOMAP_NOWAIT,
        /// Only overwrites of written blocks are allowed.
        OverwriteOnly = bindings::IOMAP_OVERWRITE_ONLY,
        /// Shared blocks are to be unshared.
        Unshare = bindings::IOMAP_UNSHARE,
        /// The write must not be torn.
        Atomic = bindings::IOMAP_ATOMIC,
        /// Folios are dropped from the page cache after use.
        DontCache = bindings::IOMAP_DONTCACHE,
    }
);

impl_flags!(
    /// Properties of a mapping: `IOMAP_F_NEW` and so on.
    #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
    pub struct MapFlags(u32);

    /// One of [`MapFlags`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum MapFlag {
        /// Just allocated: what is not written has to be zeroed.
        New = bindings::IOMAP_F_NEW,
        /// Metadata needed to find the data is not on disk yet.
        Dirty = bindings::IOMAP_F_DIRTY,
        /// The blocks have other owners.
        Shared = bindings::IOMAP_F_SHARED,
        /// Made of several extents.
        Merged = bindings::IOMAP_F_MERGED,
        /// I/O must not be merged with that of the mapping before.
        Boundary = bindings::IOMAP_F_BOUNDARY,
        /// The device writes the range in one piece, or not at all.
        AtomicBio = bindings::IOMAP_F_ATOMIC_BIO,
        /// Set by fs/iomap: the operation changed the size of the file.
        SizeChanged = bindings::IOMAP_F_SIZE_CHANGED,
        /// Set by fs/iomap: the mapping was found to be no longer true.
        Stale = bindings::IOMAP_F_STALE,
    }
);

/// What a range of a file is made of: `iomap.type` with what belongs to each type.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// No blocks; reads as zeroes.
    Hole,
    /// Space is reserved but has no address; reads as zeroes.
    Delalloc,
    /// Blocks with data, at `addr` bytes on the device.
    Mapped {
        /// The device.
        device: &'a BlockDevice,
        /// Where on the device, in bytes.
        addr: u64,
    },
    /// Blocks at `addr` bytes on the device that read as zeroes.
    Unwritten {
        /// The device.
        device: &'a BlockDevice,
        /// Where on the device, in bytes.
        addr: u64,
    },
    /// The data is in the inode: see [`Mapping::with_inline_data`].
    Inline,
}

/// Data that a filesystem keeps in an inode, and room for what is written to it: a page, since
/// there is no more.
pub struct InlineData([u8; PAGE_SIZE]);

impl InlineData {
    /// Makes room with zeroes in it.
    ///
    /// May sleep.
    pub fn new() -> Result<KBox<Self>> {
        let data = KBox::new_uninit(GFP_KERNEL | __GFP_ZERO)?;

        // SAFETY: Any bytes will do, and they are zeroes.
        Ok(unsafe { data.assume_init() })
    }
}

impl Deref for InlineData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for InlineData {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// One mapping (`struct iomap`), as a filesystem makes it.
///
/// # Invariants
///
/// `length` is not zero, and `offset + length` is an [`Offset`].  fs/iomap warns about anything
/// else (`iomap_iter_done`).
pub struct Mapping<'a> {
    offset: Offset,
    length: u64,
    kind: Kind<'a>,
    flags: MapFlags,
    private: usize,
    cookie: u64,
    inline: Option<KBox<InlineData>>,
}

impl<'a> Mapping<'a> {
    /// Makes a mapping of `length` bytes from `offset`.
    ///
    /// A mapping that goes beyond the largest [`Offset`] ends there.  There is none of no length
    /// or before the start of the file.
    #[inline]
    pub fn new(offset: Offset, length: u64, kind: Kind<'a>) -> Option<Self> {
        let start = u64::try_from(offset).ok()?;
        let end = start.saturating_add(length).min(Offset::MAX.unsigned_abs());
        let length = end.checked_sub(start)?;

        // INVARIANT: Checked here: `end` is no larger than `Offset::MAX`.
        (length > 0).then_some(Self {
            offset,
            length,
            kind,
            flags: MapFlags::default(),
            private: 0,
            cookie: 0,
            inline: None,
        })
    }

    /// Adds the data of a [`Kind::Inline`] mapping, without which it can only be reported.
    ///
    /// Writes change it, and [`Operations::end`] gets it to store it.
    #[inline]
    #[must_use]
    pub fn with_inline_data(mut self, data: KBox<InlineData>) -> Self {
        self.inline = Some(data);
        self
    }

    /// Adds properties.
    #[inline]
    #[must_use]
    pub fn with_flags(mut self, flags: MapFlags) -> Self {
        self.flags |= flags;
        self
    }

    /// Adds a word for the filesystem itself, which [`Operations::end`] gets back.
    #[inline]
    #[must_use]
    pub fn with_private(mut self, word: usize) -> Self {
        self.private = word;
        self
    }

    /// Adds what [`WriteOperations::is_valid`] is asked about (`validity_cookie`).
    #[inline]
    #[must_use]
    pub fn with_cookie(mut self, cookie: u64) -> Self {
        self.cookie = cookie;
        self
    }

    /// Whether the mapping has something to say about `pos`.
    #[inline]
    pub fn contains(&self, pos: Offset) -> bool {
        let offset = self.offset.unsigned_abs();

        u64::try_from(pos)
            .ok()
            .and_then(|pos| pos.checked_sub(offset))
            .is_some_and(|distance| distance < self.length)
    }

    /// Writes the mapping where fs/iomap wants it, with what it owns.
    #[inline]
    fn fill(self, iomap: &mut bindings::iomap) {
        let (kind, device, addr) = match self.kind {
            Kind::Hole => (bindings::IOMAP_HOLE, None, NULL_ADDR),
            Kind::Delalloc => (bindings::IOMAP_DELALLOC, None, NULL_ADDR),
            Kind::Mapped { device, addr } => (bindings::IOMAP_MAPPED, Some(device), addr),
            Kind::Unwritten { device, addr } => (bindings::IOMAP_UNWRITTEN, Some(device), addr),
            Kind::Inline => (bindings::IOMAP_INLINE, None, NULL_ADDR),
        };

        iomap.offset = self.offset;
        iomap.length = self.length;
        // CAST: The types are 0 to 4.
        iomap.type_ = kind as u16;
        // CAST: The flags are bits 0 to 15.
        iomap.flags = u32::from(self.flags) as u16;
        iomap.addr = addr;
        iomap.bdev = device.map_or(core::ptr::null_mut(), BlockDevice::as_ptr);
        iomap.private = self.private as *mut c_void;
        iomap.validity_cookie = self.cookie;
        // The C side checks that what it is told of the length is in one page: an allocation of
        // this size is a page.
        iomap.inline_data = self
            .inline
            .map_or(core::ptr::null_mut(), |data| KBox::into_raw(data).cast());
    }
}

/// What [`Operations::begin`] answers.
pub struct Mappings<'a> {
    /// What to work on.
    pub target: Mapping<'a>,
    /// Where a write finds the data that it does not overwrite, if that is not in `target`.
    pub source: Option<Mapping<'a>>,
}

impl<'a> From<Mapping<'a>> for Mappings<'a> {
    #[inline]
    fn from(target: Mapping<'a>) -> Self {
        Self {
            target,
            source: None,
        }
    }
}

/// `IOMAP_NULL_ADDR`: there is no address.
const NULL_ADDR: u64 = u64::MAX;

/// What is left of a mapping when fs/iomap has done with it.
pub struct Finished<'a>(&'a bindings::iomap);

impl Finished<'_> {
    /// Start of the mapping in the file, in bytes.
    #[inline]
    pub fn offset(&self) -> Offset {
        self.0.offset
    }

    /// Length of the mapping, in bytes.
    #[inline]
    pub fn length(&self) -> u64 {
        self.0.length
    }

    /// Where on its device the mapping is, in bytes, or all-ones.
    pub fn addr(&self) -> u64 {
        self.0.addr
    }

    /// `IOMAP_HOLE` and so on.
    pub fn raw_type(&self) -> u16 {
        self.0.type_
    }

    /// The properties, with those that fs/iomap has added.
    #[inline]
    pub fn flags(&self) -> MapFlags {
        MapFlags(u32::from(self.0.flags))
    }

    /// Whether the data is in the inode.
    #[inline]
    pub fn is_inline(&self) -> bool {
        u32::from(self.0.type_) == bindings::IOMAP_INLINE
    }

    /// What was given to [`Mapping::with_inline_data`], with what was written to it.
    pub fn inline_data(&self) -> Option<&InlineData> {
        // SAFETY: `Mapping::fill` has put it there or null, and nobody writes to it any more.
        unsafe { self.0.inline_data.cast::<InlineData>().as_ref() }
    }

    /// The word given to [`Mapping::with_private`].
    #[inline]
    pub fn private(&self) -> usize {
        self.0.private as usize
    }
}

/// What a filesystem implements: `struct iomap_ops`.
///
/// This is no `#[vtable]`, which would tie it to a crate with `module!`: a filesystem that is
/// mostly written in C can implement this part of it in Rust.
pub trait Operations: Sized + 'static {
    /// Returns the mapping at `pos`, for up to `length` bytes (it may be longer).
    ///
    /// It has to contain `pos`; if it does not, the operation fails with `EIO`.  The same is true
    /// of the source, if there is one.
    ///
    /// May sleep, unless `flags` have [`OpFlag::NoWait`].  Called with locked folios for reads and
    /// page faults, and then with `memalloc_nofs` if it is readahead.
    fn begin<'a>(
        inode: &'a Inode,
        pos: Offset,
        length: u64,
        flags: OpFlags,
    ) -> Result<Mappings<'a>>;

    /// Called when a mapping has been used, for `written` of `length` bytes from `pos`.
    ///
    /// May sleep, like [`Operations::begin`].  An error ends the operation if nothing was done.
    fn end(
        _inode: &Inode,
        _pos: Offset,
        _length: u64,
        _written: u64,
        _flags: OpFlags,
        _mapping: &Finished<'_>,
    ) -> Result {
        Ok(())
    }
}

/// Holds the `struct iomap_ops` that calls `T`.
struct OperationsVTable<T: Operations>(PhantomData<T>);

impl<T: Operations> OperationsVTable<T> {
    /// For fs/iomap.
    const OPS: bindings::iomap_ops = bindings::iomap_ops {
        iomap_begin: Some(Self::begin),
        iomap_end: Some(Self::end),
        iomap_next: None,
    };

    /// As [`Self::OPS`], where the iteration's `private` points to a `c_int` for an error.
    ///
    /// For `iomap_read_folio`, which does not tell why it failed.
    const OPS_WITH_ERROR: bindings::iomap_ops = bindings::iomap_ops {
        iomap_begin: None,
        iomap_end: None,
        iomap_next: Some(Self::next_with_error),
    };

    /// `iomap_ops.iomap_next` that leaves an error where `private` points to.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this, as [`Self::begin`] and [`Self::end`], and `private` of the iteration
    /// points to a `c_int` of the caller.
    unsafe extern "C" fn next_with_error(
        iter: *const bindings::iomap_iter,
        iomap: *mut bindings::iomap,
        srcmap: *mut bindings::iomap,
    ) -> c_int {
        // SAFETY: The arguments are good by the safety requirements.
        let ret = unsafe {
            bindings::iomap_iter_next(iter, iomap, srcmap, Some(Self::begin), Some(Self::end))
        };

        if ret < 0 {
            // SAFETY: By the safety requirements.
            unsafe { (*iter).private.cast::<c_int>().write(ret) };
        }
        ret
    }

    /// `iomap_ops.iomap_begin`.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this: `inode` is alive until all I/O on the mapping is done, and `iomap` and
    /// `srcmap` are zeroed and the caller's own.
    unsafe extern "C" fn begin(
        inode: *mut bindings::inode,
        pos: bindings::loff_t,
        length: bindings::loff_t,
        flags: c_uint,
        iomap: *mut bindings::iomap,
        srcmap: *mut bindings::iomap,
    ) -> c_int {
        // SAFETY: The inode is alive by the safety requirements.
        let inode = unsafe { Inode::from_raw(inode) };
        let flags = OpFlags(flags);

        from_result(|| {
            let length = u64::try_from(length).map_err(|_| EIO)?;
            let mappings = T::begin(inode, pos, length, flags)?;

            Self::check(&mappings.target, pos, flags)?;
            if let Some(source) = &mappings.source {
                Self::check(source, pos, flags)?;
                // It would not be given back.
                if source.inline.is_some() {
                    return Err(EIO);
                }
            }

            // SAFETY: By the safety requirements `iomap` is valid and nobody else's.
            mappings.target.fill(unsafe { &mut *iomap });
            if let Some(source) = mappings.source {
                // SAFETY: As above; zeroes mean that there is no source.
                source.fill(unsafe { &mut *srcmap });
            }
            Ok(0)
        })
    }

    /// Checks that fs/iomap can use a mapping.
    #[inline]
    fn check(mapping: &Mapping<'_>, pos: Offset, flags: OpFlags) -> Result {
        if !mapping.contains(pos) {
            return Err(EIO);
        }
        // Without the data fs/iomap would warn.
        let needs_data = matches!(mapping.kind, Kind::Inline) && !flags.contains(OpFlag::Report);
        if needs_data && mapping.inline.is_none() {
            return Err(EOPNOTSUPP);
        }
        Ok(())
    }

    /// `iomap_ops.iomap_end`.
    ///
    /// # Safety
    ///
    /// fs/iomap calls this: `inode` is alive, and `iomap` is what [`Self::begin`] filled, and not
    /// changed meanwhile.
    unsafe extern "C" fn end(
        inode: *mut bindings::inode,
        pos: bindings::loff_t,
        length: bindings::loff_t,
        written: isize,
        flags: c_uint,
        iomap: *mut bindings::iomap,
    ) -> c_int {
        // SAFETY: The inode is alive by the safety requirements.
        let inode = unsafe { Inode::from_raw(inode) };
        // SAFETY: By the safety requirements `iomap` is valid and nobody else's.
        let iomap = unsafe { &mut *iomap };

        let ret = from_result(|| {
            let length = u64::try_from(length).map_err(|_| EIO)?;
            let written = u64::try_from(written).unwrap_or(0);

            T::end(
                inode,
                pos,
                length,
                written,
                OpFlags(flags),
                &Finished(iomap),
            )?;
            Ok(0)
        });

        let inline = core::mem::replace(&mut iomap.inline_data, core::ptr::null_mut());
        if !inline.is_null() {
            // SAFETY: `Mapping::fill` has made it of a box, and it is not used any more.
            drop(unsafe { KBox::<InlineData>::from_raw(inline.cast()) });
        }
        ret
    }
}
