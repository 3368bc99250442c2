// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `cases [--seed N] [--count N] [--case LINE] SUITE...`: tests of the kernel's side of FUSE-iomap, to be run as root in a virtual
//! machine. Prints one line for each case; `cases all` runs everything but `module`.
//!
//! It wants the `lab` binary in `$FI_BIN`, disks of 64 MiB in `$FI_DISK_A`, `$FI_DISK_B` and,
//! with logical blocks of 4096 bytes, `$FI_DISK_C`, and for `module` the path of fuse.ko in
//! `$FI_FUSE_KO`. What is on the disks is lost.
//!
//! Suites that generate their cases print the seed; `--seed` repeats it, `--count` says how many
//! cases, and `--case` runs a single one from the line that was printed when it failed.
#![deny(unsafe_code)]

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

type Suite = (&'static str, fn(&mut Tap, &Machine));

const SUITES: [Suite; 13] = [
    ("mixed", suites::mixed::run),
    ("rules", suites::rules::run),
    ("replies", suites::replies::run),
    ("death", suites::death::run),
    ("negotiation", suites::negotiation::run),
    ("readonly", suites::readonly::run),
    ("passthrough", suites::passthrough::run),
    ("hostile", suites::hostile::run),
    ("trace", suites::trace::run),
    ("write", suites::write::run),
    ("zeroing", suites::zeroing::run),
    ("ioends", suites::ioends::run),
    ("module", suites::module::run),
];

/// A case that takes longer hangs, even when everything is emulated.
const LIMIT: Duration = Duration::from_secs(60);

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
    if let Some(code) = reader(&args) {
        return code;
    }
    let (options, args) = match Options::parse(args) {
        Ok(parsed) => parsed,
        Err(e) => {
            eprintln!("cases: {e}");
            return ExitCode::FAILURE;
        }
    };
    let wanted = |name: &str| {
        args.iter().any(|a| a == name) || (name != "module" && args.iter().any(|a| a == "all"))
    };
    let unknown = |a: &&String| *a != "all" && SUITES.iter().all(|(name, _)| a != name);
    if args.is_empty() || args.iter().any(|a| unknown(&a)) {
        let names: Vec<&str> = SUITES.iter().map(|(name, _)| *name).collect();
        let options = "[--seed N] [--count N] [--case LINE]";
        eprintln!("usage: cases {options} all|{}...", names.join("|"));
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
    for (name, run) in SUITES.iter().filter(|(name, _)| wanted(name)) {
        let start = Instant::now();
        let mut tap = Tap::new(name, LIMIT);
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
