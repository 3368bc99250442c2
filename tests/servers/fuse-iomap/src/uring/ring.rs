// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One io_uring with FUSE's commands.
#![allow(unsafe_code)]

use super::entry::Entry;
use crate::wire::uring::{COMMIT_AND_FETCH, CmdReq, REGISTER};
use io_uring::squeue::Entry128;
use io_uring::{IoUring, cqueue, opcode, types};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;
use zerocopy::IntoBytes;

/// Submissions between two waits; more are submitted at once.
const SIZE: u32 = 8;
/// Where `len` is in `struct io_uring_sqe`.
const SQE_LEN: usize = 24;
/// What commands have as user data is the number of an entry; timers have this as well.
const TIMER: u64 = 1 << 63;

/// What has happened.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The memory of this entry has come back, with a request.
    Request(usize),
    /// It has come back because the connection, or the ring, is over.
    Over(usize),
    /// It has come back because the kernel takes no entries yet.
    Early(usize),
    /// It has come back with another error: the kernel refuses the command.
    Refused(usize, i32),
    /// The timer for this entry is due.
    Due(usize),
}

/// A ring, used by the thread that made it.
pub(super) struct Ring {
    ring: IoUring<Entry128, cqueue::Entry>,
    fd: RawFd,
    qid: u16,
    /// Of timers that run; the kernel reads them when they are submitted.
    #[expect(clippy::vec_box, reason = "the kernel has their addresses")]
    timers: Vec<Box<types::Timespec>>,
}

impl Ring {
    /// Makes a ring for one of the kernel's queues. The device must stay open as long.
    pub(super) fn new(device: &impl AsFd, qid: u16) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(SIZE)?;
        Ok(Self {
            ring,
            fd: device.as_fd().as_raw_fd(),
            qid,
            timers: Vec::new(),
        })
    }

    /// Gives an entry to the kernel for its first request.
    pub(super) fn register(&mut self, index: usize, entry: &mut Entry) -> io::Result<()> {
        self.command(REGISTER, 0, index, entry)
    }

    /// Gives an entry with a reply to the kernel, for its next request.
    pub(super) fn commit(&mut self, id: u64, index: usize, entry: &mut Entry) -> io::Result<()> {
        self.command(COMMIT_AND_FETCH, id, index, entry)
    }

    fn command(&mut self, op: u32, id: u64, index: usize, entry: &mut Entry) -> io::Result<()> {
        let request = CmdReq {
            commit_id: id,
            qid: self.qid,
            ..Default::default()
        };
        let mut cmd = [0; 80];
        cmd.copy_from_slice(request.as_bytes());
        let mut sqe = opcode::UringCmd80::new(types::Fd(self.fd), op)
            .cmd(cmd)
            .addr(Some(entry.give()))
            .build()
            .user_data(index as u64);
        // SAFETY: An `Entry128` is a `struct io_uring_sqe` of 128 bytes, all of them initialised
        // integers, and its field `len`, which has no setter for this operation, is a u32 there.
        unsafe {
            (&raw mut sqe)
                .cast::<u8>()
                .add(SQE_LEN)
                .cast::<u32>()
                .write(2)
        };
        self.push(&sqe)
    }

    /// Has [`Event::Due`] come after a while.
    pub(super) fn timer(&mut self, index: usize, after: Duration) -> io::Result<()> {
        let time = Box::new(types::Timespec::from(after));
        let sqe = opcode::Timeout::new(&raw const *time)
            .build()
            .user_data(index as u64 | TIMER);
        self.timers.push(time);
        self.push(&sqe.into())
    }

    fn push(&mut self, sqe: &Entry128) -> io::Result<()> {
        if self.ring.submission().is_full() {
            self.ring.submit()?;
        }
        // SAFETY: The memory that a command refers to is that of an `Entry`, which is not touched,
        // moved or freed until the command has completed; that of a timer is in `timers`.
        unsafe { self.ring.submission().push(sqe) }.map_err(io::Error::other)
    }

    /// Submits what there is, and waits until something has happened.
    pub(super) fn wait(&mut self) -> io::Result<Vec<Event>> {
        loop {
            match self.ring.submit_and_wait(1) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => {
                    result?;
                    break;
                }
            }
        }
        // Submitted, so read.
        self.timers.clear();
        Ok(self.ring.completion().map(|cqe| event(&cqe)).collect())
    }
}

fn event(cqe: &cqueue::Entry) -> Event {
    let index = (cqe.user_data() & !TIMER) as usize;
    match -cqe.result() {
        _ if cqe.user_data() & TIMER != 0 => Event::Due(index),
        0 => Event::Request(index),
        // The last one is what a command gets that was running when the thread began to end.
        libc_errno::ENOTCONN | libc_errno::ECONNABORTED | libc_errno::ECANCELED => {
            Event::Over(index)
        }
        libc_errno::EAGAIN => Event::Early(index),
        errno => Event::Refused(index, errno),
    }
}

/// Error numbers as completions have them.
mod libc_errno {
    use rustix::io::Errno;

    pub(super) const ENOTCONN: i32 = Errno::NOTCONN.raw_os_error();
    pub(super) const ECONNABORTED: i32 = Errno::CONNABORTED.raw_os_error();
    pub(super) const ECANCELED: i32 = Errno::CANCELED.raw_os_error();
    pub(super) const EAGAIN: i32 = Errno::AGAIN.raw_os_error();
}
