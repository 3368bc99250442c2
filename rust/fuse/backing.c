// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: the devices that a server registers.
 *
 * They share ids with the files of passthrough, see ../backing.c.
 */

#include "../fuse_i.h"

#include <linux/blkdev.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/idr.h>

static bool fuse_iomap_need_write(struct fuse_conn *fc)
{
	struct fuse_mount *fm;
	bool ret = false;

	down_read(&fc->killsb);
	list_for_each_entry(fm, &fc->mounts, fc_entry)
		ret |= fm->sb && !sb_rdonly(fm->sb);
	up_read(&fc->killsb);

	return ret;
}

/* A server can only pass on what it may itself read and write */
static int fuse_iomap_check_device(struct fuse_conn *fc, struct file *file)
{
	if (!S_ISBLK(file_inode(file)->i_mode))
		return -ENOTBLK;
	/* An O_PATH descriptor has no device behind it */
	if (!(file->f_mode & FMODE_READ))
		return -EBADF;
	if (!(file->f_mode & FMODE_WRITE) && fuse_iomap_need_write(fc))
		return -EACCES;

	return 0;
}

static bool fuse_iomap_reserve_device(struct fuse_conn *fc)
{
	bool ret;

	spin_lock(&fc->lock);
	ret = fc->iomap_state.nr_devices < FUSE_IOMAP_MAX_DEVICES;
	fc->iomap_state.nr_devices += ret;
	spin_unlock(&fc->lock);

	return ret;
}

static void fuse_iomap_unreserve_device(struct fuse_conn *fc)
{
	spin_lock(&fc->lock);
	fc->iomap_state.nr_devices--;
	spin_unlock(&fc->lock);
}

/**
 * fuse_iomap_device_open - register a block device (BACKING_OPEN)
 * @fc: the connection
 * @map: what the server has passed
 *
 * No privilege is needed here: whether the server may use iomap was decided at
 * mount time, and that it may use the device is shown by its descriptor.
 *
 * Context: May sleep.
 * Return: the id of the device, or a negative error number.
 */
int fuse_iomap_device_open(struct fuse_conn *fc, struct fuse_backing_map *map)
{
	struct file *file;
	int err;

	if (!fuse_conn_has_iomap(fc))
		return -EPERM;
	if (map->flags != FUSE_BACKING_TYPE_IOMAP || map->padding)
		return -EINVAL;

	file = fget_raw(map->fd);
	if (!file)
		return -EBADF;

	err = fuse_iomap_check_device(fc, file);
	if (!err && !fuse_iomap_reserve_device(fc))
		err = -ENOSPC;
	if (err) {
		fput(file);
		return err;
	}

	err = fuse_backing_add(fc, file, FUSE_BACKING_TYPE_IOMAP);
	if (err < 0)
		fuse_iomap_unreserve_device(fc);

	return err;
}

/**
 * fuse_iomap_device_close - give a registered device back (BACKING_CLOSE)
 * @fc: the connection, with iomap on
 * @id: what fuse_iomap_device_open() returned
 *
 * Context: May sleep.
 * Return: 0; -EBUSY if an inode in core has mappings to the device; -ENOENT or
 * -EINVAL if there is no such id; -ENODEV if it is that of a passthrough file.
 */
int fuse_iomap_device_close(struct fuse_conn *fc, int id)
{
	struct fuse_backing *fb;
	int err = 0;

	if (id <= 0)
		return -EINVAL;

	spin_lock(&fc->lock);
	fb = idr_find(&fc->backing_files_map, id);
	if (!fb) {
		err = -ENOENT;
	} else if (fb->type != FUSE_BACKING_TYPE_IOMAP) {
		err = -ENODEV;
	} else if (refcount_read(&fb->count) > 1) {
		err = -EBUSY;
	} else {
		idr_remove(&fc->backing_files_map, id);
		fc->iomap_state.nr_devices--;
	}
	spin_unlock(&fc->lock);

	if (!err)
		fuse_backing_put(fb);
	return err;
}

/* The device with this id or the next one, with a reference */
static struct fuse_backing *fuse_iomap_next_device(struct fuse_conn *fc,
						   int *id)
{
	struct fuse_backing *fb;

	spin_lock(&fc->lock);
	do {
		fb = idr_get_next(&fc->backing_files_map, id);
	} while (fb && fb->type != FUSE_BACKING_TYPE_IOMAP && ++*id);
	fuse_backing_get(fb);
	spin_unlock(&fc->lock);

	return fb;
}

/**
 * fuse_iomap_flush_devices - make what is on a connection's devices stable
 * @fc: the connection
 *
 * For servers that have no SYNCFS, which would do this.
 *
 * Context: May sleep.
 * Return: 0, or the first error.
 */
int fuse_iomap_flush_devices(struct fuse_conn *fc)
{
	struct fuse_backing *fb;
	int err = 0;
	int id;

	for (id = 1; (fb = fuse_iomap_next_device(fc, &id)); id++) {
		int ret = blkdev_issue_flush(file_bdev(fb->file));

		if (!err)
			err = ret;
		fuse_backing_put(fb);
	}
	return err;
}

/**
 * fuse_iomap_logical_block_size - what all devices of a connection can address
 * @fc: the connection
 *
 * Context: May sleep.
 * Return: the largest logical block size in bytes, or 0 if there is no device.
 */
unsigned int fuse_iomap_logical_block_size(struct fuse_conn *fc)
{
	struct fuse_backing *fb;
	unsigned int size = 0;
	int id;

	for (id = 1; (fb = fuse_iomap_next_device(fc, &id)); id++) {
		size = max(size, bdev_logical_block_size(file_bdev(fb->file)));
		fuse_backing_put(fb);
	}
	return size;
}

/**
 * fuse_iomap_close_devices - give up what a server has registered
 * @fc: the connection, whose inodes are gone
 *
 * The server may live on, but umount(2) returns with the devices closed.
 *
 * Context: May sleep.
 */
void fuse_iomap_close_devices(struct fuse_conn *fc)
{
	struct fuse_backing *fb;
	int id = 1;

	do {
		spin_lock(&fc->lock);
		fb = idr_get_next(&fc->backing_files_map, &id);
		if (fb)
			idr_remove(&fc->backing_files_map, id);
		if (fb && fb->type == FUSE_BACKING_TYPE_IOMAP)
			fc->iomap_state.nr_devices--;
		spin_unlock(&fc->lock);
		fuse_backing_put(fb);
	} while (fb);
}
