// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Requests over io_uring instead of `/dev/fuse`.
//!
//! The kernel has a queue for each processor, and sends a request to that of the processor it
//! comes from. Here, each queue is served by threads that have a ring with one entry each: so a
//! request goes to a thread that has nothing to do, as on `/dev/fuse`, and a thread exchanges a reply
//! for the next request in one system call. FORGET, INTERRUPT and notifications stay there.

mod entry;
mod ring;

use crate::hook::ReplyAction;
use crate::wire;
use entry::Entry;
use ring::{Event, Ring};
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

/// With SYNC_INIT the kernel takes entries when the task that mounts has looked at the answer to CONFIG:
/// how long a thread waits between two tries, and how often it tries.
const EARLY_PAUSE: Duration = Duration::from_millis(2);
const EARLY_TRIES: u32 = 5000;

/// Who answers the requests.
pub(crate) trait Answer {
    /// Answers a request, a whole message; an empty reply stands for none.
    fn answer(&self, message: &[u8], reply: &mut Vec<u8>) -> ReplyAction;
}

/// The queues that the kernel has: one for each processor there could be.
pub(crate) fn queues() -> u16 {
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible");
    possible
        .ok()
        .and_then(|list| count(list.trim()))
        .or_else(|| {
            std::thread::available_parallelism()
                .ok()?
                .get()
                .try_into()
                .ok()
        })
        .unwrap_or(1)
}

/// How many numbers are in a list like `0-3,5`.
fn count(list: &str) -> Option<u16> {
    let mut count: u16 = 0;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// Whether this process can have rings as they are needed here.
pub(crate) fn available() -> io::Result<()> {
    // With a device of any kind: nothing is submitted.
    Ring::new(&io::stdin(), 0).map(drop)
}

/// One thread of a queue, with its ring.
pub(crate) struct Server<'a, A> {
    answer: &'a A,
    ring: Ring,
    /// One that is in use; more if replies are withheld.
    entries: Vec<Slot>,
    payload: usize,
    /// How often the kernel has not taken an entry yet.
    early: u32,
}

struct Slot {
    entry: Entry,
    /// What the reply that is there answers.
    commit_id: u64,
}

impl<'a, A: Answer> Server<'a, A> {
    /// For requests with up to `max_write` bytes. To be made by the thread that runs it.
    pub(crate) fn new(
        answer: &'a A,
        device: &impl AsFd,
        qid: u16,
        max_write: u32,
    ) -> io::Result<Self> {
        Ok(Self {
            answer,
            ring: Ring::new(device, qid)?,
            entries: Vec::new(),
            // What the kernel takes for the largest, which it has in pages.
            payload: (max_write as usize)
                .next_multiple_of(4096)
                .max(wire::MIN_READ_BUFFER),
            early: 0,
        })
    }

    /// Serves until the connection is over.
    pub(crate) fn run(mut self) -> io::Result<()> {
        self.add()?;
        let mut reply = Vec::new();
        // Those that the kernel has, or that will be answered later.
        let mut alive = 1_usize;
        while alive > 0 {
            for event in self.ring.wait()? {
                match event {
                    Event::Request(index) => alive += self.request(index, &mut reply)?,
                    Event::Due(index) => self.commit(index)?,
                    Event::Over(index) => {
                        self.take_back(index);
                        alive -= 1;
                    }
                    Event::Early(index) => self.add_again(index)?,
                    Event::Refused(index, errno) => {
                        self.take_back(index);
                        return Err(io::Error::from_raw_os_error(errno));
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives the kernel a new entry.
    fn add(&mut self) -> io::Result<()> {
        let mut entry = Entry::new(self.payload);
        self.ring.register(self.entries.len(), &mut entry)?;
        self.entries.push(Slot {
            entry,
            commit_id: 0,
        });
        Ok(())
    }

    /// Gives the kernel an entry again that it has not taken.
    fn add_again(&mut self, index: usize) -> io::Result<()> {
        self.early += 1;
        if self.early > EARLY_TRIES {
            return Err(io::Error::from(io::ErrorKind::TimedOut));
        }
        self.take_back(index);
        thread::sleep(EARLY_PAUSE);
        match self.entries.get_mut(index) {
            Some(slot) => self.ring.register(index, &mut slot.entry),
            None => Ok(()),
        }
    }

    fn take_back(&mut self, index: usize) {
        if let Some(slot) = self.entries.get_mut(index) {
            slot.entry.take_back();
        }
    }

    fn commit(&mut self, index: usize) -> io::Result<()> {
        match self.entries.get_mut(index) {
            Some(slot) => self.ring.commit(slot.commit_id, index, &mut slot.entry),
            None => Ok(()),
        }
    }

    /// Answers what has come with an entry. Returns how many more entries there are now.
    fn request(&mut self, index: usize, reply: &mut Vec<u8>) -> io::Result<usize> {
        let Some(slot) = self.entries.get_mut(index) else {
            return Ok(0);
        };
        slot.entry.take_back();
        let Some(arrived) = slot.entry.arrived() else {
            return Err(io::Error::other("a request over io_uring makes no sense"));
        };
        let commit_id = arrived.commit_id;
        let action = self.answer.answer(arrived.message, reply);
        slot.entry.answer(reply);
        slot.commit_id = commit_id;
        match action {
            ReplyAction::Send => {
                self.commit(index)?;
                Ok(0)
            }
            // Others must not have to wait for this.
            ReplyAction::Drop => {
                self.add()?;
                Ok(0)
            }
            ReplyAction::Delay(delay) => {
                self.ring.timer(index, delay.max(Duration::from_nanos(1)))?;
                self.add()?;
                Ok(1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3"), Some(4));
        assert_eq!(count("0-3,5,8-9"), Some(7));
        assert_eq!(count("3-0"), None);
        assert_eq!(count(""), None);
        assert!(queues() >= 1);
    }
}
