// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Counting of requests, so that a test can prove what was and was not sent.

use crate::wire::opcode;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Requests received per opcode, and what became of them.
#[derive(Debug)]
pub struct Counters {
    received: Vec<AtomicU64>,
    unknown: AtomicU64,
    malformed: AtomicU64,
    errors: AtomicU64,
    refused: AtomicU64,
    uring: AtomicU64,
    /// What the IOENDs told of.
    ioends: AtomicU64,
    /// Mappings that followed replies to BEGIN.
    more: AtomicU64,
    upserts: AtomicU64,
    invals: AtomicU64,
    /// Notifications about mappings that the kernel did not take.
    notify_errors: AtomicU64,
    /// What the server counts itself.
    own: Mutex<Vec<(&'static str, Arc<AtomicU64>)>>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            received: opcode::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            unknown: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            uring: AtomicU64::new(0),
            ioends: AtomicU64::new(0),
            more: AtomicU64::new(0),
            upserts: AtomicU64::new(0),
            invals: AtomicU64::new(0),
            notify_errors: AtomicU64::new(0),
            own: Mutex::default(),
        }
    }
}

impl Counters {
    pub(crate) fn count(&self, op: u32) {
        let counter = opcode::index(op).map_or(&self.unknown, |i| &self.received[i]);
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_malformed(&self) {
        self.malformed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_uring(&self) {
        self.uring.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_ioends(&self, records: usize) {
        self.ioends.fetch_add(records as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_more(&self, mappings: usize) {
        self.more.fetch_add(mappings as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_upsert(&self, taken: bool) {
        self.count_notification(&self.upserts, taken);
    }

    pub(crate) fn count_inval(&self, taken: bool) {
        self.count_notification(&self.invals, taken);
    }

    fn count_notification(&self, sent: &AtomicU64, taken: bool) {
        let counter = if taken { sent } else { &self.notify_errors };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests with this opcode were received.
    pub fn get(&self, op: u32) -> u64 {
        opcode::index(op).map_or(0, |i| self.received[i].load(Ordering::Relaxed))
    }

    /// Requests with an opcode that is not known here.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Requests that were too short or otherwise not parseable.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }

    /// Replies that carried an error.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// Replies that the kernel did not take although it still waited for one.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Requests that came over io_uring.
    pub fn uring(&self) -> u64 {
        self.uring.load(Ordering::Relaxed)
    }

    /// Completions that were told; with BATCH_IOEND there are several in one request.
    pub fn ioend_records(&self) -> u64 {
        self.ioends.load(Ordering::Relaxed)
    }

    /// Mappings that followed replies to BEGIN.
    pub fn more_mappings(&self) -> u64 {
        self.more.load(Ordering::Relaxed)
    }

    /// Upserts that the kernel took.
    pub fn upserts(&self) -> u64 {
        self.upserts.load(Ordering::Relaxed)
    }

    /// Invalidations of mappings that the kernel took.
    pub fn invals(&self) -> u64 {
        self.invals.load(Ordering::Relaxed)
    }

    /// Upserts and invalidations that the kernel refused.
    pub fn notify_errors(&self) -> u64 {
        self.notify_errors.load(Ordering::Relaxed)
    }

    /// A counter of the server's own, shown with the others under `name`, even while it is zero.
    pub fn own(&self, name: &'static str) -> Arc<AtomicU64> {
        let counter = Arc::new(AtomicU64::new(0));
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.push((name, counter.clone()));
        counter
    }

    /// Names and values of everything that is not zero, and of the server's own counters.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        let own = own
            .iter()
            .map(|(name, value)| (*name, value.load(Ordering::Relaxed)));
        opcode::ALL
            .iter()
            .map(|(op, name)| (*name, self.get(*op)))
            .chain([
                ("unknown", self.unknown()),
                ("malformed", self.malformed()),
                ("errors", self.errors()),
                ("refused", self.refused()),
                ("uring", self.uring()),
                ("ioend_records", self.ioend_records()),
                ("more_mappings", self.more_mappings()),
                ("upserts", self.upserts()),
                ("invals", self.invals()),
                ("notify_errors", self.notify_errors()),
            ])
            .filter(|(_, value)| *value != 0)
            .chain(own)
            .collect()
    }

    /// One `NAME VALUE` per line.
    pub fn to_text(&self) -> String {
        self.snapshot()
            .iter()
            .map(|(name, value)| format!("{name} {value}\n"))
            .collect()
    }

    /// One JSON object.
    pub fn to_json(&self) -> String {
        let fields: Vec<String> = self
            .snapshot()
            .iter()
            .map(|(name, value)| format!("\"{name}\": {value}"))
            .collect();
        format!("{{{}}}\n", fields.join(", "))
    }

    /// Writes the counters to `path`, as JSON if it ends in `.json`, else as text. A reader
    /// never sees half a file.
    pub fn dump(&self, path: &Path) -> io::Result<()> {
        let json = path.extension().is_some_and(|e| e == "json");
        let content = if json { self.to_json() } else { self.to_text() };
        let mut tmp = path.as_os_str().to_owned();
        tmp.push(".new");
        std::fs::write(&tmp, content)?;
        std::fs::rename(&tmp, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_name() {
        let c = Counters::default();
        c.count(opcode::IOMAP_BEGIN);
        c.count(opcode::IOMAP_BEGIN);
        c.count(opcode::READ);
        c.count(12345);
        assert_eq!(c.get(opcode::IOMAP_BEGIN), 2);
        assert_eq!(c.to_text(), "READ 1\nIOMAP_BEGIN 2\nunknown 1\n");
        assert_eq!(
            c.to_json(),
            "{\"READ\": 1, \"IOMAP_BEGIN\": 2, \"unknown\": 1}\n"
        );
    }

    #[test]
    fn a_server_counts_too() {
        let c = Counters::default();
        let own = c.own("cache_hits");
        assert_eq!(c.to_text(), "cache_hits 0\n");
        own.fetch_add(3, Ordering::Relaxed);
        c.count(opcode::READ);
        assert_eq!(c.to_text(), "READ 1\ncache_hits 3\n");
    }
}
