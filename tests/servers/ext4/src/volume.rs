// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Opening a volume: superblock, features, group descriptors, and the journal replayed in memory. What
//! mounting for writing adds to that is in `mount`.

use std::{collections::BTreeSet, fs::File, sync::Arc};

use fs_ext4::{
    Superblock,
    bgd::{self, BlockGroupDescriptor},
    checksum::Checksummer,
};

use crate::{
    device::{Device, RawDevice},
    disk::FileDisk,
    error::{Error, Result, corrupt},
    features::{self, compat, incompat, ro_compat},
    inode::{ROOT, le16, le32},
    txn::Rw,
};

/// Metadata kept in memory, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// A mounted volume. All methods take `&self` and may run in parallel.
pub struct Volume {
    pub(crate) device: Device,
    pub(crate) sb: Superblock,
    pub(crate) groups: Vec<BlockGroupDescriptor>,
    pub(crate) csum: Checksummer,
    /// Blocks whose newest contents are in the journal alone.
    pub(crate) in_journal: BTreeSet<u64>,
    replayed: usize,
    /// The last transaction in the journal, if it was replayed.
    pub(crate) last_replayed: Option<u32>,
    statfs: StatFs,
    /// What there is only if the volume is mounted for writing.
    pub(crate) rw: Option<Rw>,
}

/// What statfs(2) reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Size of a block.
    pub block_size: u32,
    /// Blocks that can hold data.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks that an unprivileged user may take.
    pub available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
}

impl Volume {
    /// Opens the volume on `file`, which need only be readable, for reading.
    pub fn open(file: File) -> Result<Self> {
        Self::open_device(RawDevice::new(Arc::new(FileDisk::new(file)?)))
    }

    pub(crate) fn open_device(raw: RawDevice) -> Result<Self> {
        check_features(&raw)?;
        let sb = Superblock::read(&raw).map_err(|err| match err {
            fs_ext4::Error::BadMagic { .. } => {
                Error::Corrupt("no ext2, ext3 or ext4 superblock".into())
            }
            other => other.into(),
        })?;
        check_superblock(&sb, &raw)?;

        let mut device = Device::new(raw.clone(), sb.block_size(), CACHE_BYTES);
        let last_replayed = if sb.feature_incompat & incompat::RECOVER != 0 {
            replay(&sb, raw, &mut device)?
        } else {
            None
        };
        let in_journal: BTreeSet<u64> = device.overlaid().collect();
        let replayed = in_journal.len();

        // The journal may hold a newer superblock and newer descriptors.
        let sb = if replayed > 0 {
            let newer = Superblock::read(&device)?;
            check_superblock(&newer, &device)?;
            if newer.block_size() != device.block_size() {
                return corrupt("the journal changes the block size");
            }
            newer
        } else {
            sb
        };
        let csum = Checksummer::from_superblock(&sb);
        let groups = bgd::read_all(&device, &sb, &csum)?;

        let mut volume = Self {
            device,
            sb,
            groups,
            csum,
            in_journal,
            replayed,
            last_replayed,
            statfs: StatFs::default(),
            rw: None,
        };
        volume.statfs = volume.compute_statfs()?;
        let root = volume.inode(ROOT)?;
        if !root.is_dir() {
            return corrupt("the root inode is not a directory");
        }
        Ok(volume)
    }

    /// The block size in bytes.
    pub fn block_size(&self) -> u32 {
        self.device.block_size()
    }

    /// The volume's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        self.sb.uuid
    }

    /// The block device, as it was opened, if it is one.
    pub fn file(&self) -> Option<File> {
        self.device.file()
    }

    /// The volume's label.
    pub fn label(&self) -> &[u8] {
        let label = &self.sb.raw[0x78..0x88];
        label.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// The first and the last second that the times of inodes can have, and their granularity in
    /// nanoseconds: larger inodes have room for more.
    pub fn times(&self) -> (i64, i64, u32) {
        let first = i64::from(i32::MIN);
        if self.sb.inode_size > 128 {
            (first, first + (1 << 34) - 1, 1)
        } else {
            (first, i64::from(i32::MAX), 1_000_000_000)
        }
    }

    /// The blocks that were read as metadata and are still in memory, in no order.
    pub fn cached_blocks(&self) -> Vec<u64> {
        self.device.cached()
    }

    /// How many blocks the journal's replay put in place in memory.
    pub fn replayed(&self) -> usize {
        self.replayed
    }

    /// Whether the volume carries metadata checksums.
    pub fn has_checksums(&self) -> bool {
        self.csum.enabled
    }

    /// Size of the volume in bytes, which fits its device.
    pub(crate) fn bytes(&self) -> u64 {
        self.sb
            .blocks_count
            .saturating_mul(u64::from(self.block_size()))
    }

    /// Fails unless blocks `start .. start + len` are on the volume and clear of its first block(s).
    pub(crate) fn check_blocks(&self, start: u64, len: u64, what: &str) -> Result<()> {
        let first = u64::from(self.sb.first_data_block);
        match start.checked_add(len) {
            Some(end) if start > first && end <= self.sb.blocks_count => Ok(()),
            _ => corrupt(format!(
                "{what}: blocks {start}+{len} are not on the volume"
            )),
        }
    }

    /// What statfs(2) reports.
    pub fn statfs(&self) -> StatFs {
        let Some(rw) = &self.rw else {
            return self.statfs;
        };
        let state = rw.read();
        let reserved = self.statfs.free.saturating_sub(self.statfs.available);
        StatFs {
            free: state.free_blocks,
            available: state.free_blocks.saturating_sub(reserved),
            files_free: state.free_inodes,
            ..self.statfs
        }
    }

    pub(crate) fn cluster_blocks(&self) -> u64 {
        if self.sb.feature_ro_compat & ro_compat::BIGALLOC == 0 {
            return 1;
        }
        let log = le32(&self.sb.raw, 0x1c).saturating_sub(self.sb.log_block_size);
        1u64.checked_shl(log).filter(|_| log < 32).unwrap_or(1)
    }

    /// Blocks that are kept for splitting the extents of data that is written already; as many as the
    /// kernel's ext4 keeps.
    pub(crate) fn kept_back(&self) -> u64 {
        if self.sb.feature_incompat & incompat::EXTENTS == 0 {
            return 0;
        }
        let cluster = self.cluster_blocks();
        (self.sb.blocks_count / cluster / 50)
            .min(4096)
            .saturating_mul(cluster)
    }

    fn compute_statfs(&self) -> Result<StatFs> {
        let sb = &self.sb;
        let cluster = self.cluster_blocks();
        let mut free = 0u64;
        let mut files_free = 0u64;
        for group in &self.groups {
            free = free.saturating_add(u64::from(group.free_blocks_count).saturating_mul(cluster));
            files_free = files_free.saturating_add(u64::from(group.free_inodes_count));
        }

        let set_aside = self.kept_back();
        let reserved = sb.r_blocks_count.saturating_add(set_aside);
        Ok(StatFs {
            block_size: self.block_size(),
            blocks: sb.blocks_count.saturating_sub(self.overhead(cluster)?),
            free,
            available: free.saturating_sub(reserved),
            files: u64::from(sb.inodes_count),
            files_free,
        })
    }

    /// Blocks that the filesystem keeps for itself: the kernel subtracts them from the size.
    fn overhead(&self, cluster: u64) -> Result<u64> {
        let sb = &self.sb;
        let recorded = u64::from(le32(&sb.raw, 0x248));
        if recorded > 0 && recorded.saturating_mul(cluster) <= sb.blocks_count {
            return Ok(recorded * cluster);
        }
        let block_size = u64::from(self.block_size());
        let table =
            (u64::from(sb.inodes_per_group) * u64::from(sb.inode_size)).div_ceil(block_size);
        let mut sum = u64::from(sb.first_data_block);
        for group in 0..self.groups.len() as u64 {
            let head = sb.group_head_metadata_blocks(group);
            sum = sum
                .saturating_add(head)
                .saturating_add(table)
                .saturating_add(2);
        }
        if sb.feature_compat & compat::HAS_JOURNAL != 0 && sb.journal_inode != 0 {
            let journal = self.any_inode(sb.journal_inode)?;
            let bytes = self.size(&journal);
            sum = sum.saturating_add(bytes / block_size);
        }
        Ok(sum)
    }
}

/// Looks at the features before anything else is parsed: a volume with others may look quite
/// different, and should be told what it lacks and not that it is corrupt.
fn check_features(raw: &RawDevice) -> Result<()> {
    let mut head = [0; 1024];
    if fs_ext4::block_io::BlockDevice::read_at(raw, 1024, &mut head).is_err() {
        return corrupt("too small for a filesystem");
    }
    const MAGIC: u16 = 0xef53;
    if le16(&head, 0x38) == MAGIC && le32(&head, 0x4c) > 0 {
        features::check(le32(&head, 0x60), le32(&head, 0x64))?;
    }
    Ok(())
}

fn check_superblock(sb: &Superblock, device: &dyn fs_ext4::block_io::BlockDevice) -> Result<()> {
    features::check(sb.feature_incompat, sb.feature_ro_compat)?;
    let csum = Checksummer::from_superblock(sb);
    if !csum.verify_superblock(&sb.raw) {
        return Err(Error::Checksum("superblock".into()));
    }
    sb.check_fits_device(device.size_bytes())?;
    let inode_size = u32::from(sb.inode_size);
    if inode_size < 128 || !inode_size.is_power_of_two() || inode_size > sb.block_size() {
        return corrupt(format!("inode size {inode_size}"));
    }
    let inodes = u64::from(sb.inodes_per_group).saturating_mul(sb.block_group_count());
    if u64::from(sb.inodes_count) > inodes {
        return corrupt("more inodes than the groups hold");
    }
    Ok(())
}

/// Puts the blocks of the journal's committed transactions into `device`'s overlay and returns the
/// sequence number of the last. The journal's contents are metadata, and file data if the file was journaled; files
/// with blocks of the second kind must not be read from the device behind this server's back, see
/// [`Volume::data_in_journal`].
fn replay(sb: &Superblock, raw: RawDevice, device: &mut Device) -> Result<Option<u32>> {
    if sb.feature_compat & compat::FAST_COMMIT != 0 {
        return Err(Error::Unsupported(
            "the journal needs recovery and has fast commits; let e2fsck or the kernel replay it"
                .into(),
        ));
    }
    if sb.feature_compat & compat::HAS_JOURNAL == 0 || sb.journal_inode == 0 {
        return Err(Error::Unsupported(
            "the volume needs recovery from a journal on another device; let e2fsck or the kernel do it"
                .into(),
        ));
    }
    let fs = fs_ext4::Filesystem::mount(Arc::new(raw))?;
    let Some(journal) = fs_ext4::jbd2::read_superblock(&fs)? else {
        return Ok(None);
    };
    if journal.is_clean() {
        return Ok(None);
    }
    let plan = fs_ext4::journal::walk(&fs, &journal)?;
    let inode = fs_ext4::inode::Inode::parse(&fs.read_inode_raw(sb.journal_inode)?)?;
    for write in &plan.writes {
        let source = fs_ext4::jbd2::journal_block_to_physical(&fs, &inode, write.journal_block)?;
        let Some(source) = source else {
            return corrupt("the journal has a hole");
        };
        if write.fs_block >= sb.blocks_count || source >= sb.blocks_count {
            return corrupt("the journal names a block that is not on the volume");
        }
        let mut data = fs.read_block(source)?;
        if write.flags & fs_ext4::journal::TAG_ESCAPED != 0 {
            data[..4].copy_from_slice(&fs_ext4::jbd2::JBD2_MAGIC_NUMBER.to_be_bytes());
        }
        // In log order, so that the newest copy of a block stays.
        device.overlay(write.fs_block, data);
    }
    let before = journal.sequence.wrapping_sub(1);
    Ok(Some(
        plan.next_sequence.map_or(before, |_| plan.last_commit),
    ))
}
