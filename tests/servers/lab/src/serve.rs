// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `lab serve`: an empty filesystem in which any program can make files, whose data is on the
//! devices and whose names are in memory.
//!
//! At the end it says on standard error what was done, and fails if the kernel did anything against
//! the protocol, or wrote where no file ever was.

use fuse_iomap::wire::fopen;
use fuse_iomap::{MountOptions, Session, SessionOptions};
use lab::caching::CacheSpec;
use lab::devices;
use lab::scenario::{DeviceSpec, Scenario};
use lab::server::{Lab, LabFs};
use lab::store::{Policy, Style};
use std::path::PathBuf;
use std::sync::Arc;

const USAGE: &str = "usage: lab serve --device DEV [--device DEV2] [OPTIONS] MOUNTPOINT
  --policy in-place|unwritten|cow|delalloc  how blocks come to be written (unwritten)
  --blksize BYTES       of files, a power of two from 512 to 65536 (4096)
  --cow-always          copy on every write, not only of shared blocks
  --cow-mapped          blocks for copy-on-write and new ones are given out as mapped
  --cow-device N        and come from the Nth device, counted from 0
  --extra N             reserve or allocate N blocks more than asked for
  --longest N           allocate pieces of at most N blocks
  --guards              leave a block of poison behind each piece
  --no-fill             do not fill the devices with poison; then strays are not noticed
  --poison-again        fill blocks with poison when they are used again
  --want-end            have END sent for every write
  --cache off|upsert|replies|eager  how mappings get into the kernel's cache (replies)
  --cache-bytes N       most memory for the mappings of one file there
  --batch-mappings N    most further mappings in one answer (126)
  --batch-ioend on|off  completions may come together (on)
  --direct-io           have files read and written past the page cache
  --atomic-o-trunc      have O_TRUNC come with OPEN where that is allowed
  --seed N              of all random decisions (1)
  --uring               have requests come over io_uring, if the kernel offers that
  --threads N           worker threads (4)
  --counters FILE       write the counters of requests there at the end, and on SIGUSR1";

struct Serve {
    scenario: Scenario,
    counters: Option<PathBuf>,
    mountpoint: PathBuf,
}

fn style(name: &str) -> Result<Style, String> {
    Ok(match name {
        "in-place" => Style::InPlace,
        "unwritten" => Style::Unwritten,
        "cow" => Style::Cow,
        "delalloc" => Style::Delalloc,
        _ => return Err(format!("no policy is called {name}")),
    })
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Serve, String> {
    let mut scenario = Scenario {
        seed: 1,
        ..Scenario::default()
    };
    let mut policy = Policy::default();
    let mut cache = CacheSpec::default();
    let mut counters = None;
    let mut mountpoint = None;
    scenario.options.fill = true;
    let options = &mut scenario.options;
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .ok_or_else(|| format!("{arg}: a value is missing"))
        };
        let number = |text: String| {
            let n: Result<u64, _> = text.parse();
            n.map_err(|e| format!("{arg} {text}: {e}"))
        };
        match arg.as_str() {
            "--device" => scenario.devices.push(DeviceSpec { path: value()? }),
            "--policy" => policy.style = style(&value()?)?,
            "--blksize" => policy.blksize = number(value()?)?.try_into().unwrap_or(0),
            "--cow-always" => policy.cow_always = true,
            "--cow-mapped" => policy.cow_mapped = true,
            "--cow-device" => policy.cow_dev = Some(number(value()?)? as usize),
            "--extra" => policy.extra = number(value()?)?,
            "--longest" => options.longest = number(value()?)?,
            "--guards" => options.guards = true,
            "--no-fill" => options.fill = false,
            "--poison-again" => options.poison_again = true,
            "--want-end" => policy.want_end = true,
            "--direct-io" => options.open_flags = fopen::DIRECT_IO,
            "--uring" => options.uring = true,
            "--atomic-o-trunc" => options.atomic_o_trunc = true,
            "--seed" => scenario.seed = number(value()?)?,
            "--threads" => options.threads = number(value()?)? as usize,
            "--counters" => counters = Some(PathBuf::from(value()?)),
            _ if arg.starts_with("--") => {
                if !cache.set(&arg, &value().unwrap_or_default())? {
                    return Err(format!("{arg}: no such option\n{USAGE}"));
                }
            }
            _ => mountpoint = Some(PathBuf::from(arg)),
        }
    }
    options.prepare = options.fill;
    options.policy = Some(policy);
    options.cache = Some(cache);
    if scenario.devices.is_empty() {
        return Err(USAGE.into());
    }
    Ok(Serve {
        scenario,
        counters,
        mountpoint: mountpoint.ok_or(USAGE)?,
    })
}

/// Serves until it is unmounted.
pub fn run() -> Result<(), String> {
    let args = std::env::args().skip(2);
    let Serve {
        scenario,
        counters,
        mountpoint,
    } = parse(args)?;
    let devices = devices::open_all(&scenario)?;
    if scenario.options.prepare {
        devices::prepare(&scenario, &devices)?;
    }
    let lab = Arc::new(Lab::new(&scenario, devices)?);
    let options = SessionOptions {
        threads: scenario.options.threads,
        counters_file: counters,
        uring: scenario.options.uring,
        ..SessionOptions::default()
    };
    let mount = MountOptions::new("lab").subtype("lab");
    let session = Session::mount(LabFs(lab.clone()), &mountpoint, &mount, options)
        .map_err(|e| e.to_string())?;
    let connection = session.connection().clone();
    let result = session.run().map_err(|e| e.to_string());
    if !connection.has_iomap() {
        return Err("the kernel did not offer iomap".into());
    }
    let tally = lab.tally();
    eprintln!(
        "lab: {} BEGINs to write, {} to zero, {} for writeback; {} IOENDs for {} blocks, {} of failures",
        tally.writes, tally.zeroes, tally.writebacks, tally.ioends, tally.blocks, tally.failures
    );
    let violations = lab.violations();
    for violation in &violations {
        eprintln!("lab: {violation}");
    }
    result?;
    if violations.is_empty() {
        Ok(())
    } else {
        Err(format!("{} violations of the protocol", violations.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::caching::CacheMode;

    fn args(text: &str) -> Result<Serve, String> {
        parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn options_are_read() {
        let s =
            args("--device /dev/a --policy cow --cow-device 1 --blksize 512 --device /dev/b /mnt");
        let s = s.unwrap_or_else(|e| panic!("{e}"));
        let policy = s.scenario.options.policy.unwrap_or_default();
        assert_eq!((policy.style, policy.cow_dev), (Style::Cow, Some(1)));
        assert_eq!((policy.blksize, s.scenario.devices.len()), (512, 2));
        assert!(s.scenario.options.fill);
        let cached = args("--cache eager --batch-mappings 3 --device /dev/a /mnt");
        let cached = cached
            .unwrap_or_else(|e| panic!("{e}"))
            .scenario
            .options
            .cache;
        let want = CacheSpec {
            mode: CacheMode::Eager,
            batch_mappings: 3,
            ..CacheSpec::default()
        };
        assert_eq!(cached, Some(want));
        assert!(args("--cache maybe --device /dev/a /mnt").is_err());
        assert!(args("--device /dev/a").is_err());
        assert!(args("/mnt").is_err());
        assert!(args("--device /dev/a --policy wrong /mnt").is_err());
        assert!(args("--device /dev/a --blksize").is_err());
    }
}
