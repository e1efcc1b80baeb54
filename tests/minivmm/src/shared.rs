// SPDX-License-Identifier: Apache-2.0
//! Memory that all processes share: what PipeWire's activation records are, and the run's state.

use crate::sys;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

pub const MAX_STREAMS: usize = 16;

/// When something was last begun and ended, ns. Begun after it ended: it is going on.
#[repr(C)]
pub struct Stamp {
    begun_ns: AtomicU64,
    ended_ns: AtomicU64,
}

impl Stamp {
    pub fn around<R>(&self, run: impl FnOnce() -> R) -> R {
        self.begun_ns.store(sys::now_ns(), Ordering::Release);
        let out = run();
        self.ended_ns.store(sys::now_ns(), Ordering::Release);
        out
    }

    /// (begun, ended); ended is u64::MAX while it goes on.
    pub fn get(&self) -> (u64, u64) {
        let ended = self.ended_ns.load(Ordering::Acquire);
        let begun = self.begun_ns.load(Ordering::Acquire);
        (begun, if ended < begun { u64::MAX } else { ended })
    }
}

#[repr(C)]
pub struct Shared {
    /// Nominal start of the driver's next cycle, ns; 0: no cycle is due.
    pub next_start_ns: AtomicU64,
    /// Sustained streams whose wake eventfd W has in its epoll set.
    pub registered: AtomicU32,
    /// The driver's period at present.
    pub period_ns: AtomicU64,
    /// What a futex that processes share is waited on by.
    pub futex: AtomicU32,
    /// Per target: streams that have not finished the cycle yet.
    pub pending: [AtomicI32; MAX_STREAMS],
    /// Per stream: 1 from the driver's wakeup until the stream finishes.
    pub awake: [AtomicU32; MAX_STREAMS],
    /// Per target: completions that the guest has had written.
    pub asked: [AtomicU64; MAX_STREAMS],
    /// Per stream: when W last read its wakeup, and when the VMM last wrote its completion.
    pub read: [Stamp; MAX_STREAMS],
    pub written: [Stamp; MAX_STREAMS],
    /// Of the client outside the VMM: completions that it began to write, and that it wrote.
    pub begun: AtomicU64,
    pub done: AtomicU64,
}

impl Shared {
    /// Maps one; it is never unmapped.
    pub fn map() -> &'static Shared {
        let page = sys::shared_pages(std::mem::size_of::<Shared>());
        // SAFETY: zeroed memory is a valid Shared; all fields are atomics.
        unsafe { &*(page as *const Shared) }
    }

    /// A stream finishes its work; true if it was the last one of its target in this cycle.
    pub fn finish(&self, stream: usize, target: usize) -> bool {
        self.awake[stream].swap(0, Ordering::AcqRel) == 1
            && self.pending[target].fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// Waits (a load's thread) until a cycle is due at least `lead_ns` from now; its nominal start.
    pub fn cycle_ahead(&self, lead_ns: u64, period_ns: u64) -> u64 {
        loop {
            let next = self.next_start_ns.load(Ordering::Acquire);
            let now = sys::now_ns();
            if next != 0 {
                let mut start = next;
                while start < now + lead_ns {
                    start += period_ns;
                }
                return start;
            }
            sys::sleep_ns(2_000_000);
        }
    }
}

/// What the audio server sends beside descriptors: kind, stream, target, streams of that target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    pub kind: u32,
    pub stream: u32,
    pub target: u32,
    pub group: u32,
}

pub const SUSTAINED: u32 = 1;
pub const SHORT: u32 = 2;
pub const PIPE: u32 = 3;
pub const ENDLESS: u32 = 4;
pub const CLOSE: u32 = 5;
pub const OFFER_BYTES: usize = 16;

impl Offer {
    pub fn encode(self) -> [u8; OFFER_BYTES] {
        let mut out = [0; OFFER_BYTES];
        for (i, word) in [self.kind, self.stream, self.target, self.group].iter().enumerate() {
            out[4 * i..4 * i + 4].copy_from_slice(&word.to_ne_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Offer {
        Offer { kind: word(bytes, 0), stream: word(bytes, 4), target: word(bytes, 8), group: word(bytes, 12) }
    }
}

/// The u32 at a byte offset.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
