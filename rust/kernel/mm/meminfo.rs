// SPDX-License-Identifier: GPL-2.0

//! How much memory there is.
//!
//! C header: [`include/linux/mm.h`](srctree/include/linux/mm.h)

use crate::bindings;

/// Returns how much memory the kernel manages, in bytes, for bounds that depend on that.
///
/// # Examples
///
/// ```
/// use kernel::mm::meminfo::total_ram;
///
/// assert!(total_ram() > 1 << 20);
/// ```
pub fn total_ram() -> u64 {
    let mut info = bindings::sysinfo::default();
    // SAFETY: The function only writes to what it is given.
    unsafe { bindings::si_meminfo(&mut info) };

    // CAST: `c_ulong` has 64 bits at most.
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}
