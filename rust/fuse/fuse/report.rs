// SPDX-License-Identifier: GPL-2.0

//! What is told of requests and mappings: trace events, and lines in the log.
#![allow(unsafe_code)]

use super::IomapInode;
use crate::rule::Rule;
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
