// SPDX-License-Identifier: GPL-2.0

//! The rules that the answers of a server have to keep: those for mappings, and two for sizes.
#![deny(unsafe_code)]

use kernel::{bindings, prelude::*};

/// Declares [`Rule`], so that each rule has one line with all there is to it.
macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// Why an answer was refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Rule {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Rule {
            /// All rules, in the order in which they are checked.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name that the log and the tracepoint show.
            pub(crate) fn name(self) -> &'static CStr {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

rules! {
    /// The type is none of the protocol's.
    UnknownType = c"unknown-type",
    /// NOCACHE belongs into an upsert.
    NocacheInReply = c"nocache-in-reply",
    /// RETRY_CACHE, but the cache does not have it, or this is no answer.
    RetryWithoutCache = c"retry-without-cache",
    /// PURE_OVERWRITE on the side that it would refer to.
    PureOverwriteInRead = c"pure-overwrite-in-read",
    /// A flag that is unknown, or that only the kernel sends.
    UnknownFlags = c"unknown-flags",
    /// The length is 0.
    ZeroLength = c"zero-length",
    /// The offset is not a multiple of the block size.
    UnalignedOffset = c"unaligned-offset",
    /// The length is not a multiple of the block size.
    UnalignedLength = c"unaligned-length",
    /// Offset plus length does not fit.
    RangeOverflow = c"range-overflow",
    /// The offset is not below the largest file size of the filesystem.
    BeyondMaxbytes = c"beyond-maxbytes",
    /// INLINE is at the start of a file only.
    InlineNotAtZero = c"inline-not-at-zero",
    /// INLINE is longer than a page.
    InlineTooLong = c"inline-too-long",
    /// A type without blocks has an address.
    UnexpectedAddress = c"unexpected-address",
    /// A type with blocks has no address.
    NoAddress = c"no-address",
    /// A type with blocks has no device, or one that is not registered.
    NoDevice = c"no-device",
    /// The device cannot address blocks as small as the inode's.
    BlockBelowDevice = c"block-below-device",
    /// The address is not a multiple of the device's logical block size.
    UnalignedAddress = c"unaligned-address",
    /// The blocks go beyond the end of the device.
    BeyondDevice = c"beyond-device",
    /// The mapping does not contain the position that was asked for.
    NotContainingPos = c"not-containing-pos",
    /// Of the mappings that follow in an answer, one does not begin where the one before it ends.
    NotContiguous = c"not-contiguous",
    /// INLINE says nothing that could be cached.
    InlineInUpsert = c"inline-in-upsert",
    /// A write needs blocks, or a reservation of them.
    HoleForWrite = c"hole-for-write",
    /// The server cannot be asked for an address when the I/O is submitted.
    AnonWrite = c"anon-write",
    /// A direct write needs blocks, and this is only a reservation.
    DelallocForDirect = c"delalloc-for-direct",
    /// Writeback needs blocks, and this is only a reservation.
    DelallocInWriteback = c"delalloc-in-writeback",
    /// The data is in the inode on one side and in blocks on the other.
    InlineOnOneSide = c"inline-on-one-side",
    /// A page that tasks write to needs blocks, and this is in the inode.
    InlineInFault = c"inline-in-fault",
    /// Writeback needs blocks, and this is in the inode.
    InlineInWriteback = c"inline-in-writeback",
    /// Beyond the end of the file there are blocks with data of another file.
    SharedBeyondEof = c"shared-beyond-eof",
    /// IOEND cannot make a file smaller on disk.
    NewsizeShrinks = c"newsize-shrinks",
    /// IOEND cannot make a file larger on disk than it is.
    NewsizeBeyondData = c"newsize-beyond-data",
}

// The log has a rate limit for each rule.
const _: () = assert!(Rule::ALL.len() <= bindings::FUSE_IOMAP_NR_RULES as usize);
