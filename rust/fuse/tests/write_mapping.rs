// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: both sides of a reply together, and where is written.
#![deny(unsafe_code)]

use super::*;

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
mod both_sides {
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
}
