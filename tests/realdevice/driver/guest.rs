// SPDX-License-Identifier: Apache-2.0
//! The guest. "fc_vcpu 0" plays one bridge for all its clients: it sleeps in a read of the interrupt's
//! eventfd; at a fence it reads the channel ring, re-arms the worker first (POLL), then does what the message
//! asks for: registers new eventfds, writes completions. "fc_vcpu 1" plays what timers start: short streams
//! that close, and the feeding of the pipe.

use super::opts::{Layout, Load, Opts};
use super::sys::{self, Rng, Spin};
use super::vmm::{Command, Driver, Fence, Used, Vmm, GPU_CTX};
use super::wire::{self, Frame, FRAME};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc};

/// Resources of contexts are numbered from 1.
const FIRST_BLOB: u32 = 1000;
/// A short stream lives so long; in order, so that closing needs no sorting.
const SHORT_LIFE_NS: u64 = 200_000_000;

struct Context {
    /// The channel ring: the device writes to it, and may as long as the process lives.
    page: *const u8,
    streams: Vec<usize>,
}

/// What both vCPUs use: the driver, and per context the turns so far and the short streams that are open.
struct Shared {
    driver: Driver,
    turns: Vec<u64>,
    churn: Vec<VecDeque<Short>>,
    pipe: Option<(u32, u32)>,
}

struct Short {
    id: u32,
    items: [u32; 2],
    /// Made of the memory that it brought; 0: none.
    resource: u32,
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
    shared: Arc<Spin<Shared>>,
    contexts: Vec<Context>,
    streams: Vec<Option<Sustained>>,
    wake_items: HashMap<(u32, u32), usize>,
    next_fence: u64,
    next_resource: u32,
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
        let n = layout.contexts;
        let shared = Arc::new(Spin::new(Shared {
            driver: Driver::new(vmm.clone()),
            turns: vec![0; n],
            churn: (0..n).map(|_| VecDeque::new()).collect(),
            pipe: None,
        }));
        if o.churn > 0 || o.load == Load::Pipe {
            let (rng, v, s) = (Rng::new(o.seed ^ 0x7137), vmm.clone(), shared.clone());
            std::thread::spawn(move || timers(v, s, rng));
        }
        let mut g = Guest {
            shared,
            contexts: Vec::new(),
            streams: (0..o.streams).map(|_| None).collect(),
            wake_items: HashMap::new(),
            next_fence: 1,
            next_resource: FIRST_BLOB,
            gpu_busy: false,
            rng: Rng::new(o.seed ^ 0x6e57),
            cycle,
            ready: Some(ready),
            layout,
            o,
            vmm,
        };
        for c in 0..n {
            let (query, channel) = (page(), page());
            let ctx = c as u32 + 1;
            g.push(Command::Context { ctx, query, channel }, None);
            // G numbers the resources in this order.
            g.submit(c, wire::init(2 * c as u32 + 1, 2 * c as u32 + 2));
            let streams = (0..g.o.streams).filter(|&s| g.layout.stream_ctx[s] == c).collect();
            g.contexts.push(Context { page: channel as *const u8, streams });
            g.rearm(c);
        }
        while sys::read_u64(g.vmm.irq).is_some() && !g.vmm.stop.load(Ordering::Relaxed) {
            while let Some(used) = g.vmm.ring.take_used() {
                match used {
                    Used::Done => g.shared.with(|s| s.driver.in_flight -= 1),
                    Used::Fence(f) if f.ctx == GPU_CTX => g.gpu_busy = false,
                    Used::Fence(f) => g.turn(f.ctx as usize - 1),
                }
            }
            g.after_interrupt();
        }
    }

    fn push(&self, command: Command, fence: Option<Fence>) {
        self.shared.with(|s| s.driver.push(command, fence));
    }

    fn submit(&self, c: usize, bytes: Vec<u8>) {
        self.push(Command::Submit { ctx: c as u32 + 1, bytes }, None);
    }

    fn rearm(&mut self, c: usize) {
        let fence = Fence { ctx: c as u32 + 1, id: self.next_fence };
        self.next_fence += 1;
        self.push(Command::Submit { ctx: fence.ctx, bytes: wire::poll() }, Some(fence));
        self.vmm.kick();
    }

    fn work(&mut self, lo_us: u64, hi_us: u64) {
        sys::burn(self.rng.range(lo_us * 1000, hi_us * 1000));
    }

    /// The worker served one event of context `c` and waits to be re-armed.
    fn turn(&mut self, c: usize) {
        self.work(40, 120); // interrupt, fence, wake-up of the bridge
        let ring = unsafe { std::slice::from_raw_parts(self.contexts[c].page, 4096) }.to_vec();
        self.shared.with(|s| s.turns[c] += 1);
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
                    self.vmm.kick();
                    let s = f.id as usize;
                    self.wake_items.insert((c as u32, items[0]), s);
                    self.streams[s] = Some(Sustained { completion_item: items[1], handled: 0 });
                }
                wire::CHURN => {
                    self.work(20, 80);
                    if self.rng.range(1, 100) <= self.o.register {
                        self.submit(c, wire::read_eventfd_new(items[0]));
                        self.vmm.kick();
                    }
                    let close_ns = if self.o.leak { u64::MAX } else { sys::now_ns() + SHORT_LIFE_NS };
                    let resource = items.get(2).map_or(0, |&item| {
                        self.next_resource += 1;
                        let (ctx, resource) = (c as u32 + 1, self.next_resource);
                        self.push(Command::Blob { ctx, item, resource }, None);
                        self.vmm.kick();
                        resource
                    });
                    let items = [items[0], items[1]];
                    self.shared.with(|s| {
                        let after_turn = s.turns[c] + 1;
                        s.churn[c].push_back(Short { id: f.id, items, resource, close_ns, after_turn });
                    });
                }
                wire::PIPE => self.shared.with(|s| s.pipe = Some((c as u32, items[0]))),
                _ => {}
            }
        }
    }

    /// A stream was woken: it writes its completion, or the last one of its context does that has one in common.
    fn woken(&mut self, c: usize, s: usize) {
        self.work(60, 180); // the client's own work on the period
        let cycle = self.cycle.load(Ordering::SeqCst);
        let Some(stream) = self.streams[s].as_mut() else { return };
        let again = stream.handled == cycle;
        stream.handled = cycle;
        let item = stream.completion_item;
        let done = |&s: &usize| self.streams[s].as_ref().is_some_and(|s| s.handled == cycle);
        if !again && (!self.o.share_completion || self.contexts[c].streams.iter().all(done)) {
            self.submit(c, wire::write(item, false, &1u64.to_le_bytes()));
            self.vmm.kick();
        }
    }

    fn after_interrupt(&mut self) {
        let (idle, pipe) = self.shared.with(|s| {
            s.driver.flush();
            (s.driver.in_flight == 0, s.pipe.is_some())
        });
        let all = self.streams.iter().all(|s| s.is_some()) && (self.o.load != Load::Pipe || pipe);
        if idle && all {
            if let Some(ready) = self.ready.take() {
                let _ = ready.send(());
            }
        }
        if self.o.load == Load::Gpu && !self.gpu_busy && self.vmm.load_on.load(Ordering::Relaxed) {
            self.gpu_busy = true;
            let commands = self.rng.range(1, 3);
            for i in 0..commands {
                let us = (self.o.gpu_ms * 1000.0) as u64;
                let ns = self.rng.range(us / 2, us * 3 / 2) * 1000;
                let id = self.next_fence;
                let fence = (i + 1 == commands).then_some(Fence { ctx: GPU_CTX, id });
                self.push(Command::Gpu { ns }, fence);
            }
            self.next_fence += 1;
            self.vmm.kick();
        }
    }
}

/// The body of "fc_vcpu 1": closes short streams when their time has come (WRITE with hang_up for both fds,
/// then SEND so that the server closes its ends), and writes two pages to the pipe every 100 to 200 ms.
fn timers(vmm: Arc<Vmm>, shared: Arc<Spin<Shared>>, mut rng: Rng) {
    sys::set_name("fc_vcpu 1");
    let mut next_pipe_ns = 0;
    while !vmm.stop.load(Ordering::Relaxed) {
        let now = sys::now_ns();
        let feed = vmm.load_on.load(Ordering::Relaxed) && now >= next_pipe_ns;
        let kick = shared.with(|s| {
            let closed = (0..s.churn.len()).filter(|&c| close_due(s, c, now)).count() > 0;
            let Some((c, item)) = s.pipe.filter(|_| feed) else { return closed };
            for _ in 0..2 {
                let bytes = wire::write(item, false, &[0x5a; 4096]);
                s.driver.push(Command::Submit { ctx: c + 1, bytes }, None);
            }
            next_pipe_ns = now + rng.range(100_000_000, 200_000_000);
            true
        });
        if kick {
            vmm.kick();
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn close_due(s: &mut Shared, c: usize, now: u64) -> bool {
    let mut gone = Vec::new();
    while let Some(short) = s.churn[c].front() {
        if short.close_ns > now || short.after_turn > s.turns[c] || gone.len() == 16 * FRAME {
            break;
        }
        for item in short.items {
            let bytes = wire::write(item, true, &0u64.to_le_bytes());
            s.driver.push(Command::Submit { ctx: c as u32 + 1, bytes }, None);
        }
        if short.resource != 0 {
            let command = Command::Unref { ctx: c as u32 + 1, resource: short.resource };
            s.driver.push(command, None);
        }
        gone.extend(Frame { kind: wire::GONE, id: short.id, fds: 0 }.encode());
        s.churn[c].pop_front();
    }
    if gone.is_empty() {
        return false;
    }
    s.driver.push(Command::Submit { ctx: c as u32 + 1, bytes: wire::send(&gone) }, None);
    true
}
