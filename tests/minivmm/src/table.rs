// SPDX-License-Identifier: Apache-2.0
//! item_state, and G's half of a context: submit_cmd and the four write paths.
//!
//! | path | lookup | write(2) |
//! |---|---|---|
//! | locked | remove, write, re-insert | under item_state |
//! | dup | F_DUPFD_CLOEXEC under item_state | on the dup, outside; then close |
//! | refcount | Arc clone under item_state | outside; pipes still under item_state |
//! | task | once per target | in the target's forwarding thread |

use crate::args::WritePath;
use crate::process;
use crate::shared::{word, Stamp};
use crate::sys;
use crate::times::WriteTimes;
use crate::worker::{CrossDomainState, Job};
use std::collections::BTreeMap;
use std::os::unix::io::OwnedFd;
use std::sync::mpsc::{channel, Sender};
use std::sync::{Arc, Mutex};

pub const CMD_POLL: u8 = 3;
pub const CMD_WRITE: u8 = 7;
pub const CMD_CREATE_BLOB: u8 = 10;
pub const CMD_READ_EVENTFD_NEW: u8 = 11;
/// Bytes before a WRITE's data: header 8, id, hang_up, size, pad.
pub const WRITE_HEADER: usize = 24;

/// How the modelled device differs by origin (libkrun's fork, or upstream).
#[derive(Clone, Copy)]
pub struct Style {
    pub krun: bool,
}

pub enum CrossDomainItem {
    Event(Arc<OwnedFd>),
    WritePipe(Arc<OwnedFd>),
    /// Memory; never written, nor waited for.
    Blob(Arc<OwnedFd>),
}

/// What a RECEIVE message says an item is.
pub const TYPE_BLOB: u32 = 1;
pub const TYPE_WRITE_PIPE: u32 = 4;
pub const TYPE_EVENT: u32 = 5;

impl CrossDomainItem {
    /// Tells what was received by its link in /proc.
    pub fn describe(file: OwnedFd, style: Style) -> CrossDomainItem {
        let link = sys::describe(&file, style.krun);
        if link.starts_with(b"pipe:") {
            return CrossDomainItem::WritePipe(Arc::new(file));
        }
        if link.starts_with(b"/memfd:") {
            return CrossDomainItem::Blob(Arc::new(file));
        }
        CrossDomainItem::Event(Arc::new(file))
    }

    pub fn file(&self) -> &Arc<OwnedFd> {
        match self {
            CrossDomainItem::Event(file) | CrossDomainItem::WritePipe(file) | CrossDomainItem::Blob(file) => {
                file
            }
        }
    }

    pub fn kind(&self) -> u32 {
        match self {
            CrossDomainItem::Event(_) => TYPE_EVENT,
            CrossDomainItem::WritePipe(_) => TYPE_WRITE_PIPE,
            CrossDomainItem::Blob(_) => TYPE_BLOB,
        }
    }
}

pub struct CrossDomainItems {
    pub descriptor_id: u32,
    pub table: BTreeMap<u32, CrossDomainItem>,
}

pub type ItemState = Arc<Mutex<CrossDomainItems>>;
/// Handles exported by the file system device; consulted where one exists.
pub type ExportTable = Arc<Mutex<BTreeMap<u32, u64>>>;

pub fn new_item_state() -> ItemState {
    Arc::new(Mutex::new(CrossDomainItems { descriptor_id: 4, table: BTreeMap::new() }))
}

#[inline(never)]
pub fn add_item(item_state: &ItemState, exports: Option<&ExportTable>, item: CrossDomainItem) -> u32 {
    let mut items = item_state.lock().unwrap();
    items.descriptor_id += 2;
    let id = items.descriptor_id;
    if let Some(exports) = exports {
        exports.lock().unwrap().remove(&id);
    }
    items.table.insert(id, item);
    id
}

/// Where it is kept when an item was written, if that is of interest.
pub type StampOf = Box<dyn Fn(u32) -> Option<&'static Stamp> + Send>;

fn put(file: &OwnedFd, data: &[u8], stamp: Option<&Stamp>) {
    let write = || {
        let _ = sys::write_bytes(file, data);
    };
    match stamp {
        Some(stamp) => stamp.around(write),
        None => write(),
    }
}

/// One thread that writes one target (write path `task`).
struct Forwarder {
    values: Sender<Vec<u8>>,
}

impl Forwarder {
    fn start(index: usize, file: Arc<OwnedFd>, stamp: Option<&'static Stamp>) -> Forwarder {
        let (values, inbox) = channel::<Vec<u8>>();
        process::spawn(&format!("fwd {}", index), move || {
            while let Ok(value) = inbox.recv() {
                put(&file, &value, stamp);
            }
        });
        Forwarder { values }
    }
}

pub struct CrossDomainContext {
    pub write_path: WritePath,
    pub item_state: ItemState,
    pub state: Arc<CrossDomainState>,
    pub wait_ctx: Arc<OwnedFd>,
    pub resample_evt: Arc<OwnedFd>,
    pub watched: BTreeMap<u32, ()>,
    forwarders: BTreeMap<u32, Forwarder>,
    times: WriteTimes,
    stamp_of: StampOf,
    allocating: fn(),
}

impl CrossDomainContext {
    pub fn new(
        write_path: WritePath,
        item_state: ItemState,
        state: Arc<CrossDomainState>,
        wait_ctx: Arc<OwnedFd>,
        resample_evt: Arc<OwnedFd>,
        stamp_of: StampOf,
        allocating: fn(),
    ) -> CrossDomainContext {
        let (watched, forwarders) = (BTreeMap::new(), BTreeMap::new());
        let times = WriteTimes::new();
        CrossDomainContext {
            write_path,
            item_state,
            state,
            wait_ctx,
            resample_evt,
            watched,
            forwarders,
            times,
            stamp_of,
            allocating,
        }
    }

    /// Executes one command of the guest; POLL is all in its fence (gpu.rs).
    pub fn submit_cmd(&mut self, cmd: &[u8]) {
        match cmd[0] {
            CMD_WRITE => {
                let hang_up = word(cmd, 12) != 0;
                let began = if hang_up { None } else { self.times.begin() };
                self.write(word(cmd, 8), hang_up, &cmd[WRITE_HEADER..]);
                self.times.end(began);
            }
            CMD_READ_EVENTFD_NEW => self.read_eventfd_new(word(cmd, 8)),
            CMD_CREATE_BLOB => self.create_blob(),
            _ => {}
        }
    }

    fn read_eventfd_new(&mut self, id: u32) {
        self.watched.insert(id, ());
        self.state.add_job(Job::AddReadPipe(id));
        let _ = sys::write_u64(&self.resample_evt, 1);
    }

    /// A guest's buffer: its memory is asked for under the lock.
    fn create_blob(&mut self) {
        let mut items = self.item_state.lock().unwrap();
        (self.allocating)();
        items.descriptor_id += 2;
    }

    fn write(&mut self, id: u32, hang_up: bool, data: &[u8]) {
        if hang_up {
            self.forwarders.remove(&id);
        } else if self.write_path == WritePath::Task {
            return self.forward(id, data);
        }
        match self.write_path {
            WritePath::Locked => self.write_locked(id, hang_up, data),
            WritePath::Dup => self.write_dup(id, hang_up, data),
            WritePath::Refcount | WritePath::Task => self.write_refcount(id, hang_up, data),
        }
    }

    #[inline]
    fn write_locked(&mut self, id: u32, hang_up: bool, data: &[u8]) {
        let mut items = self.item_state.lock().unwrap();
        let item = match items.table.remove(&id) {
            Some(item) => item,
            None => return,
        };
        if !data.is_empty() {
            put(item.file(), data, (self.stamp_of)(id));
        }
        if hang_up {
            unwatch(&mut self.watched, &self.wait_ctx, id, &item);
            drop(item);
        } else {
            items.table.insert(id, item);
        }
    }

    #[inline]
    fn write_dup(&mut self, id: u32, hang_up: bool, data: &[u8]) {
        let mut items = self.item_state.lock().unwrap();
        if hang_up {
            let item = items.table.remove(&id);
            drop(items);
            self.finish(id, item, data);
            return;
        }
        let file = items.table.get(&id).and_then(|item| sys::dup(item.file()).ok());
        drop(items);
        if let Some(file) = file {
            put(&file, data, (self.stamp_of)(id));
        }
    }

    #[inline]
    fn write_refcount(&mut self, id: u32, hang_up: bool, data: &[u8]) {
        let mut items = self.item_state.lock().unwrap();
        if hang_up {
            let item = items.table.remove(&id);
            drop(items);
            self.finish(id, item, data);
            return;
        }
        let file = match items.table.get(&id) {
            Some(CrossDomainItem::Event(file)) => file.clone(),
            Some(CrossDomainItem::WritePipe(file)) => {
                let _ = sys::write_bytes(file, data);
                return;
            }
            Some(CrossDomainItem::Blob(_)) | None => return,
        };
        drop(items);
        put(&file, data, (self.stamp_of)(id));
    }

    /// The last write to an item that has left the table, and its close.
    fn finish(&mut self, id: u32, item: Option<CrossDomainItem>, data: &[u8]) {
        if let Some(item) = item {
            if !data.is_empty() {
                let _ = sys::write_bytes(item.file(), data);
            }
            unwatch(&mut self.watched, &self.wait_ctx, id, &item);
        }
    }

    /// Hands the value over; the table is only asked for a target's first write.
    fn forward(&mut self, id: u32, data: &[u8]) {
        if !self.forwarders.contains_key(&id) {
            let items = self.item_state.lock().unwrap();
            let file = match items.table.get(&id) {
                Some(item) => item.file().clone(),
                None => return,
            };
            drop(items);
            self.forwarders.insert(id, Forwarder::start(self.forwarders.len(), file, (self.stamp_of)(id)));
        }
        let _ = self.forwarders[&id].values.send(data.to_vec());
    }
}

/// The server may hold the same eventfd open, so that closing ours would leave it in the epoll set.
fn unwatch(watched: &mut BTreeMap<u32, ()>, wait_ctx: &OwnedFd, id: u32, item: &CrossDomainItem) {
    if watched.remove(&id).is_some() {
        let _ = sys::epoll_change(wait_ctx, sys::EPOLL_CTL_DEL, item.file().as_ref(), 0);
    }
}
