// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Walks both trees at once, directory by directory, with several workers.

use crate::entry::Comparer;
use crate::options::Options;
use crate::report::{Report, add};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirEntryExt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::{fs, io, thread};

/// Directories that wait, relative to the roots, and how many workers are at it.
#[derive(Default)]
struct Queue {
    waiting: Vec<PathBuf>,
    busy: usize,
}

struct Walk<'a> {
    comparer: Comparer<'a>,
    report: &'a Report,
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// What readdir(3) says about a name.
#[derive(PartialEq, Eq)]
struct Listed {
    ino: u64,
    kind: String,
}

/// Compares two trees; the error is one of the roots'.
pub fn compare(options: &Options, report: &Report) -> io::Result<()> {
    let comparer = Comparer::new(options, report);
    comparer.roots()?;
    let walk = Walk {
        comparer,
        report,
        queue: Mutex::new(Queue {
            waiting: vec![PathBuf::new()],
            busy: 0,
        }),
        changed: Condvar::new(),
    };
    thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| walk.work());
        }
    });
    Ok(())
}

impl Walk<'_> {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.queue();
        loop {
            if let Some(dir) = queue.waiting.pop() {
                queue.busy += 1;
                drop(queue);
                let found = self.directory(&dir);
                queue = self.queue();
                queue.busy -= 1;
                queue.waiting.extend(found);
                self.changed.notify_all();
            } else if queue.busy == 0 {
                return;
            } else {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn list(&self, dir: &Path) -> io::Result<BTreeMap<OsString, Listed>> {
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry
                .file_type()
                .map_or_else(|err| err.to_string(), |kind| format!("{kind:?}"));
            let listed = Listed {
                ino: entry.ino(),
                kind,
            };
            if names.insert(entry.file_name(), listed).is_some() {
                self.report
                    .differ(&dir.join(entry.file_name()), "listed", "twice", "once");
            }
        }
        Ok(names)
    }

    /// Compares the entries of one directory; returns the directories in it.
    fn directory(&self, dir: &Path) -> Vec<PathBuf> {
        let [a, b] = self.comparer.both(dir);
        let (listed_a, mut listed_b) = match (self.list(&a), self.list(&b)) {
            (Ok(a), Ok(b)) => (a, b),
            (a, b) => {
                let show = |result: io::Result<_>| {
                    result.map_or_else(|err| err.to_string(), |_| "fine".into())
                };
                let (a, b): (String, String) = (show(a), show(b));
                self.report.differ(dir, "listing", a, b);
                return Vec::new();
            }
        };
        let mut below = Vec::new();
        for (name, here) in listed_a {
            let path = dir.join(&name);
            let Some(there) = listed_b.remove(&name) else {
                self.report.differ(&path, "name", "there", "not there");
                continue;
            };
            // A root is its own parent in one tree and has a mount's in the other, so `..` and `.`,
            // which are not listed here, are left out.
            self.report
                .same(&path, "listed inode number", here.ino, there.ino);
            self.report
                .same(&path, "listed type", here.kind, there.kind);
            add(&self.report.figures.names, 1);
            if self.comparer.entry(&path) {
                below.push(path);
            }
        }
        for name in listed_b.keys() {
            self.report
                .differ(&dir.join(name), "name", "not there", "there");
        }
        // A name that does not exist must be missing in both, in every directory.
        let absent = dir.join(OsString::from(format!(
            "no such name {}",
            dir.as_os_str().as_bytes().len()
        )));
        let [a, b] = self.comparer.both(&absent);
        self.report.same(
            &absent,
            "exists",
            a.symlink_metadata().is_ok(),
            b.symlink_metadata().is_ok(),
        );
        below
    }
}
