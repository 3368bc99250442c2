// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: what a superblock on devices needs beyond what
 * other FUSE mounts do: an orderly end, freezing, and being shut down.
 */

#include "../dev.h"
#include "../fuse_dev_i.h"
#include "../fuse_i.h"

#include <linux/blkdev.h>
#include <linux/moduleparam.h>
#include <linux/workqueue.h>

static unsigned int umount_timeout = 60;
module_param(umount_timeout, uint, 0644);
MODULE_PARM_DESC(umount_timeout,
		 "Seconds after which unmounting gives up an iomap server that answers nothing, 0 for never");

/* The same for umount -f, which is for servers that hang */
#define FUSE_IOMAP_FORCE_TIMEOUT	5

/*
 * Ends a connection whose server has been asked something, and has not answered
 * a single request for a while.  One that is slow, but at work, is waited for.
 */
struct fuse_iomap_watch {
	struct delayed_work work;
	struct fuse_chan *chan;
	unsigned int seconds;
	unsigned int idle;
	/* What changes when the server answers */
	unsigned int waiting;
	u64 unique;
};

static void fuse_iomap_watch_work(struct work_struct *work)
{
	struct fuse_iomap_watch *watch =
		container_of(work, typeof(*watch), work.work);
	struct fuse_chan *fch = watch->chan;
	unsigned int waiting = atomic_read(&fch->num_waiting);
	u64 unique = READ_ONCE(fch->iq.reqctr);

	if (!waiting || waiting != watch->waiting || unique != watch->unique) {
		watch->waiting = waiting;
		watch->unique = unique;
		watch->idle = 0;
	} else if (++watch->idle >= watch->seconds) {
		pr_warn("fuse: iomap: the server of %u:%u has not answered for %u seconds, giving it up\n",
			MAJOR(fch->conn->dev), MINOR(fch->conn->dev),
			watch->seconds);
		fuse_chan_abort(fch, false);
		return;
	}
	schedule_delayed_work(&watch->work, HZ);
}

static void fuse_iomap_watch_start(struct fuse_iomap_watch *watch,
				   struct fuse_conn *fc, unsigned int seconds)
{
	*watch = (struct fuse_iomap_watch) {
		.chan = fc->chan,
		.seconds = seconds,
	};
	INIT_DELAYED_WORK_ONSTACK(&watch->work, fuse_iomap_watch_work);
	if (seconds)
		schedule_delayed_work(&watch->work, 0);
}

static void fuse_iomap_watch_stop(struct fuse_iomap_watch *watch)
{
	cancel_delayed_work_sync(&watch->work);
	destroy_delayed_work_on_stack(&watch->work);
}

/* Sends a request about the filesystem as a whole, and waits for the answer */
static int fuse_iomap_ask(struct super_block *sb, u32 opcode, const void *in,
			  size_t size, bool force)
{
	struct fuse_mount *fm = get_fuse_mount_super(sb);
	int err;

	FUSE_ARGS(args);

	args.opcode = opcode;
	args.nodeid = get_node_id(d_inode(sb->s_root));
	args.in_numargs = size ? 1 : 0;
	args.in_args[0].size = size;
	args.in_args[0].value = in;
	args.force = force;
	args.nocreds = force;

	err = fuse_simple_request(fm, &args);
	/* What io_uring was handing to a server that has died */
	if (err == -ECANCELED)
		err = -ENOTCONN;
	fuse_iomap_count_message(fm->fc, opcode, err);
	return err;
}

/**
 * fuse_iomap_umount - end a mount while the server can still be asked
 * @sb: the superblock
 *
 * All data is written, and the server has told that it is done with its
 * devices, so that these can be used by others when umount(2) returns.  What
 * was sent before DESTROY, RELEASEs above all, is answered before.
 *
 * Context: May sleep; the superblock has no users.  Gives up a server that does
 * not answer, see the module parameter umount_timeout.
 */
void fuse_iomap_umount(struct super_block *sb)
{
	struct fuse_conn *fc = get_fuse_conn_super(sb);
	struct fuse_iomap_watch watch;

	/* It has not even been set up */
	if (!smp_load_acquire(&fc->chan->initialized))
		return;

	/* DESTROY is sent here, and not once more */
	fc->destroy = 0;

	fuse_iomap_watch_start(&watch, fc, READ_ONCE(umount_timeout));
	sync_filesystem(sb);
	wait_event(fc->chan->blocked_waitq, !READ_ONCE(fc->chan->connected) ||
		   !fuse_chan_num_waiting(fc->chan));
	if (fc->conn_init)
		fuse_iomap_ask(sb, FUSE_DESTROY, NULL, 0, true);
	fuse_iomap_watch_stop(&watch);
}

/**
 * fuse_iomap_server_answers - find out whether a server is alive
 * @sb: the superblock
 *
 * Context: May sleep.  If there is no answer, the connection has ended.
 * Return: whether there was one.
 */
bool fuse_iomap_server_answers(struct super_block *sb)
{
	struct fuse_conn *fc = get_fuse_conn_super(sb);
	struct fuse_iomap_watch watch;
	struct fuse_statfs_out outarg;

	FUSE_ARGS(args);

	args.opcode = FUSE_STATFS;
	args.nodeid = get_node_id(d_inode(sb->s_root));
	args.out_numargs = 1;
	args.out_args[0].size = sizeof(outarg);
	args.out_args[0].value = &outarg;
	args.force = true;
	args.nocreds = true;

	fuse_iomap_watch_start(&watch, fc, FUSE_IOMAP_FORCE_TIMEOUT);
	fuse_simple_request(get_fuse_mount_super(sb), &args);
	fuse_iomap_watch_stop(&watch);

	return READ_ONCE(fc->chan->connected);
}

/**
 * fuse_iomap_freeze_fs - super_operations.freeze_fs
 * @sb: the superblock
 *
 * Context: All data is on the devices, and nothing can become dirty.
 * Return: 0, or a negative error number, and then nothing is frozen.
 */
int fuse_iomap_freeze_fs(struct super_block *sb)
{
	struct fuse_conn *fc = get_fuse_conn_super(sb);
	struct fuse_freezefs_in inarg = {
		.unlinked = atomic_long_read(&sb->s_remove_count),
	};
	int err;

	err = fuse_iomap_ask(sb, FUSE_FREEZE_FS, &inarg, sizeof(inarg), false);
	if (err)
		return err == -ENOSYS ? -EOPNOTSUPP : err;

	atomic_set(&fc->iomap_state.frozen, 1);
	/* Either this sees that the connection has ended, or its end sees this */
	smp_mb__after_atomic();
	return READ_ONCE(fc->chan->connected) ? 0 : -ENOTCONN;
}

/**
 * fuse_iomap_unfreeze_fs - super_operations.unfreeze_fs
 * @sb: the superblock
 *
 * Context: May sleep.
 * Return: 0, or the server's error, and then all stays frozen.
 */
int fuse_iomap_unfreeze_fs(struct super_block *sb)
{
	struct fuse_conn *fc = get_fuse_conn_super(sb);
	int err;

	err = fuse_iomap_ask(sb, FUSE_UNFREEZE_FS, NULL, 0, true);
	/* Where there is no server, what waits had better fail than wait on */
	if (err && err != -ENOSYS && READ_ONCE(fc->chan->connected))
		return err;

	atomic_set(&fc->iomap_state.frozen, 0);
	return 0;
}

static void fuse_iomap_thaw_work(struct work_struct *work)
{
	struct fuse_conn *fc =
		container_of(work, typeof(*fc), iomap_state.thaw_work);
	struct super_block *sb = NULL;
	struct fuse_mount *fm;

	down_read(&fc->killsb);
	fm = list_first_entry_or_null(&fc->mounts, struct fuse_mount, fc_entry);
	if (fm && atomic_inc_not_zero(&fm->sb->s_active))
		sb = fm->sb;
	up_read(&fc->killsb);

	if (sb) {
		/* A device that is frozen has an owner who thaws it */
		if (!sb->s_bdev || !atomic_read(&sb->s_bdev->bd_fsfreeze_count))
			thaw_super(sb, FREEZE_HOLDER_USERSPACE, NULL);
		deactivate_super(sb);
	}
	fuse_conn_put(fc);
}

/**
 * fuse_iomap_conn_ended - do not leave a dead filesystem frozen
 * @fc: the connection, which has just ended
 *
 * Nobody could thaw it: its root cannot be opened any more.
 *
 * Context: Any.
 */
void fuse_iomap_conn_ended(struct fuse_conn *fc)
{
	if (!atomic_xchg(&fc->iomap_state.frozen, 0))
		return;

	fuse_conn_get(fc);
	schedule_work(&fc->iomap_state.thaw_work);
}

/**
 * fuse_iomap_super_start - prepare for what is in this file
 * @fc: the connection
 */
void fuse_iomap_super_start(struct fuse_conn *fc)
{
	INIT_WORK(&fc->iomap_state.thaw_work, fuse_iomap_thaw_work);
}

static int fuse_iomap_send_shutdown(struct super_block *sb)
{
	struct fuse_shutdownfs_in inarg = {};
	struct fuse_iomap_watch watch;
	int err;

	fuse_iomap_watch_start(&watch, get_fuse_conn_super(sb),
			       READ_ONCE(umount_timeout));
	err = fuse_iomap_ask(sb, FUSE_SHUTDOWN_FS, &inarg, sizeof(inarg), true);
	fuse_iomap_watch_stop(&watch);
	return err;
}

/**
 * fuse_iomap_shutdown - super_operations.shutdown: the device is gone
 * @sb: the superblock
 *
 * Context: May sleep; holds s_umount.
 */
void fuse_iomap_shutdown(struct super_block *sb)
{
	atomic_set(&get_fuse_conn_super(sb)->iomap_state.shutdown, 1);
	fuse_iomap_send_shutdown(sb);
}

/**
 * fuse_iomap_ioctl_shutdown - FS_IOC_SHUTDOWN, as other filesystems have it
 * @sb: the superblock
 * @arg: where the flags are
 *
 * Context: May sleep.
 * Return: 0, or a negative error number; EOPNOTSUPP if the server cannot do it.
 */
long fuse_iomap_ioctl_shutdown(struct super_block *sb, unsigned long arg)
{
	struct fuse_conn *fc = get_fuse_conn_super(sb);
	u32 flags;
	int err = 0;

	if (!capable(CAP_SYS_ADMIN))
		return -EPERM;
	if (get_user(flags, (u32 __user *)arg))
		return -EFAULT;
	if (flags > FS_SHUTDOWN_FLAGS_NOLOGFLUSH)
		return -EINVAL;
	if (atomic_read(&fc->iomap_state.shutdown))
		return 0;

	/* By default nothing is lost; or only what the server has not heard of */
	down_read(&sb->s_umount);
	if (flags == FS_SHUTDOWN_FLAGS_DEFAULT)
		err = sync_filesystem(sb);
	else if (flags == FS_SHUTDOWN_FLAGS_LOGFLUSH)
		err = sb->s_op->sync_fs(sb, 1);
	up_read(&sb->s_umount);
	if (err)
		return err;

	err = fuse_iomap_send_shutdown(sb);
	if (err)
		return err == -ENOSYS ? -EOPNOTSUPP : err;

	atomic_set(&fc->iomap_state.shutdown, 1);
	return 0;
}
