// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: every rule for mappings, and what becomes of a good one.
#![deny(unsafe_code)]

use crate::{
    mapping::{
        DeviceLimits,
        Devices,
        Limits,
        Mapping,
        Place,
        Purpose,
        Refusal,
        Side,
        Token,
        NO_ADDR, //
    },
    rule::Rule, //
};
use kernel::{
    bindings::{self, fuse_iomap_io},
    fs::iomap::{MapFlag, MapFlags},
    page::PAGE_SIZE,
    prelude::*, //
};

mod config;

/// Two devices: number 1 with logical blocks of 512 bytes, and number 2 with 4096.
struct TwoDevices;

/// Size of both.
const DEVICE_BYTES: u64 = 1 << 30;

impl Devices for TwoDevices {
    type Device = u32;

    fn find(&self, id: u32) -> Result<Option<u32>> {
        match id {
            1 | 2 => Ok(Some(id)),
            99 => Err(ENOMEM),
            _ => Ok(None),
        }
    }

    fn limits(device: u32) -> DeviceLimits {
        DeviceLimits {
            logical_block: if device == 1 { 512 } else { 4096 },
            bytes: DEVICE_BYTES,
        }
    }
}

/// An inode with blocks of 1 KiB in a filesystem with files up to 1 TiB.
const LIMITS: Limits = Limits {
    block_size: 1024,
    may_cache: false,
    max_bytes: 1 << 40,
};

/// Shorthand for the types of the protocol.
const HOLE: u32 = bindings::FUSE_IOMAP_TYPE_HOLE;
const DELALLOC: u32 = bindings::FUSE_IOMAP_TYPE_DELALLOC;
const MAPPED: u32 = bindings::FUSE_IOMAP_TYPE_MAPPED;
const UNWRITTEN: u32 = bindings::FUSE_IOMAP_TYPE_UNWRITTEN;
const INLINE: u32 = bindings::FUSE_IOMAP_TYPE_INLINE;
const NOCACHE: u32 = bindings::FUSE_IOMAP_TYPE_NOCACHE;
const RETRY_CACHE: u32 = bindings::FUSE_IOMAP_TYPE_RETRY_CACHE;
const PURE_OVERWRITE: u32 = bindings::FUSE_IOMAP_TYPE_PURE_OVERWRITE;

/// A mapping of 8 KiB at 4 KiB that keeps all rules.
fn good(kind: u32) -> fuse_iomap_io {
    let blocks = kind == MAPPED || kind == UNWRITTEN;

    fuse_iomap_io {
        offset: if kind == INLINE { 0 } else { 4096 },
        length: if kind == INLINE { 1024 } else { 8192 },
        addr: if blocks { 1 << 20 } else { NO_ADDR },
        type_: kind as u16,
        flags: 0,
        dev: if blocks { 1 } else { 0 },
    }
}

/// Checks a mapping on a side, as for an operation at the start of its range.
fn parse(wire: &fuse_iomap_io, side: Side) -> Result<Mapping<u32>, Refusal> {
    Mapping::parse(wire, side, &LIMITS, &TwoDevices)
}

/// Whether a mapping is refused, on both sides, because of this rule.
fn refused(wire: &fuse_iomap_io, rule: Rule) -> bool {
    [Side::Read, Side::Write]
        .iter()
        .all(|&side| matches!(parse(wire, side), Err(Refusal::Rule(found)) if found == rule))
}

/// Changes a good mapping and says whether that breaks this rule.
fn breaks(kind: u32, rule: Rule, change: impl FnOnce(&mut fuse_iomap_io)) -> bool {
    let mut wire = good(kind);
    let was_good = parse(&wire, Side::Write).is_ok();

    change(&mut wire);
    was_good && refused(&wire, rule)
}

#[kunit_tests(fuse_iomap_mapping)]
mod mapping {
    use super::*;

    #[test]
    fn good_mappings_are_accepted() {
        for kind in [HOLE, DELALLOC, MAPPED, UNWRITTEN, INLINE] {
            assert!(parse(&good(kind), Side::Read).is_ok());
            assert!(parse(&good(kind), Side::Write).is_ok());
        }
        assert!(parse(&good(PURE_OVERWRITE), Side::Write).is_ok());
    }

    #[test]
    fn places_are_what_was_sent() {
        let place = |kind| parse(&good(kind), Side::Write).map(|mapping| mapping.place());

        assert_eq!(place(HOLE), Ok(Place::Hole));
        assert_eq!(place(DELALLOC), Ok(Place::Delalloc));
        assert_eq!(place(MAPPED), Ok(Place::Mapped(1, 1 << 20)));
        assert_eq!(place(UNWRITTEN), Ok(Place::Unwritten(1, 1 << 20)));
        assert_eq!(place(INLINE), Ok(Place::Inline));
        assert_eq!(place(PURE_OVERWRITE), Ok(Place::PureOverwrite));
    }

    #[test]
    fn unknown_type() {
        for kind in [5, 6, 100, 252, 256, 0x102, 0xffff] {
            assert!(breaks(HOLE, Rule::UnknownType, |map| map.type_ = kind));
        }
    }

    #[test]
    fn nocache_in_reply() {
        assert!(refused(&good(NOCACHE), Rule::NocacheInReply));
    }

    #[test]
    fn retry_without_cache() {
        assert!(refused(&good(RETRY_CACHE), Rule::RetryWithoutCache));
    }

    #[test]
    fn pure_overwrite_in_read() {
        let found = parse(&good(PURE_OVERWRITE), Side::Read).err();

        assert_eq!(found, Some(Refusal::Rule(Rule::PureOverwriteInRead)));
    }

    #[test]
    fn unknown_flags() {
        // Bits 8 and 9 are for the kernel to send, the others are nobody's.
        for bit in 8..16 {
            assert!(breaks(MAPPED, Rule::UnknownFlags, |map| map.flags = 1 << bit));
        }
        for bit in 0..8 {
            let mut wire = good(MAPPED);
            wire.flags = 1 << bit;
            assert!(parse(&wire, Side::Read).is_ok());
        }
    }

    #[test]
    fn zero_length() {
        for kind in [HOLE, DELALLOC, MAPPED, UNWRITTEN, INLINE] {
            assert!(breaks(kind, Rule::ZeroLength, |map| map.length = 0));
        }
    }

    #[test]
    fn unaligned_offset() {
        for offset in [1, 512, 1023, 4097, u64::MAX] {
            assert!(breaks(MAPPED, Rule::UnalignedOffset, |map| map.offset = offset));
        }
    }

    #[test]
    fn unaligned_length() {
        for length in [1, 512, 1025, u64::MAX] {
            assert!(breaks(MAPPED, Rule::UnalignedLength, |map| map.length = length));
        }
    }

    #[test]
    fn range_overflow() {
        let last = 0u64.wrapping_sub(1024);

        assert!(breaks(HOLE, Rule::RangeOverflow, |map| map.length = last));
        assert!(breaks(HOLE, Rule::RangeOverflow, |map| {
            map.offset = last;
            map.length = 1024;
        }));
        // The largest that fits is only too large for a device.
        assert!(breaks(MAPPED, Rule::BeyondDevice, |map| map.length = last - 4096));
    }

    #[test]
    fn beyond_maxbytes() {
        assert!(breaks(HOLE, Rule::BeyondMaxbytes, |map| map.offset = 1 << 40));
        assert!(breaks(HOLE, Rule::BeyondMaxbytes, |map| map.offset = 1 << 62));

        let mut wire = good(HOLE);
        wire.offset = (1 << 40) - 1024;
        assert!(parse(&wire, Side::Read).is_ok());
    }

    #[test]
    fn inline_not_at_zero() {
        assert!(breaks(INLINE, Rule::InlineNotAtZero, |map| map.offset = 1024));
    }

    #[test]
    fn inline_too_long() {
        let page = PAGE_SIZE as u64;

        assert!(breaks(INLINE, Rule::InlineTooLong, |map| map.length = page + 1024));

        let mut wire = good(INLINE);
        wire.length = page;
        assert!(parse(&wire, Side::Read).is_ok());
    }

    #[test]
    fn unexpected_address() {
        for kind in [HOLE, DELALLOC, INLINE] {
            for addr in [0, 4096, NO_ADDR - 1] {
                assert!(breaks(kind, Rule::UnexpectedAddress, |map| map.addr = addr));
            }
        }

        let mut wire = good(PURE_OVERWRITE);
        wire.addr = 0;
        let found = parse(&wire, Side::Write).err();
        assert_eq!(found, Some(Refusal::Rule(Rule::UnexpectedAddress)));
    }

    #[test]
    fn no_address() {
        for kind in [MAPPED, UNWRITTEN] {
            assert!(breaks(kind, Rule::NoAddress, |map| map.addr = NO_ADDR));
        }
    }

    #[test]
    fn no_device() {
        for kind in [MAPPED, UNWRITTEN] {
            for dev in [0, 3, u32::MAX] {
                assert!(breaks(kind, Rule::NoDevice, |map| map.dev = dev));
            }
        }
    }

    #[test]
    fn error_of_the_device_look_up_is_no_rule() {
        let mut wire = good(MAPPED);
        wire.dev = 99;

        assert_eq!(parse(&wire, Side::Read).err(), Some(Refusal::Error(ENOMEM)));
    }

    #[test]
    fn block_below_device() {
        // The inode's blocks are 1 KiB, the device's 4 KiB.
        for kind in [MAPPED, UNWRITTEN] {
            assert!(breaks(kind, Rule::BlockBelowDevice, |map| map.dev = 2));
        }
    }

    #[test]
    fn unaligned_address() {
        for addr in [1, 511, 513, (1 << 20) + 256] {
            assert!(breaks(MAPPED, Rule::UnalignedAddress, |map| map.addr = addr));
        }
        // The device's blocks count, not the inode's.
        let mut wire = good(MAPPED);
        wire.addr = (1 << 20) + 512;
        assert!(parse(&wire, Side::Read).is_ok());
    }

    #[test]
    fn beyond_device() {
        for addr in [
            DEVICE_BYTES - 8192 + 512,
            DEVICE_BYTES,
            1 << 50,
            NO_ADDR - 511,
        ] {
            for kind in [MAPPED, UNWRITTEN] {
                assert!(breaks(kind, Rule::BeyondDevice, |map| map.addr = addr));
            }
        }

        let mut wire = good(MAPPED);
        wire.addr = DEVICE_BYTES - 8192;
        assert!(parse(&wire, Side::Read).is_ok());
    }

    #[test]
    fn not_containing_pos() {
        // It covers 4096 to 12287.
        for pos in [12288, 12289, 1 << 30] {
            let found = parse(&good(MAPPED), Side::Read)
                .map(|mapping| mapping.for_read(pos, &LIMITS).err());
            assert_eq!(found, Ok(Some(Rule::NotContainingPos)));
        }
    }

    #[test]
    fn read_of_a_mapping_that_contains_pos_is_not_changed() {
        for pos in [4096, 5000, 12287] {
            let mapping =
                parse(&good(MAPPED), Side::Read).map(|mapping| mapping.for_read(pos, &LIMITS));
            assert!(matches!(mapping, Ok(Ok(mapping))
                if mapping.offset() == Some(4096)
                    && mapping.length() == 8192
                    && mapping.place() == Place::Mapped(1, 1 << 20)));
        }
    }

    #[test]
    fn read_before_a_mapping_is_a_hole_up_to_there() {
        for (pos, start) in [(0, 0), (1, 0), (1023, 0), (1024, 1024), (4095, 3072)] {
            let mapping =
                parse(&good(MAPPED), Side::Read).map(|mapping| mapping.for_read(pos, &LIMITS));
            assert!(matches!(mapping, Ok(Ok(mapping))
                if mapping.offset() == Some(start)
                    && mapping.length() == 4096 - start as u64
                    && mapping.place() == Place::Hole
                    && mapping.token().dev == 0));
        }
    }

    #[test]
    fn flags_about_writes_do_not_reach_a_read() {
        let mut wire = good(MAPPED);
        wire.flags = 0xff;
        let flags = parse(&wire, Side::Read).map(|mapping| mapping.map_flags());

        let expected: MapFlags =
            MapFlag::New | MapFlag::Dirty | MapFlag::Shared | MapFlag::Merged | MapFlag::Boundary;
        assert_eq!(flags, Ok(expected));
    }

    #[test]
    fn token_survives_the_word() {
        for dev in [0, 1, 1 << 31, u32::MAX] {
            for flags in [0, 0x80, 0xffff] {
                let token = Token { dev, flags };
                assert_eq!(Token::from_word(token.into_word()), token);
                assert_eq!(token.wants_end(), flags & 0x80 != 0);
            }
        }
    }
}

/// The purposes of a mapping to write to.
const PURPOSES: [Purpose; 4] = [
    Purpose::Write,
    Purpose::Unshare,
    Purpose::Zero,
    Purpose::Writeback,
];

/// What comes of both sides of a reply, for writing at `pos`.
fn write_at(
    pos: u64,
    purpose: Purpose,
    read: &fuse_iomap_io,
    write: &fuse_iomap_io,
) -> Result<Mapping<u32>, Refusal> {
    let read = parse(read, Side::Read)?.for_read(pos, &LIMITS)?;

    Ok(parse(write, Side::Write)?.for_write(&read, pos, purpose)?)
}

/// Whether writing at the start of a good mapping is refused because of this rule.
fn write_refused(purpose: Purpose, read: u32, write: &fuse_iomap_io, rule: Rule) -> bool {
    let found = write_at(4096, purpose, &good(read), write);

    matches!(found, Err(Refusal::Rule(found)) if found == rule)
}

#[kunit_tests(fuse_iomap_write_mapping)]
mod write_mapping {
    use super::*;

    #[test]
    fn pure_overwrite_is_the_read_side() {
        for purpose in PURPOSES {
            let target = write_at(4096, purpose, &good(MAPPED), &good(PURE_OVERWRITE));
            let place = target.map(|target| (target.place(), target.token().dev));

            assert_eq!(place, Ok((Place::Mapped(1, 1 << 20), 1)));
        }
    }

    #[test]
    fn another_place_is_taken_as_it_is() {
        let elsewhere = fuse_iomap_io {
            addr: 2 << 20,
            flags: bindings::FUSE_IOMAP_F_SHARED as u16,
            ..good(MAPPED)
        };

        for purpose in PURPOSES {
            let target = write_at(4096, purpose, &good(MAPPED), &elsewhere);
            let found = target.map(|target| (target.place(), target.map_flags()));

            assert_eq!(
                found,
                Ok((Place::Mapped(1, 2 << 20), MapFlags::from(MapFlag::Shared)))
            );
        }
    }

    #[test]
    fn not_containing_pos() {
        let later = fuse_iomap_io {
            offset: 8192,
            ..good(UNWRITTEN)
        };
        let earlier = fuse_iomap_io {
            offset: 0,
            length: 4096,
            ..good(UNWRITTEN)
        };

        for purpose in PURPOSES {
            for write in [&later, &earlier] {
                assert!(write_refused(purpose, HOLE, write, Rule::NotContainingPos));
            }
        }
    }

    #[test]
    fn anon_write() {
        let anon = fuse_iomap_io {
            flags: bindings::FUSE_IOMAP_F_ANON_WRITE as u16,
            ..good(MAPPED)
        };

        for purpose in PURPOSES {
            assert!(write_refused(purpose, HOLE, &anon, Rule::AnonWrite));
            // On the read side it is only a matter of what is written there.
            let target = write_at(4096, purpose, &anon, &good(UNWRITTEN));
            assert!(target.is_ok());
            let target = write_at(4096, purpose, &anon, &good(PURE_OVERWRITE));
            assert_eq!(target.err(), Some(Refusal::Rule(Rule::AnonWrite)));
        }
    }

    #[test]
    fn hole_for_write() {
        for write in [good(HOLE), good(PURE_OVERWRITE)] {
            assert!(write_refused(
                Purpose::Write,
                HOLE,
                &write,
                Rule::HoleForWrite
            ));
        }
        for purpose in [Purpose::Unshare, Purpose::Zero, Purpose::Writeback] {
            let target = write_at(4096, purpose, &good(HOLE), &good(PURE_OVERWRITE));

            assert_eq!(target.map(|target| target.place()), Ok(Place::Hole));
        }
    }

    #[test]
    fn writeback_needs_blocks() {
        assert!(write_refused(
            Purpose::Writeback,
            HOLE,
            &good(DELALLOC),
            Rule::DelallocInWriteback
        ));
        let found = write_at(0, Purpose::Writeback, &good(INLINE), &good(INLINE));
        assert_eq!(found.err(), Some(Refusal::Rule(Rule::InlineInWriteback)));
        assert!(write_at(4096, Purpose::Write, &good(HOLE), &good(DELALLOC)).is_ok());
    }

    #[test]
    fn direct_writes_need_blocks() {
        for purpose in [Purpose::Direct, Purpose::Fault] {
            assert!(write_refused(
                purpose,
                HOLE,
                &good(HOLE),
                Rule::HoleForWrite
            ));
        }
        assert!(write_refused(
            Purpose::Direct,
            HOLE,
            &good(DELALLOC),
            Rule::DelallocForDirect
        ));
        assert!(write_at(4096, Purpose::Fault, &good(HOLE), &good(DELALLOC)).is_ok());
        // Whether there is something to overwrite is only asked.
        for write in [good(HOLE), good(DELALLOC)] {
            assert!(write_at(4096, Purpose::Overwrite, &good(HOLE), &write).is_ok());
        }
    }

    #[test]
    fn data_in_the_inode_is_on_both_sides() {
        let blocks = fuse_iomap_io {
            offset: 0,
            ..good(UNWRITTEN)
        };
        let hole = fuse_iomap_io {
            offset: 0,
            ..good(HOLE)
        };

        for purpose in [Purpose::Write, Purpose::Zero, Purpose::Unshare] {
            for (read, write) in [(&good(INLINE), &blocks), (&hole, &good(INLINE))] {
                let found = write_at(0, purpose, read, write);
                assert_eq!(found.err(), Some(Refusal::Rule(Rule::InlineOnOneSide)));
            }
            assert!(write_at(0, purpose, &good(INLINE), &good(INLINE)).is_ok());
        }
        let found = write_at(0, Purpose::Fault, &good(INLINE), &good(INLINE));
        assert_eq!(found.err(), Some(Refusal::Rule(Rule::InlineInFault)));
    }

    #[test]
    fn the_cache_flag_is_an_extension() {
        let flagged = fuse_iomap_io {
            flags: bindings::FUSE_IOMAP_F_CACHE as u16,
            ..good(MAPPED)
        };
        assert!(refused(&flagged, Rule::UnknownFlags));

        let limits = Limits {
            may_cache: true,
            ..LIMITS
        };
        for side in [Side::Read, Side::Write] {
            let mapping = Mapping::parse(&flagged, side, &limits, &TwoDevices);
            // The server does not get it back with END.
            assert_eq!(mapping.map(|mapping| mapping.token().flags), Ok(0));
        }
    }

    #[test]
    fn blocks_for_a_hole_are_new_and_end_with_it() {
        let hole = fuse_iomap_io {
            length: 1024,
            ..good(HOLE)
        };
        let target = write_at(4096, Purpose::Write, &hole, &good(MAPPED));
        let found = target.map(|target| (target.length(), target.map_flags()));

        assert_eq!(found, Ok((1024, MapFlags::from(MapFlag::New))));

        // With unwritten blocks fs/iomap knows that there is nothing to read.
        let target = write_at(4096, Purpose::Write, &hole, &good(UNWRITTEN));
        let found = target.map(|target| (target.length(), target.map_flags()));
        assert_eq!(found, Ok((1024, MapFlags::default())));
    }

    #[test]
    fn limits_and_holes() -> Result {
        let mut mapping = parse(&good(MAPPED), Side::Read).map_err(|_| EINVAL)?;

        mapping.limit(1 << 20);
        assert_eq!(mapping.end(), 12288);
        mapping.limit(8192);
        assert_eq!(mapping.end(), 8192);
        // Not even a block would be left.
        mapping.limit(4096);
        assert_eq!(mapping.end(), 8192);

        let hole = mapping.into_hole();
        assert_eq!(hole.place(), Place::Hole);
        assert_eq!(hole.wire().addr, NO_ADDR);
        assert_eq!(hole.token().dev, 0);
        Ok(())
    }
}
