// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a server uses of the kernel's cache of mappings.

use fuse_iomap::wire::{MAX_MORE_MAPPINGS, iomap_config};
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

    /// The extensions that this takes.
    pub const fn extensions(&self) -> u64 {
        let mut all = 0;
        if matches!(self.mode, CacheMode::Replies | CacheMode::Eager) {
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

    /// Sets an option as of the command line; whether there is one of that name.
    pub fn set(&mut self, option: &str, value: &str) -> Result<bool, String> {
        let number = |most: u64| {
            let n: Result<u64, _> = value.parse();
            let n = n.map_err(|e| format!("{option} {value}: {e}"))?;
            (n <= most)
                .then_some(n)
                .ok_or_else(|| format!("{option} {value}: more than {most}"))
        };
        match option {
            "--cache" => {
                self.mode = match value {
                    "off" => CacheMode::Off,
                    "upsert" => CacheMode::Upsert,
                    "replies" => CacheMode::Replies,
                    "eager" => CacheMode::Eager,
                    _ => return Err(format!("{option} {value}: no such mode")),
                }
            }
            "--cache-bytes" => self.bytes = Some(number(u32::MAX.into())? as u32),
            "--batch-mappings" => self.batch_mappings = number(MAX_MORE_MAPPINGS as u64)? as usize,
            "--batch-ioend" => {
                self.batch_ioend = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(format!("{option} {value}: neither on nor off")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_by_name() {
        let mut spec = CacheSpec::default();
        assert_eq!(spec.extensions(), iomap_config::EXTENSIONS);
        assert_eq!(spec.set("--batch-mappings", "0"), Ok(true));
        assert_eq!(spec.set("--batch-ioend", "off"), Ok(true));
        assert_eq!(spec.extensions(), iomap_config::CACHE_REPLIES);
        assert_eq!(spec.set("--cache", "upsert"), Ok(true));
        assert_eq!(spec.extensions(), 0);
        assert_eq!(spec.set("--cache-bytes", "100"), Ok(true));
        assert_eq!(spec.bytes, Some(100));
        assert_eq!(spec.set("--policy", "cow"), Ok(false));
        assert!(spec.set("--cache", "maybe").is_err());
        assert!(spec.set("--batch-mappings", "127").is_err());
    }
}
