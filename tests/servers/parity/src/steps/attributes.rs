// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How large and how many extended attributes can be.

use super::make;
use crate::pair::Pair;
use crate::seen::{look, outcome};
use crate::sys::{remove_xattr, set_xattr, xattr, xattrs};
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

/// Takes the steps.
pub fn run(pair: &mut Pair) {
    pair.step("values of each size", |side| {
        let path = side.path("sizes");
        make(&path, b"")?;
        let mut shown = Vec::new();
        for size in [
            0, 1, 50, 90, 100, 1000, 3900, 4000, 4050, 4100, 65_536, 65_537,
        ] {
            let set = outcome(set_xattr(&path, "user.value", &vec![b'v'; size]));
            let got = xattr(&path, "user.value").map_or(0, |value| value.len());
            shown.push(format!("{size}: {set} {got} {}", look(&path)?.stx_blocks));
        }
        shown.push(outcome(remove_xattr(&path, "user.value")));
        shown.push(look(&path)?.stx_blocks.to_string());
        Ok(shown.join(", "))
    });
    pair.step("the largest value", |side| {
        let path = side.path("sizes");
        let fits = |size: usize| set_xattr(&path, "user.value", &vec![b'v'; size]).is_ok();
        let (mut low, mut high) = (0usize, 4096usize);
        while low + 1 < high {
            let middle = low.midpoint(high);
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        Ok(low.to_string())
    });
    pair.step("as many as there is room for", |side| {
        let path = side.path("many");
        make(&path, b"")?;
        let mut set = 0;
        let error = loop {
            let value = vec![b'x'; set % 40];
            match set_xattr(&path, &format!("user.name-{set:03}"), &value) {
                Ok(()) => set += 1,
                Err(err) => break outcome::<(), _>(Err(err)),
            }
        };
        // Others may be replaced by what is no longer, and go.
        let longer = outcome(set_xattr(&path, "user.name-001", &[b'y'; 200]));
        let shorter = outcome(set_xattr(&path, "user.name-039", b""));
        let removed = outcome(remove_xattr(&path, "user.name-020"));
        let again = outcome(set_xattr(&path, "user.name-020", &[b'z'; 20]));
        Ok(format!(
            "{set}, {error}, {longer}, {shorter}, {removed}, {again}, {} listed",
            xattrs(&path)?.len()
        ))
    });
    pair.mount_again();
    pair.step("they last", |side| {
        let all = xattrs(&side.path("many"))?;
        let sum: usize = all
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        Ok(format!("{}, {sum} bytes", all.len()))
    });
    pair.step("names of each length, and flags", |side| {
        let path = side.path("names");
        make(&path, b"")?;
        let mut shown = Vec::new();
        for length in [1, 249, 250, 251] {
            let name = format!("user.{}", "n".repeat(length));
            shown.push(format!(
                "{length}: {}",
                outcome(set_xattr(&path, &name, b"v"))
            ));
        }
        for name in [
            "user.",
            "user",
            "",
            "nothing.at.all",
            "trusted.it",
            "security.it",
            "system.it",
        ] {
            shown.push(format!("{name}: {}", outcome(set_xattr(&path, name, b"v"))));
        }
        let set = |flags| outcome(lsetxattr(&path, "user.flag", b"v", flags));
        shown.push(set(XattrFlags::REPLACE));
        shown.push(set(XattrFlags::CREATE));
        shown.push(set(XattrFlags::CREATE));
        shown.push(set(XattrFlags::REPLACE));
        shown.push(outcome(remove_xattr(&path, "user.missing")));
        Ok(shown.join(", "))
    });
    pair.step("room that is too small", |side| {
        let path = side.path("names");
        set_xattr(&path, "user.value", b"12345")?;
        let get = |room: usize| match lgetxattr(&path, "user.value", &mut vec![0; room][..]) {
            Ok(n) => n.to_string(),
            Err(err) => outcome::<(), _>(Err(err)),
        };
        let list = |room: usize| match llistxattr(&path, &mut vec![0; room][..]) {
            Ok(n) => n.to_string(),
            Err(err) => outcome::<(), _>(Err(err)),
        };
        let rooms = [0, 1, 4, 5, 6];
        let got: Vec<String> = rooms.iter().map(|room| get(*room)).collect();
        let listed: Vec<String> = [0, 1, 10, 4000].iter().map(|room| list(*room)).collect();
        Ok(format!("{got:?} {listed:?}"))
    });
    pair.step("on links, directories and devices", |side| {
        let mut shown = Vec::new();
        let link = side.path("link");
        std::os::unix::fs::symlink("names", &link)?;
        let directory = side.path("directory");
        std::fs::create_dir(&directory)?;
        let fifo = side.path("fifo");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from(0o600));
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0)?;
        for path in [&link, &directory, &fifo] {
            for name in ["user.x", "trusted.x", "security.x"] {
                shown.push(outcome(set_xattr(path, name, b"v")));
            }
        }
        Ok(shown.join(", "))
    });
}
