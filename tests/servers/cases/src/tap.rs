// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Running cases and saying how they went.

use rustix::process::{Pid, Signal, kill_process};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// What is being done within a case, for the case that it hangs.
static DOING: Mutex<String> = Mutex::new(String::new());

/// Says what is being done now.
pub fn doing(what: String) {
    *DOING.lock().unwrap_or_else(PoisonError::into_inner) = what;
}

/// What a case comes to: nothing, or why it failed.
pub type Outcome = Result<(), String>;

/// Counts cases and prints one line for each.
pub struct Tap {
    suite: &'static str,
    limit: Duration,
    failed: usize,
    passed: usize,
}

impl Tap {
    /// Cases of one suite; one that takes longer than `limit` has failed.
    pub const fn new(suite: &'static str, limit: Duration) -> Self {
        Self {
            suite,
            limit,
            failed: 0,
            passed: 0,
        }
    }

    /// Runs one case and returns what it came to with.
    ///
    /// A case that hangs cannot be got rid of, so the whole run ends then, after telling where the
    /// threads are.
    pub fn case<T: Send>(
        &mut self,
        name: &str,
        f: impl FnOnce() -> Result<T, String> + Send,
    ) -> Option<T> {
        let (sender, receiver) = mpsc::channel();
        let limit = self.limit;
        let start = Instant::now();
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                // The receiver is gone only if the process is about to exit.
                let _ = sender.send(f());
            });
            match receiver.recv_timeout(limit) {
                Ok(result) => result,
                Err(mpsc::RecvTimeoutError::Disconnected) => Err("the case panicked".into()),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    println!("not ok - {}: {name}: no end after {limit:?}", self.suite);
                    let doing = DOING.lock().unwrap_or_else(PoisonError::into_inner);
                    comment(&format!("it was doing: {doing}"));
                    comment(&where_threads_are());
                    // Without the server, whatever waits for it ends and lets this process go.
                    kill_children();
                    std::process::exit(1);
                }
            }
        });
        let took = start.elapsed();
        if took > Duration::from_secs(2) {
            comment(&format!("the next one took {:.1} s", took.as_secs_f32()));
        }
        match result {
            Ok(value) => {
                println!("ok - {}: {name}", self.suite);
                self.passed += 1;
                Some(value)
            }
            Err(why) => {
                println!(
                    "not ok - {}: {name}: {}",
                    self.suite,
                    why.replace('\n', " / ")
                );
                self.failed += 1;
                None
            }
        }
    }

    /// How many cases passed and failed.
    pub const fn totals(&self) -> (usize, usize) {
        (self.passed, self.failed)
    }
}

/// Prints comment lines.
pub fn comment(text: &str) {
    for line in text.lines() {
        println!("# {line}");
    }
}

/// Kernel stacks of the threads of this process that are blocked.
fn where_threads_are() -> String {
    let mut text = String::new();
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return text;
    };
    for task in tasks.flatten() {
        let name = task.file_name();
        let stack = std::fs::read_to_string(task.path().join("stack")).unwrap_or_default();
        text.push_str(&format!("thread {}:\n{stack}", name.to_string_lossy()));
    }
    text
}

/// Kills the processes that this one has started.
fn kill_children() {
    let me = std::process::id().to_string();
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return;
    };
    for process in processes.flatten() {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // Behind the name, which may contain anything, come the state and the parent.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        let pid = process.file_name().to_str().and_then(|n| n.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw).filter(|_| parent == Some(&me)) {
            // One that is gone already is fine.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Fails with a message unless a condition holds.
#[macro_export]
macro_rules! ensure {
    ($cond:expr, $($arg:tt)+) => {
        if !$cond {
            return Err(format!($($arg)+));
        }
    };
}
