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
    /// Accept io_uring if INIT offers it.
    pub(crate) uring: bool,
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
                let arg: IomapBeginIn = a.take()?;
                let mut reply = fs.iomap_begin(req, node, &arg)?;
                reply.limit(self.connection.extensions());
                if arg.opflags & iomap_op::WRITEBACK != 0 {
                    // Nobody reads on, so there is no room for them.
                    reply.more.clear();
                }
                put(out, &reply.to_wire());
                for mapping in &reply.more {
                    put(out, &mapping.to_wire());
                }
                self.connection.counters().count_more(reply.more.len());
                Ok(())
            }
            opcode::IOMAP_END => fs.iomap_end(req, node, &a.take()?),
            opcode::IOMAP_IOEND => self.ioend(req, a, out),
            opcode::IOMAP_CONFIG => {
                self.connection.set_configured();
                let arg: IomapConfigIn = a.take()?;
                let reply = fs.iomap_config(req, &arg)?.to_wire();
                let extensions = reply.flags & arg.flags & iomap_config::EXTENSIONS;
                self.connection.set_extensions(extensions);
                put(out, &reply);
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
        if self.uring {
            config.request(wire::init::OVER_IO_URING);
        }
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
        let mut records: Vec<IomapIoendIn> = vec![args.take()?];
        if self.connection.has_extensions(iomap_config::BATCH_IOEND) {
            while !args.is_empty() {
                records.push(args.take()?);
            }
        } else {
            args.nothing_more()?;
        }
        self.connection.counters().count_ioends(records.len());
        let sizes = self.fs.iomap_ioends(req, req.nodeid(), &records)?;
        for newsize in sizes {
            put(out, &IomapIoendOut { newsize });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
