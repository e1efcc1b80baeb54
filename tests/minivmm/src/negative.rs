// SPDX-License-Identifier: Apache-2.0
//! What looks like trouble and is no miss: streams that stop, end, change; drivers that stall; busy locks.
//!
//! The driver asks `Disturber` before it signals a stream. The threads here are only noise.

use crate::args::{Args, Negative};
use crate::audio::Stream;
use crate::process::{self, Rng};
use crate::shared::{Offer, Shared, CLOSE, MAX_STREAMS, SUSTAINED};
use crate::sys;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};

/// The place of the client outside the VMM among `Shared::awake`.
pub const FOLLOWER: usize = MAX_STREAMS - 1;

/// What the driver does otherwise, decided at each cycle's start.
pub struct Disturber {
    args: Args,
    rng: Rng,
    shared: &'static Shared,
    /// One per VMM and context.
    sockets: Vec<Arc<OwnedFd>>,
    /// Per stream, the first cycle in which it is signalled again.
    until: Vec<u64>,
    /// A stream whose new eventfds the guest has not registered yet, and how many are to be.
    reopened: Option<(usize, u32)>,
}

impl Disturber {
    pub fn new(args: &Args, shared: &'static Shared, sockets: Vec<Arc<OwnedFd>>) -> Disturber {
        let (args, rng) = (args.clone(), Rng::new(args.seed, 11));
        Disturber { until: vec![0; args.streams], args, rng, shared, sockets, reopened: None }
    }

    fn chance(&mut self, kind: Negative, every: f64) -> bool {
        self.args.negates(kind) && self.rng.within(0.0, every) < 1.0
    }

    fn cycles(&mut self, low: f64, high: f64) -> u64 {
        self.rng.within(low, high) as u64
    }

    /// Whether a stream plays in this cycle. Closes, reopens or pauses it else.
    pub fn plays(&mut self, cycle: u64, index: usize, stream: &mut Stream) -> bool {
        if self.until[index] == u64::MAX {
            return self.is_registered(cycle, index);
        }
        if cycle < self.until[index] {
            return false;
        }
        if stream.ended {
            self.reopen(index, stream);
            return false;
        }
        if self.chance(Negative::Pause, 60.0 * self.args.streams as f64) {
            self.until[index] = cycle + self.cycles(2.0, 120.0);
            return false;
        }
        let alone = self.reopened.is_none();
        if alone && !self.args.share_completion && self.chance(Negative::Reuse, 80.0) {
            let offer = Offer { kind: CLOSE, stream: index as u32, target: 0, group: 0 };
            let _ = sys::send_fds(&self.sockets[self.args.socket_of(index)], &offer.encode(), &[]);
            stream.ended = true;
            self.until[index] = cycle + self.cycles(30.0, 90.0);
            return false;
        }
        true
    }

    /// New eventfds for an ended stream; the kernel hands out the ids of those that were closed.
    fn reopen(&mut self, index: usize, stream: &mut Stream) {
        if self.reopened.is_some() {
            return;
        }
        if let (Ok(wake), Ok(completion)) = (sys::event(true), sys::event(true)) {
            let group = self.args.group_of(index) as u32;
            let offer = Offer { kind: SUSTAINED, stream: index as u32, target: stream.target as u32, group };
            let sent = [wake.as_raw_fd(), completion.as_raw_fd()];
            let _ = sys::send_fds(&self.sockets[self.args.socket_of(index)], &offer.encode(), &sent);
            stream.wake_id = process::eventfd_id(&wake);
            stream.wake = wake;
            stream.fresh = Some(completion);
            stream.ended = false;
            self.reopened = Some((index, self.shared.registered.load(Ordering::Acquire) + 1));
            self.until[index] = u64::MAX;
        }
    }

    fn is_registered(&mut self, cycle: u64, index: usize) -> bool {
        let there = self.shared.registered.load(Ordering::Acquire);
        if self.reopened.map_or(false, |(which, count)| which == index && there >= count) {
            self.reopened = None;
            self.until[index] = cycle;
            return true;
        }
        false
    }

    /// The next cycle's nominal start may be later (suspended), and its period another.
    pub fn next(&mut self, next_ns: u64) -> u64 {
        if self.chance(Negative::Quantum, 120.0) {
            let factor = [1, 2, 4][self.rng.within(0.0, 3.0) as usize];
            let rate = [self.args.rate, 44_100][self.rng.within(0.0, 2.0) as usize];
            let period = self.args.quantum * factor * 1_000_000_000 / rate;
            self.shared.period_ns.store(period, Ordering::Release);
        }
        if self.chance(Negative::Suspend, 150.0) {
            return next_ns + self.rng.within(2e7, 3e8) as u64;
        }
        next_ns
    }

    /// The driver has something else to do, for a fraction of a period or for several.
    pub fn stall(&mut self) {
        if self.chance(Negative::Driver, 100.0) {
            let period = self.shared.period_ns.load(Ordering::Acquire) as f64;
            process::work((self.rng.within(0.2, 4.4) * period) as u64);
        }
    }
}

/// The VMM's threads that are only noise.
pub fn in_vmm(args: &Args, shared: &'static Shared) {
    if args.negates(Negative::Condvar) {
        let pair = Arc::new((Mutex::new(0u64), Condvar::new()));
        for i in 0..2u64 {
            let pair = pair.clone();
            process::spawn(&format!("ping {}", i), move || loop {
                let mut turn = pair.0.lock().unwrap();
                while *turn % 2 != i {
                    turn = pair.1.wait(turn).unwrap();
                }
                *turn += 1;
                pair.1.notify_one();
                drop(turn);
                sys::sleep_ns(200_000);
            });
        }
    }
    if args.negates(Negative::Idle) {
        let never = Arc::new((Mutex::new(()), Condvar::new()));
        for i in 0..16 {
            let never = never.clone();
            process::spawn(&format!("idle {}", i), move || {
                let mut held = never.0.lock().unwrap();
                loop {
                    held = never.1.wait(held).unwrap();
                }
            });
        }
    }
    if args.negates(Negative::SharedFutex) {
        for i in 0..4 {
            process::spawn(&format!("futexw {}", i), move || loop {
                sys::shared_futex_wait(&shared.futex, 2);
            });
        }
    }
}

/// The audio server's thread that wakes the VMM's shared futexes, as an X server does.
pub fn in_server(args: &Args, shared: &'static Shared) {
    if args.negates(Negative::SharedFutex) {
        shared.futex.store(2, Ordering::Release);
        process::spawn("xserver", move || loop {
            sys::sleep_ns(3_000_000);
            sys::shared_futex_wake(&shared.futex);
        });
    }
}

/// Another client of the first completion, outside the VMM: often it is the last to finish.
pub fn follower(args: &Args, shared: &'static Shared, wake: &OwnedFd, completion: &OwnedFd) -> ! {
    let mut rng = Rng::new(args.seed, 12);
    process::sharp_timers();
    process::realtime(15);
    while sys::read_u64(wake).is_ok() {
        sys::sleep_ns((rng.within(0.02, 0.5) * args.period_ns() as f64) as u64);
        if shared.finish(FOLLOWER, 0) {
            shared.begun.fetch_add(1, Ordering::AcqRel);
            let _ = sys::write_u64(completion, 1);
            shared.done.fetch_add(1, Ordering::AcqRel);
        }
    }
    std::process::exit(0)
}
