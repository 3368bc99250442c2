// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: the log lines for answers that were refused.
 *
 * In C because of the static initialiser of struct ratelimit_state.
 */

#include "../fuse_i.h"

#include <linux/ratelimit.h>

/*
 * One limit for each rule, so that a server that breaks one all the time does
 * not hide that it breaks another.
 */
static struct ratelimit_state fuse_iomap_limits[FUSE_IOMAP_NR_RULES] = {
	[0 ... FUSE_IOMAP_NR_RULES - 1] =
		RATELIMIT_STATE_INIT(fuse_iomap_limits,
				     DEFAULT_RATELIMIT_INTERVAL,
				     DEFAULT_RATELIMIT_BURST),
};

static bool fuse_iomap_may_report(unsigned int rule)
{
	if (WARN_ON_ONCE(rule >= FUSE_IOMAP_NR_RULES))
		return false;

	return __ratelimit(&fuse_iomap_limits[rule]);
}

/**
 * fuse_iomap_report_rejected - log that a mapping was refused
 * @inode: the inode that it is for
 * @rule: number of the rule that it breaks
 * @name: name of that rule
 * @map: the mapping as the server sent it
 *
 * Context: any.
 */
void fuse_iomap_report_rejected(const struct inode *inode, unsigned int rule,
				const char *name,
				const struct fuse_iomap_io *map)
{
	if (!fuse_iomap_may_report(rule))
		return;

	pr_warn("iomap: inode %llu on %s: BEGIN reply rejected: %s: offset %llu length %llu addr %#llx type %u flags %#x dev %u\n",
		get_fuse_inode(inode)->orig_ino, inode->i_sb->s_id, name,
		map->offset, map->length, map->addr, map->type, map->flags,
		map->dev);
}

/**
 * fuse_iomap_report_newsize - log that an answer to IOEND was refused
 * @inode: the inode that it is for
 * @rule: number of the rule that it breaks
 * @name: name of that rule
 * @inarg: the request
 * @newsize: the size on disk that the server claims
 *
 * Context: any.
 */
void fuse_iomap_report_newsize(const struct inode *inode, unsigned int rule,
			       const char *name,
			       const struct fuse_iomap_ioend_in *inarg,
			       u64 newsize)
{
	if (!fuse_iomap_may_report(rule))
		return;

	pr_warn("iomap: inode %llu on %s: IOEND reply rejected: %s: pos %llu written %llu newsize %llu\n",
		get_fuse_inode(inode)->orig_ino, inode->i_sb->s_id, name,
		inarg->pos, inarg->written, newsize);
}
