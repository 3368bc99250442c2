// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The half of this program that has privilege: it opens what the other half needs, mounts, and
//! never looks at what is on the device.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::Path,
    process::Stdio,
};

use fuse_iomap::{FuseDevice, MountOptions, inherit, sandboxed};
use rustix::fs::OFlags;

use crate::{options::Options, server::IomapMode};

/// Mounts, and has this program serve the mount without any privilege, as
/// `ext4 --fuse-fd N --device-fd N`. Returns when it serves, or with `--foreground` when it has ended.
pub fn run(options: &Options, mount: &MountOptions) -> io::Result<()> {
    let (device, writable) = open(&options.device, options.write)?;
    let fuse = FuseDevice::open()?;
    if options.iomap != IomapMode::Off {
        match fuse.add_iomap() {
            Err(err) if options.iomap == IomapMode::Require => return Err(err),
            // The server is told by the kernel, and says so.
            _ => {}
        }
    }
    fuse.wait_for_server()?;

    let mut server = sandboxed(std::env::current_exe()?);
    server
        .args(["--fuse-fd", &inherit(&fuse)?.to_string()])
        .args(["--device-fd", &inherit(&device)?.to_string()])
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    let mut server = server.spawn()?;
    drop(device);

    let mount = mount.clone().read_only(!writable);
    let mounted = fuse.mount(&options.mountpoint, &mount);
    if mounted.is_err() {
        // Its own complaint is on standard error.
        server.wait()?;
    } else if options.foreground {
        let status = server.wait()?;
        if !status.success() {
            return Err(io::Error::other(format!("the server ended with {status}")));
        }
    }
    mounted
}

/// Opens the device as the server would, and says whether for writing.
fn open(path: &Path, write: Option<bool>) -> io::Result<(File, bool)> {
    if write != Some(false) {
        let flags = OFlags::EXCL | OFlags::DIRECT;
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags.bits() as i32)
            .open(path);
        match opened {
            Err(err)
                if write.is_none()
                    && matches!(
                        err.kind(),
                        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                    ) => {}
            opened => return Ok((opened?, true)),
        }
    }
    Ok((File::open(path)?, false))
}
