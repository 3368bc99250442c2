// SPDX-License-Identifier: GPL-2.0
/*
 * A minimal FUSE server whose file lies on a loop device. It answers where each
 * block is, one at a time, and never touches the device itself.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/falloc.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "fuse_iomap_server.h"

#define MAX_WRITE	(64 * 1024)
#define LOOP_ATTEMPTS	16

/* A request, and who answers it */
struct request {
	struct session *s;
	struct fuse_in_header header;
	const void *arg;
};

__u64 device_offset(__u64 pos)
{
	/* Neighbours change places, so that no offset is right by accident. */
	return (FIRST_BLOCK + (pos / BLOCK ^ 1)) * BLOCK + pos % BLOCK;
}

unsigned char device_pattern(__u64 offset)
{
	return (offset * 31 + offset / BLOCK * 7) % 255 + 1;
}

static void reply(const struct request *req, int error, const void *data,
		  size_t size)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + size,
		.error = error,
		.unique = req->header.unique,
	};
	struct iovec iov[2] = {
		{ &header, sizeof(header) },
		{ (void *)data, size },
	};

	/* It fails if the request is over, because its caller was killed. */
	if (writev(req->s->fuse_fd, iov, size ? 2 : 1) < 0)
		return;
}

static bool fill_attr(const struct server *server, __u64 nodeid,
		      struct fuse_attr *attr)
{
	*attr = (struct fuse_attr) {
		.ino = nodeid,
		.nlink = 1,
		.blksize = BLOCK,
	};

	switch (nodeid) {
	case FUSE_ROOT_ID:
		attr->mode = S_IFDIR | 0755;
		attr->nlink = 2;
		return true;
	case IOMAP_NODEID:
		attr->mode = S_IFREG | 0644;
		attr->size = server->size;
		attr->flags = FUSE_ATTR_IOMAP | FUSE_ATTR_EXCLUSIVE;
		return true;
	case PLAIN_NODEID:
		attr->mode = S_IFREG | 0444;
		attr->size = strlen(PLAIN_TEXT);
		return true;
	default:
		return false;
	}
}

static void do_init(const struct request *req)
{
	const struct fuse_init_in *in = req->arg;
	struct server *server = req->s->server;
	__u64 flags = in->flags | (__u64)in->flags2 << 32;
	struct fuse_init_out out = {
		.major = FUSE_KERNEL_VERSION,
		.minor = FUSE_KERNEL_MINOR_VERSION,
		.max_readahead = in->max_readahead,
		.max_background = 16,
		.congestion_threshold = 12,
		.max_write = MAX_WRITE,
		.time_gran = 1,
	};

	server->offered = flags & FUSE_INIT_EXT && flags & FUSE_IOMAP;
	if (server->offered && !server->decline) {
		out.flags = FUSE_INIT_EXT;
		out.flags2 = FUSE_IOMAP >> 32;
	}
	reply(req, 0, &out, sizeof(out));
}

/* No other request comes before this one is answered. */
static void do_config(const struct request *req)
{
	const struct fuse_iomap_config_in *in = req->arg;
	struct server *server = req->s->server;
	struct fuse_iomap_config_out out = {};
	int id;

	server->configured = true;
	id = session_backing_open(req->s, req->s->disk_fd);
	if (id < 0)
		server->backing_error = id;
	else
		server->backing_id = id;
	if (server->cache_replies)
		out.flags = in->flags & FUSE_IOMAP_CONFIG_CACHE_REPLIES;
	reply(req, 0, &out, sizeof(out));
}

static void do_lookup(const struct request *req)
{
	const char *name = req->arg;
	struct fuse_entry_out out = {};

	if (!strcmp(name, "iomap"))
		out.nodeid = IOMAP_NODEID;
	else if (!strcmp(name, "plain"))
		out.nodeid = PLAIN_NODEID;
	if (fill_attr(req->s->server, out.nodeid, &out.attr))
		reply(req, 0, &out, sizeof(out));
	else
		reply(req, -ENOENT, NULL, 0);
}

static void reply_attr(const struct request *req)
{
	struct fuse_attr_out out = {};

	if (fill_attr(req->s->server, req->header.nodeid, &out.attr))
		reply(req, 0, &out, sizeof(out));
	else
		reply(req, -ENOENT, NULL, 0);
}

/* Blocks that lie in a range as a whole are freed. */
static void free_blocks(struct server *server, __u64 start, __u64 end)
{
	__u64 block = (start + BLOCK - 1) / BLOCK;

	for (; block < NR_BLOCKS && (block + 1) * BLOCK <= end; block++)
		server->blocks[block] = HOLE;
}

static void do_setattr(const struct request *req)
{
	const struct fuse_setattr_in *in = req->arg;
	struct server *server = req->s->server;

	if (req->header.nodeid == IOMAP_NODEID && in->valid & FATTR_SIZE) {
		server->size = in->size;
		free_blocks(server, in->size, NR_BLOCKS * BLOCK);
	}
	reply_attr(req);
}

static void do_fallocate(const struct request *req)
{
	const struct fuse_fallocate_in *in = req->arg;
	struct server *server = req->s->server;
	__u64 end = in->offset + in->length;
	__u64 block;

	if (end > NR_BLOCKS * BLOCK) {
		reply(req, -ENOSPC, NULL, 0);
		return;
	}

	switch (in->mode) {
	case 0:
		for (block = in->offset / BLOCK; block * BLOCK < end; block++) {
			if (server->blocks[block] == HOLE)
				server->blocks[block] = UNWRITTEN;
		}
		if (server->size < end)
			server->size = end;
		break;
	case FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE:
		free_blocks(server, in->offset, end);
		break;
	default:
		reply(req, -EOPNOTSUPP, NULL, 0);
		return;
	}
	reply(req, 0, NULL, 0);
}

struct fuse_iomap_io block_mapping(const struct server *server, __u64 block,
				   enum block_state state)
{
	struct fuse_iomap_io map = {
		.offset = block * BLOCK,
		.length = BLOCK,
		.type = FUSE_IOMAP_TYPE_HOLE,
		.addr = FUSE_IOMAP_NULL_ADDR,
		.dev = FUSE_IOMAP_DEV_NULL,
	};

	if (state != HOLE) {
		map.type = state == MAPPED ? FUSE_IOMAP_TYPE_MAPPED :
					     FUSE_IOMAP_TYPE_UNWRITTEN;
		map.addr = device_offset(map.offset);
		map.dev = server->backing_id;
	}
	return map;
}

static void do_begin(const struct request *req)
{
	const struct fuse_iomap_begin_in *in = req->arg;
	struct server *server = req->s->server;
	struct fuse_iomap_begin_out out;
	__u64 block = in->pos / BLOCK;
	enum block_state state = HOLE;

	server->begins++;
	server->opflags |= in->opflags;

	if (block < NR_BLOCKS)
		state = server->blocks[block];
	if (state == HOLE && in->opflags & FUSE_IOMAP_OP_WRITE &&
	    !(in->opflags & FUSE_IOMAP_OP_OVERWRITE_ONLY)) {
		if (block >= NR_BLOCKS) {
			reply(req, -ENOSPC, NULL, 0);
			return;
		}
		state = UNWRITTEN;
		server->blocks[block] = state;
	}

	out.read = block_mapping(server, block, state);
	if (server->cache_replies)
		out.read.flags = FUSE_IOMAP_F_CACHE;
	out.write = block_mapping(server, block, HOLE);
	out.write.type = FUSE_IOMAP_TYPE_PURE_OVERWRITE;
	if (server->spoil)
		server->spoil(&out);
	reply(req, 0, &out, sizeof(out));
}

static void do_ioend(const struct request *req)
{
	const struct fuse_iomap_ioend_in *in = req->arg;
	struct server *server = req->s->server;
	struct fuse_iomap_ioend_out out;
	__u64 end = in->pos + in->written;
	__u64 block;

	server->ioends++;
	server->ioend = *in;

	if (server->ioend_error) {
		reply(req, server->ioend_error, NULL, 0);
		return;
	}
	if (!in->error && in->written && end <= NR_BLOCKS * BLOCK) {
		for (block = in->pos / BLOCK; block * BLOCK < end; block++) {
			if (server->blocks[block] == UNWRITTEN)
				server->blocks[block] = MAPPED;
		}
		if (in->flags & FUSE_IOMAP_IOEND_APPEND && server->size < end)
			server->size = end;
	}
	out.newsize = server->size;
	reply(req, 0, &out, sizeof(out));
}

static void do_open(const struct request *req)
{
	struct fuse_open_out out = {};

	reply(req, 0, &out, sizeof(out));
}

static void do_read(const struct request *req)
{
	const struct fuse_read_in *in = req->arg;
	size_t size = strlen(PLAIN_TEXT);

	req->s->server->reads++;
	if (req->header.nodeid != PLAIN_NODEID)
		reply(req, -EIO, NULL, 0);
	else if (in->offset >= size)
		reply(req, 0, NULL, 0);
	else if (in->size < size - in->offset)
		reply(req, 0, PLAIN_TEXT + in->offset, in->size);
	else
		reply(req, 0, PLAIN_TEXT + in->offset, size - in->offset);
}

static void do_statfs(const struct request *req)
{
	struct fuse_statfs_out out = {
		.st.bsize = BLOCK,
		.st.frsize = BLOCK,
		.st.blocks = NR_BLOCKS,
		.st.namelen = NAME_MAX,
	};

	reply(req, 0, &out, sizeof(out));
}

static void answer(const struct request *req)
{
	switch (req->header.opcode) {
	case FUSE_INIT:
		return do_init(req);
	case FUSE_IOMAP_CONFIG:
		return do_config(req);
	case FUSE_LOOKUP:
		return do_lookup(req);
	case FUSE_GETATTR:
		return reply_attr(req);
	case FUSE_SETATTR:
		return do_setattr(req);
	case FUSE_FALLOCATE:
		return do_fallocate(req);
	case FUSE_IOMAP_BEGIN:
		return do_begin(req);
	case FUSE_IOMAP_IOEND:
		return do_ioend(req);
	case FUSE_OPEN:
	case FUSE_OPENDIR:
		return do_open(req);
	case FUSE_READ:
		return do_read(req);
	case FUSE_STATFS:
		return do_statfs(req);
	case FUSE_IOMAP_END:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
	case FUSE_SYNCFS:
	case FUSE_RELEASE:
	case FUSE_RELEASEDIR:
		return reply(req, 0, NULL, 0);
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return;
	case FUSE_DESTROY:
		/* The device has to be free when the answer is there. */
		close(req->s->disk_fd);
		return reply(req, 0, NULL, 0);
	default:
		return reply(req, -EOPNOTSUPP, NULL, 0);
	}
}

static void serve(struct session *s)
{
	static __u64 buffer[(MAX_WRITE + FUSE_MIN_READ_BUFFER) / sizeof(__u64)];
	struct request req = { .s = s };
	ssize_t size;

	for (;;) {
		size = read(s->fuse_fd, buffer, sizeof(buffer));
		if (size < 0 && (errno == EINTR || errno == EAGAIN ||
				 errno == ENOENT))
			continue;
		if (size < (ssize_t)sizeof(req.header))
			return;		/* ENODEV: unmounted */
		memcpy(&req.header, buffer, sizeof(req.header));
		req.arg = (const char *)buffer + sizeof(req.header);
		answer(&req);
	}
}

int session_backing_open(const struct session *s, int fd)
{
	struct fuse_backing_map map = {
		.fd = fd,
		.flags = FUSE_BACKING_TYPE_IOMAP,
	};
	int id = ioctl(s->fuse_fd, FUSE_DEV_IOC_BACKING_OPEN, &map);

	return id < 0 ? -errno : id;
}

int session_notify(const struct session *s, int code, const void *data,
		   size_t size)
{
	struct fuse_out_header header = {
		.len = sizeof(header) + size,
		.error = code,
	};
	struct iovec iov[2] = {
		{ &header, sizeof(header) },
		{ (void *)data, size },
	};

	return writev(s->fuse_fd, iov, 2) < 0 ? -errno : 0;
}

/* A loop device on @image_fd, which goes when its last descriptor is closed. */
static int make_loop(int image_fd)
{
	struct loop_config config = {
		.fd = image_fd,
		.block_size = SECTOR,
		.info.lo_flags = LO_FLAGS_AUTOCLEAR,
	};
	int control, attempt, number, fd, error = -EBUSY;
	char path[32];

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return -errno;

	/* Somebody else may take the one that is free. */
	for (attempt = 0; attempt < LOOP_ATTEMPTS; attempt++) {
		number = ioctl(control, LOOP_CTL_GET_FREE);
		if (number < 0) {
			error = -errno;
			break;
		}
		snprintf(path, sizeof(path), "/dev/loop%d", number);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0) {
			error = -errno;
			break;
		}
		if (!ioctl(fd, LOOP_CONFIGURE, &config)) {
			close(control);
			return fd;
		}
		error = -errno;
		close(fd);
		if (error != -EBUSY)
			break;
	}
	close(control);
	return error;
}

static bool failed(struct session *s, const char *what, int error)
{
	snprintf(s->why, sizeof(s->why), "%s: %s", what, strerror(error));
	return false;
}

bool session_prepare(struct session *s)
{
	int image_fd, i;

	image_fd = memfd_create("fuse_iomap_test", MFD_CLOEXEC);
	if (image_fd < 0 || ftruncate(image_fd, DEVICE_SIZE))
		return failed(s, "memory for the device", errno);
	s->image = mmap(NULL, DEVICE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
			image_fd, 0);
	if (s->image == MAP_FAILED)
		return failed(s, "memory for the device", errno);
	for (i = 0; i < DEVICE_SIZE; i++)
		s->image[i] = device_pattern(i);

	s->disk_fd = make_loop(image_fd);
	if (s->disk_fd < 0)
		return failed(s, "a loop device", -s->disk_fd);
	close(image_fd);

	s->server = mmap(NULL, sizeof(*s->server), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s->server == MAP_FAILED)
		return failed(s, "shared memory", errno);
	s->server->size = 8 * BLOCK;
	for (i = 0; i < 8; i++)
		s->server->blocks[i] = MAPPED;

	s->fuse_fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (s->fuse_fd < 0)
		return failed(s, "/dev/fuse", errno);
	return true;
}

bool session_mount(struct session *s)
{
	char options[64];
	int error;

	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		return failed(s, "a mount namespace", errno);

	snprintf(s->mountpoint, sizeof(s->mountpoint),
		 "/tmp/fuse_iomap_test.XXXXXX");
	if (!mkdtemp(s->mountpoint))
		return failed(s, "a directory in /tmp", errno);
	snprintf(s->iomap_file, sizeof(s->iomap_file), "%s/iomap",
		 s->mountpoint);
	snprintf(s->plain_file, sizeof(s->plain_file), "%s/plain",
		 s->mountpoint);
	snprintf(options, sizeof(options),
		 "fd=%d,rootmode=40000,user_id=0,group_id=0", s->fuse_fd);
	if (mount("fuse_iomap_test", s->mountpoint, "fuse", 0, options)) {
		error = errno;
		rmdir(s->mountpoint);
		return failed(s, "mount", error);
	}
	s->mounted = true;

	s->pid = fork();
	if (s->pid < 0)
		return failed(s, "a process for the server", errno);
	if (s->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(s);
		_exit(0);
	}
	return true;
}

int session_unmount(struct session *s)
{
	if (!s->mounted)
		return 0;
	if (umount2(s->mountpoint, 0))
		return -errno;
	s->mounted = false;
	rmdir(s->mountpoint);

	if (s->pid > 0)
		waitpid(s->pid, NULL, 0);
	s->pid = 0;
	return 0;
}

void session_kill(struct session *s)
{
	/* The connection ends with the last descriptor of /dev/fuse. */
	close(s->fuse_fd);
	s->fuse_fd = -1;
	kill(s->pid, SIGKILL);
	waitpid(s->pid, NULL, 0);
	s->pid = 0;
}
