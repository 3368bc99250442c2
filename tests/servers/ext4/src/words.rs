// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The words behind `-o`: those of mount(8), FUSE's, what ext4 calls its own behaviour, and ours.

use std::ffi::OsStr;

use rustix::mount::MountFlags;

use crate::{options::Options, server::IomapMode};

/// Words that set or clear a flag of mount(2). The rest of these are fields of [`Options`].
const FLAGS: [(&str, &str, MountFlags); 9] = [
    ("noexec", "exec", MountFlags::NOEXEC),
    ("noatime", "atime", MountFlags::NOATIME),
    ("nodiratime", "diratime", MountFlags::NODIRATIME),
    ("relatime", "norelatime", MountFlags::RELATIME),
    ("strictatime", "nostrictatime", MountFlags::STRICTATIME),
    ("lazytime", "nolazytime", MountFlags::LAZYTIME),
    ("sync", "async", MountFlags::SYNCHRONOUS),
    ("dirsync", "nodirsync", MountFlags::DIRSYNC),
    ("silent", "loud", MountFlags::SILENT),
];

/// Words that ask for what is done anyway, or that only mount(8) itself heeds.
const NOTHING_TO_DO: [&str; 18] = [
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "group",
    "acl",
    "user_xattr",
    "barrier",
    "barrier=1",
    "data=ordered",
    "errors=remount-ro",
    "nodiscard",
];

/// The same with something behind them; also what the kernel shows of a FUSE mount, which
/// mount(8) hands over again to remount it.
const NOTHING_TO_DO_WITH: [&str; 9] = [
    "x-",
    "X-",
    "comment=",
    "user=",
    "uhelper=",
    "user_id=",
    "group_id=",
    "rootmode=",
    "max_read=",
];

/// Words for security modules.
const FOR_THE_KERNEL: [&str; 4] = ["context=", "fscontext=", "defcontext=", "rootcontext="];

/// The words of a list. A comma between double quotes is part of a word, as in the categories of a
/// security context.
pub fn split(list: &str) -> Vec<&str> {
    let mut quoted = false;
    list.split(|c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    })
    .filter(|word| !word.is_empty())
    .collect()
}

impl Options {
    /// Takes in a list of words.
    pub fn mount_options(&mut self, list: &OsStr) -> Result<(), String> {
        let list = list.to_str().ok_or("-o takes a list of words")?;
        for word in split(list) {
            if !self.mount_option(word)? {
                return Err(format!("unknown mount option {word}"));
            }
        }
        Ok(())
    }

    /// Takes in one word; false if it means nothing here.
    pub fn mount_option(&mut self, word: &str) -> Result<bool, String> {
        for (on, off, flag) in FLAGS {
            if word == on || word == off {
                self.flags.set(flag, word == on);
                return Ok(true);
            }
        }
        let begins_with = |prefix: &&str| word.starts_with(*prefix);
        match word.split_once('=') {
            Some(("iomap", "auto")) => self.iomap = IomapMode::Auto,
            Some(("iomap", "require")) => self.iomap = IomapMode::Require,
            Some(("iomap", "off")) => self.iomap = IomapMode::Off,
            Some(("iomap", _)) => return Err("iomap= takes auto, require or off".to_owned()),
            Some(("cache", how)) => {
                self.caching.set("--cache", how)?;
            }
            Some(("blksize", bytes)) => {
                let bytes = bytes.parse();
                self.block_size = Some(bytes.map_err(|_| "blksize= takes a number".to_owned())?);
            }
            Some(("log", file)) => self.log = Some(file.into()),
            Some(("subtype", name)) => name.clone_into(&mut self.subtype),
            _ if NOTHING_TO_DO.contains(&word) => {}
            _ if NOTHING_TO_DO_WITH.iter().any(begins_with) => {}
            _ if FOR_THE_KERNEL.iter().any(begins_with) => self.data.push(word.to_owned()),
            _ => match word {
                "blkdev" => self.block_device = true,
                "ro" => self.write = Some(false),
                "rw" => self.write = Some(true),
                "suid" => self.suid = true,
                "nosuid" => self.suid = false,
                "dev" => self.dev = true,
                "nodev" => self.dev = false,
                "idmap" => self.idmap = true,
                "allow_other" => self.allow_other = true,
                "noallow_other" => self.allow_other = false,
                "default_permissions" => self.default_permissions = true,
                "nodefault_permissions" => self.default_permissions = false,
                _ => return Ok(false),
            },
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use fuse_iomap::CacheMode;

    use super::*;

    fn parse(list: &str) -> Result<Options, String> {
        let args = ["-o", list, "/dev/x", "/mnt"];
        Ok(Options::parse(args.map(Into::into))?.unwrap())
    }

    #[test]
    fn a_later_word_undoes_an_earlier_one() {
        let options = parse("noatime,noexec,sync,ro,suid,atime,rw,nosuid").unwrap();
        assert_eq!(options.flags, MountFlags::NOEXEC | MountFlags::SYNCHRONOUS);
        assert_eq!(options.write, Some(true));
        assert!(!options.suid);
    }

    #[test]
    fn what_is_done_anyway_may_be_asked_for_and_what_is_not_may_not() {
        let shown = "defaults,acl,user_xattr,data=ordered,user_id=0,group_id=0,x-systemd.automount";
        assert!(parse(shown).unwrap().data.is_empty());
        for refused in ["noacl", "data=journal", "nobarrier", "discard", "usrquota"] {
            assert!(parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_security_context_is_one_word() {
        let context = "context=\"system_u:object_r:root_t:s0:c1,c2\"";
        let options = parse(&format!("acl,{context},noatime")).unwrap();
        assert_eq!(options.data, [context]);
        assert!(options.flags.contains(MountFlags::NOATIME));
    }

    #[test]
    fn ours() {
        let options = parse("iomap=require,cache=off,log=/run/log,subtype=fiext4").unwrap();
        assert_eq!(options.iomap, IomapMode::Require);
        assert_eq!(options.caching.mode, CacheMode::Off);
        assert_eq!(options.log.as_deref(), Some("/run/log".as_ref()));
        assert_eq!(options.subtype, "fiext4");
        assert!(parse("iomap=maybe").is_err() && parse("cache=").is_err());
    }
}
