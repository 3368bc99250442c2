// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Memory for one request and its reply, which kernel and server hand to and fro.
#![allow(unsafe_code)]

use crate::wire::uring::{EntInOut, HEADER_SPACE};
use crate::wire::{InHeader, OutHeader};
use std::cell::UnsafeCell;
use zerocopy::{FromBytes, IntoBytes};

/// `struct fuse_uring_req_header`: the header of request or reply, the first argument, and what is
/// said about the payload.
const HEADERS: usize = 2 * HEADER_SPACE + size_of::<EntInOut>();
/// The header and the first argument are put here, in front of the payload, so that the request is in
/// one piece as on `/dev/fuse`.
const GAP: usize = size_of::<InHeader>() + HEADER_SPACE;

/// `struct iovec`.
#[repr(C)]
struct Iovec {
    base: u64,
    len: u64,
}

/// What the kernel reads and writes; it knows where it is, so this never moves.
struct Memory {
    headers: UnsafeCell<[u8; HEADERS]>,
    /// After a gap, the payload.
    payload: UnsafeCell<Vec<u8>>,
    /// Headers and payload.
    iovecs: UnsafeCell<[Iovec; 2]>,
}

/// One of them.
pub(super) struct Entry {
    memory: Option<Box<Memory>>,
    /// Who may touch the memory.
    with_kernel: bool,
}

/// What the kernel has put there.
pub(super) struct Arrived<'a> {
    /// The whole request.
    pub(super) message: &'a [u8],
    /// Names the request when it is answered.
    pub(super) commit_id: u64,
}

impl Entry {
    /// Room for requests and replies with up to `payload` bytes.
    pub(super) fn new(payload: usize) -> Self {
        let mut space = vec![0; GAP + payload];
        let base = space.as_mut_ptr() as u64 + GAP as u64;
        let memory = Box::new(Memory {
            headers: UnsafeCell::new([0; HEADERS]),
            payload: UnsafeCell::new(space),
            iovecs: UnsafeCell::new([
                Iovec {
                    base: 0,
                    len: HEADERS as u64,
                },
                Iovec {
                    base,
                    len: payload as u64,
                },
            ]),
        });
        let headers = memory.headers.get() as u64;
        let mut entry = Self {
            memory: Some(memory),
            with_kernel: false,
        };
        if let Some((_, _, iovecs)) = entry.parts() {
            iovecs[0].base = headers;
        }
        entry
    }

    /// Headers, payload with its gap, and the descriptions of both, unless the kernel has them.
    fn parts(&mut self) -> Option<(&mut [u8; HEADERS], &mut [u8], &mut [Iovec; 2])> {
        if self.with_kernel {
            return None;
        }
        let memory = self.memory.as_deref()?;
        // SAFETY: The kernel does not touch the memory unless `with_kernel` is set, and nobody but
        // this function gives out references to it, which borrow `self` mutably.
        unsafe {
            Some((
                &mut *memory.headers.get(),
                &mut *memory.payload.get(),
                &mut *memory.iovecs.get(),
            ))
        }
    }

    /// Gives the memory to the kernel, which finds all of it by the address that is returned.
    pub(super) fn give(&mut self) -> u64 {
        self.with_kernel = true;
        self.memory.as_deref().map_or(0, |m| m.iovecs.get() as u64)
    }

    /// The kernel has said that it is done with it.
    pub(super) const fn take_back(&mut self) {
        self.with_kernel = false;
    }

    /// The request in memory that has come back.
    pub(super) fn arrived(&mut self) -> Option<Arrived<'_>> {
        let (headers, payload, _) = self.parts()?;
        let (header, _) = InHeader::read_from_prefix(&headers[..]).ok()?;
        let (about, _) = EntInOut::read_from_prefix(&headers[2 * HEADER_SPACE..]).ok()?;
        let rest = about.payload_sz as usize;
        // What is neither header nor payload is the first argument.
        let first = (header.len as usize).checked_sub(size_of::<InHeader>() + rest)?;
        if first > HEADER_SPACE || payload.len() < GAP + rest {
            return None;
        }
        let start = GAP - first - size_of::<InHeader>();
        let (front, _) = payload.split_at_mut(GAP);
        front[start..GAP - first].copy_from_slice(header.as_bytes());
        front[GAP - first..].copy_from_slice(&headers[HEADER_SPACE..HEADER_SPACE + first]);
        Some(Arrived {
            message: &payload[start..GAP + rest],
            commit_id: about.commit_id,
        })
    }

    /// Puts a reply, a whole message, into memory that has come back. One that does not fit, or is
    /// shorter than its header, says so.
    pub(super) fn answer(&mut self, reply: &[u8]) {
        let Some((headers, payload, _)) = self.parts() else {
            return;
        };
        let (header, body) = reply.split_at(reply.len().min(size_of::<OutHeader>()));
        let room = payload.len() - GAP;
        let fits = body.len() <= room && header.len() == size_of::<OutHeader>();
        headers[..size_of::<OutHeader>()].fill(0);
        headers[..header.len()].copy_from_slice(header);
        let body = if fits { body } else { &[] };
        payload[GAP..GAP + body.len()].copy_from_slice(body);
        let about = EntInOut {
            payload_sz: body.len() as u32,
            ..Default::default()
        };
        headers[2 * HEADER_SPACE..].copy_from_slice(about.as_bytes());
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.with_kernel {
            // It may still be written to.
            std::mem::forget(self.memory.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does what the kernel does.
    fn put(entry: &mut Entry, first: &[u8], rest: &[u8]) {
        let (headers, payload, _) = entry.parts().unwrap();
        let header = InHeader {
            len: (size_of::<InHeader>() + first.len() + rest.len()) as u32,
            unique: 8,
            ..Default::default()
        };
        headers[..size_of::<InHeader>()].copy_from_slice(header.as_bytes());
        headers[HEADER_SPACE..HEADER_SPACE + first.len()].copy_from_slice(first);
        let about = EntInOut {
            payload_sz: rest.len() as u32,
            commit_id: 8,
            ..Default::default()
        };
        headers[2 * HEADER_SPACE..].copy_from_slice(about.as_bytes());
        payload[GAP..GAP + rest.len()].copy_from_slice(rest);
    }

    #[test]
    fn a_request_is_in_one_piece() {
        let mut entry = Entry::new(100);
        for (first, rest) in [
            (&b"first"[..], &b"and the rest"[..]),
            (b"", b"name\0"),
            (&[7; HEADER_SPACE], &[8; 100]),
            (b"", b""),
        ] {
            put(&mut entry, first, rest);
            let arrived = entry.arrived().unwrap();
            assert_eq!(arrived.commit_id, 8);
            let args = &arrived.message[size_of::<InHeader>()..];
            assert_eq!(args, [first, rest].concat());
        }
    }

    #[test]
    fn nonsense_is_no_request() {
        let mut entry = Entry::new(10);
        put(&mut entry, b"x", b"y");
        let (headers, ..) = entry.parts().unwrap();
        headers[0] = 255;
        assert!(entry.arrived().is_none());
        headers_of(&mut entry)[0] = 1;
        assert!(entry.arrived().is_none());
        entry.give();
        assert!(entry.arrived().is_none());
        entry.take_back();
    }

    fn headers_of(entry: &mut Entry) -> &mut [u8; HEADERS] {
        entry.parts().unwrap().0
    }

    #[test]
    fn a_reply_is_taken_apart() {
        let mut entry = Entry::new(8);
        entry.answer(&[&[1; 16][..], b"body"].concat());
        let (headers, payload, _) = entry.parts().unwrap();
        assert_eq!(headers[..16], [1; 16]);
        assert_eq!(&payload[GAP..GAP + 4], b"body");
        assert_eq!(headers[2 * HEADER_SPACE + 16], 4);
        entry.answer(&[0; 16 + 9]);
        assert_eq!(headers_of(&mut entry)[2 * HEADER_SPACE + 16], 0);
    }
}
