// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub const HELP: &str = "\
Compares two mounted trees, which nobody may change meanwhile, in everything a program can
see: names, types, attributes, times, extended attributes, link targets, extents (FIEMAP), holes
(SEEK_DATA and SEEK_HOLE), inode flags, and contents byte by byte.

usage: compare [OPTIONS] A B

  --threads N       workers (default 2)
  --sample N        for every Nth file also: positioned reads, mmap, inode flags (default 16)
  --seed N          where the positioned reads go (default 1)
  --no-fiemap       do not compare extents
  --plain PATH      this file has no FIEMAP in A (may be given several times)
  --blocks-free     do not compare free space and block counts of the filesystem
  --show N          differences to print (default 40)
  --summary FILE    write the figures there as well, one NAME VALUE per line
  -h, --help        this text

Exit status: 0 the same, 1 different, 2 trouble. Inline data (which ext4 keeps in the inode) need not
have FIEMAP in A.
";

/// The options.
#[derive(Debug)]
pub struct Options {
    /// The trees.
    pub roots: [PathBuf; 2],
    /// Workers.
    pub threads: usize,
    /// Each how manyth file is looked at more closely.
    pub sample: u64,
    /// Seed of the positioned reads.
    pub seed: u64,
    /// Whether extents are compared.
    pub fiemap: bool,
    /// Files, relative to the root, that need no FIEMAP in the first tree.
    pub plain: Vec<PathBuf>,
    /// Whether statfs is compared.
    pub statfs: bool,
    /// How many differences are printed.
    pub show: usize,
    /// Where the figures go.
    pub summary: Option<PathBuf>,
}

impl Options {
    /// Parses the arguments; `None` means that help is wanted.
    pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut options = Self {
            roots: Default::default(),
            threads: 2,
            sample: 16,
            seed: 1,
            fiemap: true,
            plain: Vec::new(),
            statfs: true,
            show: 40,
            summary: None,
        };
        let mut roots = Vec::new();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || {
                args.next()
                    .ok_or(format!("{} needs a value", arg.to_string_lossy()))
            };
            match arg.to_str() {
                Some("--threads") => options.threads = number(&value()?)?.clamp(1, 64) as usize,
                Some("--sample") => options.sample = number(&value()?)?.max(1),
                Some("--seed") => options.seed = number(&value()?)?,
                Some("--no-fiemap") => options.fiemap = false,
                Some("--plain") => options.plain.push(value()?.into()),
                Some("--blocks-free") => options.statfs = false,
                Some("--show") => options.show = number(&value()?)? as usize,
                Some("--summary") => options.summary = Some(value()?.into()),
                Some("-h" | "--help") => return Ok(None),
                Some(other) if other.starts_with('-') => {
                    return Err(format!("unknown option {other}"));
                }
                _ => roots.push(PathBuf::from(arg)),
            }
        }
        options.roots = roots
            .try_into()
            .map_err(|_| "two trees are needed".to_owned())?;
        Ok(Some(options))
    }
}

fn number(text: &OsString) -> Result<u64, String> {
    let parsed = text.to_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| format!("{} is not a number", text.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn arguments() {
        let options = parse("--threads 3 --no-fiemap --plain x/y --plain z a b")
            .unwrap()
            .unwrap();
        assert_eq!(options.threads, 3);
        assert!(!options.fiemap && options.statfs);
        assert_eq!(options.plain.len(), 2);
        assert_eq!(options.roots[1], PathBuf::from("b"));
        assert!(
            parse("a").is_err() && parse("a b c").is_err() && parse("--threads x a b").is_err()
        );
        assert!(parse("-h").unwrap().is_none());
    }
}
