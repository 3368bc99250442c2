// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Descriptors that go from one program to the one it starts, by their numbers.
#![allow(unsafe_code)]

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// Lets programs that are started from now on have `fd`, and returns its number, for their command
/// line.
pub fn inherit(fd: impl AsFd) -> io::Result<RawFd> {
    fcntl_setfd(&fd, FdFlags::empty())?;
    Ok(fd.as_fd().as_raw_fd())
}

/// Takes up a descriptor that was inherited. `EBADF` if it was not.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: It is not -1. Whether it is open is what the two calls ask the kernel; nothing is read
    // from or written to it, and it is not closed.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    let own = fcntl_dupfd_cloexec(fd, 3)?;
    // Programs that are started from here are not meant.
    fcntl_setfd(fd, FdFlags::CLOEXEC)?;
    Ok(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_on_is_the_same_file() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let number = inherit(&file).unwrap();
        let own = inherited(number).unwrap();
        assert_ne!(own.as_raw_fd(), number);
        let (a, b) = (rustix::fs::fstat(&file), rustix::fs::fstat(&own));
        assert_eq!(a.unwrap().st_ino, b.unwrap().st_ino);
        assert!(inherited(-1).is_err());
        assert!(inherited(1 << 20).is_err());
    }
}
