// SPDX-License-Identifier: Apache-2.0
//! The audio server's process: its streams, its data loop, its clients, and its end.

use crate::args::{Args, Negative, Timer};
use crate::audio::{DataLoop, Stream};
use crate::churn::{self, LoadFds};
use crate::closer::Authors;
use crate::hooks::Hooks;
use crate::inject;
use crate::negative::{self, Disturber};
use crate::process;
use crate::report::{self, Ids};
use crate::shared::{Offer, Shared, SUSTAINED};
use crate::sys;
use crate::wav;
use std::io::Write;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// What the VMM writes on the control socket, and the server's answer when all is counted.
pub const START: u8 = b'S';
pub const STOP: u8 = b'Q';
pub const ENDED: u8 = b'E';

pub struct Server {
    pub args: Args,
    pub control: OwnedFd,
    /// One socket per context.
    pub sockets: Vec<OwnedFd>,
    pub shared: &'static Shared,
    pub fds: Arc<LoadFds>,
    pub hooks: Hooks,
}

/// Runs the server; returns its exit code.
pub fn run(server: Server) -> std::io::Result<i32> {
    let signals = process::signals()?;
    let Server { args, control, sockets, shared, fds, hooks } = server;
    let sockets: Vec<Arc<OwnedFd>> = sockets.into_iter().map(Arc::new).collect();
    let completions = (0..args.targets()).map(|_| sys::event(true)).collect::<Result<Vec<_>, _>>()?;
    let mut streams = Vec::new();
    for i in 0..args.streams {
        let (wake, target) = (sys::event(true)?, args.target_of(i));
        let group = args.group_of(i);
        let offer = Offer { kind: SUSTAINED, stream: i as u32, target: target as u32, group: group as u32 };
        let sent = [wake.as_raw_fd(), completions[target].as_raw_fd()];
        sys::send_fds(&sockets[args.socket_of(i)], &offer.encode(), &sent)?;
        let (wake_id, asynchronous) = (process::eventfd_id(&wake), group == 0);
        streams.push(Stream { wake, wake_id, target, asynchronous, ended: false, fresh: None });
    }
    let mut follower = None;
    if args.negates(Negative::Follower) {
        let wake = sys::event(false)?;
        if process::spawn_process("pw-native")?.is_none() {
            negative::follower(&args, shared, &wake, &completions[0]);
        }
        follower = Some(wake);
    }
    let ids = Ids {
        wake: streams.iter().map(|s| s.wake_id).collect(),
        completion: completions.iter().map(process::eventfd_id).collect(),
    };
    let (stop, done, timer) = (Arc::new(AtomicBool::new(false)), sys::event(false)?, Arc::new(sys::timer()?));
    let data_loop = DataLoop {
        args: args.clone(),
        timer: timer.clone(),
        streams,
        completions,
        shared,
        stop: stop.clone(),
        hooks,
        disturber: Disturber::new(&args, shared, sockets.clone()),
        follower,
        authors: Authors::default(),
    };
    let finished = sys::dup(&done)?;
    let thread = std::thread::Builder::new().name("data-loop.0".to_string()).spawn(move || {
        let record = data_loop.run();
        let _ = sys::write_u64(&finished, 1);
        record
    })?;

    let mut started = false;
    let steal_before = process::steal_ns();
    loop {
        let ready = sys::readable(&[signals.as_raw_fd(), control.as_raw_fd(), done.as_raw_fd()], -1);
        if ready[2] {
            break;
        }
        let mut end = ready[0] && process::asked_to_end(&signals);
        let mut byte = [0; 1];
        if ready[1] {
            let got = sys::read_bytes(&control, &mut byte).unwrap_or(0);
            end |= got == 0 || byte[0] == STOP;
        }
        if end && !started {
            return Ok(0); // nothing was played
        }
        if end {
            stop.store(true, Ordering::Release);
        } else if byte[0] == START && !started {
            started = true;
            let other = &sockets[args.other_context()];
            if args.churn > 0 {
                let (args, other, stop) = (args.clone(), other.clone(), stop.clone());
                process::spawn("clients", move || churn::short_streams(args, other, stop));
            }
            churn::start_load(&args, other.clone(), shared, fds.clone());
            negative::in_server(&args, shared);
            let first = sys::now_ns() + args.period_ns();
            shared.next_start_ns.store(first, Ordering::Release);
            sys::arm(&timer, first, if args.timer == Timer::Periodic { args.period_ns() } else { 0 })?;
        }
    }
    stop.store(true, Ordering::Release);
    let record = thread.join().map_err(|_| std::io::Error::from_raw_os_error(5))?;
    let steal_ns = process::steal_ns() - steal_before;
    if let Some(path) = &args.log {
        report::write_log(path, &args, &record, &ids)?;
    }
    if let Some(path) = &args.truth {
        inject::write_truth(path, args.streams)?;
    }
    if let Some(path) = &args.wav {
        wav::write(path, &record.truth.rows, args.streams, args.quantum, args.rate)?;
    }
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{}", report::ground_truth(&args, &record, &ids, steal_ns));
    let _ = out.flush();
    sys::write_bytes(&control, &[ENDED])?;
    // Linger: the VMM closes its end when it goes.
    while sys::read_bytes(&control, &mut [0; 1]).unwrap_or(0) > 0 {}
    Ok(0)
}
