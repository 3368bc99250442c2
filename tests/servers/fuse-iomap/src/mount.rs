// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Mounting and unmounting.

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
};
use std::ffi::CString;
use std::fmt::Write;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How a filesystem is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What /proc/mounts shows as the source; for [`MountOptions::block_device`] the device.
    pub source: PathBuf,
    /// Shown after `fuse.` as the type.
    pub subtype: Option<String>,
    /// Mount as `fuseblk` on the block device `source`, with this block size.
    pub block_device: Option<u32>,
    /// Node id of the root, if not [`ROOT_ID`](crate::wire::ROOT_ID).
    pub root_nodeid: Option<u64>,
    /// Mount read-only.
    pub read_only: bool,
    /// Let other users in.
    pub allow_other: bool,
    /// Let the kernel check permissions by the inodes' modes.
    pub default_permissions: bool,
    /// Largest READ; `None` for no limit but the one in INIT.
    pub max_read: Option<u32>,
    /// Honour set-user-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Further flags of mount(2), such as for access times.
    pub flags: MountFlags,
    /// Further words for the kernel, such as security contexts.
    pub data: Vec<String>,
}

impl MountOptions {
    /// For everybody, with permissions checked by the kernel, as a filesystem on a disk wants it.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            subtype: None,
            block_device: None,
            root_nodeid: None,
            read_only: false,
            allow_other: true,
            default_permissions: true,
            max_read: None,
            suid: false,
            dev: false,
            flags: MountFlags::empty(),
            data: Vec::new(),
        }
    }

    /// The same with a subtype.
    #[must_use]
    pub fn subtype(mut self, subtype: impl Into<String>) -> Self {
        self.subtype = Some(subtype.into());
        self
    }

    /// The same, read-only or not.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    fn base_type(&self) -> &'static str {
        if self.block_device.is_some() {
            "fuseblk"
        } else {
            "fuse"
        }
    }

    fn filesystem_type(&self) -> String {
        let base = self.base_type();
        match &self.subtype {
            Some(subtype) => format!("{base}.{subtype}"),
            None => base.to_owned(),
        }
    }

    fn data(&self, fd: i32) -> String {
        let mut data = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
        if self.default_permissions {
            data.push_str(",default_permissions");
        }
        if self.allow_other {
            data.push_str(",allow_other");
        }
        // Writing to a String cannot fail.
        if let Some(max_read) = self.max_read {
            let _ = write!(data, ",max_read={max_read}");
        }
        if let Some(size) = self.block_device {
            let _ = write!(data, ",blksize={size}");
        }
        if let Some(id) = self.root_nodeid {
            let _ = write!(data, ",root_nodeid={id}");
        }
        for word in &self.data {
            let _ = write!(data, ",{word}");
        }
        data
    }

    fn flags(&self) -> MountFlags {
        let mut flags = self.flags;
        flags.set(MountFlags::RDONLY, self.read_only);
        flags.set(MountFlags::NOSUID, !self.suid);
        flags.set(MountFlags::NODEV, !self.dev);
        flags
    }

    /// The flags of the mount, for fsmount(2).
    fn attributes(&self) -> MountAttrFlags {
        let flags = self.flags();
        [
            (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
            (
                MountFlags::STRICTATIME,
                MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            ),
            (
                MountFlags::NODIRATIME,
                MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            ),
        ]
        .into_iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .map(|(_, attribute)| attribute)
        .collect()
    }

    /// The flags of the filesystem, for fsconfig(2).
    fn superblock_flags(&self) -> impl Iterator<Item = &'static str> {
        let flags = self.flags();
        [
            (MountFlags::RDONLY, "ro"),
            (MountFlags::SYNCHRONOUS, "sync"),
            (MountFlags::DIRSYNC, "dirsync"),
            (MountFlags::LAZYTIME, "lazytime"),
        ]
        .into_iter()
        .filter(move |(flag, _)| flags.contains(*flag))
        .map(|(_, name)| name)
    }
}

/// Opens the FUSE device.
pub(crate) fn open_device() -> io::Result<OwnedFd> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("cannot open /dev/fuse: {e}"))
    })
}

/// Mounts with an open FUSE device.
pub(crate) fn mount(
    dev: BorrowedFd<'_>,
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<()> {
    let data = CString::new(options.data(dev.as_raw_fd()))?;
    rustix::mount::mount(
        &options.source,
        mountpoint,
        options.filesystem_type(),
        options.flags(),
        Some(data.as_c_str()),
    )
    .map_err(|e| {
        let e = io::Error::from(e);
        let at = mountpoint.display();
        io::Error::new(e.kind(), format!("cannot mount on {at}: {e}"))
    })
}

/// Mounts for another process that has the FUSE device open, too.
///
/// In steps, unlike mount(2), since `dev` has to be closed before the one that may wait.
pub(crate) fn mount_for_another(
    dev: OwnedFd,
    mountpoint: &Path,
    options: &MountOptions,
) -> io::Result<()> {
    use rustix::mount::{
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    };

    let fs = fsopen(options.base_type(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(fs.as_fd(), "source", &options.source)?;
    if let Some(subtype) = &options.subtype {
        fsconfig_set_string(fs.as_fd(), "subtype", subtype)?;
    }
    for flag in options.superblock_flags() {
        fsconfig_set_flag(fs.as_fd(), flag)?;
    }
    for word in options.data(dev.as_raw_fd()).split(',') {
        match word.split_once('=') {
            Some((key, value)) => fsconfig_set_string(fs.as_fd(), key, value)?,
            None => fsconfig_set_flag(fs.as_fd(), word)?,
        }
    }
    drop(dev);
    fsconfig_create(fs.as_fd())?;
    let mount = fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        options.attributes(),
    )?;
    let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(
        mount.as_fd(),
        "",
        rustix::fs::CWD,
        mountpoint,
        from_fd,
    )?)
}

/// Takes the mount out of the tree; it ends when its last user is gone.
pub(crate) fn detach(mountpoint: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(mountpoint, UnmountFlags::DETACH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_mount_data() {
        let mut o = MountOptions::new("lab").subtype("lab");
        o.max_read = Some(131072);
        assert_eq!(o.filesystem_type(), "fuse.lab");
        assert_eq!(
            o.data(5),
            "fd=5,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=131072"
        );
        o.block_device = Some(4096);
        assert_eq!(o.filesystem_type(), "fuseblk.lab");
        assert!(o.data(5).ends_with(",blksize=4096"));
        o.data.push("context=\"a:b:c\"".to_owned());
        assert!(o.data(5).ends_with(",blksize=4096,context=\"a:b:c\""));
        o.flags = MountFlags::NOATIME;
        assert!(o.flags().contains(MountFlags::NOATIME));
        assert!(o.flags().contains(MountFlags::NODEV));
        o.flags = MountFlags::NOATIME | MountFlags::LAZYTIME;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!(o.attributes(), attributes);
        assert!(o.superblock_flags().eq(["lazytime"]));
    }
}
