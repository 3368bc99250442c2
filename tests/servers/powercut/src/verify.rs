// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Is everything there that was acknowledged before the power went?
//!
//! At most one operation of each worker was under way. What it does not touch must be exactly as
//! acknowledged. What it touches may be as before or as after it, and a file's contents a mixture;
//! but never anything that neither was there nor was being written.

use crate::model::{File, Model, Node};
use crate::perform::{NOISE, NOISE_STAMP, TEMPORARY, XATTR};
use crate::plan::{Change, Op, state};
use crate::random::byte_at;
use rustix::fs::lgetxattr;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is found under a name.
enum Found {
    File { file: File, links: u64 },
    Dir,
    Symlink(String),
    Other,
}

/// Reads one name; `None` when there is none.
fn look(path: &Path) -> Result<Option<Found>, String> {
    let fail = |why: io::Error| format!("{}: {why}", path.display());
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(fail(why)),
    };
    let kind = metadata.file_type();
    Ok(Some(if kind.is_dir() {
        Found::Dir
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(fail)?;
        Found::Symlink(target.to_string_lossy().into_owned())
    } else if kind.is_file() {
        let mut value = vec![0; 4096];
        let xattr = match lgetxattr(path, XATTR, &mut value) {
            Ok(length) => {
                value.truncate(length);
                Some(value)
            }
            Err(rustix::io::Errno::NODATA) => None,
            Err(why) => return Err(fail(why.into())),
        };
        let data = fs::read(path).map_err(fail)?;
        if data.len() as u64 != metadata.len() {
            return Err(format!(
                "{}: {} bytes long, but {} can be read",
                path.display(),
                metadata.len(),
                data.len()
            ));
        }
        Found::File {
            file: File { data, xattr },
            links: metadata.nlink(),
        }
    } else {
        Found::Other
    }))
}

/// All names below a directory, relative to it.
fn names(dir: &Path, below: &str, into: &mut BTreeSet<String>) -> Result<(), String> {
    let fail = |why: io::Error| format!("{}: {why}", dir.display());
    for entry in fs::read_dir(dir).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.file_type().map_err(fail)?.is_dir() {
            names(&entry.path(), &format!("{name}/"), into)?;
        }
        into.insert(name);
    }
    Ok(())
}

/// The first position at which two byte strings differ.
fn first_difference(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(a, b)| a == b).count()
}

/// Is the file exactly as it should be?
fn exact(found: &File, wanted: &File) -> Result<(), String> {
    if found.data.len() != wanted.data.len() {
        return Err(format!(
            "{} bytes long, not {}",
            found.data.len(),
            wanted.data.len()
        ));
    }
    if found.data != wanted.data {
        let at = first_difference(&found.data, &wanted.data);
        return Err(format!(
            "byte {at} is {:02x?}, not {:02x?}",
            found.data.get(at),
            wanted.data.get(at)
        ));
    }
    if found.xattr != wanted.xattr {
        return Err("its extended attribute is another one".into());
    }
    Ok(())
}

/// Can the file be something between `before` and `after`?
fn between(found: &File, before: &File, after: &File, zeroes: bool) -> Result<(), String> {
    let (small, large) = if before.data.len() < after.data.len() {
        (before.data.len(), after.data.len())
    } else {
        (after.data.len(), before.data.len())
    };
    if !(small..=large).contains(&found.data.len()) {
        return Err(format!(
            "{} bytes long, neither {small} nor {large}",
            found.data.len()
        ));
    }
    for (at, byte) in found.data.iter().enumerate() {
        let (old, new) = (before.data.get(at), after.data.get(at));
        // Bytes that were beyond the end may be there as zeroes before they are written.
        let empty = *byte == 0 && (zeroes || old.is_none());
        if Some(byte) != old && Some(byte) != new && !empty {
            return Err(format!(
                "byte {at} is {byte:02x}, before {old:02x?}, after {new:02x?}"
            ));
        }
    }
    if found.xattr != before.xattr && found.xattr != after.xattr {
        return Err("its extended attribute is neither the old nor the new one".into());
    }
    Ok(())
}

/// One worker's directory against its plan.
pub fn worker(dir: &Path, seed: u64, number: u64, acked: u64) -> Result<usize, String> {
    let root = dir.join(format!("w{number}"));
    let (before, op) = state(seed, number, acked);
    let mut after = before.clone();
    let mut versions = vec![before.clone()];
    for change in &op.changes {
        after.apply(change);
        versions.push(after.clone());
    }
    let mut all = BTreeSet::new();
    names(&root, "", &mut all)?;
    for model in &versions {
        all.extend(model.names.keys().cloned());
    }
    let fail = |name: &str, why: String| {
        format!(
            "w{number}/{name}: {why} (after {acked} acknowledged operations; under way: {})",
            short(&op)
        )
    };
    for name in &all {
        let found = look(&root.join(name)).map_err(|why| fail(name, why))?;
        compare(name, found, &versions, &op).map_err(|why| fail(name, why))?;
    }
    atomic(&all, &root, &op).map_err(|(name, why)| fail(&name, why))?;
    Ok(all.len())
}

/// The operation without the long parts.
fn short(op: &Op) -> String {
    let mut text = format!("{op:?}");
    if text.len() > 400 {
        text.truncate(400);
        text.push('…');
    }
    text
}

fn compare(name: &str, found: Option<Found>, versions: &[Model], op: &Op) -> Result<(), String> {
    // What the name may stand for: one thing when the operation under way does not touch it.
    let mut nodes: Vec<Option<(&Node, Option<&File>)>> = Vec::new();
    for model in versions {
        let node = model.names.get(name).map(|node| (node, model.file(name)));
        if !nodes.contains(&node) {
            nodes.push(node);
        }
    }
    if nodes.len() == 1 {
        return match (found, nodes.first().copied().flatten()) {
            (None, None) => Ok(()),
            (None, Some(_)) => Err("it is missing".into()),
            (Some(Found::File { file, links }), Some((Node::File(_), Some(wanted)))) => {
                exact(&file, wanted)?;
                let counts: BTreeSet<u64> = versions
                    .iter()
                    .map(|model| model.links(name) as u64)
                    .collect();
                if counts.contains(&links) {
                    Ok(())
                } else {
                    Err(format!("it has {links} links, not {counts:?}"))
                }
            }
            (Some(Found::Dir), Some((Node::Dir, _))) => Ok(()),
            (Some(Found::Symlink(found)), Some((Node::Symlink(wanted), _))) if found == *wanted => {
                Ok(())
            }
            (Some(_), None) if name.ends_with(TEMPORARY) => temporary(name, op),
            (Some(_), None) => Err("it should not be there".into()),
            (Some(_), Some(_)) => Err("it is something else".into()),
        };
    }
    match found {
        None if nodes.contains(&None) => Ok(()),
        None => Err("it is missing".into()),
        Some(Found::Dir) if nodes.iter().flatten().any(|(node, _)| **node == Node::Dir) => Ok(()),
        Some(Found::Symlink(target))
            if nodes
                .iter()
                .flatten()
                .any(|(node, _)| **node == Node::Symlink(target.clone())) =>
        {
            Ok(())
        }
        Some(Found::File { file, .. }) => in_flight(name, &file, &nodes, op),
        Some(_) => Err("it is neither what it was nor what it becomes".into()),
    }
}

/// A file that the operation under way touches.
fn in_flight(
    name: &str,
    found: &File,
    nodes: &[Option<(&Node, Option<&File>)>],
    op: &Op,
) -> Result<(), String> {
    // Moving blocks may go through states that are hard to describe; only the bytes must be known.
    let moves = op.changes.iter().any(|change| {
        matches!(change, Change::Collapse { path, .. } | Change::Insert { path, .. } if path == name)
    });
    if moves {
        return Ok(());
    }
    let files: Vec<&File> = nodes
        .iter()
        .flatten()
        .filter_map(|(_, file)| *file)
        .collect();
    if files.iter().any(|wanted| exact(found, wanted).is_ok()) {
        return Ok(());
    }
    // A replacement is all or nothing, unless the operation does something else to the file as well:
    // what has been created before it and never synced may be there with any part of its data.
    let mut touching = op.changes.iter().filter(|change| change.touches(name));
    if matches!(
        (touching.next(), touching.next()),
        (Some(Change::Replace { .. }), None)
    ) {
        return Err("a file replaced by rename is neither the old nor the new one".into());
    }
    let zeroes = op
        .changes
        .iter()
        .any(|change| !matches!(change, Change::Write { .. } | Change::SetXattr { .. }));
    let nothing = File::default();
    let mut reason = String::from("it should not be there");
    for first in files.iter().copied().chain([&nothing]) {
        for last in &files {
            match between(found, first, last, zeroes) {
                Ok(()) => return Ok(()),
                Err(why) => reason = why,
            }
        }
    }
    Err(reason)
}

/// A replacement that has not got its name yet.
fn temporary(name: &str, op: &Op) -> Result<(), String> {
    let under_way = op.changes.iter().any(
        |change| matches!(change, Change::Replace { path, .. } if name == format!("{path}{TEMPORARY}")),
    );
    if under_way {
        Ok(())
    } else {
        Err("it should not be there".into())
    }
}

/// A rename leaves a file with one of its names, whenever it is interrupted.
fn atomic(all: &BTreeSet<String>, root: &Path, op: &Op) -> Result<(), (String, String)> {
    let [Change::Rename { from, to }] = op.changes.as_slice() else {
        return Ok(());
    };
    debug_assert!(all.contains(from));
    let there = |name: &str| fs::symlink_metadata(root.join(name)).is_ok();
    if there(from) || there(to) {
        Ok(())
    } else {
        Err((from.clone(), "a rename has lost the file".into()))
    }
}

/// What nobody was promised may be missing, but must not be somebody else's bytes.
pub fn noise(dir: &Path) -> Result<usize, String> {
    let dir = dir.join(NOISE);
    let mut all = BTreeSet::new();
    match fs::symlink_metadata(&dir) {
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(0),
        _ => names(&dir, "", &mut all)?,
    }
    for name in &all {
        let path = dir.join(name);
        let data = fs::read(&path).map_err(|why| format!("{}: {why}", path.display()))?;
        let foreign = (0..)
            .zip(&data)
            .find(|(at, byte)| **byte != 0 && **byte != byte_at(NOISE_STAMP, *at));
        if let Some((at, byte)) = foreign {
            return Err(format!(
                "{NOISE}/{name}: byte {at} is {byte:02x}, which was never written"
            ));
        }
    }
    Ok(all.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Sync, Write};

    const WRITE: Write = Write {
        pos: 0,
        length: 3,
        stamp: 7,
    };

    fn judge(before: &[Change], op: Vec<Change>, found: &[u8]) -> Result<(), String> {
        let mut model = Model::default();
        for change in before {
            model.apply(change);
        }
        let mut versions = vec![model];
        for change in &op {
            let mut next = versions.last().cloned().unwrap_or_default();
            next.apply(change);
            versions.push(next);
        }
        let file = File {
            data: found.to_vec(),
            xattr: None,
        };
        let op = Op {
            changes: op,
            sync: Sync::Fsync,
        };
        compare("a", Some(Found::File { file, links: 1 }), &versions, &op)
    }

    fn create() -> Change {
        Change::Create {
            path: "a".into(),
            write: WRITE,
        }
    }

    fn replace() -> Change {
        Change::Replace {
            path: "a".into(),
            write: WRITE,
        }
    }

    #[test]
    fn a_replaced_file_is_the_old_or_the_new_one() {
        assert!(judge(&[create()], vec![replace()], &[]).is_err());
        assert!(judge(&[], vec![replace()], &[0]).is_err());
    }

    #[test]
    fn a_file_that_was_created_and_replaced_at_once_may_still_be_empty() {
        assert_eq!(judge(&[], vec![create(), replace()], &[]), Ok(()));
        assert!(judge(&[], vec![create(), replace()], &[1]).is_err());
    }
}
