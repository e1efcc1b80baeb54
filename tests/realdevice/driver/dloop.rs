// SPDX-License-Identifier: Apache-2.0
//! D, the audio server's data loop ("data-loop.0"): starts a cycle at every expiry of its timer by writing
//! each stream's eventfd, reads the completions, and keeps the ground truth. It judges by what it has read
//! itself; it knows nothing of the VMM.
//!
//! At the start of cycle k+1, per completion target: if no completion was read since cycle k's eventfds were
//! written, cycle k is missed. Every stream whose eventfd is still readable then is one wake miss; if none
//! is, the target has one completion miss.

use super::sys;
use std::fmt::Write as _;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

pub struct Stream {
    pub context: usize,
    pub wake_fd: RawFd,
    pub wake_id: i64,
    pub target: usize,
}

pub struct Target {
    pub fd: RawFd,
    pub id: i64,
    pub streams: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq)]
enum Leg {
    None,
    Wake,
    Completion,
}

struct Row {
    stream: usize,
    cycle: u64,
    start_ns: u64,
    signal_ns: u64,
    leg: Leg,
    deadline_ns: u64,
    closing_ns: u64,
}

#[derive(Default, Clone)]
struct Tally {
    cycles: u64,
    wake_misses: u64,
    completion_misses: u64,
    episodes: u64,
    late_max_ns: u64,
}

pub struct DataLoop {
    pub streams: Vec<Stream>,
    pub targets: Vec<Target>,
    pub period_ns: u64,
    pub duration_ns: u64,
    pub go_fd: RawFd,
    pub done_fd: RawFd,
    pub stop: Arc<AtomicBool>,
    /// Shared with the guest as PipeWire's activation memory is: the number of the current cycle.
    pub cycle: &'static AtomicU64,
}

pub struct Truth {
    loop_: DataLoop,
    rows: Vec<Row>,
    tally: Vec<Tally>,
    late_starts: u64,
    missed_ticks: u64,
    catch_ups: u64,
    pub fifo: bool,
    steal_ns: u64,
}

struct State {
    rows: Vec<Row>,
    pending: Vec<Vec<usize>>,
    episode_open: Vec<bool>,
    completed: Vec<bool>,
    tally: Vec<Tally>,
}

const TIMER: u64 = u64::MAX;
const GO: u64 = u64::MAX - 1;
const GRACE_NS: u64 = 2_000_000_000;

impl DataLoop {
    /// The body of the thread. Returns when the duration is over or `stop` is set, and the open cycle is closed.
    pub fn run(self) -> Truth {
        sys::set_name("data-loop.0");
        let fifo = sys::set_fifo(0, 88);
        let epoll = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        let timer = unsafe {
            libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK)
        };
        let add = |fd: RawFd, data: u64| {
            let mut e = libc::epoll_event { events: libc::EPOLLIN as u32, u64: data };
            unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &mut e) };
        };
        add(self.go_fd, GO);
        add(timer, TIMER);
        for (t, target) in self.targets.iter().enumerate() {
            add(target.fd, t as u64);
        }
        let n = self.streams.len();
        let mut s = State {
            rows: Vec::with_capacity((self.duration_ns / self.period_ns + 2) as usize * n),
            pending: vec![Vec::new(); n],
            episode_open: vec![false; n],
            completed: vec![true; self.targets.len()],
            tally: vec![Tally::default(); n],
        };
        let (mut late_starts, mut missed_ticks, mut catch_ups) = (0, 0, 0);
        let (mut cycle, mut last_start, mut next, mut end, mut steal) = (0u64, 0u64, 0u64, 0u64, 0u64);
        let mut closing_until = 0u64; // set after the last deadline: only completions are awaited
        let mut events: [libc::epoll_event; 16] = unsafe { std::mem::zeroed() };
        loop {
            if closing_until != 0
                && (s.pending.iter().all(|p| p.is_empty()) || sys::now_ns() >= closing_until)
            {
                break;
            }
            let timeout = if closing_until != 0 { 20 } else { -1 };
            let count = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), 16, timeout) }.max(0) as usize;
            // Completions first: what was there before the timer was read is in time.
            let mut tick = false;
            for e in &events[..count] {
                match e.u64 {
                    TIMER => tick = true,
                    GO => {
                        sys::read_u64(self.go_fd);
                        if self.stop.load(Ordering::Relaxed) && end == 0 {
                            closing_until = 1; // stopped before the first cycle
                        } else if end == 0 {
                            steal = sys::steal_ns();
                            next = sys::now_ns() + self.period_ns;
                            end = next + self.duration_ns;
                            self.arm(timer, next);
                        }
                    }
                    t => self.completion(t as usize, &mut s),
                }
            }
            if !tick {
                continue;
            }
            let Some(expirations) = sys::read_u64(timer) else { continue };
            let start = sys::now_ns();
            if cycle > 0 {
                self.judge(&mut s, start);
            }
            for t in 0..self.targets.len() {
                self.completion(t, &mut s);
            }
            if last_start != 0 {
                let delta = start - last_start;
                late_starts += (delta * 2 > self.period_ns * 3) as u64;
                catch_ups += (delta * 2 < self.period_ns) as u64;
            }
            missed_ticks += expirations - 1;
            if start >= end || self.stop.load(Ordering::Relaxed) {
                closing_until = start + GRACE_NS;
                continue;
            }
            last_start = start;
            cycle += 1;
            self.cycle.store(cycle, Ordering::SeqCst);
            s.completed.fill(false);
            for (i, stream) in self.streams.iter().enumerate() {
                let signal_ns = sys::now_ns();
                sys::eventfd_write(stream.wake_fd);
                s.pending[i].push(s.rows.len());
                s.tally[i].cycles += 1;
                s.rows.push(Row {
                    stream: i,
                    cycle,
                    start_ns: start,
                    signal_ns,
                    leg: Leg::None,
                    deadline_ns: 0,
                    closing_ns: 0,
                });
            }
            next += self.period_ns;
            self.arm(timer, next);
        }
        let steal_ns = if end == 0 { 0 } else { sys::steal_ns() - steal };
        for r in &s.rows {
            if r.leg != Leg::None && r.closing_ns > r.deadline_ns {
                let t = &mut s.tally[r.stream];
                t.late_max_ns = t.late_max_ns.max(r.closing_ns - r.deadline_ns);
            }
        }
        sys::eventfd_write(self.done_fd);
        Truth {
            rows: s.rows,
            tally: s.tally,
            late_starts,
            missed_ticks,
            catch_ups,
            fifo,
            steal_ns,
            loop_: self,
        }
    }

    fn arm(&self, timer: RawFd, at_ns: u64) {
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (at_ns / 1_000_000_000) as i64,
                tv_nsec: (at_ns % 1_000_000_000) as i64,
            },
        };
        unsafe { libc::timerfd_settime(timer, libc::TFD_TIMER_ABSTIME, &spec, std::ptr::null_mut()) };
    }

    /// Reads a completion, if there is one: it closes every cycle of its streams that was signalled so far.
    fn completion(&self, t: usize, s: &mut State) {
        if sys::read_u64(self.targets[t].fd).is_none() {
            return;
        }
        let now = sys::now_ns();
        s.completed[t] = true;
        for &i in &self.targets[t].streams {
            for r in s.pending[i].drain(..) {
                s.rows[r].closing_ns = now;
            }
            s.episode_open[i] = false;
        }
    }

    /// At a deadline: which streams missed the cycle that ends here, and by which leg.
    fn judge(&self, s: &mut State, deadline_ns: u64) {
        let late: Vec<usize> = (0..self.targets.len()).filter(|&t| !s.completed[t]).collect();
        if late.is_empty() {
            return;
        }
        let streams: Vec<usize> = late.iter().flat_map(|&t| self.targets[t].streams.iter().copied()).collect();
        let fds: Vec<_> = streams.iter().map(|&i| (self.streams[i].wake_fd, libc::POLLIN)).collect();
        let ready = sys::poll(&fds, 0);
        for &t in &late {
            let unread: Vec<usize> = (0..streams.len())
                .filter(|&j| self.streams[streams[j]].target == t && ready[j] & libc::POLLIN != 0)
                .map(|j| streams[j])
                .collect();
            for &i in &unread {
                s.tally[i].wake_misses += 1;
                self.mark(s, i, i, Leg::Wake, deadline_ns);
            }
            if unread.is_empty() {
                // It belongs to the target. Of several streams the first carries it, in an open episode's stream.
                let all = &self.targets[t].streams;
                let episode = all.iter().copied().find(|&i| s.episode_open[i]).unwrap_or(all[0]);
                s.tally[all[0]].completion_misses += 1;
                self.mark(s, all[0], episode, Leg::Completion, deadline_ns);
            }
        }
    }

    fn mark(&self, s: &mut State, stream: usize, episode: usize, leg: Leg, deadline_ns: u64) {
        if let Some(&r) = s.pending[stream].last() {
            s.rows[r].leg = leg;
            s.rows[r].deadline_ns = deadline_ns;
        }
        if !s.episode_open[episode] {
            s.episode_open[episode] = true;
            s.tally[episode].episodes += 1;
        }
    }
}

impl Truth {
    /// The last line of the protocol.
    pub fn json(&self) -> String {
        let sum = |f: fn(&Tally) -> u64| self.tally.iter().map(f).sum::<u64>();
        let wake = sum(|t| t.wake_misses);
        let completion = sum(|t| t.completion_misses);
        let mut o = format!(
            "{{\"type\":\"ground_truth\",\"cycles\":{},\"missed_cycles\":{},\"episodes\":{},\"wake_misses\":{wake},\
             \"completion_misses\":{completion},\"driver_events\":{{\"late_starts\":{},\"missed_ticks\":{},\
             \"catch_ups\":{}}},\"period_ns\":{},\"fifo\":{},\"streams\":[",
            sum(|t| t.cycles),
            wake + completion,
            sum(|t| t.episodes),
            self.late_starts,
            self.missed_ticks,
            self.catch_ups,
            self.loop_.period_ns,
            self.fifo
        );
        for (i, (s, t)) in self.loop_.streams.iter().zip(&self.tally).enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let _ = write!(
                o,
                "{comma}{{\"stream\":{i},\"context\":{},\"wake_eventfd\":{},\"completion_eventfd\":{},\"cycles\":{},\
                 \"missed_cycles\":{},\"wake_misses\":{},\"completion_misses\":{},\"episodes\":{},\"late_max_ns\":{}}}",
                s.context,
                s.wake_id,
                self.loop_.targets[s.target].id,
                t.cycles,
                t.wake_misses + t.completion_misses,
                t.wake_misses,
                t.completion_misses,
                t.episodes,
                t.late_max_ns
            );
        }
        let _ = write!(o, "],\"steal_ns\":{}}}", self.steal_ns);
        o
    }

    /// One JSON line per stream and cycle, in the order of signalling; null where there is none.
    pub fn log(&self, path: &str) -> std::io::Result<()> {
        use std::io::Write;
        let mut f = std::io::BufWriter::new(std::fs::File::create(path)?);
        for r in &self.rows {
            let leg = match r.leg {
                Leg::None => "null",
                Leg::Wake => "\"wake\"",
                Leg::Completion => "\"completion\"",
            };
            let closing = if r.closing_ns == 0 { "null".to_string() } else { r.closing_ns.to_string() };
            writeln!(
                f,
                "{{\"stream\":{},\"wake_eventfd\":{},\"cycle\":{},\"start_ns\":{},\"signal_ns\":{},\"missed\":{},\
                 \"leg\":{leg},\"closing_ns\":{closing}}}",
                r.stream,
                self.loop_.streams[r.stream].wake_id,
                r.cycle,
                r.start_ns,
                r.signal_ns,
                r.leg != Leg::None
            )?;
        }
        f.flush()
    }
}
