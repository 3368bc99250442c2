// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which BEGIN replies the protocol forbids, written from the protocol's text alone, so that it
//! can judge the kernel. A reply listed here must be rejected; of one that is not listed nothing is
//! claimed.

use fuse_iomap::wire::{ADDR_NULL, IomapBeginOut, IomapIo, iomap_flags, iomap_op, iomap_type};
use std::collections::HashMap;

/// What a reply is judged against.
#[derive(Clone, Debug)]
pub struct Context {
    /// Position that was asked about.
    pub pos: u64,
    /// What for.
    pub opflags: u32,
    /// Block size of the inode.
    pub blksize: u64,
    /// Largest file of the mount.
    pub maxbytes: u64,
    /// Size and logical block size of the registered devices, by backing id.
    pub devices: HashMap<u32, (u64, u64)>,
}

impl Context {
    const fn writes(&self) -> bool {
        self.opflags & (iomap_op::WRITE | iomap_op::ZERO) != 0
    }
}

const PAGE: u64 = 4096;
/// Flags a server may set: NEW to WANT_IOMAP_END, and CACHE, which depends on negotiation.
const KNOWN_FLAGS: u16 = 0x00ff | 1 << 10;
/// Flags that only the kernel sets; whether they are tolerated in a reply is not said.
const KERNEL_FLAGS: u16 = 0x0300;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Read,
    Write,
}

/// Names of the rules that a reply breaks.
pub fn broken_rules(reply: &IomapBeginOut, context: &Context) -> Vec<&'static str> {
    let mut rules = Vec::new();
    if context.opflags & iomap_op::WRITEBACK != 0 {
        // In place, what is read counts.
        let to = match reply.write.kind {
            iomap_type::PURE_OVERWRITE => &reply.read,
            _ => &reply.write,
        };
        match to.kind {
            iomap_type::DELALLOC => rules.push("delalloc-in-writeback"),
            iomap_type::INLINE => rules.push("inline-in-writeback"),
            _ => {}
        }
    }
    check(&reply.read, Side::Read, context, &mut rules);
    check(&reply.write, Side::Write, context, &mut rules);
    rules.sort_unstable();
    rules.dedup();
    rules
}

fn check(io: &IomapIo, side: Side, context: &Context, rules: &mut Vec<&'static str>) {
    let inline = io.kind == iomap_type::INLINE;
    match io.kind {
        iomap_type::HOLE
        | iomap_type::DELALLOC
        | iomap_type::MAPPED
        | iomap_type::UNWRITTEN
        | iomap_type::INLINE => {}
        iomap_type::PURE_OVERWRITE if side == Side::Read => rules.push("pure-overwrite-in-read"),
        iomap_type::PURE_OVERWRITE => {}
        iomap_type::NOCACHE => rules.push("nocache-in-reply"),
        // Whether it is allowed depends on the kernel's cache, which is not known here.
        iomap_type::RETRY_CACHE => return,
        _ => rules.push("unknown-type"),
    }
    if io.flags & !(KNOWN_FLAGS | KERNEL_FLAGS) != 0 {
        rules.push("unknown-flags");
    }
    if io.length == 0 {
        rules.push("zero-length");
    }
    if io.offset % context.blksize != 0 {
        rules.push("unaligned-offset");
    }
    if io.length % context.blksize != 0 {
        rules.push("unaligned-length");
    }
    let end = io.offset.checked_add(io.length);
    if end.is_none() {
        rules.push("range-overflow");
    }
    if io.offset >= context.maxbytes {
        rules.push("beyond-maxbytes");
    }
    let writes = context.writes() && io.kind != iomap_type::PURE_OVERWRITE;
    // Reads use the read side alone, so where the other one lies is nobody's business.
    let used = side == Side::Read || writes;
    if used && end.is_some_and(|end| end <= context.pos) {
        rules.push("not-containing-pos");
    }
    if side == Side::Write && writes {
        if io.offset > context.pos {
            rules.push("not-containing-pos");
        }
        if io.flags & iomap_flags::ANON_WRITE != 0 {
            rules.push("anon-write");
        }
    }
    match io.kind {
        iomap_type::MAPPED | iomap_type::UNWRITTEN => address(io, context, rules),
        _ if io.addr != ADDR_NULL => rules.push("unexpected-address"),
        _ => {}
    }
    if inline && io.length > PAGE {
        rules.push("inline-too-long");
    }
    if inline && io.offset != 0 {
        rules.push("inline-not-at-zero");
    }
}

fn address(io: &IomapIo, context: &Context, rules: &mut Vec<&'static str>) {
    let Some((size, logical)) = context.devices.get(&io.dev).copied() else {
        rules.push("no-device");
        if io.addr == ADDR_NULL {
            rules.push("no-address");
        }
        return;
    };
    if io.addr == ADDR_NULL {
        rules.push("no-address");
        return;
    }
    if context.blksize < logical {
        rules.push("block-below-device");
    }
    if io.addr % logical != 0 {
        rules.push("unaligned-address");
    }
    if io.addr.checked_add(io.length).is_none_or(|end| end > size) {
        rules.push("beyond-device");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fuse_iomap::{BackingId, BeginReply, Mapping};

    const DEV: BackingId = BackingId::from_raw(3);

    fn context() -> Context {
        Context {
            pos: 8192,
            opflags: 0,
            blksize: 4096,
            maxbytes: i64::MAX as u64,
            devices: HashMap::from([(3, (1 << 20, 512))]),
        }
    }

    fn broken(change: impl FnOnce(&mut IomapBeginOut)) -> Vec<&'static str> {
        let mut reply = BeginReply::read(Mapping::mapped(DEV, 0, 65536, 4096)).to_wire();
        change(&mut reply);
        broken_rules(&reply, &context())
    }

    #[test]
    fn good_replies_break_nothing() {
        assert!(broken(|_| {}).is_empty());
        let later = BeginReply::read(Mapping::hole(0, 1 << 30)).to_wire();
        assert!(broken_rules(&later, &context()).is_empty());
        let mut later = later;
        later.read.offset = 12288;
        assert!(broken_rules(&later, &context()).is_empty());
    }

    #[test]
    fn writes_have_rules_of_their_own() {
        let broken = |opflags, change: &dyn Fn(&mut IomapBeginOut)| {
            let mut reply = BeginReply::read(Mapping::mapped(DEV, 0, 65536, 4096)).to_wire();
            change(&mut reply);
            let context = Context {
                opflags,
                ..context()
            };
            broken_rules(&reply, &context)
        };
        let writeback = iomap_op::WRITE | iomap_op::WRITEBACK;
        assert!(broken(writeback, &|_| {}).is_empty());
        let mapped = |r: &mut IomapBeginOut| r.write = r.read;
        let later = |r: &mut IomapBeginOut| {
            mapped(r);
            r.write.offset = 12288;
        };
        assert!(broken(0, &later).is_empty());
        assert_eq!(broken(iomap_op::WRITE, &later), ["not-containing-pos"]);
        let anon = |r: &mut IomapBeginOut| {
            mapped(r);
            r.write.flags |= iomap_flags::ANON_WRITE;
        };
        assert_eq!(broken(iomap_op::ZERO, &anon), ["anon-write"]);
        let delalloc = |r: &mut IomapBeginOut| r.write.kind = iomap_type::DELALLOC;
        assert!(broken(iomap_op::WRITE, &delalloc).is_empty());
        assert_eq!(broken(writeback, &delalloc), ["delalloc-in-writeback"]);
    }

    #[test]
    fn each_rule_is_found() {
        assert_eq!(
            broken(|r| r.read.kind = 99),
            ["unexpected-address", "unknown-type"]
        );
        assert_eq!(broken(|r| r.read.flags = 1 << 15), ["unknown-flags"]);
        assert!(broken(|r| r.read.length = 0).contains(&"zero-length"));
        assert_eq!(broken(|r| r.read.offset = 512), ["unaligned-offset"]);
        assert_eq!(broken(|r| r.read.length = 65024), ["unaligned-length"]);
        assert!(broken(|r| r.read.offset = !4095).contains(&"range-overflow"));
        assert!(broken(|r| r.write.offset = 1 << 63).contains(&"beyond-maxbytes"));
        assert_eq!(broken(|r| r.read.length = 4096), ["not-containing-pos"]);
        assert_eq!(broken(|r| r.read.dev = 0), ["no-device"]);
        assert_eq!(broken(|r| r.read.addr = ADDR_NULL), ["no-address"]);
        assert_eq!(broken(|r| r.write.addr = 0), ["unexpected-address"]);
        assert_eq!(broken(|r| r.read.addr = 256), ["unaligned-address"]);
        assert_eq!(
            broken(|r| r.read.addr = (1 << 20) - 4096),
            ["beyond-device"]
        );
        assert_eq!(broken(|r| r.write.kind = 253), ["nocache-in-reply"]);
        let overwrite = broken(|r| {
            r.read.kind = 255;
            r.read.addr = ADDR_NULL;
        });
        assert_eq!(overwrite, ["pure-overwrite-in-read"]);
        let inline = broken(|r| {
            r.read.kind = 4;
            r.read.addr = ADDR_NULL;
            r.read.offset = 4096;
            r.read.length = 8192;
        });
        assert_eq!(inline, ["inline-not-at-zero", "inline-too-long"]);
    }
}
