// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server uses of the kernel's cache of mappings.

use fuse_iomap::Caching;
use fuse_iomap::wire::MAX_MORE_MAPPINGS;
use serde::{Deserialize, Serialize};

/// How mappings get into the kernel's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CacheMode {
    /// Not at all.
    Off,
    /// By notifications, after which the kernel looks again.
    Upsert,
    /// With the answers to BEGIN.
    #[default]
    Replies,
    /// With some of the answers, and by notifications at any time: the server tells what is true and
    /// has things forgotten without being asked.
    Eager,
}

/// What is used of it, and of batches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSpec {
    /// How mappings get there.
    pub mode: CacheMode,
    /// At most this many further mappings go with an answer.
    pub batch_mappings: usize,
    /// Completions may come together.
    pub batch_ioend: bool,
    /// Most memory for the mappings of one file.
    pub bytes: Option<u32>,
}

impl Default for CacheSpec {
    fn default() -> Self {
        Self {
            mode: CacheMode::Replies,
            batch_mappings: MAX_MORE_MAPPINGS,
            batch_ioend: true,
            bytes: None,
        }
    }
}

impl CacheSpec {
    /// Everything with this mode.
    pub fn mode(mode: CacheMode) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    /// What of it the kernel is asked for.
    pub const fn caching(&self) -> Caching {
        Caching {
            mode: match self.mode {
                CacheMode::Off => fuse_iomap::CacheMode::Off,
                CacheMode::Upsert => fuse_iomap::CacheMode::Upsert,
                CacheMode::Replies | CacheMode::Eager => fuse_iomap::CacheMode::Replies,
            },
            batch_mappings: self.batch_mappings,
            batch_ioend: self.batch_ioend,
            bytes: self.bytes,
        }
    }

    /// Sets an option as of the command line; whether there is one of that name.
    pub fn set(&mut self, option: &str, value: &str) -> Result<bool, String> {
        if (option, value) == ("--cache", "eager") {
            self.mode = CacheMode::Eager;
            return Ok(true);
        }
        let mut caching = self.caching();
        if !caching.set(option, value)? {
            return Ok(false);
        }
        if option == "--cache" {
            self.mode = match caching.mode {
                fuse_iomap::CacheMode::Off => CacheMode::Off,
                fuse_iomap::CacheMode::Upsert => CacheMode::Upsert,
                fuse_iomap::CacheMode::Replies => CacheMode::Replies,
            };
        }
        self.batch_mappings = caching.batch_mappings;
        self.batch_ioend = caching.batch_ioend;
        self.bytes = caching.bytes;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_by_name() {
        let mut spec = CacheSpec::default();
        for (option, value, known) in [
            ("--cache", "eager", true),
            ("--batch-mappings", "0", true),
            ("--batch-ioend", "off", true),
            ("--cache-bytes", "100", true),
            ("--policy", "cow", false),
        ] {
            assert_eq!(spec.set(option, value), Ok(known));
        }
        let want = CacheSpec {
            mode: CacheMode::Eager,
            batch_mappings: 0,
            batch_ioend: false,
            bytes: Some(100),
        };
        assert_eq!(spec, want);
        assert_eq!(spec.set("--cache", "upsert"), Ok(true));
        assert_eq!(spec.mode, CacheMode::Upsert);
        assert!(spec.set("--cache", "maybe").is_err());
    }
}
