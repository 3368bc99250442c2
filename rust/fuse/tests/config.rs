// SPDX-License-Identifier: GPL-2.0

//! KUnit tests: what a server may answer to CONFIG.
#![deny(unsafe_code)]

use crate::config::{offer, parse, Config, Extensions};
use kernel::{
    bindings::{self, fuse_iomap_config_out},
    prelude::*, //
};

/// The bound that the kernel offers, in bytes.
const BOUND: u32 = 1 << 20;

#[kunit_tests(fuse_iomap_config)]
mod answers {
    use super::*;

    #[test]
    fn nothing_set_changes_nothing() {
        let config = parse(&offer(BOUND), &fuse_iomap_config_out::default());
        let expected = Config {
            extensions: Extensions::default(),
            cache_bytes: BOUND,
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
            let found = parse(&offer(BOUND), &answer).map(|config| config.cache_bytes);
            assert_eq!(found, Ok(bytes));

            // A field that is not set may hold anything.
            let answer = fuse_iomap_config_out { flags: 0, ..answer };
            let found = parse(&offer(BOUND), &answer).map(|config| config.cache_bytes);
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
            let extensions = parse(&offer(BOUND), &answer).map(|config| config.extensions);
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
            assert_eq!(parse(&offer(BOUND), &answer), Err(c"unknown flags"));
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
            assert_eq!(parse(&offer(BOUND), answer), Err(c"padding is not zero"));
        }
    }
}
