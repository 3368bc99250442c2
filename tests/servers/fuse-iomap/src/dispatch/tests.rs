// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Requests as bytes, and what comes back.

use super::*;
use crate::request;
use crate::{AttrReply, BeginReply, ConfigReply, IoctlReply, Mapping};
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
        if args.error != 0 {
            return Err(Errno::NOSPC);
        }
        Ok(args.pos.wrapping_add(args.written))
    }

    fn iomap_config(&self, _: &Request, args: &IomapConfigIn) -> Result<ConfigReply> {
        Ok(ConfigReply::new().extensions(args, args.maxbytes as u64))
    }

    fn setattr(&self, _: &Request, _: u64, args: &SetattrIn) -> Result<AttrReply> {
        Ok(AttrReply::new(Attr {
            size: args.size,
            mode: args.mode,
            ..Default::default()
        }))
    }

    fn fallocate(&self, _: &Request, node: u64, args: &FallocateIn) -> Result<()> {
        let want = (7, 4096, 8192, falloc::PUNCH_HOLE | falloc::KEEP_SIZE);
        found((node, args.offset, args.length, args.mode) == want)
    }

    fn rename2(
        &self,
        _: &Request,
        parent: u64,
        name: &OsStr,
        newparent: u64,
        newname: &OsStr,
        flags: u32,
    ) -> Result<()> {
        found((parent, newparent, flags) == (7, 9, 1) && name == "a" && newname == "b")
    }

    fn link(&self, _: &Request, node: u64, newparent: u64, name: &OsStr) -> Result<Entry> {
        found((node, newparent) == (9, 7) && name == "b")?;
        Ok(Entry::new(node, Attr::default()))
    }

    fn symlink(&self, _: &Request, _: u64, name: &OsStr, target: &OsStr) -> Result<Entry> {
        found(name == "a" && target == "b")?;
        Ok(Entry::new(8, Attr::default()))
    }

    fn create(
        &self,
        _: &Request,
        parent: u64,
        name: &OsStr,
        args: &CreateIn,
    ) -> Result<(Entry, Opened)> {
        found(parent == 7 && name == "a" && args.mode == 0o100_644)?;
        let opened = Opened {
            fh: 5,
            ..Opened::default()
        };
        Ok((Entry::new(8, Attr::default()), opened))
    }

    fn fsync(&self, _: &Request, _: u64, args: &FsyncIn) -> Result<()> {
        found(args.fh == 5 && args.fsync_flags == request_flags::FSYNC_FDATASYNC)
    }

    fn copy_file_range(&self, _: &Request, node: u64, args: &CopyFileRangeIn) -> Result<u64> {
        found((node, args.nodeid_out, args.off_in, args.off_out) == (7, 9, 1, 2))?;
        Ok(args.len)
    }
}

/// Success if the arguments are those that were sent.
fn found(as_sent: bool) -> Result<()> {
    as_sent.then_some(()).ok_or(Errno::INVAL)
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
        uring: false,
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

/// A connection whose kernel offers all extensions and whose server takes these.
fn extended(extensions: u64) -> Connection {
    let connection = connection();
    let config = IomapConfigIn {
        flags: u64::MAX,
        // The server above takes what this says.
        maxbytes: extensions as i64,
        ..Default::default()
    };
    let (error, out) = answer_on(&connection, opcode::IOMAP_CONFIG, config.as_bytes());
    assert_eq!((error, out.len()), (0, 104));
    assert_eq!(out[..8], extensions.to_ne_bytes());
    assert_eq!(connection.extensions(), extensions);
    connection
}

#[test]
fn iomap_answers_are_laid_out_as_in_the_protocol() {
    let begin = IomapBeginIn {
        pos: 8192,
        ..Default::default()
    };
    let batching = extended(iomap_config::BATCH_MAPPINGS);
    let (error, out) = answer_on(&batching, opcode::IOMAP_BEGIN, begin.as_bytes());
    assert_eq!((error, out.len()), (0, 96));
    assert_eq!(out[64..72], 12_288u64.to_ne_bytes());
    assert_eq!(batching.counters().more_mappings(), 1);
    let writeback = IomapBeginIn {
        opflags: iomap_op::WRITE | iomap_op::WRITEBACK,
        ..begin
    };
    let (error, out) = answer_on(&batching, opcode::IOMAP_BEGIN, writeback.as_bytes());
    assert_eq!((error, out.len()), (0, 64));
    let (error, out) = answer(opcode::IOMAP_BEGIN, begin.as_bytes());
    assert_eq!((error, out.len()), (0, 64));
}

#[test]
fn several_ioends_come_only_where_that_was_agreed_on() {
    let record = |pos| IomapIoendIn {
        pos,
        written: 100,
        ..Default::default()
    };
    let two = [record(0), record(1000)];
    let batching = extended(iomap_config::BATCH_IOEND);
    let (error, out) = answer_on(&batching, opcode::IOMAP_IOEND, two.as_bytes());
    assert_eq!(error, 0);
    assert_eq!(out, [100u64.to_ne_bytes(), 1100u64.to_ne_bytes()].concat());
    assert_eq!(batching.counters().get(opcode::IOMAP_IOEND), 1);
    assert_eq!(batching.counters().ioend_records(), 2);
    let cut = &two.as_bytes()[..95];
    assert_eq!(answer_on(&batching, opcode::IOMAP_IOEND, cut).0, -5);
    assert_eq!(answer_on(&batching, opcode::IOMAP_IOEND, b"").0, -5);
    assert_eq!(answer(opcode::IOMAP_IOEND, two.as_bytes()).0, -5);
    let (error, out) = answer(opcode::IOMAP_IOEND, two[1].as_bytes());
    assert_eq!((error, out), (0, 1100u64.to_ne_bytes().to_vec()));
}

#[test]
fn a_server_cannot_take_what_was_not_offered() {
    let connection = connection();
    let config = IomapConfigIn {
        flags: iomap_config::CACHE_MAXBYTES | iomap_config::CACHE_REPLIES,
        maxbytes: -1,
        ..Default::default()
    };
    let (error, _) = answer_on(&connection, opcode::IOMAP_CONFIG, config.as_bytes());
    assert_eq!(error, 0);
    assert_eq!(connection.extensions(), iomap_config::CACHE_REPLIES);
}

#[test]
fn an_ioend_is_refused_as_a_whole() {
    let failed = IomapIoendIn {
        error: -5,
        ..Default::default()
    };
    let records = [IomapIoendIn::default(), failed];
    let batching = extended(iomap_config::BATCH_IOEND);
    let (error, out) = answer_on(&batching, opcode::IOMAP_IOEND, records.as_bytes());
    assert_eq!((error, out.len()), (-28, 0));
}

#[test]
fn sizes_and_ranges_arrive_as_sent() {
    let setattr = SetattrIn {
        valid: fattr::SIZE,
        size: 0x1122_3344_5566,
        mode: 0o644,
        ..Default::default()
    };
    let (error, out) = answer(opcode::SETATTR, setattr.as_bytes());
    let attr = AttrOut::read_from_bytes(&out).unwrap().attr;
    assert_eq!((error, attr.size, attr.mode), (0, setattr.size, 0o644));
    let fallocate = FallocateIn {
        fh: 3,
        offset: 4096,
        length: 8192,
        mode: falloc::PUNCH_HOLE | falloc::KEEP_SIZE,
        padding: 0,
    };
    let bytes = fallocate.as_bytes();
    assert_eq!(answer(opcode::FALLOCATE, bytes).0, 0);
    assert_eq!(answer(opcode::FALLOCATE, &bytes[..31]).0, -5);
    let fsync = FsyncIn {
        fh: 5,
        fsync_flags: 1,
        padding: 0,
    };
    assert_eq!(answer(opcode::FSYNC, fsync.as_bytes()).0, 0);
    assert_eq!(answer(opcode::SYNCFS, &[0; 8]).0, -38);
    let copy = |len| CopyFileRangeIn {
        nodeid_out: 9,
        off_in: 1,
        off_out: 2,
        len,
        ..Default::default()
    };
    let (error, out) = answer(opcode::COPY_FILE_RANGE_64, copy(1 << 40).as_bytes());
    assert_eq!((error, out), (0, (1u64 << 40).to_ne_bytes().to_vec()));
    let (_, out) = answer(opcode::COPY_FILE_RANGE, copy(1 << 40).as_bytes());
    assert_eq!(out, [0xffff_f000u32.to_ne_bytes(), [0; 4]].concat());
}

#[test]
fn names_come_in_the_order_of_the_calls() {
    let rename = Rename2In {
        newdir: 9,
        flags: 1,
        padding: 0,
    };
    let args = [rename.as_bytes(), b"a\0b\0"].concat();
    assert_eq!(answer(opcode::RENAME2, &args).0, 0);
    assert_eq!(answer(opcode::RENAME2, &args[..args.len() - 1]).0, -5);
    let link = LinkIn { oldnodeid: 9 };
    let args = [link.as_bytes(), b"b\0"].concat();
    assert_eq!(answer(opcode::LINK, &args).0, 0);
    assert_eq!(answer(opcode::SYMLINK, b"a\0b\0").0, 0);
    let create = CreateIn {
        mode: 0o100_644,
        ..Default::default()
    };
    let args = [create.as_bytes(), b"a\0"].concat();
    let (error, out) = answer(opcode::CREATE, &args);
    assert_eq!((error, out.len()), (0, 128 + 16));
    assert_eq!(out[128..136], 5u64.to_ne_bytes());
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
