// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the kernel counts for a connection, in the control filesystem.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The counters of the connection of a mount, at one moment.
#[derive(Debug)]
pub struct Counted(BTreeMap<String, u64>);

impl Counted {
    /// Reads them; there are none if the connection has no iomap.
    pub fn read(mountpoint: &Path) -> Result<Self, String> {
        let path = Self::file(mountpoint)?;
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{path:?}: {e}"))?;
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(' ') else {
                return Err(format!("{path:?}: {line}"));
            };
            let value = value
                .parse()
                .map_err(|e| format!("{path:?}: {line}: {e}"))?;
            if all.insert(name.to_owned(), value).is_some() {
                return Err(format!("{path:?} has {name} twice"));
            }
        }
        Ok(Self(all))
    }

    /// Where they are: the directory is named after the mount's device number.
    pub fn file(mountpoint: &Path) -> Result<PathBuf, String> {
        let dev = std::fs::metadata(mountpoint)
            .map_err(|e| format!("stat: {e}"))?
            .dev();
        let number = (rustix::fs::major(dev) << 20) | rustix::fs::minor(dev);
        Ok(format!("/sys/fs/fuse/connections/{number}/iomap").into())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Result<u64, String> {
        let value = self.0.get(name).copied();
        value.ok_or_else(|| format!("there is no counter {name}"))
    }

    /// How much one has grown since.
    pub fn since(&self, before: &Self, name: &str) -> Result<u64, String> {
        let (now, then) = (self.get(name)?, before.get(name)?);
        now.checked_sub(then)
            .ok_or_else(|| format!("{name} went from {then} to {now}"))
    }
}
