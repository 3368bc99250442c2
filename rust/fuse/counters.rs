// SPDX-License-Identifier: GPL-2.0

//! What is counted for a connection, and shown in its directory of the control filesystem.
//!
//! All but what the cache of mappings counts under its lock is per CPU, see `counters.c`.
#![deny(unsafe_code)]

use crate::{cache::Usage, rule::Rule};
use kernel::{
    bindings,

    seq_file::{seq_print, SeqFile}, //
};

/// Declares [`Counter`], so that each has one line with all there is to it.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Counter {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Counter {
            /// All of them, with the names that are shown.
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $name),)+];
        }
    };
}

counters! {
    /// Questions for mappings that were sent.
    Begin = "begin",
    /// Those that were answered with an error, or not at all.
    BeginErrors = "begin-errors",
    /// The server was told that a mapping has been used.
    End = "end",
    /// As for BEGIN.
    EndErrors = "end-errors",
    /// The server was told of completed I/O.
    Ioend = "ioend",
    /// As for BEGIN.
    IoendErrors = "ioend-errors",
    /// Ranges that it was told of.
    IoendRecords = "ioend-records",
    /// CONFIG.
    Config = "config",
    /// As for BEGIN, or the answer made no sense.
    ConfigErrors = "config-errors",
    /// Reads of inline data.
    Read = "read",
    /// As for BEGIN.
    ReadErrors = "read-errors",
    /// Writes of inline data.
    Write = "write",
    /// As for BEGIN.
    WriteErrors = "write-errors",
    /// FALLOCATE for iomap inodes.
    Fallocate = "fallocate",
    /// As for BEGIN.
    FallocateErrors = "fallocate-errors",
    /// FREEZE_FS.
    Freeze = "freeze",
    /// As for BEGIN.
    FreezeErrors = "freeze-errors",
    /// UNFREEZE_FS.
    Unfreeze = "unfreeze",
    /// As for BEGIN.
    UnfreezeErrors = "unfreeze-errors",
    /// SHUTDOWN_FS.
    Shutdown = "shutdown",
    /// As for BEGIN.
    ShutdownErrors = "shutdown-errors",
    /// Notifications with mappings.
    Upsert = "upsert",
    /// Those that were refused.
    UpsertErrors = "upsert-errors",
    /// Notifications that mappings are no longer true.
    Inval = "inval",
    /// Those that were refused.
    InvalErrors = "inval-errors",
    /// Notifications that what is cached of a device is no longer true.
    DevInval = "dev-inval",
    /// Those that were refused.
    DevInvalErrors = "dev-inval-errors",
    /// Answers from the cache of mappings.
    CacheHit = "cache-hits",
    /// Questions that the cache had no answer to.
    CacheMiss = "cache-misses",
    /// Pieces of writeback and of asynchronous direct writes that ended where the device reported
    /// them.
    IoendInline = "ioends-inline",
    /// Those that were left to a task, because the server has to be told.
    IoendQueued = "ioends-queued",
    /// Those of the latter that became part of another one.
    IoendMerged = "ioends-merged",
    /// Answers and notifications that broke a rule.
    Rejected = "rejected",
}

/// The number of the counter of the first rule; they follow those that have a name here.
const RULES: usize = Counter::ALL.len();

// The C side has room for all.
const _: () = assert!(RULES + Rule::ALL.len() <= bindings::FUSE_IOMAP_NR_COUNTERS as usize);

/// Requests and notifications, whose numbers differ, with what counts them and their errors.
const MESSAGES: [(u32, Counter, Counter); 13] = [
    (
        bindings::fuse_opcode_FUSE_IOMAP_BEGIN,
        Counter::Begin,
        Counter::BeginErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_IOMAP_END,
        Counter::End,
        Counter::EndErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_IOMAP_IOEND,
        Counter::Ioend,
        Counter::IoendErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_IOMAP_CONFIG,
        Counter::Config,
        Counter::ConfigErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_READ,
        Counter::Read,
        Counter::ReadErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_WRITE,
        Counter::Write,
        Counter::WriteErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_FALLOCATE,
        Counter::Fallocate,
        Counter::FallocateErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_FREEZE_FS,
        Counter::Freeze,
        Counter::FreezeErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_UNFREEZE_FS,
        Counter::Unfreeze,
        Counter::UnfreezeErrors,
    ),
    (
        bindings::fuse_opcode_FUSE_SHUTDOWN_FS,
        Counter::Shutdown,
        Counter::ShutdownErrors,
    ),
    (
        bindings::fuse_notify_code_FUSE_NOTIFY_IOMAP_UPSERT_MAPPINGS,
        Counter::Upsert,
        Counter::UpsertErrors,
    ),
    (
        bindings::fuse_notify_code_FUSE_NOTIFY_IOMAP_INVAL_MAPPINGS,
        Counter::Inval,
        Counter::InvalErrors,
    ),
    (
        bindings::fuse_notify_code_FUSE_NOTIFY_IOMAP_DEV_INVAL,
        Counter::DevInval,
        Counter::DevInvalErrors,
    ),
];

/// The counters of a request or notification and of its errors, if that is one of iomap's.
pub(crate) fn of_message(number: u32) -> Option<(Counter, Counter)> {
    MESSAGES
        .iter()
        .find(|&&(message, ..)| message == number)
        .map(|&(_, all, errors)| (all, errors))
}

/// The number of the counter of a rule.
pub(crate) fn of_rule(rule: Rule) -> usize {
    RULES + rule as usize
}

/// Shows all, one in a line, given how to read one by its number.
pub(crate) fn show(seq: &SeqFile, read: impl Fn(usize) -> u64, cache: &Usage) {
    for &(counter, name) in Counter::ALL {
        seq_print!(seq, "{} {}\n", name, read(counter as usize));
    }
    for (name, value) in [
        ("cache-insertions", cache.insertions),
        ("cache-evictions", cache.evictions),
        ("cache-mappings", cache.ranges),
        ("cache-bytes", cache.bytes),
        ("cache-maxbytes", cache.max_bytes),
    ] {
        seq_print!(seq, "{} {}\n", name, value);
    }
    for &rule in Rule::ALL {
        seq_print!(
            seq,
            "rejected-{} {}\n",
            rule.name().to_str().unwrap_or_default(),
            read(of_rule(rule))
        );
    }
}
