// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `ext4 DEVICE MOUNTPOINT`: mounts an ext2, ext3 or ext4 volume through FUSE, with the kernel
//! moving the data.
#![forbid(unsafe_code)]

mod mounter;
mod options;
mod server;

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
};

use ext4_volume::{Error, Volume, disk::FileDisk};
use fuse_iomap::{MountOptions, Session, SessionOptions, inherited};

use crate::{options::Options, server::Server};

/// What the serving process tells the one that started it.
const READY: &str = "ready";

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("ext4: {why}; see ext4 --help");
            return ExitCode::from(2);
        }
    };
    let result = if options.sandbox && options.handed.is_none() {
        mounter::run(&options, &mount_options(&options))
    } else if options.foreground || options.handed.is_some() {
        serve(options)
    } else {
        in_background()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ext4: {why}");
            ExitCode::FAILURE
        }
    }
}

fn on_path(path: &Path, what: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {what}", path.display()))
}

/// How the volume is mounted, but for read-only or not.
fn mount_options(options: &Options) -> MountOptions {
    let mut mount = MountOptions::new(&options.device).subtype("ext4");
    mount.allow_other = options.allow_other;
    mount.default_permissions = options.default_permissions;
    mount.suid = options.suid;
    mount.dev = options.dev;
    mount
}

/// Mounts, unless that is done already, and serves until unmounted.
fn serve(options: Options) -> io::Result<()> {
    let volume = Arc::new(open(&options).map_err(|err| on_path(&options.device, err))?);
    let mount = mount_options(&options).read_only(!volume.is_writable());
    let mut session = SessionOptions {
        counters_file: options.stats,
        ..Default::default()
    };
    if let Some(threads) = options.threads {
        session.threads = threads;
    }
    let tell = options.tell_ready;
    let on_ready = move || {
        if tell {
            // If nobody listens any more, nobody needs to know.
            let _ = writeln!(io::stdout(), "{READY}");
        }
    };
    let server = Server::new(
        volume.clone(),
        options.iomap,
        options.writeback_cache,
        options.caching,
        Box::new(on_ready),
    );
    let result = match options.handed {
        Some(handed) => inherited(handed.fuse)
            .and_then(|fuse| Session::from_device(server, fuse, session).run()),
        None => Session::mount(server, &options.mountpoint, &mount, session)
            .and_then(|session| session.run()),
    };
    // The kernel asks for this where it can; not if the mount failed, or was ended by force.
    volume
        .unmount()
        .map_err(|err| on_path(&options.device, err))
        .and(result)
}

/// Opens the volume for writing if that was asked for, or nothing was said and it is possible.
fn open(options: &Options) -> ext4_volume::Result<Volume> {
    let handed = options
        .handed
        .map(|handed| inherited(handed.device).map(File::from))
        .transpose()?;
    if options.write != Some(false) {
        let opened = match &handed {
            Some(file) => FileDisk::from_open(file.try_clone()?),
            None => FileDisk::open_writable(&options.device),
        };
        let opened = opened
            .map_err(Error::from)
            .and_then(|disk| Volume::open_writable(Arc::new(disk)));
        match opened {
            Err(err) if options.write.is_none() && may_read(&err) => {
                eprintln!("ext4: mounting read-only: {err}");
            }
            opened => return opened,
        }
    }
    // The standard library opens with O_CLOEXEC.
    let file = match handed {
        Some(file) => file,
        None => File::open(&options.device)?,
    };
    let volume = Volume::open(file)?;
    if volume.replayed() > 0 {
        eprintln!(
            "ext4: the journal was replayed in memory ({} blocks); the device stays as it is",
            volume.replayed()
        );
    }
    Ok(volume)
}

/// Whether what forbids writing may allow reading.
fn may_read(err: &Error) -> bool {
    match err {
        Error::Unsupported(_) => true,
        Error::Io(err) => matches!(
            err.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        ),
        _ => false,
    }
}

/// Starts this program again to serve, and returns once it does.
fn in_background() -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(options::TELL_READY)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(());
    }
    let status = child.wait()?;
    Err(io::Error::other(format!("not mounted ({status})")))
}
