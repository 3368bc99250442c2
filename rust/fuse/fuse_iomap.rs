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
//! - [`ops`]: the answers to fs/iomap, [`mapping`]: checked mappings, [`rule`]: what is checked.
//!
//! # Locks
//!
//! From the outside in; who holds one may take those after it.
//!
//! 1. `i_rwsem`, shared, for FIEMAP, SEEK_HOLE and SEEK_DATA: the size must not change while they
//!    walk the file.
//! 2. The lock of a folio, which reads come with.
//! 3. What a request to the server takes inside FUSE.
//!
//! Nothing here is held while another task is waited for, except what fs/iomap holds when it asks
//! for a mapping: 1 or 2. The server must not do I/O on the file that it is asked about.

#![warn(missing_docs)]
#![deny(unsafe_code)]

mod devices;
mod fuse;
mod hooks;
mod inode;
mod mapping;
mod ops;
mod rule;
#[cfg(CONFIG_FUSE_IOMAP_KUNIT_TEST)]
mod tests;

/// The prefix of log lines: this crate is a part of FUSE's module.
const __LOG_PREFIX: &[u8] = b"fuse: iomap\0";
