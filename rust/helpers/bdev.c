// SPDX-License-Identifier: GPL-2.0

#include <linux/blkdev.h>

__rust_helper loff_t rust_helper_bdev_nr_bytes(struct block_device *bdev)
{
	return bdev_nr_bytes(bdev);
}

__rust_helper unsigned int
rust_helper_bdev_logical_block_size(struct block_device *bdev)
{
	return bdev_logical_block_size(bdev);
}

__rust_helper unsigned int
rust_helper_bdev_atomic_write_unit_min_bytes(struct block_device *bdev)
{
	return bdev_atomic_write_unit_min_bytes(bdev);
}

__rust_helper unsigned int
rust_helper_bdev_atomic_write_unit_max_bytes(struct block_device *bdev)
{
	return bdev_atomic_write_unit_max_bytes(bdev);
}
