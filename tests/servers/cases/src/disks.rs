// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The disks of the virtual machine, and laying files out on them.

use lab::random::Random;
use lab::scenario::{DeviceSpec, ExtentSpec, FileSpec, InodeKind, Scenario};
use std::path::{Path, PathBuf};

/// Names of the environment variables that hold the disks' paths. The last one has logical blocks
/// of 4096 bytes.
pub const DISKS: [&str; 3] = ["FI_DISK_A", "FI_DISK_B", "FI_DISK_C"];

/// What the command line says about generated cases.
#[derive(Default)]
pub struct Options {
    /// Where generated cases start.
    pub seed: Option<u64>,
    /// How many there are.
    pub count: Option<u64>,
    /// Only this one.
    pub case: Option<String>,
    /// Only with the kernel's cache of mappings used like this.
    pub cache: Option<String>,
}

impl Options {
    /// Takes the options out of the arguments.
    pub fn parse(args: Vec<String>) -> Result<(Self, Vec<String>), String> {
        let mut options = Self::default();
        let mut rest = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg}: no value"));
            let number = |text: String| text.parse().map_err(|e| format!("{text:?}: {e}"));
            match arg.as_str() {
                "--seed" => options.seed = Some(number(value()?)?),
                "--count" => options.count = Some(number(value()?)?),
                "--cache" => options.cache = Some(value()?),
                "--case" => options.case = Some(value()?),
                _ => rest.push(arg),
            }
        }
        Ok((options, rest))
    }
}

/// Where things are.
pub struct Machine {
    /// The `lab` binary.
    pub lab: PathBuf,
    /// An empty directory to mount on.
    pub mountpoint: PathBuf,
    /// An empty directory for files.
    pub scratch: PathBuf,
    /// fuse.ko, if it is a module.
    pub module: Option<PathBuf>,
    /// From the command line.
    pub options: Options,
}

impl Machine {
    /// From the environment.
    pub fn new(options: Options) -> Result<Self, String> {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
        for disk in DISKS {
            variable(disk).ok_or_else(|| format!("${disk} is not set"))?;
        }
        let bin = variable("FI_BIN").ok_or("$FI_BIN is not set")?;
        let scratch = PathBuf::from(format!("/tmp/cases.{}", std::process::id()));
        let mountpoint = scratch.join("mnt");
        std::fs::create_dir_all(&mountpoint)
            .map_err(|e| format!("{}: {e}", mountpoint.display()))?;
        Ok(Self {
            lab: Path::new(&bin).join("lab"),
            mountpoint,
            scratch,
            module: variable("FI_FUSE_KO").map(PathBuf::from),
            options,
        })
    }
}

/// Hands out places on the disks, with gaps between them that hold poison.
pub struct Layout {
    next: [u64; DISKS.len()],
}

impl Layout {
    /// Nothing is in use.
    pub const fn new() -> Self {
        Self {
            next: [4096; DISKS.len()],
        }
    }

    /// `length` bytes at a multiple of `align`.
    pub fn take(&mut self, dev: usize, length: u64, align: u64) -> u64 {
        let addr = self.next[dev].next_multiple_of(align);
        self.next[dev] = addr + length + align.max(4096);
        addr
    }

    /// A file of random extents of up to `longest` blocks, of all types.
    pub fn random_file(
        &mut self,
        random: &mut Random,
        size: u64,
        blksize: u32,
        longest: u64,
    ) -> FileSpec {
        let block = u64::from(blksize);
        // A device cannot do with less than its own blocks.
        let devices = if block < 4096 { 2 } else { 3 };
        let mut extents = Vec::new();
        let mut offset = 0;
        while offset < size {
            let length = block * (1 + random.below(longest));
            let dev = random.below(devices) as usize;
            match random.below(8) {
                0 => {}
                1 => extents.push(ExtentSpec::delalloc(offset, length)),
                2 => {
                    let addr = self.take(dev, length, block);
                    extents.push(ExtentSpec::unwritten(offset, length, dev, addr));
                }
                _ => {
                    // On the disk, extents need no other alignment than the device's.
                    let align = if dev == 2 { 4096 } else { 512 };
                    let addr = self.take(dev, length, align);
                    extents.push(ExtentSpec::mapped(offset, length, dev, addr));
                }
            }
            offset += length;
        }
        FileSpec::iomap(size, blksize, extents)
    }
}

/// A scenario with all disks and no files.
pub fn empty_scenario(seed: u64) -> Scenario {
    let spec = |name: &&str| DeviceSpec {
        path: format!("${name}"),
    };
    Scenario {
        seed,
        devices: DISKS.iter().map(spec).collect(),
        ..Scenario::default()
    }
}

/// The description of a regular file.
pub fn file_spec<'a>(scenario: &'a Scenario, path: &str) -> Result<&'a FileSpec, String> {
    scenario
        .inodes
        .iter()
        .find(|i| i.path == path)
        .and_then(|i| match &i.kind {
            InodeKind::File(spec) => Some(spec),
            _ => None,
        })
        .ok_or_else(|| format!("the scenario has no file {path}"))
}

/// The path of one of the disks, by the name of its variable.
pub fn disk(name: &str) -> Result<PathBuf, String> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("${name} is not set"))
}
