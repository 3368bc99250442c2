// SPDX-License-Identifier: GPL-2.0 OR MIT
//! POSIX ACLs: with the mode, with chmod, inherited, and in permission checks.

use super::{make, writable};
use crate::pair::Pair;
use crate::seen::{Seen, attributes, change_of, outcome};
use crate::sys;
use crate::user::{as_user, as_user_in};
use rustix::fs::{Mode, chmod};
use std::fs::File;
use std::os::unix::fs::{OpenOptionsExt, chown};
use std::path::Path;
use std::process::Command;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// An ACL as the system calls have it, of entries of tag, permissions and id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        let id = if matches!(*tag, USER | GROUP) {
            *id
        } else {
            u32::MAX
        };
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

/// An ACL that says more than a mode.
fn extended() -> Vec<u8> {
    acl(&[
        (USER_OBJ, 6, 0),
        (USER, 7, 2000),
        (GROUP_OBJ, 4, 0),
        (GROUP, 1, 3000),
        (MASK, 7, 0),
        (OTHER, 0, 0),
    ])
}

/// An ACL that says what mode 640 says.
fn minimal() -> Vec<u8> {
    acl(&[(USER_OBJ, 6, 0), (GROUP_OBJ, 4, 0), (OTHER, 0, 0)])
}

/// Attributes, both ACLs as stored, and what getfacl(1) says.
fn shown(path: &Path) -> Seen {
    let stored = |name| match sys::xattr(path, name) {
        Ok(value) => sys::hex(&value),
        Err(error) => outcome(Err::<(), _>(error)),
    };
    let output = Command::new("getfacl")
        .args(["-cnp", "--"])
        .arg(path)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout)
        .trim()
        .replace('\n', " ");
    Ok(format!(
        "{}, access {}, default {}, {text}",
        attributes(path)?,
        stored(ACCESS),
        stored(DEFAULT)
    ))
}

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    setting(pair);
    chmods(pair);
    directories(pair);
    permissions(pair);
    pair.mount_again();
    pair.step("all is there after another mount", |side| {
        Ok(format!(
            "{}; {}; {}",
            shown(&side.path("file"))?,
            shown(&side.path("directory"))?,
            shown(&side.path("directory/sub"))?
        ))
    });
}

fn setting(pair: &mut Pair) {
    pair.step("there is none", |side| {
        let path = side.path("file");
        make(&path, b"contents")?;
        chmod(&path, Mode::from(0o664))?;
        shown(&path)
    });
    pair.step("setting one changes ctime", |side| {
        let path = side.path("file");
        change_of(&path, || Ok(sys::set_xattr(&path, ACCESS, &extended())?))
    });
    pair.step("it is set", |side| shown(&side.path("file")));
    pair.step("one that a mode can say", |side| {
        let path = side.path("file");
        let change = change_of(&path, || Ok(sys::set_xattr(&path, ACCESS, &minimal())?))?;
        Ok(format!("{change}; {}", shown(&path)?))
    });
    pair.step("removing one that is there", |side| {
        let path = side.path("file");
        sys::set_xattr(&path, ACCESS, &extended())?;
        let change = change_of(&path, || Ok(sys::remove_xattr(&path, ACCESS)?))?;
        Ok(format!("{change}; {}", shown(&path)?))
    });
    pair.step("removing one that is not", |side| {
        let path = side.path("file");
        Ok(outcome(sys::remove_xattr(&path, ACCESS)))
    });
    pair.step("nonsense", |side| {
        let path = side.path("file");
        let without_mask = acl(&[
            (USER_OBJ, 6, 0),
            (USER, 7, 9),
            (GROUP_OBJ, 4, 0),
            (OTHER, 0, 0),
        ]);
        let all = [
            &without_mask[..],
            b"",
            b"\x02\0\0\0",
            b"garbage",
            &minimal()[..20],
        ];
        let outcomes = all.map(|value| outcome(sys::set_xattr(&path, ACCESS, value)));
        Ok(format!("{}; {}", outcomes.join(" "), shown(&path)?))
    });
    pair.step("a default ACL on a file", |side| {
        let path = side.path("file");
        let set = outcome(sys::set_xattr(&path, DEFAULT, &extended()));
        let removed = outcome(sys::remove_xattr(&path, DEFAULT));
        Ok(format!("{set} {removed}"))
    });
    pair.step("by another than the owner", |side| {
        let path = side.path("file");
        as_user(2000, 2000, || {
            Ok(outcome(sys::set_xattr(&path, ACCESS, &extended())))
        })
    });
    pair.step(
        "by an owner who is not in the group of a set-group-id file",
        |side| {
            let path = side.path("setgid");
            make(&path, b"")?;
            chown(&path, Some(2000), Some(3000))?;
            chmod(&path, Mode::from(0o2770))?;
            as_user(2000, 2000, || {
                Ok(sys::set_xattr(&path, ACCESS, &extended())?)
            })?;
            shown(&path)
        },
    );
    pair.step("by one who is", |side| {
        let path = side.path("setgid");
        chmod(&path, Mode::from(0o2770))?;
        as_user(2000, 3000, || {
            Ok(sys::set_xattr(&path, ACCESS, &minimal())?)
        })?;
        shown(&path)
    });
    pair.step("with a sticky bit", |side| {
        let path = side.path("setgid");
        chmod(&path, Mode::from(0o1777))?;
        sys::set_xattr(&path, ACCESS, &extended())?;
        shown(&path)
    });
    pair.step("setfacl -m", |side| {
        let path = side.path("file");
        let mut command = Command::new("setfacl");
        command.args(["-m", "u:4000:rwx,g:5000:r"]).arg(&path);
        crate::pair::run(&mut command)?;
        shown(&path)
    });
}

fn chmods(pair: &mut Pair) {
    for mode in [0o600, 0o751, 0o4755, 0o000, 0o666] {
        pair.step(&format!("chmod {mode:o} of a file with an ACL"), |side| {
            let path = side.path("file");
            let change = change_of(&path, || Ok(chmod(&path, Mode::from(mode))?))?;
            Ok(format!("{change}; {}", shown(&path)?))
        });
    }
    pair.step(
        "privileges are taken by a write, and the ACL stays",
        |side| {
            use std::os::unix::fs::FileExt;
            let path = side.path("file");
            chmod(&path, Mode::from(0o6777))?;
            as_user(2000, 2000, || Ok(writable(&path)?.write_all_at(b"x", 0)?))?;
            shown(&path)
        },
    );
}

fn directories(pair: &mut Pair) {
    pair.step("a directory's default ACL", |side| {
        let path = side.path("directory");
        std::fs::create_dir(&path)?;
        chmod(&path, Mode::from(0o755))?;
        let change = change_of(&path, || Ok(sys::set_xattr(&path, DEFAULT, &extended())?))?;
        Ok(format!("{change}; {}", shown(&path)?))
    });
    for (name, mode) in [("wide", 0o777), ("narrow", 0o640), ("none", 0)] {
        pair.step(&format!("a file inherits it, mode {mode:o}"), |side| {
            let path = side.path("directory").join(name);
            File::options()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&path)?;
            shown(&path)
        });
    }
    pair.step("the umask does not matter then", |side| {
        let path = side.path("directory/umask");
        let old = rustix::process::umask(Mode::from(0o077));
        let made = File::options()
            .write(true)
            .create_new(true)
            .mode(0o666)
            .open(&path);
        rustix::process::umask(old);
        made?;
        shown(&path)
    });
    pair.step("but does where there is none", |side| {
        let path = side.path("umask");
        let old = rustix::process::umask(Mode::from(0o027));
        let made = make(&path, b"");
        let directory = std::fs::create_dir(side.path("umask-directory"));
        rustix::process::umask(old);
        made?;
        directory?;
        Ok(format!(
            "{}; {}",
            shown(&path)?,
            shown(&side.path("umask-directory"))?
        ))
    });
    pair.step("a directory inherits both", |side| {
        let path = side.path("directory/sub");
        std::fs::create_dir(&path)?;
        shown(&path)
    });
    pair.step("and hands them down", |side| {
        let path = side.path("directory/sub/file");
        make(&path, b"")?;
        shown(&path)
    });
    pair.step("a FIFO and a symbolic link", |side| {
        let fifo = side.path("directory/fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::from(0o666),
            0,
        )?;
        std::os::unix::fs::symlink("file", side.path("directory/link"))?;
        Ok(format!(
            "{}; {}",
            shown(&fifo)?,
            attributes(&side.path("directory/link"))?
        ))
    });
    pair.step("O_TMPFILE", |side| {
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o666)
            .open(side.path("directory"))?;
        let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let path = side.path("directory/named");
        rustix::fs::linkat(
            rustix::fs::CWD,
            name,
            rustix::fs::CWD,
            &path,
            rustix::fs::AtFlags::SYMLINK_FOLLOW,
        )?;
        shown(&path)
    });
    pair.step("a default ACL that a mode could say", |side| {
        let path = side.path("directory/sub");
        sys::set_xattr(&path, DEFAULT, &minimal())?;
        make(&path.join("minimal"), b"")?;
        Ok(format!(
            "{}; {}",
            shown(&path)?,
            shown(&path.join("minimal"))?
        ))
    });
    pair.step("removed", |side| {
        let path = side.path("directory/sub");
        sys::remove_xattr(&path, DEFAULT)?;
        make(&path.join("plain"), b"")?;
        Ok(format!(
            "{}; {}",
            shown(&path)?,
            shown(&path.join("plain"))?
        ))
    });
}

fn permissions(pair: &mut Pair) {
    pair.step("who may what", |side| {
        let path = side.path("secret");
        make(&path, b"contents")?;
        sys::set_xattr(&path, ACCESS, &extended())?;
        let mut text = String::new();
        let who: [(u32, u32, &[u32]); 5] = [
            (0, 0, &[]),
            (2000, 2000, &[]),
            (2001, 3000, &[]),
            (2001, 2001, &[3000]),
            (2001, 2001, &[]),
        ];
        for (uid, gid, groups) in who {
            text += &as_user_in(uid, gid, groups, || {
                let read = outcome(File::open(&path));
                let write = outcome(File::options().write(true).open(&path));
                Ok(format!("{uid}:{gid} {read} {write}; "))
            })?;
        }
        Ok(text)
    });
    pair.step("who may after chmod", |side| {
        let path = side.path("secret");
        chmod(&path, Mode::from(0o640))?;
        as_user(2000, 2000, || {
            let read = outcome(File::open(&path));
            let write = outcome(File::options().write(true).open(&path));
            Ok(format!("{read} {write}"))
        })
    });
}
