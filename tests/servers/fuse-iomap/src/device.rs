// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The FUSE device before the mount: for programs that mount for a server without privilege.

use crate::ioctl;
use crate::mount::{self, MountOptions};
use crate::wire::BackingMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// An open FUSE device with which nothing has been mounted yet.
///
/// A program with privilege, the mounter, prepares it and hands it to the server, which needs none:
///
/// 1. [`FuseDevice::open`], [`FuseDevice::add_iomap`] and [`FuseDevice::wait_for_server`];
/// 2. start the server with [`crate::inherit`] of this and of the disks, for instance as
///    [`crate::sandboxed`] has it; there [`crate::inherited`] and
///    [`crate::Session::from_device`] take them up;
/// 3. [`FuseDevice::mount`].
#[derive(Debug)]
pub struct FuseDevice(OwnedFd);

impl FuseDevice {
    /// Opens the device.
    pub fn open() -> io::Result<Self> {
        mount::open_device().map(Self)
    }

    /// Lets the mount that is made with this device use iomap, whoever makes it. Needs
    /// `CAP_SYS_RAWIO` (`EPERM`), a kernel with iomap (`ENOTTY`) where it is turned on
    /// (`EOPNOTSUPP`), and a device that is not mounted (`EINVAL`).
    pub fn add_iomap(&self) -> io::Result<()> {
        ioctl::add_iomap(self.0.as_fd())
    }

    /// Makes the mount wait until the server has answered INIT (and CONFIG), and fail if it does
    /// not; and the server, which may start first, wait for the mount.
    pub fn wait_for_server(&self) -> io::Result<()> {
        ioctl::sync_init(self.0.as_fd())
    }

    /// Makes this another way to the connection of `other`, which is mounted.
    pub fn clone_from(&self, other: &Self) -> io::Result<()> {
        ioctl::clone_device(self.0.as_fd(), other.0.as_fd())
    }

    /// Registers a backing file with the connection, see [`crate::Connection::backing_open_raw`].
    pub fn backing_open_raw(&self, map: BackingMap) -> io::Result<u32> {
        ioctl::backing_open(self.0.as_fd(), map)
    }

    /// Mounts. The device is given away: who serves it has it open, and when that process dies
    /// the connection ends, as it must, even while this is still waiting.
    pub fn mount(self, mountpoint: impl AsRef<Path>, options: &MountOptions) -> io::Result<()> {
        let mountpoint = mountpoint.as_ref().canonicalize()?;
        mount::mount_for_another(self.0, &mountpoint, options)
    }
}

/// One that is open already.
impl From<OwnedFd> for FuseDevice {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for FuseDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
