// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Taking requests apart, with every length checked.

use crate::Result;
use crate::wire::InHeader;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use zerocopy::FromBytes;

/// Who asks, and about which node.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    header: InHeader,
}

impl Request {
    pub(crate) const fn new(header: InHeader) -> Self {
        Self { header }
    }

    /// The opcode, see [`crate::wire::opcode`].
    pub const fn opcode(&self) -> u32 {
        self.header.opcode
    }

    /// Identifies the request among those that are not answered yet.
    pub const fn unique(&self) -> u64 {
        self.header.unique
    }

    /// The node the request is about.
    pub const fn nodeid(&self) -> u64 {
        self.header.nodeid
    }

    /// User id of the caller.
    pub const fn uid(&self) -> u32 {
        self.header.uid
    }

    /// Group id of the caller.
    pub const fn gid(&self) -> u32 {
        self.header.gid
    }

    /// Process id of the caller; 0 if the kernel asks on its own account.
    pub const fn pid(&self) -> u32 {
        self.header.pid
    }
}

/// What a malformed request is answered with.
pub(crate) const MALFORMED: Errno = Errno::IO;

/// The arguments of a request, eaten from the front.
#[derive(Debug)]
pub(crate) struct Args<'a> {
    rest: &'a [u8],
    /// Something that was wanted was not there.
    broken: bool,
}

impl<'a> Args<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            broken: false,
        }
    }

    /// The first part, which is returned, and the rest, which stays.
    fn eat<T>(&mut self, parts: Option<(T, &'a [u8])>) -> Result<T> {
        match parts {
            Some((first, rest)) => {
                self.rest = rest;
                Ok(first)
            }
            None => {
                self.broken = true;
                Err(MALFORMED)
            }
        }
    }

    /// The next structure.
    pub(crate) fn take<T: FromBytes>(&mut self) -> Result<T> {
        self.eat(T::read_from_prefix(self.rest).ok())
    }

    /// The next NUL-terminated name.
    pub(crate) fn name(&mut self) -> Result<&'a OsStr> {
        let end = self.rest.iter().position(|b| *b == 0);
        self.eat(end.map(|end| (OsStr::from_bytes(&self.rest[..end]), &self.rest[end + 1..])))
    }

    /// The next `len` bytes.
    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        self.eat(self.rest.split_at_checked(len))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The request must end here.
    pub(crate) const fn nothing_more(&mut self) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.broken = true;
        Err(MALFORMED)
    }

    /// Whether the request turned out to be malformed.
    pub(crate) const fn is_broken(&self) -> bool {
        self.broken
    }
}

/// Splits a message from the kernel into header and arguments.
pub(crate) fn split(message: &[u8]) -> Option<(Request, Args<'_>)> {
    let (header, rest) = InHeader::read_from_prefix(message).ok()?;
    // The kernel writes whole messages, so anything else is damage.
    (header.len as usize == message.len()).then_some((Request::new(header), Args::new(rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{self, opcode};
    use zerocopy::IntoBytes;

    fn message(op: u32, args: &[u8]) -> Vec<u8> {
        let header = InHeader {
            len: (40 + args.len()) as u32,
            opcode: op,
            unique: 3,
            nodeid: 1,
            ..Default::default()
        };
        [header.as_bytes(), args].concat()
    }

    #[test]
    fn every_truncation_is_noticed() {
        let begin = wire::IomapBeginIn {
            pos: 4096,
            ..Default::default()
        };
        let whole = message(opcode::IOMAP_BEGIN, begin.as_bytes());
        for len in 0..whole.len() {
            assert!(split(&whole[..len]).is_none(), "{len}");
        }
        let (req, mut args) = split(&whole).unwrap();
        assert_eq!(req.opcode(), opcode::IOMAP_BEGIN);
        assert_eq!(args.take::<wire::IomapBeginIn>(), Ok(begin));
        assert_eq!(args.take::<u8>(), Err(MALFORMED));
    }

    #[test]
    fn names_must_be_terminated() {
        let mut args = Args::new(b"old\0new");
        assert_eq!(args.name(), Ok(OsStr::new("old")));
        assert_eq!(args.name(), Err(MALFORMED));
        assert_eq!(args.bytes(4), Err(MALFORMED));
        assert!(args.is_broken());
        assert_eq!(args.bytes(3), Ok(&b"new"[..]));
        assert!(args.is_empty());
    }
}
