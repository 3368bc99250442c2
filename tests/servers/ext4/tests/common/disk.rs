// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A disk in memory whose power can be cut afterwards, at any point of its history.

use std::{io, path::Path, sync::Mutex};

use ext4_volume::disk::Disk;

use super::random::Random;

/// What the disk was told, in order.
enum Event {
    Write(u64, Vec<u8>),
    Flush,
}

#[derive(Default)]
struct History {
    now: Vec<u8>,
    events: Vec<Event>,
    recording: bool,
}

/// The disk.
pub struct MemDisk {
    size: u64,
    first: Vec<u8>,
    history: Mutex<History>,
}

impl MemDisk {
    /// A disk with the contents of a file. `recording` keeps the history.
    pub fn load(path: &Path, recording: bool) -> Self {
        let now = std::fs::read(path).unwrap();
        Self {
            size: now.len() as u64,
            first: if recording { now.clone() } else { Vec::new() },
            history: Mutex::new(History {
                now,
                events: Vec::new(),
                recording,
            }),
        }
    }

    /// Writes the contents into a file.
    pub fn store(&self, path: &Path) {
        std::fs::write(path, &self.history.lock().unwrap().now).unwrap();
    }

    /// How much has happened so far.
    pub fn position(&self) -> usize {
        self.history.lock().unwrap().events.len()
    }

    /// What is on the disk if the power fails after `at` events: all that was written before the last
    /// flush, and some blocks of what came after it.
    pub fn after_power_cut(&self, at: usize, block_size: usize, random: &mut Random) -> Vec<u8> {
        let history = self.history.lock().unwrap();
        let events = &history.events[..at];
        let flushed = events
            .iter()
            .rposition(|event| matches!(event, Event::Flush))
            .unwrap_or(0);
        let mut image = self.first.clone();
        // Sometimes everything makes it, sometimes nothing.
        let odds = [0, 10, 50, 90, 100][random.below(5)];
        for (number, event) in events.iter().enumerate() {
            let Event::Write(offset, data) = event else {
                continue;
            };
            for (index, block) in data.chunks(block_size).enumerate() {
                if number < flushed || random.below(100) < odds {
                    let from = *offset as usize + index * block_size;
                    image[from..from + block.len()].copy_from_slice(block);
                }
            }
        }
        image
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let history = self.history.lock().unwrap();
        let from = offset as usize;
        buf.copy_from_slice(&history.now[from..from + buf.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut history = self.history.lock().unwrap();
        let from = offset as usize;
        history.now[from..from + data.len()].copy_from_slice(data);
        if history.recording {
            history.events.push(Event::Write(offset, data.to_vec()));
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut history = self.history.lock().unwrap();
        if history.recording {
            history.events.push(Event::Flush);
        }
        Ok(())
    }
}
