// SPDX-License-Identifier: GPL-2.0

//! What a server says of mappings without being asked.
#![deny(unsafe_code)]

use crate::{
    begin::refuse,
    fuse::IomapInode,
    mapping::{Mapping, Place, Side},
    rule::Rule, //
};
use core::ops::Range;
use kernel::{
    bindings::{
        self,
        fuse_iomap_inval_mappings_out,
        fuse_iomap_io,
        fuse_iomap_upsert_mappings_out,
        fuse_range, //
    },
    prelude::*, //
};

/// Puts mappings into the cache.
///
/// May sleep.  Fails with `EUCLEAN` if one breaks a rule, and then changes nothing, or with
/// `ENOMEM`.
pub(crate) fn upsert(inode: IomapInode<'_>, upsert: &fuse_iomap_upsert_mappings_out) -> Result {
    let sides = || {
        [(Side::Read, &upsert.read), (Side::Write, &upsert.write)]
            .into_iter()
            .filter(|(_, wire)| u32::from(wire.type_) != bindings::FUSE_IOMAP_TYPE_NOCACHE)
    };

    for (side, wire) in sides() {
        check(inode, side, wire)?;
    }
    let Some(pool) = inode.pool() else {
        return Ok(());
    };
    let result = inode.state().cache.upsert(pool, sides());
    // What was handed out before is old.
    inode.mappings_changed();
    result
}

/// Checks one of the mappings.
fn check(inode: IomapInode<'_>, side: Side, wire: &fuse_iomap_io) -> Result {
    let mapping = Mapping::parse(wire, side, &inode.limits(), &inode)
        .map_err(|refusal| refuse(inode, wire, refusal))?;

    match mapping.place() {
        // The data is not where the cache could say.
        Place::Inline => Err(refuse(inode, wire, Rule::InlineInUpsert.into())),
        _ => Ok(()),
    }
}

/// Drops mappings from the cache.  When this returns, none of them is found any more.
///
/// May sleep.  Fails with `EINVAL` if there is no such range.
pub(crate) fn invalidate(inode: IomapInode<'_>, inval: &fuse_iomap_inval_mappings_out) -> Result {
    let read = range(&inval.read)?;
    let write = range(&inval.write)?;

    for (side, range) in [(Side::Read, read), (Side::Write, write)] {
        if let Some(range) = range {
            inode.forget_mappings(&[side], range);
        }
    }
    Ok(())
}

/// The range of one side, in bytes, if it is to be dropped.
fn range(wire: &fuse_range) -> Result<Option<Range<u64>>> {
    match wire.length {
        0 => Ok(None),
        u64::MAX => Ok(Some(wire.offset..u64::MAX)),
        length => {
            let end = wire.offset.checked_add(length).ok_or(EINVAL)?;
            Ok(Some(wire.offset..end))
        }
    }
}
