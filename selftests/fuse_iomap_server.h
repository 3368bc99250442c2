/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A minimal FUSE server whose file lies on a loop device, for tests of file I/O
 * through iomap. It speaks the protocol on /dev/fuse itself, in a process of its
 * own, and shares its state with the test.
 */
#ifndef FUSE_IOMAP_SERVER_H
#define FUSE_IOMAP_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <linux/fuse.h>
#include <linux/types.h>

#define BLOCK		4096
#define NR_BLOCKS	32			/* of the file, at most */
#define FIRST_BLOCK	8			/* of the device, for the file */
#define DEVICE_SIZE	((FIRST_BLOCK + NR_BLOCKS) * BLOCK)
#define SECTOR		512

#define IOMAP_NODEID	2			/* the file on iomap */
#define PLAIN_NODEID	3			/* the ordinary file beside it */
#define PLAIN_TEXT	"Not on the device.\n"

enum block_state {
	HOLE,
	UNWRITTEN,
	MAPPED,
};

/* What the test and the server share; they never use it at the same time. */
struct server {
	/* What the server is to do; set by the test */
	bool decline;			/* INIT: do not want iomap */
	bool cache_replies;		/* CONFIG: want CACHE_REPLIES, and use it */
	int ioend_error;		/* the answer to IOEND */
	void (*spoil)(struct fuse_iomap_begin_out *out);

	/* What the server has seen */
	bool offered;			/* INIT had FUSE_IOMAP */
	bool configured;		/* CONFIG came */
	int begins;
	int ioends;
	int reads;
	__u32 opflags;		/* of all BEGINs */
	struct fuse_iomap_ioend_in ioend;	/* the last one */

	/* The device, and the file as it is on the disk */
	__u32 backing_id;
	int backing_error;
	__u64 size;
	enum block_state blocks[NR_BLOCKS];
};

/* A device, and a mount of the server */
struct session {
	struct server *server;
	unsigned char *image;		/* the bytes of the device */
	int disk_fd;			/* the loop device */
	int fuse_fd;
	pid_t pid;			/* of the server */
	bool mounted;
	char mountpoint[64];
	char iomap_file[80];
	char plain_file[80];
	char why[128];			/* what could not be done */
};

/*
 * Make the device, full of a pattern, and a file of 8 MAPPED blocks on it; it is
 * gone when the process ends. When this fails, @s->why says what could not be
 * done.
 */
bool session_prepare(struct session *s);

/*
 * Mount in a mount namespace of this process, and start the server. When this
 * fails, @s->why says what could not be done.
 */
bool session_mount(struct session *s);

/* Unmount and wait for the server's end. Returns 0 or a negative errno. */
int session_unmount(struct session *s);

/* Kill the server: the connection ends. */
void session_kill(struct session *s);

/* Register @fd as a device. Returns its id, or a negative errno. */
int session_backing_open(const struct session *s, int fd);

/* Write a notification. Returns 0 or a negative errno. */
int session_notify(const struct session *s, int code, const void *data,
		   size_t size);

/* Where on the device a byte of the file lies. */
__u64 device_offset(__u64 pos);

/* The byte that the device has there in the beginning: never 0. */
unsigned char device_pattern(__u64 offset);

/* The mapping of one block in a given state. */
struct fuse_iomap_io block_mapping(const struct server *server, __u64 block,
				   enum block_state state);

#endif
