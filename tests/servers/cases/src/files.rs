// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Reading and writing files in all the ways there are, and comparing.

use crate::sys;
use crate::tap::Outcome;
use rustix::fs::Advice;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Drops the file's clean pages.
pub fn cool(file: &File) -> Result<(), String> {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).map_err(|e| format!("fadvise: {e}"))
}

/// Opens a file for reading with nothing of it cached and no read-ahead beyond what is asked for.
pub fn open_cold(path: &Path) -> Result<File, String> {
    let file = File::open(path).map_err(|e| format!("open {}: {e}", path.display()))?;
    cool(&file)?;
    rustix::fs::fadvise(&file, 0, None, Advice::Random).map_err(|e| format!("fadvise: {e}"))?;
    Ok(file)
}

/// The errno of an error; 0 if it has none.
pub fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// Reads up to the end of a range or of the file.
pub fn pread(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut data = vec![0; length];
    let mut done = 0;
    while done < length {
        match file.read_at(&mut data[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => return Err(e),
        }
    }
    data.truncate(done);
    Ok(data)
}

/// Compares what was read at `offset` with what should have been.
pub fn same(offset: u64, got: &[u8], want: &[u8]) -> Outcome {
    if let Some(at) = lab::pattern::find_poison(offset, got) {
        return Err(format!("at {at}: device contents that belong to no file"));
    }
    if got.len() != want.len() {
        let (got, want) = (got.len(), want.len());
        return Err(format!("at {offset}: {got} bytes instead of {want}"));
    }
    match got.iter().zip(want).position(|(g, w)| g != w) {
        None => Ok(()),
        Some(i) => Err(format!(
            "at {}: {:#04x} instead of {:#04x}",
            offset + i as u64,
            got[i],
            want[i]
        )),
    }
}

/// Expects a system call to fail with one of these errors.
pub fn fails_with<T>(what: &str, result: io::Result<T>, errnos: &[i32]) -> Outcome {
    match result {
        Ok(_) => Err(format!("{what}: succeeded")),
        Err(e) if errnos.contains(&errno(&e)) => Ok(()),
        Err(e) => Err(format!("{what}: {e}, wanted errno {errnos:?}")),
    }
}

/// Starts this program again to read a range of a file in a process of its own, which may be
/// killed and may die: `how` is `--pread` or `--mmap`. It writes what it read to standard output
/// and exits with 0, or with 1 and the errno on standard output.
pub fn reader(how: &str, path: &Path, offset: u64, length: u64) -> Result<Child, String> {
    let me = std::env::current_exe().map_err(|e| e.to_string())?;
    Command::new(me)
        .arg(how)
        .arg(path)
        .args([offset.to_string(), length.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cannot start a reader: {e}"))
}

/// How a reader ended.
#[derive(PartialEq, Eq)]
pub enum Ended {
    /// With these bytes.
    Data(Vec<u8>),
    /// With this errno.
    Errno(i32),
    /// By this signal.
    Signal(i32),
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "{} bytes read", data.len()),
            Self::Errno(errno) => write!(f, "errno {errno}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// Waits for a reader.
pub fn ended(child: Child) -> Result<Ended, String> {
    let output = child
        .wait_with_output()
        .map_err(|e| format!("cannot wait for a reader: {e}"))?;
    if let Some(signal) = output.status.signal() {
        return Ok(Ended::Signal(signal));
    }
    if output.status.success() {
        return Ok(Ended::Data(output.stdout));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let errno = text.trim().parse().map_err(|_| format!("reader: {text}"))?;
    Ok(Ended::Errno(errno))
}

/// Reads through a mapping in a process of its own.
pub fn mmap_in_child(path: &Path, offset: u64, length: u64) -> Result<Vec<u8>, String> {
    match ended(reader("--mmap", path, offset, length)?)? {
        Ended::Data(data) => Ok(data),
        other => Err(format!("mmap at {offset}: {other:?}")),
    }
}

/// Writes "written" at 5000 with write(2) and "mapped" at 9000 through a mapping, and syncs both.
pub fn write_both_ways(path: &Path) -> Result<File, String> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.map_err(|e| e.to_string())?;
    file.write_all_at(b"written", 5000)
        .map_err(|e| format!("write: {e}"))?;
    sys::mmap_write(&file, 9000, b"mapped").map_err(|e| format!("mmap: {e}"))?;
    file.sync_all().map_err(|e| format!("fsync: {e}"))?;
    Ok(file)
}
