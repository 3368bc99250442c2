// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: what a server may answer to CONFIG.
#![deny(unsafe_code)]

use crate::config::{self, offer, Config, Times};
use core::mem::size_of;
use kernel::{
    bindings::{self, fuse_iomap_config_out},
    prelude::*, //
};

/// The bound that the kernel offers, in bytes.
const BOUND: u32 = 1 << 20;

/// Checks a whole answer, where blocks can have these sizes.
fn parse_with(
    answer: &fuse_iomap_config_out,
    smallest: u32,
    largest: u32,
) -> Result<Config, &'static CStr> {
    let length = size_of::<fuse_iomap_config_out>();

    config::parse(&offer(BOUND), answer, length, &(smallest..=largest))
}

/// Checks a whole answer.
fn parse(answer: &fuse_iomap_config_out) -> Result<Config, &'static CStr> {
    parse_with(answer, 512, 1 << 16)
}

/// A good answer that sets every field.
fn full() -> fuse_iomap_config_out {
    let mut answer = fuse_iomap_config_out {
        flags: 0x7f,
        s_uuid_len: 16,
        s_blocksize: 4096,
        s_max_links: 65_000,
        s_time_gran: 1,
        s_time_min: -(1 << 31),
        s_time_max: 1 << 33,
        s_maxbytes: 1 << 44,
        ..Default::default()
    };
    for (to, from) in answer.s_id.iter_mut().zip(b"vda1") {
        *to = *from;
    }
    for (to, from) in answer.s_uuid.iter_mut().zip(1..) {
        *to = from;
    }
    answer
}

#[kunit_tests(fuse_iomap_config)]
mod answers {
    use super::*;

    #[test]
    fn nothing_set_changes_nothing() {
        let config = parse(&fuse_iomap_config_out::default());
        let expected = Config {
            cache_bytes: BOUND,
            ..Default::default()
        };

        assert_eq!(config, Ok(expected));
    }

    #[test]
    fn the_bound_is_the_servers() {
        for bytes in [0, 1, 1 << 16, u32::MAX] {
            let answer = fuse_iomap_config_out {
                flags: u64::from(bindings::FUSE_IOMAP_CONFIG_CACHE_MAXBYTES),
                cache_maxbytes: bytes,
                ..Default::default()
            };
            let found = parse(&answer).map(|config| config.cache_bytes);
            assert_eq!(found, Ok(bytes));

            // A field that is not set may hold anything.
            let answer = fuse_iomap_config_out { flags: 0, ..answer };
            let found = parse(&answer).map(|config| config.cache_bytes);
            assert_eq!(found, Ok(BOUND));
        }
    }

    #[test]
    fn each_extension_is_taken_alone() {
        let with = |flags| {
            let answer = fuse_iomap_config_out {
                flags,
                ..Default::default()
            };
            let extensions = parse(&answer).map(|config| config.extensions);
            extensions.map(|on| (on.cache_replies(), on.batch_mappings(), on.batch_ioend()))
        };

        assert_eq!(with(1 << 32), Ok((true, false, false)));
        assert_eq!(with(1 << 33), Ok((false, true, false)));
        assert_eq!(with(1 << 34), Ok((false, false, true)));
        assert_eq!(with(7 << 32), Ok((true, true, true)));
    }

    #[test]
    fn unknown_flags_and_padding_are_refused() {
        for bit in (7..64).filter(|bit| !(32..35).contains(bit)) {
            let answer = fuse_iomap_config_out {
                flags: 1 << bit,
                ..Default::default()
            };
            assert_eq!(parse(&answer), Err(c"unknown flags"));
        }

        let padded = [
            fuse_iomap_config_out {
                s_pad: [0, 0, 1],
                ..Default::default()
            },
            fuse_iomap_config_out {
                zero: 1,
                ..Default::default()
            },
        ];
        for answer in &padded {
            assert_eq!(parse(answer), Err(c"padding is not zero"));
        }
    }

    #[test]
    fn every_field_is_taken() {
        let mut name = [0; 32];
        name[..4].copy_from_slice(b"vda1");
        let expected = Config {
            cache_bytes: 0,
            name: Some(name),
            uuid: Some(([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], 16)),
            block_size: Some(4096),
            max_links: Some(65_000),
            times: Some(Times {
                granularity: 1,
                first: -(1 << 31),
                last: 1 << 33,
            }),
            max_bytes: Some(1 << 44),
            ..Default::default()
        };
        assert_eq!(parse(&full()), Ok(expected));

        // Fields that are not set may hold anything.
        let nothing = Config {
            cache_bytes: BOUND,
            ..Default::default()
        };
        let garbage = fuse_iomap_config_out {
            flags: 0,
            s_blocksize: 3,
            s_time_gran: 0,
            s_maxbytes: -1,
            s_uuid_len: 17,
            ..full()
        };
        assert_eq!(parse(&garbage), Ok(nothing));
    }

    /// Changes one field of a good answer, which is refused then.
    fn refused(change: impl FnOnce(&mut fuse_iomap_config_out), why: &'static CStr) {
        let mut answer = full();
        change(&mut answer);
        assert_eq!(parse(&answer), Err(why));
    }

    #[test]
    fn names_are_printable_words() {
        refused(|a| a.s_id = [0; 32], c"s_id: empty");
        for c in [b' ', b'\n', 0x1b, 0x7f, 0x80, 0xff] {
            refused(
                |a| a.s_id[2] = c,
                c"s_id: not a word of printable characters",
            );
        }

        // One without a NUL is cut, and what follows a NUL does not matter.
        let mut answer = full();
        answer.s_id = [b'x'; 32];
        let name = parse(&answer).map(|config| config.name);
        assert_eq!(
            name.map(|name| name.map(|n| (n[30], n[31]))),
            Ok(Some((b'x', 0)))
        );
        answer.s_id[1] = 0;
        answer.s_id[2] = b'\n';
        assert!(parse(&answer).is_ok());
    }

    #[test]
    fn uuids_have_a_length() {
        for length in [0, 17, 255] {
            refused(|a| a.s_uuid_len = length, c"s_uuid_len: not from 1 to 16");
        }
        let mut answer = full();
        answer.s_uuid_len = 1;
        let uuid = parse(&answer).map(|config| config.uuid);
        let mut one = [0; 16];
        one[0] = 1;
        assert_eq!(uuid, Ok(Some((one, 1))));
    }

    #[test]
    fn block_sizes_are_possible_ones() {
        for bytes in [0, 3, 511, 4097, u32::MAX] {
            refused(
                |a| a.s_blocksize = bytes,
                c"s_blocksize: not a power of two",
            );
        }
        for bytes in [1, 256] {
            refused(
                |a| a.s_blocksize = bytes,
                c"s_blocksize: less than 512 or the logical block size of a device",
            );
        }
        for bytes in [1 << 17, 1 << 31] {
            refused(
                |a| a.s_blocksize = bytes,
                c"s_blocksize: more than the page cache supports",
            );
        }

        let answer = full();
        assert!(parse_with(&answer, 4096, 4096).is_ok());
        assert!(parse_with(&answer, 8192, 1 << 16).is_err());
        assert!(parse_with(&answer, 512, 2048).is_err());
    }

    #[test]
    fn times_are_sane() {
        for gran in [0, 1_000_000_001, u32::MAX] {
            refused(
                |a| a.s_time_gran = gran,
                c"s_time_gran: not from 1 to 1000000000",
            );
        }
        refused(
            |a| {
                a.s_time_min = 1;
                a.s_time_max = 0;
            },
            c"s_time_min: after s_time_max",
        );

        let mut answer = full();
        (answer.s_time_min, answer.s_time_max) = (i64::MIN, i64::MAX);
        answer.s_time_gran = 1_000_000_000;
        assert!(parse(&answer).is_ok());
    }

    #[test]
    fn the_largest_size_is_positive() {
        for bytes in [0, -1, i64::MIN] {
            refused(|a| a.s_maxbytes = bytes, c"s_maxbytes: not positive");
        }
        for bytes in [1, i64::MAX] {
            let mut answer = full();
            answer.s_maxbytes = bytes;
            let found = parse(&answer).map(|config| config.max_bytes);
            assert_eq!(found, Ok(Some(bytes)));
        }
    }

    #[test]
    fn any_number_of_links_is_taken() {
        for links in [0, 1, u32::MAX] {
            let mut answer = full();
            answer.s_max_links = links;
            let found = parse(&answer).map(|config| config.max_links);
            assert_eq!(found, Ok(Some(links)));
        }
    }

    #[test]
    fn what_is_set_is_there() {
        // The fields in their order, and where each ends.
        let fields = [
            (40, c"s_id: set but missing"),
            (57, c"s_uuid: set but missing"),
            (64, c"s_blocksize: set but missing"),
            (68, c"s_max_links: set but missing"),
            (88, c"s_time_*: set but missing"),
            (96, c"s_maxbytes: set but missing"),
            (100, c"cache_maxbytes: set but missing"),
        ];
        for (bit, (end, missing)) in fields.into_iter().enumerate() {
            let answer = fuse_iomap_config_out {
                flags: 1 << bit,
                ..full()
            };
            let with = |length| config::parse(&offer(BOUND), &answer, length, &(512..=4096));
            assert!(with(end).is_ok());
            assert_eq!(with(end - 1), Err(missing));
            assert_eq!(with(8), Err(missing));
        }
    }
}
