// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Images by mke2fs, and debugfs as the second opinion. Without e2fsprogs and Python these tests
//! fail: a test that quietly does nothing is worth nothing.
#![allow(dead_code)] // Each test uses its part of this.

pub mod disk;
pub mod kernel;
pub mod opinion;
pub mod random;
pub mod steps;

use std::{
    collections::VecDeque,
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use ext4_volume::{Volume, dir::DirEntry, inode::ROOT};

/// A directory of this test's own, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left over is in the target directory and hurts nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// e2fsprogs lives where only root's PATH leads.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

fn output(command: &mut Command) -> String {
    let program = command.get_program().to_owned();
    let output = command
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .output()
        .unwrap_or_else(|err| panic!("{program:?} is needed for this test: {err}"));
    assert!(
        output.status.success(),
        "{program:?} failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn make_image(args: &[&str], paths: &[&Path]) {
    // Asked for at run time: what was built may have been for a checkout elsewhere.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs this");
    let script = Path::new(&here).join("../../demo/make-image");
    let (what, options) = args.split_first().unwrap();
    output(
        Command::new("python3")
            .arg(script)
            .arg(what)
            .args(paths)
            .arg("--brief")
            .args(options),
    );
}

/// An image with one of everything.
pub fn small_image(path: &Path, options: &[&str]) {
    make_image(&[&["small"], options].concat(), &[path]);
}

/// An image with changes in its journal alone, and one with the same changes in place.
pub fn dirty_image(path: &Path, expected: &Path, options: &[&str]) {
    make_image(&[&["dirty"], options].concat(), &[path, expected]);
}

/// An empty image.
pub fn mke2fs(path: &Path, options: &[&str]) {
    mke2fs_sized(path, options, "16M");
}

/// An empty image of some size.
pub fn mke2fs_sized(path: &Path, options: &[&str], size: &str) {
    output(
        Command::new("mke2fs")
            .args(["-q", "-F"])
            .args(options)
            .arg(path)
            .arg(size),
    );
}

/// Fails unless e2fsck finds nothing.
pub fn e2fsck(image: &Path, context: &str) {
    let result = Command::new("e2fsck")
        .args(["-fn"])
        .arg(image)
        .env("PATH", search_path())
        .output()
        .unwrap();
    assert!(
        result.status.success(),
        "{context}: e2fsck finds fault with {}:\n{}{}",
        image.display(),
        String::from_utf8_lossy(&result.stdout),
        String::from_utf8_lossy(&result.stderr)
    );
}

/// Lets e2fsck repair; returns what it says.
pub fn e2fsck_repair(image: &Path) -> String {
    let result = Command::new("e2fsck")
        .args(["-fy"])
        .arg(image)
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    assert!(
        matches!(result.status.code(), Some(0 | 1)),
        "e2fsck of {} failed:\n{text}{}",
        image.display(),
        String::from_utf8_lossy(&result.stderr)
    );
    text
}

/// Runs debugfs commands on an image; the answers come in order, each without its command.
pub fn debugfs(image: &Path, write: bool, commands: &[String], scratch: &Scratch) -> Vec<String> {
    let script = scratch.path("debugfs.cmd");
    fs::write(&script, commands.concat()).unwrap();
    let mut command = Command::new("debugfs");
    if write {
        command.arg("-w");
    }
    let text = output(command.arg("-f").arg(&script).arg(image));
    let answers: Vec<String> = text
        .split("debugfs: ")
        .skip(1)
        .map(|answer| {
            answer
                .split_once('\n')
                .map_or("", |(_, rest)| rest)
                .to_owned()
        })
        .collect();
    assert_eq!(answers.len(), commands.len(), "debugfs said:\n{text}");
    answers
}

/// The fields of `dumpe2fs -h`.
pub fn superblock_field(image: &Path, name: &str) -> u64 {
    let text = output(Command::new("dumpe2fs").arg("-h").arg(image));
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or_else(|| panic!("dumpe2fs shows no {name}"))
}

pub fn open(image: &Path) -> ext4_volume::Result<Volume> {
    Volume::open(File::open(image).unwrap())
}

/// A name in the tree.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub dir: u32,
    pub name: Vec<u8>,
    pub ino: u32,
    pub kind: u8,
}

/// All names of a volume, `.` and `..` included.
pub fn all_names(volume: &Volume) -> Vec<Name> {
    let mut names = Vec::new();
    let mut dirs = VecDeque::from([ROOT]);
    while let Some(dir) = dirs.pop_front() {
        let inode = volume.inode(dir).unwrap();
        let mut visit = |entry: DirEntry<'_>| {
            names.push(Name {
                dir,
                name: entry.name.to_vec(),
                ino: entry.ino,
                kind: entry.kind,
            });
            let dots = matches!(entry.name, b"." | b"..");
            if !dots && volume.inode(entry.ino)?.is_dir() {
                dirs.push_back(entry.ino);
            }
            Ok(None::<()>)
        };
        volume.read_dir(&inode, 0, &mut visit).unwrap();
    }
    names
}
