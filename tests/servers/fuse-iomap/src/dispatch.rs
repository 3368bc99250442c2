// SPDX-License-Identifier: GPL-2.0 OR MIT
//! From a request to a method of `Filesystem` to a reply.

use crate::connection::{Connection, Negotiated};
use crate::dir::{DirBuffer, DirPlusBuffer};
use crate::fs::{Filesystem, InitConfig};
use crate::request::{Args, Request};
use crate::wire::{self, opcode, *};
use crate::{Entry, Opened, Result};
use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

const HEADER: usize = size_of::<OutHeader>();

/// Answers requests of one connection.
pub(crate) struct Dispatcher<'a, F: ?Sized> {
    pub(crate) fs: &'a F,
    pub(crate) connection: &'a Connection,
    /// Most that a read may ask for; what the kernel asks for beyond is cut.
    pub(crate) max_read: usize,
    /// Largest WRITE to propose in INIT.
    pub(crate) max_write: u32,
}

/// Appends a structure.
fn put<T: IntoBytes + Immutable>(out: &mut Vec<u8>, value: &T) {
    out.extend_from_slice(value.as_bytes());
}

/// Answers a request for an attribute's value or length.
fn put_xattr(out: &mut Vec<u8>, asked: u32, value: &[u8]) -> Result<()> {
    let size = u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?;
    if asked == 0 {
        put(out, &GetxattrOut { size, padding: 0 });
    } else if size > asked {
        return Err(Errno::RANGE);
    } else {
        out.extend_from_slice(value);
    }
    Ok(())
}

fn put_created(out: &mut Vec<u8>, (entry, opened): (Entry, Opened)) {
    put(out, &entry.to_wire());
    put(out, &opened.to_wire());
}

impl<F: Filesystem + ?Sized> Dispatcher<'_, F> {
    /// Answers `req` into `out`: a complete message, or nothing if none is wanted.
    pub(crate) fn answer(&self, req: &Request, mut args: Args<'_>, out: &mut Vec<u8>) {
        out.clear();
        out.resize(HEADER, 0);
        self.connection.counters().count(req.opcode());
        let result = self.dispatch(req, &mut args, out);
        if args.is_broken() {
            self.connection.counters().count_malformed();
        }
        if opcode::is_oneway(req.opcode()) {
            out.clear();
            return;
        }
        let error = match result {
            Ok(()) => 0,
            Err(e) => {
                self.connection.counters().count_error();
                out.truncate(HEADER);
                -e.raw_os_error()
            }
        };
        let header = OutHeader {
            // A reply never outgrows `max_read` by more than a header's length.
            len: u32::try_from(out.len()).unwrap_or(u32::MAX),
            error,
            unique: req.unique(),
        };
        out[..HEADER].copy_from_slice(header.as_bytes());
    }

    fn dispatch(&self, req: &Request, a: &mut Args<'_>, out: &mut Vec<u8>) -> Result<()> {
        let fs = self.fs;
        let node = req.nodeid();
        match req.opcode() {
            opcode::INIT => self.init(a.take()?, out),
            opcode::DESTROY => {
                fs.destroy();
                Ok(())
            }
            opcode::LOOKUP => {
                put(out, &fs.lookup(req, node, a.name()?)?.to_wire());
                Ok(())
            }
            opcode::FORGET => {
                let one: ForgetIn = a.take()?;
                fs.forget(node, one.nlookup);
                Ok(())
            }
            opcode::BATCH_FORGET => {
                let batch: BatchForgetIn = a.take()?;
                for _ in 0..batch.count {
                    let one: ForgetOne = a.take()?;
                    fs.forget(one.nodeid, one.nlookup);
                }
                Ok(())
            }
            opcode::INTERRUPT => {
                let interrupt: InterruptIn = a.take()?;
                fs.interrupt(interrupt.unique);
                Ok(())
            }
            opcode::GETATTR => {
                put(out, &fs.getattr(req, node, &a.take()?)?.to_wire());
                Ok(())
            }
            opcode::SETATTR => {
                put(out, &fs.setattr(req, node, &a.take()?)?.to_wire());
                Ok(())
            }
            opcode::STATX => {
                put(out, &fs.statx(req, node, &a.take()?)?);
                Ok(())
            }
            opcode::READLINK => {
                out.extend_from_slice(&fs.readlink(req, node)?);
                Ok(())
            }
            opcode::SYMLINK => {
                let name = a.name()?;
                put(out, &fs.symlink(req, node, name, a.name()?)?.to_wire());
                Ok(())
            }
            opcode::MKNOD => {
                let arg = a.take()?;
                put(out, &fs.mknod(req, node, a.name()?, &arg)?.to_wire());
                Ok(())
            }
            opcode::MKDIR => {
                let arg = a.take()?;
                put(out, &fs.mkdir(req, node, a.name()?, &arg)?.to_wire());
                Ok(())
            }
            opcode::UNLINK => fs.unlink(req, node, a.name()?),
            opcode::RMDIR => fs.rmdir(req, node, a.name()?),
            opcode::RENAME => {
                let arg: RenameIn = a.take()?;
                let name = a.name()?;
                fs.rename2(req, node, name, arg.newdir, a.name()?, 0)
            }
            opcode::RENAME2 => {
                let arg: Rename2In = a.take()?;
                let name = a.name()?;
                fs.rename2(req, node, name, arg.newdir, a.name()?, arg.flags)
            }
            opcode::LINK => {
                let arg: LinkIn = a.take()?;
                let entry = fs.link(req, arg.oldnodeid, node, a.name()?)?;
                put(out, &entry.to_wire());
                Ok(())
            }
            opcode::OPEN => {
                put(out, &fs.open(req, node, &a.take()?)?.to_wire());
                Ok(())
            }
            opcode::OPENDIR => {
                put(out, &fs.opendir(req, node, &a.take()?)?.to_wire());
                Ok(())
            }
            opcode::CREATE => {
                let arg = a.take()?;
                put_created(out, fs.create(req, node, a.name()?, &arg)?);
                Ok(())
            }
            opcode::TMPFILE => {
                put_created(out, fs.tmpfile(req, node, &a.take()?)?);
                Ok(())
            }
            opcode::READ => self.read(req, a.take()?, out),
            opcode::READDIR => {
                let arg: ReadIn = a.take()?;
                let size = self.clamp(arg.size);
                fs.readdir(req, node, &arg, &mut DirBuffer::new(out, size))
            }
            opcode::READDIRPLUS => {
                let arg: ReadIn = a.take()?;
                let size = self.clamp(arg.size);
                fs.readdirplus(req, node, &arg, &mut DirPlusBuffer::new(out, size))
            }
            opcode::WRITE => {
                let arg: WriteIn = a.take()?;
                let data = a.bytes(arg.size as usize)?;
                let size = fs.write(req, node, &arg, data)?;
                put(out, &WriteOut { size, padding: 0 });
                Ok(())
            }
            opcode::STATFS => {
                put(out, &fs.statfs(req, node)?);
                Ok(())
            }
            opcode::RELEASE => fs.release(req, node, &a.take()?),
            opcode::RELEASEDIR => fs.releasedir(req, node, &a.take()?),
            opcode::FLUSH => fs.flush(req, node, &a.take()?),
            opcode::FSYNC => fs.fsync(req, node, &a.take()?),
            opcode::FSYNCDIR => fs.fsyncdir(req, node, &a.take()?),
            opcode::SETXATTR => {
                let arg = self.setxattr_in(a)?;
                let name = a.name()?;
                let value = a.bytes(arg.size as usize)?;
                fs.setxattr(req, node, name, value, &arg)
            }
            opcode::GETXATTR => {
                let arg: GetxattrIn = a.take()?;
                put_xattr(out, arg.size, &fs.getxattr(req, node, a.name()?)?)
            }
            opcode::LISTXATTR => {
                let arg: GetxattrIn = a.take()?;
                put_xattr(out, arg.size, &fs.listxattr(req, node)?)
            }
            opcode::REMOVEXATTR => fs.removexattr(req, node, a.name()?),
            opcode::ACCESS => {
                let arg: AccessIn = a.take()?;
                fs.access(req, node, arg.mask)
            }
            opcode::BMAP => {
                let block = fs.bmap(req, node, &a.take()?)?;
                put(out, &BmapOut { block });
                Ok(())
            }
            opcode::FALLOCATE => fs.fallocate(req, node, &a.take()?),
            opcode::LSEEK => {
                let offset = fs.lseek(req, node, &a.take()?)?;
                put(out, &LseekOut { offset });
                Ok(())
            }
            opcode::COPY_FILE_RANGE => {
                let n = fs.copy_file_range(req, node, &a.take()?)?;
                // This older form cannot report more; the caller goes on from there.
                let size = u32::try_from(n).unwrap_or(!0xfff);
                put(out, &WriteOut { size, padding: 0 });
                Ok(())
            }
            opcode::COPY_FILE_RANGE_64 => {
                let bytes_copied = fs.copy_file_range(req, node, &a.take()?)?;
                put(out, &CopyFileRangeOut { bytes_copied });
                Ok(())
            }
            opcode::SYNCFS => fs.syncfs(req, node),
            opcode::IOCTL => {
                let arg: IoctlIn = a.take()?;
                let reply = fs.ioctl(req, node, &arg, a.bytes(arg.in_size as usize)?)?;
                if reply.data.len() > arg.out_size as usize {
                    return Err(Errno::OVERFLOW);
                }
                let head = IoctlOut {
                    result: reply.result,
                    ..Default::default()
                };
                put(out, &head);
                out.extend_from_slice(&reply.data);
                Ok(())
            }
            opcode::IOMAP_BEGIN => {
                let reply = fs.iomap_begin(req, node, &a.take()?)?;
                put(out, &reply.to_wire());
                for mapping in &reply.more {
                    put(out, &mapping.to_wire());
                }
                Ok(())
            }
            opcode::IOMAP_END => fs.iomap_end(req, node, &a.take()?),
            opcode::IOMAP_IOEND => self.ioend(req, a, out),
            opcode::IOMAP_CONFIG => {
                put(out, &fs.iomap_config(req, &a.take()?)?);
                Ok(())
            }
            opcode::FREEZE_FS => {
                let arg: FreezefsIn = a.take()?;
                fs.freeze(req, arg.unlinked)
            }
            opcode::UNFREEZE_FS => fs.unfreeze(req),
            opcode::SHUTDOWN_FS => {
                let arg: ShutdownfsIn = a.take()?;
                fs.shutdown(req, arg.flags)
            }
            _ => Err(Errno::NOSYS),
        }
    }

    fn clamp(&self, size: u32) -> usize {
        (size as usize).min(self.max_read)
    }

    fn init(&self, arg: InitIn, out: &mut Vec<u8>) -> Result<()> {
        if arg.major != wire::KERNEL_VERSION {
            // Naming our own version makes a newer kernel ask again in our terms.
            let version = InitOut {
                major: wire::KERNEL_VERSION,
                minor: wire::KERNEL_MINOR_VERSION,
                ..Default::default()
            };
            put(out, &version);
            return Ok(());
        }
        let mut config = InitConfig::new(&arg, self.max_write);
        self.fs.init(&mut config)?;
        // Buffers have been sized already, so a server can only ask for less.
        config.max_write = config.max_write.min(self.max_write);
        self.connection.set_negotiated(Negotiated {
            kernel_minor: arg.minor,
            offered: config.offered(),
            flags: config.wanted(),
            max_write: config.max_write,
        });
        put(out, &config.to_wire());
        Ok(())
    }

    fn read(&self, req: &Request, arg: ReadIn, out: &mut Vec<u8>) -> Result<()> {
        let size = self.clamp(arg.size);
        out.resize(HEADER + size, 0);
        let n = self.fs.read(req, req.nodeid(), &arg, &mut out[HEADER..])?;
        out.truncate(HEADER + n.min(size));
        Ok(())
    }

    fn setxattr_in(&self, args: &mut Args<'_>) -> Result<SetxattrIn> {
        if self.connection.has(wire::init::SETXATTR_EXT) {
            return args.take();
        }
        let short: SetxattrInCompat = args.take()?;
        Ok(SetxattrIn {
            size: short.size,
            flags: short.flags,
            ..Default::default()
        })
    }

    /// One record, or several if BATCH_IOEND was negotiated; as many sizes go back.
    fn ioend(&self, req: &Request, args: &mut Args<'_>, out: &mut Vec<u8>) -> Result<()> {
        loop {
            let record = args.take()?;
            let newsize = self.fs.iomap_ioend(req, req.nodeid(), &record)?;
            put(out, &IomapIoendOut { newsize });
            if args.is_empty() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request;
    use crate::{AttrReply, BeginReply, IoctlReply, Mapping};
    use std::ffi::OsStr;
    use zerocopy::FromBytes;

    /// Answers what is checked below, and nothing else.
    struct Fs;

    impl Filesystem for Fs {
        fn lookup(&self, _: &Request, _: u64, name: &OsStr) -> Result<Entry> {
            if name == "there" {
                Ok(Entry::new(7, Attr::default()))
            } else {
                Err(Errno::NOENT)
            }
        }

        fn getattr(&self, _: &Request, _: u64, _: &GetattrIn) -> Result<AttrReply> {
            Ok(AttrReply::new(Attr::default()))
        }

        fn read(&self, _: &Request, _: u64, _: &ReadIn, buf: &mut [u8]) -> Result<usize> {
            buf.fill(0xaa);
            // More than there is room for: the library must not believe it.
            Ok(buf.len() + 100)
        }

        fn getxattr(&self, _: &Request, _: u64, _: &OsStr) -> Result<Vec<u8>> {
            Ok(b"value".to_vec())
        }

        fn setxattr(
            &self,
            _: &Request,
            _: u64,
            name: &OsStr,
            value: &[u8],
            _: &SetxattrIn,
        ) -> Result<()> {
            if name == "user.x" && value == b"123" {
                Ok(())
            } else {
                Err(Errno::INVAL)
            }
        }

        fn ioctl(&self, _: &Request, _: u64, _: &IoctlIn, _: &[u8]) -> Result<IoctlReply> {
            Ok(IoctlReply {
                result: 0,
                data: vec![1; 8],
            })
        }

        fn iomap_begin(&self, _: &Request, _: u64, args: &IomapBeginIn) -> Result<BeginReply> {
            let mut reply = BeginReply::read(Mapping::hole(args.pos, 4096));
            reply
                .more
                .push(Mapping::delalloc(args.pos.wrapping_add(4096), 4096));
            Ok(reply)
        }

        fn iomap_ioend(&self, _: &Request, _: u64, args: &IomapIoendIn) -> Result<u64> {
            Ok(args.pos.wrapping_add(args.written))
        }
    }

    fn connection() -> Connection {
        let null = std::fs::File::open("/dev/null").unwrap();
        Connection::new(null.into())
    }

    fn message(op: u32, args: &[u8]) -> Vec<u8> {
        let header = InHeader {
            len: (size_of::<InHeader>() + args.len()) as u32,
            opcode: op,
            unique: 99,
            nodeid: 7,
            ..Default::default()
        };
        [header.as_bytes(), args].concat()
    }

    /// The error and the payload of the answer.
    fn answer_on(connection: &Connection, op: u32, args: &[u8]) -> (i32, Vec<u8>) {
        let message = message(op, args);
        let (req, args) = request::split(&message).unwrap();
        let mut out = Vec::new();
        let dispatcher = Dispatcher {
            fs: &Fs,
            connection,
            max_read: 4096,
            max_write: 4096,
        };
        dispatcher.answer(&req, args, &mut out);
        if out.is_empty() {
            assert!(opcode::is_oneway(op));
            return (0, out);
        }
        let (header, payload) = OutHeader::read_from_prefix(&out).unwrap();
        assert_eq!(header.len as usize, out.len());
        assert_eq!(header.unique, 99);
        assert!(header.error == 0 || payload.is_empty());
        (header.error, payload.to_vec())
    }

    fn answer(op: u32, args: &[u8]) -> (i32, Vec<u8>) {
        answer_on(&connection(), op, args)
    }

    #[test]
    fn no_request_however_damaged_makes_it_panic() {
        let connection = connection();
        let ops = opcode::ALL
            .iter()
            .map(|(op, _)| *op)
            .chain([0, 7, 60, 4096, u32::MAX]);
        for op in ops {
            for fill in [0, 1, 0xff] {
                for len in 0..160 {
                    answer_on(&connection, op, &vec![fill; len]);
                }
            }
        }
        assert!(connection.counters().malformed() > 0);
        assert!(connection.counters().unknown() > 0);
    }

    #[test]
    fn too_short_is_malformed_and_too_much_to_ask_for_is_cut() {
        let args = ReadIn {
            size: u32::MAX,
            ..Default::default()
        };
        let (error, data) = answer(opcode::READ, args.as_bytes());
        assert_eq!((error, data.len()), (0, 4096));
        let short = &args.as_bytes()[..39];
        assert_eq!(answer(opcode::READ, short).0, -5);
    }

    #[test]
    fn names_and_missing_methods() {
        let (error, entry) = answer(opcode::LOOKUP, b"there\0");
        assert_eq!((error, entry.len()), (0, 128));
        assert_eq!(answer(opcode::LOOKUP, b"elsewhere\0").0, -2);
        assert_eq!(answer(opcode::LOOKUP, b"there").0, -5);
        assert_eq!(answer(opcode::STATFS, b"").0, -38);
        assert_eq!(answer(opcode::IOMAP_END, &[0; 72]).0, -38);
        assert_eq!(answer(1234, b"").0, -38);
    }

    #[test]
    fn attribute_values_fit_the_callers_buffer_or_not() {
        let get = |size: u32| {
            let args = GetxattrIn { size, padding: 0 };
            answer(opcode::GETXATTR, &[args.as_bytes(), b"user.x\0"].concat())
        };
        assert_eq!(get(0), (0, [5u32.to_ne_bytes(), [0; 4]].concat()));
        assert_eq!(get(5), (0, b"value".to_vec()));
        assert_eq!(get(4).0, -34);
    }

    #[test]
    fn setxattr_has_two_forms() {
        let short = [3u32.to_ne_bytes(), [0; 4]].concat();
        let body = b"user.x\x00123";
        let connection = connection();
        let args = [&short, &body[..]].concat();
        assert_eq!(answer_on(&connection, opcode::SETXATTR, &args).0, 0);
        let init = InitIn {
            major: 7,
            minor: 46,
            flags: wire::init::SETXATTR_EXT as u32,
            ..Default::default()
        };
        let (error, out) = answer_on(&connection, opcode::INIT, init.as_bytes());
        assert_eq!((error, out.len()), (0, 64));
        let args = [&short, &[0; 8][..], body].concat();
        assert_eq!(answer_on(&connection, opcode::SETXATTR, &args).0, 0);
    }

    #[test]
    fn iomap_answers_are_laid_out_as_in_the_protocol() {
        let begin = IomapBeginIn {
            pos: 8192,
            ..Default::default()
        };
        let (error, out) = answer(opcode::IOMAP_BEGIN, begin.as_bytes());
        assert_eq!((error, out.len()), (0, 96));
        assert_eq!(out[64..72], 12_288u64.to_ne_bytes());

        let record = |pos| IomapIoendIn {
            pos,
            written: 100,
            ..Default::default()
        };
        let two = [record(0), record(1000)];
        let (error, out) = answer(opcode::IOMAP_IOEND, two.as_bytes());
        assert_eq!(error, 0);
        assert_eq!(out, [100u64.to_ne_bytes(), 1100u64.to_ne_bytes()].concat());
        assert_eq!(answer(opcode::IOMAP_IOEND, &two.as_bytes()[..95]).0, -5);
        assert_eq!(answer(opcode::IOMAP_IOEND, b"").0, -5);
    }

    #[test]
    fn an_ioctl_cannot_return_more_than_was_asked_for() {
        let ioctl = |out_size| {
            let args = IoctlIn {
                out_size,
                ..Default::default()
            };
            answer(opcode::IOCTL, args.as_bytes())
        };
        assert_eq!(ioctl(8).1.len(), 24);
        assert_eq!(ioctl(7).0, -75);
    }
}
