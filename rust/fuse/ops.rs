// SPDX-License-Identifier: GPL-2.0

//! The mappings of an inode, for fs/iomap: asked of the server, checked, handed on.
#![deny(unsafe_code)]

use crate::{
    fuse::{Device, IomapInode},
    mapping::{DeviceLimits, Devices, Limits, Mapping, Place, Refusal, Side, Token}, //
};
use kernel::{
    bindings::{self, fuse_iomap_begin_in, fuse_iomap_end_in, fuse_iomap_io},
    fs::{
        iomap::{self, Kind, MapFlag, OpFlag, OpFlags},
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

/// The devices of a connection, as seen from one of its inodes.
impl<'a> Devices for IomapInode<'a> {
    type Device = &'a Device;

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

/// Checks one side of a reply, and tells the log and the trace what is wrong with it.
fn parse<'a>(
    inode: IomapInode<'a>,
    wire: &fuse_iomap_io,
    side: Side,
    limits: &Limits,
    pos: u64,
) -> Result<Mapping<&'a Device>> {
    let mapping = Mapping::parse(wire, side, limits, &inode);
    let mapping = match (mapping, side) {
        (Ok(mapping), Side::Read) => mapping.for_read(pos, limits).map_err(Refusal::Rule),
        (mapping, _) => mapping,
    };

    mapping.map_err(|refusal| match refusal {
        Refusal::Rule(rule) => {
            inode.report_rejected(rule, wire);
            EUCLEAN
        }
        Refusal::Error(error) => error,
    })
}

impl iomap::Operations for FuseIomap {
    const HAS_END: bool = true;

    fn begin<'a>(
        inode: &'a Inode,
        pos: Offset,
        length: u64,
        flags: OpFlags,
    ) -> Result<iomap::Mapping<'a>> {
        let inode = IomapInode::new(inode).ok_or(EIO)?;
        if inode.is_bad() {
            return Err(EIO);
        }
        // Writing through iomap is not there yet, and nothing lets a write come this far.
        if flags.contains(OpFlag::Write) {
            return Err(EROFS);
        }

        let pos = u64::try_from(pos).map_err(|_| EINVAL)?;
        let request = fuse_iomap_begin_in {
            opflags: op_flags(flags),
            reserved: 0,
            attr_ino: inode.attr_ino(),
            pos,
            count: length,
        };
        inode.trace_begin(&request);
        let reply = inode.send_begin(&request)?;

        let limits = inode.limits();
        let read = parse(inode, &reply.read, Side::Read, &limits, pos)?;
        inode.trace_mapping(&reply.read);
        // A read does not use this side, but a server that fills it with garbage has gone wrong.
        parse(inode, &reply.write, Side::Write, &limits, pos)?;

        let kind = match read.place() {
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
            // The read side of a reply never says so.
            Place::PureOverwrite => return Err(EUCLEAN),
        };
        let offset = read.offset().ok_or(EUCLEAN)?;

        Ok(iomap::Mapping::new(offset, read.length(), kind)
            .ok_or(EUCLEAN)?
            .with_flags(read.map_flags())
            .with_private(read.token().into_word()))
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
        let size_changed = mapping.flags().contains(MapFlag::SizeChanged);
        let short_write = flags.contains(OpFlag::Write) && written < length;

        if !token.wants_end() && !size_changed && !short_write {
            return Ok(());
        }

        let mut wire_flags = u32::from(token.flags);
        if size_changed {
            wire_flags |= bindings::FUSE_IOMAP_F_SIZE_CHANGED;
        }
        if mapping.flags().contains(MapFlag::Stale) {
            wire_flags |= bindings::FUSE_IOMAP_F_STALE;
        }

        let request = fuse_iomap_end_in {
            opflags: op_flags(flags),
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
                flags: wire_flags as u16,
                dev: token.dev,
            },
        };
        inode.trace_end(&request);
        inode.send_end(&request)
    }
}
