// SPDX-License-Identifier: Apache-2.0
//! The same device between a real PipeWire and its clients: `minivmm pipewire`.
//!
//! Clients connect to a socket of ours; each gets a context with a channel to the server. What a
//! guest does (bridge.rs) is done by the thread "fc_vcpu 0". Owns the threads, what G executes for
//! the bridge beside the device's own commands, and the faults that are asked for on stdin.

use crate::args::{WorkerOrder, WritePath};
use crate::bridge::{Bridge, Crossing};
use crate::fence::FenceHandler;
use crate::gpu::GpuWorker;
use crate::guest::command;
use crate::hooks::Hooks;
use crate::process::{self, spawn};
use crate::queue::{Descriptor, GuestMemory};
use crate::shared::word;
use crate::sys;
use crate::table::CrossDomainContext;
use crate::vmm::{build_context, ContextParts};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::os::unix::io::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{channel, Sender};
use std::sync::Arc;

pub const COMMAND: &str = "pipewire";
const USAGE: &str = "minivmm pipewire --server SOCKET --listen SOCKET: between a PipeWire and its clients
  --write-path locked|dup|refcount|task   how G writes eventfds (locked)
  --worker first|fair                     which ready event W serves (first)
stdin: `hold g CONTEXT MS` and `hold w CONTEXT MS` keep a context's item_state locked, by G or by W;
`compute MS` has a program of the guest compute on vCPU 1";

/// Bytes before a SEND's data: header 8, token.
pub const SEND_HEADER: usize = 12;
pub const CMD_SEND: u8 = 4;
/// Beyond the device's own commands.
pub const CMD_CREATE: u8 = 64;
pub const CMD_DESTROY: u8 = 65;
pub const CMD_EXPORT: u8 = 66;
const CMD_HOLD: u8 = 67;

/// Context << 32 | milliseconds for which W shall hold its item_state at its next event.
static W_HOLDS: AtomicU64 = AtomicU64::new(0);

struct Options {
    server: String,
    listen: String,
    write_path: WritePath,
    order: WorkerOrder,
}

fn parse(words: &[String]) -> Result<Options, String> {
    let (mut server, mut listen) = (None, None);
    let (mut write_path, mut order) = (WritePath::Locked, WorkerOrder::First);
    for pair in words.chunks(2) {
        let value = pair.get(1).ok_or_else(|| format!("{} needs a value", pair[0]))?;
        match pair[0].as_str() {
            "--server" => server = Some(value.clone()),
            "--listen" => listen = Some(value.clone()),
            "--write-path" => write_path = value.parse()?,
            "--worker" => order = value.parse()?,
            other => return Err(format!("unknown option {}", other)),
        }
    }
    match (server, listen) {
        (Some(server), Some(listen)) => Ok(Options { server, listen, write_path, order }),
        _ => Err("--server and --listen are needed".into()),
    }
}

/// Runs until stdin is closed or a signal asks to end; the exit code.
pub fn main(words: &[String]) -> i32 {
    let options = match parse(words) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("minivmm: {}\n{}", message, USAGE);
            return 2;
        }
    };
    match run(options) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("minivmm: {}", error);
            1
        }
    }
}

fn run(options: Options) -> std::io::Result<()> {
    process::calibrate();
    let signals = process::signals()?;
    let mem = Arc::new(GuestMemory::new()?);
    let crossing = Arc::new(Crossing::default());
    let handler = FenceHandler::new(&mem);
    let bridge = Bridge::new(mem.clone(), crossing.clone(), options.server, &options.listen)?;
    let hooks = Hooks { under_lock, ..Hooks::default() };
    let maker =
        Maker { write_path: options.write_path, order: options.order, hooks, handler: handler.clone() };
    let gpu = GpuWorker {
        mem: mem.clone(),
        fence_handler: handler,
        contexts: BTreeMap::new(),
        extra: Box::new(move |head, contexts| execute(head, contexts, &crossing, &maker)),
        gpu_fences: channel().0,
        gpu_device: sys::event(false)?,
        hooks,
    };
    spawn("gpu worker", move || gpu.run());
    spawn("fc_vcpu 0", move || bridge.run());
    let (programs, inbox) = channel::<u64>();
    spawn("fc_vcpu 1", move || {
        while let Ok(ms) = inbox.recv() {
            process::work(ms * 1_000_000);
        }
    });
    println!("{{\"type\":\"ready\",\"vmm\":{}}}", std::process::id());
    let stdin = std::io::stdin();
    loop {
        let ready = sys::readable(&[signals.as_raw_fd(), 0], -1);
        if ready[0] && process::asked_to_end(&signals) {
            return Ok(());
        }
        let mut line = String::new();
        if ready[1] && stdin.lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        obey(&line, &mem, &programs);
    }
}

fn obey(line: &str, mem: &GuestMemory, programs: &Sender<u64>) {
    let words: Vec<&str> = line.split_whitespace().collect();
    if let ["compute", ms] = words[..] {
        let _ = programs.send(ms.parse().unwrap_or(0));
    } else if let ["hold", who, context, ms] = words[..] {
        if let (Ok(context), Ok(ms)) = (context.parse::<u32>(), ms.parse::<u32>()) {
            if who == "w" {
                W_HOLDS.store((context as u64) << 32 | ms as u64, Ordering::Release);
            } else {
                mem.push(context, 0, command(CMD_HOLD, &[ms], &[]));
                mem.kick();
            }
        }
    }
}

/// W, under item_state, before the fence.
fn under_lock(context: u32, _item: u32) {
    let wanted = W_HOLDS.load(Ordering::Acquire);
    if wanted >> 32 == context as u64
        && W_HOLDS.compare_exchange(wanted, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    {
        sys::sleep_ns((wanted & 0xffff_ffff) * 1_000_000);
    }
}

/// How contexts are made.
struct Maker {
    write_path: WritePath,
    order: WorkerOrder,
    hooks: Hooks,
    handler: FenceHandler,
}

/// G: the commands of the bridge; true if it was one.
fn execute(
    head: &Descriptor,
    contexts: &mut BTreeMap<u32, CrossDomainContext>,
    crossing: &Crossing,
    maker: &Maker,
) -> bool {
    let ctx_id = head.ctx_id;
    if head.bytes[0] == CMD_CREATE {
        let (channel, ring) = crossing.created.lock().unwrap().remove(&ctx_id).expect("put there before");
        let parts = ContextParts {
            ctx_id,
            channel,
            ring,
            write_path: maker.write_path,
            order: maker.order,
            hooks: maker.hooks,
            export_table: None,
            fence_handler: maker.handler.clone(),
            on_registered: Box::new(|| {}),
            read: Box::new(|_| None),
            written: Box::new(|_| None),
        };
        if let Ok((context, worker)) = build_context(parts) {
            contexts.insert(ctx_id, context);
            spawn("cross domain", move || worker.run());
        }
        return true;
    }
    let context = match contexts.get_mut(&ctx_id) {
        Some(context) => context,
        None => return false,
    };
    match head.bytes[0] {
        CMD_SEND => {
            let files = crossing.sent.lock().unwrap().remove(&word(&head.bytes, 8)).unwrap_or_default();
            let raw: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
            send_all(&context.state.channel, &head.bytes[SEND_HEADER..], &raw);
        }
        CMD_EXPORT => {
            let id = word(&head.bytes, 8);
            let item = context.item_state.lock().unwrap().table.remove(&id);
            if let Some(item) = item {
                crossing.exported.lock().unwrap().insert((ctx_id, id), item.file().clone());
            }
        }
        CMD_HOLD => {
            let items = context.item_state.lock().unwrap();
            sys::sleep_ns(word(&head.bytes, 8) as u64 * 1_000_000);
            drop(items);
        }
        CMD_DESTROY => {
            context.state.end(&context.resample_evt);
            contexts.remove(&ctx_id);
        }
        _ => return false,
    }
    true
}

/// Sends all bytes, the descriptors with the first of them; the peer may have gone.
pub fn send_all(socket: &std::os::unix::io::OwnedFd, bytes: &[u8], fds: &[std::os::unix::io::RawFd]) {
    let mut sent = sys::send_fds(socket, bytes, fds).unwrap_or(bytes.len());
    while sent < bytes.len() {
        sent += sys::write_bytes(socket, &bytes[sent..]).unwrap_or(bytes.len());
    }
}
