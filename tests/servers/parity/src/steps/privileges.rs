// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Set-user-id and set-group-id bits and file capabilities: what takes them from a file.

use super::{make, writable};
use crate::pair::{Pair, Side};
use crate::seen::{Broken, Seen, attributes, outcome};
use crate::sys::{self, Page};
use crate::user::{as_user, as_user_in};
use rustix::fs::{FallocateFlags, Mode, chmod, fallocate};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, chown};
use std::path::Path;

const OWNER: u32 = 1000;
const GROUP: u32 = 1001;

/// `cap_net_raw+ep`, as `struct vfs_cap_data` has it.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];
const CAPABILITY_NAME: &str = "security.capability";

/// What may be done to the data of a file that is open for writing.
type Change = (&'static str, fn(&File, &Path) -> Result<(), Broken>);

const CHANGES: &[Change] = &[
    ("a write", |file, _| Ok(file.write_all_at(b"x", 1)?)),
    ("a write of nothing", |file, _| {
        file.write_at(b"", 0)?;
        Ok(())
    }),
    ("a direct write", |_, path| {
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        Ok(file.write_all_at(sys::Aligned::new(1).bytes(), 0)?)
    }),
    ("an append", |_, path| {
        use std::io::Write;
        Ok(OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(b"x")?)
    }),
    ("a store through a mapping", |file, _| {
        let page = Page::map(file, true)?;
        page.store(9);
        Ok(page.sync()?)
    }),
    ("ftruncate", |file, _| Ok(file.set_len(100)?)),
    ("truncate", |_, path| Ok(sys::truncate(path, 100)?)),
    ("O_TRUNC", |_, path| {
        File::create(path)?;
        Ok(())
    }),
    ("fallocate", |file, _| {
        Ok(fallocate(file, FallocateFlags::empty(), 0, 8192)?)
    }),
    ("fallocate, keeping the size", |file, _| {
        Ok(fallocate(file, FallocateFlags::KEEP_SIZE, 0, 65536)?)
    }),
    ("punching a hole", |file, _| {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(file, flags, 0, 4096)?)
    }),
    ("copy_file_range", |file, path| {
        let from = File::open(path.with_file_name("source"))?;
        rustix::fs::copy_file_range(&from, Some(&mut 0), file, Some(&mut 0), 4096)?;
        Ok(())
    }),
];

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("a file to copy from", |side| {
        make(&side.path("source"), &[1; 4096])?;
        chmod(side.path("source"), Mode::from(0o644))?;
        attributes(&side.path("source"))
    });
    for mode in [0o6777, 0o6767, 0o2757, 0o4711] {
        for (name, change) in CHANGES {
            pair.step(&format!("{mode:o}, by its owner: {name}"), |side| {
                changed(side, mode, |path| {
                    as_user(OWNER, GROUP, || change(&writable(path)?, path))
                })
            });
        }
    }
    for (name, change) in CHANGES {
        pair.step(&format!("by root: {name}"), |side| {
            changed(side, 0o6777, |path| change(&writable(path)?, path))
        });
        // Without S_IXGRP, the bit stays if the writer is in the group.
        pair.step(&format!("6767, by another: {name}"), |side| {
            changed(side, 0o6767, |path| {
                as_user(2000, 2000, || change(&writable(path)?, path))
            })
        });
        pair.step(&format!("capability: {name}"), |side| {
            changed(side, 0o777, |path| {
                sys::set_xattr(path, CAPABILITY_NAME, &CAPABILITY)?;
                change(&writable(path)?, path)
            })
        });
    }
    owners(pair);
    modes(pair);
    pair.step("set again after a write, and taken again", |side| {
        let path = fresh(side, 0o4755)?;
        let mut text = String::new();
        for _ in 0..3 {
            as_user(OWNER, GROUP, || Ok(writable(&path)?.write_all_at(b"x", 0)?))?;
            text += &attributes(&path)?;
            chmod(&path, Mode::from(0o4755))?;
            sys::set_xattr(&path, CAPABILITY_NAME, &CAPABILITY)?;
            text += &format!(", {}; ", attributes(&path)?);
        }
        Ok(text)
    });
}

/// A file of the owner with a mode.
fn fresh(side: &Side, mode: u32) -> Result<std::path::PathBuf, Broken> {
    let path = side.path("file");
    if path.exists() {
        std::fs::remove_file(&path)?;
    }
    make(&path, &[5; 8192])?;
    chown(&path, Some(OWNER), Some(GROUP))?;
    chmod(&path, Mode::from(mode))?;
    Ok(path)
}

/// What is left of a file's privileges after something, which may fail.
fn changed(side: &Side, mode: u32, f: impl FnOnce(&Path) -> Result<(), Broken>) -> Seen {
    let path = fresh(side, mode)?;
    f(&path)?;
    let capability = sys::xattr(&path, CAPABILITY_NAME);
    Ok(format!(
        "{}, capability {}",
        attributes(&path)?,
        outcome(capability)
    ))
}

fn owners(pair: &mut Pair) {
    let ids: [(&str, Option<u32>, Option<u32>); 5] = [
        ("to another user", Some(7), None),
        ("to another group", None, Some(7)),
        ("to both", Some(7), Some(8)),
        ("to the same", Some(OWNER), Some(GROUP)),
        ("to none", None, None),
    ];
    for mode in [0o6777, 0o6767, 0o4700, 0o755] {
        for (name, uid, gid) in ids {
            pair.step(&format!("{mode:o}: root gives it {name}"), |side| {
                changed(side, mode, |path| {
                    sys::set_xattr(path, CAPABILITY_NAME, &CAPABILITY)?;
                    Ok(chown(path, uid, gid)?)
                })
            });
        }
        pair.step(
            &format!("{mode:o}: the owner gives it to a group"),
            |side| {
                changed(side, mode, |path| {
                    as_user_in(OWNER, GROUP, &[7], || Ok(chown(path, None, Some(7))?))
                })
            },
        );
    }
    pair.step("a directory with both bits is given away", |side| {
        let path = side.path("directory");
        std::fs::create_dir(&path)?;
        chmod(&path, Mode::from(0o6777))?;
        chown(&path, Some(OWNER), Some(GROUP))?;
        attributes(&path)
    });
    pair.step("and by its owner to a group", |side| {
        let path = side.path("directory");
        as_user_in(OWNER, GROUP, &[7], || Ok(chown(&path, None, Some(7))?))?;
        attributes(&path)
    });
}

fn modes(pair: &mut Pair) {
    pair.step("chmod 6755 by an owner who is in the group", |side| {
        let path = fresh(side, 0o755)?;
        as_user(OWNER, GROUP, || Ok(chmod(&path, Mode::from(0o6755))?))?;
        attributes(&path)
    });
    pair.step("chmod 6755 by an owner who is not", |side| {
        let path = fresh(side, 0o755)?;
        as_user(OWNER, 2000, || Ok(chmod(&path, Mode::from(0o6755))?))?;
        attributes(&path)
    });
    pair.step("chmod by another", |side| {
        let path = fresh(side, 0o755)?;
        as_user(2000, 2000, || Ok(outcome(chmod(&path, Mode::from(0o777)))))
    });
    pair.step("files in a directory that hands its group down", |side| {
        let path = side.path("shared");
        std::fs::create_dir(&path)?;
        chown(&path, Some(OWNER), Some(GROUP))?;
        chmod(&path, Mode::from(0o2777))?;
        as_user(2000, 2000, || {
            let file = path.join("file");
            OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o2775)
                .open(&file)?;
            std::fs::create_dir(path.join("directory"))?;
            let (file, directory) = (attributes(&file)?, attributes(&path.join("directory"))?);
            Ok(format!("{file}; {directory}"))
        })
    });
}
