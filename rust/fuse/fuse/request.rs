// SPDX-License-Identifier: GPL-2.0

//! Requests about an inode, sent to the server.
#![allow(unsafe_code)]

use super::{conn, fuse_inode, mount, IomapInode};
use core::{mem::size_of, slice};
use kernel::{
    bindings::{
        self,
        fuse_attr,
        fuse_attr_out,
        fuse_fallocate_in,
        fuse_iomap_begin_in,
        fuse_iomap_end_in,
        fuse_iomap_io,
        fuse_iomap_ioend_in,
        fuse_iomap_ioend_out,
        fuse_read_in,
        fuse_setattr_in,
        fuse_write_in,
        fuse_write_out, //
    },
    error::to_result,
    ffi::{c_int, c_uint, c_void},
    fs::{Inode, LocalFile, NofsScope, Offset},
    prelude::*,
    sync::atomic::{Atomic, Relaxed}, //
};

/// Whether the task that waits for an answer can be killed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It can, as long as the server has not taken the request.
    Killable,
    /// It cannot, because data or the server's view of it would be lost: only the server's death
    /// ends the request, for which there always is memory.
    Forced,
}

impl IomapInode<'_> {
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
            self.0,
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
                self.0,
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
        // Over io_uring, what comes first has a place of 128 bytes, and what follows has the
        // buffer.
        let (first, more) = requests.split_at_checked(1).ok_or(EINVAL)?;
        let answer = unless_missing(self.no_ioend(), || {
            self.count_records(requests.len());
            send(
                self.0,
                bindings::fuse_opcode_FUSE_IOMAP_IOEND,
                [first.as_wire(), more.as_wire()],
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
            self.0,
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
            self.0,
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
                self.0,
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
}

/// Tells the server of attributes of an inode (`FUSE_SETATTR`), and leaves those it answers with
/// alone.
///
/// May sleep, until the server answers or dies.
pub(crate) fn send_setattr(inode: &Inode, request: &fuse_setattr_in) -> Result {
    let mut reply = [fuse_attr_out::default()];

    send(
        inode,
        bindings::fuse_opcode_FUSE_SETATTR,
        [slice::from_ref(request).as_wire(), &[]],
        &mut reply,
        false,
        Patience::Forced,
    )?;
    Ok(())
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
                pub(super) fn $name(self) -> &'a Atomic<i32> {
                    // SAFETY: The connection is alive by the type invariant, and this field of it
                    // is accessed atomically only.
                    unsafe {
                        Atomic::from_ptr(&raw mut (*conn(self.0)).iomap_state.$name.counter)
                    }
                }
            )*
        }
    };
}

conn_flags!(no_end, no_ioend, no_fallocate, no_fsync, shutdown);

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

/// The size of a member, which is `Wire` as well.
const fn size_of_member<S, M: Wire>(_: fn(&S) -> &M) -> usize {
    size_of::<M>()
}

/// Declares structures to be [`Wire`], with all their members.
macro_rules! wire {
    ($($structure:ident { $($member:ident),+ $(,)? })+) => {
        $(
            // Members do not overlap, so if they add up to the structure there is no gap.
            const _: () = assert!(
                0 $(+ size_of_member(|it: &$structure| &it.$member))+ == size_of::<$structure>()
            );

            // SAFETY: Any bytes are one as any are its members, by the bound of `size_of_member`,
            // and it has no padding, by the assertion.
            unsafe impl Wire for $structure {}
        )+
    };
}

// SAFETY: An integer: any bytes are one, and it has no padding.
unsafe impl Wire for u8 {}
// SAFETY: As above.
unsafe impl Wire for u16 {}
// SAFETY: As above.
unsafe impl Wire for u32 {}
// SAFETY: As above.
unsafe impl Wire for i32 {}
// SAFETY: As above.
unsafe impl Wire for u64 {}
// SAFETY: As above.
unsafe impl Wire for i64 {}

wire! {
    fuse_iomap_io { offset, length, addr, type_, flags, dev }
    fuse_iomap_begin_in { opflags, reserved, attr_ino, pos, count }
    fuse_iomap_end_in { opflags, reserved, attr_ino, pos, count, written, map }
    fuse_iomap_ioend_in { flags, error, attr_ino, pos, new_addr, written, dev, pad }
    fuse_iomap_ioend_out { newsize }
    fuse_fallocate_in { fh, offset, length, mode, padding }
    fuse_attr {
        ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid,
        gid, rdev, blksize, flags,
    }
    fuse_attr_out { attr_valid, attr_valid_nsec, dummy, attr }
    fuse_setattr_in {
        valid, padding, fh, size, lock_owner, atime, mtime, ctime, atimensec, mtimensec, ctimensec,
        mode, unused4, uid, gid, unused5,
    }
    fuse_read_in { fh, offset, size, read_flags, lock_owner, flags, padding }
    fuse_write_in { fh, offset, size, write_flags, lock_owner, flags, padding }
    fuse_write_out { size, padding }
}

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
    inode: &Inode,
    opcode: bindings::fuse_opcode,
    request: [&[u8]; 2],
    reply: &mut [R],
    may_be_short: bool,
    patience: Patience,
) -> Result<usize> {
    let _nofs = NofsScope::new();
    let mut args: bindings::fuse_args = pin_init::zeroed();

    // SAFETY: The inode is alive, and FUSE's.
    args.nodeid = unsafe { (*fuse_inode(inode)).nodeid };
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
            mount(inode),
            &raw mut args,
        )
    };

    if let Some(inode) = IomapInode::new(inode) {
        inode.count_request(opcode, ret < 0);
    }
    let Ok(bytes) = usize::try_from(ret) else {
        // CAST: Error numbers are small.
        let error = Error::from_errno(ret as c_int);
        // That is how io_uring gives back what it was handing to a server that has died.
        return Err(if error == ECANCELED { ENOTCONN } else { error });
    };
    match (may_be_short, size_of::<R>()) {
        (true, size @ 1..) if bytes.is_multiple_of(size) => Ok(bytes / size),
        (true, _) => Err(EIO),
        (false, _) => Ok(reply.len()),
    }
}
