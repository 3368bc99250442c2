// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: ACLs of inodes that only this mount changes.
 */

#include "../fuse_i.h"

#include <linux/posix_acl.h>
#include <linux/posix_acl_xattr.h>
#include <linux/stat.h>

static int fuse_iomap_store_acl(struct inode *inode, const char *name,
				struct posix_acl *acl)
{
	size_t size;
	void *value;
	int err;

	if (!acl) {
		err = fuse_removexattr(inode, name);
		return err == -ENODATA ? 0 : err;
	}

	value = posix_acl_to_xattr(get_fuse_conn(inode)->user_ns, acl, &size,
				   GFP_KERNEL);
	if (!value)
		return -ENOMEM;
	/* As large as FUSE reads one */
	err = -E2BIG;
	if (size <= PAGE_SIZE)
		err = fuse_setxattr(inode, name, value, size, 0, 0);
	kfree(value);
	return err;
}

/**
 * fuse_iomap_set_acl - change an ACL, and the mode to match
 * @idmap: of the mount
 * @dentry: of an exclusive inode
 * @name: of the extended attribute
 * @acl: the new ACL, or NULL
 * @type: ACL_TYPE_*
 *
 * The server may change the mode by itself; then there is nothing left to do.
 * An ACL that says no more than the mode is not stored.
 *
 * Context: May sleep; the caller holds i_rwsem.
 * Return: 0, or a negative error number.
 */
int fuse_iomap_set_acl(struct mnt_idmap *idmap, struct dentry *dentry,
		       const char *name, struct posix_acl *acl, int type)
{
	struct inode *inode = d_inode(dentry);
	umode_t mode = inode->i_mode;
	int err;

	if (type == ACL_TYPE_DEFAULT && !S_ISDIR(inode->i_mode))
		return acl ? -EACCES : 0;
	if (type == ACL_TYPE_ACCESS && acl) {
		err = posix_acl_update_mode(idmap, inode, &mode, &acl);
		if (err)
			return err;
	}

	err = fuse_iomap_store_acl(inode, name, acl);
	if (!err && mode != inode->i_mode) {
		struct iattr attr = {
			.ia_valid = ATTR_MODE | ATTR_CTIME | ATTR_FORCE,
			/* Without permission checks the VFS never sees this */
			.ia_mode = mode | (get_fuse_inode(inode)->orig_i_mode &
					   S_ISVTX),
			.ia_ctime = current_time(inode),
		};

		err = fuse_do_setattr(idmap, dentry, &attr, NULL);
	}

	if (err)
		forget_cached_acl(inode, type);
	else
		set_cached_acl(inode, type, acl);
	return err;
}
