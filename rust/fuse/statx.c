// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: what statx(2) shows beyond what stat(2) does.
 */

#include "../fuse_i.h"

#include <linux/blkdev.h>
#include <linux/stat.h>

/**
 * fuse_iomap_statx - complete what a server has answered to STATX
 * @inode: the inode, on a mount with iomap
 * @stat: what statx(2) is going to show
 * @sx: what the server has answered
 *
 * What the kernel owns is not the server's to say, also in an answer that leaves
 * something out, and so is not adopted as a whole.
 *
 * Context: any.
 */
void fuse_iomap_statx(struct inode *inode, struct kstat *stat,
		      const struct fuse_statx *sx)
{
	u32 owned = fuse_get_cache_mask(inode);

	if (owned & STATX_SIZE)
		stat->size = i_size_read(inode);
	if (owned & STATX_ATIME)
		stat->atime = inode_get_atime(inode);
	if (owned & STATX_MTIME)
		stat->mtime = inode_get_mtime(inode);
	if (owned & STATX_CTIME)
		stat->ctime = inode_get_ctime(inode);
	stat->result_mask |= owned;

	if (sx->mask & STATX_SUBVOL) {
		stat->subvol = sx->subvol;
		stat->result_mask |= STATX_SUBVOL;
	}
}

/*
 * What is right for all devices: a file may get blocks on any of them, and nobody
 * asks again.
 */
static void fuse_iomap_fill_dio(struct fuse_conn *fc, struct kstat *stat)
{
	struct fuse_backing *fb;
	u32 offset_align = 0;
	u32 mem_align = 0;
	int id;

	spin_lock(&fc->lock);
	idr_for_each_entry(&fc->backing_files_map, fb, id) {
		struct block_device *bdev;

		if (fb->type != FUSE_BACKING_TYPE_IOMAP)
			continue;
		bdev = file_bdev(fb->file);
		mem_align = max(mem_align, bdev_dma_alignment(bdev) + 1U);
		offset_align = max(offset_align,
				   bdev_logical_block_size(bdev));
	}
	spin_unlock(&fc->lock);
	if (!offset_align)
		return;

	stat->result_mask |= STATX_DIOALIGN | STATX_DIO_READ_ALIGN;
	stat->dio_mem_align = mem_align;
	stat->dio_offset_align = offset_align;
	stat->dio_read_offset_align = offset_align;
}

/**
 * fuse_iomap_getattr - show what the kernel knows of an inode by itself
 * @inode: an exclusive inode
 * @stat: what statx(2) is going to show
 * @request_mask: what it was asked for
 *
 * These are the flags that the VFS enforces and, for iomap inodes, what can be
 * done with direct I/O.
 *
 * Context: any.
 */
void fuse_iomap_getattr(struct inode *inode, struct kstat *stat,
			u32 request_mask)
{
	generic_fill_statx_attr(inode, stat);
	if (!fuse_inode_has_iomap(inode))
		return;

	if (request_mask & (STATX_DIOALIGN | STATX_DIO_READ_ALIGN))
		fuse_iomap_fill_dio(get_fuse_conn(inode), stat);
	if (request_mask & STATX_WRITE_ATOMIC) {
		unsigned int unit = fuse_iomap_is_atomic(inode) ?
			i_blocksize(inode) : 0;

		generic_fill_statx_atomic_writes(stat, unit, unit, 0);
	}
}
