// SPDX-License-Identifier: Apache-2.0
//! The audio server's other clients: short streams that come in bursts, and what the loads send.

use crate::args::{Args, Load};
use crate::guest::SHORT_LIFE_NS;
use crate::process::{self, Rng};
use crate::shared::{Offer, Shared, ENDLESS, PIPE, SHORT};
use crate::sys;
use std::collections::VecDeque;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

const OPENS_PER_STREAM_AND_S: f64 = 5.0;

/// What a load's threads need, made before the processes part.
pub struct LoadFds {
    /// Load nested: requests to the VMM's file system worker, and the slow disk's replies.
    pub fs: (OwnedFd, OwnedFd),
    /// Load preempt-holder: the endless client's eventfd.
    pub endless: OwnedFd,
}

impl LoadFds {
    pub fn new() -> std::io::Result<LoadFds> {
        Ok(LoadFds { fs: sys::pipe(4096)?, endless: sys::event(false)? })
    }
}

fn offer(kind: u32) -> [u8; 16] {
    Offer { kind, stream: 0, target: 0, group: 0 }.encode()
}

/// A short stream's two eventfds.
pub fn open_stream(socket: &OwnedFd) -> std::io::Result<(OwnedFd, OwnedFd)> {
    let fds = (sys::event(true)?, sys::event(true)?);
    sys::send_fds(socket, &offer(SHORT), &[fds.0.as_raw_fd(), fds.1.as_raw_fd()])?;
    Ok(fds)
}

/// Opens streams in bursts, plays one sound on each in the middle of its life, and closes them.
pub fn short_streams(args: Args, socket: Arc<OwnedFd>, stop: Arc<AtomicBool>) {
    let rate = args.churn as f64 * OPENS_PER_STREAM_AND_S;
    let mut rng = Rng::new(args.seed, 3);
    let mut alive: VecDeque<(u64, OwnedFd, OwnedFd)> = VecDeque::new();
    let mut next = sys::now_ns() as f64;
    let mut played = 0;
    while !stop.load(Ordering::Acquire) {
        // Most bursts are a client or two; now and then a whole application comes.
        let many = rng.within(0.0, 1.0) < 0.05;
        let mean = (args.churn as f64 * if many { 0.2 } else { 0.03 }).max(1.0);
        let burst = (rng.exponential(mean) + 1.0).min(args.churn as f64) as u64;
        for _ in 0..burst {
            match open_stream(&socket) {
                Ok((wake, completion)) => alive.push_back((sys::now_ns(), wake, completion)),
                Err(_) => break,
            }
        }
        next += burst as f64 / rate * 1e9;
        let now = sys::now_ns();
        while played < alive.len() && now > alive[played].0 + SHORT_LIFE_NS / 2 {
            let _ = sys::write_u64(&alive[played].1, 1);
            played += 1;
        }
        while alive.front().map_or(false, |s| now > s.0 + SHORT_LIFE_NS * 3 / 2) {
            alive.pop_front();
            played = played.saturating_sub(1);
        }
        sys::sleep_until(next as u64);
    }
}

/// Starts the audio server's part of the load.
pub fn start_load(args: &Args, socket: Arc<OwnedFd>, shared: &'static Shared, fds: Arc<LoadFds>) {
    let period = args.period_ns() as f64;
    let mut rng = Rng::new(args.seed, 4);
    match args.load {
        Load::Pipe => {
            let (read_end, write_end) = sys::pipe(4096).expect("pipe");
            let _ = sys::send_fds(&socket, &offer(PIPE), &[write_end.as_raw_fd()]);
            process::spawn("slow reader", move || {
                let mut buf = [0; 4096];
                loop {
                    sys::readable(&[read_end.as_raw_fd()], -1);
                    sys::sleep_ns((rng.within(1.3, 2.4) * period) as u64);
                    let _ = sys::read_bytes(&read_end, &mut buf);
                    let _ = sys::read_bytes(&read_end, &mut buf);
                }
            });
        }
        Load::PreemptHolder => {
            let _ = sys::send_fds(&socket, &offer(ENDLESS), &[fds.endless.as_raw_fd()]);
        }
        Load::Nested => {
            let socket = socket.clone();
            process::spawn("opener", move || {
                process::sharp_timers();
                process::realtime(15);
                open_while_disk_is_slow(rng, socket, shared, fds, period as u64)
            });
        }
        _ => {}
    }
}

/// Asks the VMM's file system worker for something that the disk delivers late, opens a stream
/// meanwhile, just after a cycle's start, and has the disk reply after more than a period.
fn open_while_disk_is_slow(
    mut rng: Rng,
    socket: Arc<OwnedFd>,
    shared: &'static Shared,
    fds: Arc<LoadFds>,
    period_ns: u64,
) {
    let mut alive = VecDeque::new();
    loop {
        sys::sleep_ns(rng.within(5e8, 9e8) as u64);
        let start = shared.cycle_ahead(2_000_000, period_ns);
        sys::sleep_until(start - 1_000_000);
        let _ = sys::write_bytes(&fds.fs.1, &[1]);
        sys::sleep_until(start + 60_000);
        alive.extend(open_stream(&socket).ok());
        if alive.len() > 2 {
            alive.pop_front();
        }
        sys::sleep_until(start + (rng.within(1.15, 1.6) * period_ns as f64) as u64);
        let _ = sys::write_bytes(&fds.fs.1, &[2]);
    }
}
