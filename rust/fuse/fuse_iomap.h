/* SPDX-License-Identifier: GPL-2.0 */
/*
 * FUSE file I/O through iomap: what the C side of FUSE and the Rust side in
 * fs/fuse/iomap/ know of each other.
 *
 * With CONFIG_FUSE_IOMAP=n every call is behind a condition that is false at
 * compile time, fuse_inode_has_iomap() or fuse_conn_has_iomap(), and needs no
 * stub.
 */
#ifndef _FS_FUSE_IOMAP_H
#define _FS_FUSE_IOMAP_H

#include <linux/atomic.h>
#include <linux/build_bug.h>
#include <linux/fs.h>
#include <linux/spinlock_types.h>
#include <linux/types.h>
#include <linux/workqueue_types.h>

struct backing_dev_info;
struct dentry;
struct fiemap_extent_info;
struct fuse_attr;
struct fuse_backing_map;
struct fuse_chan_param;
struct fuse_conn;
struct fuse_copy_state;
struct fuse_dev;
struct fuse_iomap_backing_info;
struct fuse_iomap_config_in;
struct fuse_iomap_config_out;
struct fuse_iomap_dev_inval_out;
struct fuse_iomap_inval_mappings_out;
struct fuse_iomap_ioend_in;
struct fuse_iomap_io;
struct fuse_iomap_upsert_mappings_out;
struct fuse_mount;
struct fuse_statx;
struct iov_iter;
struct kiocb;
struct kstat;
struct mnt_idmap;
struct posix_acl;
struct seq_file;
struct super_block;
struct vm_fault;
struct workqueue_struct;
enum fuse_notify_code;

/* Devices that one connection may register */
#define FUSE_IOMAP_MAX_DEVICES	1024

/*
 * Storage of the Rust type State (inode.rs), which has its size and alignment
 * asserted against this.  It shares a union of struct fuse_inode with the
 * state of the other I/O modes and must not be the largest member.
 */
struct fuse_iomap_inode {
	u64 opaque[8];
};

/* What is counted for a connection; which is which, counters.rs says */
#define FUSE_IOMAP_NR_COUNTERS	80

struct fuse_iomap_counters {
	u64 n[FUSE_IOMAP_NR_COUNTERS];
};

/* What is kept for a connection, whether or not iomap is on */
struct fuse_iomap_conn {
	/* The server answered FUSE_IOMAP_END with ENOSYS */
	atomic_t no_end;
	/* The server answered FUSE_IOMAP_IOEND with ENOSYS */
	atomic_t no_ioend;
	/* The server answered FUSE_FALLOCATE for an iomap inode with ENOSYS */
	atomic_t no_fallocate;
	/* The server answered FUSE_FSYNC for an iomap inode with ENOSYS */
	atomic_t no_fsync;
	/* A FUSE_ATTR_IOMAP that came too late was reported */
	atomic_t warned;
	/* The server has frozen, and not been told to unfreeze */
	atomic_t frozen;
	/* Nothing is read or written any more */
	atomic_t shutdown;
	/* Thaws if the server is gone */
	struct work_struct thaw_work;
	/* FUSE_IOMAP_CONFIG_* of the extensions in use; set before mount ends */
	u64 extensions;
	/* The Rust type Pool (cache/pool.rs), if there is a mapping cache */
	void *cache_pool;
	/* What is counted, if iomap is on; does not change then */
	struct fuse_iomap_counters __percpu *counters;
	/* Registered devices, under fuse_conn.lock */
	unsigned int nr_devices;
	/* Finishes writeback that changes metadata, if iomap is on */
	struct workqueue_struct *ioend_wq;
	/* What the superblock had before it got one without a strict limit */
	struct backing_dev_info *old_bdi;
};

/* Why a mapping was refused; names and numbers are those of rule.rs */
#define FUSE_IOMAP_NR_RULES	32

/* fs/fuse/iomap/hooks.rs */
extern const struct address_space_operations fuse_iomap_aops;

void fuse_iomap_init_inode(struct inode *inode, const struct fuse_attr *attr);
void fuse_iomap_evict_inode(struct inode *inode);
void fuse_iomap_change_attr(struct inode *inode, const struct fuse_attr *attr);
int fuse_iomap_write_inode(struct inode *inode);
void fuse_iomap_set_flags(struct inode *inode, u32 flags);
int fuse_iomap_file_open(struct inode *inode, struct file *file);
loff_t fuse_iomap_file_llseek(struct file *file, loff_t offset, int whence);
int fuse_iomap_fiemap(struct inode *inode, struct fiemap_extent_info *fieinfo,
		      u64 start, u64 len);
ssize_t fuse_iomap_file_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t fuse_iomap_file_write_iter(struct kiocb *iocb, struct iov_iter *from);
int fuse_iomap_file_fsync(struct file *file, loff_t start, loff_t end,
			  int datasync);
int fuse_iomap_file_fadvise(struct file *file, loff_t offset, loff_t len,
			    int advice);
long fuse_iomap_file_fallocate(struct file *file, int mode, loff_t offset,
			       loff_t len);
vm_fault_t fuse_iomap_page_mkwrite(struct vm_fault *vmf);
int fuse_iomap_truncate_begin(struct inode *inode, loff_t size);
void fuse_iomap_truncate_end(struct inode *inode, loff_t old_size,
			     loff_t new_size, int error);
int fuse_iomap_copy_begin(struct inode *inode, loff_t pos, loff_t len);
void fuse_iomap_copy_end(struct inode *inode, loff_t pos, ssize_t copied);

void fuse_iomap_offer(struct fuse_iomap_config_in *inarg);
int fuse_iomap_configure(struct fuse_mount *fm,
			 const struct fuse_iomap_config_in *inarg,
			 const struct fuse_iomap_config_out *outarg,
			 u32 size, int error);
void fuse_iomap_forget_config(struct fuse_conn *fc);
int fuse_iomap_upsert(struct inode *inode,
		      const struct fuse_iomap_upsert_mappings_out *outarg);
int fuse_iomap_inval(struct inode *inode,
		     const struct fuse_iomap_inval_mappings_out *outarg);

void fuse_iomap_show_counters(struct fuse_conn *fc, struct seq_file *m);
void fuse_iomap_count_message(struct fuse_conn *fc, u32 number, int error);
bool fuse_iomap_is_atomic(struct inode *inode);

/* fs/fuse/iomap/acl.c */
int fuse_iomap_set_acl(struct mnt_idmap *idmap, struct dentry *dentry,
		       const char *name, struct posix_acl *acl, int type);

/* fs/fuse/iomap/backing.c */
int fuse_iomap_device_open(struct fuse_conn *fc, struct fuse_backing_map *map);
int fuse_iomap_device_close(struct fuse_conn *fc, int id);
int fuse_iomap_flush_devices(struct fuse_conn *fc);
unsigned int fuse_iomap_logical_block_size(struct fuse_conn *fc);
void fuse_iomap_close_devices(struct fuse_conn *fc);

/* fs/fuse/iomap/bdev.c */
int fuse_iomap_dev_inval(struct fuse_conn *fc,
			 const struct fuse_iomap_dev_inval_out *outarg);
int fuse_iomap_set_blocksize(struct fuse_conn *fc,
			     struct fuse_iomap_backing_info __user *argp);

/* fs/fuse/iomap/config.c */
void fuse_iomap_send_config(struct fuse_mount *fm,
			    const struct fuse_chan_param *param);

/* fs/fuse/iomap/conn.c */
int fuse_iomap_conn_start(struct fuse_conn *fc, struct super_block *sb);
void fuse_iomap_conn_stop(struct fuse_conn *fc);

/* fs/fuse/iomap/counters.c */
extern const struct file_operations fuse_iomap_ctl_fops;

void fuse_iomap_count(struct fuse_conn *fc, unsigned int counter, u64 n);
u64 fuse_iomap_counted(struct fuse_conn *fc, unsigned int counter);

/* fs/fuse/iomap/dev.c */
bool fuse_iomap_may_offer(const struct fuse_dev *fud);
long fuse_iomap_dev_ioctl(struct file *file, unsigned int cmd,
			  void __user *argp);

/* fs/fuse/iomap/super.c */
void fuse_iomap_super_start(struct fuse_conn *fc);
void fuse_iomap_umount(struct super_block *sb);
bool fuse_iomap_server_answers(struct super_block *sb);
int fuse_iomap_freeze_fs(struct super_block *sb);
int fuse_iomap_unfreeze_fs(struct super_block *sb);
void fuse_iomap_conn_ended(struct fuse_conn *fc);
void fuse_iomap_shutdown(struct super_block *sb);
long fuse_iomap_ioctl_shutdown(struct super_block *sb, unsigned long arg);

/* fs/fuse/iomap/notify.c */
int fuse_iomap_notify(struct fuse_conn *fc, enum fuse_notify_code code,
		      unsigned int size, struct fuse_copy_state *cs);

/* fs/fuse/iomap/statx.c */
void fuse_iomap_statx(struct inode *inode, struct kstat *stat,
		      const struct fuse_statx *sx);
void fuse_iomap_getattr(struct inode *inode, struct kstat *stat,
			u32 request_mask);

/* fs/fuse/iomap/report.c */
void fuse_iomap_report_rejected(const struct inode *inode, unsigned int rule,
				const char *name,
				const struct fuse_iomap_io *map);
void fuse_iomap_report_newsize(const struct inode *inode, unsigned int rule,
			       const char *name,
			       const struct fuse_iomap_ioend_in *inarg,
			       u64 newsize);

#endif /* _FS_FUSE_IOMAP_H */
