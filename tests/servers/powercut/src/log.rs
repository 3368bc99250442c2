// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The log of the device-mapper target log-writes: a super block, then entries of one sector, each
//! followed by the sectors that were written. Positions count in sectors of the logged device.
//!
//! A write is logged when a flush has made it durable, so the log up to an entry is what a disk
//! with a volatile cache certainly holds at that time.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// What one entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Bytes were written.
    Write,
    /// A range was discarded.
    Discard,
    /// Somebody sent a message.
    Mark(String),
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub kind: Kind,
    /// Everything before it in the log is on the disk when this is.
    pub flush: bool,
    /// It went past the disk's cache.
    pub fua: bool,
    /// Where on the device, in bytes.
    pub pos: u64,
    /// How many bytes.
    pub length: u64,
    /// Where the bytes are in the log.
    data: u64,
}

/// A log, read from its device.
pub struct Log {
    file: File,
    sector_size: u64,
    left: u64,
    at: u64,
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes: [u8; 8] = bytes.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl Log {
    /// Opens a log.
    pub fn open(file: File) -> io::Result<Self> {
        let mut head = [0; 32];
        (&file).read_exact(&mut head)?;
        let field = |at| number(&head, at).ok_or_else(|| bad("the log has no super block"));
        if field(0)? != MAGIC {
            return Err(bad("this is no log of dm-log-writes"));
        }
        if field(8)? != VERSION {
            return Err(bad("the log is of another version"));
        }
        let sector_size = field(24)? & u64::from(u32::MAX);
        if !(512..=1 << 16).contains(&sector_size) || !sector_size.is_power_of_two() {
            return Err(bad("the log's sector size makes no sense"));
        }
        Ok(Self {
            file,
            sector_size,
            left: field(16)?,
            at: sector_size,
        })
    }

    /// The next entry.
    pub fn next(&mut self) -> io::Result<Option<Entry>> {
        if self.left == 0 {
            return Ok(None);
        }
        let size = usize::try_from(self.sector_size).map_err(io::Error::other)?;
        let mut sector = vec![0; size];
        self.file.read_exact_at(&mut sector, self.at)?;
        let field = |at| number(&sector, at).ok_or_else(|| bad("an entry is cut off"));
        let (pos, sectors, flags, text) = (field(0)?, field(8)?, field(16)?, field(24)?);
        let bytes = |count: u64| {
            count
                .checked_mul(self.sector_size)
                .ok_or_else(|| bad("an entry is too long"))
        };
        let length = bytes(sectors)?;
        let data = self.at + self.sector_size;
        let kind = if flags & MARK != 0 {
            let end = usize::try_from(text)
                .ok()
                .and_then(|text| text.checked_add(32));
            let said = end
                .and_then(|end| sector.get(32..end))
                .ok_or_else(|| bad("a mark is longer than its sector"))?;
            Kind::Mark(
                String::from_utf8_lossy(said)
                    .trim_end_matches('\0')
                    .to_owned(),
            )
        } else if flags & DISCARD != 0 {
            Kind::Discard
        } else {
            Kind::Write
        };
        self.left -= 1;
        // A discard has no data behind it.
        self.at = match kind {
            Kind::Discard => data,
            _ => data
                .checked_add(length)
                .ok_or_else(|| bad("an entry is too long"))?,
        };
        Ok(Some(Entry {
            kind,
            flush: flags & FLUSH != 0,
            fua: flags & FUA != 0,
            pos: bytes(pos)?,
            length,
            data,
        }))
    }

    /// Does to an image of the device what the entry says.
    pub fn apply(&self, entry: &Entry, image: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(entry.pos).map_err(io::Error::other)?;
        let length = usize::try_from(entry.length).map_err(io::Error::other)?;
        let range = start
            .checked_add(length)
            .and_then(|end| image.get_mut(start..end))
            .ok_or_else(|| bad("an entry is beyond the end of the device"))?;
        match entry.kind {
            Kind::Write => self.file.read_exact_at(range, entry.data),
            Kind::Discard => {
                range.fill(0);
                Ok(())
            }
            Kind::Mark(_) => Ok(()),
        }
    }
}

#[cfg(test)]
impl Entry {
    /// An entry without data.
    pub fn made(kind: Kind, flush: bool, fua: bool) -> Self {
        Self {
            kind,
            flush,
            fua,
            pos: 0,
            length: 0,
            data: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::PathBuf;

    /// One sector that starts with these words and text.
    fn sector(words: &[u64], text: &str) -> Vec<u8> {
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(text.as_bytes());
        bytes.resize(512, 0);
        bytes
    }

    fn log(name: &str, sectors: &[Vec<u8>]) -> io::Result<Log> {
        let path: PathBuf =
            std::env::temp_dir().join(format!("powercut-{name}-{}", std::process::id()));
        File::create(&path)?.write_all(&sectors.concat())?;
        let file = File::open(&path)?;
        std::fs::remove_file(&path)?;
        Log::open(file)
    }

    #[test]
    fn entries_are_read_and_applied() {
        let mut log = log(
            "entries",
            &[
                sector(&[MAGIC, VERSION, 4, 512], ""),
                sector(&[2, 1, FUA, 0], ""),
                vec![7; 512],
                sector(&[0, 0, MARK, 7], "ack:0:3"),
                sector(&[2, 1, DISCARD, 0], ""),
                sector(&[0, 0, FLUSH, 0], ""),
            ],
        )
        .unwrap();
        let mut image = vec![1; 2048];
        let write = log.next().unwrap().unwrap();
        assert_eq!((write.pos, write.length, write.fua), (1024, 512, true));
        log.apply(&write, &mut image).unwrap();
        assert_eq!(image.get(1023..1025), Some(&[1, 7][..]));
        let mark = log.next().unwrap().unwrap();
        assert_eq!(mark.kind, Kind::Mark("ack:0:3".into()));
        let discard = log.next().unwrap().unwrap();
        assert_eq!(discard.kind, Kind::Discard);
        log.apply(&discard, &mut image).unwrap();
        assert_eq!(image.get(1024), Some(&0));
        assert!(log.next().unwrap().unwrap().flush);
        assert_eq!(log.next().unwrap(), None);
    }

    #[test]
    fn what_is_no_log_or_beyond_the_device_is_an_error() {
        assert!(log("none", &[sector(&[1, 1, 1, 512], "")]).is_err());
        let mut log = log(
            "far",
            &[
                sector(&[MAGIC, VERSION, 1, 512], ""),
                sector(&[u64::MAX >> 9, 1, 0, 0], ""),
            ],
        )
        .unwrap();
        let entry = log.next().unwrap().unwrap();
        assert!(log.apply(&entry, &mut [0; 512]).is_err());
    }
}
