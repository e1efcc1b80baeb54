// SPDX-License-Identifier: Apache-2.0
//! D: the audio server's data loop, a driver of cycles with a null sink.
//!
//! Per cycle: read the timerfd (S), judge the cycle before, drain completions,
//! write each stream's eventfd, arm the timer; then read completions until the
//! next expiry. A stream is signalled every period, also while it is pending.

use crate::args::{Args, Timer};
use crate::closer::{Authors, Closer, Counted};
use crate::hooks::Hooks;
use crate::inject::{self, Director, Kind};
use crate::load;
use crate::negative::{Disturber, FOLLOWER};
use crate::process;
use crate::shared::Shared;
use crate::sys::{self, EpollEvent};
use crate::truth::{Client, Signal, Truth};
use std::os::unix::io::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

const TIMER: u64 = u64::MAX;
const CLIENT: u64 = u64::MAX - 1;
/// What remains open at the end is waited for this long.
const GRACE_NS: u64 = 2_000_000_000;

pub struct Stream {
    pub wake: OwnedFd,
    pub wake_id: i64,
    pub target: usize,
    /// It never completes, and D does not wait for it.
    pub asynchronous: bool,
    /// Its eventfds belong to the past.
    pub ended: bool,
    /// A new completion, which D does not watch yet.
    pub fresh: Option<OwnedFd>,
}

/// A cycle that did not start as it should: start, cycle, what.
pub type DriverEvent = (u64, u64, &'static str);

pub struct DataLoop {
    pub args: Args,
    pub timer: Arc<OwnedFd>,
    pub streams: Vec<Stream>,
    pub completions: Vec<OwnedFd>,
    pub shared: &'static Shared,
    pub stop: Arc<AtomicBool>,
    pub hooks: Hooks,
    pub disturber: Disturber,
    /// Wakes the client outside the VMM that completes as well.
    pub follower: Option<OwnedFd>,
    /// Whose completions of the first target were read.
    pub authors: Authors,
}

/// What a run has left behind.
pub struct Record {
    pub truth: Truth,
    pub events: Vec<DriverEvent>,
    pub realtime: bool,
    pub start_ns: u64,
    pub end_ns: u64,
}

impl DataLoop {
    /// Runs until `stop`, or for the duration. The timer is armed by whoever starts the audio,
    /// who has stored the first nominal start before.
    pub fn run(mut self) -> Record {
        let targets: Vec<usize> = self.streams.iter().map(|s| s.target).collect();
        let realtime = process::realtime(20);
        load::place(&self.args, Some('d'));
        let mut director = Director::new(&self.args);
        let mut record =
            Record { truth: Truth::new(&targets), events: Vec::new(), realtime, start_ns: 0, end_ns: 0 };
        process::sharp_timers();
        let ep = sys::epoll().expect("epoll");
        sys::epoll_change(&ep, sys::EPOLL_CTL_ADD, self.timer.as_ref(), TIMER).expect("epoll_ctl");
        for (i, fd) in self.completions.iter().enumerate() {
            sys::epoll_change(&ep, sys::EPOLL_CTL_ADD, fd, i as u64).expect("epoll_ctl");
        }
        if inject::uses(&self.args, Kind::HostRead) {
            sys::epoll_change(&ep, sys::EPOLL_CTL_ADD, &inject::fds().client, CLIENT).expect("epoll_ctl");
        }
        let mut events = [EpollEvent::default(); 32];
        let mut cycle = 0;
        let mut last = false;
        while !last {
            let n = sys::epoll_events(&ep, &mut events, -1, false);
            for event in &events[..n] {
                if event.data == CLIENT {
                    self.serve_client();
                } else if event.data != TIMER {
                    self.close(event.data as usize, &mut record.truth);
                }
                if event.data != TIMER && event.data != CLIENT {
                    continue;
                }
                let before_ns = sys::now_ns();
                if let Ok(expirations) = sys::read_u64(&self.timer) {
                    last = self.cycle(&ep, &mut record, &mut director, cycle, (expirations, before_ns));
                    cycle += 1;
                }
            }
        }
        self.shared.next_start_ns.store(0, Ordering::Release);
        record.end_ns = sys::now_ns();
        self.settle(&ep, &mut record.truth);
        record
    }

    /// Another source of D's loop: it takes its time, and then the timer's expiry is looked at first.
    fn serve_client(&self) {
        let _ = sys::read_u64(&inject::fds().client);
        if let Some((plan, _)) = inject::take(&[Kind::HostRead], false) {
            let end = plan.start_ns + self.args.period_ns();
            let plan = plan.lasting(end.saturating_sub(sys::now_ns()));
            // Blocked, not computing: D's priority would keep others off its CPU.
            inject::timed(&plan, inject::slow_call);
        }
    }

    /// Reads a completion, if there is one. The first target's may be that of the client outside.
    fn close(&mut self, target: usize, truth: &mut Truth) {
        let done = self.shared.done.load(Ordering::Acquire);
        truth.reads(target, |stream| self.shared.read[stream].get().0);
        if let Ok(value) = sys::read_u64(&self.completions[target]) {
            let now = sys::now_ns();
            let asked = self.shared.asked[target].load(Ordering::Acquire);
            let counted = Counted { asked, begun: self.shared.begun.load(Ordering::Acquire), done };
            let shared = target == 0 && self.follower.is_some();
            let closer = if shared { self.authors.read(value, counted) } else { Closer::Vmm };
            let stamps =
                truth.streams_of(target).iter().map(|&s| self.shared.written[s].get()).filter(|at| at.0 > 0);
            let written = stamps.max().unwrap_or((u64::MAX, u64::MAX));
            truth.completed(target, now, closer, written);
        }
    }

    /// What the streams of a target are at.
    fn clients(&self, streams: &[usize]) -> Vec<Client> {
        let fds: Vec<RawFd> = streams.iter().map(|&s| self.streams[s].wake.as_raw_fd()).collect();
        let state =
            |(&stream, unread): (&usize, bool)| match self.shared.awake[stream].load(Ordering::Acquire) {
                _ if unread => Client::Unread,
                0 => Client::Finished,
                _ => Client::AtWork,
            };
        streams.iter().zip(sys::readable(&fds, 0)).map(state).collect()
    }

    /// The start of a cycle, after a read of the timer that began at `before_ns`; true if it was only the
    /// deadline of the last one.
    fn cycle(
        &mut self,
        ep: &OwnedFd,
        record: &mut Record,
        director: &mut Director,
        cycle: u64,
        (expirations, before_ns): (u64, u64),
    ) -> bool {
        let start = sys::now_ns();
        let period = self.shared.period_ns.load(Ordering::Acquire);
        self.driver_events(record, cycle, start, expirations);
        let truth = &mut record.truth;
        let ended = |target| truth.streams_of(target).iter().all(|&stream| inject::has_exited(stream));
        let open = (0..self.completions.len()).any(|t| truth.is_open(t) && !ended(t));
        let missed = open || truth.has_unread();
        for target in 0..self.completions.len() {
            if truth.is_open(target) {
                truth.reads(target, |stream| self.shared.read[stream].get().0);
                let clients = self.clients(truth.streams_of(target));
                truth.deadline(target, cycle - 1, start, &clients);
                self.close(target, truth);
            }
        }
        truth.read_late(|stream| self.shared.read[stream].get().1);
        for i in truth.unanswered() {
            let (stream, signal_ns) = (truth.rows[i].stream, truth.rows[i].signal_ns);
            let unread = sys::readable(&[self.streams[stream].wake.as_raw_fd()], 0)[0];
            // What W began to read since this start was unread at it.
            let (begun, ended) = self.shared.read[stream].get();
            let reading = signal_ns < begun && begun <= start && before_ns < ended && !unread;
            let known = unread || (begun > signal_ns && begun > start);
            truth.unread(i, start, if reading { None } else { Some(known) });
        }
        record.start_ns = if cycle == 0 { start } else { record.start_ns };
        let limit = (self.args.duration_s * 1e9) as u64;
        if self.stop.load(Ordering::Acquire) || (limit > 0 && start + period / 2 >= record.start_ns + limit) {
            return true;
        }
        let playing: Vec<bool> =
            (0..self.streams.len()).map(|i| self.disturber.plays(cycle, i, &mut self.streams[i])).collect();
        for stream in &mut self.streams {
            if let Some(fresh) = stream.fresh.take() {
                let _ = sys::epoll_change(ep, sys::EPOLL_CTL_DEL, &self.completions[stream.target], 0);
                self.completions[stream.target] = fresh;
                let (fd, data) = (&self.completions[stream.target], stream.target as u64);
                sys::epoll_change(ep, sys::EPOLL_CTL_ADD, fd, data).expect("epoll_ctl");
            }
        }
        for target in 0..self.completions.len() {
            let streams = truth.streams_of(target).iter().filter(|&&s| playing[s]).count();
            let all = streams + usize::from(target == 0 && self.follower.is_some());
            self.shared.pending[target].store(all as i32, Ordering::Release);
        }
        if let Some(follower) = &self.follower {
            self.shared.awake[FOLLOWER].store(1, Ordering::Release);
            let _ = sys::write_u64(follower, 1);
        }
        director.cycle(cycle, self.shared.next_start_ns.load(Ordering::Acquire), missed);
        for (i, stream) in self.streams.iter().enumerate().filter(|(i, _)| playing[*i]) {
            (self.hooks.before_wake)(i as u32, cycle);
            self.shared.awake[i].store(1, Ordering::Release);
            let at = Signal { stream: i, wake_id: stream.wake_id, cycle, start_ns: start, ns: sys::now_ns() };
            truth.signalled(if stream.asynchronous { None } else { Some(stream.target) }, at);
            let _ = sys::write_u64(&stream.wake, 1);
            truth.woken(sys::now_ns());
        }
        let nominal = self.shared.next_start_ns.load(Ordering::Acquire);
        let skipped = if self.args.timer == Timer::Periodic { expirations - 1 } else { 0 };
        let next = nominal + self.shared.period_ns.load(Ordering::Acquire) * (1 + skipped);
        let next = self.disturber.next(next);
        self.shared.next_start_ns.store(next, Ordering::Release);
        if self.args.timer == Timer::Rearm {
            sys::arm(&self.timer, next, 0).expect("timerfd_settime");
        }
        self.disturber.stall();
        false
    }

    fn driver_events(&self, record: &mut Record, cycle: u64, start: u64, expirations: u64) {
        let period = self.shared.period_ns.load(Ordering::Acquire);
        if expirations > 1 {
            record.events.push((start, cycle, "skipped"));
        }
        if let Some(before) = record.truth.rows.last().map(|row| row.start_ns) {
            if start - before > period * 3 / 2 {
                record.events.push((start, cycle, "late_start"));
            } else if start - before < period / 2 {
                record.events.push((start, cycle, "catch_up"));
            }
        }
    }

    /// Waits, bounded, for what is still open.
    fn settle(&mut self, ep: &OwnedFd, truth: &mut Truth) {
        let _ = sys::arm(&self.timer, 0, 0);
        let end = sys::now_ns() + GRACE_NS;
        let mut events = [EpollEvent::default(); 32];
        while (0..self.completions.len()).any(|t| truth.is_open(t)) && sys::now_ns() < end {
            let n = sys::epoll_events(ep, &mut events, 50, false);
            for event in &events[..n] {
                if event.data == TIMER {
                    let _ = sys::read_u64(&self.timer);
                } else {
                    self.close(event.data as usize, truth);
                }
            }
        }
        truth.read_late(|stream| self.shared.read[stream].get().1);
    }
}
