// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: every rule for a mapping by itself, and what a reader is given.
#![deny(unsafe_code)]

use super::*;

#[kunit_tests(fuse_iomap_mapping)]
mod rules {
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

    #[test]
    fn reports_are_of_what_was_asked() -> Result {
        let mut mapping = parse(&good(MAPPED), Side::Read).map_err(|_| EINVAL)?;

        mapping.narrow(8193, u64::MAX, &LIMITS);
        assert_eq!((mapping.start(), mapping.end()), (8192, 12288));
        assert_eq!(mapping.place(), Place::Mapped(1, (1 << 20) + 4096));

        let mut mapping = parse(&good(HOLE), Side::Read).map_err(|_| EINVAL)?;

        mapping.narrow(5121, 1, &LIMITS);
        assert_eq!((mapping.start(), mapping.end()), (5120, 6144));
        assert_eq!(mapping.place(), Place::Hole);
        Ok(())
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
