// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Being somebody else for a while.

use crate::seen::Broken;
use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// Does something as an ordinary user.
pub fn as_user<T: Send>(
    uid: u32,
    gid: u32,
    f: impl FnOnce() -> Result<T, Broken> + Send,
) -> Result<T, Broken> {
    as_user_in(uid, gid, &[], f)
}

/// Does something as a user in further groups: a thread has its own credentials.
pub fn as_user_in<T: Send>(
    uid: u32,
    gid: u32,
    groups: &[u32],
    f: impl FnOnce() -> Result<T, Broken> + Send,
) -> Result<T, Broken> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let groups: Vec<Gid> = groups.iter().map(|g| Gid::from_raw(*g)).collect();
            set_thread_groups(&groups)?;
            set_thread_res_gid(gid, gid, gid)?;
            set_thread_res_uid(uid, uid, uid)?;
            f()
        });
        thread
            .join()
            .unwrap_or_else(|_| Err(Broken("the step panicked".into())))
    })
}
