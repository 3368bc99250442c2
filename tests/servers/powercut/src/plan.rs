// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The operations of a worker: a seed determines all of them, so that whoever looks at the disk
//! afterwards knows what was acknowledged from the number of operations alone.

use crate::model::{Model, Node};
use crate::random::Random;

/// Files do not grow beyond that.
const MOST_BYTES: u64 = 192 << 10;
/// A worker has at most so many names.
const MOST_NAMES: usize = 24;
/// What FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE are aligned to: a multiple of every block size.
const BLOCK: u64 = 4096;

/// Bytes that are written: `fill(stamp, pos)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub pos: u64,
    /// How many.
    pub length: u64,
    /// Which.
    pub stamp: u64,
}

/// One change of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new file.
    Create {
        /// Its name.
        path: String,
        /// Its contents.
        write: Write,
    },
    /// A file written under another name, fsynced, and renamed over this one, or to this new name.
    Replace {
        /// The name.
        path: String,
        /// The new contents.
        write: Write,
    },
    /// Bytes in place, or beyond the end.
    Write {
        /// The file.
        path: String,
        /// The bytes.
        write: Write,
    },
    /// A new size.
    Truncate {
        /// The file.
        path: String,
        /// The size.
        size: u64,
    },
    /// fallocate, mode 0.
    Allocate {
        /// The file.
        path: String,
        /// From.
        pos: u64,
        /// Bytes.
        length: u64,
    },
    /// FALLOC_FL_PUNCH_HOLE.
    Punch {
        /// The file.
        path: String,
        /// From.
        pos: u64,
        /// Bytes.
        length: u64,
    },
    /// FALLOC_FL_ZERO_RANGE within the file.
    Zero {
        /// The file.
        path: String,
        /// From.
        pos: u64,
        /// Bytes.
        length: u64,
    },
    /// FALLOC_FL_COLLAPSE_RANGE.
    Collapse {
        /// The file.
        path: String,
        /// From.
        pos: u64,
        /// Bytes.
        length: u64,
    },
    /// FALLOC_FL_INSERT_RANGE.
    Insert {
        /// The file.
        path: String,
        /// From.
        pos: u64,
        /// Bytes.
        length: u64,
    },
    /// An extended attribute.
    SetXattr {
        /// The file.
        path: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Another name; what had it before goes.
    Rename {
        /// The old name.
        from: String,
        /// The new one.
        to: String,
    },
    /// A second name.
    Link {
        /// The first.
        from: String,
        /// The second.
        to: String,
    },
    /// A symbolic link.
    Symlink {
        /// Its name.
        path: String,
        /// What it says.
        target: String,
    },
    /// A directory.
    Mkdir {
        /// Its name.
        path: String,
    },
    /// A file or link goes.
    Unlink {
        /// Its name.
        path: String,
    },
    /// A directory goes.
    Rmdir {
        /// Its name.
        path: String,
    },
}

impl Change {
    /// Does the change concern what is found under this name?
    pub fn touches(&self, name: &str) -> bool {
        match self {
            Self::Create { path, .. }
            | Self::Replace { path, .. }
            | Self::Write { path, .. }
            | Self::Truncate { path, .. }
            | Self::Allocate { path, .. }
            | Self::Punch { path, .. }
            | Self::Zero { path, .. }
            | Self::Collapse { path, .. }
            | Self::Insert { path, .. }
            | Self::SetXattr { path, .. }
            | Self::Symlink { path, .. }
            | Self::Mkdir { path }
            | Self::Unlink { path }
            | Self::Rmdir { path } => path == name,
            Self::Rename { from, to } | Self::Link { from, to } => from == name || to == name,
        }
    }
}

/// How a change is made durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// fsync of the file, and of the directories whose names changed.
    Fsync,
    /// The same with fdatasync.
    Fdatasync,
    /// The file is opened with O_DSYNC.
    Dsync,
    /// Whole sectors go past the page cache, of a file opened with O_DIRECT and O_DSYNC.
    Direct,
    /// The file is written through a shared mapping, and msync(MS_SYNC) called.
    Mapped,
    /// syncfs.
    Syncfs,
}

/// What direct I/O is aligned to.
const SECTOR: u64 = 512;

/// One operation: changes, and what makes all of them durable. Its end is acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// The changes, in this order.
    pub changes: Vec<Change>,
    /// How they get to the disk.
    pub sync: Sync,
}

/// The operations of one worker.
#[derive(Clone, Debug)]
pub struct Plan {
    random: Random,
    names: u64,
}

impl Plan {
    /// The plan of a worker under a seed.
    pub const fn new(seed: u64, worker: u64) -> Self {
        Self {
            random: Random::new(seed ^ worker.wrapping_mul(0x1_0000_0001)),
            names: 0,
        }
    }

    /// The operation that follows when the tree is as the model says.
    pub fn next(&mut self, model: &Model) -> Op {
        // Now and then several changes at once that only syncfs makes durable.
        if self.random.one_in(8) {
            let mut model = model.clone();
            let count = self.random.below(6) + 2;
            let changes = (0..count)
                .map(|_| {
                    let change = self.change(&model);
                    model.apply(&change);
                    change
                })
                .collect();
            return Op {
                changes,
                sync: Sync::Syncfs,
            };
        }
        let mut change = self.change(model);
        let sync = match (&mut change, self.random.below(8)) {
            (Change::Write { .. }, 0) => Sync::Dsync,
            (Change::Write { write, .. }, 6) => {
                let end = (write.pos + write.length).next_multiple_of(SECTOR);
                write.pos = write.pos / SECTOR * SECTOR;
                write.length = end - write.pos;
                Sync::Direct
            }
            (Change::Write { .. }, 1 | 2) => Sync::Mapped,
            (Change::Write { .. } | Change::Truncate { .. }, 3 | 4) => Sync::Fdatasync,
            (_, 5) => Sync::Syncfs,
            _ => Sync::Fsync,
        };
        Op {
            changes: vec![change],
            sync,
        }
    }

    fn new_name(&mut self, model: &Model) -> String {
        self.names += 1;
        let dirs = model.dirs();
        let dir = self.random.pick(&dirs).cloned().unwrap_or_default();
        let name = format!("n{}", self.names);
        if dir.is_empty() {
            name
        } else {
            format!("{dir}/{name}")
        }
    }

    fn stamp(&mut self) -> u64 {
        self.random.next()
    }

    fn create(&mut self, model: &Model) -> Change {
        let write = Write {
            pos: 0,
            length: self.random.length(MOST_BYTES),
            stamp: self.stamp(),
        };
        Change::Create {
            path: self.new_name(model),
            write,
        }
    }

    fn change(&mut self, model: &Model) -> Change {
        let files = model.file_paths();
        let Some(path) = self.random.pick(&files).cloned() else {
            return self.create(model);
        };
        if model.names.len() >= MOST_NAMES {
            return Change::Unlink { path };
        }
        match self.random.below(20) {
            0..=2 => self.create(model),
            3 | 4 => self.namespace(model, path),
            5 => self.replace(path),
            6 => Change::Unlink { path },
            7 => self.attribute(path),
            _ => {
                let size = model.file(&path).map_or(0, |file| file.data.len() as u64);
                self.contents(path, size)
            }
        }
    }

    fn replace(&mut self, path: String) -> Change {
        let write = Write {
            pos: 0,
            length: self.random.length(MOST_BYTES),
            stamp: self.stamp(),
        };
        Change::Replace { path, write }
    }

    fn attribute(&mut self, path: String) -> Change {
        let length = self.random.length(200);
        let value = (0..length).map(|_| self.random.next() as u8).collect();
        Change::SetXattr { path, value }
    }

    /// A change of names.
    fn namespace(&mut self, model: &Model, from: String) -> Change {
        match self.random.below(6) {
            0 => Change::Rename {
                to: self.new_name(model),
                from,
            },
            1 => {
                // Over another file, which goes; but two names of one file are left alone by rename.
                let others = model.paths(|path, node| {
                    matches!(node, Node::File(_))
                        && path != from
                        && Some(node) != model.names.get(&from)
                });
                match self.random.pick(&others) {
                    Some(to) => Change::Rename {
                        to: to.clone(),
                        from,
                    },
                    None => self.create(model),
                }
            }
            2 => Change::Link {
                to: self.new_name(model),
                from,
            },
            3 => Change::Symlink {
                path: self.new_name(model),
                // Short ones lie in the inode, long ones in a block.
                target: "t".repeat(self.random.length(300) as usize),
            },
            4 => Change::Mkdir {
                path: {
                    self.names += 1;
                    format!("d{}", self.names)
                },
            },
            _ => {
                let empty = model.paths(|path, node| {
                    *node == Node::Dir
                        && !model
                            .names
                            .keys()
                            .any(|name| crate::model::parent(name) == path)
                });
                match self.random.pick(&empty) {
                    Some(path) => Change::Rmdir { path: path.clone() },
                    None => self.create(model),
                }
            }
        }
    }

    /// A change of a file's contents or size.
    fn contents(&mut self, path: String, size: u64) -> Change {
        match self.random.below(16) {
            0 | 1 => Change::Truncate {
                path,
                size: self.random.below(size + 1),
            },
            2 => Change::Truncate {
                path,
                size: self.random.below(MOST_BYTES),
            },
            3 if size < MOST_BYTES => {
                let pos = self.random.below(size + 1);
                Change::Allocate {
                    path,
                    pos,
                    length: self.random.length(MOST_BYTES - pos),
                }
            }
            4 | 5 if size > 0 => {
                let pos = self.random.below(size);
                let length = self.random.length(size - pos);
                if self.random.one_in(2) {
                    Change::Punch { path, pos, length }
                } else {
                    Change::Zero { path, pos, length }
                }
            }
            6 if size > 3 * BLOCK => {
                // Collapsing must not reach the end of the file.
                let blocks = size / BLOCK;
                let first = self.random.below(blocks - 2);
                Change::Collapse {
                    path,
                    pos: first * BLOCK,
                    length: (self.random.below(blocks - first - 2) + 1) * BLOCK,
                }
            }
            7 if size > BLOCK && size < MOST_BYTES => Change::Insert {
                path,
                pos: self.random.below(size / BLOCK) * BLOCK,
                length: (self.random.below(8) + 1) * BLOCK,
            },
            kind => {
                // Half within the file, half at its end, some after a gap.
                let pos = match kind {
                    8..=11 => self.random.below(size + 1),
                    12..=14 => size,
                    _ => size + self.random.length(BLOCK * 4),
                };
                let pos = pos.min(MOST_BYTES - 1);
                Change::Write {
                    path,
                    write: Write {
                        pos,
                        length: self.random.length(MOST_BYTES - pos),
                        stamp: self.stamp(),
                    },
                }
            }
        }
    }
}

/// The tree after `count` operations, and the operation that follows.
pub fn state(seed: u64, worker: u64, count: u64) -> (Model, Op) {
    let mut plan = Plan::new(seed, worker);
    let mut model = Model::default();
    for _ in 0..count {
        for change in plan.next(&model).changes {
            model.apply(&change);
        }
    }
    let op = plan.next(&model);
    (model, op)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_state_is_what_the_operations_lead_to() {
        let (mut model, op) = state(5, 1, 40);
        for change in &op.changes {
            model.apply(change);
        }
        assert_eq!(model, state(5, 1, 41).0);
        assert_ne!(model, state(5, 2, 41).0);
    }

    #[test]
    fn every_kind_of_change_happens_and_files_stay_small() {
        let mut plan = Plan::new(1, 0);
        let mut model = Model::default();
        let mut kinds = BTreeSet::new();
        for _ in 0..2000 {
            for change in plan.next(&model).changes {
                let name = format!("{change:?}");
                kinds.insert(name.split(' ').next().unwrap_or_default().to_owned());
                model.apply(&change);
            }
        }
        assert_eq!(kinds.len(), 16, "{kinds:?}");
        assert!(
            model
                .files
                .values()
                .all(|file| file.data.len() as u64 <= MOST_BYTES + 8 * BLOCK)
        );
    }
}
