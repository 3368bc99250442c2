// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Flags of inodes, as chattr(1) sets them: what may still be done, and that they last.

use super::{make, read, writable};
use crate::pair::{Pair, Side};
use crate::seen::{Broken, Seen, change_of, outcome};
use crate::sys::{self, Page, flag, xflag};
use crate::user::as_user;
use rustix::fs::{FallocateFlags, Mode, chmod, fallocate};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, chown};
use std::path::Path;

/// Flags that say how the volume stores the inode, and may differ between the two.
const OF_THE_VOLUME: u32 = 0x1000_1000 | 0x8_0000;

/// What may be tried on a name.
type Attempt = (&'static str, fn(&Path) -> io::Result<()>);

const ATTEMPTS: &[Attempt] = &[
    ("read", |path| {
        std::fs::read(path)?;
        Ok(())
    }),
    ("open for writing", |path| {
        OpenOptions::new().write(true).open(path)?;
        Ok(())
    }),
    ("append", |path| {
        use std::io::Write;
        OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(b"more")
    }),
    ("O_TRUNC", |path| {
        OpenOptions::new().append(true).open(path)?;
        File::create(path)?;
        Ok(())
    }),
    ("truncate", |path| sys::truncate(path, 3)),
    ("chmod", |path| Ok(chmod(path, Mode::from(0o600))?)),
    ("chown", |path| chown(path, Some(1), Some(1))),
    ("times to now", |path| {
        let file = File::open(path)?;
        file.set_times(std::fs::FileTimes::new().set_modified(std::time::SystemTime::now()))
    }),
    ("set an attribute", |path| {
        Ok(sys::set_xattr(path, "user.test", b"1")?)
    }),
    ("set an ACL", |path| {
        // The ACL of mode 600.
        let acl = [
            2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255, 32, 0, 0,
            0, 255, 255, 255, 255,
        ];
        Ok(sys::set_xattr(path, "system.posix_acl_access", &acl)?)
    }),
    ("link", |path| {
        std::fs::hard_link(path, path.with_file_name("another"))
    }),
    ("rename", |path| {
        std::fs::rename(path, path.with_file_name("renamed"))
    }),
    ("rename over", |path| {
        let other = path.with_file_name("over");
        std::fs::write(&other, "")?;
        std::fs::rename(&other, path)
    }),
    ("unlink", |path| std::fs::remove_file(path)),
];

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    setting(pair);
    for (name, flag) in [("immutable", flag::IMMUTABLE), ("append", flag::APPEND)] {
        files(pair, name, flag);
        open_before(pair, name, flag);
        directories(pair, name, flag);
    }
    looked_at(pair);
    synchronous(pair);
    lasting(pair);
}

fn flags_of(path: &Path) -> Seen {
    let file = File::open(path)?;
    Ok(format!(
        "flags {:x} xflags {:x}",
        sys::get_flags(&file)? & !OF_THE_VOLUME,
        sys::get_xflags(&file)?
    ))
}

/// Sets these flags, of those that users may set.
fn set(path: &Path, flags: u32) -> io::Result<()> {
    let file = File::open(path)?;
    let others = sys::get_flags(&file)? & OF_THE_VOLUME;
    sys::set_flags(&file, others | flags)
}

fn setting(pair: &mut Pair) {
    pair.step("a new file has none", |side| {
        make(&side.path("file"), b"contents")?;
        flags_of(&side.path("file"))
    });
    for flags in [
        flag::NODUMP,
        flag::SYNC | flag::NODUMP,
        flag::IMMUTABLE,
        flag::APPEND | flag::SYNC,
        flag::NOATIME,
        0,
    ] {
        pair.step(&format!("flags {flags:x} are set"), |side| {
            let path = side.path("file");
            let change = change_of(&path, || Ok(set(&path, flags)?))?;
            Ok(format!("{change}; {}", flags_of(&path)?))
        });
    }
    for xflags in [xflag::IMMUTABLE, xflag::APPEND, 0] {
        pair.step(&format!("FSSETXATTR {xflags:x}"), |side| {
            let path = side.path("file");
            let change = change_of(&path, || Ok(sys::set_xflags(&File::open(&path)?, xflags)?))?;
            Ok(format!("{change}; {}", flags_of(&path)?))
        });
    }
    pair.step("what nobody may set", |side| {
        let path = side.path("file");
        // Encrypted, verity, in an inode of its own, unknown.
        let all = [0x800, 0x10_0000, 0x20_0000, 0x8000_0000];
        let outcomes = all.map(|flags| outcome(set(&path, flags)));
        Ok(format!("{}; {}", outcomes.join(" "), flags_of(&path)?))
    });
    pair.step("immutable without the capability", |side| {
        let path = side.path("file");
        chown(&path, Some(1000), Some(1000))?;
        as_user(1000, 1000, || {
            let immutable = outcome(set(&path, flag::IMMUTABLE));
            let append = outcome(set(&path, flag::APPEND));
            let nodump = outcome(set(&path, flag::NODUMP));
            Ok(format!(
                "{immutable} {append} {nodump} {}",
                flags_of(&path)?
            ))
        })
    });
    pair.step("by another than the owner", |side| {
        let path = side.path("file");
        as_user(2000, 2000, || Ok(outcome(set(&path, 0))))
    });
}

/// A directory with a file in it.
fn fresh(side: &Side, name: &str) -> Result<std::path::PathBuf, Broken> {
    let directory = side.path(name);
    std::fs::create_dir(&directory)?;
    make(&directory.join("file"), b"contents")?;
    Ok(directory.join("file"))
}

fn files(pair: &mut Pair, name: &str, flag: u32) {
    for (attempt, try_it) in ATTEMPTS {
        pair.step(&format!("{name} file: {attempt}"), |side| {
            let path = fresh(side, &format!("{name} {attempt}"))?;
            set(&path, flag)?;
            let tried = outcome(try_it(&path));
            let contents = std::fs::read(&path).map(|c| c.len());
            if path.exists() {
                set(&path, 0)?;
            }
            let again = outcome(try_it(&path));
            Ok(format!("{tried}, {contents:?} bytes; without it {again}"))
        });
    }
}

/// What descriptors and mappings may that are older than the flag.
fn open_before(pair: &mut Pair, name: &str, flag: u32) {
    pair.step(&format!("{name}: a file that was open before"), |side| {
        let path = fresh(side, &format!("{name} open"))?;
        let file = writable(&path)?;
        set(&path, flag)?;
        let write = outcome(file.write_at(b"x", 0));
        let truncate = outcome(file.set_len(3));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let punch = outcome(fallocate(&file, punch, 0, 4096));
        let grow = outcome(fallocate(&file, FallocateFlags::empty(), 0, 9000));
        let map = outcome(Page::map(&file, true));
        let map_for_reading = outcome(Page::map(&file, false));
        let mode = outcome(rustix::fs::fchmod(&file, Mode::from(0o600)));
        set(&path, 0)?;
        Ok(format!(
            "write {write} ftruncate {truncate} punch {punch} fallocate {grow} mmap {map} \
             {map_for_reading} fchmod {mode}"
        ))
    });
    pair.step(
        &format!("{name}: a mapping that was there before"),
        |side| {
            let path = fresh(side, &format!("{name} mapped"))?;
            let file = writable(&path)?;
            let page = Page::map(&file, true)?;
            set(&path, flag)?;
            let stored = outcome(page.store_or_fault(b'X'));
            set(&path, 0)?;
            drop(page);
            let first = std::fs::read(&path)?.first().copied();
            Ok(format!("{stored}, first byte {first:?}"))
        },
    );
}

fn directories(pair: &mut Pair, name: &str, flag: u32) {
    pair.step(&format!("{name} directory"), |side| {
        let file = fresh(side, &format!("{name} directory"))?;
        let directory = file.parent().ok_or("no parent")?;
        set(directory, flag)?;
        let shown = flags_of(directory)?;
        let create = outcome(File::create_new(directory.join("new")));
        let mkdir = outcome(std::fs::create_dir(directory.join("sub")));
        let link = outcome(std::fs::hard_link(&file, directory.join("link")));
        let rename = outcome(std::fs::rename(&file, directory.join("renamed")));
        let unlink = outcome(std::fs::remove_file(&file));
        let write = outcome(std::fs::write(&file, "other"));
        let chmod = outcome(chmod(directory, Mode::from(0o700)));
        let list = std::fs::read_dir(directory)?.count();
        set(directory, 0)?;
        let after = outcome(std::fs::write(directory.join("after"), ""));
        Ok(format!(
            "{shown}: create {create} mkdir {mkdir} link {link} rename {rename} unlink {unlink} \
             write {write} chmod {chmod} names {list}, without it {after}"
        ))
    });
    pair.step(&format!("{name}: rmdir of such a directory"), |side| {
        let directory = side.path(&format!("{name} empty"));
        std::fs::create_dir(&directory)?;
        set(&directory, flag)?;
        let removed = outcome(std::fs::remove_dir(&directory));
        set(&directory, 0)?;
        Ok(format!(
            "{removed} {}",
            outcome(std::fs::remove_dir(&directory))
        ))
    });
}

/// The flags that statx(2) shows, of those that the VFS enforces. It asks for the time of birth, too, as
/// programs do which the answer of stat(2) is not enough for.
fn shown(path: &Path) -> Seen {
    const BASIC_AND_BIRTH: u32 = 0xfff;
    const ENFORCED: u32 = flag::IMMUTABLE | flag::APPEND;
    let words = sys::statx_words(path, BASIC_AND_BIRTH)?;
    Ok(format!(
        "shown {:x} of {:x}",
        words[2] & ENFORCED,
        words[14] & ENFORCED
    ))
}

/// Looking at an inode neither hides its flags nor takes them away.
fn looked_at(pair: &mut Pair) {
    for (name, flag) in [("immutable", flag::IMMUTABLE), ("append", flag::APPEND)] {
        pair.step(&format!("{name}: a file that is looked at"), |side| {
            let path = fresh(side, &format!("{name} seen"))?;
            let before = shown(&path)?;
            set(&path, flag)?;
            let with = shown(&path)?;
            let write = outcome(OpenOptions::new().write(true).open(&path));
            let unlink = outcome(std::fs::remove_file(&path));
            set(&path, 0)?;
            let after = shown(&path)?;
            Ok(format!(
                "{before}, {with}, write {write} unlink {unlink}, {after}"
            ))
        });
        pair.step(&format!("{name}: a directory that is looked at"), |side| {
            let file = fresh(side, &format!("{name} seen directory"))?;
            let directory = file.parent().ok_or("no parent")?;
            set(directory, flag)?;
            let with = shown(directory)?;
            let unlink = outcome(std::fs::remove_file(&file));
            set(directory, 0)?;
            Ok(format!("{with}, unlink {unlink}, {}", shown(directory)?))
        });
    }
    pair.step("a file with S_SYNC that is looked at", |side| {
        let path = side.path("synchronous seen");
        let file = make(&path, b"")?;
        set(&path, flag::SYNC)?;
        shown(&path)?;
        file.write_all_at(&[1; 5000], 0)?;
        Ok(format!("dirty: {}", sys::has_dirty_pages(&file, 5000)?))
    });
}

fn synchronous(pair: &mut Pair) {
    pair.step("a file with S_SYNC", |side| {
        let path = side.path("synchronous");
        let file = make(&path, b"")?;
        set(&path, flag::SYNC)?;
        file.write_all_at(&[1; 5000], 0)?;
        let dirty = sys::has_dirty_pages(&file, 5000)?;
        set(&path, 0)?;
        file.write_all_at(&[1; 5000], 0)?;
        Ok(format!(
            "dirty: {dirty}, without it: {}",
            sys::has_dirty_pages(&file, 5000)?
        ))
    });
    pair.step("handed down by a directory", |side| {
        let directory = side.path("parent");
        std::fs::create_dir(&directory)?;
        set(&directory, flag::SYNC | flag::NODUMP | flag::NOATIME)?;
        make(&directory.join("file"), b"")?;
        std::fs::create_dir(directory.join("sub"))?;
        Ok(format!(
            "{}; {}",
            flags_of(&directory.join("file"))?,
            flags_of(&directory.join("sub"))?
        ))
    });
}

fn lasting(pair: &mut Pair) {
    pair.step("some are left", |side| {
        for (name, flags) in [
            ("left immutable", flag::IMMUTABLE),
            ("left append", flag::APPEND),
            ("left sync", flag::SYNC),
        ] {
            make(&side.path(name), b"contents")?;
            set(&side.path(name), flags)?;
        }
        let directory = side.path("left directory");
        std::fs::create_dir(&directory)?;
        set(&directory, flag::IMMUTABLE)?;
        Ok("done".into())
    });
    pair.mount_again();
    pair.step("they hold after another mount", |side| {
        let mut text = String::new();
        for name in ["left immutable", "left append", "left sync"] {
            let path = side.path(name);
            let write = outcome(OpenOptions::new().write(true).open(&path));
            read(&path)?;
            text += &format!("{name}: {write} {}; ", flags_of(&path)?);
        }
        let directory = side.path("left directory");
        let create = outcome(File::create_new(directory.join("new")));
        text += &format!("{create} {}", flags_of(&directory)?);
        for name in ["left immutable", "left append", "left directory"] {
            set(&side.path(name), 0)?;
        }
        Ok(text)
    });
}
