// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Times: what moves which, how access times behave with each mount option, and that they last.

use super::{make, read, writable};
use crate::pair::Pair;
use crate::seen::{Broken, Seen, change_of, changes, look, nanos};
use crate::sys::{self, Page};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
    fallocate, open, utimensat,
};
use rustix::mount::MountFlags;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    data(pair);
    explicit(pair);
    metadata(pair);
    access(pair);
    lasting(pair);
}

/// Sets access and modification time, each `None` to leave it.
fn set(path: &Path, atime: Option<Timespec>, mtime: Option<Timespec>) -> Result<(), Broken> {
    let omit = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    };
    let times = Timestamps {
        last_access: atime.unwrap_or(omit),
        last_modification: mtime.unwrap_or(omit),
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

const NOW: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: UTIME_NOW,
};

const fn at(tv_sec: i64, tv_nsec: i64) -> Timespec {
    Timespec { tv_sec, tv_nsec }
}

fn allocate(pair: &mut Pair, name: &str, mode: FallocateFlags, offset: u64, length: u64) {
    pair.step(name, |side| {
        let path = side.path("data");
        change_of(&path, || {
            Ok(fallocate(writable(&path)?, mode, offset, length)?)
        })
    });
}

fn data(pair: &mut Pair) {
    pair.step("a file is made", |side| {
        changes(&[&side.root], || {
            make(&side.path("data"), &[7; 10_000])?;
            Ok(())
        })
    });
    pair.step("its times at first", |side| {
        let path = side.path("other");
        make(&path, b"")?;
        let s = look(&path)?;
        let [a, m, c] = [s.stx_atime, s.stx_mtime, s.stx_ctime].map(nanos);
        Ok(format!(
            "atime = mtime: {}, mtime = ctime: {}",
            a == m,
            m == c
        ))
    });
    pair.step("a write", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.write_all_at(b"new", 0)?))
    });
    pair.step("a write after it is not the earlier", |side| {
        let path = side.path("quick");
        let file = make(&path, b"")?;
        let made = nanos(look(&path)?.stx_ctime);
        file.write_all_at(b"x", 0)?;
        let written = nanos(look(&path)?.stx_mtime);
        Ok(format!("{}", written >= made))
    });
    pair.step("a direct write", |side| {
        let path = side.path("data");
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(&path)?;
        let page = sys::Aligned::new(3);
        change_of(&path, || Ok(file.write_all_at(page.bytes(), 4096)?))
    });
    pair.step("a write of nothing", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.write_all(b"")?))
    });
    pair.step("a store through a mapping", |side| {
        let path = side.path("data");
        let file = writable(&path)?;
        change_of(&path, || {
            let page = Page::map(&file, true)?;
            page.store(1);
            Ok(page.sync()?)
        })
    });
    pair.step("a second store after msync", |side| {
        let path = side.path("data");
        let file = writable(&path)?;
        let page = Page::map(&file, true)?;
        page.store(1);
        page.sync()?;
        change_of(&path, || {
            page.store(2);
            Ok(page.sync()?)
        })
    });
    pair.step("truncation to another size", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.set_len(5000)?))
    });
    pair.step("ftruncate to the same size", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(writable(&path)?.set_len(5000)?))
    });
    pair.step("truncate to the same size", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(sys::truncate(&path, 5000)?))
    });
    pair.step("truncate to another size", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(sys::truncate(&path, 9000)?))
    });
    let keep = FallocateFlags::KEEP_SIZE;
    let punch = FallocateFlags::PUNCH_HOLE | keep;
    allocate(pair, "fallocate", FallocateFlags::empty(), 0, 20_000);
    allocate(
        pair,
        "fallocate of what is there",
        FallocateFlags::empty(),
        0,
        4096,
    );
    allocate(pair, "fallocate, keeping the size", keep, 0, 60_000);
    allocate(pair, "a hole is punched", punch, 4096, 4096);
    allocate(
        pair,
        "a range is zeroed",
        FallocateFlags::ZERO_RANGE,
        100,
        5000,
    );
    allocate(
        pair,
        "a range is collapsed",
        FallocateFlags::COLLAPSE_RANGE,
        0,
        4096,
    );
    allocate(
        pair,
        "a range is inserted",
        FallocateFlags::INSERT_RANGE,
        0,
        4096,
    );
    pair.step("copy_file_range", |side| {
        let (from, to) = (side.path("data"), side.path("copy"));
        make(&to, b"")?;
        let (source, target) = (File::open(&from)?, writable(&to)?);
        changes(&[&to], || {
            rustix::fs::copy_file_range(&source, None, &target, None, 6000)?;
            Ok(())
        })
    });
    pair.step("opened with O_TRUNC", |side| {
        let path = side.path("copy");
        change_of(&path, || {
            File::create(&path)?;
            Ok(())
        })
    });
    pair.step("opened with O_TRUNC when empty", |side| {
        let path = side.path("copy");
        change_of(&path, || {
            File::create(&path)?;
            Ok(())
        })
    });
}

fn explicit(pair: &mut Pair) {
    for name in ["data", "directory", "symlink"] {
        pair.step(&format!("{name}: both times are set"), |side| {
            let path = side.path(name);
            if name == "directory" {
                std::fs::create_dir(&path)?;
            } else if name == "symlink" {
                std::os::unix::fs::symlink("data", &path)?;
            }
            change_of(&path, || {
                set(&path, Some(at(1_000_000_000, 123_456_789)), Some(at(2, 5)))
            })
        });
        pair.step(&format!("{name}: mtime is set before 1970"), |side| {
            let path = side.path(name);
            change_of(&path, || set(&path, None, Some(at(-1000, 999_999_999))))
        });
        pair.step(&format!("{name}: atime is set beyond 32 bits"), |side| {
            let path = side.path(name);
            change_of(&path, || set(&path, Some(at(5_000_000_000, 1)), None))
        });
        pair.step(&format!("{name}: both are set to now"), |side| {
            let path = side.path(name);
            let text = change_of(&path, || set(&path, Some(NOW), Some(NOW)))?;
            let s = look(&path)?;
            let same = nanos(s.stx_atime) == nanos(s.stx_mtime);
            Ok(format!("{text}, atime = mtime: {same}"))
        });
        pair.step(&format!("{name}: neither is set"), |side| {
            let path = side.path(name);
            change_of(&path, || set(&path, None, None))
        });
    }
}

fn metadata(pair: &mut Pair) {
    pair.step("chmod", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(rustix::fs::chmod(&path, Mode::from(0o640))?))
    });
    pair.step("chmod of a directory", |side| {
        let path = side.path("directory");
        change_of(&path, || Ok(rustix::fs::chmod(&path, Mode::from(0o750))?))
    });
    pair.step("chown", |side| {
        let path = side.path("data");
        change_of(&path, || {
            Ok(std::os::unix::fs::chown(&path, Some(5), Some(6))?)
        })
    });
    pair.step("chown to the same", |side| {
        let path = side.path("data");
        change_of(&path, || {
            Ok(std::os::unix::fs::chown(&path, Some(5), Some(6))?)
        })
    });
    pair.step("link", |side| {
        let path = side.path("data");
        changes(&[&path, &side.root], || {
            Ok(std::fs::hard_link(&path, side.path("link"))?)
        })
    });
    pair.step("rename", |side| {
        let path = side.path("link");
        let text = changes(
            &[&side.path("data"), &side.root, &side.path("directory")],
            || Ok(std::fs::rename(&path, side.path("directory/link"))?),
        )?;
        Ok(text)
    });
    pair.step("unlink", |side| {
        let directory = side.path("directory");
        changes(&[&side.path("data"), &directory], || {
            Ok(std::fs::remove_file(directory.join("link"))?)
        })
    });
    pair.step("an extended attribute is set", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(sys::set_xattr(&path, "user.one", b"1")?))
    });
    pair.step("and removed", |side| {
        let path = side.path("data");
        change_of(&path, || Ok(sys::remove_xattr(&path, "user.one")?))
    });
    pair.step("mkdir and rmdir", |side| {
        changes(&[&side.root], || {
            let path = side.path("short-lived");
            std::fs::create_dir(&path)?;
            Ok(std::fs::remove_dir(&path)?)
        })
    });
}

/// What reading does to the access time of each kind of inode.
fn reads(pair: &mut Pair, how: &str) {
    pair.step(&format!("{how}: a read"), |side| {
        let path = side.path("data");
        change_of(&path, || read(&path))
    });
    pair.step(&format!("{how}: a second read"), |side| {
        let path = side.path("data");
        change_of(&path, || read(&path))
    });
    pair.step(&format!("{how}: a direct read"), |side| {
        let path = side.path("data");
        writable(&path)?.write_all_at(b"so that relatime has a reason", 0)?;
        change_of(&path, || {
            let flags = OFlags::RDONLY | OFlags::DIRECT;
            let file = File::from(open(&path, flags, Mode::empty())?);
            file.read_exact_at(sys::Aligned::new(0).bytes_mut(), 0)?;
            Ok(())
        })
    });
    pair.step(&format!("{how}: a mapping"), |side| {
        let path = side.path("data");
        writable(&path)?.write_all_at(b"another reason", 0)?;
        change_of(&path, || {
            Page::map(&File::open(&path)?, false)?.load();
            Ok(())
        })
    });
    pair.step(&format!("{how}: a read with O_NOATIME"), |side| {
        let path = side.path("data");
        writable(&path)?.write_all_at(b"one more reason", 0)?;
        change_of(&path, || {
            let flags = OFlags::RDONLY | OFlags::NOATIME;
            let file = File::from(open(&path, flags, Mode::empty())?);
            file.read_exact_at(&mut [0; 5], 0)?;
            Ok(())
        })
    });
    pair.step(&format!("{how}: a listing"), |side| {
        let path = side.path("directory");
        make(&path.join(how), b"")?;
        change_of(&path, || {
            if std::fs::read_dir(&path)?.count() == 0 {
                return Err("nothing is there".into());
            }
            Ok(())
        })
    });
    pair.step(&format!("{how}: a second listing"), |side| {
        let path = side.path("directory");
        change_of(&path, || {
            std::fs::read_dir(&path)?.count();
            Ok(())
        })
    });
    pair.step(&format!("{how}: a symbolic link is read"), |side| {
        let path = side.path("symlink");
        set(&path, Some(at(1_000_000, 0)), Some(at(1_000_001, 0)))?;
        change_of(&path, || {
            std::fs::read_link(&path)?;
            Ok(())
        })
    });
    pair.step(&format!("{how}: an old access time"), |side| {
        let path = side.path("data");
        set(&path, Some(at(1_000_000, 0)), Some(at(1, 0)))?;
        change_of(&path, || read(&path))
    });
}

fn access(pair: &mut Pair) {
    let no = MountFlags::empty();
    reads(pair, "relatime");
    pair.remount(no, MountFlags::STRICTATIME);
    reads(pair, "strictatime");
    pair.remount(no, MountFlags::NOATIME);
    reads(pair, "noatime");
    pair.remount(no, MountFlags::NODIRATIME | MountFlags::STRICTATIME);
    reads(pair, "nodiratime");
    pair.remount(MountFlags::LAZYTIME, MountFlags::STRICTATIME);
    reads(pair, "lazytime");
}

/// Times of a name to the nanosecond, as far as both sides can have the same.
fn exact(path: &Path) -> Seen {
    let s = look(path)?;
    Ok(format!(
        "atime {} mtime {}",
        nanos(s.stx_atime),
        nanos(s.stx_mtime)
    ))
}

/// That times are still there when the file is taken from the disk again.
fn lasting(pair: &mut Pair) {
    for name in ["data", "directory", "symlink"] {
        pair.step(&format!("lazytime: {name} is set"), |side| {
            let path = side.path(name);
            set(&path, Some(at(1_234_567, 89)), Some(at(7_654_321, 98)))?;
            exact(&path)
        });
    }
    pair.step("lazytime: a write and a read, fsync", |side| {
        let path = side.path("copy");
        let file = writable(&path)?;
        file.write_all_at(b"lazy", 0)?;
        read(&path)?;
        file.sync_all()?;
        Ok("done".into())
    });
    pair.mount_again();
    for name in ["data", "directory", "symlink"] {
        pair.step(
            &format!("{name} has its times after another mount"),
            |side| exact(&side.path(name)),
        );
    }
    pair.step("evicted and read again", |side| {
        let path = side.path("quick");
        writable(&path)?.write_all_at(b"something", 0)?;
        read(&path)?;
        let before = exact(&path)?;
        rustix::fs::sync();
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        Ok(format!("the same: {}", before == exact(&path)?))
    });
}
