// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A mount and the threads that serve it.

use crate::connection::Connection;
use crate::dispatch::Dispatcher;
use crate::fs::Filesystem;
use crate::hook::{ReplyAction, ReplyHook};
use crate::ioctl;
use crate::mount::{self, MountOptions};
use crate::request::{self, Request};
use crate::uring;
use crate::wire::{self, InHeader, InterruptIn, OutHeader, WriteIn, opcode};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use zerocopy::FromBytes;

/// How a session is run.
#[derive(Clone)]
pub struct SessionOptions {
    /// Worker threads.
    pub threads: usize,
    /// Largest READ and WRITE in bytes.
    pub max_io: u32,
    /// Keep the workers out of filesystem reclaim (see [`Connection::set_nofs`]). Ignored by
    /// kernels and mounts without iomap.
    pub nofs: bool,
    /// On SIGTERM, SIGINT and SIGHUP unmount, on SIGUSR1 write the counters out.
    pub handle_signals: bool,
    /// Where counters are written on SIGUSR1 and at the end.
    pub counters_file: Option<PathBuf>,
    /// Have mount(2) wait for INIT and CONFIG (ioctl SYNC_INIT), so that it fails if they do. Only
    /// for sessions that mount.
    pub sync_init: bool,
    /// Sees every reply before it is sent.
    pub hook: Option<Arc<dyn ReplyHook>>,
    /// Exchange requests and replies over io_uring, if the kernel offers that
    /// (`fuse.enable_uring`) and this process may have rings; else this changes nothing.
    pub uring: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        let cpus = thread::available_parallelism().map_or(2, NonZero::get);
        Self {
            threads: cpus.clamp(2, 16),
            max_io: 1 << 20,
            nofs: true,
            handle_signals: true,
            counters_file: None,
            sync_init: false,
            hook: None,
            uring: false,
        }
    }
}

/// A mounted filesystem that is yet to be served by [`Session::run`].
pub struct Session<F: Filesystem> {
    shared: Arc<Shared<F>>,
}

struct Shared<F> {
    fs: F,
    connection: Arc<Connection>,
    mountpoint: Option<PathBuf>,
    options: SessionOptions,
}

impl<F: Filesystem> Session<F> {
    /// Mounts `fs` on `mountpoint`. Nothing there answers before [`Session::run`], except that with
    /// [`SessionOptions::sync_init`] INIT and CONFIG have been answered when this returns.
    pub fn mount(
        fs: F,
        mountpoint: impl AsRef<Path>,
        mount_options: &MountOptions,
        options: SessionOptions,
    ) -> io::Result<Self> {
        let dev = mount::open_device()?;
        // A relative path would lead elsewhere once the server changes its directory.
        let mountpoint = mountpoint.as_ref().canonicalize()?;
        let sync_init = options.sync_init;
        let session = Self::new(fs, dev, Some(mountpoint.clone()), options);
        let dev = session.connection();
        if sync_init {
            ioctl::sync_init(dev.as_fd())?;
            // A thread answers while this one waits in mount(2). If that fails before there is a
            // connection, the other waits for one until the process ends.
            let shared = session.shared.clone();
            let handshake = thread::Builder::new()
                .name("handshake".into())
                .spawn(move || Worker::new(shared).shake_hands())?;
            mount::mount(dev.as_fd(), &mountpoint, mount_options)?;
            handshake
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the handshake panicked")))?;
        } else {
            mount::mount(dev.as_fd(), &mountpoint, mount_options)?;
        }
        Ok(session)
    }

    /// Serves a connection that somebody else has mounted or will mount.
    pub fn from_device(fs: F, dev: OwnedFd, options: SessionOptions) -> Self {
        Self::new(fs, dev, None, options)
    }

    fn new(fs: F, dev: OwnedFd, mountpoint: Option<PathBuf>, options: SessionOptions) -> Self {
        Self {
            shared: Arc::new(Shared {
                fs,
                connection: Arc::new(Connection::new(dev)),
                mountpoint,
                options: SessionOptions {
                    // Once INIT has said so, there is no way back.
                    uring: options.uring && may_use_rings(),
                    ..options
                },
            }),
        }
    }

    /// The connection.
    pub fn connection(&self) -> &Arc<Connection> {
        &self.shared.connection
    }

    /// Serves until the filesystem is unmounted, or the connection ends otherwise.
    pub fn run(self) -> io::Result<()> {
        let shared = self.shared;
        let signals = shared.options.handle_signals;
        let handle = if signals {
            Some(shared.clone().watch_signals()?)
        } else {
            None
        };
        let result = shared.clone().serve();
        if result.is_err() {
            shared.detach();
        }
        if let Some(handle) = handle {
            handle.close();
        }
        let dumped = shared.dump_counters();
        result.and(dumped)
    }
}

/// Whether rings can be made; if not, says why.
fn may_use_rings() -> bool {
    uring::available()
        .inspect_err(|e| eprintln!("no io_uring, so requests come over /dev/fuse: {e}"))
        .is_ok()
}

impl<F: Filesystem> Shared<F> {
    fn dump_counters(&self) -> io::Result<()> {
        match &self.options.counters_file {
            Some(path) => self.connection.counters().dump(path),
            None => Ok(()),
        }
    }

    fn detach(&self) {
        match &self.mountpoint {
            // It may be gone already, which is what is wanted.
            Some(mountpoint) => drop(mount::detach(mountpoint)),
            None => eprintln!("unmounting is up to who has mounted"),
        }
    }

    fn watch_signals(self: Arc<Self>) -> io::Result<signal_hook::iterator::Handle> {
        let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        let handle = signals.handle();
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    if signal == SIGUSR1 {
                        if let Err(e) = self.dump_counters() {
                            eprintln!("cannot write the counters: {e}");
                        }
                    } else {
                        self.detach();
                    }
                }
            })?;
        Ok(handle)
    }

    fn serve(self: Arc<Self>) -> io::Result<()> {
        let mut worker = Worker::new(self.clone());
        // INIT comes first and alone, so that nobody asks before `ready` is through.
        while self.connection.negotiated().is_none() {
            if !worker.step()? {
                return Ok(());
            }
        }
        if self.connection.expects_config() {
            // With SYNC_INIT it is the task that mounts which takes the answer to INIT, and only then
            // does the kernel know devices. That it asks for CONFIG shows that it has.
            let Some(config) = worker.receive()? else {
                return Ok(());
            };
            self.fs.ready(&self.connection)?;
            worker.answer(config);
        } else {
            self.fs.ready(&self.connection)?;
        }
        let mut threads = Vec::new();
        let mut start = |name: String, run: Box<dyn FnOnce() -> io::Result<()> + Send>| {
            thread::Builder::new()
                .name(name)
                .spawn(run)
                .map(|thread| threads.push(thread))
        };
        if self.connection.has(wire::init::OVER_IO_URING) {
            // Until CONFIG is answered the kernel takes no rings, and from then on it waits for them.
            while self.connection.expects_config() {
                if !worker.step()? {
                    return Ok(());
                }
            }
            let queues = uring::queues();
            let each = self.options.threads.div_ceil(queues.into()).max(2);
            for (queue, i) in (0..queues).flat_map(|queue| (0..each).map(move |i| (queue, i))) {
                let shared = self.clone();
                let name = format!("ring-{queue}-{i}");
                start(name, Box::new(move || shared.serve_ring(queue)))?;
            }
        } else {
            for i in 1..self.options.threads.max(1) {
                let shared = self.clone();
                let name = format!("fuse-{i}");
                start(name, Box::new(move || Worker::new(shared).run()))?;
            }
        }
        let mut result = worker.run();
        for thread in threads {
            let other = thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked")));
            result = result.and(other);
        }
        result
    }

    /// What each thread that answers requests does first.
    fn prepare_thread(&self) {
        if self.options.nofs && self.connection.has_iomap() {
            // Kernels may lack it, and then there is nothing to do about it.
            let _ = self.connection.set_nofs(true);
        }
    }

    /// Serves one of the kernel's queues.
    fn serve_ring(&self, queue: u16) -> io::Result<()> {
        self.prepare_thread();
        let max_write = self.connection.negotiated().map_or(0, |n| n.max_write);
        uring::Server::new(self, &*self.connection, queue, max_write)
            .and_then(uring::Server::run)
            // Said at once: the other threads go on, and whoever asks for the error joins them first.
            .inspect_err(|e| eprintln!("queue {queue} is no longer served: {e}"))
    }

    /// Answers a request, a whole message. Returns it, unless that makes no sense, and what is to
    /// become of the reply; an empty one is none.
    fn respond(&self, message: &[u8], reply: &mut Vec<u8>) -> Option<(Request, ReplyAction)> {
        let Some((req, args)) = request::split(message) else {
            self.connection.counters().count_malformed();
            return None;
        };
        let dispatcher = Dispatcher {
            fs: &self.fs,
            connection: &self.connection,
            max_read: self.options.max_io as usize,
            max_write: self.options.max_io,
            uring: self.options.uring,
        };
        dispatcher.answer(&req, args, reply);
        let payload = &message[size_of::<InHeader>()..];
        let Some(hook) = &self.options.hook else {
            return Some((req, ReplyAction::Send));
        };
        if req.opcode() == opcode::INTERRUPT {
            if let Ok((interrupt, _)) = InterruptIn::read_from_prefix(payload) {
                hook.interrupted(interrupt.unique);
            }
        }
        if reply.is_empty() {
            return Some((req, ReplyAction::Send));
        }
        let action = hook.reply(&req, payload, reply);
        Some((req, action))
    }
}

impl<F: Filesystem> uring::Answer for Shared<F> {
    fn answer(&self, message: &[u8], reply: &mut Vec<u8>) -> ReplyAction {
        reply.clear();
        self.connection.counters().count_uring();
        self.respond(message, reply)
            .map_or(ReplyAction::Send, |(_, action)| action)
    }
}

/// One thread with its buffers.
struct Worker<F> {
    shared: Arc<Shared<F>>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl<F: Filesystem> Worker<F> {
    fn new(shared: Arc<Shared<F>>) -> Self {
        // The kernel insists on room for the largest WRITE with its headers.
        let headers = size_of::<InHeader>() + size_of::<WriteIn>();
        let size = (shared.options.max_io as usize + headers).max(wire::MIN_READ_BUFFER);
        Self {
            shared,
            input: vec![0; size],
            output: Vec::new(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        self.shared.prepare_thread();
        while self.step()? {}
        Ok(())
    }

    /// Answers what is asked before anything else is.
    fn shake_hands(mut self) -> io::Result<()> {
        while self.step()? {
            let connection = &self.shared.connection;
            if connection.negotiated().is_some() && !connection.expects_config() {
                break;
            }
        }
        Ok(())
    }

    /// Reads and answers one request; `false` when the connection is over.
    fn step(&mut self) -> io::Result<bool> {
        let Some(len) = self.receive()? else {
            return Ok(false);
        };
        self.answer(len);
        Ok(true)
    }

    /// Reads one request, and returns its length; `None` when the connection is over.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        loop {
            return match rustix::io::read(&*self.shared.connection, &mut self.input[..]) {
                Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => Ok(None),
                Ok(len) => Ok(Some(len)),
                // ENOENT: the request was taken back while it was being read.
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
                Err(e) => Err(e.into()),
            };
        }
    }

    /// Answers the request of this length that was read.
    fn answer(&mut self, len: usize) {
        let shared = self.shared.clone();
        let Some((req, action)) = shared.respond(&self.input[..len], &mut self.output) else {
            return;
        };
        if self.output.is_empty() {
            return;
        }
        let hook = shared.options.hook.clone();
        match action {
            ReplyAction::Send => send(&shared.connection, &req, &self.output, hook.as_deref()),
            ReplyAction::Drop => {}
            ReplyAction::Delay(delay) => {
                let reply = std::mem::take(&mut self.output);
                let connection = shared.connection.clone();
                thread::spawn(move || {
                    thread::sleep(delay);
                    send(&connection, &req, &reply, hook.as_deref());
                });
            }
        }
    }
}

fn send(connection: &Connection, req: &Request, reply: &[u8], hook: Option<&dyn ReplyHook>) {
    debug_assert!(reply.len() >= size_of::<OutHeader>() || hook.is_some());
    match connection.send_raw(reply) {
        Ok(()) => {}
        // The caller is gone, or the whole connection is: nobody waits for this any more.
        Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::NOENT | Errno::NODEV)) => {}
        Err(e) => {
            connection.counters().count_refused();
            if let Some(hook) = hook {
                hook.refused(req, &e);
            }
        }
    }
}
