// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Reading a directory while it changes: what was there all the time is seen once, what was not is
//! seen once at most, and a position that was told leads back to where it was.

use super::make;
use crate::pair::{Pair, Side};
use crate::seen::{Broken, Seen, attributes, outcome};
use rustix::fs::{Dir, Mode, OFlags, SeekFrom, open, seek};
use std::collections::BTreeMap;
use std::fs::{create_dir, remove_file, rename};
use std::path::PathBuf;

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    changing(pair);
    positions(pair);
    edges(pair);
}

/// A directory with so many names.
fn directory(side: &Side, name: &str, count: usize) -> Result<PathBuf, Broken> {
    let dir = side.path(name);
    create_dir(&dir)?;
    for i in 0..count {
        drop(make(&dir.join(format!("old-{i:05}")), b"")?);
    }
    Ok(dir)
}

/// How often each name is seen, when `f` is called after every `every` names.
fn names(
    dir: &PathBuf,
    every: usize,
    mut f: impl FnMut(usize) -> Result<(), Broken>,
) -> Result<BTreeMap<String, usize>, Broken> {
    let mut seen = BTreeMap::new();
    // A small read at a time is the libraries' matter; theirs is 32 KiB.
    for (i, entry) in std::fs::read_dir(dir)?.enumerate() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        *seen.entry(name).or_insert(0) += 1;
        if i % every == 0 {
            f(i)?;
        }
    }
    Ok(seen)
}

/// What is to be said of names that were there all the time, and of others.
fn judged(seen: &BTreeMap<String, usize>, always: impl Iterator<Item = String>) -> String {
    let mut missed = 0;
    let mut count = 0;
    for name in always {
        count += 1;
        missed += usize::from(!seen.contains_key(&name));
    }
    let twice = seen.values().filter(|n| **n > 1).count();
    format!("{count} names, {missed} missed, {twice} seen twice")
}

fn changing(pair: &mut Pair) {
    const COUNT: usize = 3000;
    pair.step("names are added meanwhile", |side| {
        let dir = directory(side, "adding", COUNT)?;
        let seen = names(&dir, 10, |i| {
            drop(make(&dir.join(format!("new-{i}")), b"")?);
            Ok(())
        })?;
        Ok(judged(&seen, (0..COUNT).map(|i| format!("old-{i:05}"))))
    });
    pair.step("names are removed meanwhile", |side| {
        let dir = side.path("adding");
        let seen = names(&dir, 10, |i| {
            if i < COUNT {
                remove_file(dir.join(format!("old-{i:05}")))?;
            }
            Ok(())
        })?;
        let kept = (0..COUNT).filter(|i| i % 10 != 0);
        Ok(judged(&seen, kept.map(|i| format!("old-{i:05}"))))
    });
    pair.step("names are renamed meanwhile", |side| {
        let dir = side.path("adding");
        let seen = names(&dir, 10, |i| {
            if i % 10 == 0 && i + 1 < COUNT {
                let old = dir.join(format!("old-{:05}", i + 1));
                rename(old, dir.join(format!("renamed-{i}")))?;
            }
            Ok(())
        })?;
        let kept = (0..COUNT).filter(|i| !matches!(i % 10, 0 | 1));
        Ok(judged(&seen, kept.map(|i| format!("old-{i:05}"))))
    });
    pair.step("everything is removed while it is read", |side| -> Seen {
        let dir = side.path("adding");
        for entry in std::fs::read_dir(&dir)? {
            remove_file(entry?.path())?;
        }
        let left = std::fs::read_dir(&dir)?.count();
        Ok(format!(
            "{left} left, {}",
            outcome(std::fs::remove_dir(dir))
        ))
    });
}

fn positions(pair: &mut Pair) {
    const COUNT: usize = 1500;
    pair.step("each position leads back", |side| {
        let dir = directory(side, "positions", COUNT)?;
        let file = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut all = Vec::new();
        let mut reader = Dir::read_from(&file)?;
        while let Some(entry) = reader.read() {
            let entry = entry?;
            all.push((entry.file_name().to_bytes().to_vec(), entry.offset()));
        }
        let mut wrong = 0;
        for i in (0..all.len() - 1).step_by(97).rev() {
            reader.seek(all[i].1)?;
            let next = reader.read().transpose()?;
            wrong += usize::from(next.is_none_or(|e| e.file_name().to_bytes() != all[i + 1].0));
        }
        Ok(format!("{} names, {wrong} wrong", all.len()))
    });
    pair.step(
        "also after the name there is gone, and others came",
        |side| {
            let dir = side.path("positions");
            let file = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            let mut all = Vec::new();
            let mut reader = Dir::read_from(&file)?;
            while let Some(entry) = reader.read() {
                let entry = entry?;
                all.push((entry.file_name().to_bytes().to_vec(), entry.offset()));
            }
            let middle = all.len() / 2;
            let name = |i: usize| String::from_utf8_lossy(&all[i].0).into_owned();
            remove_file(dir.join(name(middle)))?;
            remove_file(dir.join(name(middle + 1)))?;
            for i in 0..200 {
                drop(make(&dir.join(format!("new-{i}")), b"")?);
            }
            reader.seek(all[middle].1)?;
            let mut rest = BTreeMap::new();
            while let Some(entry) = reader.read() {
                let name = entry?.file_name().to_string_lossy().into_owned();
                *rest.entry(name).or_insert(0) += 1;
            }
            // What was removed after the directory was opened may still be shown.
            let before = (0..=middle).map(name);
            let again = before.filter(|name| rest.contains_key(name)).count();
            Ok(format!(
                "{}, {again} of before",
                judged(&rest, (middle + 2..all.len()).map(name))
            ))
        },
    );
    pair.step("rewinding shows what is there now", |side| {
        let dir = side.path("positions");
        let file = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut reader = Dir::read_from(&file)?;
        let before = std::iter::from_fn(|| reader.read()).count();
        drop(make(&dir.join("one-more"), b"")?);
        reader.rewind();
        let after = std::iter::from_fn(|| reader.read()).count();
        std::fs::remove_dir_all(dir)?;
        Ok(format!("{before}, then {after}"))
    });
}

fn edges(pair: &mut Pair) {
    pair.step("a directory that is removed while it is open", |side| {
        let dir = directory(side, "gone", 0)?;
        let file = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        std::fs::remove_dir(&dir)?;
        let mut reader = Dir::read_from(&file)?;
        let first = reader.read().map(|entry| entry.map(|_| ()));
        let first = first.map_or("end".to_owned(), outcome);
        let made = rustix::fs::openat(
            &file,
            "x",
            OFlags::CREATE | OFlags::WRONLY,
            Mode::from(0o600),
        );
        Ok(format!("{first}, {}", outcome(made)))
    });
    pair.step("reading and seeking it as a file", |side| {
        let dir = directory(side, "plain", 3)?;
        let file = open(&dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut bytes = [0; 16];
        let mut shown = vec![outcome(rustix::io::read(&file, &mut bytes))];
        for to in [SeekFrom::Start(0), SeekFrom::Current(0)] {
            shown.push(outcome(seek(&file, to)));
        }
        shown.push(outcome(open(&dir, OFlags::RDWR, Mode::empty())));
        shown.push(outcome(open(&dir, OFlags::CREATE, Mode::empty())));
        shown.push(outcome(rustix::fs::ftruncate(&file, 0)));
        shown.push(outcome(std::fs::remove_dir(&dir)));
        shown.push(outcome(remove_file(&dir)));
        std::fs::remove_dir_all(&dir)?;
        Ok(shown.join(", "))
    });
    pair.step("directories in directories", |side| {
        let top = side.path("top");
        create_dir(&top)?;
        for i in 0..50 {
            create_dir(top.join(i.to_string()))?;
        }
        let full = attributes(&top)?;
        for i in 0..49 {
            std::fs::remove_dir(top.join(i.to_string()))?;
        }
        let almost = attributes(&top)?;
        std::fs::remove_dir_all(top)?;
        Ok(format!("{full}; {almost}"))
    });
}
