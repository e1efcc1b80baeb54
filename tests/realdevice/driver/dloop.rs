// SPDX-License-Identifier: Apache-2.0
//! D, the audio server's data loop ("data-loop.0"): starts a cycle at every expiry of its timer by writing
//! each stream's eventfd, reads the completions, and keeps the ground truth. It judges by what it has read
//! itself; it knows nothing of the VMM.
//!
//! At the start of cycle k+1, per completion target: if no completion was read since cycle k's eventfds were
//! written, cycle k is missed. Every stream whose eventfd is still readable then is one wake miss; if none
//! is, the target has one completion miss. An episode lasts from a target's first miss to its next completion.

use super::sys;
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

impl Leg {
    fn text(self) -> &'static str {
        match self {
            Leg::None => "none",
            Leg::Wake => "wake",
            Leg::Completion => "completion",
        }
    }
}

struct Row {
    stream: usize,
    cycle: u64,
    start_ns: u64,
    signal_ns: u64,
    /// A miss of this stream; a completion miss of several streams is the target's alone.
    leg: Leg,
    target_missed: bool,
    /// 0: not known.
    deadline_ns: u64,
    closing_ns: u64,
}

#[derive(Default, Clone)]
struct Tally {
    cycles: u64,
    wake_misses: u64,
    completion_misses: u64,
    late_max_ns: u64,
}

#[derive(Default, Clone)]
struct TargetTally {
    wake_misses: u64,
    completion_misses: u64,
    episodes: u64,
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
    targets: Vec<TargetTally>,
    /// (start, cycle, what) of the driver's own faults.
    events: Vec<(u64, u64, &'static str)>,
    fifo: bool,
    start_ns: u64,
    end_ns: u64,
    steal_ns: u64,
}

struct State {
    rows: Vec<Row>,
    pending: Vec<Vec<usize>>,
    episode_open: Vec<bool>,
    completed: Vec<bool>,
    tally: Vec<Tally>,
    targets: Vec<TargetTally>,
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
        let timer =
            unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
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
            episode_open: vec![false; self.targets.len()],
            completed: vec![true; self.targets.len()],
            tally: vec![Tally::default(); n],
            targets: vec![TargetTally::default(); self.targets.len()],
        };
        let (mut faults, mut began) = (Vec::new(), 0);
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
                if delta * 2 > self.period_ns * 3 {
                    faults.push((start, cycle + 1, "late_start"));
                } else if delta * 2 < self.period_ns {
                    faults.push((start, cycle + 1, "catch_up"));
                }
            }
            if expirations > 1 {
                faults.push((start, cycle + 1, "skipped"));
            }
            if start >= end || self.stop.load(Ordering::Relaxed) {
                closing_until = start + GRACE_NS;
                continue;
            }
            if began == 0 {
                began = start;
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
                    target_missed: false,
                    deadline_ns: 0,
                    closing_ns: 0,
                });
            }
            next += self.period_ns;
            self.arm(timer, next);
        }
        let steal_ns = if end == 0 { 0 } else { sys::steal_ns() - steal };
        for r in &s.rows {
            if r.target_missed && r.closing_ns > r.deadline_ns {
                let t = &mut s.tally[r.stream];
                t.late_max_ns = t.late_max_ns.max(r.closing_ns - r.deadline_ns);
            }
        }
        sys::eventfd_write(self.done_fd);
        Truth {
            rows: s.rows,
            tally: s.tally,
            targets: s.targets,
            events: faults,
            fifo,
            start_ns: began,
            end_ns: sys::now_ns(),
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
        }
        s.episode_open[t] = false;
    }

    /// At a deadline: which streams missed the cycle that ends here, and by which leg.
    fn judge(&self, s: &mut State, deadline_ns: u64) {
        let late: Vec<usize> = (0..self.targets.len()).filter(|&t| !s.completed[t]).collect();
        if late.is_empty() {
            return;
        }
        let streams: Vec<usize> =
            late.iter().flat_map(|&t| self.targets[t].streams.iter().copied()).collect();
        let fds: Vec<_> = streams.iter().map(|&i| (self.streams[i].wake_fd, libc::POLLIN)).collect();
        let ready = sys::poll(&fds, 0);
        for &t in &late {
            if !s.episode_open[t] {
                s.episode_open[t] = true;
                s.targets[t].episodes += 1;
            }
            let unread =
                |i: usize| streams.iter().position(|&x| x == i).is_some_and(|j| ready[j] & libc::POLLIN != 0);
            let all = &self.targets[t].streams;
            let wake = all.iter().any(|&i| unread(i));
            s.targets[t].completion_misses += !wake as u64;
            for &i in all {
                let Some(&r) = s.pending[i].last() else { continue };
                let row = &mut s.rows[r];
                row.target_missed = true;
                row.deadline_ns = deadline_ns;
                if unread(i) {
                    row.leg = Leg::Wake;
                    s.tally[i].wake_misses += 1;
                    s.targets[t].wake_misses += 1;
                } else if !wake && all.len() == 1 {
                    row.leg = Leg::Completion;
                    s.tally[i].completion_misses += 1;
                }
            }
        }
    }
}

impl Truth {
    /// The last line of the protocol.
    pub fn json(&self) -> String {
        let sum = |f: fn(&TargetTally) -> u64| self.targets.iter().map(f).sum::<u64>();
        let (wake, completion) = (sum(|t| t.wake_misses), sum(|t| t.completion_misses));
        let count = |what: &str| self.events.iter().filter(|e| e.2 == what).count();
        let streams: Vec<String> = (self.loop_.streams.iter().zip(&self.tally).enumerate())
            .map(|(i, (s, t))| {
                format!(
                    "{{\"stream\":{i},\"context\":{},\"wake_eventfd\":{},\"completion_eventfd\":{},\"target\":{},\
                     \"cycles\":{},\"wake_misses\":{},\"completion_misses\":{},\"target_episodes\":{},\
                     \"late_max_ns\":{}}}",
                    s.context + 1,
                    s.wake_id,
                    self.loop_.targets[s.target].id,
                    s.target,
                    t.cycles,
                    t.wake_misses,
                    t.completion_misses,
                    self.targets[s.target].episodes,
                    t.late_max_ns
                )
            })
            .collect();
        let targets: Vec<String> = (self.loop_.targets.iter().zip(&self.targets).enumerate())
            .map(|(i, (d, t))| {
                format!(
                    "{{\"target\":{i},\"completion_eventfd\":{},\"wake_misses\":{},\"completion_misses\":{},\
                     \"episodes\":{}}}",
                    d.id, t.wake_misses, t.completion_misses, t.episodes
                )
            })
            .collect();
        format!(
            "{{\"type\":\"ground_truth\",\"cycles\":{},\"missed_cycles\":{},\"episodes\":{},\"wake_misses\":{wake},\
             \"completion_misses\":{completion},\"driver_events\":{{\"late_start\":{},\"skipped\":{},\
             \"catch_up\":{}}},\"streams\":[{}],\"targets\":[{}],\"period_ns\":{},\"realtime\":{},\"start_ns\":{},\
             \"end_ns\":{},\"steal_ns\":{}}}",
            self.tally.iter().map(|t| t.cycles).sum::<u64>(),
            wake + completion,
            sum(|t| t.episodes),
            count("late_start"),
            count("skipped"),
            count("catch_up"),
            streams.join(","),
            targets.join(","),
            self.loop_.period_ns,
            self.fifo,
            self.start_ns,
            self.end_ns,
            self.steal_ns
        )
    }

    /// One JSON line per stream and cycle, in the order of signalling, then the driver's own faults.
    pub fn log(&self, path: &str) -> std::io::Result<()> {
        use std::io::Write;
        let mut f = std::io::BufWriter::new(std::fs::File::create(path)?);
        for r in &self.rows {
            let s = &self.loop_.streams[r.stream];
            writeln!(
                f,
                "{{\"type\":\"cycle\",\"stream\":{},\"wake_eventfd\":{},\"completion_eventfd\":{},\"cycle\":{},\
                 \"start_ns\":{},\"signal_ns\":{},\"missed\":{},\"leg\":\"{}\",\"target_missed\":{},\
                 \"deadline_ns\":{},\"closing_ns\":{}}}",
                r.stream,
                s.wake_id,
                self.loop_.targets[s.target].id,
                r.cycle,
                r.start_ns,
                r.signal_ns,
                r.leg != Leg::None,
                r.leg.text(),
                r.target_missed,
                r.deadline_ns,
                r.closing_ns
            )?;
        }
        for (at, cycle, what) in &self.events {
            writeln!(f, "{{\"type\":\"timer\",\"start_ns\":{at},\"cycle\":{cycle},\"event\":\"{what}\"}}")?;
        }
        f.flush()
    }
}
