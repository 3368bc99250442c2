// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The kernel's trace events.

use std::fs::{read_to_string, write};
use std::path::Path;

const TRACING: &str = "/sys/kernel/tracing";

/// Events of FUSE that are switched on as long as this lives.
pub struct Tracing {
    events: &'static [&'static str],
}

fn put(file: &str, text: &str) -> Result<(), String> {
    write(file, text).map_err(|e| format!("{file}: {e}"))
}

fn switch(event: &str, on: bool) -> Result<(), String> {
    let file = format!("{TRACING}/events/fuse/{event}/enable");
    put(&file, if on { "1" } else { "0" })
}

impl Tracing {
    /// Whether the kernel can trace at all.
    pub fn is_there() -> bool {
        Path::new(TRACING).join("events/fuse").exists()
    }

    /// Switches events on, with an empty buffer of `kilobytes` for each CPU.
    pub fn new(events: &'static [&'static str], kilobytes: u32) -> Result<Self, String> {
        let tracing = Self { events };
        put(&format!("{TRACING}/buffer_size_kb"), &kilobytes.to_string())?;
        put(&format!("{TRACING}/trace"), "")?;
        for event in events {
            switch(event, true)?;
        }
        Ok(tracing)
    }

    /// The lines of an event about an inode.
    pub fn lines(&self, event: &str, ino: u64) -> Result<Vec<String>, String> {
        let text = read_to_string(format!("{TRACING}/trace")).map_err(|e| format!("trace: {e}"))?;
        let (event, ino) = (format!(" {event}: "), format!(" ino {ino} "));
        let ours = text
            .lines()
            .filter(|l| l.contains(&event) && l.contains(&ino));
        Ok(ours.map(str::to_owned).collect())
    }

    /// There must be a line of an event with all of these in it.
    pub fn expect(&self, event: &str, ino: u64, parts: &[&str]) -> Result<(), String> {
        let lines = self.lines(event, ino)?;
        let found = lines.iter().any(|l| parts.iter().all(|p| l.contains(p)));
        if found {
            Ok(())
        } else {
            Err(format!("no {event} with {parts:?} in {lines:?}"))
        }
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        for event in self.events {
            // It was there a moment ago.
            let _ = switch(event, false);
        }
    }
}
