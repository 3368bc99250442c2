// SPDX-License-Identifier: GPL-2.0

#include <linux/fs.h>
#include <linux/pagemap.h>

__rust_helper loff_t rust_helper_i_size_read(const struct inode *inode)
{
	return i_size_read(inode);
}

__rust_helper void rust_helper_inode_lock_shared(struct inode *inode)
{
	inode_lock_shared(inode);
}

__rust_helper void rust_helper_inode_unlock_shared(struct inode *inode)
{
	inode_unlock_shared(inode);
}

__rust_helper size_t rust_helper_mapping_max_folio_size_supported(void)
{
	return mapping_max_folio_size_supported();
}

__rust_helper void
rust_helper_mapping_set_folio_min_order(struct address_space *mapping,
					unsigned int min)
{
	mapping_set_folio_min_order(mapping, min);
}
