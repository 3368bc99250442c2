// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The volume's feature flags: what is read, and what is refused at mount, by name.

use crate::error::{Error, Result};

/// `s_feature_compat` bits that matter to a reader.
pub mod compat {
    #![allow(missing_docs)]
    pub const HAS_JOURNAL: u32 = 0x4;
    pub const DIR_INDEX: u32 = 0x20;
    pub const SPARSE_SUPER2: u32 = 0x200;
    pub const FAST_COMMIT: u32 = 0x400;
    pub const ORPHAN_FILE: u32 = 0x1000;
}

/// `s_feature_incompat` bits.
pub mod incompat {
    #![allow(missing_docs)]
    pub const FILETYPE: u32 = 0x2;
    pub const RECOVER: u32 = 0x4;
    pub const JOURNAL_DEV: u32 = 0x8;
    pub const META_BG: u32 = 0x10;
    pub const EXTENTS: u32 = 0x40;
    pub const BIT64: u32 = 0x80;
    pub const MMP: u32 = 0x100;
    pub const FLEX_BG: u32 = 0x200;
    pub const EA_INODE: u32 = 0x400;
    pub const CSUM_SEED: u32 = 0x2000;
    pub const LARGEDIR: u32 = 0x4000;
    pub const INLINE_DATA: u32 = 0x8000;
}

/// `s_feature_ro_compat` bits that matter to a reader.
pub mod ro_compat {
    #![allow(missing_docs)]
    pub const HUGE_FILE: u32 = 0x8;
    pub const GDT_CSUM: u32 = 0x10;
    pub const DIR_NLINK: u32 = 0x20;
    pub const BIGALLOC: u32 = 0x200;
    pub const METADATA_CSUM: u32 = 0x400;
    pub const ORPHAN_PRESENT: u32 = 0x1_0000;
}

/// Features that are read, but whose structures this server does not keep up when it writes. Single
/// files with `inline_data`, and block-mapped ones, are refused one by one instead.
const REFUSED_WRITE_COMPAT: &[(u32, &str)] = &[(compat::FAST_COMMIT, "fast_commit")];
const REFUSED_WRITE_INCOMPAT: &[(u32, &str)] = &[
    (incompat::META_BG, "meta_bg"),
    (incompat::MMP, "mmp"),
    (incompat::EA_INODE, "ea_inode"),
    (incompat::LARGEDIR, "large_dir"),
];
const REFUSED_WRITE_RO_COMPAT: &[(u32, &str)] = &[
    (0x100, "quota"),
    (ro_compat::BIGALLOC, "bigalloc"),
    (0x800, "replica"),
    (0x1000, "read-only"),
    (0x2000, "project"),
    (0x4000, "shared_blocks"),
    (
        ro_compat::ORPHAN_PRESENT,
        "orphan_present (let e2fsck or the kernel clean up first)",
    ),
];
/// sparse_super, large_file, huge_file, uninit_bg, dir_nlink, extra_isize, metadata_csum.
const WRITE_RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x400;

/// Says why a volume that can be read cannot be written.
pub fn check_write(compat: u32, incompat: u32, ro_compat: u32) -> Result<()> {
    let mut missing: Vec<String> = Vec::new();
    let mut named = 0;
    for (set, refused) in [
        (compat, REFUSED_WRITE_COMPAT),
        (incompat, REFUSED_WRITE_INCOMPAT),
        (ro_compat, REFUSED_WRITE_RO_COMPAT),
    ] {
        let found = refused.iter().filter(|(bit, _)| set & bit != 0);
        missing.extend(found.map(|(_, name)| name.to_string()));
    }
    for (bit, _) in REFUSED_WRITE_RO_COMPAT {
        named |= bit;
    }
    let unknown = ro_compat & !WRITE_RO_COMPAT & !named;
    if unknown != 0 {
        missing.push(format!(
            "unknown read-only-compatible features {unknown:#x}"
        ));
    }
    if incompat & incompat::EXTENTS == 0 {
        missing.push("block-mapped files (no extent feature)".into());
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Unsupported(format!(
            "writing to a volume with {}",
            missing.join(", ")
        )))
    }
}

const READ_INCOMPAT: u32 = incompat::FILETYPE
    | incompat::RECOVER
    | incompat::META_BG
    | incompat::EXTENTS
    | incompat::BIT64
    // Multi-mount protection guards against a second writer. A reader neither checks nor updates it,
    // as in the kernel's read-only mount.
    | incompat::MMP
    | incompat::FLEX_BG
    | incompat::EA_INODE
    | incompat::CSUM_SEED
    | incompat::LARGEDIR
    | incompat::INLINE_DATA;

/// Bits of `s_feature_incompat` that are known and refused.
const REFUSED_INCOMPAT: &[(u32, &str)] = &[
    (0x1, "compression"),
    (
        incompat::JOURNAL_DEV,
        "journal_dev (this device is an external journal, not a filesystem)",
    ),
    (0x1000, "dirdata"),
    (
        0x10000,
        "encrypt (needs keys that only the kernel's keyring holds)",
    ),
    (0x20000, "casefold (needs case-insensitive look-ups)"),
];

/// Bits of `s_feature_ro_compat` that a reader must not ignore. By the rules of the format a reader
/// may ignore all others, known or not.
const REFUSED_RO_COMPAT: &[(u32, &str)] = &[
    (0x80, "snapshot"),
    (
        0x8000,
        "verity (file contents would be served without the verification they ask for)",
    ),
];

/// Refuses a volume that needs something this server does not do, and says what.
pub fn check(incompat: u32, ro_compat: u32) -> Result<()> {
    let mut missing: Vec<String> = Vec::new();
    for (set, refused) in [(incompat, REFUSED_INCOMPAT), (ro_compat, REFUSED_RO_COMPAT)] {
        missing.extend(
            refused
                .iter()
                .filter(|(bit, _)| set & bit != 0)
                .map(|(_, name)| name.to_string()),
        );
    }
    let named = REFUSED_INCOMPAT.iter().fold(0, |all, (bit, _)| all | bit);
    let unknown = incompat & !READ_INCOMPAT & !named;
    if unknown != 0 {
        missing.push(format!("unknown incompatible features {unknown:#x}"));
    }
    if missing.is_empty() {
        Ok(())
    } else {
        Err(Error::Unsupported(format!(
            "the volume uses {}",
            missing.join(", ")
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_features_are_read() {
        check(0x2c2, 0x46b).unwrap();
        check(READ_INCOMPAT, 0x7b).unwrap();
        // An unknown read-only-compatible bit does not stop a reader.
        check(incompat::EXTENTS, 0x4000_0000).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        for (incompat, ro_compat, word) in [
            (0x10000, 0, "encrypt"),
            (0x20000, 0, "casefold"),
            (0, 0x8000, "verity"),
            (0x1, 0, "compression"),
            (0x8, 0, "journal_dev"),
            (0x4000_0000, 0, "0x40000000"),
        ] {
            let message = check(incompat, ro_compat).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        }
    }
}
