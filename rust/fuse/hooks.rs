// SPDX-License-Identifier: GPL-2.0

//! What the C side of FUSE calls, see fuse_iomap.h.
//!
//! Each hook turns pointers into references and leaves the rest to safe code.
#![allow(unsafe_code)]

mod conn;
mod file;
mod inode;
