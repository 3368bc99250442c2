// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `compare A B`: is everything a program can see of two mounted trees the same?
#![deny(unsafe_code)]

mod contents;
mod entry;
mod options;
mod report;
#[allow(unsafe_code)]
mod sys;
mod walk;

use crate::options::Options;
use crate::report::Report;
use std::fmt::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("compare: {why}; see compare --help");
            return ExitCode::from(2);
        }
    };
    let report = Report::new(options.show);
    if let Err(why) = walk::compare(&options, &report) {
        eprintln!("compare: {why}");
        return ExitCode::from(2);
    }

    let mut text = String::new();
    for (name, value) in report.figures.list() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name} {value}");
    }
    print!("{text}");
    if let Some(path) = &options.summary {
        if let Err(why) = std::fs::write(path, &text) {
            eprintln!("compare: {}: {why}", path.display());
            return ExitCode::from(2);
        }
    }
    let differences = report.figures.differences.load(Ordering::Relaxed);
    ExitCode::from(u8::from(differences != 0))
}
