// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Reads that race with the death of the server.

use super::{finish, start_iomap, unmount_dead};
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{Ended, cool, ended, errno, reader, same};
use crate::tap::{Outcome, Tap, comment};
use lab::client::Lab;
use lab::model::FileModel;
use lab::random::Random;
use lab::scenario::{FileSpec, Scenario};
use rustix::mount::{UnmountFlags, unmount};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const READERS: u64 = 4;
const ROUNDS: u64 = 4;
/// What a read may fail with when the server is gone.
const GONE: [i32; 3] = [libc::ENOTCONN, libc::EIO, libc::ECONNABORTED];

fn scenario() -> Scenario {
    let mut s = empty_scenario(31);
    let mut layout = Layout::new();
    let mut random = Random::new(31);
    for i in 0..READERS {
        let file = layout.random_file(&mut random, 1 << 20, 4096, 4);
        s.file(&format!("file-{i}"), file);
    }
    s.file("ordinary", FileSpec::ordinary(200_000));
    s
}

/// Reads at random until a read fails; returns what it failed with.
fn read_until_error(
    file: &File,
    model: &FileModel,
    seed: u64,
    stop: &AtomicBool,
    count: &AtomicU64,
) -> Result<i32, String> {
    let mut random = Random::new(seed);
    let mut buf = vec![0; 40_000];
    while !stop.load(Ordering::Relaxed) {
        let at = random.below(model.size());
        let n = 1 + random.below(buf.len() as u64) as usize;
        match file.read_at(&mut buf[..n], at) {
            Ok(got) => {
                same(at, &buf[..got], &model.bytes(at..at + got as u64))?;
                ensure!(got > 0, "at {at}: nothing read before the end");
                count.fetch_add(1, Ordering::Relaxed);
            }
            Err(e) => return Ok(errno(&e)),
        }
        if random.chance(32) {
            cool(file)?;
        }
    }
    Ok(0)
}

/// One round: readers, then death, then umount.
fn round(machine: &Machine, scenario: &Scenario, seed: u64, how: Death) -> Outcome {
    let mut lab = Lab::start(&machine.lab, scenario, &machine.mountpoint)?;
    let stop = AtomicBool::new(false);
    let count = AtomicU64::new(0);
    let mut random = Random::new(seed);
    let mut readers = Vec::new();
    for i in 0..READERS {
        let name = format!("file-{i}");
        let file = File::open(lab.path(&name)).map_err(|e| e.to_string())?;
        let model = FileModel::new(scenario.seed, 0, file_spec(scenario, &name)?)?;
        readers.push((file, model));
    }
    let path = lab.path("file-0");
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (i, (file, model)) in readers.iter().enumerate() {
            for j in 0..2 {
                let seed = seed + (i as u64 * 2 + j) * 1000;
                let (stop, count) = (&stop, &count);
                threads.push(scope.spawn(move || read_until_error(file, model, seed, stop, count)));
            }
        }
        let mapped = [
            reader("--mmap-loop", &path, 0, 1 << 20),
            reader("--mmap-loop", &path, 4096, 500_000),
        ];
        std::thread::sleep(Duration::from_millis(100 + random.below(300)));
        let result = match how {
            Death::Killed => lab.kill().map_err(|e| e.to_string()),
            Death::Detached => unmount(lab.mountpoint(), UnmountFlags::DETACH)
                .map_err(|e| e.to_string())
                .and_then(|()| lab.kill().map_err(|e| e.to_string())),
        };
        // What is cached may be read for ever, so readers are not relied on to fail.
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            let end = thread.join().map_err(|_| "a reader panicked")??;
            ensure!(
                end == 0 || GONE.contains(&end),
                "a read failed with errno {end}"
            );
        }
        for child in mapped {
            let end = ended(child?)?;
            let fine = match &end {
                Ended::Signal(signal) => *signal == libc::SIGBUS,
                // One that came too late found the mount gone.
                Ended::Errno(libc::ENOENT) => matches!(how, Death::Detached),
                Ended::Errno(e) => GONE.contains(e),
                Ended::Data(_) => true,
            };
            ensure!(fine, "a reader of a mapping: {end:?}");
        }
        result
    })?;
    ensure!(count.load(Ordering::Relaxed) > 0, "nobody read anything");
    drop(readers);
    match how {
        Death::Killed => unmount_dead(&lab),
        Death::Detached => Ok(()),
    }
}

#[derive(Clone, Copy)]
enum Death {
    Killed,
    Detached,
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let mut scenario = scenario();
    let Some(lab) = start_iomap(tap, machine, &scenario) else {
        return;
    };
    finish(tap, lab);
    // The disks hold everything by now.
    scenario.options.prepare = false;
    for i in 0..ROUNDS {
        let seed = 1000 + i;
        comment(&format!("seed {seed}"));
        tap.case(
            &format!("the server is killed while files are read ({i})"),
            || round(machine, &scenario, seed, Death::Killed),
        );
    }
    tap.case(
        "the mount is detached and the server killed while files are read",
        || round(machine, &scenario, 2000, Death::Detached),
    );
    tap.case("afterwards a new server serves well", || {
        let mut lab = Lab::start(&machine.lab, &scenario, &machine.mountpoint)?;
        for i in 0..READERS {
            let name = format!("file-{i}");
            let model = FileModel::new(scenario.seed, 0, file_spec(&scenario, &name)?)?;
            let got = std::fs::read(lab.path(&name)).map_err(|e| e.to_string())?;
            same(0, &got, &model.bytes(0..model.size()))?;
        }
        super::unmount_and_wait(&mut lab)
    });
}
