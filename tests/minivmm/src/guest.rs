// SPDX-License-Identifier: Apache-2.0
//! The guest: its bridge and its clients on vCPU 0, applications on vCPU 1, the rest idle.
//!
//! A real guest's kick is no system call of its vCPU; here it is an eventfd
//! write, which an analysis must ignore.

use crate::args::{Args, Load};
use crate::gpu::gpu_command;
use crate::hooks::Hooks;
use crate::inject;
use crate::process::{self, Rng};
use crate::queue::{GuestMemory, RingPage};
use crate::shared::{word, Offer, Shared, CLOSE, ENDLESS, PIPE, SHORT, SUSTAINED};
use crate::sys;
use crate::table::{CMD_POLL, CMD_READ_EVENTFD_NEW, CMD_WRITE};
use crate::worker::{CMD_READ, CMD_RECEIVE, MESSAGE_BYTES, RECEIVE_DATA};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// How long a short stream lives; 200 of them make about 1000 opens a second.
pub const SHORT_LIFE_NS: u64 = 200_000_000;
/// Bytes of one write of the piping application; two do not fit in its pipe at once.
pub const PIPE_CHUNK: usize = 4000;

pub fn command(cmd: u8, words: &[u32], data: &[u8]) -> Vec<u8> {
    let mut out = vec![cmd, 0, 0, 0, 0, 0, 0, 0];
    out.extend(words.iter().flat_map(|w| w.to_ne_bytes()));
    out.extend(data);
    out
}

pub fn write_command(id: u32, hang_up: bool, data: &[u8]) -> Vec<u8> {
    command(CMD_WRITE, &[id, hang_up as u32, data.len() as u32, 0], data)
}

/// What the piping application writes; two do not fit in its pipe.
pub fn pipe_write(id: u32) -> Vec<u8> {
    write_command(id, false, &[7; PIPE_CHUNK])
}

struct Playing {
    completion: u32,
    offer: Offer,
}

/// The bridge: one thread for all clients of all contexts.
pub struct Bridge {
    pub mem: Arc<GuestMemory>,
    pub rings: Vec<Arc<RingPage>>,
    pub shared: &'static Shared,
    pub args: Args,
    pub hooks: Hooks,
    fence_ids: Vec<u64>,
    rng: Rng,
    playing: BTreeMap<(u32, u32), Playing>,
    closing: VecDeque<(u64, u32, u32)>,
    opened: u64,
}

impl Bridge {
    pub fn new(
        mem: Arc<GuestMemory>,
        rings: Vec<Arc<RingPage>>,
        shared: &'static Shared,
        args: &Args,
        hooks: Hooks,
    ) -> Bridge {
        Bridge {
            fence_ids: vec![0; rings.len()],
            rng: Rng::new(args.seed, 1),
            playing: BTreeMap::new(),
            closing: VecDeque::new(),
            opened: 0,
            args: args.clone(),
            mem,
            rings,
            shared,
            hooks,
        }
    }

    pub fn run(mut self) {
        process::sharp_timers();
        for ctx_id in 1..=self.rings.len() as u32 {
            self.poll(ctx_id);
        }
        while sys::read_u64(&self.mem.irq_evt).is_ok() {
            process::work(4_000); // the interrupt handler
            while let Some(used) = self.mem.pop_used() {
                if used.ctx_id != 0 && used.fence_id != 0 {
                    self.serve(used.ctx_id);
                }
            }
            self.close_due();
        }
    }

    /// Half of the guest's latency per wakeup: CPU work, and a short wait (another guest thread's
    /// wakeup).
    fn latency(&mut self) {
        let (low, high) = self.args.guest_us;
        let ns = self.rng.within(low * 500.0, high * 500.0 + 1.0) as u64;
        process::work(ns / 2);
        sys::sleep_ns(ns / 4);
        process::work(ns / 8);
    }

    /// A client has to wait for something in the guest, and no vCPU computes.
    fn wait(&mut self) {
        let (low, high) = self.args.guest_waits_us;
        if high > 0.0 {
            sys::sleep_ns(self.rng.within(low * 1e3, high * 1e3 + 1.0) as u64);
        }
    }

    fn send(&self, ctx_id: u32, fence_id: u64, bytes: Vec<u8>) {
        self.mem.push(ctx_id, fence_id, bytes);
        self.mem.kick();
    }

    /// Re-arms a context's worker.
    fn poll(&mut self, ctx_id: u32) {
        let fence_id = &mut self.fence_ids[ctx_id as usize - 1];
        *fence_id += 1;
        let fence_id = *fence_id;
        self.send(ctx_id, fence_id, command(CMD_POLL, &[], &[]));
    }

    fn serve(&mut self, ctx_id: u32) {
        let message: [u8; MESSAGE_BYTES] = self.rings[ctx_id as usize - 1].copy();
        self.latency();
        if message[0] == CMD_READ {
            (self.hooks.before_poll)(ctx_id, word(&message, 8));
        }
        self.poll(ctx_id);
        match message[0] {
            CMD_RECEIVE => self.received(ctx_id, &message),
            CMD_READ => self.woken(ctx_id, word(&message, 8)),
            _ => {}
        }
    }

    fn watch(&self, ctx_id: u32, id: u32) {
        self.send(ctx_id, 0, command(CMD_READ_EVENTFD_NEW, &[id, 0], &[]));
    }

    fn received(&mut self, ctx_id: u32, message: &[u8]) {
        let offer = Offer::decode(&message[RECEIVE_DATA..]);
        let ids: Vec<u32> = (0..word(message, 8) as usize).map(|i| word(message, 16 + 4 * i)).collect();
        match (offer.kind, ids.as_slice()) {
            (SUSTAINED, &[wake, completion]) => {
                let state = inject::state();
                let stream = offer.stream as usize;
                state.wake_item[stream].store(inject::place(ctx_id, wake), Ordering::Release);
                state.completion_item[stream].store(inject::place(ctx_id, completion), Ordering::Release);
                self.playing.insert((ctx_id, wake), Playing { completion, offer });
                self.watch(ctx_id, wake);
            }
            (SHORT, ids) => {
                self.opened += 1;
                if self.opened % 4 == 0 {
                    self.watch(ctx_id, ids[0]);
                }
                let due = sys::now_ns() + SHORT_LIFE_NS;
                self.closing.extend(ids.iter().map(|&id| (due, ctx_id, id)));
            }
            (PIPE, &[pipe]) => self.mem.pipe_id.store(pipe, Ordering::Release),
            (ENDLESS, &[wake]) => {
                inject::state().own_item.store(inject::place(ctx_id, wake), Ordering::Release);
                self.watch(ctx_id, wake);
            }
            (CLOSE, _) => self.close(ctx_id, offer.stream),
            _ => {}
        }
    }

    /// A stream has ended: its client gives both its items back.
    fn close(&mut self, ctx_id: u32, stream: u32) {
        let ended = self.playing.iter().find(|(at, of)| at.0 == ctx_id && of.offer.stream == stream);
        if let Some((&(ctx_id, wake), &Playing { completion, .. })) = ended {
            self.playing.remove(&(ctx_id, wake));
            for id in [wake, completion] {
                self.send(ctx_id, 0, write_command(id, true, &[]));
            }
        }
    }

    /// A stream's wakeup arrived: its client processes, and completes the cycle if it is the last.
    fn woken(&mut self, ctx_id: u32, id: u32) {
        let (completion, offer) = match self.playing.get(&(ctx_id, id)) {
            Some(stream) => (stream.completion, stream.offer),
            None => return,
        };
        self.latency();
        self.wait();
        let last = self.shared.finish(offer.stream as usize, offer.target as usize);
        if offer.group == 0 {
            return; // an async stream: its server waits for nobody
        }
        if last || offer.group == 1 {
            self.shared.asked[offer.target as usize].fetch_add(1, Ordering::AcqRel);
            (self.hooks.before_kick)(ctx_id, completion);
            self.send(ctx_id, 0, write_command(completion, false, &1u64.to_ne_bytes()));
        }
    }

    /// Clients whose short streams have ended close them, a few at a time.
    fn close_due(&mut self) {
        let now = sys::now_ns();
        for _ in 0..8 {
            match self.closing.front() {
                Some(&(due, ctx_id, id)) if due <= now => {
                    self.closing.pop_front();
                    process::work(12_000); // each client's own teardown
                    self.send(ctx_id, 0, write_command(id, true, &[]));
                }
                _ => return,
            }
        }
    }
}

/// vCPU 1: a compositor that draws 60 times a second, and what the loads `gpu` and `pipe` add.
pub fn applications(mem: Arc<GuestMemory>, args: Args, shared: &'static Shared) {
    const FRAME_NS: u64 = 16_666_667;
    process::sharp_timers();
    let period = args.period_ns() as f64;
    let mut rng = Rng::new(args.seed, 2);
    let mut fence_id = 0;
    let mut frame = sys::now_ns();
    let mut burst = 0;
    loop {
        sys::sleep_until(frame + FRAME_NS);
        frame = sys::now_ns();
        process::work(30_000);
        fence_id += 1;
        let mut gpu = gpu_command(0, 60, 1500);
        if shared.next_start_ns.load(Ordering::Acquire) == 0 {
            burst = frame + 300_000_000; // no audio yet: no load
        } else if frame >= burst {
            // Off the frame's grid, or every burst would meet the driver's cycle alike.
            sys::sleep_ns(rng.within(0.0, 1e7) as u64);
            burst = frame + rng.within(5e8, 9e8) as u64;
            if args.load == Load::Gpu {
                let us = (rng.within(1.3, 2.4) * period / 1000.0) as u32;
                gpu = gpu_command(us / 2, us / 2, 500);
            } else if args.load == Load::Pipe {
                let id = mem.pipe_id.load(Ordering::Acquire);
                for _ in 0..2 {
                    mem.push(args.other_context() as u32 + 1, 0, pipe_write(id));
                }
            }
        }
        mem.push(0, fence_id, gpu);
        mem.kick();
    }
}

/// A vCPU whose guest has nothing to do.
pub fn idle(index: usize) {
    loop {
        sys::sleep_ns(100_000_000 + 7_000_000 * index as u64);
        process::work(10_000);
    }
}
