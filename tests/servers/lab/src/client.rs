// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Starting a server as a child process and asking it things.

use crate::control::{Activity, Answer, Command, Ioend, Ready};
use crate::misbehave::{Action, Garbled, Notice, RandomSpec, Rule};
use crate::scenario::Scenario;
use crate::store::{FileMap, Tally};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running server.
pub struct Lab {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    mountpoint: PathBuf,
    ready: Ready,
}

/// Why a command had no result.
#[derive(Debug)]
pub enum Error {
    /// A system call in the server failed, after this many that did not.
    Errno(i32, u32),
    /// Anything else.
    Other(String),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Errno(errno, after) => write!(f, "errno {errno} after {after} successes"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl From<Error> for String {
    fn from(error: Error) -> Self {
        error.to_string()
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Other(format!("control channel: {error}"))
    }
}

impl Lab {
    /// Starts `program` (the `lab` binary) with a scenario and waits until INIT is through.
    pub fn start(program: &Path, scenario: &Scenario, mountpoint: &Path) -> Result<Self, String> {
        let mut child = std::process::Command::new(program)
            .args(["--control", "--scenario", "-"])
            .arg(mountpoint)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("the server has no pipes".into());
        };
        // One line, so that commands can follow on the same pipe.
        let line = serde_json::to_string(scenario).map_err(|e| e.to_string())?;
        let sent = writeln!(input, "{line}");
        let mut lab = Self {
            child,
            input: Some(input),
            output: BufReader::new(output),
            mountpoint: mountpoint.to_owned(),
            ready: Ready::default(),
        };
        sent.map_err(|e| format!("cannot send the scenario: {e}"))?;
        match lab.answer().map_err(String::from)? {
            Answer::Ready(ready) => lab.ready = ready,
            other => return Err(format!("the server did not start: {other:?}")),
        }
        Ok(lab)
    }

    /// What INIT came to.
    pub const fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// A path below the mount point.
    pub fn path(&self, path: &str) -> PathBuf {
        self.mountpoint.join(path)
    }

    fn answer(&mut self) -> Result<Answer, Error> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            return Err(Error::Other("the server is gone".into()));
        }
        serde_json::from_str(&line).map_err(|e| Error::Other(format!("{e}: {line}")))
    }

    /// Asks something.
    pub fn ask(&mut self, command: &Command) -> Result<Answer, Error> {
        let line = serde_json::to_string(command).map_err(|e| Error::Other(e.to_string()))?;
        let Some(input) = &mut self.input else {
            return Err(Error::Other("the control channel is closed".into()));
        };
        writeln!(input, "{line}")?;
        match self.answer()? {
            Answer::Errno { errno, after } => Err(Error::Errno(errno, after)),
            Answer::Failed(text) => Err(Error::Other(text)),
            answer => Ok(answer),
        }
    }

    fn unexpected<T>(answer: Answer) -> Result<T, Error> {
        Err(Error::Other(format!("unexpected answer {answer:?}")))
    }

    /// Requests received per opcode.
    pub fn counters(&mut self) -> Result<BTreeMap<String, u64>, Error> {
        match self.ask(&Command::Counters)? {
            Answer::Counters(counters) => Ok(counters),
            other => Self::unexpected(other),
        }
    }

    /// Requests received with one opcode.
    pub fn counter(&mut self, name: &str) -> Result<u64, Error> {
        Ok(self.counters()?.get(name).copied().unwrap_or(0))
    }

    /// What happened to one inode.
    pub fn activity(&mut self, path: &str) -> Result<Activity, Error> {
        let path = path.to_owned();
        match self.ask(&Command::Activity { path })? {
            Answer::Activity(activity) => Ok(activity),
            other => Self::unexpected(other),
        }
    }

    /// What the kernel did against the protocol.
    pub fn violations(&mut self) -> Result<Vec<String>, Error> {
        match self.ask(&Command::Violations)? {
            Answer::Violations(violations) => Ok(violations),
            other => Self::unexpected(other),
        }
    }

    /// Where the blocks of a writable file are.
    pub fn map(&mut self, path: &str) -> Result<FileMap, Error> {
        let path = path.to_owned();
        match self.ask(&Command::Map { path })? {
            Answer::Map(map) => Ok(map),
            other => Self::unexpected(other),
        }
    }

    /// The last IOEND of a file.
    pub fn last_ioend(&mut self, path: &str) -> Result<Option<Ioend>, Error> {
        Ok(self.activity(path)?.ioends.last().copied())
    }

    /// What was counted about writable files.
    pub fn tally(&mut self) -> Result<Tally, Error> {
        match self.ask(&Command::Tally)? {
            Answer::Tally(tally) => Ok(tally),
            other => Self::unexpected(other),
        }
    }

    /// Makes the blocks of a file shared.
    pub fn snapshot(&mut self, path: &str) -> Result<(), Error> {
        let path = path.to_owned();
        self.ask(&Command::Snapshot { path }).map(|_| ())
    }

    /// Gives up what [`Lab::snapshot`] has made.
    pub fn drop_snapshots(&mut self) -> Result<(), Error> {
        self.ask(&Command::DropSnapshots).map(|_| ())
    }

    /// Says something about the mappings of a file.
    pub fn notify(&mut self, path: &str, notice: Notice) -> Result<(), Error> {
        let command = Command::Notify {
            path: path.to_owned(),
            notice,
            nodeid: None,
            attr_ino: None,
            size: None,
        };
        self.ask(&command).map(|_| ())
    }

    /// Has requests with an opcode refused; with errno 0 no more.
    pub fn refuse(&mut self, op: &str, errno: i32) -> Result<(), Error> {
        let op = op.to_owned();
        self.ask(&Command::Refuse { op, errno }).map(|_| ())
    }

    /// Replaces all rules by one for the replies to BEGIN of one inode.
    pub fn misbehave(&mut self, path: &str, action: Action) -> Result<(), Error> {
        self.set_rules(vec![Rule {
            op: "IOMAP_BEGIN".into(),
            path: Some(path.into()),
            with: 0,
            without: 0,
            nth: None,
            action,
            then_errno: None,
        }])
    }

    /// Replaces all rules.
    pub fn set_rules(&mut self, rules: Vec<Rule>) -> Result<(), Error> {
        self.ask(&Command::Rules { rules }).map(|_| ())
    }

    /// Starts or stops random misbehaviour.
    pub fn set_random(&mut self, spec: Option<RandomSpec>) -> Result<(), Error> {
        self.ask(&Command::Random { spec }).map(|_| ())
    }

    /// How often the rules fired, all together.
    pub fn fired(&mut self) -> Result<u64, Error> {
        match self.ask(&Command::Fired)? {
            Answer::Fired(counts) => Ok(counts.iter().sum()),
            other => Self::unexpected(other),
        }
    }

    /// What the random misbehaviour did.
    pub fn garbled(&mut self) -> Result<Vec<Garbled>, Error> {
        match self.ask(&Command::Garbled)? {
            Answer::Garbled(garbled) => Ok(garbled),
            other => Self::unexpected(other),
        }
    }

    /// Kills the server; the mount stays and answers with errors.
    pub fn kill(&mut self) -> io::Result<()> {
        // In this order: when its input ends, the server unmounts.
        self.child.kill()?;
        self.input = None;
        self.child.wait().map(|_| ())
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the server to end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, String> {
        let start = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if start.elapsed() > limit => {
                    return Err(format!("the server still runs after {limit:?}"));
                }
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(e) => return Err(format!("cannot wait for the server: {e}")),
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A case that failed half-way must not leave its server or mount to the next one.
        let _ = rustix::mount::unmount(&self.mountpoint, rustix::mount::UnmountFlags::DETACH);
        let _ = self.kill();
    }
}
