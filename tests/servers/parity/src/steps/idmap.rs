// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Idmapped mounts: ids on the disk from 0 to 1999 are seen as 10000 to 11999 there, and no others.

use super::{make, writable};
use crate::pair::{Pair, Side};
use crate::seen::{Broken, Seen, attributes, outcome};
use crate::sys;
use crate::user::{as_user, as_user_in};
use rustix::fs::{Mode, chmod};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::File;
use std::os::unix::fs::{FileExt, chown};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A user as the mapped mount has it; 1000 on the disk.
const USER: u32 = 11_000;

/// Where the mapped mount of a side is.
fn mapped(side: &Side, name: &str) -> PathBuf {
    side.root.with_file_name("mapped").join(name)
}

/// The same name on both mounts of a side.
fn shown(side: &Side, name: &str) -> Seen {
    Ok(format!(
        "mapped {}; plain {}",
        attributes(&mapped(side, name))?,
        attributes(&side.path(name))?
    ))
}

/// A process in a user namespace with the ids of the mapping.
fn namespace() -> Result<Child, Broken> {
    let child = Command::new("unshare")
        .args(["--user", "sleep", "300"])
        .stdin(Stdio::null())
        .spawn()?;
    let ours = std::fs::read_link("/proc/self/ns/user")?;
    let theirs = format!("/proc/{}/ns/user", child.id());
    while std::fs::read_link(&theirs)? == ours {
        sleep(Duration::from_millis(5));
    }
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", child.id()), "0 10000 2000")?;
    }
    Ok(child)
}

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("an idmapped mount is made", |side| {
        let mut child = namespace()?;
        let namespace = File::open(format!("/proc/{}/ns/user", child.id()))?;
        let at = mapped(side, "");
        std::fs::create_dir_all(&at)?;
        let made = sys::mount_idmapped(&side.root, &at, &namespace);
        child.kill()?;
        child.wait()?;
        chmod(&side.root, Mode::from(0o1777))?;
        Ok(outcome(made))
    });
    names(pair);
    owners(pair);
    contents(pair);
    acls(pair);
    pair.step("it is unmounted", |side| {
        Ok(outcome(unmount(mapped(side, ""), UnmountFlags::empty())))
    });
}

fn names(pair: &mut Pair) {
    pair.step("a user makes a file", |side| {
        as_user(USER, USER, || {
            make(&mapped(side, "file"), b"contents")?;
            Ok(())
        })?;
        shown(side, "file")
    });
    pair.step("a directory, a link, a FIFO", |side| {
        as_user(USER, USER, || {
            std::fs::create_dir(mapped(side, "directory"))?;
            std::os::unix::fs::symlink("file", mapped(side, "symlink"))?;
            std::fs::hard_link(mapped(side, "file"), mapped(side, "link"))?;
            let fifo = rustix::fs::FileType::Fifo;
            let mode = Mode::from(0o644);
            rustix::fs::mknodat(rustix::fs::CWD, mapped(side, "fifo"), fifo, mode, 0)?;
            Ok(())
        })?;
        let all = ["directory", "symlink", "link", "fifo"].map(|name| shown(side, name));
        Ok(all.into_iter().collect::<Result<Vec<_>, _>>()?.join(" | "))
    });
    pair.step("somebody without an id there cannot", |side| {
        let file = outcome(File::create_new(mapped(side, "root's")));
        let directory = outcome(std::fs::create_dir(mapped(side, "root's")));
        let other = as_user(5, 5, || {
            Ok(outcome(File::create_new(mapped(side, "other's"))))
        })?;
        Ok(format!("{file} {directory} {other}"))
    });
    pair.step("O_TMPFILE", |side| {
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
        as_user(USER, USER, || {
            let file = File::options()
                .write(true)
                .custom_flags(libc::O_TMPFILE)
                .open(mapped(side, "directory"))?;
            let seen = file.metadata()?;
            Ok(format!("{}:{}", seen.uid(), seen.gid()))
        })
    });
    pair.step("rename and unlink by the owner, and by another", |side| {
        let rename = |uid| {
            as_user(uid, uid, || {
                Ok(outcome(std::fs::rename(
                    mapped(side, "link"),
                    mapped(side, "renamed"),
                )))
            })
        };
        let (other, owner) = (rename(USER + 1)?, rename(USER)?);
        let unlink = |uid| {
            as_user(uid, uid, || {
                Ok(outcome(std::fs::remove_file(mapped(side, "renamed"))))
            })
        };
        Ok(format!(
            "{other} {owner} {} {}",
            unlink(USER + 1)?,
            unlink(USER)?
        ))
    });
}

fn owners(pair: &mut Pair) {
    for (name, uid, gid) in [
        ("to another user", Some(10_005), Some(10_006)),
        ("to somebody without an id there", Some(5), None),
        ("to a group without an id there", None, Some(12_000)),
        ("back", Some(USER), Some(USER)),
    ] {
        pair.step(&format!("root gives a file {name}"), |side| {
            let given = outcome(chown(mapped(side, "file"), uid, gid));
            Ok(format!("{given}; {}", shown(side, "file")?))
        });
    }
    pair.step("its owner gives it to a group", |side| {
        let given = as_user_in(USER, USER, &[10_007], || {
            Ok(outcome(chown(mapped(side, "file"), None, Some(10_007))))
        })?;
        Ok(format!("{given}; {}", shown(side, "file")?))
    });
    pair.step(
        "through the plain mount, to an id that is not mapped",
        |side| {
            let path = side.path("unmapped");
            make(&path, b"")?;
            chown(&path, Some(5000), Some(5000))?;
            let write = outcome(File::options().write(true).open(mapped(side, "unmapped")));
            Ok(format!("{}; {write}", shown(side, "unmapped")?))
        },
    );
    pair.step("chmod by the owner, and by another", |side| {
        let mode = Mode::from(0o6755);
        let by = |uid, gid| as_user(uid, gid, || Ok(outcome(chmod(mapped(side, "file"), mode))));
        let (other, owner) = (by(USER + 1, USER)?, by(USER, 10_007)?);
        Ok(format!("{other} {owner}; {}", shown(side, "file")?))
    });
}

fn contents(pair: &mut Pair) {
    pair.step("a write takes set-id bits", |side| {
        as_user(USER, USER, || {
            Ok(writable(&mapped(side, "file"))?.write_all_at(b"written", 100)?)
        })?;
        shown(side, "file")
    });
    pair.step("who may read and write", |side| {
        chmod(mapped(side, "file"), Mode::from(0o640))?;
        let mut text = String::new();
        for (uid, gid) in [
            (USER, USER),
            (1000, 1000),
            (10_001, 10_007),
            (10_001, 10_001),
        ] {
            text += &as_user(uid, gid, || {
                let read = outcome(File::open(mapped(side, "file")));
                let write = outcome(
                    writable(&mapped(side, "file"))
                        .map_err(|_| std::io::Error::from_raw_os_error(libc::EACCES)),
                );
                Ok(format!("{uid}:{gid} {read} {write}; "))
            })?;
        }
        Ok(text)
    });
    pair.step("times and attributes by the owner", |side| {
        as_user(USER, USER, || {
            let path = mapped(side, "file");
            let set = outcome(sys::set_xattr(&path, "user.name", b"value"));
            let file = writable(&path)?;
            let times = outcome(file.set_modified(std::time::SystemTime::UNIX_EPOCH));
            Ok(format!("{set} {times}"))
        })
    });
}

fn acls(pair: &mut Pair) {
    let acl = |id: u32| {
        let mut bytes = vec![2, 0, 0, 0];
        let other = u32::MAX;
        for (tag, permissions, id) in [
            (1u16, 6u16, other),
            (2, 7, id),
            (4, 4, other),
            (16, 7, other),
            (32, 0, other),
        ] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(permissions.to_le_bytes());
            bytes.extend(id.to_le_bytes());
        }
        bytes
    };
    let stored = |side: &Side, name: &str, which: &str| -> Seen {
        let mapped = sys::xattr(&mapped(side, name), which);
        let plain = sys::xattr(&side.path(name), which);
        let text = |value: Result<Vec<u8>, _>| match value {
            Ok(value) => sys::hex(&value),
            Err(error) => outcome(Err::<(), _>(error)),
        };
        Ok(format!("mapped {} plain {}", text(mapped), text(plain)))
    };
    pair.step("an ACL for a user with an id there", |side| {
        let name = "system.posix_acl_access";
        let set = as_user(USER, USER, || {
            Ok(outcome(sys::set_xattr(
                &mapped(side, "file"),
                name,
                &acl(10_042),
            )))
        })?;
        let read = as_user(10_042, 10_042, || {
            Ok(outcome(File::open(mapped(side, "file"))))
        })?;
        let other = as_user(42, 42, || Ok(outcome(File::open(mapped(side, "file")))))?;
        let plain = as_user(42, 42, || Ok(outcome(File::open(side.path("file")))))?;
        Ok(format!(
            "{set} {read} {other} {plain}; {}; {}",
            stored(side, "file", name)?,
            shown(side, "file")?
        ))
    });
    pair.step("for a user without", |side| {
        let name = "system.posix_acl_access";
        let set = outcome(sys::set_xattr(&mapped(side, "file"), name, &acl(42)));
        Ok(format!("{set}; {}", stored(side, "file", name)?))
    });
    pair.step("a default ACL, and who inherits it", |side| {
        let name = "system.posix_acl_default";
        let set = as_user(USER, USER, || {
            let path = mapped(side, "directory");
            let set = outcome(sys::set_xattr(&path, name, &acl(10_042)));
            make(&path.join("heir"), b"")?;
            Ok(set)
        })?;
        let access = stored(side, "directory/heir", "system.posix_acl_access")?;
        Ok(format!(
            "{set}; {access}; {}",
            shown(side, "directory/heir")?
        ))
    });
}
