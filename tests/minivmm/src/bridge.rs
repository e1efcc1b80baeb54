// SPDX-License-Identifier: Apache-2.0
//! What a guest's kernel and its bridge do for real clients: they pass a connection's bytes and
//! give each client eventfds of its own in place of the server's.
//!
//! Wakeups come from W by way of the channel ring and become writes to a client's eventfd; what a
//! client writes becomes a WRITE command for G. Memory goes through as it is.

use crate::guest::{command, write_command};
use crate::pipewire::{send_all, CMD_CREATE, CMD_DESTROY, CMD_EXPORT, CMD_SEND};
use crate::process;
use crate::protocol::{Carried, Message, Messages};
use crate::queue::{GuestMemory, RingPage, RING_BYTES};
use crate::shared::word;
use crate::sys::{self, EpollEvent, EPOLLIN, EPOLL_CTL_ADD, EPOLL_CTL_DEL};
use crate::table::{CMD_POLL, CMD_READ_EVENTFD_NEW, TYPE_EVENT};
use crate::worker::{CMD_READ, CMD_RECEIVE, READ_HEADER, RECEIVE_DATA, RECEIVE_TYPES};
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

/// What cannot be written into a command: descriptors between the bridge and G.
#[derive(Default)]
pub struct Crossing {
    /// Per context to be made: its channel to the server and its ring.
    pub created: Mutex<BTreeMap<u32, (OwnedFd, Arc<RingPage>)>>,
    /// Per SEND (token): what it sends along.
    pub sent: Mutex<BTreeMap<u32, Vec<OwnedFd>>>,
    /// Per context and item: memory for the client.
    pub exported: Mutex<BTreeMap<(u32, u32), Arc<OwnedFd>>>,
}

/// Places in the epoll set: context << 32 | item, or one of these (items are never so small).
const SOCKET: u32 = 0;
const CHANNEL: u32 = 1;
const IRQ: u64 = 2;
const LISTENER: u64 = 3;

struct Client {
    socket: OwnedFd,
    channel: OwnedFd,
    ring: Arc<RingPage>,
    fence_id: u64,
    incoming: Messages,
    /// Messages whose memory G has not handed out yet.
    waiting: VecDeque<Message>,
    /// By item: the client's eventfd in its place.
    eventfds: BTreeMap<u32, OwnedFd>,
}

pub struct Bridge {
    mem: Arc<GuestMemory>,
    crossing: Arc<Crossing>,
    server: String,
    ep: OwnedFd,
    listener: UnixListener,
    clients: BTreeMap<u32, Client>,
    contexts: u32,
    token: u32,
}

fn key(ctx_id: u32, what: u32) -> u64 {
    (ctx_id as u64) << 32 | what as u64
}

impl Bridge {
    pub fn new(
        mem: Arc<GuestMemory>,
        crossing: Arc<Crossing>,
        server: String,
        listen: &str,
    ) -> std::io::Result<Bridge> {
        let _ = std::fs::remove_file(listen); // of a run before this one
        let (ep, listener) = (sys::epoll()?, UnixListener::bind(listen)?);
        sys::epoll_change(&ep, EPOLL_CTL_ADD, &mem.irq_evt, IRQ)?;
        sys::epoll_change(&ep, EPOLL_CTL_ADD, &listener, LISTENER)?;
        let clients = BTreeMap::new();
        Ok(Bridge { mem, crossing, server, ep, listener, clients, contexts: 0, token: 0 })
    }

    pub fn run(mut self) {
        process::sharp_timers();
        let mut events = [EpollEvent::default(); 32];
        loop {
            let n = sys::epoll_events(&self.ep, &mut events, -1, false);
            for event in &events[..n] {
                match event.data {
                    IRQ => self.interrupt(),
                    LISTENER => {
                        let _ = self.accept(); // without a server the client is turned away
                    }
                    place => match (place >> 32) as u32 {
                        ctx_id if place as u32 == SOCKET => self.sent(ctx_id),
                        ctx_id if place as u32 == CHANNEL => self.close(ctx_id),
                        ctx_id => self.completed(ctx_id, place as u32),
                    },
                }
            }
        }
    }

    fn send(&self, ctx_id: u32, fence_id: u64, bytes: Vec<u8>) {
        self.mem.push(ctx_id, fence_id, bytes);
        self.mem.kick();
    }

    fn accept(&mut self) -> std::io::Result<()> {
        let socket = OwnedFd::from(self.listener.accept()?.0);
        let channel = OwnedFd::from(UnixStream::connect(&self.server)?);
        self.contexts += 1;
        let ctx_id = self.contexts;
        let ring = Arc::new(RingPage::new());
        sys::epoll_change(&self.ep, EPOLL_CTL_ADD, &socket, key(ctx_id, SOCKET))?;
        sys::epoll_control(&self.ep, EPOLL_CTL_ADD, &channel, 0, key(ctx_id, CHANNEL))?;
        self.crossing.created.lock().unwrap().insert(ctx_id, (sys::dup(&channel)?, ring.clone()));
        self.send(ctx_id, 0, command(CMD_CREATE, &[], &[]));
        let (incoming, waiting, eventfds) = (Messages::default(), VecDeque::new(), BTreeMap::new());
        let client = Client { socket, channel, ring, fence_id: 0, incoming, waiting, eventfds };
        self.clients.insert(ctx_id, client);
        println!("{{\"type\":\"opened\",\"context\":{}}}", ctx_id);
        self.rearm(ctx_id);
        Ok(())
    }

    fn close(&mut self, ctx_id: u32) {
        if let Some(client) = self.clients.remove(&ctx_id) {
            for fd in client.eventfds.values().chain([&client.socket, &client.channel]) {
                let _ = sys::epoll_change(&self.ep, EPOLL_CTL_DEL, fd, 0);
            }
            self.send(ctx_id, 0, command(CMD_DESTROY, &[], &[]));
            self.crossing.exported.lock().unwrap().retain(|(owner, _), _| *owner != ctx_id);
            println!("{{\"type\":\"closed\",\"context\":{}}}", ctx_id);
        }
    }

    /// Re-arms a context's worker.
    fn rearm(&mut self, ctx_id: u32) {
        if let Some(client) = self.clients.get_mut(&ctx_id) {
            client.fence_id += 1;
            let fence_id = client.fence_id;
            self.send(ctx_id, fence_id, command(CMD_POLL, &[], &[]));
        }
    }

    fn interrupt(&mut self) {
        let _ = sys::read_u64(&self.mem.irq_evt);
        while let Some(used) = self.mem.pop_used() {
            if used.fence_id != 0 {
                self.serve(used.ctx_id);
            }
        }
        let contexts: Vec<u32> = self.clients.keys().copied().collect();
        for ctx_id in contexts {
            self.deliver(ctx_id);
        }
    }

    fn serve(&mut self, ctx_id: u32) {
        let message: [u8; RING_BYTES] = match self.clients.get(&ctx_id) {
            Some(client) => client.ring.copy(),
            None => return,
        };
        self.rearm(ctx_id);
        match message[0] {
            CMD_RECEIVE => self.received(ctx_id, &message),
            CMD_READ => self.woken(ctx_id, word(&message, 8), &message[READ_HEADER..READ_HEADER + 8]),
            _ => {}
        }
    }

    /// The server has woken a stream: its client gets as many wakeups.
    fn woken(&self, ctx_id: u32, id: u32, value: &[u8]) {
        if let Some(file) = self.clients.get(&ctx_id).and_then(|client| client.eventfds.get(&id)) {
            let _ = sys::write_bytes(file, value);
        }
    }

    /// A client has signalled an eventfd.
    fn completed(&self, ctx_id: u32, id: u32) {
        let file = self.clients.get(&ctx_id).and_then(|client| client.eventfds.get(&id));
        if let Some(value) = file.and_then(|file| sys::read_u64(file).ok()) {
            self.send(ctx_id, 0, write_command(id, false, &value.to_ne_bytes()));
        }
    }

    /// A client has sent bytes and perhaps descriptors: on to the server, as they are.
    fn sent(&mut self, ctx_id: u32) {
        let mut bytes = [0; 16384];
        let received = self.clients.get(&ctx_id).map(|client| sys::receive_fds(&client.socket, &mut bytes));
        match received {
            Some(Ok((len, files))) if len > 0 => {
                self.token = self.token.wrapping_add(1);
                self.crossing.sent.lock().unwrap().insert(self.token, files);
                self.send(ctx_id, 0, command(CMD_SEND, &[self.token], &bytes[..len]));
            }
            _ => self.close(ctx_id),
        }
    }

    /// The server has sent something.
    fn received(&mut self, ctx_id: u32, message: &[u8]) {
        let (n, len) = (word(message, 8) as usize, word(message, 12) as usize);
        let carried =
            |i| Carried { id: word(message, 16 + 4 * i), kind: word(message, RECEIVE_TYPES + 4 * i) };
        let client = match self.clients.get_mut(&ctx_id) {
            Some(client) => client,
            None => return,
        };
        client.incoming.feed(&message[RECEIVE_DATA..RECEIVE_DATA + len], (0..n).map(carried));
        let mut commands = Vec::new();
        while let Some(message) = client.incoming.next() {
            for (index, file) in message.files.iter().enumerate() {
                if file.kind != TYPE_EVENT {
                    commands.push(command(CMD_EXPORT, &[file.id], &[]));
                    continue;
                }
                if let Ok(own) = sys::event(true) {
                    if message.wake == Some(index) {
                        commands.push(command(CMD_READ_EVENTFD_NEW, &[file.id, 0], &[]));
                    } else {
                        let _ =
                            sys::epoll_control(&self.ep, EPOLL_CTL_ADD, &own, EPOLLIN, key(ctx_id, file.id));
                    }
                    client.eventfds.insert(file.id, own);
                }
            }
            client.waiting.push_back(message);
        }
        for bytes in commands {
            self.send(ctx_id, 0, bytes);
        }
    }

    /// Hands over, in order, what has its memory.
    fn deliver(&mut self, ctx_id: u32) {
        let client = match self.clients.get_mut(&ctx_id) {
            Some(client) => client,
            None => return,
        };
        while let Some(message) = client.waiting.front() {
            let mut exported = self.crossing.exported.lock().unwrap();
            let missing = |f: &&Carried| f.kind != TYPE_EVENT && !exported.contains_key(&(ctx_id, f.id));
            if message.files.iter().any(|f| missing(&f)) {
                return;
            }
            let memory: BTreeMap<u32, Arc<OwnedFd>> = message
                .files
                .iter()
                .filter_map(|f| Some((f.id, exported.remove(&(ctx_id, f.id))?)))
                .collect();
            drop(exported);
            let fd = |f: &Carried| match memory.get(&f.id) {
                Some(file) => file.as_raw_fd(),
                None => client.eventfds[&f.id].as_raw_fd(),
            };
            let fds: Vec<_> = message.files.iter().map(fd).collect();
            send_all(&client.socket, &message.bytes, &fds);
            client.waiting.pop_front();
        }
    }
}
