// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The store against a kernel that is simulated in whole blocks: whatever is done, after writeback
//! the map leads to what was written, and nothing is found to complain about.

use super::extents::Place;
use super::*;
use crate::devices;
use crate::random::Random;
use crate::scenario::{DeviceSpec, Scenario};
use fuse_iomap::wire::*;

const FILE: u64 = 2;
const COPY: u64 = 3;
const BLOCK: u64 = 1024;
const BLOCKS: u64 = 48;

/// What a simulated kernel knows of a file.
struct Sim {
    store: Store,
    devices: Arc<Vec<Device>>,
    /// A tag for each block; 0 is zeroes.
    model: Vec<u64>,
    /// Blocks in the page cache that are not on disk.
    dirty: Vec<Option<u64>>,
    disk: HashMap<Place, u64>,
    tag: u64,
    path: std::path::PathBuf,
}

impl Drop for Sim {
    fn drop(&mut self) {
        // It was only scratch.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Sim {
    fn new(policy: Policy, seed: u64) -> Self {
        let path = std::env::temp_dir().join(format!(
            "lab-store.{}.{seed}.{:?}.{}.{}",
            std::process::id(),
            policy.style,
            policy.cow_mapped,
            policy.extra,
        ));
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(4 << 20).unwrap();
        let scenario = Scenario {
            devices: vec![DeviceSpec {
                path: path.to_str().unwrap().to_owned(),
            }],
            ..Default::default()
        };
        let devices = Arc::new(devices::open_all(&scenario).unwrap());
        let habits = Habits {
            longest: 5,
            guards: true,
            poison_again: false,
        };
        policy.check(&devices).unwrap();
        let mut store = Store::new(devices.clone(), habits, seed);
        store.create(FILE, policy, 0);
        Self {
            store,
            devices,
            model: Vec::new(),
            dirty: vec![None; 2 * BLOCKS as usize],
            disk: HashMap::new(),
            tag: 0,
            path,
        }
    }

    fn begin(&mut self, opflags: u32, block: u64, blocks: u64) -> Answer {
        let args = IomapBeginIn {
            opflags,
            pos: block * BLOCK,
            count: blocks * BLOCK,
            ..Default::default()
        };
        let answer = self.store.begin(FILE, &args).unwrap();
        for side in [Some(answer.read), answer.write].into_iter().flatten() {
            assert!(side.start <= args.pos && args.pos < side.end, "{answer:?}");
            assert!(side.start % BLOCK == 0 && side.end % BLOCK == 0);
        }
        answer
    }

    /// Only the first `copied` blocks are really written.
    fn write(&mut self, block: u64, blocks: u64, copied: u64) {
        let mut at = block;
        while at < block + blocks {
            let answer = self.begin(iomap_op::WRITE, at, block + blocks - at);
            let to = answer.write.unwrap_or(answer.read);
            assert_ne!(to.kind, iomap_type::HOLE);
            let end = (to.end / BLOCK).min(block + blocks);
            let good = end.min(block + copied).max(at);
            for b in at..good {
                self.tag += 1;
                let b = b as usize;
                self.dirty[b] = Some(self.tag);
                self.model.resize(self.model.len().max(b + 1), 0);
                self.model[b] = self.tag;
            }
            let map = IomapIo {
                offset: to.start,
                length: to.end - to.start,
                ..Default::default()
            };
            let args = IomapEndIn {
                opflags: iomap_op::WRITE,
                pos: at * BLOCK,
                count: (end - at) * BLOCK,
                written: ((good - at) * BLOCK) as i64,
                map,
                ..Default::default()
            };
            self.store.end(FILE, &args).unwrap();
            if good < end {
                break;
            }
            at = end;
        }
    }

    fn writeback(&mut self) {
        for b in 0..self.dirty.len() as u64 {
            let Some(tag) = self.dirty[b as usize].take() else {
                continue;
            };
            let answer = self.begin(iomap_op::WRITE | iomap_op::WRITEBACK, b, 1);
            let to = answer.write.unwrap_or(answer.read);
            let base = to.place.expect("an address");
            let addr = base.addr + (b * BLOCK - to.start);
            self.disk.insert(Place { addr, ..base }, tag);
            let mut flags = 0;
            if to.kind == iomap_type::UNWRITTEN {
                flags |= iomap_ioend::UNWRITTEN;
            }
            if to.flags & iomap_flags::SHARED != 0 {
                flags |= iomap_ioend::SHARED;
            }
            if (b + 1) * BLOCK > self.store.figures(FILE).unwrap().0 {
                flags |= iomap_ioend::APPEND;
            }
            if flags != 0 {
                let args = IomapIoendIn {
                    flags: flags | iomap_ioend::WRITEBACK,
                    pos: b * BLOCK,
                    written: BLOCK,
                    new_addr: addr,
                    dev: 7,
                    ..Default::default()
                };
                let dev = |id| (id == 7).then_some(base.dev);
                let size = self.store.ioend(FILE, &args, dev).unwrap();
                assert!(size >= (b + 1) * BLOCK);
            }
        }
    }

    fn truncate(&mut self, blocks: u64) {
        self.model.resize(blocks as usize, 0);
        self.dirty[blocks as usize..].fill(None);
        self.store.truncate(FILE, blocks * BLOCK).unwrap();
    }

    fn fallocate(&mut self, mode: u32, block: u64, blocks: u64) -> Result<()> {
        self.writeback();
        let range = block * BLOCK..(block + blocks) * BLOCK;
        self.store.fallocate(FILE, mode, range, &self.devices)
    }

    fn zero(&mut self, block: u64, blocks: u64) {
        let end = self.model.len().min((block + blocks) as usize);
        if let Some(part) = self.model.get_mut(block as usize..end) {
            part.fill(0);
        }
    }

    fn check(&mut self, what: &str) {
        self.writeback();
        let map = self.store.map(FILE).unwrap();
        assert_eq!(self.store.violations(), [""; 0], "{what}");
        assert!(map.size <= self.model.len() as u64 * BLOCK, "{what}");
        for (b, want) in self.model.iter().enumerate() {
            let pos = b as u64 * BLOCK;
            let entry = map
                .entries
                .iter()
                .find(|e| e.offset <= pos && pos < e.offset + e.length);
            let got = match entry {
                Some(e) if e.kind == MapKind::Written => {
                    let addr = e.addr + (pos - e.offset);
                    let dev = e.dev;
                    self.disk.get(&Place { dev, addr }).copied().unwrap_or(1)
                }
                _ => 0,
            };
            assert_eq!(got, *want, "{what}: block {b}: {entry:?}");
        }
    }
}

impl Sim {
    /// When all files are gone, everything must be free again.
    fn end(mut self, what: &str) {
        self.store.remove(FILE);
        self.store.remove(COPY);
        let (size, free) = self.store.space_figures();
        let guards = self.store.space().guarded();
        assert_eq!(free + guards, size, "{what}: blocks are lost");
    }
}

fn run(policy: &Policy, seed: u64) {
    let mut sim = Sim::new(policy.clone(), seed);
    let mut random = Random::new(seed);
    for step in 0..150 {
        let block = random.below(BLOCKS - 1);
        let blocks = 1 + random.below((BLOCKS - block).min(8));
        let what = format!("{policy:?} seed {seed} step {step}");
        let size = sim.model.len() as u64;
        match random.below(12) {
            0 => sim.truncate(block),
            1 => {
                let mode = falloc::PUNCH_HOLE | falloc::KEEP_SIZE;
                sim.fallocate(mode, block, blocks).unwrap();
                sim.zero(block, blocks);
            }
            2 => {
                sim.fallocate(falloc::ZERO_RANGE | falloc::KEEP_SIZE, block, blocks)
                    .unwrap();
                sim.zero(block, blocks);
            }
            3 if block + blocks < size => {
                sim.writeback();
                sim.store.truncate(FILE, size * BLOCK).unwrap();
                sim.fallocate(falloc::COLLAPSE_RANGE, block, blocks)
                    .unwrap();
                sim.model.drain(block as usize..(block + blocks) as usize);
            }
            4 if block < size && size + blocks < BLOCKS => {
                sim.writeback();
                sim.store.truncate(FILE, size * BLOCK).unwrap();
                sim.fallocate(falloc::INSERT_RANGE, block, blocks).unwrap();
                for _ in 0..blocks {
                    sim.model.insert(block as usize, 0);
                }
            }
            5 => {
                sim.fallocate(falloc::KEEP_SIZE, block, blocks).unwrap();
            }
            6 => sim.write(block, blocks, random.below(blocks)),
            7 if policy.style == Style::Cow && !sim.store.has(COPY) => {
                sim.check(&what);
                sim.store.clone_file(FILE, COPY).unwrap();
            }
            8 if sim.store.has(COPY) => sim.store.remove(COPY),
            9 => sim.check(&what),
            _ => sim.write(block, blocks, blocks),
        }
    }
    sim.check("at the end");
    sim.end(&format!("{policy:?} seed {seed}"));
}

#[test]
fn what_is_staged_stays_where_it_is() {
    let policy = Policy {
        style: Style::Cow,
        blksize: BLOCK as u32,
        cow_always: true,
        ..Default::default()
    };
    let mut sim = Sim::new(policy, 2000);
    sim.write(0, 8, 8);
    sim.writeback();
    sim.write(2, 1, 1);
    let before = sim.begin(iomap_op::WRITE, 2, 1).write;
    sim.write(0, 8, 8);
    let after = sim.begin(iomap_op::WRITE, 2, 1).write;
    let place = |side: Option<Side>| {
        let side = side.expect("it goes elsewhere");
        let base = side.place.expect("an address");
        base.addr + (2 * BLOCK - side.start)
    };
    assert_eq!(place(before), place(after));
    sim.check("at the end");
    sim.end("staged");
}

#[test]
fn the_map_leads_to_what_was_written() {
    for style in [
        Style::InPlace,
        Style::Unwritten,
        Style::Cow,
        Style::Delalloc,
    ] {
        for seed in 0..12 {
            let policy = Policy {
                style,
                blksize: BLOCK as u32,
                cow_mapped: seed % 2 == 1,
                cow_always: seed % 3 == 1,
                extra: seed % 4,
                ..Default::default()
            };
            run(&policy, seed);
        }
    }
}

#[test]
fn inline_data_gets_blocks_when_it_needs_them() {
    let policy = Policy {
        blksize: BLOCK as u32,
        inline: true,
        ..Default::default()
    };
    let mut sim = Sim::new(policy, 3);
    let small = sim.begin(iomap_op::WRITE, 0, 1);
    assert_eq!(
        (small.read.kind, small.read.end),
        (iomap_type::INLINE, 4096)
    );
    assert_eq!(sim.store.write(FILE, 100, b"inline"), Ok(6));
    let mut buf = [0; 200];
    assert_eq!(sim.store.read(FILE, 96, &mut buf), Ok(10));
    assert_eq!(&buf[4..10], b"inline");
    assert_eq!(sim.store.figures(FILE), Ok((106, 0)));
    assert_eq!(sim.store.map(FILE).unwrap().inline.unwrap().len(), 106);
    // A read does not change that, a store does.
    assert_eq!(sim.begin(0, 0, 1).read.kind, iomap_type::INLINE);
    let store = sim.begin(iomap_op::WRITE | iomap_op::FAULT, 0, 1);
    assert_eq!(store.read.kind, iomap_type::MAPPED);
    let place = store.read.place.unwrap();
    let data = sim.devices[place.dev].read_direct(place.addr, 512).unwrap();
    assert_eq!(&data[100..106], b"inline");
    assert!(data[106..].iter().all(|b| *b == 0));
    assert!(sim.store.violations.is_empty());
    assert!(sim.store.write(FILE, 0, b"x").is_err());
    assert!(sim.store.read(FILE, 0, &mut buf).is_err());
    assert_eq!(sim.store.violations.len(), 2);
}

#[test]
fn what_may_be_remembered_is_marked() {
    let cache = iomap_flags::CACHE;
    let mut sim = Sim::new(
        Policy {
            style: Style::Cow,
            blksize: BLOCK as u32,
            ..Default::default()
        },
        5,
    );
    sim.store.cache(126);
    sim.write(0, 8, 8);
    sim.writeback();
    // A read of blocks that may come to be shared does not say that they can be overwritten.
    let read = sim.begin(0, 0, 8);
    assert_eq!((read.read.flags & cache, read.write_flags), (cache, 0));
    let write = sim.begin(iomap_op::WRITE, 2, 1);
    assert_eq!(write.write_flags, cache);
    assert!(write.read.start >= 2 * BLOCK, "{write:?}");
    assert!(sim.store.take_changed().is_empty());
    sim.store.clone_file(FILE, FILE + 1).unwrap();
    assert_eq!(sim.store.take_changed(), [(FILE, 0..8 * BLOCK)]);
    let moved = sim.begin(iomap_op::WRITE, 2, 1);
    let to = moved.write.unwrap();
    assert_eq!(to.flags & (cache | iomap_flags::SHARED), to.flags);
    assert_ne!(to.flags & cache, 0);
}

#[test]
fn what_the_protocol_forbids_is_noticed() {
    let mut sim = Sim::new(
        Policy {
            blksize: BLOCK as u32,
            ..Default::default()
        },
        1000,
    );
    let good = IomapIoendIn {
        flags: iomap_ioend::WRITEBACK | iomap_ioend::UNWRITTEN | iomap_ioend::APPEND,
        written: BLOCK,
        new_addr: 0,
        dev: 0,
        ..Default::default()
    };
    let ioend = |sim: &mut Sim, args: &IomapIoendIn, what: &str| {
        let refused = sim.store.ioend(FILE, args, |_| Some(0)).is_err();
        let found = sim.store.violations.iter().any(|v| v.contains(what));
        assert!(refused && found, "{what}: {:?}", sim.store.violations);
        sim.store.violations.clear();
    };
    ioend(&mut sim, &good, "outside of what may be written");
    sim.begin(iomap_op::WRITE | iomap_op::WRITEBACK, 0, 1);
    assert!(sim.store.violations[0].contains("nobody wrote"));
    sim.store.violations.clear();
    let without = IomapIoendIn {
        flags: iomap_ioend::WRITEBACK,
        ..good
    };
    ioend(&mut sim, &without, "without need");
    let no_append = IomapIoendIn {
        flags: iomap_ioend::WRITEBACK | iomap_ioend::UNWRITTEN,
        ..good
    };
    ioend(&mut sim, &no_append, "without APPEND");
    let elsewhere = IomapIoendIn {
        new_addr: 8 * BLOCK,
        ..good
    };
    ioend(&mut sim, &elsewhere, "elsewhere");
    assert_eq!(sim.store.ioend(FILE, &good, |_| Some(0)), Ok(BLOCK));
    let args = IomapEndIn {
        opflags: iomap_op::WRITE,
        ..Default::default()
    };
    sim.store.end(FILE, &args).unwrap();
    assert!(sim.store.violations[0].contains("not begun"));
}
