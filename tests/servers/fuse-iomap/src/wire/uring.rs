// SPDX-License-Identifier: GPL-2.0 OR MIT
//! FUSE over io_uring: where requests and replies lie in memory, and the commands that exchange
//! them.

use super::{FromBytes, Immutable, IntoBytes, KnownLayout, wire_struct};

/// Room for the first argument of a request, and for the headers of request and reply.
pub const HEADER_SPACE: usize = 128;

/// `FUSE_IO_URING_CMD_REGISTER`: here is memory for a request, and the first one is wanted.
pub const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: here is a reply, and the next request is wanted.
pub const COMMIT_AND_FETCH: u32 = 2;

wire_struct! {
    /// `struct fuse_uring_ent_in_out`.
    32 EntInOut {
        flags: u64,
        commit_id: u64,
        payload_sz: u32,
        offset: u32,
        reserved: u64,
    }
}
wire_struct! {
    /// `struct fuse_uring_cmd_req` with what has room behind it in a submission.
    80 CmdReq {
        flags: u64,
        commit_id: u64,
        qid: u16,
        padding: [u8; 6],
        rest: [u64; 7],
    }
}
