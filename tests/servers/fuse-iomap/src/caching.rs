// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server uses of the kernel's cache of mappings, as its options say.

use crate::config::ConfigReply;
use crate::wire::{IomapConfigIn, MAX_MORE_MAPPINGS, iomap_config};

/// How mappings get into the kernel's cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheMode {
    /// Not at all.
    Off,
    /// By notifications, after which the kernel looks again; needs no extension of the protocol.
    Upsert,
    /// With the answers to BEGIN.
    #[default]
    Replies,
}

/// What is used of the cache, and of batches: [`ConfigReply::caching`] asks the kernel for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    /// How mappings get there.
    pub mode: CacheMode,
    /// At most this many further mappings go with an answer.
    pub batch_mappings: usize,
    /// Completions may come together.
    pub batch_ioend: bool,
    /// Most memory for the mappings of one file, in bytes, if not what the kernel takes by itself.
    pub bytes: Option<u32>,
}

impl Default for Caching {
    fn default() -> Self {
        Self {
            mode: CacheMode::Replies,
            batch_mappings: MAX_MORE_MAPPINGS,
            batch_ioend: true,
            bytes: None,
        }
    }
}

impl Caching {
    /// The extensions of the protocol that this takes.
    pub const fn extensions(&self) -> u64 {
        let mut all = 0;
        if matches!(self.mode, CacheMode::Replies) {
            all |= iomap_config::CACHE_REPLIES;
            if self.batch_mappings > 0 {
                all |= iomap_config::BATCH_MAPPINGS;
            }
        }
        if self.batch_ioend {
            all |= iomap_config::BATCH_IOEND;
        }
        all
    }

    /// Sets what an option of the command line is about: `--cache off|upsert|replies`,
    /// `--cache-bytes N`, `--batch-mappings N`, `--batch-ioend on|off`. Returns whether it is one of
    /// them.
    pub fn set(&mut self, option: &str, value: &str) -> Result<bool, String> {
        let number = |most: u64| {
            let n: Result<u64, _> = value.parse();
            n.ok()
                .filter(|n| *n <= most)
                .ok_or_else(|| format!("{option} takes a number from 0 to {most}"))
        };
        match option {
            "--cache" => {
                self.mode = match value {
                    "off" => CacheMode::Off,
                    "upsert" => CacheMode::Upsert,
                    "replies" => CacheMode::Replies,
                    _ => return Err(format!("{option}: there is no way {value:?}")),
                }
            }
            "--cache-bytes" => self.bytes = Some(number(u32::MAX.into())? as u32),
            "--batch-mappings" => self.batch_mappings = number(MAX_MORE_MAPPINGS as u64)? as usize,
            "--batch-ioend" => {
                self.batch_ioend = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(format!("{option} takes on or off")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether [`Caching::set`] knows this option, which then has a value.
    pub fn knows(option: &str) -> bool {
        [
            "--cache",
            "--cache-bytes",
            "--batch-mappings",
            "--batch-ioend",
        ]
        .contains(&option)
    }
}

impl ConfigReply {
    /// Accepts the extensions that this takes, as far as the kernel offers them, and bounds the
    /// cache.
    #[must_use]
    pub const fn caching(self, request: &IomapConfigIn, caching: &Caching) -> Self {
        let reply = self.extensions(request, caching.extensions());
        match (caching.mode, caching.bytes) {
            (CacheMode::Off, _) => reply.cache_maxbytes(0),
            (_, Some(bytes)) => reply.cache_maxbytes(bytes),
            (_, None) => reply,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_by_name() {
        let mut caching = Caching::default();
        for (option, value) in [
            ("--cache", "upsert"),
            ("--cache-bytes", "100"),
            ("--batch-mappings", "7"),
            ("--batch-ioend", "off"),
        ] {
            assert!(Caching::knows(option));
            assert_eq!(caching.set(option, value), Ok(true));
        }
        let want = Caching {
            mode: CacheMode::Upsert,
            batch_mappings: 7,
            batch_ioend: false,
            bytes: Some(100),
        };
        assert_eq!(caching, want);
        assert!(!Caching::knows("--policy"));
        assert_eq!(caching.set("--policy", "cow"), Ok(false));
        for (option, value) in [
            ("--cache", "maybe"),
            ("--cache-bytes", "-1"),
            ("--batch-mappings", "127"),
            ("--batch-ioend", ""),
        ] {
            assert!(caching.set(option, value).is_err(), "{option} {value}");
        }
        assert_eq!(caching, want);
    }

    #[test]
    fn the_answer_to_config_follows() {
        let request = IomapConfigIn {
            flags: u64::MAX,
            ..Default::default()
        };
        let answer = |mode, batch_mappings, batch_ioend, bytes| {
            let caching = Caching {
                mode,
                batch_mappings,
                batch_ioend,
                bytes,
            };
            let out = ConfigReply::new().caching(&request, &caching).to_wire();
            (out.flags, out.cache_maxbytes)
        };
        let bound = iomap_config::CACHE_MAXBYTES;
        assert_eq!(
            answer(CacheMode::Replies, 64, true, None),
            (iomap_config::EXTENSIONS, 0)
        );
        assert_eq!(
            answer(CacheMode::Replies, 0, false, Some(99)),
            (iomap_config::CACHE_REPLIES | bound, 99)
        );
        assert_eq!(
            answer(CacheMode::Upsert, 64, true, None),
            (iomap_config::BATCH_IOEND, 0)
        );
        assert_eq!(answer(CacheMode::Off, 64, false, Some(99)), (bound, 0));
    }
}
