// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the kernel is told of mappings, asked and unasked.
//!
//! Notifications go out under the lock of the store, so that the kernel hears of changes in the order
//! in which they happen.

use super::node::Kind;
use super::{INO_BASE, Lab, lock};
use crate::caching::CacheMode;
use crate::misbehave::Notice;
use crate::model::FileModel;
use crate::random::Random;
use crate::store::{ALWAYS_ASKED, Answer, Side, Store};
use fuse_iomap::wire::{self, INVAL_TO_EOF, IomapBeginIn, IomapConfigIn, iomap_flags, iomap_op};
use fuse_iomap::{BeginReply, ConfigReply, Errno, Mapping, Result};
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// The longest time between two things said unasked, in microseconds.
const RESTLESS: u64 = 1500;

impl Lab {
    pub(super) fn config(&self, request: &IomapConfigIn) -> Result<ConfigReply> {
        let options = &self.options;
        if options.maxbytes.is_none() && options.cache.is_none() && !options.identity {
            return Err(Errno::NOSYS);
        }
        let mut reply = ConfigReply::new();
        if options.identity {
            reply = Self::identity();
        }
        if let Some(maxbytes) = options.maxbytes {
            reply = reply.maxbytes(maxbytes);
        }
        if let Some(cache) = &options.cache {
            reply = reply.caching(request, &cache.caching());
            if cache.mode != CacheMode::Off {
                let more = reply.to_wire().flags & wire::iomap_config::BATCH_MAPPINGS != 0;
                lock(&self.store).cache(if more { cache.batch_mappings } else { 0 });
            }
        }
        Ok(reply)
    }

    /// An answer to CONFIG with every field, and a value in each that is not the kernel's.
    fn identity() -> ConfigReply {
        ConfigReply::new()
            .name("lab0")
            .uuid(std::array::from_fn(|i| i as u8 + 1))
            .block_size(1024)
            .max_links(3)
            .times(1000, 4_000_000_000, 1_000_000)
            .maxbytes(1 << 30)
            .cache_maxbytes(1 << 20)
    }

    fn cache_mode(&self) -> Option<CacheMode> {
        self.options.cache.as_ref().map(|cache| cache.mode)
    }

    /// Uses the store, and tells the kernel what it has to forget before anybody else can.
    pub(super) fn with_store<R>(&self, f: impl FnOnce(&mut Store) -> R) -> R {
        let mut store = lock(&self.store);
        let result = f(&mut store);
        let changed = store.take_changed();
        if !matches!(self.cache_mode(), None | Some(CacheMode::Off)) {
            for (id, range) in changed {
                self.told("INVAL", self.inval(id, range));
            }
        }
        result
    }

    fn inval(&self, id: u64, range: Range<u64>) -> io::Result<()> {
        let connection = self.connection().map_err(io::Error::other)?;
        let length = match range.end {
            INVAL_TO_EOF => INVAL_TO_EOF,
            end => end.saturating_sub(range.start),
        };
        let offset = range.start;
        let range = wire::Range { offset, length };
        connection.iomap_inval(id, INO_BASE + id, range, range)
    }

    /// The kernel has to take what is true, unless it has forgotten the inode, or everything is over.
    fn told(&self, what: &str, result: io::Result<()>) {
        match result {
            Ok(()) => {}
            // A connection that has ended takes no notification at all.
            Err(_)
                if self
                    .connection()
                    .is_ok_and(|connection| connection.has_ended()) => {}
            Err(e) if Errno::from_io_error(&e) == Some(Errno::NOENT) => {}
            Err(e) => self.violation(format!("{what} was refused: {e}")),
        }
    }

    /// Answers a BEGIN for a file of the store, by way of the kernel's cache if that is to be.
    pub(super) fn begin(&self, nodeid: u64, args: &IomapBeginIn) -> Result<BeginReply> {
        self.with_store(|store| {
            let mut answer = store.begin(nodeid, args)?;
            match self.cache_mode() {
                Some(CacheMode::Upsert) => self.by_upsert(nodeid, args, &answer),
                Some(CacheMode::Eager) => {
                    self.forget_some(&mut answer);
                    self.stored_reply(&answer)
                }
                _ => self.stored_reply(&answer),
            }
        })
    }

    /// The answer for a file of extents that are there from the start: the kernel may remember them.
    pub(super) fn extents_reply(
        &self,
        args: &IomapBeginIn,
        read: Mapping,
        model: &FileModel,
    ) -> Result<BeginReply> {
        let mut reply = BeginReply::read(read);
        let cache = self.options.cache.as_ref();
        let Some(cache) = cache.filter(|cache| cache.mode == CacheMode::Replies) else {
            return Ok(reply);
        };
        if args.opflags & ALWAYS_ASKED != 0 {
            return Ok(reply);
        }
        let mut at = read.end();
        while reply.more.len() < cache.batch_mappings && at < model.size() {
            let next = self.mapping(&model.lookup(at, 1))?;
            at = next.end();
            reply.more.push(next.cached());
        }
        Ok(reply.cached())
    }

    /// Leaves the kernel to find out again.
    fn forget_some(&self, answer: &mut Answer) {
        let mut random = lock(&self.random);
        let forget = !iomap_flags::CACHE;
        if random.chance(64) {
            answer.read.flags &= forget;
            // What follows belongs to it.
            answer.more.clear();
        }
        if random.chance(64) {
            answer.write_flags &= forget;
            if let Some(write) = &mut answer.write {
                write.flags &= forget;
            }
        }
    }

    /// Tells the kernel by a notification, and then to look for it.
    fn by_upsert(&self, nodeid: u64, args: &IomapBeginIn, answer: &Answer) -> Result<BeginReply> {
        let read = answer.read.flags & iomap_flags::CACHE != 0;
        let write = match &answer.write {
            Some(write) => write.flags,
            None => answer.write_flags,
        };
        let write = write & iomap_flags::CACHE != 0;
        let reply = self.stored_reply(answer)?;
        let writes = args.opflags & (iomap_op::WRITE | iomap_op::ZERO) != 0;
        // If the kernel did not find it, its cache is too small.
        if !read || writes && !write || self.retried.again(nodeid, args) {
            return Ok(reply);
        }
        self.told_of(nodeid, answer);
        let (offset, length) = (answer.read.start, answer.read.end - answer.read.start);
        Ok(BeginReply::read(Mapping::retry_cache(offset, length)))
    }

    fn told_of(&self, nodeid: u64, answer: &Answer) {
        let what = format!("UPSERT for node {nodeid} of {answer:?}");
        self.told(&what, self.upsert(nodeid, answer));
    }

    /// Sends those sides of an answer that may be remembered.
    fn upsert(&self, nodeid: u64, answer: &Answer) -> io::Result<()> {
        let reply = self.stored_reply(answer)?;
        let side = |marked: bool, mapping: Mapping| match marked {
            true => mapping.without_flags(iomap_flags::CACHE),
            false => Mapping::no_cache(mapping.offset(), mapping.length()),
        };
        let write = answer.write.map_or(answer.write_flags, |w: Side| w.flags);
        let connection = self.connection().map_err(io::Error::other)?;
        connection.iomap_upsert(
            nodeid,
            INO_BASE + nodeid,
            side(answer.read.flags & iomap_flags::CACHE != 0, reply.read),
            side(write & iomap_flags::CACHE != 0, reply.write),
        )
    }

    /// Says something about the mappings of an inode, which may be given other numbers.
    pub fn notify(
        &self,
        id: u64,
        notice: &Notice,
        (nodeid, attr_ino): (Option<u64>, Option<u64>),
        size: Option<usize>,
    ) -> std::result::Result<io::Result<()>, String> {
        let connection = self.connection()?;
        let attr_ino = attr_ino.unwrap_or(INO_BASE + id);
        Ok(notice.send(connection, nodeid.unwrap_or(id), attr_ino, size))
    }

    /// Says something true, or has something forgotten, about some file that the kernel knows.
    fn say_something(&self, random: &mut Random) {
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let mut known: Vec<(u64, u64)> = nodes
            .values()
            .filter(|n| matches!(n.kind, Kind::Stored) && n.lookups.load(Ordering::Relaxed) > 0)
            .map(|n| (n.id, u64::from(n.blksize)))
            .collect();
        drop(nodes);
        known.sort_unstable();
        if known.is_empty() {
            return;
        }
        let (id, block) = random.pick(&known);
        self.with_store(|store| {
            let Ok((size, _)) = store.figures(id) else {
                return;
            };
            let pos = random.below(size + 10_000) / block * block;
            if random.chance(64) {
                let end = match random.below(4) {
                    0 => INVAL_TO_EOF,
                    _ => pos + (1 + random.below(size / block + 1)) * block,
                };
                self.told("INVAL", self.inval(id, pos..end));
            } else if let Ok(answer) = store.truth(id, pos) {
                self.told_of(id, &answer);
            }
        });
    }

    /// Starts to do so for as long as the server lives.
    pub(super) fn be_restless(self: &Arc<Self>) {
        if self.cache_mode() != Some(CacheMode::Eager) {
            return;
        }
        let lab = Arc::downgrade(self);
        let mut random = lock(&self.random).clone();
        std::thread::spawn(move || {
            while let Some(lab) = lab.upgrade() {
                if lab
                    .connection()
                    .is_ok_and(|connection| connection.has_ended())
                {
                    return;
                }
                lab.say_something(&mut random);
                drop(lab);
                std::thread::sleep(Duration::from_micros(1 + random.below(RESTLESS)));
            }
        });
    }
}
