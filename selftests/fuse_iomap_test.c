// SPDX-License-Identifier: GPL-2.0
/*
 * FUSE file I/O through iomap, seen from outside: what programs read and write,
 * what is on the device then, and what the server is asked. The server is in
 * fuse_iomap_server.c; see Documentation/filesystems/fuse/fuse-iomap.rst.
 *
 * Needs root, loop devices, and the parameter enable_iomap of fuse.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <linux/capability.h>
#include <linux/falloc.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "fuse_iomap_server.h"
#include "kselftest_harness.h"

#define ENABLE_IOMAP	"/sys/module/fuse/parameters/enable_iomap"
#define EOF_TAIL	100		/* bytes of the last block in the file */
#define FILLER		0xee

/* Why these tests cannot run here, or NULL. */
static const char *unavailable(void)
{
	char value = 0;
	int fd;

	if (geteuid())
		return "needs root";
	/* This loads the module. */
	fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return "no /dev/fuse";
	close(fd);
	fd = open(ENABLE_IOMAP, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return "the kernel is built without CONFIG_FUSE_IOMAP";
	if (read(fd, &value, 1) != 1)
		value = 0;
	close(fd);
	return value == 'Y' ? NULL : "the parameter enable_iomap of fuse is off";
}

static int set_enable_iomap(char value)
{
	int fd = open(ENABLE_IOMAP, O_WRONLY | O_CLOEXEC);
	ssize_t size;

	if (fd < 0)
		return -1;
	size = write(fd, &value, 1);
	close(fd);
	return size == 1 ? 0 : -1;
}

static int drop_sys_rawio(void)
{
	struct __user_cap_header_struct header = {
		.version = _LINUX_CAPABILITY_VERSION_3,
	};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		return -1;
	data[CAP_TO_INDEX(CAP_SYS_RAWIO)].effective &=
		~CAP_TO_MASK(CAP_SYS_RAWIO);
	return syscall(SYS_capset, &header, data);
}

/* Are these bytes of the file those that the device had in the beginning? */
static bool is_pattern(const unsigned char *data, __u64 pos, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++) {
		if (data[i] != device_pattern(device_offset(pos + i)))
			return false;
	}
	return true;
}

static bool is_all(const unsigned char *data, unsigned char byte, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++) {
		if (data[i] != byte)
			return false;
	}
	return true;
}

/* Has the device this byte in all places of a range of the file? */
static bool disk_is_all(const struct session *s, unsigned char byte,
			__u64 pos, __u64 size)
{
	__u64 end = pos + size;

	for (; pos < end; pos++) {
		if (s->image[device_offset(pos)] != byte)
			return false;
	}
	return true;
}

static bool disk_is_pattern(const struct session *s, __u64 pos,
			    __u64 size)
{
	__u64 end = pos + size;

	for (; pos < end; pos++) {
		__u64 offset = device_offset(pos);

		if (s->image[offset] != device_pattern(offset))
			return false;
	}
	return true;
}

/* All that is needed but a mount. When this fails, @s->why says why. */
static bool prepare(struct session *s)
{
	const char *why = unavailable();

	if (!why)
		return session_prepare(s);
	snprintf(s->why, sizeof(s->why), "%s", why);
	return false;
}

static bool mount_session(struct session *s)
{
	if (session_mount(s))
		return true;
	ksft_print_msg("%s\n", s->why);
	return false;
}

/* Mount, and wait for a request: INIT and CONFIG have been answered then. */
static bool mount_and_wait(struct session *s)
{
	struct stat st;

	return mount_session(s) && !stat(s->plain_file, &st);
}

/* An ioctl on /dev/fuse: would a mount be offered iomap? */
static bool is_supported(const struct session *s)
{
	struct fuse_iomap_support support;

	return !ioctl(s->fuse_fd, FUSE_DEV_IOC_IOMAP_SUPPORT, &support) &&
	       support.flags & FUSE_IOMAP_SUPPORT_FILEIO;
}

/* Whether iomap is used: tests that mount themselves. */

FIXTURE(negotiation) {
	struct session s;
};

FIXTURE_SETUP(negotiation)
{
	if (!prepare(&self->s))
		SKIP(return, "%s", self->s.why);
}

FIXTURE_TEARDOWN(negotiation)
{
	EXPECT_EQ(0, session_unmount(&self->s));
}

TEST_F(negotiation, offered)
{
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_TRUE(self->s.server->offered);
}

TEST_F(negotiation, config_is_sent)
{
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_TRUE(self->s.server->configured);
}

TEST_F(negotiation, device_is_registered)
{
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_EQ(0, self->s.server->backing_error);
}

TEST_F(negotiation, not_offered_without_sys_rawio)
{
	ASSERT_EQ(0, drop_sys_rawio());
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_FALSE(self->s.server->offered);
}

TEST_F(negotiation, offered_after_add_iomap)
{
	ASSERT_EQ(0, ioctl(self->s.fuse_fd, FUSE_DEV_IOC_ADD_IOMAP));
	ASSERT_EQ(0, drop_sys_rawio());
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_TRUE(self->s.server->offered);
}

TEST_F(negotiation, declined_is_plain_fuse)
{
	char byte;
	int fd;

	self->s.server->decline = true;
	ASSERT_TRUE(mount_and_wait(&self->s));
	fd = open(self->s.iomap_file, O_RDONLY);
	ASSERT_LE(0, fd);
	/* The server refuses to read for the kernel. */
	EXPECT_EQ(-1, read(fd, &byte, 1));
	EXPECT_LT(0, self->s.server->reads);
	close(fd);
}

TEST_F(negotiation, no_device_without_iomap)
{
	self->s.server->decline = true;
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_EQ(-EPERM, session_backing_open(&self->s, self->s.disk_fd));
}

TEST_F(negotiation, support)
{
	EXPECT_TRUE(is_supported(&self->s));
}

TEST_F(negotiation, no_support_without_sys_rawio)
{
	ASSERT_EQ(0, drop_sys_rawio());
	EXPECT_FALSE(is_supported(&self->s));
}

/* With the module's parameter off. */

FIXTURE(parameter_off) {
	struct session s;
};

FIXTURE_SETUP(parameter_off)
{
	if (!prepare(&self->s))
		SKIP(return, "%s", self->s.why);
}

/* In the parent, so that it is on again also when a test is cut short. */
FIXTURE_TEARDOWN_PARENT(parameter_off)
{
	EXPECT_EQ(0, set_enable_iomap('Y'));
}

TEST_F(parameter_off, not_offered)
{
	ASSERT_EQ(0, set_enable_iomap('N'));
	ASSERT_TRUE(mount_and_wait(&self->s));
	EXPECT_FALSE(self->s.server->offered);
	EXPECT_EQ(0, session_unmount(&self->s));
}

TEST_F(parameter_off, no_support)
{
	ASSERT_EQ(0, set_enable_iomap('N'));
	EXPECT_FALSE(is_supported(&self->s));
}

/* A mount with iomap, whose server lets the kernel remember mappings or not. */

FIXTURE(iomap) {
	struct session s;
	unsigned char *buffer;		/* of NR_BLOCKS blocks, aligned */
	int fd;				/* of the file, if opened by open_file() */
};

FIXTURE_VARIANT(iomap) {
	bool cache_replies;
};

FIXTURE_VARIANT_ADD(iomap, uncached) {
	.cache_replies = false,
};

FIXTURE_VARIANT_ADD(iomap, cached) {
	.cache_replies = true,
};

FIXTURE_SETUP(iomap)
{
	if (!prepare(&self->s))
		SKIP(return, "%s", self->s.why);
	self->fd = -1;
	self->s.server->cache_replies = variant->cache_replies;
	self->buffer = aligned_alloc(BLOCK, NR_BLOCKS * BLOCK);
	ASSERT_NE(NULL, self->buffer);
	ASSERT_TRUE(mount_session(&self->s));
}

FIXTURE_TEARDOWN(iomap)
{
	if (self->fd >= 0)
		close(self->fd);
	EXPECT_EQ(0, session_unmount(&self->s));
	free(self->buffer);
}

static int open_file(FIXTURE_DATA(iomap) * self, int flags)
{
	self->fd = open(self->s.iomap_file, flags | O_CLOEXEC);
	return self->fd;
}

/* Write @size bytes of FILLER. */
static ssize_t fill(FIXTURE_DATA(iomap) * self, __u64 pos, size_t size)
{
	memset(self->buffer, FILLER, size);
	return pwrite(self->fd, self->buffer, size, pos);
}

TEST_F(iomap, buffered_read)
{
	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(8 * BLOCK, pread(self->fd, self->buffer, 9 * BLOCK, 0));
	EXPECT_TRUE(is_pattern(self->buffer, 0, 8 * BLOCK));
}

TEST_F(iomap, buffered_read_asks_begin_only)
{
	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(8 * BLOCK, pread(self->fd, self->buffer, 8 * BLOCK, 0));
	EXPECT_LE(8, self->s.server->begins);
	EXPECT_EQ(0, self->s.server->reads);
}

TEST_F(iomap, direct_read)
{
	ASSERT_LE(0, open_file(self, O_RDONLY | O_DIRECT));
	ASSERT_EQ(4 * BLOCK, pread(self->fd, self->buffer, 4 * BLOCK, BLOCK));
	EXPECT_TRUE(is_pattern(self->buffer, BLOCK, 4 * BLOCK));
}

TEST_F(iomap, direct_read_says_so)
{
	ASSERT_LE(0, open_file(self, O_RDONLY | O_DIRECT));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 0));
	EXPECT_EQ(FUSE_IOMAP_OP_DIRECT, self->s.server->opflags);
}

TEST_F(iomap, hole_reads_as_zeroes)
{
	self->s.server->blocks[3] = HOLE;
	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 3 * BLOCK));
	EXPECT_TRUE(is_all(self->buffer, 0, BLOCK));
}

TEST_F(iomap, unwritten_reads_as_zeroes)
{
	self->s.server->blocks[3] = UNWRITTEN;
	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 3 * BLOCK));
	EXPECT_TRUE(is_all(self->buffer, 0, BLOCK));
}

TEST_F(iomap, seek_hole)
{
	self->s.server->blocks[3] = HOLE;
	ASSERT_LE(0, open_file(self, O_RDONLY));
	EXPECT_EQ(3 * BLOCK, lseek(self->fd, 0, SEEK_HOLE));
}

TEST_F(iomap, seek_data)
{
	self->s.server->blocks[3] = HOLE;
	ASSERT_LE(0, open_file(self, O_RDONLY));
	EXPECT_EQ(4 * BLOCK, lseek(self->fd, 3 * BLOCK, SEEK_DATA));
}

TEST_F(iomap, buffered_write)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(2 * BLOCK, fill(self, EOF_TAIL, 2 * BLOCK));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_TRUE(disk_is_all(&self->s, FILLER, EOF_TAIL, 2 * BLOCK));
}

TEST_F(iomap, buffered_write_leaves_the_rest)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(2 * BLOCK, fill(self, EOF_TAIL, 2 * BLOCK));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_TRUE(disk_is_pattern(&self->s, 0, EOF_TAIL));
	EXPECT_TRUE(disk_is_pattern(&self->s, 2 * BLOCK + EOF_TAIL,
				    6 * BLOCK - EOF_TAIL));
}

TEST_F(iomap, overwrite_needs_no_ioend)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(BLOCK, fill(self, 0, BLOCK));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_EQ(0, self->s.server->ioends);
}

TEST_F(iomap, direct_write)
{
	ASSERT_LE(0, open_file(self, O_RDWR | O_DIRECT));
	ASSERT_EQ(2 * BLOCK, fill(self, BLOCK, 2 * BLOCK));
	EXPECT_TRUE(disk_is_all(&self->s, FILLER, BLOCK, 2 * BLOCK));
}

TEST_F(iomap, shared_mapping)
{
	unsigned char *map;

	ASSERT_LE(0, open_file(self, O_RDWR));
	map = mmap(NULL, 2 * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED,
		   self->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	memset(map, FILLER, BLOCK + EOF_TAIL);
	ASSERT_EQ(0, msync(map, 2 * BLOCK, MS_SYNC));
	EXPECT_TRUE(disk_is_all(&self->s, FILLER, 0, BLOCK + EOF_TAIL));
	munmap(map, 2 * BLOCK);
}

/* What the server is told when data is on the device. */

TEST_F(iomap, ioend_of_writeback)
{
	self->s.server->blocks[2] = UNWRITTEN;
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(BLOCK, fill(self, 2 * BLOCK, BLOCK));
	ASSERT_EQ(0, fsync(self->fd));
	ASSERT_EQ(1, self->s.server->ioends);
	EXPECT_EQ(FUSE_IOMAP_IOEND_UNWRITTEN | FUSE_IOMAP_IOEND_WRITEBACK,
		  self->s.server->ioend.flags);
	EXPECT_EQ(2ULL * BLOCK, self->s.server->ioend.pos);
	EXPECT_EQ(1ULL * BLOCK, self->s.server->ioend.written);
	EXPECT_EQ(device_offset(2 * BLOCK), self->s.server->ioend.new_addr);
}

TEST_F(iomap, ioend_of_direct_write)
{
	self->s.server->blocks[2] = UNWRITTEN;
	ASSERT_LE(0, open_file(self, O_RDWR | O_DIRECT));
	ASSERT_EQ(BLOCK, fill(self, 2 * BLOCK, BLOCK));
	ASSERT_EQ(1, self->s.server->ioends);
	EXPECT_EQ(FUSE_IOMAP_IOEND_UNWRITTEN | FUSE_IOMAP_IOEND_DIRECT,
		  self->s.server->ioend.flags);
}

TEST_F(iomap, ioend_of_append)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(EOF_TAIL, fill(self, 8 * BLOCK, EOF_TAIL));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_EQ(8ULL * BLOCK + EOF_TAIL, self->s.server->size);
}

TEST_F(iomap, ioend_error_fails_fsync)
{
	self->s.server->blocks[2] = UNWRITTEN;
	self->s.server->ioend_error = -ENOSPC;
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(BLOCK, fill(self, 2 * BLOCK, BLOCK));
	ASSERT_EQ(-1, fsync(self->fd));
	EXPECT_EQ(ENOSPC, errno);
}

/* What is beyond the end of a file never shows. */

TEST_F(iomap, shrinking_zeroes_the_device)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(0, ftruncate(self->fd, BLOCK + EOF_TAIL));
	EXPECT_TRUE(disk_is_all(&self->s, 0, BLOCK + EOF_TAIL,
				BLOCK - EOF_TAIL));
}

TEST_F(iomap, growing_shows_zeroes)
{
	self->s.server->size = BLOCK + EOF_TAIL;
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(0, ftruncate(self->fd, 2 * BLOCK));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, BLOCK));
	EXPECT_TRUE(is_pattern(self->buffer, BLOCK, EOF_TAIL));
	EXPECT_TRUE(is_all(self->buffer + EOF_TAIL, 0, BLOCK - EOF_TAIL));
}

TEST_F(iomap, growing_zeroes_the_device)
{
	self->s.server->size = BLOCK + EOF_TAIL;
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(0, ftruncate(self->fd, 2 * BLOCK));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_TRUE(disk_is_all(&self->s, 0, BLOCK + EOF_TAIL,
				BLOCK - EOF_TAIL));
}

TEST_F(iomap, write_beyond_eof_zeroes_the_gap)
{
	self->s.server->size = BLOCK + EOF_TAIL;
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(EOF_TAIL, fill(self, 2 * BLOCK + EOF_TAIL, EOF_TAIL));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_TRUE(disk_is_all(&self->s, 0, BLOCK + EOF_TAIL,
				BLOCK - EOF_TAIL));
}

TEST_F(iomap, punched_range_reads_as_zeroes)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(0, fallocate(self->fd,
			       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       EOF_TAIL, 2 * BLOCK));
	ASSERT_EQ(2 * BLOCK,
		  pread(self->fd, self->buffer, 2 * BLOCK, EOF_TAIL));
	EXPECT_TRUE(is_all(self->buffer, 0, 2 * BLOCK));
}

TEST_F(iomap, punching_zeroes_partial_blocks)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(0, fallocate(self->fd,
			       FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       EOF_TAIL, 2 * BLOCK));
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_TRUE(disk_is_all(&self->s, 0, EOF_TAIL, BLOCK - EOF_TAIL));
	EXPECT_TRUE(disk_is_all(&self->s, 0, 2 * BLOCK, EOF_TAIL));
}

TEST_F(iomap, allocated_range_reads_as_zeroes)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(0, fallocate(self->fd, 0, 8 * BLOCK, 2 * BLOCK));
	ASSERT_EQ(2 * BLOCK,
		  pread(self->fd, self->buffer, 3 * BLOCK, 8 * BLOCK));
	EXPECT_TRUE(is_all(self->buffer, 0, 2 * BLOCK));
}

/* The cache of mappings. Direct reads ask each time, unless it has the answer. */

TEST_F(iomap, reread)
{
	int expected;

	ASSERT_LE(0, open_file(self, O_RDONLY | O_DIRECT));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 0));
	expected = self->s.server->begins + !variant->cache_replies;
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 0));
	EXPECT_EQ(expected, self->s.server->begins);
}

static int upsert(const struct session *s, __u64 block)
{
	struct fuse_iomap_upsert_mappings_out out = {
		.nodeid = IOMAP_NODEID,
		.attr_ino = IOMAP_NODEID,
		.read = block_mapping(s->server, block, MAPPED),
		.write = block_mapping(s->server, block, HOLE),
	};

	out.write.type = FUSE_IOMAP_TYPE_NOCACHE;
	return session_notify(s, FUSE_NOTIFY_IOMAP_UPSERT_MAPPINGS, &out,
			      sizeof(out));
}

static int invalidate(const struct session *s, __u64 block)
{
	struct fuse_iomap_inval_mappings_out out = {
		.nodeid = IOMAP_NODEID,
		.attr_ino = IOMAP_NODEID,
		.read = { block * BLOCK, BLOCK },
	};

	return session_notify(s, FUSE_NOTIFY_IOMAP_INVAL_MAPPINGS, &out,
			      sizeof(out));
}

TEST_F(iomap, upserted_mapping_is_used)
{
	ASSERT_LE(0, open_file(self, O_RDONLY | O_DIRECT));
	ASSERT_EQ(0, upsert(&self->s, 1));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, BLOCK));
	EXPECT_TRUE(is_pattern(self->buffer, BLOCK, BLOCK));
	EXPECT_EQ(0, self->s.server->begins);
}

TEST_F(iomap, invalidated_mapping_is_not_used)
{
	ASSERT_LE(0, open_file(self, O_RDONLY | O_DIRECT));
	ASSERT_EQ(0, upsert(&self->s, 1));
	ASSERT_EQ(0, invalidate(&self->s, 1));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, BLOCK));
	EXPECT_EQ(1, self->s.server->begins);
}

/* The mount, the device, and the server. */

TEST_F(iomap, ordinary_file_beside_it)
{
	int fd;

	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 0));
	ASSERT_TRUE(is_pattern(self->buffer, 0, BLOCK));
	ASSERT_EQ(0, self->s.server->reads);

	fd = open(self->s.plain_file, O_RDONLY);
	ASSERT_LE(0, fd);
	EXPECT_EQ((ssize_t)strlen(PLAIN_TEXT), read(fd, self->buffer, BLOCK));
	EXPECT_EQ(0, memcmp(PLAIN_TEXT, self->buffer, strlen(PLAIN_TEXT)));
	EXPECT_LT(0, self->s.server->reads);
	close(fd);
}

TEST_F(iomap, statx_shows_alignment)
{
	struct statx stx;

	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(0, statx(self->fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &stx));
	ASSERT_NE(0U, stx.stx_mask & STATX_DIOALIGN);
	EXPECT_EQ(1U * SECTOR, stx.stx_dio_offset_align);
}

TEST_F(iomap, only_block_devices_are_registered)
{
	ASSERT_LE(0, open_file(self, O_RDONLY));
	EXPECT_EQ(-ENOTBLK, session_backing_open(&self->s, self->fd));
}

static int backing_close(const struct session *s, __u32 id)
{
	return ioctl(s->fuse_fd, FUSE_DEV_IOC_BACKING_CLOSE, &id) ? -errno : 0;
}

TEST_F(iomap, unused_device_can_be_closed)
{
	int id;

	ASSERT_LE(0, open_file(self, O_RDONLY));
	id = session_backing_open(&self->s, self->s.disk_fd);
	ASSERT_LT(0, id);
	EXPECT_EQ(0, backing_close(&self->s, id));
	EXPECT_EQ(-ENOENT, backing_close(&self->s, id));
}

TEST_F(iomap, device_in_use_is_busy)
{
	ASSERT_LE(0, open_file(self, O_RDONLY));
	ASSERT_EQ(BLOCK, pread(self->fd, self->buffer, BLOCK, 0));
	EXPECT_EQ(-EBUSY, backing_close(&self->s, self->s.server->backing_id));
}

TEST_F(iomap, dead_server_fails_reads)
{
	ASSERT_LE(0, open_file(self, O_RDONLY));
	session_kill(&self->s);
	ASSERT_EQ(-1, pread(self->fd, self->buffer, BLOCK, 0));
	EXPECT_EQ(ENOTCONN, errno);
}

TEST_F(iomap, dead_server_fails_fsync)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(BLOCK, fill(self, 0, BLOCK));
	session_kill(&self->s);
	EXPECT_EQ(-1, fsync(self->fd));
}

/* Also with data that nobody can write any more. */
TEST_F(iomap, dead_server_can_be_unmounted)
{
	ASSERT_LE(0, open_file(self, O_RDWR));
	ASSERT_EQ(BLOCK, fill(self, 0, BLOCK));
	session_kill(&self->s);
	close(self->fd);
	self->fd = -1;
	EXPECT_EQ(0, session_unmount(&self->s));
}

/* Answers that break a rule. */

FIXTURE(bad_reply) {
	struct session s;
	int fd;
};

FIXTURE_VARIANT(bad_reply) {
	void (*spoil)(struct fuse_iomap_begin_out *out);
};

static void zero_length(struct fuse_iomap_begin_out *out)
{
	out->read.length = 0;
}

static void unaligned_offset(struct fuse_iomap_begin_out *out)
{
	out->read.offset += SECTOR;
}

static void unaligned_length(struct fuse_iomap_begin_out *out)
{
	out->read.length -= SECTOR;
}

static void not_containing_pos(struct fuse_iomap_begin_out *out)
{
	out->read.offset -= BLOCK;
}

static void unaligned_address(struct fuse_iomap_begin_out *out)
{
	out->read.addr++;
}

static void beyond_device(struct fuse_iomap_begin_out *out)
{
	out->read.addr = DEVICE_SIZE;
}

static void no_address(struct fuse_iomap_begin_out *out)
{
	out->read.addr = FUSE_IOMAP_NULL_ADDR;
}

static void unknown_device(struct fuse_iomap_begin_out *out)
{
	out->read.dev++;
}

static void unknown_type(struct fuse_iomap_begin_out *out)
{
	out->read.type = FUSE_IOMAP_TYPE_INLINE + 1;
}

static void unknown_flags(struct fuse_iomap_begin_out *out)
{
	out->read.flags |= 1U << 15;
}

FIXTURE_VARIANT_ADD(bad_reply, zero_length) {
	.spoil = zero_length,
};

FIXTURE_VARIANT_ADD(bad_reply, unaligned_offset) {
	.spoil = unaligned_offset,
};

FIXTURE_VARIANT_ADD(bad_reply, unaligned_length) {
	.spoil = unaligned_length,
};

FIXTURE_VARIANT_ADD(bad_reply, not_containing_pos) {
	.spoil = not_containing_pos,
};

FIXTURE_VARIANT_ADD(bad_reply, unaligned_address) {
	.spoil = unaligned_address,
};

FIXTURE_VARIANT_ADD(bad_reply, beyond_device) {
	.spoil = beyond_device,
};

FIXTURE_VARIANT_ADD(bad_reply, no_address) {
	.spoil = no_address,
};

FIXTURE_VARIANT_ADD(bad_reply, unknown_device) {
	.spoil = unknown_device,
};

FIXTURE_VARIANT_ADD(bad_reply, unknown_type) {
	.spoil = unknown_type,
};

FIXTURE_VARIANT_ADD(bad_reply, unknown_flags) {
	.spoil = unknown_flags,
};

FIXTURE_SETUP(bad_reply)
{
	if (!prepare(&self->s))
		SKIP(return, "%s", self->s.why);
	self->s.server->spoil = variant->spoil;
	ASSERT_TRUE(mount_session(&self->s));
	self->fd = open(self->s.iomap_file, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(bad_reply)
{
	close(self->fd);
	EXPECT_EQ(0, session_unmount(&self->s));
}

TEST_F(bad_reply, read_fails)
{
	char byte;

	ASSERT_EQ(-1, pread(self->fd, &byte, 1, 2 * BLOCK));
	EXPECT_EQ(EUCLEAN, errno);
}

TEST_F(bad_reply, write_fails)
{
	char byte = FILLER;

	ASSERT_EQ(-1, pwrite(self->fd, &byte, 1, 2 * BLOCK));
	EXPECT_EQ(EUCLEAN, errno);
}

TEST_F(bad_reply, nothing_is_written)
{
	char byte = FILLER;
	ssize_t size = pwrite(self->fd, &byte, 1, 2 * BLOCK);

	/* Whatever became of it, see above. */
	(void)size;
	self->s.server->spoil = NULL;
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_TRUE(disk_is_pattern(&self->s, 0, NR_BLOCKS * BLOCK));
}

TEST_F(bad_reply, mount_lives)
{
	unsigned char data[BLOCK];

	ASSERT_EQ(-1, pread(self->fd, data, BLOCK, 2 * BLOCK));
	self->s.server->spoil = NULL;
	ASSERT_EQ(BLOCK, pread(self->fd, data, BLOCK, 2 * BLOCK));
	EXPECT_TRUE(is_pattern(data, 2 * BLOCK, BLOCK));
}

TEST_HARNESS_MAIN
