// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A volume that stands still for a while, or for good, while it is mounted.

use std::{path::Path, sync::atomic::Ordering};

use crate::{
    error::{Result, errno, refuse},
    txn::Rw,
    volume::Volume,
};

impl Volume {
    /// Makes the device look as after an orderly unmount, and keeps it so until [`Volume::unfreeze`]:
    /// whatever would change something fails.
    pub fn freeze(&self) -> Result<()> {
        let Some(rw) = &self.rw else { return Ok(()) };
        let mut log = Rw::lock(&rw.log);
        if rw.is_aborted() {
            return refuse(errno::EIO);
        }
        // Operations hold the state's lock, so none is half-way when this is set.
        let state = rw.write();
        rw.frozen.store(true, Ordering::Release);
        drop(state);
        let result = self.commit_log(rw, &mut log).and_then(|()| {
            self.checkpoint_log(&mut log)?;
            if let Some(journal) = &mut log.journal {
                journal.close(&self.device)?;
                self.put_recover(false)?;
            }
            self.device.flush()
        });
        if result.is_err() {
            rw.frozen.store(false, Ordering::Release);
        }
        result
    }

    /// Lets the volume change again, and does what had to wait.
    pub fn unfreeze(&self) -> Result<()> {
        let Some(rw) = &self.rw else { return Ok(()) };
        let mut log = Rw::lock(&rw.log);
        if rw.is_aborted() {
            return refuse(errno::EIO);
        }
        if !rw.frozen.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(journal) = &mut log.journal {
            self.put_recover(true)?;
            self.device.flush()?;
            journal.restart(&self.device)?;
        }
        drop(log);
        let mut forgotten = Rw::lock(&rw.forgotten);
        rw.frozen.store(false, Ordering::Release);
        let waiting = std::mem::take(&mut *forgotten);
        drop(forgotten);
        for ino in waiting {
            self.release_inode(ino)?;
        }
        Ok(())
    }

    /// Has an inode that the kernel has forgotten released when the volume may change again; `false`
    /// if it may.
    pub(crate) fn release_later(&self, rw: &Rw, ino: u32) -> bool {
        let mut forgotten = Rw::lock(&rw.forgotten);
        let frozen = rw.frozen.load(Ordering::Acquire);
        if frozen {
            forgotten.push(ino);
        }
        frozen
    }

    /// From now on nothing is written any more, as if the machine had crashed.
    pub fn shut_down(&self) {
        let Some(rw) = &self.rw else { return };
        // Not in the middle of a commit: it would go on.
        let _log = Rw::lock(&rw.log);
        rw.shut.store(true, Ordering::Release);
        rw.aborted.store(true, Ordering::Release);
        rw.wake(|signal| signal.stop = true);
    }

    /// Lets go of the device, after [`Volume::unmount`].
    pub fn close_device(&self) {
        self.device.disk().close();
    }

    /// Gives up using the device, which is at `path`, alone: the kernel is going to do that.
    pub fn share_device(&self, path: &Path) -> std::io::Result<()> {
        self.device.disk().share(path)
    }
}
