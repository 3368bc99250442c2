// SPDX-License-Identifier: GPL-2.0 OR MIT
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod device;
pub mod dir;
pub mod error;
pub mod features;
pub mod inode;
pub mod map;
pub mod volume;
pub mod xattr;

pub use error::{Error, Result};
pub use volume::Volume;
