// SPDX-License-Identifier: GPL-2.0

//! What fs/iomap asks, and the mappings that it gets.
#![deny(unsafe_code)]

use crate::{
    begin::{find, find_again, look_up, refuse, InodeMapping, Question, Reply},
    fuse::IomapInode,
    inline,
    mapping::{
        Place,
        Purpose,
        Refusal,
        Token, //
    },
    rule::Rule,
    writeback, //
};
use kernel::{
    bindings::{self, fuse_iomap_end_in, fuse_iomap_io},
    fs::{
        iomap::{self, Ioend, Kind, MapFlag, OpFlag, OpFlags, WrittenFlags},
        Inode,
        Offset, //
    },
    prelude::*, //
};

/// What FUSE implements of fs/iomap's interface.
pub(crate) struct FuseIomap;

/// Operation flags, with the bits that the protocol has for them.
const OP_FLAGS: [(OpFlag, u32); 10] = [
    (OpFlag::Write, bindings::FUSE_IOMAP_OP_WRITE),
    (OpFlag::Zero, bindings::FUSE_IOMAP_OP_ZERO),
    (OpFlag::Report, bindings::FUSE_IOMAP_OP_REPORT),
    (OpFlag::Fault, bindings::FUSE_IOMAP_OP_FAULT),
    (OpFlag::Direct, bindings::FUSE_IOMAP_OP_DIRECT),
    (OpFlag::NoWait, bindings::FUSE_IOMAP_OP_NOWAIT),
    (
        OpFlag::OverwriteOnly,
        bindings::FUSE_IOMAP_OP_OVERWRITE_ONLY,
    ),
    (OpFlag::Unshare, bindings::FUSE_IOMAP_OP_UNSHARE),
    (OpFlag::Atomic, bindings::FUSE_IOMAP_OP_ATOMIC),
    (OpFlag::DontCache, bindings::FUSE_IOMAP_OP_DONTCACHE),
];

/// Translates operation flags for the server.
fn op_flags(flags: OpFlags) -> u32 {
    OP_FLAGS
        .iter()
        .filter(|&&(flag, _)| flags.contains(flag))
        .fold(0, |wire, &(_, bit)| wire | bit)
}

/// Translates a mapping for fs/iomap.
#[inline(always)]
pub(crate) fn translate<'a>(mapping: &InodeMapping<'a>, cookie: u64) -> Result<iomap::Mapping<'a>> {
    let kind = match mapping.place() {
        Place::Hole => Kind::Hole,
        Place::Delalloc => Kind::Delalloc,
        Place::Mapped(device, addr) => Kind::Mapped {
            device: device.block_device(),
            addr,
        },
        Place::Unwritten(device, addr) => Kind::Unwritten {
            device: device.block_device(),
            addr,
        },
        Place::Inline => Kind::Inline,
        // Resolved by `Mapping::for_write`, and the read side never says so.
        Place::PureOverwrite => return Err(EUCLEAN),
    };
    let offset = mapping.offset().ok_or(EUCLEAN)?;

    Ok(iomap::Mapping::new(offset, mapping.length(), kind)
        .ok_or(EUCLEAN)?
        .with_flags(mapping.map_flags())
        .with_private(mapping.token().into_word())
        .with_cookie(cookie))
}

/// Prepares the mapping of a range that is to be zeroed, of which `count` bytes from `pos`.
///
/// Folios beyond the end of the file are not written back, so there must be no zeroes in them
/// either.  Blocks with data there, which a server may have, are zeroed on the device.
fn past_eof<'a>(
    inode: IomapInode<'a>,
    read: &InodeMapping<'a>,
    mut target: InodeMapping<'a>,
    pos: u64,
    count: u64,
) -> Result<InodeMapping<'a>, Refusal> {
    let block_size = inode.limits().block_size;
    let size = inode.vfs().size().unsigned_abs();
    // None in the last block that a file can have.
    let Some(eof) = size.checked_next_multiple_of(block_size) else {
        return Ok(target);
    };

    let has_data = matches!(read.place(), Place::Mapped(..));
    let is_shared = target.has_flag(bindings::FUSE_IOMAP_F_SHARED);
    if pos < eof {
        if has_data || !matches!(target.place(), Place::Hole | Place::Unwritten(..)) {
            target.limit(eof);
        }
        return Ok(target);
    }

    match target.place() {
        // The file would show what is there now, and that is not to be changed.
        Place::Mapped(..) if is_shared && has_data => Err(Rule::SharedBeyondEof.into()),
        Place::Unwritten(..) if has_data => Err(Rule::SharedBeyondEof.into()),
        // Not the file's until something is written to it.
        Place::Mapped(..) if is_shared => Ok(target.into_hole()),
        Place::Mapped(device, addr) => {
            let start = pos - pos % block_size;
            let end = pos
                .saturating_add(count)
                .checked_next_multiple_of(block_size)
                .map_or(target.end(), |end| end.min(target.end()));
            let at = start
                .checked_sub(target.start())
                .and_then(|skip| addr.checked_add(skip))
                .ok_or(EUCLEAN)?;

            device
                .block_device()
                .write_zeroes(at, end.saturating_sub(start))?;
            target.limit(end);
            Ok(target.into_hole())
        }
        Place::Delalloc => Ok(target.into_hole()),
        _ => Ok(target),
    }
}

/// Whether data has to be got from the server: not for a report, and not for direct I/O, which goes
/// through the page cache then.
fn needs_inline_data(reply: &Reply<'_>, flags: OpFlags) -> bool {
    matches!(reply.read.place(), Place::Inline)
        && !flags.contains(OpFlag::Report)
        && !flags.contains(OpFlag::Direct)
}

/// Whether the device writes `length` bytes of a mapping in one piece, and the server says that it
/// is to.
fn is_untorn(target: &InodeMapping<'_>, length: u64) -> bool {
    match target.place() {
        Place::Mapped(device, _) | Place::Unwritten(device, _) => {
            target.has_flag(bindings::FUSE_IOMAP_F_ATOMIC_BIO)
                && device.block_device().can_write_atomically(length)
        }
        _ => false,
    }
}

/// Checks what only direct I/O asks of a mapping, for `length` bytes from `pos`.
///
/// Fails with `ENOTBLK` if it has to go through the page cache, and with `EAGAIN` if it is more
/// than the overwriting that `flags` allow.
fn check_direct(
    inode: IomapInode<'_>,
    reply: &Reply<'_>,
    pos: u64,
    length: u64,
    flags: OpFlags,
) -> Result {
    let target = reply.write.as_ref().unwrap_or(&reply.read);

    match target.place() {
        // The data is not on a device, or not yet: another task may just have made it.
        Place::Inline | Place::Delalloc => return Err(ENOTBLK),
        _ => (),
    }
    let Some(target) = &reply.write else {
        return Ok(());
    };

    // The rest of a block that moves would have to move too.
    let moves = match (reply.read.place(), target.place()) {
        (Place::Mapped(from, old), Place::Mapped(to, new) | Place::Unwritten(to, new)) => {
            from.id() != to.id()
                || old.wrapping_sub(reply.read.start()) != new.wrapping_sub(target.start())
        }
        _ => false,
    };
    let whole_blocks = (pos | pos.saturating_add(length)).is_multiple_of(inode.limits().block_size);
    if moves && !whole_blocks {
        return Err(ENOTBLK);
    }

    // What fails half way has used up a part of the data: whoever tries again, as is expected after
    // this error, would write the rest to the wrong place.
    let careful = flags.contains(OpFlag::OverwriteOnly) || flags.contains(OpFlag::NoWait);
    if careful && target.end() < pos.saturating_add(length) {
        return Err(EAGAIN);
    }
    let overwrites = matches!(target.place(), Place::Mapped(..))
        && !moves
        && !target.has_flag(bindings::FUSE_IOMAP_F_NEW | bindings::FUSE_IOMAP_F_SHARED);
    if flags.contains(OpFlag::OverwriteOnly) && !overwrites {
        return Err(EAGAIN);
    }

    if flags.contains(OpFlag::Atomic) {
        // Blocks that become the file's when all is written are as good as a device that does not
        // tear.
        let becomes = moves && target.has_flag(bindings::FUSE_IOMAP_F_SHARED);
        if !becomes && !is_untorn(target, length) {
            return Err(EOPNOTSUPP);
        }
    }
    Ok(())
}

/// What END says of a mapping that was used for `written` of `length` bytes from `pos`.
fn end_request(
    inode: IomapInode<'_>,
    pos: Offset,
    length: u64,
    written: u64,
    opflags: u32,
    mapping: &iomap::Finished<'_>,
) -> Result<fuse_iomap_end_in> {
    let token = Token::from_word(mapping.private());
    let mut flags = u32::from(token.flags);
    if mapping.flags().contains(MapFlag::SizeChanged) {
        flags |= bindings::FUSE_IOMAP_F_SIZE_CHANGED;
    }
    if mapping.flags().contains(MapFlag::Stale) {
        flags |= bindings::FUSE_IOMAP_F_STALE;
    }

    Ok(fuse_iomap_end_in {
        opflags,
        reserved: 0,
        attr_ino: inode.attr_ino(),
        pos: pos.unsigned_abs(),
        count: length,
        written: i64::try_from(written).map_err(|_| EIO)?,
        map: fuse_iomap_io {
            offset: mapping.offset().unsigned_abs(),
            length: mapping.length(),
            addr: mapping.addr(),
            type_: mapping.raw_type(),
            // CAST: All flags of the protocol are below bit 16.
            flags: flags as u16,
            dev: token.dev,
        },
    })
}

/// Tells the server that a mapping has been used that was only looked at, if it wants to know.
pub(crate) fn end_report(
    inode: IomapInode<'_>,
    pos: Offset,
    length: u64,
    written: u64,
    opflags: u32,
    mapping: &iomap::Finished<'_>,
) -> Result {
    if !Token::from_word(mapping.private()).wants_end() {
        return Ok(());
    }
    let request = end_request(inode, pos, length, written, opflags, mapping)?;

    inode.trace_end(&request);
    inode.send_end(&request)
}

impl iomap::Operations for FuseIomap {
    // It has one caller, and what it returns is large.
    #[inline(always)]
    fn begin<'a>(
        inode: &'a Inode,
        pos: Offset,
        length: u64,
        flags: OpFlags,
    ) -> Result<iomap::Mappings<'a>> {
        let inode = IomapInode::new(inode).ok_or(EIO)?;
        let purpose = if flags.contains(OpFlag::Unshare) {
            Some(Purpose::Unshare)
        } else if flags.contains(OpFlag::Write) && flags.contains(OpFlag::OverwriteOnly) {
            Some(Purpose::Overwrite)
        } else if flags.contains(OpFlag::Write) && flags.contains(OpFlag::Direct) {
            Some(Purpose::Direct)
        } else if flags.contains(OpFlag::Write) && flags.contains(OpFlag::Fault) {
            Some(Purpose::Fault)
        } else if flags.contains(OpFlag::Write) {
            Some(Purpose::Write)
        } else if flags.contains(OpFlag::Zero) {
            Some(Purpose::Zero)
        } else {
            None
        };
        let start = u64::try_from(pos).map_err(|_| EINVAL)?;
        let question = Question {
            opflags: op_flags(flags),
            pos: start,
            count: length,
            purpose,
        };
        let mut reply = find(inode, &question)?;
        if needs_inline_data(&reply, flags) {
            match inline::load(inode, &reply.read) {
                Ok(data) => {
                    let mapping = reply.write.as_ref().unwrap_or(&reply.read);
                    return Ok(translate(mapping, reply.cookie)?
                        .with_inline_data(data)
                        .into());
                }
                // Perhaps it is in blocks by now.
                Err(error) => {
                    reply = find_again(inode, &question)?;
                    if needs_inline_data(&reply, flags) {
                        return Err(error);
                    }
                }
            }
        }
        let cookie = reply.cookie;
        if flags.contains(OpFlag::Direct) {
            check_direct(inode, &reply, start, length, flags)?;
        }
        if flags.contains(OpFlag::Report) {
            reply.read.narrow(start, length, &inode.limits());
        }

        let Some(mut target) = reply.write else {
            return Ok(translate(&reply.read, cookie)?.into());
        };
        if purpose == Some(Purpose::Zero) {
            let wire = target.wire();
            target = past_eof(inode, &reply.read, target, start, length)
                .map_err(|refusal| refuse(inode, &wire, refusal))?;
        }

        let mut translated = translate(&target, cookie)?;
        if flags.contains(OpFlag::Atomic) && is_untorn(&target, length) {
            translated = translated.with_flags(MapFlag::AtomicBio.into());
        }
        Ok(iomap::Mappings {
            target: translated,
            source: match (purpose, target.place(), reply.read.place()) {
                // What fs/iomap takes for "no source", and there is nothing to zero in a hole.
                (_, _, Place::Hole) | (Some(Purpose::Zero), Place::Hole, _) => None,
                // Direct I/O has no use for it.
                (Some(Purpose::Direct | Purpose::Overwrite), _, _) => None,
                _ => Some(translate(&reply.read, cookie)?),
            },
        })
    }

    fn end(
        inode: &Inode,
        pos: Offset,
        length: u64,
        written: u64,
        flags: OpFlags,
        mapping: &iomap::Finished<'_>,
    ) -> Result {
        let inode = IomapInode::new(inode).ok_or(EIO)?;
        let token = Token::from_word(mapping.private());
        let writes = flags.contains(OpFlag::Write) || flags.contains(OpFlag::Zero);
        if mapping.is_inline() && writes && written > 0 {
            inline::store(inode, pos, written, mapping);
        }
        let size_changed = mapping.flags().contains(MapFlag::SizeChanged);
        let short_write = flags.contains(OpFlag::Write) && written < length;

        if !token.wants_end() && !size_changed && !short_write {
            return Ok(());
        }

        let request = end_request(inode, pos, length, written, op_flags(flags), mapping)?;
        // The server may take back what was not written, and use it for something else.
        let taken_back = short_write.then(|| request.pos..request.pos.saturating_add(length));
        if let Some(range) = &taken_back {
            inode.mappings_changed_in(range.clone());
        }
        inode.trace_end(&request);
        let answer = inode.send_end(&request);
        if let Some(range) = taken_back {
            inode.mappings_changed_in(range);
            inode.blocks_changed();
        }
        answer
    }
}

impl iomap::DirectOperations for FuseIomap {
    #[inline(always)]
    fn begin_simple<'a>(inode: &'a Inode, pos: Offset, length: u64) -> Result<iomap::Mapping<'a>> {
        let inode = IomapInode::new(inode).ok_or(EIO)?;
        let question = Question {
            opflags: bindings::FUSE_IOMAP_OP_DIRECT,
            pos: u64::try_from(pos)?,
            count: length,
            purpose: None,
        };

        // What has to be asked for may take more than one question, and an END.
        match look_up(inode, &question) {
            Some(reply) if !reply.read.token().wants_end() => translate(&reply.read, 0),
            _ => Err(ENOTBLK),
        }
    }

    fn end_io(
        inode: &Inode,
        pos: Offset,
        size: u64,
        result: Result,
        flags: WrittenFlags,
    ) -> Result {
        let inode = IomapInode::new(inode).ok_or(EIO)?;

        writeback::complete_direct(inode, pos, size, result, flags)
    }
}

impl iomap::WriteOperations for FuseIomap {
    fn is_valid(inode: &Inode, cookie: u64) -> bool {
        IomapInode::new(inode).is_some_and(|inode| inode.cookie() == cookie)
    }
}

impl iomap::WritebackOperations for FuseIomap {
    fn map_writeback<'a>(inode: &'a Inode, pos: Offset, length: u64) -> Result<iomap::Mapping<'a>> {
        const OP_FLAGS: u32 = bindings::FUSE_IOMAP_OP_WRITE | bindings::FUSE_IOMAP_OP_WRITEBACK;

        let inode = IomapInode::new(inode).ok_or(EIO)?;
        let pos = u64::try_from(pos)?;
        let question = Question {
            opflags: OP_FLAGS,
            pos,
            count: length,
            purpose: Some(Purpose::Writeback),
        };
        let reply = find(inode, &question)?;
        let target = reply.write.ok_or(EIO)?;
        // Only the device matters to what happens later, and I/O is merged if this is the same.
        let token = Token {
            flags: 0,
            ..target.token()
        };

        Ok(translate(&target, reply.cookie)?.with_private(token.into_word()))
    }

    fn discard(inode: &Inode, pos: Offset, length: u64, error: Error) {
        if let Some(inode) = IomapInode::new(inode) {
            inode.tell_discarded(pos, length, error);
        }
    }

    fn complete(ioend: Ioend) -> Option<Ioend> {
        writeback::complete(ioend)
    }
}
