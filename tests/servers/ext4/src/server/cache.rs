// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the kernel may remember of the answers to BEGIN, so that it need not ask again.
//!
//! Nothing has to be invalidated: blocks move only by requests of the kernel, which forgets what they
//! change by itself, and what was allocated ahead of need is taken back only from files that the
//! kernel has forgotten.

use fuse_iomap::{
    BackingId, BeginReply, CacheMode, ConfigReply, Mapping,
    wire::{IomapBeginIn, IomapConfigIn, MAX_MORE_MAPPINGS, iomap_op},
};

use ext4_volume::{
    inode::Inode,
    map::{Run, Target},
    names::LINK_MAX,
};

use super::Server;

/// The kernel looks these up without its cache.
const ALWAYS_ASKED: u32 = iomap_op::SWAPFILE | iomap_op::ATOMIC;

impl Server {
    pub(super) fn config(&self, request: &IomapConfigIn) -> ConfigReply {
        let (first, last, granularity) = self.volume.times();
        ConfigReply::new()
            .caching(request, &self.caching)
            .name(&self.name)
            .times(first, last, granularity)
            .uuid(self.volume.uuid())
            .block_size(self.volume.block_size())
            .max_links(u32::from(LINK_MAX))
            .maxbytes(i64::try_from(self.volume.max_size()).unwrap_or(i64::MAX))
    }

    /// The answer that says what a run is. The caller holds the volume's lock.
    pub(super) fn answer(
        &self,
        nodeid: u64,
        args: &IomapBeginIn,
        (inode, device): (&Inode, BackingId),
        run: &Run,
    ) -> BeginReply {
        let end = args.pos.saturating_add(args.count);
        let size = self.volume.size(inode);
        let read = self.mapping(run, device, size, end);
        self.count_begin(run, &read);
        let reply = match run.target {
            // Where it is to be written is said even though it is the same: an older answer that is
            // still on its way may say that there is a hole to read.
            Target::Unwritten(_) => BeginReply::read_write(read, read),
            Target::Mapped(_) | Target::Hole => BeginReply::read(read),
        };
        if args.opflags & ALWAYS_ASKED != 0 {
            return reply;
        }
        match self.caching.mode {
            CacheMode::Off => reply,
            CacheMode::Replies => {
                let mut reply = reply;
                if args.opflags & iomap_op::WRITEBACK == 0 {
                    self.add_more(&mut reply, (inode, device), run);
                }
                if run.target == Target::Hole {
                    reply.read = reply.read.cached();
                    return reply;
                }
                reply.cached()
            }
            CacheMode::Upsert => self.upsert(nodeid, args, reply, run),
        }
    }

    /// Adds what follows in the file, as far as it is cheap to find.
    fn add_more(&self, reply: &mut BeginReply, (inode, device): (&Inode, BackingId), run: &Run) {
        let block_size = u64::from(self.volume.block_size());
        let most = self.caching.batch_mappings.min(MAX_MORE_MAPPINGS);
        let size = self.volume.size(inode);
        let end = size.div_ceil(block_size);
        let mut at = run.end();
        let mut in_place = matches!(run.target, Target::Mapped(_));
        while at < end && reply.more.len() < most {
            // Damage is told to whoever wants to know what is there.
            let Ok(next) = self.volume.run(inode, at, at + 1) else {
                return;
            };
            let mapping = self.mapping(&next, device, size, 0);
            in_place = in_place && matches!(next.target, Target::Mapped(_));
            if in_place {
                // What is written here goes where the mappings behind this one say.
                let start = reply.read.offset();
                reply.write = Mapping::pure_overwrite(start, mapping.end() - start);
            }
            reply.more.push(mapping.cached());
            at = next.end();
        }
    }

    /// Tells the kernel by a notification, and then to look for it.
    fn upsert(&self, nodeid: u64, args: &IomapBeginIn, reply: BeginReply, run: &Run) -> BeginReply {
        // For a write, and to zero, the kernel wants to know where to write; that is not in its cache.
        let changes = args.opflags & (iomap_op::WRITE | iomap_op::ZERO) != 0;
        if self.caching.bytes == Some(0) || changes && run.target == Target::Hole {
            return reply;
        }
        // If the kernel did not find it, its cache is too small.
        if self.retried.again(nodeid, args) {
            return reply;
        }
        let Some(running) = self.running.get() else {
            return reply;
        };
        let (offset, length) = (reply.read.offset(), reply.read.length());
        let write = match run.target {
            Target::Hole => Mapping::no_cache(offset, length),
            _ => reply.write,
        };
        // The inode has the number that `attr` says.
        let Ok(ino) = super::inode_number(nodeid) else {
            return reply;
        };
        let told = running
            .connection
            .iomap_upsert(nodeid, ino.into(), reply.read, write);
        if told.is_err() {
            return reply;
        }
        BeginReply::read(Mapping::retry_cache(offset, length))
    }
}
