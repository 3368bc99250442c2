// SPDX-License-Identifier: GPL-2.0

#include <linux/iomap.h>

__rust_helper int rust_helper_iomap_iter_next(const struct iomap_iter *iter,
					      struct iomap *iomap,
					      struct iomap *srcmap,
					      iomap_iter_begin_fn begin,
					      iomap_iter_end_fn end)
{
	return iomap_iter_next(iter, iomap, srcmap, begin, end);
}
