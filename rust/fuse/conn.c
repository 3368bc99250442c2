// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: what a connection gets when iomap is turned on.
 */

#include "../fuse_i.h"

#include <linux/backing-dev.h>
#include <linux/kdev_t.h>
#include <linux/percpu.h>
#include <linux/workqueue.h>

/*
 * FUSE keeps the dirty pages of a mount below one percent of what the system
 * may have, because writing them back needs the server.  For iomap inodes the
 * kernel writes to the device itself, and that limit would only make it slow.
 *
 * The old one stays allocated until the connection is gone: nothing of it is in
 * use, since no operation has got past INIT yet, but sync(2) may look at it.
 */
static int fuse_iomap_replace_bdi(struct fuse_conn *fc, struct super_block *sb)
{
	struct backing_dev_info *old = sb->s_bdi;
	int err;

	sb->s_bdi = &noop_backing_dev_info;
	err = super_setup_bdi_name(sb, "%u:%u%s-iomap", MAJOR(fc->dev),
				   MINOR(fc->dev),
				   sb->s_bdev ? "-fuseblk" : "");
	if (err) {
		sb->s_bdi = old;
		return err;
	}

	bdi_unregister(old);
	fc->iomap_state.old_bdi = old;
	return 0;
}

/**
 * fuse_iomap_conn_start - prepare a connection for iomap inodes
 * @fc: the connection, whose server has just accepted FUSE_IOMAP
 * @sb: its superblock
 *
 * The workqueue is the connection's own, so that a server that does not answer
 * holds up nobody else even if it takes the last worker.
 *
 * Context: May sleep; no other request than INIT has been sent.
 * Return: 0, or a negative error number, and then the mount has to fail.
 */
int fuse_iomap_conn_start(struct fuse_conn *fc, struct super_block *sb)
{
	struct fuse_iomap_counters __percpu *counters;
	struct workqueue_struct *wq;
	int err = -ENOMEM;

	counters = alloc_percpu(struct fuse_iomap_counters);
	if (!counters)
		return -ENOMEM;

	wq = alloc_workqueue("fuse-ioend-%u:%u", WQ_MEM_RECLAIM | WQ_UNBOUND, 0,
			     MAJOR(fc->dev), MINOR(fc->dev));
	if (!wq)
		goto out_counters;

	err = fuse_iomap_replace_bdi(fc, sb);
	if (err)
		goto out_wq;

	fc->iomap_state.ioend_wq = wq;
	/* Pairs with smp_load_acquire() in fuse_iomap_ctl_show() */
	smp_store_release(&fc->iomap_state.counters, counters);
	fuse_iomap_super_start(fc);
	/* Unlike other FUSE mounts, this one keeps what sync(2) promises */
	sb->s_iflags &= ~SB_I_NO_DATA_INTEGRITY;
	return 0;

out_wq:
	destroy_workqueue(wq);
out_counters:
	free_percpu(counters);
	return err;
}

/**
 * fuse_iomap_conn_stop - undo fuse_iomap_conn_start()
 * @fc: the connection
 *
 * Context: May sleep; the connection's inodes are gone.
 */
void fuse_iomap_conn_stop(struct fuse_conn *fc)
{
	destroy_workqueue(fc->iomap_state.ioend_wq);
	fuse_iomap_forget_config(fc);
	bdi_put(fc->iomap_state.old_bdi);
	free_percpu(fc->iomap_state.counters);
}
