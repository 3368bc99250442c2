// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What mount(8) runs for `mount -t fuse.TYPE`, when this program is there as
//! `/sbin/mount.fuse.TYPE`:
//!
//! `mount.fuse.TYPE SOURCE TARGET [-sfnv] [-o WORD,...] [-t fuse.TYPE]`
//!
//! It becomes an ordinary command line of this program, except that remounting is done here.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
};

use rustix::{
    fs::removexattr,
    io::Errno,
    mount::{MountFlags, mount_remount},
};

use crate::{options::Options, words};

/// Names of this program that mount(8) looks for begin so.
const NAME: &str = "mount.fuse";
/// What the exit status of such a program is when mounting failed.
pub const FAILED: u8 = 32;
/// What it is when the command line was wrong.
pub const USAGE: u8 = 1;
/// An attribute that no file has: it does not begin with a class that anybody could set.
const NO_ATTRIBUTE: &str = "user.fuse-iomap.is-this-writable";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// Mount, with these arguments.
    Mount(Vec<OsString>),
    /// Only say whether that could be done (`-f`).
    Nothing,
    /// Change the flags of what is mounted.
    Remount(Remount),
}

/// New flags for a mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Remount {
    target: PathBuf,
    flags: MountFlags,
}

/// Is this the name of a mount helper?
pub fn is_helper(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| {
        name.strip_prefix(NAME)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The type that a name like `mount.fuse.TYPE` or `fuse.TYPE` says.
fn subtype(name: &str) -> Option<&str> {
    name.split_once("fuse.")
        .map(|(_, subtype)| subtype)
        .filter(|name| !name.is_empty())
}

/// Reads a helper's command line.
pub fn parse(program: &OsStr, args: impl IntoIterator<Item = OsString>) -> Result<Call, String> {
    let program = Path::new(program)
        .file_name()
        .unwrap_or(program)
        .to_string_lossy();
    let mut name = subtype(&program).map(str::to_owned);
    let (mut lists, mut paths) = (Vec::new(), Vec::new());
    let (mut sloppy, mut fake, mut verbose) = (false, false, false);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some(switches) = arg.to_str().and_then(|arg| arg.strip_prefix('-')) else {
            paths.push(arg);
            continue;
        };
        for (at, switch) in switches.char_indices() {
            match switch {
                's' => sloppy = true,
                'f' => fake = true,
                'v' => verbose = true,
                'n' => {}
                'o' | 't' => {
                    let rest = &switches[at + 1..];
                    let value = match rest {
                        "" => args.next().ok_or(format!("-{switch} needs a value"))?,
                        rest => rest.into(),
                    };
                    let value = value
                        .into_string()
                        .map_err(|_| format!("-{switch} takes text"))?;
                    if switch == 'o' {
                        lists.push(value);
                    } else {
                        name = subtype(&value).map(str::to_owned).or(name);
                    }
                    break;
                }
                other => return Err(format!("unknown option -{other}")),
            }
        }
    }
    let [source, target]: [OsString; 2] = paths
        .try_into()
        .map_err(|_| "a device and a mount point are needed".to_owned())?;

    // mount(8) adds nosuid and nodev where an ordinary user may mount; the administrator may have both.
    let mut kept = vec!["suid", "dev"];
    let subtype = format!("subtype={}", name.as_deref().unwrap_or("ext4"));
    kept.push(&subtype);
    let mut options = Options::new();
    options.mount_options(kept.join(",").as_ref())?;
    let mut remount = false;
    for word in lists.iter().flat_map(|list| words::split(list)) {
        if word == "remount" {
            remount = true;
        } else if options.mount_option(word)? {
            kept.push(word);
        } else if !sloppy {
            return Err(format!("unknown mount option {word}"));
        }
    }
    let list = kept.join(",");
    if verbose {
        let what = if remount { "remounting" } else { "mounting" };
        println!(
            "{program}: {what} {} on {} with {list}",
            source.display(),
            target.display()
        );
    }
    Ok(if fake {
        Call::Nothing
    } else if remount {
        Call::Remount(Remount {
            target: target.into(),
            flags: options.mount_flags(options.write == Some(false)),
        })
    } else {
        Call::Mount(vec!["-o".into(), list.into(), source, target])
    })
}

impl Remount {
    /// Does it. Writing can be allowed again only where the server has its device open for that: one that
    /// mounted it read-only cannot be told to change.
    pub fn perform(&self) -> io::Result<()> {
        let writable = !self.flags.contains(MountFlags::RDONLY);
        mount_remount(&self.target, self.flags, c"")?;
        // A server that writes looks for the attribute; one that does not says so.
        if writable && removexattr(&self.target, NO_ATTRIBUTE) == Err(Errno::ROFS) {
            mount_remount(&self.target, self.flags | MountFlags::RDONLY, c"")?;
            return Err(io::Error::other(
                "it was mounted read-only, and the server keeps it so; unmount it, and mount it again",
            ));
        }
        Ok(())
    }

    /// What the change is made to.
    pub fn target(&self) -> &Path {
        &self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Result<Call, String> {
        let mut words = line.split_whitespace().map(OsString::from);
        let program = words.next().unwrap();
        assert!(is_helper(&program));
        parse(&program, words)
    }

    fn mounts(line: &str) -> String {
        let Call::Mount(args) = call(line).unwrap() else {
            panic!("{line}");
        };
        let args: Vec<_> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join(" ")
    }

    #[test]
    fn names() {
        for name in ["mount.fuse.ext4", "/sbin/mount.fuse.fiext4", "mount.fuse"] {
            assert!(is_helper(name.as_ref()), "{name}");
        }
        for name in ["ext4", "/usr/bin/ext4", "mount.fuse3", "mount.ext4"] {
            assert!(!is_helper(name.as_ref()), "{name}");
        }
    }

    #[test]
    fn as_mount_calls_it() {
        assert_eq!(
            mounts("/sbin/mount.fuse.fiext4 /dev/x /mnt -o rw,noatime,acl"),
            "-o suid,dev,subtype=fiext4,rw,noatime,acl /dev/x /mnt"
        );
        assert_eq!(
            mounts("/sbin/mount.fuse /dev/x /mnt -n -o rw -t fuse.other"),
            "-o suid,dev,subtype=other,rw /dev/x /mnt"
        );
        assert_eq!(
            mounts("mount.fuse -nvoro /dev/x /mnt"),
            "-o suid,dev,subtype=ext4,ro /dev/x /mnt"
        );
    }

    #[test]
    fn sloppy_forgives_and_fake_does_nothing() {
        assert!(call("mount.fuse.x /dev/x /mnt -o bogus,ro").is_err());
        assert_eq!(
            mounts("mount.fuse.x /dev/x /mnt -s -o bogus,ro"),
            "-o suid,dev,subtype=x,ro /dev/x /mnt"
        );
        assert_eq!(call("mount.fuse.x /dev/x /mnt -f"), Ok(Call::Nothing));
        for wrong in [
            "/dev/x",
            "/dev/x /mnt -z",
            "/dev/x /mnt -o",
            "/dev/x /mnt -N /proc/1/ns/mnt",
        ] {
            assert!(call(&format!("mount.fuse.x {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn remounting_changes_flags() {
        // What the kernel shows comes first, then what is new.
        let line = "mount.fuse.x /dev/x /mnt -o rw,nosuid,relatime,user_id=0,group_id=0,\
                    default_permissions,allow_other,remount,ro";
        let Ok(Call::Remount(remount)) = call(line) else {
            panic!("{line}");
        };
        assert_eq!(remount.target(), Path::new("/mnt"));
        assert_eq!(
            remount.flags,
            MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::RELATIME
        );
    }
}
