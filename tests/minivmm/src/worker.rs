// SPDX-License-Identifier: Apache-2.0
//! W: the cross-domain worker. One event per guest fence, then it waits to be re-armed.
//!
//! `CrossDomainState` is what G and W share of a context beside the item table.

use crate::args::WorkerOrder;
use crate::fence::{Fence, FenceHandler};
use crate::hooks::Hooks;
use crate::queue::{RingPage, RING_BYTES};
use crate::shared::OFFER_BYTES;
use crate::sys::{self, EpollEvent};
use crate::table::{add_item, CrossDomainItem, ExportTable, ItemState, StampOf, Style};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::io::OwnedFd;
use std::sync::{Arc, Condvar, Mutex};

pub const CHANNEL_ID: u64 = u32::MAX as u64 + 1;
pub const RESAMPLE_ID: u64 = u32::MAX as u64 + 2;
pub const CMD_RECEIVE: u8 = 5;
pub const CMD_READ: u8 = 6;
/// Bytes of a READ message's header; a RECEIVE's types of items begin at 128, its data at 352.
pub const READ_HEADER: usize = 24;
pub const RECEIVE_TYPES: usize = 128;
pub const RECEIVE_DATA: usize = 352;
pub const MESSAGE_BYTES: usize = RECEIVE_DATA + OFFER_BYTES;

pub enum Job {
    HandleFence(Fence),
    AddReadPipe(u32),
}

pub struct ContextResources {
    pub rings: Vec<Arc<RingPage>>,
}

pub enum RingWrite<'a> {
    Write([u8; RECEIVE_DATA], &'a [u8]),
    WriteFromFile([u8; READ_HEADER], &'a OwnedFd),
}

pub struct CrossDomainState {
    pub context_resources: Arc<Mutex<ContextResources>>,
    pub jobs: Mutex<Option<VecDeque<Job>>>,
    pub jobs_cvar: Condvar,
    pub channel: OwnedFd,
    pub style: Style,
}

impl CrossDomainState {
    pub fn add_job(&self, job: Job) {
        let mut jobs = self.jobs.lock().unwrap();
        if let Some(queue) = jobs.as_mut() {
            queue.push_back(job);
            self.jobs_cvar.notify_one();
        }
    }

    /// Lets the worker end once it has served what it is at.
    pub fn end(&self, resample_evt: &OwnedFd) {
        *self.jobs.lock().unwrap() = None;
        self.jobs_cvar.notify_one();
        let _ = sys::write_u64(resample_evt, 1);
    }

    fn wait_for_job(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap();
        loop {
            match jobs.as_mut()?.pop_front() {
                Some(job) => return Some(job),
                None => jobs = self.jobs_cvar.wait(jobs).unwrap(),
            }
        }
    }

    /// Fills the ring page under `context_resources`; bytes read from a file, or written.
    #[inline(never)]
    fn write_to_ring(&self, ring_write: RingWrite) -> std::io::Result<usize> {
        let resources = self.context_resources.lock().unwrap();
        let page = resources.rings[0].start();
        match ring_write {
            RingWrite::Write(header, data) => {
                // SAFETY: both fit in the page, which the guest does not touch until the fence.
                unsafe {
                    std::ptr::copy_nonoverlapping(header.as_ptr(), page, RECEIVE_DATA);
                    std::ptr::copy_nonoverlapping(data.as_ptr(), page.add(RECEIVE_DATA), data.len());
                }
                Ok(data.len())
            }
            RingWrite::WriteFromFile(header, file) => {
                let room = if self.style.krun { RING_BYTES - READ_HEADER } else { 8 };
                // SAFETY: as above.
                unsafe {
                    std::ptr::copy_nonoverlapping(header.as_ptr(), page, READ_HEADER);
                    sys::read_raw(file, page.add(READ_HEADER), room)
                }
            }
        }
    }
}

pub struct CrossDomainWorker {
    pub ctx_id: u32,
    pub order: WorkerOrder,
    pub wait_ctx: Arc<OwnedFd>,
    pub resample_evt: Arc<OwnedFd>,
    pub item_state: ItemState,
    pub export_table: Option<ExportTable>,
    pub state: Arc<CrossDomainState>,
    pub fence_handler: FenceHandler,
    pub hooks: Hooks,
    /// A sustained stream's eventfd has entered the epoll set.
    pub on_registered: Box<dyn Fn() + Send>,
    pub read: StampOf,
    pub served: BTreeMap<u64, u64>,
    pub turn: u64,
    pub dead: bool,
}

impl CrossDomainWorker {
    pub fn run(mut self) {
        while let Some(job) = self.state.wait_for_job() {
            match job {
                Job::HandleFence(fence) => {
                    self.handle_fence(fence);
                    if self.dead {
                        return;
                    }
                }
                Job::AddReadPipe(id) => {
                    let items = self.item_state.lock().unwrap();
                    if let Some(CrossDomainItem::Event(file)) = items.table.get(&id) {
                        if sys::epoll_change(&self.wait_ctx, sys::EPOLL_CTL_ADD, file.as_ref(), id as u64)
                            .is_ok()
                        {
                            (self.on_registered)();
                        }
                    }
                }
            }
        }
    }

    /// events[0]; the fair worker takes the ready one that it served longest ago.
    fn choose(&mut self, ready: &[EpollEvent]) -> u64 {
        self.turn += 1;
        if self.order == WorkerOrder::First {
            return ready[0].data;
        }
        let served = &self.served;
        let oldest = ready.iter().map(|e| e.data).min_by_key(|data| served.get(data).copied().unwrap_or(0));
        let chosen = oldest.unwrap_or(ready[0].data);
        self.served.insert(chosen, self.turn);
        if self.served.len() > 4096 {
            let horizon = self.turn - 4096;
            self.served.retain(|_, turn| *turn > horizon);
        }
        chosen
    }

    /// Serves one event, whose arrival completes the fence.
    fn handle_fence(&mut self, fence: Fence) {
        let mut events = [EpollEvent::default(); 16];
        loop {
            let n = sys::epoll_events(&self.wait_ctx, &mut events, -1, !self.state.style.krun);
            if n == 0 {
                continue;
            }
            let chosen = self.choose(&events[..n]);
            let done = match chosen {
                CHANNEL_ID => self.process_receive(fence),
                RESAMPLE_ID => {
                    // A new descriptor waits in the job queue: poll again after it was added.
                    let _ = sys::read_u64(&self.resample_evt);
                    self.state.add_job(Job::HandleFence(fence));
                    true
                }
                id => self.process_event(id as u32, fence),
            };
            if done {
                return;
            }
        }
    }

    /// Reads an item's eventfd and signals the fence, all under item_state. False: the item is gone.
    fn process_event(&mut self, id: u32, fence: Fence) -> bool {
        if !(self.hooks.before_serve)(self.ctx_id, id) {
            self.dead = true;
            return true;
        }
        let items = self.item_state.lock().unwrap();
        let file = match items.table.get(&id) {
            Some(CrossDomainItem::Event(file)) => file,
            _ => return false, // the guest hung up after epoll_wait
        };
        let mut header = [0; READ_HEADER];
        header[0] = CMD_READ;
        header[8..12].copy_from_slice(&id.to_ne_bytes());
        let read = || self.state.write_to_ring(RingWrite::WriteFromFile(header, file));
        let done = match (self.read)(id) {
            Some(stamp) => stamp.around(read),
            None => read(),
        };
        match done {
            Ok(_) => {
                (self.hooks.under_lock)(self.ctx_id, id);
                self.fence_handler.signal_fence(fence);
                true
            }
            Err(_) => false,
        }
    }

    /// Takes one message from the channel; every descriptor becomes an item.
    fn process_receive(&mut self, fence: Fence) -> bool {
        let mut data = [0; RING_BYTES - RECEIVE_DATA];
        let (len, files) = match sys::receive_fds(&self.state.channel, &mut data) {
            Ok((0, files)) if files.is_empty() => {
                let _ = sys::epoll_change(&self.wait_ctx, sys::EPOLL_CTL_DEL, &self.state.channel, 0);
                return false; // the server has gone
            }
            Ok(received) => received,
            Err(_) => return false,
        };
        (self.hooks.received)();
        let mut header = [0; RECEIVE_DATA];
        header[0] = CMD_RECEIVE;
        header[8..12].copy_from_slice(&(files.len() as u32).to_ne_bytes());
        header[12..16].copy_from_slice(&(len as u32).to_ne_bytes());
        for (i, file) in files.into_iter().enumerate() {
            let item = CrossDomainItem::describe(file, self.state.style);
            let kind = item.kind();
            let id = add_item(&self.item_state, self.export_table.as_ref(), item);
            header[16 + 4 * i..20 + 4 * i].copy_from_slice(&id.to_ne_bytes());
            let at = RECEIVE_TYPES + 4 * i;
            header[at..at + 4].copy_from_slice(&kind.to_ne_bytes());
        }
        if self.state.write_to_ring(RingWrite::Write(header, &data[..len])).is_ok() {
            self.fence_handler.signal_fence(fence);
        }
        true
    }
}
