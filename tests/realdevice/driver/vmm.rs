// SPDX-License-Identifier: Apache-2.0
//! The VMM's side as libkrun has it: the control queue, the fences with their locks, and G ("gpu worker"),
//! which runs every command of every context, one after another. The device itself is the real crate.
//!
//! Locks: control_queue, then fence_state, then intc. The fence handler is called by the crate's worker
//! threads (W) and by the "virgl fence" thread; it writes the interrupt's eventfd under all three.

use super::device::{self, ResourceCreateBlob, Rutabaga, RutabagaFence, RutabagaFenceHandler, RutabagaIovec};
use super::sys;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex};

/// The GPU context's place among the fences; no cross-domain context.
pub const GPU_CTX: u32 = 63;
const MAX_CTX: usize = 64;
/// Descriptors of the ring; the guest keeps what does not fit, as a driver does.
const RING: usize = 256;

pub enum Command {
    /// Make a cross-domain context with its query ring and channel ring (guest memory, kept for ever).
    Context {
        ctx: u32,
        query: usize,
        channel: usize,
    },
    Submit {
        ctx: u32,
        bytes: Vec<u8>,
    },
    /// Make a resource of a memory item, and attach it.
    Blob {
        ctx: u32,
        item: u32,
        resource: u32,
    },
    /// Detach it, and let go of it.
    Unref {
        ctx: u32,
        resource: u32,
    },
    /// A command of the GPU context: so much CPU time, with ioctl-like system calls in between.
    Gpu {
        ns: u64,
    },
}

pub struct Descriptor {
    pub command: Command,
    /// A command with a fence is used when the fence is signalled; else as soon as it was run.
    pub fence: Option<Fence>,
}

#[derive(Clone, Copy, PartialEq)]
pub struct Fence {
    pub ctx: u32,
    pub id: u64,
}

/// What the host tells the guest in the used ring.
#[derive(Clone, Copy)]
pub enum Used {
    Done,
    Fence(Fence),
}

/// One-writer rings in guest memory: no lock on the guest's side, as with virtio.
pub struct Ring {
    slots: Vec<AtomicPtr<Descriptor>>,
    head: AtomicU64,
    tail: AtomicU64,
    used: Vec<AtomicU64>,
    used_head: AtomicU64,
    used_tail: AtomicU64,
}

impl Ring {
    fn new() -> Ring {
        Ring {
            slots: (0..RING).map(|_| AtomicPtr::default()).collect(),
            head: AtomicU64::new(0),
            tail: AtomicU64::new(0),
            used: (0..4 * RING).map(|_| AtomicU64::new(0)).collect(),
            used_head: AtomicU64::new(0),
            used_tail: AtomicU64::new(0),
        }
    }

    /// Guest: gives the descriptor back where the ring is full.
    pub fn push(&self, d: Box<Descriptor>) -> Result<(), Box<Descriptor>> {
        let head = self.head.load(Ordering::Relaxed);
        if head - self.tail.load(Ordering::Acquire) >= RING as u64 {
            return Err(d);
        }
        self.slots[head as usize % RING].store(Box::into_raw(d), Ordering::Relaxed);
        self.head.store(head + 1, Ordering::Release);
        Ok(())
    }

    /// Host, under control_queue.
    fn pop(&self) -> Option<Box<Descriptor>> {
        let tail = self.tail.load(Ordering::Relaxed);
        if tail == self.head.load(Ordering::Acquire) {
            return None;
        }
        let d = self.slots[tail as usize % RING].load(Ordering::Relaxed);
        self.tail.store(tail + 1, Ordering::Release);
        Some(unsafe { Box::from_raw(d) })
    }

    /// Host, under control_queue.
    fn add_used(&self, u: Used) {
        let head = self.used_head.load(Ordering::Relaxed);
        assert!(head - self.used_tail.load(Ordering::Acquire) < 4 * RING as u64, "used ring overran");
        let word = match u {
            Used::Done => 0,
            Used::Fence(f) => (f.ctx as u64 + 1) << 48 | f.id,
        };
        self.used[head as usize % (4 * RING)].store(word, Ordering::Relaxed);
        self.used_head.store(head + 1, Ordering::Release);
    }

    /// Guest.
    pub fn take_used(&self) -> Option<Used> {
        let tail = self.used_tail.load(Ordering::Relaxed);
        if tail == self.used_head.load(Ordering::Acquire) {
            return None;
        }
        let word = self.used[tail as usize % (4 * RING)].load(Ordering::Relaxed);
        self.used_tail.store(tail + 1, Ordering::Release);
        Some(match word >> 48 {
            0 => Used::Done,
            c => Used::Fence(Fence { ctx: c as u32 - 1, id: word & ((1 << 48) - 1) }),
        })
    }
}

struct ControlQueue {
    ring: Arc<Ring>,
}

struct FenceState {
    waiting: Vec<Fence>,
    completed: [u64; MAX_CTX],
}

pub struct Vmm {
    pub ring: Arc<Ring>,
    pub kick: RawFd,
    pub irq: RawFd,
    pub stop: AtomicBool,
    pub load_on: AtomicBool,
    control_queue: Mutex<ControlQueue>,
    fence_state: Mutex<FenceState>,
    intc: Mutex<RawFd>,
    pub turns: AtomicU64,
    /// Fences that fired before G had registered them: their interrupt comes from G.
    pub early_fences: AtomicU64,
    pub errors: AtomicU64,
}

impl Vmm {
    pub fn new() -> Arc<Vmm> {
        let ring = Arc::new(Ring::new());
        let irq = sys::eventfd(false);
        Arc::new(Vmm {
            ring: ring.clone(),
            kick: sys::eventfd(false),
            irq,
            stop: AtomicBool::new(false),
            load_on: AtomicBool::new(false),
            control_queue: Mutex::new(ControlQueue { ring }),
            fence_state: Mutex::new(FenceState { waiting: Vec::new(), completed: [0; MAX_CTX] }),
            intc: Mutex::new(irq),
            turns: AtomicU64::new(0),
            early_fences: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        })
    }

    /// The fence handler: queue, then fence_state, then intc, and the interrupt under all of them.
    fn fence_done(&self, fence: Fence) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        let queue = self.control_queue.lock().unwrap();
        let mut state = self.fence_state.lock().unwrap();
        let mut signalled = false;
        while let Some(i) = state.waiting.iter().position(|f| f.ctx == fence.ctx && f.id <= fence.id) {
            let f = state.waiting.remove(i);
            queue.ring.add_used(Used::Fence(f));
            signalled = true;
        }
        state.completed[fence.ctx as usize] = fence.id;
        if signalled {
            self.interrupt();
        } else {
            self.early_fences.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The guest's doorbell: an ioeventfd in a real VMM, a write of the vCPU thread here.
    pub fn kick(&self) {
        sys::eventfd_write(self.kick);
    }

    pub fn interrupt(&self) {
        let irq = self.intc.lock().unwrap();
        sys::eventfd_write(*irq);
    }

    /// The body of G. Ends, and takes the contexts down, when `stop` is set.
    pub fn gpu_worker(self: Arc<Vmm>, socket: String) {
        sys::set_name("gpu worker");
        let vmm = self.clone();
        let handler = RutabagaFenceHandler::new(move |f: RutabagaFence| {
            vmm.fence_done(Fence { ctx: f.ctx_id, id: f.fence_id })
        });
        let mut rutabaga = device::build(&socket, handler);
        let virgl = self.clone().start_virgl();
        let mut next_resource = 1;
        while sys::read_u64(self.kick).is_some() && !self.stop.load(Ordering::Relaxed) {
            let mut used_any = false;
            loop {
                let popped = self.control_queue.lock().unwrap().ring.pop();
                let Some(d) = popped else { break };
                self.run(&mut rutabaga, d.command, &mut next_resource);
                let used = match d.fence {
                    None => Some(Used::Done),
                    Some(f) => self.register(&mut rutabaga, &virgl, f),
                };
                if let Some(u) = used {
                    self.control_queue.lock().unwrap().ring.add_used(u);
                    used_any = true;
                }
            }
            if used_any {
                self.interrupt();
            }
        }
    }

    fn run(&self, rutabaga: &mut Rutabaga, command: Command, next_resource: &mut u32) {
        let result = match command {
            Command::Submit { ctx, mut bytes } => rutabaga.submit_command(ctx, &mut bytes, &[]),
            Command::Context { ctx, query, channel } => {
                let made = rutabaga.create_context(ctx, 5, None);
                for page in [query, channel] {
                    let resource = *next_resource;
                    *next_resource += 1;
                    let blob = ResourceCreateBlob { blob_mem: 1, blob_flags: 1, blob_id: 0, size: 4096 };
                    let iovec = RutabagaIovec { base: page as *mut _, len: 4096 };
                    rutabaga.resource_create_blob(0, resource, blob, Some(vec![iovec]), None).expect("blob");
                    rutabaga.context_attach_resource(ctx, resource).expect("attach");
                }
                made
            }
            Command::Blob { ctx, item, resource } => {
                let blob =
                    ResourceCreateBlob { blob_mem: 2, blob_flags: 1, blob_id: item as u64, size: 4096 };
                rutabaga
                    .resource_create_blob(ctx, resource, blob, None, None)
                    .and_then(|()| rutabaga.context_attach_resource(ctx, resource))
            }
            Command::Unref { ctx, resource } => rutabaga
                .context_detach_resource(ctx, resource)
                .and_then(|()| rutabaga.unref_resource(resource)),
            Command::Gpu { ns } => {
                for _ in 0..(ns / 200_000).max(1) {
                    sys::burn(ns.min(200_000));
                    let mut n = 0i32;
                    unsafe { libc::ioctl(self.kick, libc::FIONREAD, &mut n) };
                }
                Ok(())
            }
        };
        if let Err(e) = result {
            if self.errors.fetch_add(1, Ordering::Relaxed) == 0 {
                eprintln!("device: {e}");
            }
        }
    }

    /// Creates the fence; Some where it fired before it was registered, so that G must raise the interrupt.
    fn register(&self, rutabaga: &mut Rutabaga, virgl: &mpsc::Sender<Fence>, f: Fence) -> Option<Used> {
        if f.ctx == GPU_CTX {
            let _ = virgl.send(f);
        } else {
            let fence = RutabagaFence { flags: 3, fence_id: f.id, ctx_id: f.ctx, ring_idx: 1 };
            if let Err(e) = rutabaga.create_fence(fence) {
                eprintln!("create_fence: {e}");
            }
        }
        let mut state = self.fence_state.lock().unwrap();
        if f.id > state.completed[f.ctx as usize] {
            state.waiting.push(f);
            None
        } else {
            Some(Used::Fence(f))
        }
    }

    /// Signals the GPU's fences, one a frame of 60 Hz, through the same handler.
    fn start_virgl(self: Arc<Vmm>) -> mpsc::Sender<Fence> {
        let (tx, rx) = mpsc::channel::<Fence>();
        std::thread::spawn(move || {
            sys::set_name("virgl fence");
            let mut frame = sys::now_ns();
            for f in rx {
                frame = (frame + 16_666_667).max(sys::now_ns());
                std::thread::sleep(std::time::Duration::from_nanos(frame - sys::now_ns().min(frame)));
                self.fence_done(f);
            }
        });
        tx
    }
}

/// The guest's driver: keeps what does not fit into the ring.
pub struct Driver {
    vmm: Arc<Vmm>,
    overflow: VecDeque<Box<Descriptor>>,
    /// Commands without a fence that are not used yet.
    pub in_flight: u64,
}

impl Driver {
    pub fn new(vmm: Arc<Vmm>) -> Driver {
        Driver { vmm, overflow: VecDeque::new(), in_flight: 0 }
    }

    pub fn push(&mut self, command: Command, fence: Option<Fence>) {
        self.in_flight += fence.is_none() as u64;
        self.overflow.push_back(Box::new(Descriptor { command, fence }));
        self.flush();
    }

    /// Moves what waits into the ring, as far as it fits.
    pub fn flush(&mut self) {
        while let Some(d) = self.overflow.pop_front() {
            if let Err(d) = self.vmm.ring.push(d) {
                self.overflow.push_front(d);
                return;
            }
        }
    }
}
