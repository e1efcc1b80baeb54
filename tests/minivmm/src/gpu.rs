// SPDX-License-Identifier: Apache-2.0
//! G: the one thread that executes every command of every context, in order.

use crate::actors;
use crate::fence::{Fence, FenceHandler, Pending};
use crate::hooks::Hooks;
use crate::process;
use crate::queue::{Descriptor, GuestMemory};
use crate::shared::word;
use crate::sys;
use crate::table::{CrossDomainContext, CMD_POLL, CMD_WRITE, WRITE_HEADER};
use crate::worker::Job;
use std::collections::BTreeMap;
use std::os::unix::io::OwnedFd;
use std::sync::mpsc::Sender;
use std::sync::Arc;

/// A GPU command of context 0: microseconds in a blocking call, then of CPU, then until its fence.
pub fn gpu_command(block_us: u32, cpu_us: u32, fence_us: u32) -> Vec<u8> {
    [block_us, cpu_us, fence_us].iter().flat_map(|v| v.to_ne_bytes()).collect()
}

/// What executes commands that another front end than the modelled guest adds; true if it was one.
pub type Extra = Box<dyn FnMut(&Descriptor, &mut BTreeMap<u32, CrossDomainContext>) -> bool + Send>;

pub struct GpuWorker {
    pub mem: Arc<GuestMemory>,
    pub fence_handler: FenceHandler,
    /// By ctx_id.
    pub contexts: BTreeMap<u32, CrossDomainContext>,
    pub extra: Extra,
    pub gpu_fences: Sender<Pending>,
    /// What the GPU's driver waits on; it never becomes ready by itself.
    pub gpu_device: OwnedFd,
    pub hooks: Hooks,
}

impl GpuWorker {
    pub fn run(mut self) {
        process::sharp_timers();
        loop {
            if sys::read_u64(&self.mem.control_evt).is_ok() && self.process_queue() {
                self.fence_handler.signal_used_queue();
            }
        }
    }

    /// Executes what is available; true if it gave back a descriptor itself.
    fn process_queue(&mut self) -> bool {
        let mut used_any = false;
        loop {
            let head = self.fence_handler.control_queue.lock().unwrap().pop();
            let head = match head {
                Some(head) => head,
                None => return used_any,
            };
            self.process_gpu_command(&head);
            let fence = Fence { ctx_id: head.ctx_id, fence_id: head.fence_id };
            let done = head.fence_id == 0 || {
                self.create_fence(fence, &head.bytes);
                self.fence_handler.process_fence(fence)
            };
            if done {
                self.fence_handler.control_queue.lock().unwrap().add_used(head.ctx_id, head.fence_id);
                used_any = true;
            }
        }
    }

    fn process_gpu_command(&mut self, head: &Descriptor) {
        if (self.extra)(head, &mut self.contexts) {
            return;
        }
        if head.ctx_id != 0 {
            let completes = head.bytes[0] == CMD_WRITE && head.bytes.len() == WRITE_HEADER + 8;
            if completes && !(self.hooks.before_write)(head.ctx_id, word(&head.bytes, 8)) {
                return;
            }
            if let Some(context) = self.contexts.get_mut(&head.ctx_id) {
                context.submit_cmd(&head.bytes);
            }
            return;
        }
        // The driver's ioctl: it sleeps until the GPU is done; then the state is validated.
        let block_us = word(&head.bytes, 0);
        let cpu_us = word(&head.bytes, 4);
        actors::around_command(block_us + cpu_us >= 500, || {
            if block_us >= 500 {
                process::readable_within(&self.gpu_device, block_us as u64 * 1000);
            }
            process::work(cpu_us as u64 * 1000);
        });
    }

    fn create_fence(&mut self, fence: Fence, bytes: &[u8]) {
        if fence.ctx_id == 0 {
            let due_ns = sys::now_ns() + word(bytes, 8) as u64 * 1000;
            let _ = self.gpu_fences.send(Pending { fence, due_ns });
        } else if bytes[0] == CMD_POLL {
            if let Some(context) = self.contexts.get(&fence.ctx_id) {
                context.state.add_job(Job::HandleFence(fence));
            }
        }
    }
}
