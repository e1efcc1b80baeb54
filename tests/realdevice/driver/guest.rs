// SPDX-License-Identifier: Apache-2.0
//! The guest, played by the vCPU thread "fc_vcpu 0": one bridge for all its clients. Sleeps in a read of the
//! interrupt's eventfd; at a fence it reads the channel ring, re-arms the worker first (POLL), then does what
//! the message asks for: registers new eventfds, writes completions, closes short streams, feeds the pipe.

use super::opts::{Layout, Load, Opts};
use super::sys::{self, Rng};
use super::vmm::{Command, Driver, Fence, Used, Vmm, GPU_CTX};
use super::wire::{self, Frame, FRAME};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};

struct Context {
    /// The channel ring: the device writes to it, and may as long as the process lives.
    page: *const u8,
    turns: u64,
    streams: Vec<usize>,
    /// The cycle for which the completion was last written.
    completed: u64,
    churn: VecDeque<Short>,
}

struct Short {
    id: u32,
    items: [u32; 2],
    close_ns: u64,
    /// The worker has registered the eventfd once a fence of a later turn is signalled; not to be closed before.
    after_turn: u64,
}

struct Sustained {
    completion_item: u32,
    handled: u64,
}

pub struct Guest {
    o: Opts,
    vmm: Arc<Vmm>,
    driver: Driver,
    contexts: Vec<Context>,
    streams: Vec<Option<Sustained>>,
    wake_items: HashMap<(u32, u32), usize>,
    pipe: Option<(u32, u32)>,
    next_pipe_ns: u64,
    next_fence: u64,
    gpu_busy: bool,
    rng: Rng,
    cycle: &'static AtomicU64,
    ready: Option<mpsc::Sender<()>>,
    layout: Layout,
}

fn page() -> usize {
    let p = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    assert_ne!(p, libc::MAP_FAILED);
    p as usize
}

impl Guest {
    /// The body of the thread. `ready` is told when every stream is registered.
    pub fn run(o: Opts, vmm: Arc<Vmm>, cycle: &'static AtomicU64, ready: mpsc::Sender<()>) {
        sys::set_name("fc_vcpu 0");
        let layout = Layout::new(&o);
        let mut g = Guest {
            driver: Driver::new(vmm.clone()),
            contexts: Vec::new(),
            streams: (0..o.streams).map(|_| None).collect(),
            wake_items: HashMap::new(),
            pipe: None,
            next_pipe_ns: 0,
            next_fence: 1,
            gpu_busy: false,
            rng: Rng::new(o.seed ^ 0x6e57),
            cycle,
            ready: Some(ready),
            layout,
            o,
            vmm,
        };
        for c in 0..g.layout.contexts {
            let (query, channel) = (page(), page());
            let ctx = c as u32 + 1;
            g.driver.push(Command::Context { ctx, query, channel }, None);
            // G numbers the resources in this order.
            let bytes = wire::init(2 * c as u32 + 1, 2 * c as u32 + 2);
            g.driver.push(Command::Submit { ctx, bytes }, None);
            let streams = (0..g.o.streams).filter(|&s| g.layout.stream_ctx[s] == c).collect();
            g.contexts.push(Context {
                page: channel as *const u8,
                turns: 0,
                streams,
                completed: 0,
                churn: VecDeque::new(),
            });
            g.rearm(c);
        }
        while sys::read_u64(g.vmm.irq).is_some() && !g.vmm.stop.load(Ordering::Relaxed) {
            while let Some(used) = g.vmm.ring.take_used() {
                match used {
                    Used::Done => g.driver.in_flight -= 1,
                    Used::Fence(f) if f.ctx == GPU_CTX => g.gpu_busy = false,
                    Used::Fence(f) => g.turn(f.ctx as usize - 1),
                }
            }
            g.housekeeping();
        }
    }

    fn submit(&mut self, c: usize, bytes: Vec<u8>) {
        self.driver.push(Command::Submit { ctx: c as u32 + 1, bytes }, None);
    }

    fn rearm(&mut self, c: usize) {
        let fence = Fence { ctx: c as u32 + 1, id: self.next_fence };
        self.next_fence += 1;
        self.driver.push(Command::Submit { ctx: fence.ctx, bytes: wire::poll() }, Some(fence));
        self.driver.kick();
    }

    fn work(&mut self, lo_us: u64, hi_us: u64) {
        sys::burn(self.rng.range(lo_us * 1000, hi_us * 1000));
    }

    /// The worker served one event of context `c` and waits to be re-armed.
    fn turn(&mut self, c: usize) {
        self.work(40, 120); // interrupt, fence, wake-up of the bridge
        let ring = unsafe { std::slice::from_raw_parts(self.contexts[c].page, 4096) }.to_vec();
        self.contexts[c].turns += 1;
        self.rearm(c);
        match ring[0] {
            wire::CMD_RECEIVE => self.received(c, &ring),
            wire::CMD_READ => {
                let item = wire::u32_at(&ring, 8);
                if let Some(&s) = self.wake_items.get(&(c as u32, item)) {
                    self.woken(c, s);
                }
            }
            _ => {}
        }
    }

    fn received(&mut self, c: usize, ring: &[u8]) {
        let len = wire::u32_at(ring, 12) as usize;
        let data = &ring[wire::RECEIVE_DATA..(wire::RECEIVE_DATA + len).min(4096)];
        let mut at = 16;
        for f in data.chunks_exact(FRAME).map(Frame::decode) {
            let items: Vec<u32> = (0..f.fds as usize).map(|i| wire::u32_at(ring, at + 4 * i)).collect();
            at += 4 * f.fds as usize;
            match f.kind {
                wire::STREAM => {
                    self.submit(c, wire::read_eventfd_new(items[0]));
                    self.driver.kick();
                    let s = f.id as usize;
                    self.wake_items.insert((c as u32, items[0]), s);
                    self.streams[s] = Some(Sustained { completion_item: items[1], handled: 0 });
                }
                wire::CHURN => {
                    self.work(20, 80);
                    if self.o.register {
                        self.submit(c, wire::read_eventfd_new(items[0]));
                        self.driver.kick();
                    }
                    let close_ns = sys::now_ns() + self.rng.range(100_000_000, 300_000_000);
                    let after_turn = self.contexts[c].turns + 1;
                    let items = [items[0], items[1]];
                    self.contexts[c].churn.push_back(Short { id: f.id, items, close_ns, after_turn });
                }
                wire::PIPE => self.pipe = Some((c as u32, items[0])),
                _ => {}
            }
        }
    }

    /// A stream was woken; the last one of its context to finish the cycle writes the completion.
    fn woken(&mut self, c: usize, s: usize) {
        self.work(60, 180); // the client's own work on the period
        let cycle = self.cycle.load(Ordering::SeqCst);
        let Some(stream) = self.streams[s].as_mut() else { return };
        stream.handled = cycle;
        let item = stream.completion_item;
        let ctx = &self.contexts[c];
        let all = ctx.streams.iter().all(|&s| self.streams[s].as_ref().is_some_and(|s| s.handled == cycle));
        if all && ctx.completed != cycle {
            self.contexts[c].completed = cycle;
            self.submit(c, wire::write(item, false, &1u64.to_le_bytes()));
            self.driver.kick();
        }
    }

    fn housekeeping(&mut self) {
        self.driver.flush();
        if self.ready.is_some()
            && self.driver.in_flight == 0
            && self.streams.iter().all(|s| s.is_some())
            && (self.o.load != Load::Pipe || self.pipe.is_some())
        {
            let _ = self.ready.take().unwrap().send(());
        }
        let now = sys::now_ns();
        let mut kick = false;
        for c in 0..self.contexts.len() {
            let mut gone = Vec::new();
            while let Some(s) = self.contexts[c].churn.front() {
                if s.close_ns > now || s.after_turn > self.contexts[c].turns || gone.len() == 16 * FRAME {
                    break;
                }
                let s = self.contexts[c].churn.pop_front().unwrap();
                for item in s.items {
                    self.submit(c, wire::write(item, true, &0u64.to_le_bytes()));
                }
                gone.extend(Frame { kind: wire::GONE, id: s.id, fds: 0 }.encode());
            }
            if !gone.is_empty() {
                self.submit(c, wire::send(&gone));
                kick = true;
            }
        }
        if self.vmm.load_on.load(Ordering::Relaxed) {
            if let (Some((c, item)), true) = (self.pipe, now >= self.next_pipe_ns) {
                for _ in 0..2 {
                    self.submit(c as usize, wire::write(item, false, &[0x5a; 4096]));
                }
                self.next_pipe_ns = now + self.rng.range(100_000_000, 200_000_000);
                kick = true;
            }
            if self.o.load == Load::Gpu && !self.gpu_busy {
                self.gpu_busy = true;
                let commands = self.rng.range(1, 3);
                for i in 0..commands {
                    let us = (self.o.gpu_ms * 1000.0) as u64;
                    let ns = self.rng.range(us / 2, us * 3 / 2) * 1000;
                    let id = self.next_fence;
                    let fence = (i + 1 == commands).then_some(Fence { ctx: GPU_CTX, id });
                    self.driver.push(Command::Gpu { ns }, fence);
                }
                self.next_fence += 1;
                kick = true;
            }
        }
        if kick {
            self.driver.kick();
        }
    }
}
