// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a step has shown, as text that is the same on two filesystems if they behave the same.

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, StatxTimestamp, statx};
use rustix::io::Errno;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why a step could not be taken, which is no result but a failure, even if both sides have it.
#[derive(Debug)]
pub struct Broken(pub String);

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<io::Error> for Broken {
    #[track_caller]
    fn from(error: io::Error) -> Self {
        let line = std::panic::Location::caller();
        Self(format!("{error} at {}:{}", line.file(), line.line()))
    }
}

impl From<Errno> for Broken {
    #[track_caller]
    fn from(error: Errno) -> Self {
        let line = std::panic::Location::caller();
        Self(format!("{error} at {}:{}", line.file(), line.line()))
    }
}

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for Broken {
    fn from(why: &str) -> Self {
        Self(why.into())
    }
}

/// What a step has shown.
pub type Seen = Result<String, Broken>;

/// How a call went that may well fail: `ok`, or the name of its error.
pub fn outcome<T, E: Into<io::Error>>(result: Result<T, E>) -> String {
    match result {
        Ok(_) => "ok".into(),
        Err(error) => errno_name(error.into().raw_os_error().unwrap_or(0)),
    }
}

fn errno_name(number: i32) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::EIO, "EIO"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::EISDIR, "EISDIR"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::EMLINK, "EMLINK"),
        (libc::ERANGE, "ERANGE"),
        (libc::ENOTEMPTY, "ENOTEMPTY"),
        (libc::ENODATA, "ENODATA"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EOVERFLOW, "EOVERFLOW"),
    ];
    let name = known.iter().find(|(known, _)| *known == number);
    name.map_or_else(|| format!("errno {number}"), |(_, name)| (*name).into())
}

/// Attributes of a name; links are not followed.
pub fn look(path: &Path) -> Result<Statx, Broken> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let seen = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted);
    seen.map_err(|e| Broken(format!("statx {}: {e}", path.display())))
}

/// Type and permissions, owner, group, links and size.
pub fn attributes(path: &Path) -> Seen {
    let s = look(path)?;
    Ok(format!(
        "{:o} {}:{} links {} size {}",
        s.stx_mode, s.stx_uid, s.stx_gid, s.stx_nlink, s.stx_size
    ))
}

/// What has become of the attributes of some files while something was done: which times have
/// moved to now, were set or were kept, and whatever else is different.
pub fn changes(paths: &[&Path], f: impl FnOnce() -> Result<(), Broken>) -> Seen {
    let mut before = Vec::new();
    for path in paths {
        before.push(look(path)?);
    }
    // The clock that stamps files ticks every 10 ms at least.
    sleep(Duration::from_millis(25));
    let start = now()?;
    f()?;
    let end = now()?;
    let mut text = String::new();
    for (path, before) in paths.iter().zip(before) {
        if paths.len() > 1 {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(text, "{}{name}: ", if text.is_empty() { "" } else { "; " });
        }
        text.push_str(&change(&before, &look(path)?, start, end));
    }
    Ok(text)
}

/// As [`changes`], of one file.
pub fn change_of(path: &Path, f: impl FnOnce() -> Result<(), Broken>) -> Seen {
    changes(&[path], f)
}

fn now() -> Result<i128, Broken> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(|e| e.to_string())?;
    Ok(now.as_nanos() as i128)
}

/// In nanoseconds.
pub fn nanos(time: StatxTimestamp) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

fn change(before: &Statx, after: &Statx, start: i128, end: i128) -> String {
    /// The stamping clock may be behind by this.
    const TICK: i128 = 20_000_000;
    let mut text = String::new();
    let times = [
        ("atime", before.stx_atime, after.stx_atime),
        ("mtime", before.stx_mtime, after.stx_mtime),
        ("ctime", before.stx_ctime, after.stx_ctime),
    ];
    for (name, old, new) in times {
        let (old, new) = (nanos(old), nanos(new));
        let what = if old == new {
            "kept".to_owned()
        } else if (start - TICK..=end).contains(&new) {
            "now".to_owned()
        } else {
            format!(
                "{}.{:09}",
                new.div_euclid(1_000_000_000),
                new.rem_euclid(1_000_000_000)
            )
        };
        let _ = write!(
            text,
            "{}{name} {what}",
            if text.is_empty() { "" } else { ", " }
        );
    }
    if nanos(after.stx_mtime) != nanos(before.stx_mtime)
        && nanos(after.stx_ctime) != nanos(before.stx_ctime)
    {
        let order = match nanos(after.stx_mtime).cmp(&nanos(after.stx_ctime)) {
            std::cmp::Ordering::Less => "mtime < ctime",
            std::cmp::Ordering::Equal => "mtime = ctime",
            std::cmp::Ordering::Greater => "mtime > ctime",
        };
        let _ = write!(text, ", {order}");
    }
    let mut differs = |name: &str, old: u64, new: u64, octal: bool| {
        if old != new {
            let _ = if octal {
                write!(text, ", {name} {old:o} to {new:o}")
            } else {
                write!(text, ", {name} {old} to {new}")
            };
        }
    };
    differs("mode", before.stx_mode.into(), after.stx_mode.into(), true);
    differs("uid", before.stx_uid.into(), after.stx_uid.into(), false);
    differs("gid", before.stx_gid.into(), after.stx_gid.into(), false);
    differs(
        "links",
        before.stx_nlink.into(),
        after.stx_nlink.into(),
        false,
    );
    differs("size", before.stx_size, after.stx_size, false);
    text
}
