// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What was compared, and what differed.

use std::fmt::Display;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

macro_rules! figures {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Figures of a run.
        #[derive(Debug, Default)]
        pub struct Figures { $($(#[$doc])* pub $name: AtomicU64,)* }

        impl Figures {
            /// Names and values.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Ordering::Relaxed)),)*]
            }
        }
    };
}

figures! {
    /// Names compared, of all types.
    names,
    /// Directories.
    directories,
    /// Regular files, counting each name.
    files,
    /// Symbolic links.
    symlinks,
    /// Device nodes, FIFOs and sockets.
    specials,
    /// Names of files with more than one.
    hard_links,
    /// Bytes of file contents read and compared.
    bytes,
    /// Extended attributes, ACLs included.
    xattrs,
    /// Files whose FIEMAP was compared.
    fiemap_files,
    /// Extents in there, as they came.
    extents,
    /// Most extents of one file, after merging.
    most_extents,
    /// Unwritten extents in there.
    unwritten_extents,
    /// Files without FIEMAP in the first tree that need none.
    without_fiemap,
    /// Segments of data found by SEEK_DATA and SEEK_HOLE.
    segments,
    /// Positioned reads.
    preads,
    /// Files compared by mmap.
    mapped,
    /// Files whose inode flags and generation were compared.
    flags,
    /// Differences found.
    differences,
}

/// Adds to a figure.
pub fn add(figure: &AtomicU64, by: u64) {
    figure.fetch_add(by, Ordering::Relaxed);
}

/// Collects differences and prints the first of them.
pub struct Report {
    /// The figures.
    pub figures: Figures,
    show: usize,
    shown: AtomicUsize,
}

impl Report {
    /// A report that prints at most `show` differences.
    pub fn new(show: usize) -> Self {
        Self {
            figures: Figures::default(),
            show,
            shown: AtomicUsize::new(0),
        }
    }

    /// Notes that `what` of `path` differs.
    pub fn differ(&self, path: &Path, what: impl Display, a: impl Display, b: impl Display) {
        add(&self.figures.differences, 1);
        if self.shown.fetch_add(1, Ordering::Relaxed) < self.show {
            println!("{}: {what}: {a} / {b}", path.display());
        }
    }

    /// Notes a difference unless the two are equal.
    pub fn same<T: PartialEq + Display>(&self, path: &Path, what: impl Display, a: T, b: T) {
        if a != b {
            self.differ(path, what, a, b);
        }
    }
}
