// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The answer to CONFIG.

use crate::wire::{IomapConfigIn, IomapConfigOut, iomap_config};

/// What the filesystem is like, and what of the kernel's mapping cache it uses. Says nothing at
/// first; what is not said stays as the kernel has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigReply(IomapConfigOut);

impl ConfigReply {
    /// Says nothing, and accepts no extension.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts those of these extensions that the kernel offers, see
    /// [`iomap_config::EXTENSIONS`].
    #[must_use]
    pub const fn extensions(mut self, request: &IomapConfigIn, wanted: u64) -> Self {
        self.0.flags |= request.flags & wanted & iomap_config::EXTENSIONS;
        self
    }

    /// The most memory that the mappings of one inode take in the kernel's cache, in bytes. With 0
    /// it caches nothing.
    #[must_use]
    pub const fn cache_maxbytes(mut self, bytes: u32) -> Self {
        self.0.flags |= iomap_config::CACHE_MAXBYTES;
        self.0.cache_maxbytes = bytes;
        self
    }

    /// The size of the largest file.
    #[must_use]
    pub const fn maxbytes(mut self, bytes: i64) -> Self {
        self.0.flags |= iomap_config::MAXBYTES;
        self.0.s_maxbytes = bytes;
        self
    }

    /// The UUID of the filesystem.
    #[must_use]
    pub const fn uuid(mut self, uuid: [u8; 16]) -> Self {
        self.0.flags |= iomap_config::UUID;
        self.0.s_uuid = uuid;
        self.0.s_uuid_len = 16;
        self
    }

    /// What the kernel calls the filesystem in its log; cut after 31 bytes, which have to be printable.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.0.flags |= iomap_config::SID;
        for (to, from) in self.0.s_id[..31].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        self
    }

    /// The first and the last second since 1970 that times can have, and their granularity in
    /// nanoseconds.
    #[must_use]
    pub const fn times(mut self, first: i64, last: i64, granularity: u32) -> Self {
        self.0.flags |= iomap_config::TIME;
        self.0.s_time_min = first;
        self.0.s_time_max = last;
        self.0.s_time_gran = granularity;
        self
    }

    /// The block size of the filesystem.
    #[must_use]
    pub const fn block_size(mut self, bytes: u32) -> Self {
        self.0.flags |= iomap_config::BLOCKSIZE;
        self.0.s_blocksize = bytes;
        self
    }

    /// How many names a file may have.
    #[must_use]
    pub const fn max_links(mut self, links: u32) -> Self {
        self.0.flags |= iomap_config::MAX_LINKS;
        self.0.s_max_links = links;
        self
    }

    /// The bytes that go to the kernel.
    pub const fn to_wire(self) -> IomapConfigOut {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_offered_extensions_are_accepted() {
        let request = IomapConfigIn {
            flags: iomap_config::BATCH_IOEND | iomap_config::CACHE_MAXBYTES | 1 << 40,
            ..Default::default()
        };
        let reply = ConfigReply::new().extensions(&request, u64::MAX);
        assert_eq!(reply.to_wire().flags, iomap_config::BATCH_IOEND);
    }

    #[test]
    fn only_what_was_said_is_set() {
        assert_eq!(ConfigReply::new().to_wire(), IomapConfigOut::default());
        let reply = ConfigReply::new().cache_maxbytes(0).uuid([7; 16]);
        let out = reply.max_links(9).maxbytes(1 << 40).block_size(1024);
        let out = out.to_wire();
        let fields = iomap_config::CACHE_MAXBYTES
            | iomap_config::UUID
            | iomap_config::MAX_LINKS
            | iomap_config::MAXBYTES
            | iomap_config::BLOCKSIZE;
        assert_eq!((out.flags, out.cache_maxbytes), (fields, 0));
        assert_eq!((out.s_uuid, out.s_uuid_len), ([7; 16], 16));
        assert_eq!((out.s_max_links, out.s_maxbytes), (9, 1 << 40));
        assert_eq!(out.s_blocksize, 1024);
        let out = ConfigReply::new().name("vda").times(-1, 7, 1000).to_wire();
        assert_eq!(out.flags, iomap_config::SID | iomap_config::TIME);
        assert_eq!(&out.s_id[..4], b"vda\0");
        assert_eq!(
            (out.s_time_min, out.s_time_max, out.s_time_gran),
            (-1, 7, 1000)
        );
    }
}
