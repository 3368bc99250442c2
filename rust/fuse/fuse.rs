// SPDX-License-Identifier: GPL-2.0

//! The C side of FUSE: connection, requests, inodes, backing devices.
//!
//! Nothing else in this module calls FUSE's C code or looks into its structures.
#![allow(unsafe_code)]

use crate::{
    cache::{Bounds, Pool},
    config::{Config, Extensions},
    inode::State,
    mapping::Limits,
    rule::Rule, //
};
use core::{mem::size_of, ptr::NonNull, slice};
use kernel::{
    bindings::{
        self,
        fuse_fallocate_in,
        fuse_iomap_begin_in,
        fuse_iomap_end_in,
        fuse_iomap_io,
        fuse_iomap_ioend_in,
        fuse_iomap_ioend_out,
        fuse_read_in,
        fuse_write_in,
        fuse_write_out, //
    },
    error::to_result,
    ffi::{c_char, c_int, c_uint, c_ulong, c_void},
    fs::{BlockDevice, Inode, LocalFile, NofsScope, Offset},
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    tracepoint::declare_trace,
    workqueue::Queue,
};

/// A device that a server has registered with a connection (`struct fuse_backing`).
///
/// # Invariants
///
/// Owns a reference to a backing of type `FUSE_BACKING_TYPE_IOMAP`, whose file is an open block
/// device.
pub(crate) struct Device {
    backing: NonNull<bindings::fuse_backing>,
    id: u32,
}

// SAFETY: A reference to a backing belongs to no task.
unsafe impl Send for Device {}

// SAFETY: File and type of a backing are never written to, its reference count is atomic.
unsafe impl Sync for Device {}

impl Device {
    /// The server's id for the device.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Whether the server has opened the device for writing.
    pub(crate) fn is_writable(&self) -> bool {
        // SAFETY: By the type invariant the backing is alive and has a file, whose mode does not
        // change while it is open.
        let mode = unsafe { (*(*self.backing.as_ptr()).file).f_mode };

        mode & bindings::FMODE_WRITE != 0
    }

    /// The block device itself.
    pub(crate) fn block_device(&self) -> &BlockDevice {
        // SAFETY: By the type invariant the backing is alive and its file an open block device,
        // both until `self` is dropped.
        unsafe { BlockDevice::from_raw(bindings::file_bdev((*self.backing.as_ptr()).file)) }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours, and it is not used any more.
        unsafe { bindings::fuse_backing_put(self.backing.as_ptr()) };
    }
}

/// Whether the task that waits for an answer can be killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It can, as long as the server has not taken the request.
    Killable,
    /// It cannot, because data or the server's view of it would be lost: only the server's death
    /// ends the request, for which there always is memory.
    Forced,
}

/// An inode in iomap mode.
///
/// # Invariants
///
/// `FUSE_I_IOMAP` is set for the inode, so that the union of its `struct fuse_inode` holds a
/// [`State`], and the inode is not evicted for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct IomapInode<'a>(&'a Inode);

impl<'a> IomapInode<'a> {
    /// Checks that an inode of FUSE is in iomap mode.
    ///
    /// The functions that call this are reached through iomap inodes only.
    pub(crate) fn new(inode: &'a Inode) -> Option<Self> {
        // INVARIANT: Checked here, and the bit does not change once an inode can be found; whoever
        // has a reference for `'a` keeps the inode.
        test_state_bit(inode, bindings::FUSE_I_IOMAP).then_some(Self(inode))
    }

    /// The iomap state.
    pub(crate) fn state(self) -> &'a State {
        // SAFETY: By the type invariant the union holds an initialised `State` for `'a`, and all
        // references to it are shared.
        unsafe { &*state_ptr(self.0) }
    }

    /// Whether I/O on the inode must fail, because the server has reused its node id.
    pub(crate) fn is_bad(self) -> bool {
        test_state_bit(self.0, bindings::FUSE_I_BAD)
    }

    /// The number that the server has put into `fuse_attr.ino`.
    pub(crate) fn attr_ino(self) -> u64 {
        // SAFETY: The inode is alive by the type invariant.  The C side writes this only under
        // the inode's lock and with a value that a sane server never changes.
        unsafe { (&raw const (*fuse_inode(self.0)).orig_ino).read_volatile() }
    }

    /// What the rules for mappings need to know of the inode.
    pub(crate) fn limits(self) -> Limits {
        Limits {
            block_size: u64::from(self.0.block_size()),
            max_bytes: self.0.max_bytes().unsigned_abs(),
            may_cache: self.extensions().cache_replies(),
        }
    }

    /// Looks up a device by the server's id.
    pub(crate) fn open_device(self, id: u32) -> Option<Device> {
        let id_c = c_int::try_from(id).ok()?;
        // SAFETY: The inode, and so its connection, is alive by the type invariant.
        let backing = unsafe {
            bindings::fuse_backing_lookup(conn(self.0), id_c, bindings::FUSE_BACKING_TYPE_IOMAP)
        };

        // INVARIANT: The function returns a new reference to a backing of this type or NULL, and
        // registering one checks that it is a block device.
        NonNull::new(backing).map(|backing| Device { backing, id })
    }

    /// The inode as the VFS knows it.
    pub(crate) fn vfs(self) -> &'a Inode {
        self.0
    }

    /// Takes note that the server may have given the file blocks, or taken some: what is cached of
    /// their number is not to be shown any more.
    ///
    /// Any context.
    pub(crate) fn blocks_changed(self) {
        // SAFETY: The inode is alive by the type invariant.
        unsafe { bindings::fuse_invalidate_attr_mask(self.0.as_ptr(), bindings::STATX_BLOCKS) };
    }

    /// What the mapping caches of the connection share, unless nothing is to be cached.
    pub(crate) fn pool(self) -> Option<&'a Pool> {
        // SAFETY: The connection is alive by the type invariant. The pool is made before there are
        // inodes in iomap mode, and dropped when they are gone.
        unsafe {
            (*conn(self.0))
                .iomap_state
                .cache_pool
                .cast::<Pool>()
                .as_ref()
        }
    }

    /// The extensions that kernel and server use.
    pub(crate) fn extensions(self) -> Extensions {
        // SAFETY: The connection is alive by the type invariant, and this field of it is written
        // before there are inodes in iomap mode only.
        Extensions::from_bits(unsafe { (*conn(self.0)).iomap_state.extensions })
    }

    /// Where work on the completions of this connection is done.
    pub(crate) fn ioend_queue(self) -> &'a Queue {
        // SAFETY: The connection is alive by the type invariant, and its workqueue as long; it was
        // made before there were inodes in iomap mode.
        unsafe { Queue::from_raw((*conn(self.0)).iomap_state.ioend_wq) }
    }

    /// Asks the server for mappings: two, or with the extension BATCH_MAPPINGS as many as there is
    /// room for.  Returns how many there are; there is room for two.
    ///
    /// May sleep, for as long as the server likes; its death ends it, and a fatal signal depending
    /// on `patience`.
    /// Fails with what the server answers, `EIO` if that makes no sense, or `ENOTCONN`.
    pub(crate) fn send_begin(
        self,
        request: &fuse_iomap_begin_in,
        reply: &mut [fuse_iomap_io],
        patience: Patience,
    ) -> Result<usize> {
        let answer = send(
            self,
            bindings::fuse_opcode_FUSE_IOMAP_BEGIN,
            [slice::from_ref(request).as_wire(), &[]],
            reply,
            reply.len() > 2,
            patience,
        );
        match answer {
            Ok(0 | 1) => Err(EIO),
            Ok(mappings) => Ok(mappings),
            // It is the kernel's to say so, and a reader would just try again.
            Err(error) if error == EINTR && !current!().signal_pending() => Err(EIO),
            Err(error) => Err(error),
        }
    }

    /// Tells the server that a mapping has been used.
    ///
    /// May sleep, until the server answers or dies.  A server that does not want to know is not
    /// told again.
    pub(crate) fn send_end(self, request: &fuse_iomap_end_in) -> Result {
        unless_missing(self.no_end(), || {
            send::<()>(
                self,
                bindings::fuse_opcode_FUSE_IOMAP_END,
                [slice::from_ref(request).as_wire(), &[]],
                &mut [],
                false,
                Patience::Forced,
            )
        })?;
        Ok(())
    }

    /// Tells the server that data is on the device, and fills in the sizes of the file on disk.
    ///
    /// There is more than one range with the extension BATCH_IOEND only.  May sleep, until the
    /// server answers or dies.  A server that does not want to know is not told again, and then
    /// there are no sizes: returns false.
    pub(crate) fn send_ioends(
        self,
        requests: &[fuse_iomap_ioend_in],
        replies: &mut [fuse_iomap_ioend_out],
    ) -> Result<bool> {
        let answer = unless_missing(self.no_ioend(), || {
            send(
                self,
                bindings::fuse_opcode_FUSE_IOMAP_IOEND,
                [requests.as_wire(), &[]],
                replies,
                false,
                Patience::Forced,
            )
        });
        Ok(answer?.is_some())
    }

    /// Reads data that is in the inode, from `pos` on (`FUSE_READ`); returns how much there is.
    ///
    /// May sleep; a fatal signal or the server's death ends it.
    pub(crate) fn send_read(self, pos: u64, data: &mut [u8]) -> Result<usize> {
        let request = fuse_read_in {
            offset: pos,
            size: u32::try_from(data.len())?,
            ..Default::default()
        };
        let answer = send(
            self,
            bindings::fuse_opcode_FUSE_READ,
            [slice::from_ref(&request).as_wire(), &[]],
            data,
            true,
            Patience::Killable,
        );
        answer.map_err(inline_error)
    }

    /// Writes data that is in the inode, at `pos` (`FUSE_WRITE`).
    ///
    /// May sleep, until the server answers or dies.
    pub(crate) fn send_write(self, pos: u64, data: &[u8]) -> Result {
        let size = u32::try_from(data.len())?;
        let request = fuse_write_in {
            offset: pos,
            size,
            ..Default::default()
        };
        let mut reply = [fuse_write_out::default()];

        send(
            self,
            bindings::fuse_opcode_FUSE_WRITE,
            [slice::from_ref(&request).as_wire(), data],
            &mut reply,
            false,
            Patience::Forced,
        )
        .map_err(inline_error)?;
        let [reply] = reply;
        if reply.size == size {
            Ok(())
        } else {
            Err(EIO)
        }
    }

    /// Asks the server to change the blocks of a file (`FUSE_FALLOCATE`).
    ///
    /// May sleep, until the server answers or dies.  Fails with `EOPNOTSUPP` if it cannot.
    pub(crate) fn send_fallocate(self, request: &fuse_fallocate_in) -> Result {
        let answer = unless_missing(self.no_fallocate(), || {
            send::<()>(
                self,
                bindings::fuse_opcode_FUSE_FALLOCATE,
                [slice::from_ref(request).as_wire(), &[]],
                &mut [],
                false,
                Patience::Forced,
            )
        });
        answer?.ok_or(EOPNOTSUPP)?;
        Ok(())
    }

    /// Asks the server to make a file stable (`FUSE_FSYNC`), and returns whether it has.
    ///
    /// May sleep; a fatal signal or the server's death ends it.
    pub(crate) fn send_fsync(self, file: &LocalFile, datasync: bool) -> Result<bool> {
        let answer = unless_missing(self.no_fsync(), || {
            // SAFETY: The file is open and one of this inode's, so FUSE's.
            to_result(unsafe {
                bindings::fuse_fsync_common(
                    file.as_ptr(),
                    0,
                    Offset::MAX,
                    c_int::from(datasync),
                    bindings::fuse_opcode_FUSE_FSYNC as c_int,
                )
            })
        });
        Ok(answer?.is_some())
    }

    /// Reports an answer to IOEND with an impossible size, in the log.
    pub(crate) fn report_newsize(self, rule: Rule, request: &fuse_iomap_ioend_in, newsize: u64) {
        // SAFETY: The inode is alive by the type invariant, and the others for the call.
        unsafe {
            bindings::fuse_iomap_report_newsize(
                self.0.as_ptr(),
                rule as c_uint,
                rule.name().as_char_ptr(),
                request,
                newsize,
            )
        };
    }

    /// Reports a mapping that breaks a rule, in the log and to the trace.
    pub(crate) fn report_rejected(self, rule: Rule, wire: &fuse_iomap_io) {
        // SAFETY: The inode is alive by the type invariant, and the others for the call.
        unsafe {
            bindings::fuse_iomap_report_rejected(
                self.0.as_ptr(),
                rule as c_uint,
                rule.name().as_char_ptr(),
                wire,
            )
        };
        // SAFETY: All are references, and the name of a rule is a C string.
        unsafe { fuse_iomap_rejected(self.0.as_ptr(), rule.name().as_char_ptr(), wire) };
    }
}

/// What it means when a server that has data in inodes cannot move it.
fn inline_error(error: Error) -> Error {
    if error == ENOSYS {
        EIO
    } else {
        error
    }
}

/// Sends a request that a server may not have, which it says with `ENOSYS`.
///
/// Returns `None` then, and from then on without asking: `missing` remembers.
fn unless_missing<R>(
    missing: &Atomic<i32>,
    request: impl FnOnce() -> Result<R>,
) -> Result<Option<R>> {
    if missing.load(Relaxed) != 0 {
        return Ok(None);
    }

    match request() {
        Err(error) if error == ENOSYS => {
            missing.store(1, Relaxed);
            Ok(None)
        }
        answer => answer.map(Some),
    }
}

/// Gives access to the flags of a connection that say what its server does not do.
macro_rules! conn_flags {
    ($($name:ident),*) => {
        impl<'a> IomapInode<'a> {
            $(
                fn $name(self) -> &'a Atomic<i32> {
                    // SAFETY: The connection is alive by the type invariant, and this field of it
                    // is only accessed here.
                    unsafe {
                        Atomic::from_ptr(&raw mut (*conn(self.0)).iomap_state.$name.counter)
                    }
                }
            )*
        }
    };
}

conn_flags!(no_end, no_ioend, no_fallocate, no_fsync);

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

/// The server's handle of an open file.
///
/// `file` must be FUSE's.
pub(crate) fn file_handle(file: &LocalFile) -> u64 {
    // SAFETY: The file is open, and FUSE keeps its `struct fuse_file` there as long.
    unsafe {
        let fuse_file: *const bindings::fuse_file = (*file.as_ptr()).private_data.cast();

        (*fuse_file).fh
    }
}

/// The mount of an inode.
fn mount(inode: &Inode) -> *mut bindings::fuse_mount {
    // SAFETY: The inode is alive, so its superblock and what that points to are too.
    unsafe { (*(*inode.as_ptr()).i_sb).s_fs_info.cast() }
}

/// The connection of an inode.
fn conn(inode: &Inode) -> *mut bindings::fuse_conn {
    // SAFETY: The mount is alive with the inode, and its connection as long.
    unsafe { (*mount(inode)).fc }
}

/// `get_fuse_inode`.
fn fuse_inode(inode: &Inode) -> *mut bindings::fuse_inode {
    // CAST: The inode is the first member, as the C side asserts too.
    const _: () = assert!(core::mem::offset_of!(bindings::fuse_inode, inode) == 0);

    inode.as_ptr().cast()
}

/// Where the iomap state of an inode is.
pub(crate) fn state_ptr(inode: &Inode) -> *mut State {
    // SAFETY: Only makes a pointer to a member of an inode that is alive.
    unsafe { (&raw mut (*fuse_inode(inode)).__bindgen_anon_1.iomap).cast() }
}

/// Tests one of the `FUSE_I_*` bits of an inode.
///
/// Any context.
fn test_state_bit(inode: &Inode, bit: c_uint) -> bool {
    // SAFETY: The inode is alive. Bits may be set meanwhile; the C side reads the word with
    // `test_bit`, a volatile read, as well.
    let state = unsafe { (&raw const (*fuse_inode(inode)).state).read_volatile() };

    state & (1 << bit) != 0
}

/// Sets the number that the server has for a new inode, see [`IomapInode::attr_ino`].
pub(crate) fn set_attr_ino(inode: &Inode, ino: u64) {
    // SAFETY: The inode is alive; who reads this meanwhile sees one value or the other.
    unsafe { (&raw mut (*fuse_inode(inode)).orig_ino).write_volatile(ino) };
}

/// Sets one of the `FUSE_I_*` bits of an inode.
///
/// Any context.
pub(crate) fn set_state_bit(inode: &Inode, bit: c_uint) {
    // SAFETY: The inode is alive, and the bits are changed with atomic operations only.
    unsafe { bindings::set_bit(bit as c_ulong, &raw mut (*fuse_inode(inode)).state) };
}

/// Returns true for the first caller on a connection only.
pub(crate) fn first_late_attr(inode: &Inode) -> bool {
    // SAFETY: The connection is alive with the inode, and this field of it is only accessed here.
    let warned = unsafe { Atomic::from_ptr(&raw mut (*conn(inode)).iomap_state.warned.counter) };

    warned.xchg(1, Relaxed) == 0
}

/// A structure of the protocol: any bytes are one, and it has no padding.
///
/// # Safety
///
/// Just that.
unsafe trait Wire: Sized {}

/// What requests are made of.
trait AsWire {
    /// The bytes.
    fn as_wire(&self) -> &[u8];
}

impl<T: Wire> AsWire for [T] {
    fn as_wire(&self) -> &[u8] {
        // SAFETY: They are initialised, since there is no padding, and borrowed from `self`.
        unsafe { slice::from_raw_parts(self.as_ptr().cast(), size_of_val(self)) }
    }
}

// SAFETY: Integers only, with gaps spelled out.
unsafe impl Wire for fuse_iomap_begin_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_iomap_io {}
// SAFETY: As above.
unsafe impl Wire for fuse_iomap_end_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_iomap_ioend_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_iomap_ioend_out {}
// SAFETY: As above.
unsafe impl Wire for fuse_fallocate_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_read_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_write_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_write_out {}
// SAFETY: As above.
unsafe impl Wire for u8 {}
// SAFETY: There are no bytes.
unsafe impl Wire for () {}

/// Sends a request about an inode, waits for the answer, and returns how many `R` that has.
///
/// The request is made of one part, or of two.
///
/// May sleep.  A reply that does not fill `reply` fails with `EIO`, unless it `may_be_short`; then
/// it is a whole number of `R`.
///
/// Memory for the request is not taken from filesystems: who waits for the answer may hold locks of
/// the page cache, or be what reclaim waits for.
fn send<R: Wire>(
    inode: IomapInode<'_>,
    opcode: bindings::fuse_opcode,
    request: [&[u8]; 2],
    reply: &mut [R],
    may_be_short: bool,
    patience: Patience,
) -> Result<usize> {
    let _nofs = NofsScope::new();
    let mut args: bindings::fuse_args = pin_init::zeroed();

    // SAFETY: The inode is alive by the type invariant of `IomapInode`.
    args.nodeid = unsafe { (*fuse_inode(inode.0)).nodeid };
    args.opcode = opcode;
    args.set_force(patience == Patience::Forced);
    let parts = request.into_iter().filter(|part| !part.is_empty());
    for (arg, part) in args.in_args.iter_mut().zip(parts) {
        arg.size = c_uint::try_from(part.len())?;
        arg.value = part.as_ptr().cast::<c_void>();
        args.in_numargs += 1;
    }
    if !reply.is_empty() {
        args.set_out_argvar(may_be_short);
        args.out_numargs = 1;
        args.out_args[0].size = c_uint::try_from(size_of_val(reply))?;
        args.out_args[0].value = reply.as_mut_ptr().cast::<c_void>();
    }

    // SAFETY: The mount is alive with the inode. `args`, `request` and `reply` live until the
    // request is finished, which is when this returns; `R` may be written as bytes since it is
    // `Wire`.
    let ret = unsafe {
        bindings::__fuse_simple_request(
            &raw mut bindings::invalid_mnt_idmap,
            mount(inode.0),
            &raw mut args,
        )
    };

    let Ok(bytes) = usize::try_from(ret) else {
        // CAST: Error numbers are small.
        return Err(Error::from_errno(ret as c_int));
    };
    match (may_be_short, size_of::<R>()) {
        (true, size @ 1..) if bytes.is_multiple_of(size) => Ok(bytes / size),
        (true, _) => Err(EIO),
        (false, _) => Ok(reply.len()),
    }
}

declare_trace! {
    /// # Safety
    ///
    /// Both pointers must be valid for the call.
    unsafe fn fuse_iomap_begin(
        inode: *const bindings::inode,
        request: *const fuse_iomap_begin_in,
    );
    /// # Safety
    ///
    /// Both pointers must be valid for the call.
    unsafe fn fuse_iomap_end(inode: *const bindings::inode, request: *const fuse_iomap_end_in);
    /// # Safety
    ///
    /// Both pointers must be valid for the call.
    unsafe fn fuse_iomap_mapping(inode: *const bindings::inode, map: *const fuse_iomap_io);
    /// # Safety
    ///
    /// Both pointers must be valid for the call.
    unsafe fn fuse_iomap_ioend(
        inode: *const bindings::inode,
        request: *const fuse_iomap_ioend_in,
        newsize: u64,
        error: c_int,
    );
    /// # Safety
    ///
    /// The pointer must be valid for the call.
    unsafe fn fuse_iomap_writeback_done(
        inode: *const bindings::inode,
        pos: bindings::loff_t,
        size: u64,
        flags: u32,
        deferred: bool,
    );
    /// # Safety
    ///
    /// All pointers must be valid for the call, and `rule` a C string.
    unsafe fn fuse_iomap_rejected(
        inode: *const bindings::inode,
        rule: *const c_char,
        map: *const fuse_iomap_io,
    );
}

impl IomapInode<'_> {
    /// Traces that a mapping is asked for.
    pub(crate) fn trace_begin(self, request: &fuse_iomap_begin_in) {
        // SAFETY: Both are references.
        unsafe { fuse_iomap_begin(self.0.as_ptr(), request) };
    }

    /// Traces that a mapping has been used.
    pub(crate) fn trace_end(self, request: &fuse_iomap_end_in) {
        // SAFETY: Both are references.
        unsafe { fuse_iomap_end(self.0.as_ptr(), request) };
    }

    /// Traces what the server has answered to an IOEND.
    pub(crate) fn trace_ioend(self, request: &fuse_iomap_ioend_in, answer: &Result<Option<u64>>) {
        let (newsize, error) = match answer {
            Ok(newsize) => (newsize.unwrap_or(0), 0),
            Err(error) => (0, error.to_errno()),
        };

        // SAFETY: The inode is alive by the type invariant, and the request is a reference.
        unsafe { fuse_iomap_ioend(self.0.as_ptr(), request, newsize, error) };
    }

    /// Traces that I/O of writeback is complete, and whether it waits for a work item.
    pub(crate) fn trace_writeback_done(self, pos: Offset, size: u64, flags: u32, deferred: bool) {
        // SAFETY: The inode is alive by the type invariant.
        unsafe { fuse_iomap_writeback_done(self.0.as_ptr(), pos, size, flags, deferred) };
    }

    /// Traces a mapping that was accepted.
    pub(crate) fn trace_mapping(self, map: &fuse_iomap_io) {
        // SAFETY: Both are references.
        unsafe { fuse_iomap_mapping(self.0.as_ptr(), map) };
    }
}
