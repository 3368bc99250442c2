// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The clock of file times.
#![allow(unsafe_code)]

/// The time, in seconds since 1970 and nanoseconds, as the kernel stamps files with it.
///
/// That clock is behind others by up to a tick. The kernel sets the times of iomap files and the
/// server those of directories and of new files: with another clock, what is done later could get
/// the earlier time.
pub fn file_time() -> (i64, u32) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: The result lives during the call. This clock cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &raw mut now) };
    (now.tv_sec, now.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn it_is_now() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let (sec, nsec) = file_time();
        assert!(now.as_secs().abs_diff(sec as u64) <= 1 && nsec < 1_000_000_000);
    }
}
