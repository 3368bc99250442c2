// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Power cuts: a workload that knows what was acknowledged, the disk at each moment of its log, and
//! a look whether everything acknowledged is there.
#![deny(unsafe_code)]

mod cuts;
mod log;
mod model;
mod options;
mod perform;
mod plan;
mod random;
#[allow(unsafe_code)]
mod sys;
mod verify;

use crate::options::{Mode, Options};
use crate::perform::{Marks, Worker, make_noise};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("powercut: {why}; see powercut --help");
            return ExitCode::from(2);
        }
    };
    let result = match &options.mode {
        Mode::Workload => workload(&options),
        Mode::Verify => verify(&options),
        Mode::Cuts(cuts) => run_cuts(cuts),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("powercut: {why}");
            ExitCode::from(2)
        }
    }
}

/// All workers at once, and the one that makes noise until they are done.
fn workload(options: &Options) -> Result<bool, String> {
    let marks = Marks {
        device: options.device.clone(),
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let noise = options.noise.then(|| {
            scope.spawn(|| make_noise(&options.dir, options.seed, &|| done.load(Ordering::Relaxed)))
        });
        let workers: Vec<_> = (0..options.workers)
            .map(|number| {
                let mut worker = Worker::new(&options.dir, number, &marks);
                worker.forget = options.forget;
                scope.spawn(move || worker.run(options.seed, options.count))
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::Relaxed);
        for result in results {
            result.map_err(|_| "a worker panicked".to_owned())??;
        }
        if let Some(noise) = noise {
            noise
                .join()
                .map_err(|_| "the noise panicked".to_owned())?
                .map_err(|why| format!("the noise: {why}"))?;
        }
        println!(
            "{} operations acknowledged, seed {}",
            options.workers * options.count,
            options.seed
        );
        Ok(true)
    })
}

fn verify(options: &Options) -> Result<bool, String> {
    let mut good = true;
    for (worker, count) in &options.acks {
        if let Err(why) = verify::worker(&options.dir, options.seed, *worker, *count) {
            println!("{why}");
            good = false;
        }
    }
    if let Err(why) = verify::noise(&options.dir) {
        println!("{why}");
        good = false;
    }
    Ok(good)
}

fn run_cuts(cuts: &cuts::Cuts) -> Result<bool, String> {
    let summary = cuts.run().map_err(|why| why.to_string())?;
    println!(
        "# {} disks checked ({} with some unflushed writes), {} bad; the log has {} entries, {} flushes, {} acknowledged operations",
        summary.checked,
        summary.torn,
        summary.bad,
        summary.entries,
        summary.flushes,
        summary.acknowledged
    );
    if summary.acknowledged == 0 || summary.checked < 2 {
        return Err("the log shows no acknowledged operation: nothing was tested".into());
    }
    Ok(summary.bad == 0)
}
