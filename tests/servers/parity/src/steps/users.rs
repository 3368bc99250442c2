// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Ordinary users: what they may do with files and directories, by attributes that the kernel has
//! cached.

use super::make;
use crate::pair::Pair;
use crate::seen::{Broken, Seen, attributes, outcome};
use crate::user::as_user;
use rustix::fs::{
    Access, AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_NOW, Uid, access, chmod, chown,
    utimensat,
};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

/// Owner and group of the files.
const OWNER: u32 = 1000;
/// Somebody else, and their group.
const OTHER: u32 = 1001;
/// Who they are: user and group.
const USERS: [(&str, u32, u32); 3] = [
    ("the owner", OWNER, OWNER),
    ("one of the group", OTHER, OWNER),
    ("another user", OTHER, OTHER),
];

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    for mode in [
        0o600, 0o640, 0o644, 0o666, 0o755, 0o444, 0o222, 0o060, 0o000,
    ] {
        for (who, uid, gid) in USERS {
            pair.step(&format!("mode {mode:o}, {who}"), |side| {
                tries(&side.path("file"), mode, uid, gid)
            });
        }
    }
    open_files(pair);
    directories(pair);
}

fn give(path: &Path, uid: u32, gid: u32) -> Result<(), Broken> {
    Ok(chown(
        path,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
    )?)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Broken> {
    Ok(chmod(path, Mode::from_raw_mode(mode))?)
}

/// A new file of the owner's.
fn fresh(path: &Path, mode: u32) -> Result<(), Broken> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    make(path, &[7; 10_000])?;
    give(path, OWNER, OWNER)?;
    set_mode(path, mode)
}

fn times(path: &Path, sec: i64, nsec: i64) -> rustix::io::Result<()> {
    let time = Timespec {
        tv_sec: sec,
        tv_nsec: nsec as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::empty())
}

/// Everything that permissions decide on.
fn tries(path: &Path, mode: u32, uid: u32, gid: u32) -> Seen {
    fresh(path, mode)?;
    let said = as_user(uid, gid, || {
        let write = || OpenOptions::new().write(true).open(path);
        let truncate = OpenOptions::new().write(true).truncate(true).open(path);
        let tried = [
            ("read", outcome(std::fs::read(path))),
            ("write", outcome(write().and_then(|mut f| f.write(b"new")))),
            (
                "append",
                outcome(OpenOptions::new().append(true).open(path)),
            ),
            (
                "both",
                outcome(OpenOptions::new().read(true).write(true).open(path)),
            ),
            ("run", outcome(access(path, Access::EXEC_OK))),
            ("set_len", outcome(write().and_then(|f| f.set_len(5000)))),
            ("O_TRUNC", outcome(truncate)),
            ("touch", outcome(times(path, 0, UTIME_NOW))),
            ("set times", outcome(times(path, 1_000_000, 5))),
            ("chmod", outcome(chmod(path, Mode::from_raw_mode(0o700)))),
            (
                "chown",
                outcome(chown(path, Some(Uid::from_raw(OTHER)), None)),
            ),
        ];
        Ok(tried.map(|(what, how)| format!("{what} {how}")).join(", "))
    })?;
    Ok(format!("{said}; then {}", attributes(path)?))
}

/// What was allowed when a file was opened stays allowed, and what is changed counts at once.
fn open_files(pair: &mut Pair) {
    pair.step("a file that is open when its mode changes", |side| {
        let path = side.path("open");
        fresh(&path, 0o666)?;
        let mut text = as_user(OTHER, OTHER, || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            Ok(file)
        })
        .and_then(|mut file| {
            set_mode(&path, 0o600)?;
            Ok(format!(
                "reads {}, writes {}",
                outcome(file.read(&mut [0; 100])),
                outcome(file.write(b"more"))
            ))
        })?;
        let again = as_user(OTHER, OTHER, || Ok(outcome(File::open(&path))))?;
        text += &format!(", opens again {again}");
        set_mode(&path, 0o604)?;
        let again = as_user(OTHER, OTHER, || Ok(outcome(File::open(&path))))?;
        text += &format!(", allowed again {again}");
        give(&path, OTHER, OTHER)?;
        let again = as_user(OWNER, OWNER, || {
            Ok(outcome(OpenOptions::new().write(true).open(&path)))
        })?;
        Ok(format!("{text}, the former owner writes {again}"))
    });
    pair.step("the group may change to one's own only", |side| {
        let path = side.path("open");
        as_user(OTHER, OTHER, || {
            let to = |gid| outcome(chown(&path, None, Some(Gid::from_raw(gid))));
            Ok(format!("own {}, another {}", to(OTHER), to(OWNER)))
        })
    });
}

/// Who may change names, and whose new files are.
fn directories(pair: &mut Pair) {
    for mode in [0o755, 0o777, 0o1777, 0o2777, 0o733, 0o744] {
        for (who, uid, gid) in USERS {
            pair.step(&format!("a directory of mode {mode:o}, {who}"), |side| {
                let dir = side.path(&format!("dir-{mode:o}-{uid}-{gid}"));
                std::fs::create_dir(&dir)?;
                fresh(&dir.join("there"), 0o644)?;
                give(&dir, 0, OWNER)?;
                set_mode(&dir, mode)?;
                let said = as_user(uid, gid, || {
                    let listed = std::fs::read_dir(&dir).map(|entries| entries.count());
                    Ok(format!(
                        "list {}, look {}, make {}, subdirectory {}, rename {}, remove {}",
                        outcome(listed),
                        outcome(std::fs::metadata(dir.join("there"))),
                        outcome(File::create_new(dir.join("new"))),
                        outcome(std::fs::create_dir(dir.join("sub"))),
                        outcome(std::fs::rename(dir.join("there"), dir.join("moved"))),
                        outcome(std::fs::remove_file(dir.join("moved"))),
                    ))
                })?;
                let mut made = String::new();
                for name in ["new", "sub"] {
                    if dir.join(name).exists() {
                        made += &format!("; {name}: {}", attributes(&dir.join(name))?);
                    }
                }
                Ok(said + &made)
            });
        }
    }
}
