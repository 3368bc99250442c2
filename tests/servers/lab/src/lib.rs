// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `lab`: a synthetic FUSE-iomap server for what a real filesystem cannot show.
//!
//! A [`scenario`] describes devices, inodes and their extents. [`pattern`] says what every byte
//! of every device is, so [`model`] knows what every byte of every file must be. [`misbehave`]
//! changes, delays or withholds replies, by rule or by seed, and [`oracle`] knows which replies the
//! protocol forbids. [`client`] starts a server and talks to it over its [`control`] channel.
#![forbid(unsafe_code)]

pub mod caching;
pub mod client;
pub mod control;
pub mod devices;
pub mod misbehave;
pub mod model;
pub mod oracle;
pub mod pattern;
pub mod random;
pub mod scenario;
pub mod server;
pub mod store;
