// SPDX-License-Identifier: Apache-2.0
//! The VMM's process: devices, contexts, threads, the ready line and the end of the run.

use crate::actors;
use crate::args::{Args, Load, WorkerOrder, WritePath};
use crate::churn::LoadFds;
use crate::fault;
use crate::fence::{self, FenceHandler};
use crate::gpu::GpuWorker;
use crate::guest::{self, Bridge};
use crate::hooks::Hooks;
use crate::inject::{self, Kind};
use crate::load;
use crate::negative;
use crate::process::{self, spawn};
use crate::queue::{GuestMemory, RingPage};
use crate::server::{START, STOP};
use crate::shared::Shared;
use crate::sys;
use crate::table::{new_item_state, CrossDomainContext, ExportTable, StampOf, Style};
use crate::worker::{ContextResources, CrossDomainState, CrossDomainWorker, CHANNEL_ID, RESAMPLE_ID};
use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex};

/// The run may last this much longer than asked before it is ended by force.
const PATIENCE_NS: u64 = 6_000_000_000;

pub struct Vmm {
    pub args: Args,
    pub control: OwnedFd,
    pub channels: Vec<OwnedFd>,
    pub shared: &'static Shared,
    pub fds: Arc<LoadFds>,
    pub hooks: Hooks,
    pub signals: OwnedFd,
    /// Of the VMMs that share the audio server; 0 is the one that is waited for.
    pub index: usize,
    pub others: Vec<i32>,
    /// pid as seen from outside; inside a pid namespace it is told by the launcher.
    pub pid: i32,
    pub audio: i32,
}

fn hexadecimal(words: &[usize]) -> String {
    words.iter().map(|w| format!("\"{:#x}\"", w)).collect::<Vec<_>>().join(",")
}

/// The address of a mutex's futex word: the only u32 in it that locking changes from 0 to 1.
/// Call it before the mutex is shared.
fn lock_word<T>(mutex: &Mutex<T>) -> usize {
    let base = mutex as *const Mutex<T> as *const u32;
    let n = std::mem::size_of::<Mutex<T>>() / 4;
    // SAFETY: volatile reads inside one object that no other thread knows yet.
    let read = || (0..n).map(|i| unsafe { std::ptr::read_volatile(base.add(i)) }).collect::<Vec<u32>>();
    let before = read();
    let guard = mutex.lock().unwrap();
    let during = read();
    drop(guard);
    let place = (0..n).find(|&i| before[i] == 0 && during[i] == 1);
    place.map_or(0, |i| base as usize + 4 * i)
}

struct Words {
    item_state: Vec<usize>,
    context_resources: Vec<usize>,
    jobs: Vec<usize>,
}

struct Machine {
    words: Words,
    contexts: BTreeMap<u32, CrossDomainContext>,
    workers: Vec<CrossDomainWorker>,
    rings: Vec<Arc<RingPage>>,
}

fn build_contexts(vmm: &mut Vmm, handler: &FenceHandler, exports: &ExportTable) -> std::io::Result<Machine> {
    let nested = vmm.args.load == Load::Nested
        || inject::uses(&vmm.args, Kind::Nested)
        || inject::uses(&vmm.args, Kind::NestedTwo);
    let words = Words { item_state: Vec::new(), context_resources: Vec::new(), jobs: Vec::new() };
    let mut machine = Machine { words, contexts: BTreeMap::new(), workers: Vec::new(), rings: Vec::new() };
    for (i, channel) in std::mem::take(&mut vmm.channels).into_iter().enumerate() {
        let ring = Arc::new(RingPage::new());
        let (ctx_id, shared) = (i as u32 + 1, vmm.shared);
        let on_registered = move || {
            shared.registered.fetch_add(1, Ordering::AcqRel);
        };
        let (context, worker) = build_context(ContextParts {
            ctx_id,
            channel,
            ring: ring.clone(),
            write_path: vmm.args.write_path,
            order: vmm.args.worker,
            hooks: vmm.hooks,
            export_table: if nested { Some(exports.clone()) } else { None },
            fence_handler: handler.clone(),
            on_registered: Box::new(on_registered),
            read: Box::new(move |item| {
                Some(&shared.read[inject::stream_of(&inject::state().wake_item, ctx_id, item)?])
            }),
            written: Box::new(move |item| {
                Some(&shared.written[inject::stream_of(&inject::state().completion_item, ctx_id, item)?])
            }),
        })?;
        machine.words.item_state.push(lock_word(&context.item_state));
        machine.words.context_resources.push(lock_word(&context.state.context_resources));
        machine.words.jobs.push(lock_word(&context.state.jobs));
        machine.contexts.insert(worker.ctx_id, context);
        machine.workers.push(worker);
        machine.rings.push(ring);
    }
    Ok(machine)
}

/// What a cross-domain context is made of.
pub struct ContextParts {
    pub ctx_id: u32,
    pub channel: OwnedFd,
    pub ring: Arc<RingPage>,
    pub write_path: WritePath,
    pub order: WorkerOrder,
    pub hooks: Hooks,
    pub export_table: Option<ExportTable>,
    pub fence_handler: FenceHandler,
    pub on_registered: Box<dyn Fn() + Send>,
    pub read: StampOf,
    pub written: StampOf,
}

/// A context and its worker, whose thread is not started yet.
pub fn build_context(parts: ContextParts) -> std::io::Result<(CrossDomainContext, CrossDomainWorker)> {
    let resources = Arc::new(Mutex::new(ContextResources { rings: vec![parts.ring] }));
    let item_state = new_item_state();
    let state = Arc::new(CrossDomainState {
        context_resources: resources,
        jobs: Mutex::new(Some(VecDeque::new())),
        jobs_cvar: Condvar::new(),
        channel: parts.channel,
        style: Style { krun: matches!(parts.write_path, WritePath::Dup | WritePath::Task) },
    });
    let (wait_ctx, resample_evt) = (Arc::new(sys::epoll()?), Arc::new(sys::event(false)?));
    sys::epoll_change(&wait_ctx, sys::EPOLL_CTL_ADD, &state.channel, CHANNEL_ID)?;
    sys::epoll_change(&wait_ctx, sys::EPOLL_CTL_ADD, &*resample_evt, RESAMPLE_ID)?;
    let worker = CrossDomainWorker {
        ctx_id: parts.ctx_id,
        order: parts.order,
        wait_ctx: wait_ctx.clone(),
        resample_evt: resample_evt.clone(),
        item_state: item_state.clone(),
        export_table: parts.export_table,
        state: state.clone(),
        fence_handler: parts.fence_handler,
        hooks: parts.hooks,
        on_registered: parts.on_registered,
        read: parts.read,
        served: BTreeMap::new(),
        turn: 0,
        dead: false,
    };
    let context = CrossDomainContext::new(
        parts.write_path,
        item_state,
        state,
        wait_ctx,
        resample_evt,
        parts.written,
        parts.hooks.allocating,
    );
    Ok((context, worker))
}

/// Starts every thread of the VMM; the addresses of its lock words as JSON.
fn start(vmm: &mut Vmm) -> std::io::Result<String> {
    let mem = Arc::new(GuestMemory::new()?);
    let handler = FenceHandler::new(&mem);
    let exports: ExportTable = Arc::new(Mutex::new(BTreeMap::new()));
    let shared_words =
        [lock_word(&handler.control_queue), lock_word(&handler.fence_state), lock_word(&handler.intc)];
    let export_word = lock_word(&exports);
    let Machine { words, contexts, workers, rings } = build_contexts(vmm, &handler, &exports)?;
    let locks = format!(
        "{{\"item_state\":[{}],\"context_resources\":[{}],\"jobs\":[{}],\"control_queue\":\"{:#x}\",\"fence_state\":\"{:#x}\",\"intc\":\"{:#x}\",\"export_table\":\"{:#x}\"}}",
        hexadecimal(&words.item_state), hexadecimal(&words.context_resources), hexadecimal(&words.jobs),
        shared_words[0], shared_words[1], shared_words[2], export_word
    );

    let placed = vmm.args.clone();
    let place = move |role| load::place(&placed, Some(role));
    let (gpu_fences, pending) = channel();
    let (fence_handler, shared) = (handler.clone(), vmm.shared);
    negative::in_vmm(&vmm.args, shared);
    if fault::KINDS.iter().any(|&kind| inject::uses(&vmm.args, kind)) {
        fault::start();
    }
    let acts = !vmm.args.inject.is_empty() && vmm.index == 0;
    if acts {
        let (args, handler, exports) = (vmm.args.clone(), handler.clone(), exports.clone());
        let gralloc = Arc::new(Mutex::new(0));
        let (importer, further) = (args.clone(), gralloc.clone());
        spawn("virgl fence 2", move || actors::fence_thread(args, shared, handler, exports, gralloc));
        spawn("importer", move || actors::importer(importer, shared, further));
    }
    spawn("virgl fence", move || fence::run(pending, fence_handler));
    let (gpu_device, hooks) = (sys::event(false)?, vmm.hooks);
    let gpu = GpuWorker {
        mem: mem.clone(),
        fence_handler: handler,
        contexts,
        extra: Box::new(|_, _| false),
        gpu_fences,
        gpu_device,
        hooks,
    };
    let at = place.clone();
    spawn("gpu worker", move || {
        at('g');
        gpu.run()
    });
    for worker in workers {
        let at = place.clone();
        spawn("cross domain", move || {
            at('w');
            worker.run()
        });
    }
    if vmm.args.load == Load::Nested {
        let fds = vmm.fds.clone();
        spawn("fs worker", move || load::fs_worker(exports, fds));
    }
    let memory = mem.clone();
    let bridge = Bridge::new(mem.clone(), rings, vmm.shared, &vmm.args, hooks);
    let at = place.clone();
    spawn("fc_vcpu 0", move || {
        at('v');
        bridge.run()
    });
    let (args, shared) = (vmm.args.clone(), vmm.shared);
    spawn("fc_vcpu 1", move || {
        place('a');
        guest::applications(mem, args, shared)
    });
    for i in 2..vmm.args.vcpus {
        let (args, mem) = (vmm.args.clone(), memory.clone());
        let busy = i == 2 && acts;
        spawn(&format!("fc_vcpu {}", i), move || match busy {
            true => actors::vcpu(args, shared, mem),
            false => guest::idle(i),
        });
    }
    Ok(locks)
}

/// Waits, bounded, until W watches every sustained stream.
fn await_streams(vmm: &Vmm) -> bool {
    let end = sys::now_ns() + PATIENCE_NS;
    while (vmm.shared.registered.load(Ordering::Acquire) as usize) < vmm.args.streams {
        if sys::now_ns() > end {
            return false;
        }
        sys::sleep_ns(1_000_000);
    }
    true
}

#[derive(PartialEq)]
enum Input {
    Line,
    Closed,
    Signal,
}

/// Blocks for a line on stdin, its end, or a signal that asks to end.
fn await_line(vmm: &Vmm) -> Input {
    let mut byte = [0; 1];
    loop {
        let ready = sys::readable(&[vmm.signals.as_raw_fd(), 0], -1);
        if ready[0] && process::asked_to_end(&vmm.signals) {
            return Input::Signal;
        }
        if ready[1] {
            match sys::read_stdin(&mut byte) {
                0 => return Input::Closed,
                _ if byte[0] == b'\n' => return Input::Line,
                _ => {}
            }
        }
    }
}

/// A VMM beside the first: it runs until its parent ends it.
pub fn run_beside(mut vmm: Vmm) -> std::io::Result<()> {
    start(&mut vmm)?;
    loop {
        sys::readable(&[vmm.signals.as_raw_fd()], -1);
        if process::asked_to_end(&vmm.signals) {
            return Ok(());
        }
    }
}

/// Runs the VMM; its exit code.
pub fn run(mut vmm: Vmm) -> std::io::Result<i32> {
    let locks = start(&mut vmm)?;
    if !await_streams(&vmm) {
        eprintln!("minivmm: the streams were not set up in time");
        return Ok(1);
    }
    println!(
        "{{\"type\":\"ready\",\"vmm\":{},\"others\":{:?},\"audio\":{},\"write_path\":\"{}\",\"worker\":\"{}\",\"load\":\"{}\",\"topology\":\"{}\",\"timer\":\"{}\",\"period_ns\":{},\"locks\":{}}}",
        vmm.pid, vmm.others, vmm.audio, vmm.args.write_path.text(), vmm.args.worker.text(), vmm.args.load.text(),
        vmm.args.topology.text(), vmm.args.timer.text(), vmm.args.period_ns(), locks
    );
    std::io::stdout().flush()?;
    if vmm.args.hold_start && await_line(&vmm) == Input::Signal {
        return Ok(0);
    }
    sys::write_bytes(&vmm.control, &[START])?;
    let limit = (vmm.args.duration_s * 1e9) as u64;
    let mut end = if limit > 0 { sys::now_ns() + limit + PATIENCE_NS } else { u64::MAX };
    let mut stopped = false;
    loop {
        let ready = sys::readable(&[vmm.signals.as_raw_fd(), vmm.control.as_raw_fd()], 500);
        if ready[1] {
            break; // counted and printed, or the server died
        }
        if ready[0] && process::asked_to_end(&vmm.signals) && !stopped {
            stopped = true;
            end = sys::now_ns() + PATIENCE_NS;
            sys::write_bytes(&vmm.control, &[STOP])?;
        }
        if vmm.args.linger && sys::hung_up(0) {
            return Ok(1); // who started it was killed: nobody reads what was counted
        }
        if sys::now_ns() > end {
            eprintln!("minivmm: the audio server did not end in time");
            return Ok(1);
        }
    }
    let counted = sys::read_bytes(&vmm.control, &mut [0; 1]).unwrap_or(0) == 1;
    if counted && vmm.args.linger && !stopped {
        while await_line(&vmm) == Input::Line {}
    }
    Ok(if counted { 0 } else { 1 })
}
