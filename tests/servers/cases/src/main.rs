// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cases [--seed N] [--count N] [--case LINE] SUITE...`: tests of the kernel's side of FUSE-iomap,
//! to be run as root in a virtual machine. Prints one line for each case; `cases all` runs
//! everything but `module` and `atomic`, `cases reads` and `cases writes` the suites about one of them.
//!
//! It wants the `lab` binary in `$FI_BIN`, disks of 64 MiB in `$FI_DISK_A`, `$FI_DISK_B` and,
//! with logical blocks of 4096 bytes, `$FI_DISK_C`, and for `module` the path of fuse.ko in
//! `$FI_FUSE_KO`. For `atomic` the first disk has to write blocks in one piece. What is on the disks
//! is lost.
//!
//! Suites that generate their cases print the seed; `--seed` repeats it, `--count` says how many
//! cases, and `--case` runs a single one from the line that was printed when it failed.
#![deny(unsafe_code)]

mod aio;
mod counted;
mod disks;
mod files;
mod kmsg;
mod suites;
mod sys;
mod tap;
mod tracing;

use disks::{Machine, Options};
use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tap::{Tap, comment};

/// What suites are about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    Reads,
    Writes,
    Atomic,
    Module,
}

impl About {
    /// Names all suites of a kind.
    const fn name(self) -> &'static str {
        match self {
            Self::Reads => "reads",
            Self::Writes => "writes",
            Self::Atomic => "atomic",
            Self::Module => "module",
        }
    }

    /// A case that takes longer hangs, even when everything is emulated.
    const fn limit(self) -> Duration {
        match self {
            Self::Reads | Self::Atomic | Self::Module => Duration::from_secs(60),
            // Many of these are hundreds in one.
            Self::Writes => Duration::from_secs(400),
        }
    }
}

type Suite = (&'static str, About, fn(&mut Tap, &Machine));

const SUITES: [Suite; 26] = [
    ("mixed", About::Reads, suites::mixed::run),
    ("rules", About::Reads, suites::rules::run),
    ("replies", About::Reads, suites::replies::run),
    ("death", About::Reads, suites::death::run),
    ("negotiation", About::Reads, suites::negotiation::run),
    ("privilege", About::Reads, suites::privilege::run),
    ("config", About::Reads, suites::config::run),
    ("readonly", About::Reads, suites::readonly::run),
    ("passthrough", About::Reads, suites::passthrough::run),
    ("hostile", About::Reads, suites::hostile::run),
    ("trace", About::Reads, suites::trace::run),
    ("uring", About::Reads, suites::uring::run),
    ("write", About::Writes, suites::write::run),
    ("direct", About::Writes, suites::direct::run),
    ("cache", About::Writes, suites::cache::run),
    ("inline", About::Writes, suites::inline::run),
    ("zeroing", About::Writes, suites::zeroing::run),
    ("counters", About::Writes, suites::counters::run),
    ("server", About::Writes, suites::server::run),
    ("fadvise", About::Writes, suites::fadvise::run),
    ("flags", About::Writes, suites::flags::run),
    ("swap", About::Writes, suites::swap::run),
    ("statx", About::Writes, suites::statx::run),
    ("ioends", About::Writes, suites::ioends::run),
    ("atomic", About::Atomic, suites::atomic::run),
    ("module", About::Module, suites::module::run),
];

/// Reads in a process of its own, see `files::reader`.
fn read_for_parent(how: &str, path: &str, offset: u64, length: u64) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    match how {
        "--pread" => files::pread(&file, offset, length as usize),
        "--mmap" => sys::mmap_read(&file, offset, length as usize),
        _ => {
            // Long enough for the server to die meanwhile.
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(600) {
                sys::mmap_read(&file, offset, length as usize)?;
                // Make the next turn ask for pages again.
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
            Ok(Vec::new())
        }
    }
}

fn reader(args: &[String]) -> Option<ExitCode> {
    let [how, path, offset, length] = args else {
        return None;
    };
    if !["--pread", "--mmap", "--mmap-loop"].contains(&how.as_str()) {
        return None;
    }
    let (offset, length) = (offset.parse().ok()?, length.parse().ok()?);
    let mut out = std::io::stdout();
    // The parent may be gone; then nobody wants to know.
    Some(match read_for_parent(how, path, offset, length) {
        Ok(data) => {
            let _ = out.write_all(&data);
            ExitCode::SUCCESS
        }
        Err(e) => {
            let _ = writeln!(out, "{}", files::errno(&e));
            ExitCode::FAILURE
        }
    })
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = reader(&args).or_else(|| suites::privilege::helper(&args)) {
        return code;
    }
    let (options, args) = match Options::parse(args) {
        Ok(parsed) => parsed,
        Err(e) => {
            eprintln!("cases: {e}");
            return ExitCode::FAILURE;
        }
    };
    let named = |name: &str| args.iter().any(|a| a == name);
    let wanted = |name: &str, about: About| {
        named(name)
            || named(about.name())
            || (matches!(about, About::Reads | About::Writes) && named("all"))
    };
    let known = |a: &str| {
        let is = |(name, about, _): &Suite| a == *name || a == about.name();
        a == "all" || SUITES.iter().any(is)
    };
    let unknown = |a: &String| !known(a);
    if args.is_empty() || args.iter().any(unknown) {
        let names: Vec<&str> = SUITES.iter().map(|(name, ..)| *name).collect();
        let options = "[--seed N] [--count N] [--case LINE]";
        eprintln!(
            "usage: cases {options} all|reads|writes|{}...",
            names.join("|")
        );
        return ExitCode::FAILURE;
    }
    let machine = match Machine::new(options) {
        Ok(machine) => machine,
        Err(e) => {
            println!("not ok - cases: {e}");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = 0;
    for (name, about, run) in SUITES.iter().filter(|s| wanted(s.0, s.1)) {
        let start = Instant::now();
        let mut tap = Tap::new(name, about.limit());
        run(&mut tap, &machine);
        let (passed, failures) = tap.totals();
        failed += failures;
        comment(&format!(
            "{name}: {passed} passed, {failures} failed, {:.1} s",
            start.elapsed().as_secs_f32()
        ));
    }
    // What was only scratch need not be tidied up if that fails.
    let _ = std::fs::remove_dir_all(&machine.scratch);
    println!("# done");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
