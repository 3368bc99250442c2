// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The kernel log.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

/// Reads what the kernel logs from now on.
pub struct Kmsg(File);

impl Kmsg {
    /// Starts at the end of the log.
    pub fn open() -> Result<Self, String> {
        let context = |e: std::io::Error| format!("/dev/kmsg: {e}");
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .map_err(context)?;
        file.seek(SeekFrom::End(0)).map_err(context)?;
        Ok(Self(file))
    }

    /// Messages since the last call.
    pub fn lines(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // One read gives one record, and this is longer than any.
        let mut record = vec![0; 8192];
        loop {
            match self.0.read(&mut record) {
                Ok(0) => break,
                Ok(n) => {
                    let text = String::from_utf8_lossy(&record[..n]);
                    if let Some((_, message)) = text.split_once(';') {
                        lines.push(message.lines().next().unwrap_or_default().to_owned());
                    }
                }
                // Records were overwritten before they were read; go on with the next.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => {}
                Err(_) => break,
            }
        }
        lines
    }

    /// Waits until `wanted` messages were logged that contain `text`; returns all there are.
    pub fn wait_for(&mut self, text: &str, wanted: usize) -> Vec<String> {
        let start = Instant::now();
        let mut found = Vec::new();
        loop {
            found.extend(self.lines().into_iter().filter(|l| l.contains(text)));
            if found.len() >= wanted || start.elapsed() > Duration::from_secs(2) {
                return found;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
