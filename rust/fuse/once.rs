// SPDX-License-Identifier: GPL-2.0

//! Values that are made when they are first needed, and then stay.
#![deny(unsafe_code)]

use kernel::{
    prelude::*,
    sync::SetOnce,
    time::{delay::fsleep, Delta}, //
};

/// Returns what is in `place`, which gets what `make` returns if it is empty.
///
/// May sleep.  If tasks race, one of them is quicker and the others use what it has made.
pub(crate) fn get_or_make<T>(place: &SetOnce<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if place.as_ref().is_none() {
        let _ = place.populate(make()?);
    }
    loop {
        if let Some(value) = place.as_ref() {
            return Ok(value);
        }
        // Another task is half way through `populate`, a few instructions.
        fsleep(Delta::from_micros(1));
    }
}
