// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the cache takes: what memory is short of, it gives back, and a file of very many extents gets
//! no more than its share.

use super::super::write::with_good_lab;
use super::{Subject, spec};
use crate::counted::Counted;
use crate::disks::{Layout, Machine, empty_scenario, file_spec};
use crate::ensure;
use crate::files::{cool, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap, comment};
use lab::caching::{CacheMode, CacheSpec};
use lab::client::Lab;
use lab::model::FileModel;
use lab::random::Random;
use lab::scenario::{ExtentSpec, FileSpec, Scenario};
use std::fs::File;

/// What the kernel takes for the mappings of an inode if nobody says anything else, in bytes.
const DEFAULT: u64 = 4 << 20;
const BLOCK: u64 = 512;
/// Extents, each with a hole behind it: three times as much as there is room for. `--count` has more of
/// them, such as a million, which takes minutes.
const TEETH: u64 = 1 << 16;
/// Places on the disk that they share.
const PLACES: u64 = 64;

/// Reading from the device, and how often the server was asked.
fn reading(lab: &mut Lab, subject: &Subject) -> Result<usize, String> {
    subject.cool()?;
    Ok(subject.asked(lab, |_| subject.read())?.len())
}

/// When memory is wanted back, what is known goes; it is asked for once more, and is right.
fn dropped(lab: &mut Lab) -> Outcome {
    let subject = Subject::new(lab, "unwritten")?;
    subject.read()?;
    let warm = reading(lab, &subject)?;
    ensure!(warm == 0, "{warm} BEGINs of what was read before");
    let before = Counted::read(lab.mountpoint())?.get("cache-mappings")?;
    ensure!(before > 0, "nothing is cached");
    let file = "/proc/sys/vm/drop_caches";
    std::fs::write(file, "2").map_err(|e| format!("{file}: {e}"))?;
    let after = Counted::read(lab.mountpoint())?.get("cache-mappings")?;
    ensure!(after == 0, "{after} of {before} mappings are still there");
    let cold = reading(lab, &subject)?;
    ensure!(cold > 0, "the server was not asked again");
    let warm = reading(lab, &subject)?;
    ensure!(warm == 0, "{warm} BEGINs, after {cold}");
    Ok(())
}

fn comb(seed: u64, count: u64, cache: CacheSpec) -> Scenario {
    let mut s = empty_scenario(seed);
    s.options.cache = Some(cache);
    let addr = Layout::new().take(0, 2 * PLACES * BLOCK, 4096);
    // Their order on the disk is another than in the file.
    let tooth = |i: u64| {
        let place = addr + (i * 29 % PLACES) * 2 * BLOCK;
        ExtentSpec::mapped(2 * i * BLOCK, BLOCK, 0, place)
    };
    let teeth = (0..PLACES).map(tooth).collect();
    let mut file = FileSpec::iomap(count * 2 * BLOCK, BLOCK as u32, teeth);
    file.period = Some(PLACES * 2 * BLOCK);
    s.file("comb", file);
    s
}

/// All extents are looked at, and the bound is kept, but used; what is read is right.
fn bounded(machine: &Machine, cache: CacheSpec, bound: u64) -> Outcome {
    let teeth = machine.options.count.unwrap_or(TEETH);
    let teeth = teeth.next_multiple_of(PLACES);
    let scenario = comb(79, teeth, cache);
    let model = FileModel::new(scenario.seed, 0, file_spec(&scenario, "comb")?)?;
    with_good_lab(machine, &scenario, |lab| {
        let file = File::open(lab.path("comb")).map_err(|e| format!("open: {e}"))?;
        let kept = |lab: &Lab, when: &str| -> Outcome {
            let counted = Counted::read(lab.mountpoint())?;
            let (bytes, most) = (counted.get("cache-bytes")?, bound);
            ensure!(bytes <= most, "{when}: {bytes} bytes, at most {most}");
            // Making room for one more may drop several.
            ensure!(bytes >= most / 2, "{when}: only {bytes} of {most} bytes");
            Ok(())
        };
        let extents = sys::fiemap(&file, 0, u64::MAX, 4000).map_err(|e| format!("FIEMAP: {e}"))?;
        ensure!(extents.len() as u64 == teeth, "{} extents", extents.len());
        kept(lab, "after FIEMAP")?;
        let counted = Counted::read(lab.mountpoint())?;
        let (put, gone) = (
            counted.get("cache-insertions")?,
            counted.get("cache-evictions")?,
        );
        let begins = lab.counter("IOMAP_BEGIN")?;
        comment(&format!(
            "{begins} BEGINs, {put} mappings were cached, {gone} evicted"
        ));
        ensure!(put >= 2 * teeth - 1, "{put} insertions");
        let mut random = Random::new(5);
        for _ in 0..100 {
            let at = random.below(model.size() - 8192);
            cool(&file)?;
            let got = pread(&file, at, 8192).map_err(|e| format!("read: {e}"))?;
            same(at, &got, &model.bytes(at..at + 8192))?;
        }
        kept(lab, "after reading")
    })
}

/// Runs those that share a server.
pub fn run(tap: &mut Tap, lab: &mut Lab) {
    tap.case("drop_caches drops what is cached", || dropped(lab));
}

/// Runs those that need a server of their own.
pub fn run_apart(tap: &mut Tap, machine: &Machine) {
    let replies = spec(CacheMode::Replies, 126);
    for (what, bytes) in [("the kernel's", None), ("CONFIG's", Some(64 << 10))] {
        let cache = CacheSpec {
            bytes,
            ..replies.clone()
        };
        let bound = bytes.map_or(DEFAULT, u64::from);
        tap.case(&format!("very many extents, {what} bound"), || {
            bounded(machine, cache, bound)
        });
    }
}
