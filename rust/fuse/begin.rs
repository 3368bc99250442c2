// SPDX-License-Identifier: GPL-2.0

//! Finding mappings: in the cache, or by asking the server (BEGIN).
#![deny(unsafe_code)]

use crate::{
    cache::Cache,
    counters::Counter,
    fuse::{Device, IomapInode, Patience},
    mapping::{
        DeviceLimits,
        Devices,
        Mapping,
        Place,
        Purpose,
        Refusal,
        Side, //
    },
    rule::Rule, //
};
use core::{mem::size_of, ops::Range};
use kernel::{
    bindings::{self, fuse_iomap_begin_in, fuse_iomap_io},
    fs::NofsScope,
    prelude::*, //
};

/// How often a server may say that the cache has the answer when it has not.
const MAX_RETRIES: usize = 8;

/// How many mappings an answer has at most, with the extension BATCH_MAPPINGS: a page of them.
const MAX_MAPPINGS: usize = 4096 / size_of::<fuse_iomap_io>();

/// The devices of a connection, as seen from one of its inodes.
impl<'a> Devices for IomapInode<'a> {
    type Device = &'a Device;

    #[inline]
    fn find(&self, id: u32) -> Result<Option<&'a Device>> {
        self.state()
            .devices
            .find_or_enter(id, || self.open_device(id))
    }

    fn limits(device: &'a Device) -> DeviceLimits {
        let device = device.block_device();

        DeviceLimits {
            logical_block: u64::from(device.logical_block_size()),
            bytes: device.size(),
        }
    }
}

/// A mapping whose device the inode keeps.
pub(crate) type InodeMapping<'a> = Mapping<&'a Device>;

/// Tells the log and the trace why a mapping was refused.
pub(crate) fn refuse(inode: IomapInode<'_>, wire: &fuse_iomap_io, refusal: Refusal) -> Error {
    match refusal {
        Refusal::Rule(rule) => {
            inode.report_rejected(rule, wire);
            EUCLEAN
        }
        Refusal::Error(error) => error,
    }
}

/// Both sides of an answer, checked.
pub(crate) struct Reply<'a> {
    pub(crate) read: InodeMapping<'a>,
    /// Where to write, if that was asked for.
    pub(crate) write: Option<InodeMapping<'a>>,
    /// The validity cookie of both.
    pub(crate) cookie: u64,
}

/// What is asked.
#[derive(Clone, Copy)]
pub(crate) struct Question {
    /// For the server.
    pub(crate) opflags: u32,
    /// Start, in bytes.
    pub(crate) pos: u64,
    /// Length, in bytes.
    pub(crate) count: u64,
    /// What the write side has to be fit for; without one it is checked but not used.
    pub(crate) purpose: Option<Purpose>,
}

impl Question {
    /// Tests one of the operation flags.
    fn has(&self, flag: u32) -> bool {
        self.opflags & flag != 0
    }

    /// Checks both sides of an answer that is valid as long as `cookie` is.  Fails with what is
    /// wrong, and with which side.
    fn check<'a>(
        &self,
        inode: IomapInode<'a>,
        read: &fuse_iomap_io,
        write: &fuse_iomap_io,
        cookie: u64,
    ) -> Result<Reply<'a>, (Side, Refusal)> {
        let limits = inode.limits();

        let read = Mapping::parse(read, Side::Read, &limits, &inode)
            .and_then(|read| Ok(read.for_read(self.pos, &limits)?))
            .map_err(|refusal| (Side::Read, refusal))?;
        let write = Mapping::parse(write, Side::Write, &limits, &inode)
            .and_then(|write| match self.purpose {
                Some(purpose) => Ok(Some(write.for_write(&read, self.pos, purpose)?)),
                // A read does not use this side, but a server that fills it with garbage has gone
                // wrong.
                None => Ok(None),
            })
            .map_err(|refusal| (Side::Write, refusal))?;

        Ok(Reply {
            read,
            write,
            cookie,
        })
    }
}

/// Finds the mappings at a position.
///
/// May sleep, unless the operation must not: then it fails with `EAGAIN` if the server would have
/// to be asked.
#[inline(always)]
pub(crate) fn find<'a>(inode: IomapInode<'a>, question: &Question) -> Result<Reply<'a>> {
    if inode.is_bad() {
        return Err(EIO);
    }

    let reply = match look_up(inode, question) {
        Some(reply) => reply,
        None => {
            inode.count(Counter::CacheMiss);
            if question.has(bindings::FUSE_IOMAP_OP_NOWAIT) {
                return Err(EAGAIN);
            }
            ask(inode, question)?
        }
    };
    if let Some(write) = &reply.write {
        // Registering it was fine on a mount that was read-only then.
        if matches!(write.place(), Place::Mapped(device, _) | Place::Unwritten(device, _)
            if !device.is_writable())
        {
            return Err(EROFS);
        }
    }
    Ok(reply)
}

/// Finds one side of what is cached of a position.
#[inline(always)]
fn recall<'a>(inode: IomapInode<'a>, side: Side, pos: u64) -> Option<InodeMapping<'a>> {
    Mapping::recall(&inode.state().cache.lookup(side, pos)?, &inode)
}

/// Finds the mappings at a position in the cache.
///
/// Does not sleep.
#[inline(always)]
pub(crate) fn look_up<'a>(inode: IomapInode<'a>, question: &Question) -> Option<Reply<'a>> {
    // The server wants to know of these.
    if question.has(bindings::FUSE_IOMAP_OP_ATOMIC | bindings::FUSE_IOMAP_OP_SWAPFILE) {
        return None;
    }

    // Before looking, so that a change that was not seen makes the answer invalid.
    let cookie = inode.cookie();

    let Some(purpose) = question.purpose else {
        let read = recall(inode, Side::Read, question.pos)?;
        inode.count(Counter::CacheHit);
        return Some(Reply {
            read,
            write: None,
            cookie,
        });
    };
    let write = recall(inode, Side::Write, question.pos)?;
    let is_overwrite = matches!(write.place(), Place::PureOverwrite);
    let read = if purpose == Purpose::Writeback && !is_overwrite {
        // That side does not matter.
        write.clone().into_hole()
    } else {
        recall(inode, Side::Read, question.pos)?
    };
    // What is fit for another purpose may not be for this one. Then the server knows more.
    let write = write.for_write(&read, question.pos, purpose).ok()?;
    if purpose == Purpose::Writeback && matches!(write.place(), Place::Hole) {
        return None;
    }

    inode.count(Counter::CacheHit);
    Some(Reply {
        read,
        write: Some(write),
        cookie,
    })
}

/// As [`look_up`], which is inlined where it matters.
#[cold]
fn look_again<'a>(inode: IomapInode<'a>, question: &Question) -> Option<Reply<'a>> {
    look_up(inode, question)
}

/// As [`find`], which is inlined where it matters.
#[cold]
pub(crate) fn find_again<'a>(inode: IomapInode<'a>, question: &Question) -> Result<Reply<'a>> {
    find(inode, question)
}

/// Asks the server for the mappings at a position.
#[cold]
fn ask<'a>(inode: IomapInode<'a>, question: &Question) -> Result<Reply<'a>> {
    let request = fuse_iomap_begin_in {
        opflags: question.opflags,
        reserved: 0,
        attr_ino: inode.attr_ino(),
        pos: question.pos,
        count: question.count,
    };
    let mut sides = [fuse_iomap_io::default(); 2];
    let mut many = room_for_many(inode, question)?;
    let room = match &mut many {
        Some(many) => many.as_mut_slice(),
        None => &mut sides,
    };

    for _ in 0..MAX_RETRIES {
        let generation = inode.state().cache.generation();
        let mut cookie = inode.cookie();
        let count = send(inode, question, &request, room)?;
        let Some(([read, write], more)) = room
            .get(..count)
            .and_then(|room| room.split_first_chunk::<2>())
        else {
            return Err(EIO);
        };

        if u32::from(read.type_) == bindings::FUSE_IOMAP_TYPE_RETRY_CACHE {
            match look_again(inode, question) {
                Some(reply) => return Ok(reply),
                None => continue,
            }
        }

        if question.purpose.is_some() {
            cookie = inode.may_have_changed(cookie);
        }
        let reply =
            question
                .check(inode, read, write, cookie)
                .map_err(|(side, refusal)| match side {
                    Side::Read => refuse(inode, read, refusal),
                    Side::Write => refuse(inode, write, refusal),
                })?;
        check_more(inode, read, more)?;

        inode.trace_mapping(read);
        if question.purpose.is_some() {
            inode.trace_mapping(write);
            inode.blocks_changed();
        }
        remember(inode, generation, &reply, (read, write), more);
        return Ok(reply);
    }

    inode.report_rejected(Rule::RetryWithoutCache, &sides_of(room));
    Err(EIO)
}

/// The read side of an answer, for the log.
fn sides_of(room: &[fuse_iomap_io]) -> fuse_iomap_io {
    room.first().copied().unwrap_or_default()
}

/// Room for more mappings than the two sides, if the server may send them.
///
/// It does not for writeback, for which there might be no memory.
fn room_for_many(
    inode: IomapInode<'_>,
    question: &Question,
) -> Result<Option<KVec<fuse_iomap_io>>> {
    if !inode.extensions().batch_mappings() || question.purpose == Some(Purpose::Writeback) {
        return Ok(None);
    }

    let _nofs = NofsScope::new();
    Ok(Some(KVec::from_elem(
        fuse_iomap_io::default(),
        MAX_MAPPINGS,
        GFP_KERNEL,
    )?))
}

/// Sends the question, and translates what a server can say instead of an answer.
fn send(
    inode: IomapInode<'_>,
    question: &Question,
    request: &fuse_iomap_begin_in,
    room: &mut [fuse_iomap_io],
) -> Result<usize> {
    let patience = match question.purpose {
        Some(Purpose::Writeback) => Patience::Forced,
        _ => Patience::Killable,
    };

    inode.trace_begin(request);
    match inode.send_begin(request, room, patience) {
        // One that cannot have this done directly says so. Else, there is no iomap without BEGIN.
        Err(error) if error == ENOTBLK || error == ENOSYS => {
            if question.has(bindings::FUSE_IOMAP_OP_DIRECT) {
                Err(ENOTBLK)
            } else {
                Err(EIO)
            }
        }
        answer => answer,
    }
}

/// Checks the mappings that follow both sides: each begins where the one before it ends.
fn check_more(inode: IomapInode<'_>, read: &fuse_iomap_io, more: &[fuse_iomap_io]) -> Result {
    let limits = inode.limits();
    // Of what was accepted, none of this overflows.
    let mut end = read.offset.saturating_add(read.length);

    for wire in more {
        let mapping = Mapping::parse(wire, Side::Read, &limits, &inode)
            .map_err(|refusal| refuse(inode, wire, refusal))?;
        if mapping.start() != end {
            return Err(refuse(inode, wire, Rule::NotContiguous.into()));
        }
        end = mapping.end();
    }
    Ok(())
}

/// Puts what the server wants cached into the cache.
fn remember(
    inode: IomapInode<'_>,
    generation: u64,
    reply: &Reply<'_>,
    (read, write): (&fuse_iomap_io, &fuse_iomap_io),
    more: &[fuse_iomap_io],
) {
    let Some(pool) = inode.pool() else {
        return;
    };
    // To answer, the server may have given the file blocks.
    let changed = reply.write.as_ref().map(|write| Range {
        start: write.start(),
        end: write.end(),
    });
    // Blocks with data for a hole are new, and no hole from the first write on, of whose completion
    // the server does not hear.
    let is_new = matches!(
        &reply.write,
        Some(write) if matches!(write.place(), Place::Mapped(..))
            && matches!(reply.read.place(), Place::Hole)
    );
    // Who writes here and there changes mappings, and would have to evict some for these; who
    // overwrites does not.
    let is_overwrite = u32::from(write.type_) == bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE;
    let more = if reply.write.is_none() || is_overwrite {
        more
    } else {
        &[]
    };
    let flagged = [(Side::Read, read), (Side::Write, write)]
        .into_iter()
        .filter(|(_, wire)| u32::from(wire.flags) & bindings::FUSE_IOMAP_F_CACHE != 0 && !is_new);

    let cache: &Cache = &inode.state().cache;
    cache.insert_since(
        pool,
        generation,
        changed,
        Iterator::chain(flagged, more.iter().map(|wire| (Side::Read, wire))),
    );
}
