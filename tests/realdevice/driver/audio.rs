// SPDX-License-Identifier: Apache-2.0
//! The audio server's process: accepts the device's connections, hands out eventfds by SCM_RIGHTS, opens
//! short streams in bursts, reads the pipe. Its data loop is dloop.rs. It ends when its stdin is closed.

use super::dloop::{DataLoop, Stream, Target};
use super::opts::{Layout, Load, Opts};
use super::sys::{self, Rng};
use super::wire::{self, Frame, FRAME};
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

struct Churn {
    rng: Rng,
    next_ns: u64,
    next_id: u32,
    /// Short streams not yet sent, per churn context: the socket was full.
    waiting: Vec<VecDeque<u32>>,
    /// The server's own ends of open short streams, until the guest says that they are gone.
    open: HashMap<u32, [RawFd; 2]>,
    /// A memfd with each.
    memory: bool,
    opened: u64,
    skipped: u64,
}

pub fn main(o: &Opts, cycle: &'static AtomicU64) {
    sys::set_name("pipewire");
    let signals = sys::signal_fd();
    let mut status = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(o.status_fd) };
    let layout = Layout::new(o);
    let listener = std::os::unix::net::UnixListener::bind(&o.socket).expect("bind");
    let _ = writeln!(status, "listening");
    // Contexts connect one after another, in order: G creates them so.
    let conns: Vec<_> = (0..layout.contexts).map(|_| listener.accept().expect("accept").0).collect();
    let _ = std::fs::remove_file(&o.socket);
    let (streams, targets) = open_streams(o, &layout, &conns);
    if o.load == Load::Pipe {
        start_pipe(o, conns[layout.pipe_ctx].as_raw_fd());
    }
    let mut text = String::new();
    for (i, s) in streams.iter().enumerate() {
        let comma = if i > 0 { "," } else { "" };
        text += &format!(
            "{comma}{{\"stream\":{i},\"context\":{},\"wake_eventfd\":{},\"completion_eventfd\":{}}}",
            s.context + 1,
            s.wake_id,
            targets[s.target].id
        );
    }
    let _ = writeln!(status, "{text}");

    let stop = Arc::new(AtomicBool::new(false));
    let (go_fd, done_fd) = (sys::eventfd(true), sys::eventfd(true));
    let duration_ns = if o.duration == 0.0 { u64::MAX / 4 } else { (o.duration * 1e9) as u64 };
    let data_loop = DataLoop {
        streams,
        targets,
        period_ns: o.period().as_nanos() as u64,
        duration_ns: duration_ns.min(100 * 3600 * 1_000_000_000),
        go_fd,
        done_fd,
        stop: stop.clone(),
        cycle,
    };
    let mut thread = Some(std::thread::spawn(move || data_loop.run()));

    let mut churn = Churn {
        rng: Rng::new(o.seed),
        next_ns: u64::MAX,
        next_id: 0,
        waiting: vec![VecDeque::new(); layout.churn_ctx.len()],
        open: HashMap::new(),
        memory: o.memory,
        opened: 0,
        skipped: 0,
    };
    let conn_fds: Vec<RawFd> = conns.iter().map(|c| c.as_raw_fd()).collect();
    loop {
        let mut fds = vec![(0, libc::POLLIN), (signals, libc::POLLIN), (done_fd, libc::POLLIN)];
        for (c, &fd) in conn_fds.iter().enumerate() {
            let full =
                layout.churn_ctx.iter().position(|&x| x == c).is_some_and(|k| !churn.waiting[k].is_empty());
            fds.push((fd, libc::POLLIN | if full { libc::POLLOUT } else { 0 }));
        }
        let timeout = if churn.next_ns == u64::MAX {
            -1
        } else {
            (churn.next_ns.saturating_sub(sys::now_ns()) / 1_000_000) as i32 + 1
        };
        let ready = sys::poll(&fds, timeout);
        if ready[0] != 0 {
            let mut b = [0u8; 64];
            let n = unsafe { libc::read(0, b.as_mut_ptr().cast(), b.len()) };
            if n > 0 && b[..n as usize].contains(&b'g') {
                sys::eventfd_write(go_fd);
                if o.churn > 0 {
                    churn.next_ns = sys::now_ns();
                }
            }
            if n <= 0 || b[..n as usize].contains(&b's') {
                stop.store(true, Ordering::Relaxed);
                sys::eventfd_write(go_fd);
                if n <= 0 {
                    finish(o, &mut thread, &mut churn, &mut status);
                    break;
                }
            }
        }
        if ready[1] != 0 {
            let mut info = [0u8; 128];
            unsafe { libc::read(signals, info.as_mut_ptr().cast(), 128) };
            stop.store(true, Ordering::Relaxed);
            sys::eventfd_write(go_fd);
        }
        if ready[2] != 0 {
            sys::read_u64(done_fd);
            finish(o, &mut thread, &mut churn, &mut status);
        }
        for (c, &fd) in conn_fds.iter().enumerate() {
            if ready[3 + c] & libc::POLLIN != 0 {
                churn.receive(fd);
            }
        }
        if sys::now_ns() >= churn.next_ns {
            churn.burst(o.burst);
        }
        for (k, &c) in layout.churn_ctx.iter().enumerate() {
            churn.send(k, conn_fds[c]);
        }
    }
}

/// The loop has ended: the truth goes to stdout, the log to its file, and "done" to the VMM. Churn stops.
fn finish(
    o: &Opts,
    thread: &mut Option<std::thread::JoinHandle<super::dloop::Truth>>,
    churn: &mut Churn,
    status: &mut std::fs::File,
) {
    let Some(t) = thread.take() else { return };
    let truth = t.join().expect("data loop");
    churn.next_ns = u64::MAX;
    churn.waiting.iter_mut().for_each(|w| w.clear());
    if let Some(path) = &o.log {
        if let Err(e) = truth.log(path) {
            eprintln!("cannot write {path}: {e}");
        }
    }
    if o.verbose {
        eprintln!("audio: {} short streams opened, {} skipped (socket full)", churn.opened, churn.skipped);
    }
    println!("{}", truth.json());
    let _ = std::io::stdout().flush();
    let _ = writeln!(status, "done");
}

/// Each stream is sent its e_n and its completion eventfd: its own, or the one of its context.
fn open_streams(
    o: &Opts,
    layout: &Layout,
    conns: &[std::os::unix::net::UnixStream],
) -> (Vec<Stream>, Vec<Target>) {
    if o.id_guard {
        for c in conns {
            let fds: Vec<RawFd> = (0..4).map(|_| sys::eventfd(true)).collect();
            send(c.as_raw_fd(), Frame { kind: wire::GUARD, id: 0, fds: 4 }, &fds);
        }
    }
    let mut targets: Vec<Target> = Vec::new();
    let mut target_of: HashMap<usize, usize> = HashMap::new();
    let mut streams = Vec::new();
    for (i, &context) in layout.stream_ctx.iter().enumerate() {
        let target = *target_of.entry(if o.share_completion { context } else { i }).or_insert_with(|| {
            let fd = sys::eventfd(true);
            targets.push(Target { fd, id: sys::eventfd_id(fd), streams: Vec::new() });
            targets.len() - 1
        });
        targets[target].streams.push(i);
        let wake_fd = sys::eventfd(true);
        let frame = Frame { kind: wire::STREAM, id: i as u32, fds: 2 };
        send(conns[context].as_raw_fd(), frame, &[wake_fd, targets[target].fd]);
        streams.push(Stream { context, wake_fd, wake_id: sys::eventfd_id(wake_fd), target });
    }
    (streams, targets)
}

fn send(conn: RawFd, frame: Frame, fds: &[RawFd]) {
    while !sys::send_fds(conn, &frame.encode(), fds).expect("channel") {
        sys::poll(&[(conn, libc::POLLOUT)], 100);
    }
}

/// A pipe of one page whose write end the guest gets. The slow reader lets data lie before it reads.
fn start_pipe(o: &Opts, conn: RawFd) {
    let (r, w) = sys::pipe();
    unsafe { libc::fcntl(w, libc::F_SETPIPE_SZ, 4096) };
    send(conn, Frame { kind: wire::PIPE, id: 0, fds: 1 }, &[w]);
    sys::close(w);
    let (slow, ms, mut rng) = (o.slow_reader, o.pipe_ms, Rng::new(o.seed ^ 0x5157));
    std::thread::spawn(move || {
        sys::set_name("pipe reader");
        let mut buffer = [0u8; 4096];
        loop {
            sys::poll(&[(r, libc::POLLIN)], -1);
            if slow {
                let us = rng.range((ms * 500.0) as u64, (ms * 1500.0) as u64);
                std::thread::sleep(Duration::from_micros(us));
            }
            if unsafe { libc::read(r, buffer.as_mut_ptr().cast(), buffer.len()) } <= 0 {
                return;
            }
        }
    });
}

impl Churn {
    /// 1 to 2B-1 streams at once (B on average), then 0 to 80 ms of rest: B·25 opens a second.
    fn burst(&mut self, burst: usize) {
        let n = self.rng.range(1, 2 * burst as u64 - 1);
        for _ in 0..n {
            let k = self.next_id as usize % self.waiting.len();
            if self.waiting[k].len() < 20 * burst {
                self.waiting[k].push_back(self.next_id);
            } else {
                self.skipped += 1;
            }
            self.next_id += 1;
        }
        self.next_ns = sys::now_ns() + self.rng.range(0, 80_000_000);
    }

    fn send(&mut self, k: usize, conn: RawFd) {
        while let Some(&id) = self.waiting[k].front() {
            let fds = [sys::eventfd(true), sys::eventfd(true)];
            let memory = self.memory.then(sys::memfd);
            let all: Vec<RawFd> = fds.iter().copied().chain(memory).collect();
            let frame = Frame { kind: wire::CHURN, id, fds: all.len() as u32 };
            let sent = matches!(sys::send_fds(conn, &frame.encode(), &all), Ok(true));
            memory.into_iter().for_each(sys::close);
            if !sent {
                fds.iter().for_each(|&fd| sys::close(fd));
                return;
            }
            self.waiting[k].pop_front();
            self.open.insert(id, fds);
            self.opened += 1;
        }
    }

    fn receive(&mut self, conn: RawFd) {
        let mut b = [0u8; 128 * FRAME];
        let n = unsafe { libc::recv(conn, b.as_mut_ptr().cast(), b.len(), libc::MSG_DONTWAIT) };
        for f in b[..n.max(0) as usize].chunks_exact(FRAME).map(Frame::decode) {
            if f.kind == wire::GONE {
                if let Some(fds) = self.open.remove(&f.id) {
                    fds.iter().for_each(|&fd| sys::close(fd));
                }
            }
        }
    }
}
