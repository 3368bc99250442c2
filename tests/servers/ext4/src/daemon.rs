// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Going into the background once the mount is up, so that whoever mounts hears how that went.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
};

use rustix::stdio;

/// Given to the process that serves.
pub const TELL_READY: &str = "--tell-ready";
/// What it then says.
const READY: &str = "ready";

/// Starts this program again to serve, and returns once it does.
pub fn start(args: &[OsString]) -> io::Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg(TELL_READY)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(());
    }
    let status = child.wait()?;
    Err(io::Error::other(format!("not mounted ({status})")))
}

/// In the process that serves, when the mount is up: lets go of the terminal, the directory and the
/// pipes of whoever mounted, and only then says so. What there is to complain of later goes to
/// `log`, or to the kernel's log, where an administrator looks for what a filesystem says.
pub fn ready(log: Option<&Path>) -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")?;
    match log {
        Some(log) => {
            let file = OpenOptions::new().append(true).create(true).open(log)?;
            stdio::dup2_stderr(&file)?;
        }
        None => to_kernel_log()?,
    }
    // If nobody listens any more, nobody needs to know.
    let _ = writeln!(io::stdout(), "{READY}");
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    Ok(stdio::dup2_stdout(&null)?)
}

/// Makes each line on stderr a record of the kernel's log, or nothing if that cannot be written.
fn to_kernel_log() -> io::Result<()> {
    let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") else {
        let null = OpenOptions::new().write(true).open("/dev/null")?;
        return Ok(stdio::dup2_stderr(&null)?);
    };
    let (lines, input) = io::pipe()?;
    stdio::dup2_stderr(&input)?;
    thread::Builder::new().name("log".into()).spawn(move || {
        for line in BufReader::new(lines).lines().map_while(Result::ok) {
            // One write is one record; 4 is a warning.
            let _ = log.write_all(format!("<4>{line}\n").as_bytes());
        }
    })?;
    Ok(())
}
