// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: who may use it, and ioctls on /dev/fuse.
 */

#include "../fuse_dev_i.h"
#include "../fuse_i.h"

#include <linux/capability.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/uaccess.h>

static bool enable_iomap;
module_param(enable_iomap, bool, 0644);
MODULE_PARM_DESC(enable_iomap, "Offer file I/O through iomap to servers");

/**
 * fuse_iomap_may_offer - decide whether the server of a new mount may use iomap
 * @fud: the device that it is mounted with
 *
 * What a server says then decides what the kernel does to block devices, so
 * somebody with CAP_SYS_RAWIO has to want that: who mounts, or who has marked
 * the device before (FUSE_DEV_IOC_ADD_IOMAP).  The server needs no privilege.
 * The capability counts in the initial user namespace only, so that nobody gets
 * it by making a namespace to mount in.
 *
 * Context: mount(2), in the mounter's task.
 */
bool fuse_iomap_may_offer(const struct fuse_dev *fud)
{
	return READ_ONCE(enable_iomap) &&
	       (READ_ONCE(fud->may_iomap) || capable(CAP_SYS_RAWIO));
}

/*
 * The mark belongs to the open device, wherever that is handed to, and is good
 * for the one mount that is made with it.  It says nothing of block devices: the
 * server can register only what it holds open.
 */
static long fuse_iomap_mark_device(struct fuse_dev *fud)
{
	if (!READ_ONCE(enable_iomap))
		return -EOPNOTSUPP;
	if (!capable(CAP_SYS_RAWIO))
		return -EPERM;
	/* Mounted, or a clone of one that is: INIT has been sent without it */
	if (fuse_dev_chan_get(fud))
		return -EINVAL;

	WRITE_ONCE(fud->may_iomap, true);
	return 0;
}

/* What the mount that can be made with this device, or was, is offered */
static long fuse_iomap_support(const struct fuse_dev *fud,
			       struct fuse_iomap_support __user *argp)
{
	struct fuse_iomap_support support = {};

	if (fuse_iomap_may_offer(fud))
		support.flags = FUSE_IOMAP_SUPPORT_FILEIO |
				FUSE_IOMAP_SUPPORT_ATOMIC;

	return copy_to_user(argp, &support, sizeof(support)) ? -EFAULT : 0;
}

/*
 * Memory that the server allocates while the kernel waits for it must not be
 * reclaimed from filesystems, which may wait for the server; nor may it be
 * throttled for dirty pages that only it can have cleaned.
 */
static long fuse_iomap_set_nofs(struct fuse_dev *fud, u32 __user *argp)
{
	const struct fuse_chan *chan = fuse_dev_chan_get(fud);
	const unsigned int flags = PF_MEMALLOC_NOFS | PF_LOCAL_THROTTLE;
	u32 on;

	if (!(chan && fuse_conn_has_iomap(chan->conn)) &&
	    !capable(CAP_SYS_RESOURCE))
		return -EPERM;
	if (get_user(on, argp))
		return -EFAULT;
	if (on > 1)
		return -EINVAL;

	if (on)
		current->flags |= flags;
	else
		current->flags &= ~flags;
	return 0;
}

/**
 * fuse_iomap_dev_ioctl - do what iomap adds to the ioctls of /dev/fuse
 * @file: the open device
 * @cmd: which one
 * @argp: its argument
 *
 * Context: May sleep.
 * Return: What ioctl(2) is to return, %-ENOTTY for those that are not known.
 */
long fuse_iomap_dev_ioctl(struct file *file, unsigned int cmd,
			  void __user *argp)
{
	struct fuse_dev *fud;

	switch (cmd) {
	case FUSE_DEV_IOC_ADD_IOMAP:
		return fuse_iomap_mark_device(fuse_file_to_fud(file));
	case FUSE_DEV_IOC_IOMAP_SUPPORT:
		return fuse_iomap_support(fuse_file_to_fud(file), argp);
	case FUSE_DEV_IOC_SET_NOFS:
		return fuse_iomap_set_nofs(fuse_file_to_fud(file), argp);
	case FUSE_DEV_IOC_IOMAP_SET_BLOCKSIZE:
		fud = fuse_get_dev(file);
		if (IS_ERR(fud))
			return PTR_ERR(fud);
		if (!fuse_conn_has_iomap(fud->chan->conn))
			return -EPERM;
		return fuse_iomap_set_blocksize(fud->chan->conn, argp);
	default:
		return -ENOTTY;
	}
}
