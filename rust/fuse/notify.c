// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: what a server says without being asked.
 */

#include "../dev.h"
#include "../fuse_dev_i.h"
#include "../fuse_i.h"

#include <linux/workqueue.h>

/* An inode to be let go of by another task */
struct fuse_iomap_put {
	struct work_struct work;
	struct inode *inode;
};

static void fuse_iomap_put_work(struct work_struct *work)
{
	struct fuse_iomap_put *put = container_of(work, typeof(*put), work);

	iput(put->inode);
	kfree(put);
}

/*
 * If this is the last reference, dropping it may wait for writeback, and that
 * for the server: which is the task that is in here.
 */
static void fuse_iomap_put_inode(struct fuse_conn *fc,
				 struct fuse_iomap_put *put)
{
	if (atomic_add_unless(&put->inode->i_count, -1, 1)) {
		kfree(put);
		return;
	}
	INIT_WORK(&put->work, fuse_iomap_put_work);
	queue_work(fc->iomap_state.ioend_wq, &put->work);
}

/* Those about an inode start with the same two fields */
union fuse_iomap_notification {
	struct {
		u64 nodeid;
		u64 attr_ino;
	};
	struct fuse_iomap_upsert_mappings_out upsert;
	struct fuse_iomap_inval_mappings_out inval;
	struct fuse_iomap_dev_inval_out dev_inval;
};

static int fuse_iomap_match(struct inode *inode, u64 hashval, void *data)
{
	int ret = -1;

	if (get_node_id(inode) != hashval)
		return 0;

	spin_lock(&inode->i_lock);
	if (!(inode_state_read(inode) & (I_NEW | I_CREATING | I_FREEING |
					 I_WILL_FREE))) {
		__iget(inode);
		ret = 1;
	}
	spin_unlock(&inode->i_lock);
	return ret;
}

/*
 * Unlike fuse_ilookup(), does not wait for an inode that is being made or
 * evicted: eviction may wait for the server.
 */
static struct inode *fuse_iomap_lookup(struct fuse_conn *fc, u64 nodeid)
{
	struct fuse_mount *fm;
	struct inode *inode;

	list_for_each_entry(fm, &fc->mounts, fc_entry) {
		if (!fm->sb)
			continue;
		inode = find_inode_nowait(fm->sb, nodeid, fuse_iomap_match,
					  NULL);
		if (inode)
			return inode;
	}
	return NULL;
}

static int fuse_iomap_notify_inode(struct inode *inode,
				   enum fuse_notify_code code,
				   const union fuse_iomap_notification *arg)
{
	if (!fuse_inode_has_iomap(inode) ||
	    get_fuse_inode(inode)->orig_ino != arg->attr_ino)
		return -EINVAL;

	return code == FUSE_NOTIFY_IOMAP_UPSERT_MAPPINGS ?
		fuse_iomap_upsert(inode, &arg->upsert) :
		fuse_iomap_inval(inode, &arg->inval);
}

static int fuse_iomap_do_notify(struct fuse_conn *fc,
				enum fuse_notify_code code, unsigned int size,
				struct fuse_copy_state *cs)
{
	union fuse_iomap_notification arg;
	struct fuse_iomap_put *put;
	int err;

	switch (code) {
	case FUSE_NOTIFY_IOMAP_UPSERT_MAPPINGS:
		if (size != sizeof(arg.upsert))
			return -EINVAL;
		break;
	case FUSE_NOTIFY_IOMAP_INVAL_MAPPINGS:
		if (size != sizeof(arg.inval))
			return -EINVAL;
		break;
	case FUSE_NOTIFY_IOMAP_DEV_INVAL:
		if (size != sizeof(arg.dev_inval))
			return -EINVAL;
		break;
	default:
		return -EINVAL;
	}

	err = fuse_copy_one(cs, &arg, size);
	if (err)
		return err;
	fuse_copy_finish(cs);

	if (code == FUSE_NOTIFY_IOMAP_DEV_INVAL)
		return fuse_iomap_dev_inval(fc, &arg.dev_inval);

	put = kmalloc_obj(*put);
	if (!put)
		return -ENOMEM;

	down_read(&fc->killsb);
	put->inode = fuse_iomap_lookup(fc, arg.nodeid);
	if (put->inode) {
		err = fuse_iomap_notify_inode(put->inode, code, &arg);
		fuse_iomap_put_inode(fc, put);
	} else {
		kfree(put);
		err = -ENOENT;
	}
	up_read(&fc->killsb);
	return err;
}

/**
 * fuse_iomap_notify - handle a notification about mappings or a device
 * @fc: the connection, with iomap on
 * @code: what it is
 * @size: its length, in bytes
 * @cs: where to copy it from
 *
 * Context: May sleep.  Called by the server, so it waits for no request.
 * Return: 0; -EINVAL if it makes no sense; -ENOENT if there is no such inode
 * in core, or no such device; -EUCLEAN if a mapping breaks a rule; -ENOMEM; or
 * what fuse_iomap_dev_inval() says.
 */
int fuse_iomap_notify(struct fuse_conn *fc, enum fuse_notify_code code,
		      unsigned int size, struct fuse_copy_state *cs)
{
	int err = fuse_iomap_do_notify(fc, code, size, cs);

	fuse_iomap_count_message(fc, code, err);
	return err;
}
