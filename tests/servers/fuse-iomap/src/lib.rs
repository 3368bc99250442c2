// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A library for writing FUSE servers whose file I/O the kernel does itself.
//!
//! With FUSE-iomap a server no longer reads and writes file data. It answers
//! "where on which device is this byte range?" ([`Filesystem::iomap_begin`]), and
//! the kernel moves the data through its page cache or directly. Everything
//! else (names, attributes, directories) is FUSE as usual, and files with and
//! without iomap live side by side on one mount.
//!
//! # A server in five steps
//!
//! 1. Implement [`Filesystem`]. All methods take `&self` and are called from several
//!    threads; those that you leave out answer `ENOSYS`.
//! 2. In [`Filesystem::init`] call [`InitConfig::request_iomap`]. It says whether the kernel
//!    offers iomap on this mount.
//! 3. In [`Filesystem::ready`], which runs after INIT was answered and before anything else of
//!    the filesystem is asked for, register block devices with [`Connection::backing_open`] and keep
//!    the [`BackingId`]s.
//! 4. Set [`wire::attr_flags::EXCLUSIVE`] and [`wire::attr_flags::IOMAP`] in the attributes of
//!    regular files, and `blksize` to the size of the file's blocks.
//! 5. Answer [`Filesystem::iomap_begin`] with [`Mapping`]s.
//!
//! A kernel that knows mappings already does not ask. To make use of that, accept
//! the extensions in [`Filesystem::iomap_config`] ([`ConfigReply::caching`]) and mark the mappings with
//! [`BeginReply::cached`]; or put them into the kernel's cache with [`Connection::iomap_upsert`]. What
//! the kernel itself makes untrue (truncation, fallocate(2), completions) it forgets by itself; a
//! server that moves blocks of its own accord tells it with [`Connection::iomap_inval`].
//!
//! [`Session::mount`] mounts it and [`Session::run`] serves it until it is unmounted.
//! `examples/onefile.rs` is a complete server; `make example` in the repository mounts it on a disk
//! in a virtual machine, reads and writes through it, and looks at the disk.
//!
//! A server needs no privilege at all if another program mounts for it and hands it the FUSE device
//! and the disks, open: [`FuseDevice`] says how.
//!
//! ```no_run
//! use fuse_iomap::{Filesystem, MountOptions, Session, SessionOptions};
//!
//! struct Nothing;
//! impl Filesystem for Nothing {}
//!
//! # fn main() -> std::io::Result<()> {
//! let session = Session::mount(
//!     Nothing,
//!     "/mnt",
//!     &MountOptions::new("nothing"),
//!     SessionOptions::default(),
//! )?;
//! session.run()
//! # }
//! ```
//!
//! # Why a layer of its own
//!
//! The published crates were looked at first (November 2026). None lets this protocol through:
//!
//! | crate | what stops it |
//! |---|---|
//! | `fuser` 0.18.0 | a request with an opcode outside its enumeration ends as `RequestError::UnknownOperation`; on Linux `fuse_attr.flags` is private padding and always 0; notification codes are a closed, private set |
//! | `fuse-backend-rs` 0.14.0 | opcodes of 50 and more are answered with `ENOSYS` inside the crate; INIT flags go through `from_bits_truncate`, which drops bit 62 |
//! | `polyfuse` 0.5.1 | an unknown opcode becomes `Operation::Unknown` without its arguments |
//! | `fuse3` 0.10.0 | an unknown opcode is answered with `ENOSYS` and ends the session; `fuse_attr.flags` does not exist on Linux |
//!
//! So the wire structures are plain data with derived conversions ([`wire`]), and what lies
//! between them and [`Filesystem`] is thin.
//!
//! # Trust
//!
//! Requests are parsed with bounds checks and a malformed one is answered with `EIO`; nothing in
//! here panics on what the kernel sends.
#![deny(unsafe_code)]
#![warn(missing_docs)]

mod caching;
mod clock;
mod config;
mod connection;
mod counters;
mod device;
mod dir;
mod dispatch;
mod fs;
mod hook;
mod inherit;
mod ioctl;
mod mapping;
mod mount;
mod reply;
mod request;
mod retried;
mod sandbox;
mod session;
mod uring;
pub mod wire;

pub use caching::{CacheMode, Caching};
pub use clock::file_time;
pub use config::ConfigReply;
pub use connection::{BackingId, BackingType, Connection, Negotiated};
pub use counters::Counters;
pub use device::FuseDevice;
pub use dir::{DirBuffer, DirPlusBuffer, FileKind};
pub use fs::{Filesystem, InitConfig};
pub use hook::{ReplyAction, ReplyHook};
pub use inherit::{inherit, inherited};
pub use mapping::{BeginReply, Mapping};
pub use mount::MountOptions;
pub use reply::{AttrReply, Entry, IoctlReply, Opened};
pub use request::Request;
pub use retried::Retried;
pub use sandbox::sandboxed;
pub use session::{Session, SessionOptions};

/// An error number, as the kernel gets it.
pub use rustix::io::Errno;

/// What the methods of [`Filesystem`] return.
pub type Result<T> = std::result::Result<T, Errno>;
