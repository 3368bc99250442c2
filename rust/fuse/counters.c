// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap: what is counted for a connection.
 *
 * In C because of the accessors of per-CPU memory.  What there is to count is
 * in counters.rs.
 */

#include "../dev.h"
#include "../fuse_i.h"

#include <linux/percpu.h>
#include <linux/seq_file.h>

/**
 * fuse_iomap_count - count something
 * @fc: a connection with iomap on
 * @counter: number of the counter
 * @n: how many
 *
 * Context: any.
 */
void fuse_iomap_count(struct fuse_conn *fc, unsigned int counter, u64 n)
{
	this_cpu_add(fc->iomap_state.counters->n[counter], n);
}

/**
 * fuse_iomap_counted - how many there were
 * @fc: a connection with iomap on
 * @counter: number of the counter
 *
 * Context: any.
 * Return: the sum, which may miss what is being counted.
 */
u64 fuse_iomap_counted(struct fuse_conn *fc, unsigned int counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(fc->iomap_state.counters,
					     cpu)->n[counter]);
	return sum;
}

/* The connection may go away while its file is open */
static struct fuse_conn *fuse_iomap_ctl_conn_get(const struct file *file)
{
	struct fuse_conn *fc;

	mutex_lock(&fuse_mutex);
	fc = file_inode(file)->i_private;
	if (fc)
		fuse_conn_get(fc);
	mutex_unlock(&fuse_mutex);
	return fc;
}

static int fuse_iomap_ctl_show(struct seq_file *m, void *v)
{
	struct fuse_conn *fc = fuse_iomap_ctl_conn_get(m->private);

	if (!fc)
		return 0;

	/* Pairs with smp_store_release() in fuse_iomap_conn_start() */
	if (smp_load_acquire(&fc->iomap_state.counters))
		fuse_iomap_show_counters(fc, m);
	fuse_conn_put(fc);
	return 0;
}

static int fuse_iomap_ctl_open(struct inode *inode, struct file *file)
{
	return single_open(file, fuse_iomap_ctl_show, file);
}

/* The file "iomap", which is empty unless iomap is on */
const struct file_operations fuse_iomap_ctl_fops = {
	.open		= fuse_iomap_ctl_open,
	.read		= seq_read,
	.llseek		= seq_lseek,
	.release	= single_release,
};
