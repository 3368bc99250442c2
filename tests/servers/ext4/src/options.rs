// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The command line.

use std::{
    ffi::{OsStr, OsString},
    os::fd::RawFd,
    path::PathBuf,
};

use fuse_iomap::Caching;
use rustix::mount::MountFlags;

use crate::{daemon::TELL_READY, server::IomapMode};

/// What `--help` prints.
pub const HELP: &str = "\
Mounts an ext2, ext3 or ext4 volume in user space. The kernel moves file data from and to the
device itself, where FUSE-iomap is available; this program only says where it is.

usage: ext4 [OPTIONS] DEVICE MOUNTPOINT
       ext4 [OPTIONS] --fuse-fd N --device-fd N

  --no-iomap         serve data by FUSE_READ and FUSE_WRITE, as other FUSE filesystems do
  --writeback-cache  with --no-iomap: the kernel may keep written data for a while
  --require-iomap    fail unless the kernel offers iomap (else fall back to those)
  --cache HOW        how mappings get into the kernel's cache: off, upsert (by notifications) or
                     replies (default: with the answers to the kernel's questions)
  --cache-bytes N    most memory that the mappings of one file take there
  --batch-mappings N most further mappings in one answer, 0 to 126 (default: 64)
  --batch-ioend HOW  on or off: may completions come several at a time (default: on)
  --uring            have requests come over io_uring, if the kernel offers that
  --threads N        worker threads (default: one per CPU, at least 2)
  --ro               mount read-only, as with -o ro; the device is then never written
  -o OPTION,...      ro, rw, suid, dev, [no]allow_other, [no]default_permissions, idmap
                     (default: rw if device and features allow it, else ro; nosuid, nodev,
                     allow_other, default_permissions); with idmap the mount can be idmapped, and
                     everybody may list the names of trusted.* attributes; exec, atime, relatime,
                     lazytime, sync and so on, as for mount(8); iomap=auto, require or off; cache=HOW; log=FILE for what is
                     said after the mount is up (default: the kernel's log); blkdev mounts as
                     fuseblk, so that the kernel holds the device, with blksize=N as its block size
  --sandbox          serve as user nobody in namespaces of its own, with no capability: what needs
                     some is done before, and the device is handed over. Without -o ro or rw, how
                     the device can be opened decides. Unmount it with umount(8)
  --fuse-fd N        with --device-fd N: serve what another program has mounted or will mount, with
                     the FUSE device and the disk that are open as these
  -f, --foreground   stay attached to the terminal
  --stats FILE       write request counters there at the end and on SIGUSR1
                     (as JSON if the name ends in .json)
  -h, --help         this text

As /sbin/mount.fuse.TYPE it is what mount(8) calls for mount -t fuse.TYPE DEVICE MOUNTPOINT, with
the options after -o; suid and dev are then on by default.
";

/// What a server without privilege has from the program that mounts for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The FUSE device.
    pub fuse: RawFd,
    /// The volume.
    pub device: RawFd,
}

/// The options.
#[derive(Debug)]
pub struct Options {
    /// The device or image.
    pub device: PathBuf,
    /// Where to mount it.
    pub mountpoint: PathBuf,
    /// How data is served.
    pub iomap: IomapMode,
    /// Data that is not on iomap may wait in the kernel's cache before it is written.
    pub writeback_cache: bool,
    /// What the kernel may remember of mappings.
    pub caching: Caching,
    /// Requests over io_uring.
    pub uring: bool,
    /// Worker threads, if given.
    pub threads: Option<usize>,
    /// Mount for writing or not, if that was said.
    pub write: Option<bool>,
    /// Let other users in.
    pub allow_other: bool,
    /// Let the kernel check permissions.
    pub default_permissions: bool,
    /// Honour set-user-id bits.
    pub suid: bool,
    /// Honour device nodes.
    pub dev: bool,
    /// Allow idmapped mounts.
    pub idmap: bool,
    /// Mount as fuseblk.
    pub block_device: bool,
    /// Its block size, if not that of the volume.
    pub block_size: Option<u32>,
    /// Serve without privilege.
    pub sandbox: bool,
    /// Serve what somebody else mounts; the paths are only names then.
    pub handed: Option<Handed>,
    /// Other flags of mount(2).
    pub flags: MountFlags,
    /// Words that the kernel gets as they are.
    pub data: Vec<String>,
    /// The type is shown as `fuse.` and this.
    pub subtype: String,
    /// In the background, where complaints go instead of to the kernel's log.
    pub log: Option<PathBuf>,
    /// Do not go into the background.
    pub foreground: bool,
    /// Say on stdout when the mount is up.
    pub tell_ready: bool,
    /// Where the counters go.
    pub stats: Option<PathBuf>,
}

impl Options {
    /// What holds if nothing is said.
    pub fn new() -> Self {
        Self {
            device: PathBuf::new(),
            mountpoint: PathBuf::new(),
            iomap: IomapMode::Auto,
            writeback_cache: false,
            // An answer of this size is made without reading much of the extent tree.
            caching: Caching {
                batch_mappings: 64,
                ..Caching::default()
            },
            uring: false,
            threads: None,
            write: None,
            allow_other: true,
            default_permissions: true,
            suid: false,
            dev: false,
            idmap: false,
            block_device: false,
            block_size: None,
            sandbox: false,
            handed: None,
            flags: MountFlags::empty(),
            data: Vec::new(),
            subtype: "ext4".to_owned(),
            log: None,
            foreground: false,
            tell_ready: false,
            stats: None,
        }
    }

    /// Parses the arguments; `None` means that help is wanted.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut options = Self::new();
        let mut paths = Vec::new();
        let (mut fuse, mut disk) = (None, None);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = |what: &str| args.next().ok_or(format!("{what} needs a value"));
            match arg.to_str() {
                Some("--no-iomap") => options.iomap = IomapMode::Off,
                Some("--writeback-cache") => options.writeback_cache = true,
                Some("--require-iomap") => options.iomap = IomapMode::Require,
                Some("--threads") => {
                    let number = value("--threads")?;
                    let parsed = number.to_str().and_then(|n| n.parse().ok());
                    let threads = parsed.filter(|n| (1..=256).contains(n));
                    options.threads =
                        Some(threads.ok_or("--threads takes a number from 1 to 256")?);
                }
                Some(option) if Caching::knows(option) => {
                    let value = value(option)?;
                    let value = value.to_str().unwrap_or_default();
                    options.caching.set(option, value)?;
                }
                Some("--ro") => options.write = Some(false),
                Some("-o") => options.mount_options(&value("-o")?)?,
                Some("--uring") => options.uring = true,
                Some("--sandbox") => options.sandbox = true,
                Some("--fuse-fd") => fuse = Some(descriptor(&value("--fuse-fd")?)?),
                Some("--device-fd") => disk = Some(descriptor(&value("--device-fd")?)?),
                Some("-f" | "--foreground") => options.foreground = true,
                Some(TELL_READY) => {
                    options.foreground = true;
                    options.tell_ready = true;
                }
                Some("--stats") => options.stats = Some(value("--stats")?.into()),
                Some("-h" | "--help") => return Ok(None),
                Some(other) if other.starts_with('-') => {
                    return Err(format!("unknown option {other}"));
                }
                _ => paths.push(PathBuf::from(arg)),
            }
        }
        if options.writeback_cache && options.iomap != IomapMode::Off {
            return Err("--writeback-cache goes with --no-iomap".to_owned());
        }
        options.handed = match (fuse, disk) {
            (Some(fuse), Some(device)) => Some(Handed { fuse, device }),
            (None, None) => None,
            _ => return Err("--fuse-fd and --device-fd go together".to_owned()),
        };
        if options.handed.is_some() && paths.is_empty() {
            paths = vec!["the device".into(), "/".into()];
        }
        let [device, mountpoint] = paths
            .try_into()
            .map_err(|_| "a device and a mount point are needed".to_owned())?;
        // These must land where the user meant even from another directory.
        for file in [&mut options.stats, &mut options.log].into_iter().flatten() {
            *file =
                std::path::absolute(&*file).map_err(|err| format!("{}: {err}", file.display()))?;
        }
        options.device = device;
        options.mountpoint = mountpoint;
        Ok(Some(options))
    }

    /// All flags for mount(2).
    pub fn mount_flags(&self, read_only: bool) -> MountFlags {
        let mut flags = self.flags;
        flags.set(MountFlags::RDONLY, read_only);
        flags.set(MountFlags::NOSUID, !self.suid);
        flags.set(MountFlags::NODEV, !self.dev);
        flags
    }
}

fn descriptor(number: &OsStr) -> Result<RawFd, String> {
    let parsed = number.to_str().and_then(|n| n.parse().ok());
    parsed
        .filter(|n| *n >= 0)
        .ok_or_else(|| "a descriptor is a number".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_iomap::CacheMode;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn everything_can_be_said() {
        let line = "--no-iomap --writeback-cache --threads 7 --ro -o noallow_other,dev -f \
                    --stats /s.json /dev/x /mnt";
        let options = parse(line).unwrap().unwrap();
        assert_eq!(options.iomap, IomapMode::Off);
        assert!(options.writeback_cache);
        assert_eq!(options.threads, Some(7));
        assert_eq!(options.write, Some(false));
        assert!(
            !options.allow_other && options.default_permissions && options.dev && !options.suid
        );
        assert!(options.foreground && !options.tell_ready);
        assert_eq!(options.stats.as_deref(), Some("/s.json".as_ref()));
        assert_eq!(options.device, PathBuf::from("/dev/x"));
        assert_eq!(options.mountpoint, PathBuf::from("/mnt"));
        assert!(parse("--help").unwrap().is_none());
        assert_eq!(parse("a b").unwrap().unwrap().write, None);
        assert_eq!(parse("-o rw a b").unwrap().unwrap().write, Some(true));
    }

    #[test]
    fn descriptors_stand_for_paths() {
        let options = parse("--fuse-fd 3 --device-fd 4 --ro").unwrap().unwrap();
        assert_eq!(options.handed, Some(Handed { fuse: 3, device: 4 }));
        let options = parse("--fuse-fd 3 --device-fd 4 --sandbox /dev/x /mnt");
        let options = options.unwrap().unwrap();
        assert!(options.sandbox && options.device == *"/dev/x");
    }

    #[test]
    fn caching_is_by_default_and_can_be_changed() {
        let caching = |line: &str| parse(line).unwrap().unwrap().caching;
        let default = caching("a b");
        assert_eq!(default.mode, CacheMode::Replies);
        assert!(default.batch_ioend && default.batch_mappings > 0 && default.bytes.is_none());
        let line = "--cache upsert --cache-bytes 4096 --batch-mappings 0 --batch-ioend off a b";
        let other = caching(line);
        assert_eq!((other.mode, other.bytes), (CacheMode::Upsert, Some(4096)));
        assert!(!other.batch_ioend && other.batch_mappings == 0);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "",
            "/dev/x",
            "a b c",
            "--bogus a b",
            "--threads 0 a b",
            "-o x a b",
            "a b --stats",
            "--writeback-cache a b",
            "--cache maybe a b",
            "--cache-bytes -1 a b",
            "--batch-mappings 127 a b",
            "--batch-ioend a b",
            "--fuse-fd 3 a b",
            "--fuse-fd 3 --device-fd x",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
