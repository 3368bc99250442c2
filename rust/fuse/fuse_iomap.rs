// SPDX-License-Identifier: GPL-2.0

//! FUSE file I/O through iomap.
//!
//! A FUSE server says where the data of a file lies on a block device, and the kernel moves it.
//! The wire protocol is described in `Documentation/filesystems/fuse/fuse-iomap.rst`.
//!
//! # Rooms
//!
//! - [`hooks`]: what the C side calls, and nothing else.
//! - [`fuse`]: what this module calls of the C side.
//! - [`inode`]: the state of an inode, [`devices`]: the devices that it has mappings to.
//! - [`ops`]: the answers to fs/iomap, [`begin`]: where they come from, [`cache`]: what is known
//!   without asking, [`mapping`]: checked mappings, [`rule`]: what is checked.
//! - [`write`]: writes, [`direct`]: I/O past the page cache, [`inline`]: data in the inode,
//!   [`truncate`]: sizes, [`fallocate`]: blocks, [`writeback`] and [`ioend`]: completions,
//!   [`sync`]: stable storage, [`swap`]: files that are swapped to.
//! - [`attr`]: times and flags.
//! - [`config`]: what is agreed upon with the server, [`notify`]: what it says without being asked,
//!   [`counters`]: what is counted.
//!
//! # Locks
//!
//! From the outside in; who holds one may take those after it.
//!
//! 1. `i_rwsem`: shared for FIEMAP, SEEK_HOLE and SEEK_DATA, since the size must not change while
//!    they walk the file, for direct reads, and for direct writes that leave the size alone;
//!    exclusive for other writes, truncation and fallocate.  Direct I/O in flight may be without
//!    it, and is waited for by what cannot stand it.
//! 2. `invalidate_lock`: shared for page faults and filling the page cache; exclusive where blocks
//!    are zeroed beyond the end of the file or change hands under the page cache.  Inside 1 because
//!    the VFS has taken that when it calls; before 3 because a fault locks a folio inside it.
//! 3. The lock of a folio, which reads, page faults and writeback come with.
//! 4. What a request to the server takes inside FUSE.
//! 5. The list of completions of an inode: a leaf, with interrupts off.
//!
//! A task waits for the server with any of 1 to 3 held, so the server must not do I/O on the file
//! that it is asked about.  The work item that tells the server of completions holds none of them,
//! and whoever waits for a folio under writeback waits for the server: so no answer of a server may
//! depend on memory that is reclaimed by writing back.

#![warn(missing_docs)]
#![deny(unsafe_code)]

mod attr;
mod begin;
mod cache;
mod config;
mod counters;
mod devices;
mod direct;
mod fallocate;
mod fuse;
mod hooks;
mod inline;
mod inode;
mod ioend;
mod mapping;
mod notify;
mod ops;
mod rule;
mod swap;
mod sync;
#[cfg(CONFIG_FUSE_IOMAP_KUNIT_TEST)]
mod tests;
mod truncate;
mod write;
mod writeback;

/// The prefix of log lines: this crate is a part of FUSE's module.
const __LOG_PREFIX: &[u8] = b"fuse: iomap\0";
