// SPDX-License-Identifier: Apache-2.0
//! Guest memory: the virtqueue's rings and the contexts' ring pages.
//!
//! The rings are guarded by a guest spinlock, as guest memory is: no futex, so
//! that no lock of ours appears between a vCPU and G. The VMM's own side of
//! the queue is `VirtQueue`, which lives under the `control_queue` mutex.

use crate::sys;
use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::os::unix::io::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

pub const RING_BYTES: usize = 4096;

/// A command as the guest wrote it.
pub struct Descriptor {
    pub ctx_id: u32,
    /// 0: no fence.
    pub fence_id: u64,
    pub bytes: Vec<u8>,
}

/// A descriptor that the device has given back.
#[derive(Clone, Copy)]
pub struct Used {
    pub ctx_id: u32,
    pub fence_id: u64,
}

#[derive(Default)]
struct Rings {
    avail: VecDeque<Descriptor>,
    used: VecDeque<Used>,
}

pub struct GuestMemory {
    locked: AtomicBool,
    rings: UnsafeCell<Rings>,
    /// The VMM's ioeventfd: what a vCPU's kick signals.
    pub control_evt: OwnedFd,
    /// The irqfd: what the VMM's interrupt signals.
    pub irq_evt: OwnedFd,
    /// Item id of the pipe that a guest application writes, 0 while there is none.
    pub pipe_id: AtomicU32,
}

// SAFETY: `rings` is only touched between lock() and unlock().
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    pub fn new() -> std::io::Result<GuestMemory> {
        Ok(GuestMemory {
            locked: AtomicBool::new(false),
            rings: UnsafeCell::new(Rings::default()),
            control_evt: sys::event(false)?,
            irq_evt: sys::event(false)?,
            pipe_id: AtomicU32::new(0),
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut Rings) -> R) -> R {
        let mut spins = 0;
        while self.locked.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            spins += 1;
            if spins % 1000 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        // SAFETY: the spinlock is ours.
        let out = f(unsafe { &mut *self.rings.get() });
        self.locked.store(false, Ordering::Release);
        out
    }

    /// Guest: makes a command available. It still has to kick.
    pub fn push(&self, ctx_id: u32, fence_id: u64, bytes: Vec<u8>) {
        self.with(|rings| rings.avail.push_back(Descriptor { ctx_id, fence_id, bytes }));
    }

    /// Guest: in a real VM no system call, but KVM's ioeventfd.
    pub fn kick(&self) {
        let _ = sys::write_u64(&self.control_evt, 1);
    }

    /// Guest: takes the next descriptor that the device gave back.
    pub fn pop_used(&self) -> Option<Used> {
        self.with(|rings| rings.used.pop_front())
    }
}

/// The device's side of the queue.
pub struct VirtQueue {
    mem: std::sync::Arc<GuestMemory>,
}

impl VirtQueue {
    pub fn new(mem: std::sync::Arc<GuestMemory>) -> VirtQueue {
        VirtQueue { mem }
    }

    pub fn pop(&mut self) -> Option<Descriptor> {
        self.mem.with(|rings| rings.avail.pop_front())
    }

    pub fn add_used(&mut self, ctx_id: u32, fence_id: u64) {
        self.mem.with(|rings| rings.used.push_back(Used { ctx_id, fence_id }));
    }
}

/// One page of a context's channel ring: W fills it before a fence, the guest reads it before its
/// next POLL, so the two never meet.
pub struct RingPage {
    bytes: UnsafeCell<[u8; RING_BYTES]>,
}

// SAFETY: fence and POLL order the accesses, see above.
unsafe impl Sync for RingPage {}

impl RingPage {
    pub fn new() -> RingPage {
        RingPage { bytes: UnsafeCell::new([0; RING_BYTES]) }
    }

    /// Device: where the next message goes.
    pub fn start(&self) -> *mut u8 {
        self.bytes.get().cast()
    }

    /// Guest: the first `N` bytes of the message.
    pub fn copy<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        // SAFETY: N is at most the page's size; W waits for our POLL.
        unsafe { std::ptr::copy_nonoverlapping(self.start(), out.as_mut_ptr(), N.min(RING_BYTES)) };
        out
    }
}
