// SPDX-License-Identifier: GPL-2.0

//! What is told of requests and mappings: trace events, and lines in the log.
#![allow(unsafe_code)]

use super::{conn, IomapInode};
use crate::{
    counters::{self, Counter},
    rule::Rule, //
};
use kernel::{
    bindings::{
        self,
        fuse_iomap_begin_in,
        fuse_iomap_end_in,
        fuse_iomap_io,
        fuse_iomap_ioend_in, //
    },
    ffi::{c_char, c_int, c_uint},
    fs::Offset,
    prelude::*,
    tracepoint::declare_trace, //
};

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

/// Counts one for a connection.
///
/// Any context.
///
/// # Safety
///
/// The connection is alive and has iomap on.
pub(crate) unsafe fn count(conn: *mut bindings::fuse_conn, counter: Counter) {
    // SAFETY: By the safety requirements; all numbers are in range, see `counters`.
    unsafe { bindings::fuse_iomap_count(conn, counter as c_uint, 1) };
}

impl IomapInode<'_> {
    /// Counts one.
    ///
    /// Any context.
    #[inline]
    pub(crate) fn count(self, counter: Counter) {
        self.count_many(counter as usize, 1);
    }

    /// Counts `n` of the counter with this number.
    #[inline]
    fn count_many(self, counter: usize, n: usize) {
        // SAFETY: The connection is alive by the type invariant and has iomap on.  All numbers are
        // below `FUSE_IOMAP_NR_COUNTERS`, see `counters`.
        // CAST: So it fits, and a count has 64 bits.
        unsafe { bindings::fuse_iomap_count(conn(self.0), counter as c_uint, n as u64) };
    }

    /// Counts the ranges of an IOEND.
    pub(super) fn count_records(self, n: usize) {
        self.count_many(Counter::IoendRecords as usize, n);
    }

    /// Counts ioends that were merged into others.
    pub(crate) fn count_merged(self, n: usize) {
        self.count_many(Counter::IoendMerged as usize, n);
    }

    /// Counts a request, and whether it failed.
    pub(super) fn count_request(self, opcode: bindings::fuse_opcode, failed: bool) {
        if let Some((all, errors)) = counters::of_message(opcode) {
            self.count(all);
            if failed {
                self.count(errors);
            }
        }
    }

    /// Counts an answer that breaks a rule.
    fn count_rejected(self, rule: Rule) {
        self.count(Counter::Rejected);
        self.count_many(counters::of_rule(rule), 1);
    }

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

    /// Reports an answer to IOEND with an impossible size, in the log.
    pub(crate) fn report_newsize(self, rule: Rule, request: &fuse_iomap_ioend_in, newsize: u64) {
        self.count_rejected(rule);
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
        self.count_rejected(rule);
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
