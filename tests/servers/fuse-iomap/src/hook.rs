// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A look at, and a hand on, every reply before it is sent. For tests that need a
//! server which misbehaves.

use crate::request::Request;
use std::io;
use std::time::Duration;

/// What becomes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyAction {
    /// Send it now.
    Send,
    /// Never send it.
    Drop,
    /// Send it later, without keeping a worker thread busy.
    Delay(Duration),
}

/// Sees every reply, and may change or withhold it.
pub trait ReplyHook: Send + Sync {
    /// `reply` is the complete message, header included, and may be changed in any way.
    /// `args` are the arguments of the request.
    fn reply(&self, request: &Request, args: &[u8], reply: &mut Vec<u8>) -> ReplyAction;

    /// The caller of request `unique` was interrupted by a signal.
    fn interrupted(&self, unique: u64) {
        let _ = unique;
    }

    /// The kernel did not take a reply.
    fn refused(&self, request: &Request, error: &io::Error) {
        let _ = (request, error);
    }
}
