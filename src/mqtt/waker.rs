//! Wakes the one thread that waits in poll(2): for threads that have put something into one of its channels.
//!
//! It carries no data. Invariant: what was put into a channel before [`Waker::wake`] is seen by the waiting
//! thread after its next [`Waker::acknowledge`]; between the two, any number of wakes cost one system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, eventfd};

/// See the module head. Clones wake the same thread.
#[derive(Debug, Clone)]
pub struct Waker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    event: OwnedFd,
    pending: AtomicBool,
}

impl Waker {
    /// A new one (eventfd(2)).
    ///
    /// # Errors
    /// The operating system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Waker(Arc::new(Inner { event, pending: AtomicBool::new(false) })))
    }

    /// Wakes the waiting thread. Call it after the channel has what it is to see.
    pub fn wake(&self) {
        if !self.0.pending.swap(true, Ordering::AcqRel) {
            // It can only fail with a counter near 2^64, in which case the thread wakes anyway.
            let _ = rustix::io::write(&self.0.event, &1_u64.to_ne_bytes());
        }
    }

    /// The waiting thread is awake and about to look into its channels.
    pub fn acknowledge(&self) {
        // First the descriptor, then the flag: the other way round a wake in between would be read away with
        // the flag left up, and no later wake would reach the descriptor.
        let mut counter = [0_u8; 8];
        let _ = rustix::io::read(&self.0.event, &mut counter[..]);
        self.0.pending.swap(false, Ordering::AcqRel);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable(waker: &Waker) -> bool {
        let mut fds = [PollFd::new(waker, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn many_wakes_are_one_event_and_each_acknowledgement_arms_it_again() {
        let waker = Waker::new().unwrap();
        assert!(!readable(&waker));
        for _ in 0..2 {
            waker.clone().wake();
            waker.wake();
            assert!(readable(&waker));
            waker.acknowledge();
            assert!(!readable(&waker));
        }
    }

    #[test]
    fn nothing_sent_before_a_wake_is_ever_overlooked() {
        let waker = Waker::new().unwrap();
        let (tx, rx) = crossbeam_channel::bounded::<u32>(16);
        let other = waker.clone();
        let sender = std::thread::spawn(move || {
            for number in 0..20_000 {
                tx.send(number).unwrap();
                other.wake();
            }
        });
        let mut next = 0;
        while next < 20_000 {
            let mut fds = [PollFd::new(&waker, PollFlags::IN)];
            let woken = poll(&mut fds, Some(&Timespec { tv_sec: 5, tv_nsec: 0 })).unwrap();
            assert_eq!(woken, 1, "no wake after {next}");
            waker.acknowledge();
            while let Ok(number) = rx.try_recv() {
                assert_eq!(number, next);
                next += 1;
            }
        }
        sender.join().unwrap();
    }
}
