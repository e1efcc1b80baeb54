// SPDX-License-Identifier: Apache-2.0
//! Fences: the handler that W, G and the virgl fence thread share, and its three locks.
//!
//! Order: control_queue, fence_state, intc; the interrupt's eventfd is written under all three.

use crate::process;
use crate::queue::{GuestMemory, VirtQueue};
use crate::sys;
use std::collections::BTreeMap;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

#[derive(Clone, Copy)]
pub struct Fence {
    pub ctx_id: u32,
    pub fence_id: u64,
}

#[derive(Default)]
pub struct FenceState {
    descs: Vec<Fence>,
    completed_fences: BTreeMap<u32, u64>,
}

/// The interrupt controller, shared by all devices of the VM.
pub struct Intc {
    mem: Arc<GuestMemory>,
}

impl Intc {
    fn set_irq(&mut self) {
        let _ = sys::write_u64(&self.mem.irq_evt, 1);
    }
}

#[derive(Clone)]
pub struct FenceHandler {
    pub control_queue: Arc<Mutex<VirtQueue>>,
    pub fence_state: Arc<Mutex<FenceState>>,
    pub intc: Arc<Mutex<Intc>>,
}

impl FenceHandler {
    pub fn new(mem: &Arc<GuestMemory>) -> FenceHandler {
        FenceHandler {
            control_queue: Arc::new(Mutex::new(VirtQueue::new(mem.clone()))),
            fence_state: Arc::new(Mutex::new(FenceState::default())),
            intc: Arc::new(Mutex::new(Intc { mem: mem.clone() })),
        }
    }

    /// Completes a fence: gives its descriptor back and interrupts the guest. A fence that fires
    /// before G has registered it only leaves a mark; the interrupt is then G's.
    pub fn signal_fence(&self, completed: Fence) {
        let mut queue = self.control_queue.lock().unwrap();
        let mut fence_state = self.fence_state.lock().unwrap();
        let mut i = 0;
        while i < fence_state.descs.len() {
            let desc = fence_state.descs[i];
            if desc.ctx_id == completed.ctx_id && desc.fence_id <= completed.fence_id {
                fence_state.descs.remove(i);
                queue.add_used(desc.ctx_id, desc.fence_id);
                self.signal_used_queue();
            } else {
                i += 1;
            }
        }
        fence_state.completed_fences.insert(completed.ctx_id, completed.fence_id);
    }

    /// G, after create_fence: true if the fence has already fired.
    pub fn process_fence(&self, fence: Fence) -> bool {
        let mut fence_state = self.fence_state.lock().unwrap();
        if fence.fence_id > *fence_state.completed_fences.get(&fence.ctx_id).unwrap_or(&0) {
            fence_state.descs.push(fence);
            return false;
        }
        true
    }

    pub fn signal_used_queue(&self) {
        self.intc.lock().unwrap().set_irq();
    }
}

/// What the GPU finishes, and when.
pub struct Pending {
    pub fence: Fence,
    pub due_ns: u64,
}

/// The virgl-like fence thread: waits for the GPU's fences and calls the same handler.
pub fn run(pending: Receiver<Pending>, handler: FenceHandler) {
    process::sharp_timers();
    while let Ok(next) = pending.recv() {
        sys::sleep_until(next.due_ns);
        handler.signal_fence(next.fence);
    }
}
