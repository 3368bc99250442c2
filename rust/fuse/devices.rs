// SPDX-License-Identifier: GPL-2.0

//! The devices that an inode has mappings to.
//!
//! An inode keeps a reference to each device that a mapping of it has named, until it is evicted.
//! So a device stays open for as long as I/O to it can be in flight, is found without a lock, and
//! is "in use" for the server that wants to close it.
#![deny(unsafe_code)]

use crate::fuse::Device;
use kernel::{
    prelude::*,
    sync::{OncePtr, SetOnce}, //
};

/// Devices in a [`Chunk`].
const CHUNK: usize = 64;

/// [`Chunk`]s that an inode may have: twice what a connection can register, since a device can be
/// entered again by tasks that race.
const MAX_CHUNKS: usize = 2 * kernel::bindings::FUSE_IOMAP_MAX_DEVICES as usize / CHUNK;

/// A set that only grows.
pub(crate) struct DeviceSet {
    /// Nearly all files are on one device.
    first: SetOnce<Device>,
    rest: OncePtr<KBox<Chunk>>,
}

/// Room for some more devices.
struct Chunk {
    slots: [SetOnce<Device>; CHUNK],
    next: OncePtr<KBox<Chunk>>,
}

impl Chunk {
    /// Makes an empty one.
    fn new() -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                slots: [const { SetOnce::new() }; CHUNK],
                next: OncePtr::new(),
            },
            GFP_KERNEL,
        )?)
    }
}

impl DeviceSet {
    /// Makes an empty set.
    pub(crate) const fn new() -> Self {
        Self {
            first: SetOnce::new(),
            rest: OncePtr::new(),
        }
    }

    /// Finds a device by the server's id, or enters what `open` returns for it.
    ///
    /// May sleep, for a device that is not the first one.
    #[inline]
    pub(crate) fn find_or_enter(
        &self,
        id: u32,
        open: impl Fn() -> Option<Device>,
    ) -> Result<Option<&Device>> {
        match self.first.as_ref() {
            Some(device) if device.id() == id => Ok(Some(device)),
            _ => self.find_or_enter_slowly(id, open),
        }
    }

    /// As [`DeviceSet::find_or_enter`], for what is nearly never asked for.
    #[cold]
    fn find_or_enter_slowly(
        &self,
        id: u32,
        open: impl Fn() -> Option<Device>,
    ) -> Result<Option<&Device>> {
        if let Some(found) = Self::try_slot(&self.first, id, &open) {
            return Ok(found);
        }

        let mut next = &self.rest;
        for _ in 0..MAX_CHUNKS {
            let chunk = next.get_or_make(Chunk::new)?;

            for slot in &chunk.slots {
                if let Some(found) = Self::try_slot(slot, id, &open) {
                    return Ok(found);
                }
            }
            next = &chunk.next;
        }

        Err(ENOSPC)
    }

    /// Calls `f` for each device, until it fails.
    pub(crate) fn try_for_each(&self, mut f: impl FnMut(&Device) -> Result) -> Result {
        let Some(device) = self.first.as_ref() else {
            return Ok(());
        };
        f(device)?;

        let mut next = &self.rest;
        while let Some(chunk) = next.as_ref() {
            for device in chunk.slots.iter().filter_map(SetOnce::as_ref) {
                f(device)?;
            }
            next = &chunk.next;
        }
        Ok(())
    }

    /// Looks into a slot and fills it if it is empty.
    ///
    /// Returns `None` if it is another device's, and `Some(None)` if there is no such device.
    fn try_slot<'a>(
        slot: &'a SetOnce<Device>,
        id: u32,
        open: &impl Fn() -> Option<Device>,
    ) -> Option<Option<&'a Device>> {
        if slot.as_ref().is_none() {
            let Some(device) = open() else {
                return Some(None);
            };
            // If another task is quicker, the slot is that task's, whether or not for this device.
            let _ = slot.populate(device);
        }

        let device = slot.as_ref()?;
        (device.id() == id).then_some(Some(device))
    }
}
