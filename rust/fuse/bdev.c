// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: what a server may do to the page cache of the
 * devices that it has registered.
 */

#include "../fuse_i.h"

#include <linux/blkdev.h>
#include <linux/buffer_head.h>
#include <linux/pagemap.h>
#include <linux/uaccess.h>

static struct block_device *fuse_iomap_bdev(const struct fuse_backing *fb)
{
	return file_bdev(fb->file);
}

/* As for set_blocksize() */
static bool fuse_iomap_is_exclusive(const struct fuse_backing *fb)
{
	return fb->file->private_data;
}

/* With fc->killsb held */
static bool fuse_iomap_is_mounted_from(const struct fuse_conn *fc,
				       const struct block_device *bdev)
{
	struct fuse_mount *fm;

	list_for_each_entry(fm, &fc->mounts, fc_entry)
		if (fm->sb && fm->sb->s_bdev == bdev)
			return true;
	return false;
}

/*
 * Dirty data in the range is older than what is on the device and must not get
 * there any more.  Only whole blocks are dropped: in a block that is in the
 * range in part, something else may be dirty.
 *
 * A filesystem that the kernel has mounted from the device, or anybody else who
 * has it for himself, does not have his buffers taken away.
 */
static void fuse_iomap_drop_dirty(const struct fuse_conn *fc,
				  const struct fuse_backing *fb, u64 start,
				  u64 end)
{
	struct block_device *bdev = fuse_iomap_bdev(fb);
	unsigned int blkbits = bdev->bd_mapping->host->i_blkbits;
	sector_t first = (start + BIT(blkbits) - 1) >> blkbits;
	sector_t last = end >> blkbits;
	bool claim = !fuse_iomap_is_exclusive(fb) &&
		     !fuse_iomap_is_mounted_from(fc, bdev);

	if (!(fb->file->f_mode & FMODE_WRITE) || first >= last)
		return;
	if (claim && bd_prepare_to_claim(bdev, &fuse_iomap_drop_dirty, NULL))
		return;

	/* Without buffers, all that is dirty on a page is written */
	if (IS_ENABLED(CONFIG_BUFFER_HEAD))
		clean_bdev_aliases(bdev, first, last - first);
	if (claim)
		bd_abort_claiming(bdev, &fuse_iomap_drop_dirty);
}

static int fuse_iomap_drop_pages(const struct fuse_conn *fc,
				 const struct fuse_backing *fb, u64 start,
				 u64 end)
{
	struct address_space *mapping = fuse_iomap_bdev(fb)->bd_mapping;
	int err;

	filemap_invalidate_lock(mapping);
	/* What is dirty still is somebody else's, or another block's */
	fuse_iomap_drop_dirty(fc, fb, start, end);
	err = filemap_write_and_wait_range(mapping,
					   round_down(start, PAGE_SIZE),
					   round_up(end, PAGE_SIZE) - 1);
	if (!err)
		err = invalidate_inode_pages2_range(mapping,
						    start >> PAGE_SHIFT,
						    (end - 1) >> PAGE_SHIFT);
	filemap_invalidate_unlock(mapping);
	return err;
}

/**
 * fuse_iomap_dev_inval - drop what is in the page cache of a device
 * @fc: a connection with iomap on
 * @outarg: which device, and which range of it
 *
 * For servers that read and write metadata through the page cache of the device,
 * where the kernel has written file data past it since.  Dirty data there is not
 * written to the device any more, except if somebody else has it for himself.
 *
 * Context: May sleep, and waits for the device, not for the server.
 * Return: 0; -EINVAL if there is no such range; -ENOENT if there is no such
 * device; -EBUSY if somebody makes it dirty at the same time; -EIO.
 */
int fuse_iomap_dev_inval(struct fuse_conn *fc,
			 const struct fuse_iomap_dev_inval_out *outarg)
{
	u64 start = outarg->range.offset;
	u64 length = outarg->range.length;
	struct fuse_backing *fb;
	int err = -EINVAL;
	u64 size, end;

	if (outarg->reserved || outarg->dev > INT_MAX)
		return -EINVAL;
	fb = fuse_backing_lookup(fc, outarg->dev, FUSE_BACKING_TYPE_IOMAP);
	if (!fb)
		return -ENOENT;

	size = bdev_nr_bytes(fuse_iomap_bdev(fb));
	if (start >= size)
		goto out;
	if (length == U64_MAX)
		end = size;
	else if (check_add_overflow(start, length, &end))
		goto out;

	err = 0;
	end = min(end, size);
	if (start < end) {
		down_read(&fc->killsb);
		err = fuse_iomap_drop_pages(fc, fb, start, end);
		up_read(&fc->killsb);
	}
out:
	fuse_backing_put(fb);
	return err;
}

static int fuse_iomap_set_bdev_blocksize(struct fuse_backing *fb, u32 blocksize)
{
	struct block_device *bdev = fuse_iomap_bdev(fb);
	struct file *claimed;
	int err;

	if (fuse_iomap_is_exclusive(fb))
		return set_blocksize(fb->file, blocksize);

	/* The page cache of somebody else's device is not to be dropped */
	claimed = bdev_file_open_by_dev(bdev->bd_dev, BLK_OPEN_READ,
					&fuse_iomap_set_bdev_blocksize, NULL);
	if (IS_ERR(claimed))
		return PTR_ERR(claimed);
	err = set_blocksize(claimed, blocksize);
	bdev_fput(claimed);
	return err;
}

/**
 * fuse_iomap_set_blocksize - do FUSE_DEV_IOC_IOMAP_SET_BLOCKSIZE
 * @fc: a connection with iomap on
 * @argp: which device, and the size of its blocks
 *
 * Matters to the page cache of the device alone: the size of its buffers.
 *
 * Context: May sleep.
 * Return: 0; -EINVAL for a size that the device cannot have; -EBUSY if somebody
 * has the device for himself; -ENOENT if there is no such device; -EFAULT.
 */
int fuse_iomap_set_blocksize(struct fuse_conn *fc,
			     struct fuse_iomap_backing_info __user *argp)
{
	struct fuse_iomap_backing_info info;
	struct fuse_backing *fb;
	int err = -EINVAL;

	if (copy_from_user(&info, argp, sizeof(info)))
		return -EFAULT;
	if (info.backing_id > INT_MAX)
		return -ENOENT;
	fb = fuse_backing_lookup(fc, info.backing_id, FUSE_BACKING_TYPE_IOMAP);
	if (!fb)
		return -ENOENT;

	if (info.blocksize <= INT_MAX)
		err = fuse_iomap_set_bdev_blocksize(fb, info.blocksize);
	fuse_backing_put(fb);
	return err;
}
