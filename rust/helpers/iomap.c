// SPDX-License-Identifier: GPL-2.0

#include <linux/blk-crypto.h>
#include <linux/iomap.h>
#include <linux/list.h>
#include <linux/pagemap.h>
#include <linux/swap.h>

__rust_helper int rust_helper_iomap_iter_next(const struct iomap_iter *iter,
					      struct iomap *iomap,
					      struct iomap *srcmap,
					      iomap_iter_begin_fn begin,
					      iomap_iter_end_fn end)
{
	return iomap_iter_next(iter, iomap, srcmap, begin, end);
}

__rust_helper struct iomap_ioend *
rust_helper_iomap_ioend_from_bio(struct bio *bio)
{
	return iomap_ioend_from_bio(bio);
}

__rust_helper void rust_helper_list_add(struct list_head *new,
					struct list_head *head)
{
	list_add(new, head);
}

__rust_helper void rust_helper_list_del_init(struct list_head *entry)
{
	list_del_init(entry);
}

__rust_helper loff_t rust_helper_folio_next_pos(const struct folio *folio)
{
	return folio_next_pos(folio);
}

__rust_helper ssize_t rust_helper_iomap_dio_read_simple(struct kiocb *iocb,
							struct iov_iter *iter,
							iomap_iter_begin_fn begin)
{
	return iomap_dio_read_simple(iocb, iter, begin);
}

__rust_helper void rust_helper_blk_crypto_submit_bio(struct bio *bio)
{
	blk_crypto_submit_bio(bio);
}

#ifdef CONFIG_SWAP
__rust_helper void
rust_helper_swap_info_set_bdev(struct swap_info_struct *sis,
			       struct block_device *bdev)
{
	sis->bdev = bdev;
}
#endif
