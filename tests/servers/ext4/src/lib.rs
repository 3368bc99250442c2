// SPDX-License-Identifier: GPL-2.0 OR MIT
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod acl;
mod alloc;
mod commit;
pub mod data;
pub mod device;
pub mod dir;
mod dirs;
pub mod disk;
mod edit;
pub mod error;
mod extents;
pub mod features;
mod freeze;
mod groups;
mod htree;
pub mod inode;
mod journal;
mod listing;
pub mod map;
mod mount;
pub mod names;
mod orphans;
pub mod rename;
pub mod resize;
mod txn;
pub mod volume;
pub mod xattr;
pub mod xattrs;

pub use error::{Error, Result};
pub use volume::Volume;
