// SPDX-License-Identifier: GPL-2.0 OR MIT
//! For servers that answer BEGIN with RETRY_CACHE.

use crate::wire::IomapBeginIn;
use std::sync::{Mutex, PoisonError};

/// Nodes whose numbers are the same modulo this share a place.
const PLACES: usize = 64;

/// The BEGINs that were answered with [`Mapping::retry_cache`](crate::Mapping::retry_cache). A kernel
/// that asks the same again did not find the mapping: it has no room for it, or it had to forget it
/// at once. Then it needs an answer, and after some tries it gives up.
#[derive(Debug)]
pub struct Retried(Mutex<[Option<(u64, IomapBeginIn)>; PLACES]>);

impl Default for Retried {
    fn default() -> Self {
        Self(Mutex::new([None; PLACES]))
    }
}

impl Retried {
    /// Whether the last BEGIN of this node that was about to be answered so was the same. If not, this
    /// one is noted.
    pub fn again(&self, nodeid: u64, begin: &IomapBeginIn) -> bool {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = Some((nodeid, *begin));
        let Some(place) = places.get_mut((nodeid % PLACES as u64) as usize) else {
            return true;
        };
        if *place == asked {
            *place = None;
            return true;
        }
        *place = asked;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_time_is_noticed() {
        let begin = |pos| IomapBeginIn {
            pos,
            ..Default::default()
        };
        let retried = Retried::default();
        assert!(!retried.again(7, &begin(0)));
        assert!(!retried.again(8, &begin(0)));
        assert!(retried.again(7, &begin(0)));
        assert!(!retried.again(7, &begin(0)));
        assert!(!retried.again(7, &begin(4096)));
        assert!(retried.again(8, &begin(0)));
    }
}
