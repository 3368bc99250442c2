// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What one worker's directory must hold after so many operations.

use crate::plan::{Change, Write};
use crate::random::fill;
use std::collections::BTreeMap;

/// A name in the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A regular file, by its number in [`Model::files`]; several names may have the same.
    File(u64),
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink(String),
}

/// A regular file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Its contents.
    pub data: Vec<u8>,
    /// The value of its extended attribute.
    pub xattr: Option<Vec<u8>>,
}

/// The tree. Paths are relative to the worker's directory, which is always there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Model {
    /// All names.
    pub names: BTreeMap<String, Node>,
    /// All files that have a name.
    pub files: BTreeMap<u64, File>,
    last_file: u64,
}

/// The directory part of a path; the worker's own directory is the empty path.
pub fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

impl Model {
    /// The file behind a name.
    pub fn file(&self, path: &str) -> Option<&File> {
        match self.names.get(path)? {
            Node::File(number) => self.files.get(number),
            _ => None,
        }
    }

    /// How many names the file behind a name has.
    pub fn links(&self, path: &str) -> usize {
        self.names.get(path).map_or(0, |wanted| {
            self.names.values().filter(|node| *node == wanted).count()
        })
    }

    fn file_mut(&mut self, path: &str) -> Option<&mut File> {
        match self.names.get(path)? {
            Node::File(number) => self.files.get_mut(number),
            _ => None,
        }
    }

    /// The names for which `filter` is true.
    pub fn paths(&self, filter: impl Fn(&str, &Node) -> bool) -> Vec<String> {
        self.names
            .iter()
            .filter(|(path, node)| filter(path, node))
            .map(|(path, _)| path.clone())
            .collect()
    }

    /// The names of regular files.
    pub fn file_paths(&self) -> Vec<String> {
        self.paths(|_, node| matches!(node, Node::File(_)))
    }

    /// The directories, and the worker's own.
    pub fn dirs(&self) -> Vec<String> {
        let mut dirs = self.paths(|_, node| matches!(node, Node::Dir));
        dirs.push(String::new());
        dirs
    }

    fn remove_name(&mut self, path: &str) {
        if let Some(Node::File(number)) = self.names.remove(path) {
            if !self.names.values().any(|node| *node == Node::File(number)) {
                self.files.remove(&number);
            }
        }
    }

    /// What one change does to the tree.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Create { path, write } | Change::Replace { path, write } => {
                self.remove_name(path);
                self.last_file += 1;
                let mut file = File::default();
                put(&mut file.data, write);
                self.files.insert(self.last_file, file);
                self.names.insert(path.clone(), Node::File(self.last_file));
            }
            Change::Write { path, write } => {
                if let Some(file) = self.file_mut(path) {
                    put(&mut file.data, write);
                }
            }
            Change::Truncate { path, size } => {
                if let Some(file) = self.file_mut(path) {
                    file.data.resize(index(*size), 0);
                }
            }
            Change::Allocate { path, pos, length } => {
                if let Some(file) = self.file_mut(path) {
                    let size = file.data.len().max(index(pos + length));
                    file.data.resize(size, 0);
                }
            }
            Change::Punch { path, pos, length } | Change::Zero { path, pos, length } => {
                if let Some(file) = self.file_mut(path) {
                    let end = index(pos + length).min(file.data.len());
                    if let Some(range) = file.data.get_mut(index(*pos)..end) {
                        range.fill(0);
                    }
                }
            }
            Change::Collapse { path, pos, length } => {
                if let Some(file) = self.file_mut(path) {
                    file.data.drain(index(*pos)..index(pos + length));
                }
            }
            Change::Insert { path, pos, length } => {
                if let Some(file) = self.file_mut(path) {
                    let zeroes = vec![0; index(*length)];
                    file.data.splice(index(*pos)..index(*pos), zeroes);
                }
            }
            Change::SetXattr { path, value } => {
                if let Some(file) = self.file_mut(path) {
                    file.xattr = Some(value.clone());
                }
            }
            Change::Rename { from, to } => {
                self.remove_name(to);
                if let Some(node) = self.names.remove(from) {
                    self.names.insert(to.clone(), node);
                }
            }
            Change::Link { from, to } => {
                if let Some(node) = self.names.get(from).cloned() {
                    self.names.insert(to.clone(), node);
                }
            }
            Change::Symlink { path, target } => {
                self.names
                    .insert(path.clone(), Node::Symlink(target.clone()));
            }
            Change::Mkdir { path } => {
                self.names.insert(path.clone(), Node::Dir);
            }
            Change::Unlink { path } | Change::Rmdir { path } => self.remove_name(path),
        }
    }
}

/// Sizes here are far below the address space, since the model keeps everything in memory.
fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn put(data: &mut Vec<u8>, write: &Write) {
    let end = index(write.pos + write.length);
    if data.len() < end {
        data.resize(end, 0);
    }
    if let Some(range) = data.get_mut(index(write.pos)..end) {
        fill(write.stamp, write.pos, range);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changes: &[Change]) -> Model {
        let mut model = Model::default();
        for change in changes {
            model.apply(change);
        }
        model
    }

    fn create(path: &str, length: u64) -> Change {
        Change::Create {
            path: path.into(),
            write: Write {
                pos: 0,
                length,
                stamp: 1,
            },
        }
    }

    #[test]
    fn a_file_lives_as_long_as_it_has_a_name() {
        let link = Change::Link {
            from: "a".into(),
            to: "b".into(),
        };
        let unlink = |path: &str| Change::Unlink { path: path.into() };
        let model = with(&[create("a", 10), link.clone(), unlink("a")]);
        assert_eq!(model.file("b").map(|file| file.data.len()), Some(10));
        assert_eq!(model.links("b"), 1);
        let model = with(&[create("a", 10), link, unlink("a"), unlink("b")]);
        assert!(model.files.is_empty());
    }

    #[test]
    fn inserting_and_collapsing_the_same_range_changes_nothing() {
        let before = with(&[create("a", 10000)]);
        let mut after = before.clone();
        let (path, pos, length) = ("a".to_owned(), 4096, 4096);
        after.apply(&Change::Insert {
            path: path.clone(),
            pos,
            length,
        });
        assert_eq!(after.file("a").map(|file| file.data.len()), Some(14096));
        assert_ne!(before, after);
        after.apply(&Change::Collapse { path, pos, length });
        assert_eq!(before, after);
    }
}
