// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server may do besides answering: the ioctls of `/dev/fuse`, and dropping what is in the page
//! cache of its devices.

use super::bench::{Bench, open_direct, scenario, workshop};
use super::write::{create, pattern};
use crate::disks::Machine;
use crate::ensure;
use crate::files::{cool, errno, fails_with, pread, same};
use crate::sys;
use crate::tap::{Outcome, Tap};
use fuse_iomap::wire::notify;
use lab::client::Lab;
use lab::random::Random;
use lab::store::MapKind;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PF_MEMALLOC_NOFS: u64 = 0x0004_0000;
const PF_LOCAL_THROTTLE: u64 = 0x0010_0000;
const BLOCK: usize = 4096;

fn says<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> String {
    move |e| format!("{what}: {e}")
}

/// The server's own `/dev/fuse`.
fn connection(lab: &Lab) -> Result<File, String> {
    let pid = Pid::from_raw(lab.pid() as i32).ok_or("no process")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(says("pidfd_open"))?;
    let dir = format!("/proc/{}/fd", lab.pid());
    for entry in std::fs::read_dir(&dir).map_err(says("read_dir"))? {
        let entry = entry.map_err(says("read_dir"))?;
        let to = std::fs::read_link(entry.path()).map_err(says("readlink"))?;
        if to.as_os_str() != "/dev/fuse" {
            continue;
        }
        let name = entry.file_name();
        let fd: RawFd = name
            .to_str()
            .and_then(|n| n.parse().ok())
            .ok_or("no number")?;
        let got = pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty());
        return Ok(got.map_err(says("pidfd_getfd"))?.into());
    }
    Err("the server has no /dev/fuse".into())
}

/// A `/dev/fuse` with nothing mounted.
fn fresh() -> Result<File, String> {
    let mut options = OpenOptions::new();
    let opened = options.read(true).write(true).open("/dev/fuse");
    opened.map_err(says("open /dev/fuse"))
}

/// Does something in a thread that lacks a capability.
fn without<T: Send>(
    capability: CapabilitySet,
    f: impl FnOnce() -> Result<T, String> + Send,
) -> Result<T, String> {
    let task = move || {
        let mut sets = capabilities(None).map_err(says("capget"))?;
        sets.effective.remove(capability);
        set_capabilities(None, sets).map_err(says("capset"))?;
        f()
    };
    std::thread::scope(|scope| scope.spawn(task).join()).map_err(|_| "it panicked")?
}

/// The flags of a task of which this is the `stat` of /proc.
fn task_flags(stat: &str) -> Result<u64, String> {
    let text = std::fs::read_to_string(stat).map_err(says("stat"))?;
    // The name of the task, which comes before, may have anything in it.
    let fields = text.rsplit_once(')').ok_or("no name")?.1;
    let flags = fields.split_whitespace().nth(6).ok_or("too short")?;
    flags.parse().map_err(says("flags"))
}

fn support(lab: &Lab) -> Outcome {
    const ALL: [u64; 2] = [3, 0];
    for (what, fuse) in [("before", fresh()?), ("after", connection(lab)?)] {
        let got = sys::iomap_support(&fuse).map_err(says("ioctl"))?;
        ensure!(got == ALL, "{what} mounting: {got:?}");
    }
    let fuse = fresh()?;
    let poor = without(CapabilitySet::SYS_RAWIO, || {
        sys::iomap_support(&fuse).map_err(says("ioctl"))
    })?;
    ensure!(poor == [0, 0], "without a capability: {poor:?}");
    Ok(())
}

fn nofs(lab: &Lab) -> Outcome {
    let both = PF_MEMALLOC_NOFS | PF_LOCAL_THROTTLE;
    let flags = || Ok::<_, String>(task_flags("/proc/thread-self/stat")? & both);
    let check = |fuse: &File| -> Outcome {
        for (value, want) in [(1, both), (1, both), (0, 0), (1, both), (0, 0)] {
            sys::set_nofs(fuse, value).map_err(says("ioctl"))?;
            let got = flags()?;
            ensure!(got == want, "with {value} the flags are {got:#x}");
        }
        for value in [2, 256, u32::MAX] {
            fails_with("ioctl", sys::set_nofs(fuse, value), &[libc::EINVAL])?;
        }
        ensure!(flags()? == 0, "a refusal has changed something");
        Ok(())
    };
    check(&fresh()?)?;
    let (own, other) = (connection(lab)?, fresh()?);
    without(CapabilitySet::SYS_RESOURCE, || {
        check(&own).map_err(|e| format!("as the server: {e}"))?;
        fails_with("as anybody", sys::set_nofs(&other, 1), &[libc::EPERM])?;
        ensure!(flags()? == 0, "a refusal has changed something");
        Ok(())
    })
}

/// The library does it for the tasks that answer. On a busy machine some may not have begun yet.
fn workers(lab: &Lab) -> Outcome {
    let both = PF_MEMALLOC_NOFS | PF_LOCAL_THROTTLE;
    let dir = format!("/proc/{}/task", lab.pid());
    let mut with = 0;
    for _ in 0..100 {
        with = 0;
        for entry in std::fs::read_dir(&dir).map_err(says("read_dir"))? {
            let stat = entry.map_err(says("read_dir"))?.path().join("stat");
            let flags = task_flags(stat.to_str().ok_or("no text")?)?;
            with += usize::from(flags & both == both);
        }
        if with >= 4 {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{with} tasks of the server have it"))
}

/// One of the server's devices, for its page cache, and its id.
fn device(lab: &Lab) -> Result<(File, u32), String> {
    let path = std::env::var_os("FI_DISK_A").ok_or("no disk")?;
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).open(path);
    let id = *lab.ready().devices.first().ok_or("no device")?;
    Ok((file.map_err(says("open the disk"))?, id))
}

fn blocksize(lab: &Lab) -> Outcome {
    let fuse = connection(lab)?;
    let (disk, id) = device(lab)?;
    let before = sys::block_size(&disk).map_err(says("BLKBSZGET"))?;
    for size in [512, 1024, 4096, before] {
        sys::set_blocksize(&fuse, id, size).map_err(says("ioctl"))?;
        let got = sys::block_size(&disk).map_err(says("BLKBSZGET"))?;
        ensure!(got == size, "{got} instead of {size}");
    }
    for size in [0, 1, 256, 513, 3000, 1 << 30, 1 << 31, u32::MAX] {
        let result = sys::set_blocksize(&fuse, id, size);
        fails_with(&size.to_string(), result, &[libc::EINVAL])?;
    }
    for id in [0, id + 100, 0x8000_0000, u32::MAX] {
        let result = sys::set_blocksize(&fuse, id, 4096);
        fails_with("an unknown device", result, &[libc::ENOENT])?;
    }
    let other = sys::set_blocksize(&fresh()?, id, 4096);
    fails_with("without a mount", other, &[libc::EPERM])?;

    let path = std::env::var_os("FI_DISK_A").ok_or("no disk")?;
    let mut options = OpenOptions::new();
    let alone = options.read(true).custom_flags(libc::O_EXCL).open(path);
    let alone = alone.map_err(says("open the disk for oneself"))?;
    let result = sys::set_blocksize(&fuse, id, 1024);
    fails_with("somebody else's device", result, &[libc::EBUSY])?;
    drop(alone);
    let got = sys::block_size(&disk).map_err(says("BLKBSZGET"))?;
    ensure!(got == before, "a refusal has changed it to {got}");
    Ok(())
}

/// Sends DEV_INVAL.
fn dev_inval(fuse: &File, dev: u32, reserved: u32, range: (u64, u64)) -> io::Result<()> {
    let mut body = Vec::new();
    body.extend_from_slice(&dev.to_ne_bytes());
    body.extend_from_slice(&reserved.to_ne_bytes());
    body.extend_from_slice(&range.0.to_ne_bytes());
    body.extend_from_slice(&range.1.to_ne_bytes());
    send(fuse, &body)
}

fn send(mut fuse: &File, body: &[u8]) -> io::Result<()> {
    let mut message = Vec::new();
    let length = body.len() as u32 + 16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&notify::IOMAP_DEV_INVAL.to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    message.extend_from_slice(body);
    // All or nothing is taken.
    fuse.write(&message).map(|_| ())
}

/// A file with two blocks next to each other on disk A.
struct OnDisk {
    name: String,
    file: File,
    addr: u64,
}

impl OnDisk {
    fn new(lab: &mut Lab) -> Result<Self, String> {
        let name = format!("{}/dropped", workshop("in-place", BLOCK as u32));
        let file = create(&lab.path(&name))?;
        let file = Self {
            name,
            file,
            addr: 0,
        };
        file.write(3, 0, 16 * BLOCK)?;
        let map = lab.map(&file.name)?;
        let on_a = |e: &&lab::store::MapEntry| {
            e.kind == MapKind::Written && e.dev == 0 && e.length >= 2 * BLOCK as u64
        };
        let entry = map.entries.iter().find(on_a).ok_or("no such blocks")?;
        // The file begins with these from now on.
        ensure!(entry.offset == 0, "they are at {}", entry.offset);
        Ok(Self {
            addr: entry.addr,
            ..file
        })
    }

    /// Writes to the file, past the page cache of the device.
    fn write(&self, seed: u64, at: usize, length: usize) -> Outcome {
        self.file
            .write_all_at(&pattern(seed, length), at as u64)
            .map_err(says("write"))?;
        self.file.sync_all().map_err(says("fsync"))
    }
}

fn read(disk: &File, at: u64, length: usize) -> Result<Vec<u8>, String> {
    let mut data = vec![0; length];
    disk.read_exact_at(&mut data, at)
        .map_err(says("read the disk"))?;
    Ok(data)
}

/// What was read before is old, until it is dropped.
fn drops_clean(lab: &mut Lab) -> Outcome {
    let on_disk = OnDisk::new(lab)?;
    let fuse = connection(lab)?;
    let (disk, id) = device(lab)?;
    let inval = |range| dev_inval(&fuse, id, 0, range).map_err(says("DEV_INVAL"));
    for (seed, range) in [
        (5, (on_disk.addr, BLOCK as u64)),
        (6, (on_disk.addr + 512, 512)),
        (7, (on_disk.addr, u64::MAX)),
        (8, (0, u64::MAX)),
        (9, (on_disk.addr, 1 << 40)),
    ] {
        let before = read(&disk, on_disk.addr, BLOCK)?;
        on_disk.write(seed, 0, BLOCK)?;
        let old = read(&disk, on_disk.addr, BLOCK)?;
        ensure!(old == before, "there is nothing to drop");
        inval((on_disk.addr, 0))?;
        let old = read(&disk, on_disk.addr, BLOCK)?;
        ensure!(old == before, "a length of 0 is something");
        inval(range)?;
        let new = read(&disk, on_disk.addr, BLOCK)?;
        same(0, &new, &pattern(seed, BLOCK)).map_err(|e| format!("{range:?}: {e}"))?;
    }
    Ok(())
}

/// What is dirty in the range never gets to the device; what is next to it does.
fn drops_dirty(lab: &mut Lab) -> Outcome {
    let on_disk = OnDisk::new(lab)?;
    let fuse = connection(lab)?;
    let (disk, id) = device(lab)?;
    let next = on_disk.addr + BLOCK as u64;
    let direct = open_direct(&lab.path(&on_disk.name))?;
    sys::set_blocksize(&fuse, id, 512).map_err(says("set the block size"))?;
    for seed in 10..15 {
        let stale = pattern(seed + 100, 2 * BLOCK);
        disk.write_all_at(&stale, on_disk.addr)
            .map_err(says("write to the disk"))?;
        // With an fsync, the server would have its device synced too.
        sys::write_aligned(&direct, 0, &pattern(seed, BLOCK)).map_err(says("direct write"))?;
        dev_inval(&fuse, id, 0, (on_disk.addr, BLOCK as u64)).map_err(says("DEV_INVAL"))?;
        disk.sync_all().map_err(says("fsync the disk"))?;
        dev_inval(&fuse, id, 0, (0, u64::MAX)).map_err(says("DEV_INVAL"))?;
        same(0, &read(&disk, on_disk.addr, BLOCK)?, &pattern(seed, BLOCK))?;
        same(BLOCK as u64, &read(&disk, next, BLOCK)?, &stale[BLOCK..])?;
    }
    Ok(())
}

/// Somebody else's dirty data is not lost.
fn spares_others(lab: &mut Lab) -> Outcome {
    let on_disk = OnDisk::new(lab)?;
    let fuse = connection(lab)?;
    let (disk, id) = device(lab)?;
    let path = std::env::var_os("FI_DISK_A").ok_or("no disk")?;
    let mut options = OpenOptions::new();
    let alone = options.read(true).custom_flags(libc::O_EXCL).open(path);
    let alone = alone.map_err(says("open the disk for oneself"))?;
    let theirs = pattern(77, BLOCK);
    disk.write_all_at(&theirs, on_disk.addr)
        .map_err(says("write to the disk"))?;
    dev_inval(&fuse, id, 0, (on_disk.addr, BLOCK as u64)).map_err(says("DEV_INVAL"))?;
    same(0, &read(&disk, on_disk.addr, BLOCK)?, &theirs)?;
    drop(alone);
    Ok(())
}

/// What a file is written and read through is not what is dropped: one whose blocks are dropped from the
/// page cache of the device all the time, in blocks of any size, holds what was written.
fn under_load(lab: &mut Lab) -> Outcome {
    const SIZE: usize = 300_000;
    let fuse = connection(lab)?;
    let (disk, id) = device(lab)?;
    let before = sys::block_size(&disk).map_err(says("BLKBSZGET"))?;
    let size = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0)).map_err(says("seek"))?;
    let done = AtomicBool::new(false);
    let mut random = Random::new(84);
    let mut dropped = 0;
    let result = std::thread::scope(|scope| {
        let mut writers = Vec::new();
        for (n, way) in ["in-place", "unwritten", "cow", "delalloc"]
            .iter()
            .enumerate()
        {
            let path = lab.path(&format!("{}/busy", workshop(way, BLOCK as u32)));
            writers.push(scope.spawn(move || write_and_read(&path, n as u64, SIZE)));
        }
        let done = &done;
        let waiter = scope.spawn(move || {
            let ends: Vec<_> = writers.into_iter().map(|w| w.join()).collect();
            done.store(true, Ordering::Relaxed);
            ends
        });
        let mut result = Ok(());
        while result.is_ok() && !done.load(Ordering::Relaxed) {
            let block = random.pick(&[512, 1024, 2048, 4096]);
            let offset = random.below(size);
            let length = random.pick(&[1, 512, BLOCK as u64, 1 << 20, 1 << 62, u64::MAX]);
            result = sys::set_blocksize(&fuse, id, block)
                .and_then(|()| dev_inval(&fuse, id, 0, (offset, length)))
                .map_err(|e| format!("blocks of {block}, {offset} {length}: {e}"));
            dropped += 1;
        }
        let ends = waiter.join().map_err(|_| "it panicked")?;
        result?;
        for end in ends {
            end.map_err(|_| "a writer panicked")??;
        }
        Ok::<(), String>(())
    });
    sys::set_blocksize(&fuse, id, before).map_err(says("set the block size"))?;
    result?;
    ensure!(dropped > 10, "dropped only {dropped} times");
    Ok(())
}

/// Writes a file through the page cache and past it, and reads it again, for a while.
fn write_and_read(path: &std::path::Path, seed: u64, size: usize) -> Outcome {
    let file = create(path)?;
    let direct = open_direct(path)?;
    let mut model = pattern(seed, size);
    file.write_all_at(&model, 0).map_err(says("write"))?;
    let mut random = Random::new(seed);
    for round in 0..30 {
        let at = random.below((size / BLOCK - 4) as u64) as usize * BLOCK;
        let data = pattern(round, 2 * BLOCK);
        if random.chance(128) {
            sys::write_aligned(&direct, at as u64, &data).map_err(says("direct write"))?;
        } else {
            file.write_all_at(&data, at as u64).map_err(says("write"))?;
        }
        model[at..at + data.len()].copy_from_slice(&data);
        if random.chance(64) {
            file.sync_all().map_err(says("fsync"))?;
            cool(&file)?;
        }
        let got = pread(&file, 0, size + 1).map_err(says("read"))?;
        same(0, &got, &model).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    drop(direct);
    std::fs::remove_file(path).map_err(says("unlink"))
}

/// What makes no sense is refused.
fn refuses(lab: &mut Lab) -> Outcome {
    let fuse = connection(lab)?;
    let (disk, id) = device(lab)?;
    let size = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0)).map_err(says("seek"))?;
    let page = 4096;
    for (what, dev, reserved, range, wanted) in [
        ("an unknown device", id + 100, 0, (0, page), libc::ENOENT),
        ("no device", 0, 0, (0, page), libc::ENOENT),
        ("a huge id", u32::MAX, 0, (0, page), libc::EINVAL),
        ("reserved", id, 1, (0, page), libc::EINVAL),
        ("past the end", id, 0, (size, page), libc::EINVAL),
        (
            "far past the end",
            id,
            0,
            (u64::MAX, u64::MAX),
            libc::EINVAL,
        ),
        (
            "an overflow",
            id,
            0,
            (size - page, u64::MAX - 1),
            libc::EINVAL,
        ),
    ] {
        fails_with(what, dev_inval(&fuse, dev, reserved, range), &[wanted])?;
    }
    for size in [0, 8, 23, 25, 4096] {
        let result = send(&fuse, &vec![0; size]);
        ensure!(
            matches!(&result, Err(e) if errno(e) == libc::EINVAL),
            "{size} bytes: {result:?}"
        );
    }
    Ok(())
}

/// Nobody can do this but the server of such a mount.
fn not_without_iomap() -> Outcome {
    let fuse = fresh()?;
    let result = dev_inval(&fuse, 1, 0, (0, 4096));
    fails_with("without a mount", result, &[libc::EPERM])?;
    let null = File::open("/dev/null").map_err(says("open /dev/null"))?;
    let result = sys::iomap_support(&null);
    fails_with("another file", result, &[libc::ENOTTY])
}

/// Runs the suite.
pub fn run(tap: &mut Tap, machine: &Machine) {
    let mut scenario = scenario(83, None);
    // Pieces are long enough to have neighbours.
    scenario.options.longest = 0;
    scenario.options.guards = false;
    let Some(mut bench) = Bench::start(tap, machine, &scenario) else {
        return;
    };
    let lab = &mut bench.lab;
    tap.case("IOMAP_SUPPORT", || support(lab));
    tap.case("SET_NOFS", || nofs(lab));
    tap.case("the library does it for its workers", || workers(lab));
    tap.case("IOMAP_SET_BLOCKSIZE", || blocksize(lab));
    for (name, case) in [
        (
            "DEV_INVAL drops what is old",
            drops_clean as fn(&mut Lab) -> Outcome,
        ),
        ("DEV_INVAL drops what is dirty", drops_dirty),
        ("DEV_INVAL spares what is somebody else's", spares_others),
        ("DEV_INVAL that makes no sense", refuses),
        ("DEV_INVAL and SET_BLOCKSIZE under load", under_load),
    ] {
        tap.case(name, || case(lab));
    }
    tap.case("nothing of this without iomap", not_without_iomap);
    super::finish(tap, bench.lab);
}
