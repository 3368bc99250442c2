// SPDX-License-Identifier: GPL-2.0

//! The C side of FUSE: connection, requests, inodes, backing devices.
//!
//! Nothing else in this module calls FUSE's C code or looks into its structures.
#![allow(unsafe_code)]

use crate::{
    inode::State,
    mapping::Limits,
    rule::Rule, //
};
use core::{mem::size_of, ptr::NonNull};
use kernel::{
    bindings::{
        self,
        fuse_iomap_begin_in,
        fuse_iomap_begin_out,
        fuse_iomap_end_in,
        fuse_iomap_io, //
    },
    ffi::{c_char, c_int, c_uint, c_ulong, c_void},
    fs::{BlockDevice, Inode},
    prelude::*,
    sync::atomic::{Atomic, Relaxed},
    tracepoint::declare_trace,
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

    /// Asks the server for a mapping.
    ///
    /// May sleep, for as long as the server likes; a fatal signal or the server's death ends it.
    /// Fails with what the server answers, `EIO` if that makes no sense, or `ENOTCONN`.
    pub(crate) fn send_begin(self, request: &fuse_iomap_begin_in) -> Result<fuse_iomap_begin_out> {
        let mut reply = fuse_iomap_begin_out::default();

        let answer = send(
            self,
            bindings::fuse_opcode_FUSE_IOMAP_BEGIN,
            request,
            Some(&mut reply),
        );
        match answer {
            Ok(()) => Ok(reply),
            // Without this operation there is no iomap.
            Err(error) if error == ENOSYS => Err(EIO),
            // It is the kernel's to say so, and a reader would just try again.
            Err(error) if error == EINTR && !current!().signal_pending() => Err(EIO),
            Err(error) => Err(error),
        }
    }

    /// Tells the server that a mapping has been used.
    ///
    /// May sleep, like [`IomapInode::send_begin`].  A server that does not want to know is not
    /// told again.
    pub(crate) fn send_end(self, request: &fuse_iomap_end_in) -> Result {
        // SAFETY: The connection is alive by the type invariant, and this field of it is only
        // accessed here.
        let no_end =
            unsafe { Atomic::from_ptr(&raw mut (*conn(self.0)).iomap_state.no_end.counter) };
        if no_end.load(Relaxed) != 0 {
            return Ok(());
        }

        let answer = send::<_, ()>(self, bindings::fuse_opcode_FUSE_IOMAP_END, request, None);
        match answer {
            Err(error) if error == ENOSYS => {
                no_end.store(1, Relaxed);
                Ok(())
            }
            answer => answer,
        }
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

// SAFETY: Integers only, with gaps spelled out.
unsafe impl Wire for fuse_iomap_begin_in {}
// SAFETY: As above.
unsafe impl Wire for fuse_iomap_begin_out {}
// SAFETY: As above.
unsafe impl Wire for fuse_iomap_end_in {}
// SAFETY: There are no bytes.
unsafe impl Wire for () {}

/// Sends a request about an inode and waits for the answer.
///
/// May sleep.  A reply of another length than that of `R` fails with `EIO`.
fn send<T: Wire, R: Wire>(
    inode: IomapInode<'_>,
    opcode: bindings::fuse_opcode,
    request: &T,
    reply: Option<&mut R>,
) -> Result {
    let mut args: bindings::fuse_args = pin_init::zeroed();

    // SAFETY: The inode is alive by the type invariant of `IomapInode`.
    args.nodeid = unsafe { (*fuse_inode(inode.0)).nodeid };
    args.opcode = opcode;
    args.in_numargs = 1;
    // CAST: The structures of the protocol are small.
    args.in_args[0].size = size_of::<T>() as c_uint;
    args.in_args[0].value = core::ptr::from_ref(request).cast::<c_void>();
    if let Some(reply) = reply {
        args.out_numargs = 1;
        args.out_args[0].size = size_of::<R>() as c_uint;
        args.out_args[0].value = core::ptr::from_mut(reply).cast::<c_void>();
    }

    // SAFETY: The mount is alive with the inode. `args`, `request` and `reply` live until the
    // request is finished, which is when this returns; `T` may be read and `R` written as bytes
    // since they are `Wire`.
    let ret = unsafe {
        bindings::__fuse_simple_request(
            &raw mut bindings::invalid_mnt_idmap,
            mount(inode.0),
            &raw mut args,
        )
    };

    if ret < 0 {
        // CAST: Error numbers are small.
        Err(Error::from_errno(ret as c_int))
    } else {
        Ok(())
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

    /// Traces a mapping that was accepted.
    pub(crate) fn trace_mapping(self, map: &fuse_iomap_io) {
        // SAFETY: Both are references.
        unsafe { fuse_iomap_mapping(self.0.as_ptr(), map) };
    }
}
