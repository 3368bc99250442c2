// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `ext4 DEVICE MOUNTPOINT`: mounts an ext2, ext3 or ext4 volume through FUSE, with the kernel
//! moving the data.
#![forbid(unsafe_code)]

mod daemon;
mod helper;
mod mounter;
mod options;
mod server;
mod words;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::Path,
    process::ExitCode,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ext4_volume::{Error, Volume, disk::FileDisk};
use fuse_iomap::{MountOptions, Session, SessionOptions, inherited};

use crate::{helper::Call, options::Options, server::Server};

/// How long a device may be in use by a server whose mount is gone, and which is about to end.
const PREDECESSOR: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    if helper::is_helper(&program) {
        return mount_helper(&program, args);
    }
    let args: Vec<OsString> = args.collect();
    let options = match Options::parse(args.iter().cloned()) {
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
        daemon::start(&args)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ext4: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Does what mount(8) wants of a helper, and says how that went in the way it expects.
fn mount_helper(program: &OsStr, args: impl Iterator<Item = OsString>) -> ExitCode {
    let call = match helper::parse(program, args) {
        Ok(call) => call,
        Err(why) => {
            eprintln!("{}: {why}", program.display());
            return ExitCode::from(helper::USAGE);
        }
    };
    let result = match call {
        Call::Nothing => Ok(()),
        Call::Mount(args) => daemon::start(&args),
        Call::Remount(remount) => remount
            .perform()
            .map_err(|err| on_path(remount.target(), err)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{}: {why}", program.display());
            ExitCode::from(helper::FAILED)
        }
    }
}

fn on_path(path: &Path, what: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {what}", path.display()))
}

/// How the volume is mounted, but for read-only or not.
fn mount_options(options: &Options) -> MountOptions {
    let mut mount = MountOptions::new(&options.device).subtype(&*options.subtype);
    mount.allow_other = options.allow_other;
    mount.default_permissions = options.default_permissions;
    mount.suid = options.suid;
    mount.dev = options.dev;
    mount.flags = options.flags;
    mount.data.clone_from(&options.data);
    mount
}

/// Mounts, unless that is done already, and serves until unmounted.
fn serve(options: Options) -> io::Result<()> {
    let volume = Arc::new(open(&options).map_err(|err| on_path(&options.device, err))?);
    let mut mount = mount_options(&options).read_only(!volume.is_writable());
    if options.block_device {
        mount.block_device = Some(options.block_size.unwrap_or(volume.block_size()));
        // It becomes the kernel's, and nobody else gets it either.
        volume.share_device(&options.device)?;
    }
    let name = options.device.file_name().unwrap_or_default();
    let mut session = SessionOptions {
        counters_file: options.stats,
        uring: options.uring,
        ..Default::default()
    };
    if let Some(threads) = options.threads {
        session.threads = threads;
    }
    let (tell, log) = (options.tell_ready, options.log);
    let on_ready = move || {
        if tell && let Err(err) = daemon::ready(log.as_deref()) {
            eprintln!("ext4: staying in the foreground: {err}");
        }
    };
    let server = Server::new(
        volume.clone(),
        name.to_string_lossy().into_owned(),
        options.iomap,
        options.writeback_cache,
        options.idmap,
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
            None => open_exclusively(&options.device),
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

/// Opens a device that nobody else has mounted. Whoever unmounts and mounts again may be faster
/// than the process that served the old mount is to end.
fn open_exclusively(device: &Path) -> io::Result<FileDisk> {
    let start = Instant::now();
    loop {
        match FileDisk::open_writable(device) {
            Err(err)
                if err.kind() == io::ErrorKind::ResourceBusy
                    && start.elapsed() < PREDECESSOR
                    && !is_mounted(device) =>
            {
                thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

/// Is this the source of a mount here?
fn is_mounted(device: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let sources = mounts.lines().filter_map(|line| line.split(' ').next());
    sources.map(Path::new).any(|source| source == device)
}
