// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Request opcodes, `enum fuse_opcode` in C.

macro_rules! opcodes {
    ($($name:ident = $value:literal,)*) => {
        $(
            #[doc = concat!("`FUSE_", stringify!($name), "`.")]
            pub const $name: u32 = $value;
        )*

        /// Every opcode known here, with its name, in ascending order.
        pub const ALL: &[(u32, &str)] = &[$(($value, stringify!($name)),)*];
    };
}

opcodes! {
    LOOKUP = 1,
    FORGET = 2,
    GETATTR = 3,
    SETATTR = 4,
    READLINK = 5,
    SYMLINK = 6,
    MKNOD = 8,
    MKDIR = 9,
    UNLINK = 10,
    RMDIR = 11,
    RENAME = 12,
    LINK = 13,
    OPEN = 14,
    READ = 15,
    WRITE = 16,
    STATFS = 17,
    RELEASE = 18,
    FSYNC = 20,
    SETXATTR = 21,
    GETXATTR = 22,
    LISTXATTR = 23,
    REMOVEXATTR = 24,
    FLUSH = 25,
    INIT = 26,
    OPENDIR = 27,
    READDIR = 28,
    RELEASEDIR = 29,
    FSYNCDIR = 30,
    GETLK = 31,
    SETLK = 32,
    SETLKW = 33,
    ACCESS = 34,
    CREATE = 35,
    INTERRUPT = 36,
    BMAP = 37,
    DESTROY = 38,
    IOCTL = 39,
    POLL = 40,
    NOTIFY_REPLY = 41,
    BATCH_FORGET = 42,
    FALLOCATE = 43,
    READDIRPLUS = 44,
    RENAME2 = 45,
    LSEEK = 46,
    COPY_FILE_RANGE = 47,
    SETUPMAPPING = 48,
    REMOVEMAPPING = 49,
    SYNCFS = 50,
    TMPFILE = 51,
    STATX = 52,
    COPY_FILE_RANGE_64 = 53,
    FREEZE_FS = 4089,
    UNFREEZE_FS = 4090,
    SHUTDOWN_FS = 4091,
    IOMAP_CONFIG = 4092,
    IOMAP_IOEND = 4093,
    IOMAP_BEGIN = 4094,
    IOMAP_END = 4095,
}

/// The name of an opcode, or `None` if it is not known here.
pub fn name(opcode: u32) -> Option<&'static str> {
    index(opcode).map(|i| ALL[i].1)
}

/// The opcode called `name`, upper or lower case.
pub fn from_name(name: &str) -> Option<u32> {
    ALL.iter()
        .find(|(_, n)| n.eq_ignore_ascii_case(name))
        .map(|(op, _)| *op)
}

/// Position of `opcode` in [`ALL`].
pub fn index(opcode: u32) -> Option<usize> {
    ALL.binary_search_by_key(&opcode, |(op, _)| *op).ok()
}

/// Whether the kernel expects no reply to this opcode.
pub const fn is_oneway(opcode: u32) -> bool {
    matches!(opcode, FORGET | BATCH_FORGET | INTERRUPT | NOTIFY_REPLY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_so_that_it_can_be_searched() {
        assert!(ALL.windows(2).all(|w| w[0].0 < w[1].0));
        assert_eq!(name(IOMAP_BEGIN), Some("IOMAP_BEGIN"));
        assert_eq!(name(7), None);
        assert_eq!(from_name("iomap_end"), Some(IOMAP_END));
    }
}
