// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Asynchronous I/O by the system calls behind libaio, many requests at a time.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const READ: u16 = 0;
const WRITE: u16 = 1;
const ALIGN: usize = 4096;

/// `struct iocb`, little-endian.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

struct Context(u64);

impl Context {
    fn new(depth: usize) -> io::Result<Self> {
        let mut context = 0u64;
        // SAFETY: The kernel writes one word to a live variable.
        let ret = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        if ret < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(context))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: No memory is passed. This waits for what is under way, so that no buffer is used
        // after it.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// One request: where, and what is written or where to put what is read.
pub struct Piece {
    /// File offset.
    pub offset: u64,
    /// The data.
    pub data: Vec<u8>,
    /// How many bytes it came to, or a negative errno.
    pub result: i64,
}

impl Piece {
    /// To write this.
    pub const fn new(offset: u64, data: Vec<u8>) -> Self {
        Self {
            offset,
            data,
            result: 0,
        }
    }
}

fn run(file: &File, opcode: u16, pieces: &mut [Piece]) -> io::Result<()> {
    let mut buffers: Vec<Vec<u8>> = Vec::new();
    for piece in pieces.iter() {
        buffers.push(vec![0; piece.data.len() + ALIGN]);
    }
    let context = Context::new(pieces.len())?;
    let mut iocbs = Vec::new();
    let mut starts = Vec::new();
    for ((i, piece), buffer) in pieces.iter().enumerate().zip(&mut buffers) {
        let skip = buffer.as_ptr().align_offset(ALIGN);
        let part = &mut buffer[skip..skip + piece.data.len()];
        if opcode == WRITE {
            part.copy_from_slice(&piece.data);
        }
        starts.push(skip);
        iocbs.push(Iocb {
            data: i as u64,
            opcode,
            fd: file.as_raw_fd() as u32,
            buf: part.as_mut_ptr() as u64,
            nbytes: part.len() as u64,
            offset: piece.offset as i64,
            ..Iocb::default()
        });
    }
    let pointers: Vec<*const Iocb> = iocbs.iter().map(std::ptr::from_ref).collect();
    let mut submitted = 0;
    while submitted < pointers.len() {
        let left = &pointers[submitted..];
        // SAFETY: The pointers are to live control blocks, whose buffers live until `context`, which
        // was made after them, is gone or all of them are done.
        let n = unsafe { libc::syscall(libc::SYS_io_submit, context.0, left.len(), left.as_ptr()) };
        if n <= 0 {
            return Err(io::Error::last_os_error());
        }
        submitted += n as usize;
    }
    let mut done = 0;
    let mut events = vec![Event::default(); pieces.len()];
    while done < pieces.len() {
        let left = pieces.len() - done;
        // SAFETY: There is room for as many events.
        let n = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context.0,
                1usize,
                left,
                events.as_mut_ptr(),
                std::ptr::null::<libc::timespec>(),
            )
        };
        if n < 0 {
            return Err(io::Error::last_os_error());
        }
        for event in &events[..n as usize] {
            let i = event.data as usize;
            pieces[i].result = event.res;
            if opcode == READ {
                let len = event.res.max(0) as usize;
                let start = starts[i];
                // The kernel is done with this buffer.
                pieces[i].data = buffers[i][start..start + len].to_vec();
            }
        }
        done += n as usize;
    }
    Ok(())
}

/// Writes all pieces at once.
pub fn write(file: &File, pieces: &mut [Piece]) -> io::Result<()> {
    run(file, WRITE, pieces)
}

/// Reads all pieces at once, each as long as its data.
pub fn read(file: &File, pieces: &mut [Piece]) -> io::Result<()> {
    run(file, READ, pieces)
}
