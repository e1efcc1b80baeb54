// SPDX-License-Identifier: Apache-2.0
//! The injector's own threads: a fence thread, a vCPU, and a process outside the VMM.
//!
//! The process is the slow device, the CPU hog, and a client that opens streams; it is no target.

use crate::args::Args;
use crate::churn::{open_stream, LoadFds};
use crate::fence::FenceHandler;
use crate::gpu::gpu_command;
use crate::guest::{command, pipe_write};
use crate::inject::{self, slow_call, state, take, timed, Kind, Plan};
use crate::load;
use crate::process;
use crate::queue::GuestMemory;
use crate::shared::{Offer, Shared, ENDLESS, PIPE};
use crate::sys;
use crate::table::{ExportTable, CMD_CREATE_BLOB};
use crate::waits;
use std::collections::VecDeque;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};

/// How long before a cycle's start the earliest actor begins.
fn lead_ns(period_ns: u64) -> u64 {
    (period_ns / 3).min(900_000)
}

/// Waits for a plan of one of these kinds that is not the `last` one, until its lead begins.
fn await_plan(args: &Args, shared: &'static Shared, kinds: &[Kind], last: &mut u64) -> (Plan, Kind) {
    let lead = lead_ns(args.period_ns());
    loop {
        let start = shared.cycle_ahead(lead + 1_000, args.period_ns());
        sys::sleep_until(start - lead);
        if let Some((plan, kind)) = inject::peek(kinds) {
            if plan.start_ns <= start && plan.id != *last {
                *last = plan.id;
                return (plan, kind);
            }
        }
        sys::sleep_until(start);
    }
}

const FENCE_KINDS: &[Kind] = &[
    Kind::ControlQueue,
    Kind::FenceState,
    Kind::Intc,
    Kind::ControlQueueWake,
    Kind::FenceStateWake,
    Kind::IntcWake,
    Kind::Barging,
    Kind::Nested,
    Kind::NestedTwo,
];

/// A lock behind export_table: what it guards is of no matter.
pub type Gralloc = Arc<Mutex<u64>>;

/// Another user of the fence locks and of export_table: holds one over a slow call.
pub fn fence_thread(
    args: Args,
    shared: &'static Shared,
    handler: FenceHandler,
    exports: ExportTable,
    gralloc: Gralloc,
) {
    process::sharp_timers();
    let mut last = 0;
    loop {
        let (plan, kind) = await_plan(&args, shared, FENCE_KINDS, &mut last);
        if !matches!(kind, Kind::ControlQueueWake | Kind::FenceStateWake | Kind::IntcWake) {
            sys::sleep_until(plan.start_ns - lead_ns(args.period_ns()) / 4);
        }
        match kind {
            Kind::ControlQueue | Kind::ControlQueueWake => {
                let _held = handler.control_queue.lock().unwrap();
                done(&plan, kind, slow_call);
            }
            Kind::FenceState | Kind::FenceStateWake => {
                let _held = handler.fence_state.lock().unwrap();
                done(&plan, kind, slow_call);
            }
            Kind::Intc | Kind::IntcWake => {
                let _held = handler.intc.lock().unwrap();
                done(&plan, kind, slow_call);
            }
            Kind::Nested => {
                let _held = exports.lock().unwrap();
                done(&plan, kind, slow_call);
            }
            Kind::NestedTwo => {
                sys::sleep_ns(30_000); // the importer has gralloc by then
                let _held = exports.lock().unwrap();
                let _further = gralloc.lock().unwrap();
            }
            _ => done(&plan, kind, |ns| {
                // Released and taken again at once: whoever was woken finds it taken.
                let end = sys::now_ns() + ns;
                while sys::now_ns() < end {
                    let _held = handler.control_queue.lock().unwrap();
                    slow_call((ns / 8).min(end.saturating_sub(sys::now_ns())));
                }
            }),
        }
        sys::sleep_until(plan.start_ns + args.period_ns());
    }
}

/// The second hop: holds `gralloc` over a slow call, while export_table's holder waits for it.
pub fn importer(args: Args, shared: &'static Shared, gralloc: Gralloc) {
    process::sharp_timers();
    let mut last = 0;
    loop {
        let (plan, kind) = await_plan(&args, shared, &[Kind::NestedTwo], &mut last);
        sys::sleep_until(plan.start_ns - lead_ns(args.period_ns()) / 4);
        let _held = gralloc.lock().unwrap();
        done(&plan, kind, slow_call);
    }
}

/// The plan stays visible to others until it is over; then it is taken and logged.
fn done(plan: &Plan, kind: Kind, delay: impl FnOnce(u64)) {
    timed(plan, delay);
    let _ = take(&[kind], true);
}

/// An application on another vCPU: its commands keep G busy.
pub fn vcpu(args: Args, shared: &'static Shared, mem: Arc<GuestMemory>) {
    const BLOBS: &[Kind] = &[Kind::BusyBlob, Kind::ItemStateWake, Kind::OffGHolder];
    let kinds = [&[Kind::BusySyscall, Kind::BusyCpu, Kind::RearmG, Kind::BusyPipe], BLOBS].concat();
    process::sharp_timers();
    let (mut fence_id, mut last) = (1 << 32, 0);
    loop {
        let (plan, kind) = await_plan(&args, shared, &kinds, &mut last);
        if kind != Kind::RearmG {
            sys::sleep_until(plan.start_ns - lead_ns(args.period_ns()) / 4);
        }
        if BLOBS.contains(&kind) {
            mem.push(args.context_of(plan.stream) as u32 + 1, 0, command(CMD_CREATE_BLOB, &[], &[]));
            mem.kick();
            continue;
        }
        if kind == Kind::BusyPipe {
            let pipe = mem.pipe_id.load(Ordering::Acquire);
            for _ in 0..2 {
                mem.push(args.other_context() as u32 + 1, 0, pipe_write(pipe)); // the second one blocks
            }
            mem.kick();
            continue;
        }
        let us = (plan.amount_ns / 1000) as u32;
        let bytes = if kind == Kind::BusyCpu { gpu_command(0, us, 300) } else { gpu_command(us, 0, 300) };
        fence_id += 1;
        mem.push(0, fence_id, bytes);
        mem.kick();
        sys::sleep_until(plan.start_ns + args.period_ns());
    }
}

/// G, around a command of context 0 that takes more than half a millisecond.
pub fn around_command(long: bool, run: impl FnOnce()) {
    let (begin, cpu) = (sys::now_ns(), process::cpu_ns());
    run();
    if !long {
        return;
    }
    match take(&[Kind::BusySyscall, Kind::BusyCpu, Kind::RearmG], true) {
        Some((plan, Kind::BusyCpu)) => inject::log_part(&plan, begin, sys::now_ns(), process::cpu_ns() - cpu),
        Some((plan, _)) => inject::log(&plan, begin, sys::now_ns()),
        None => {}
    }
}

/// The process outside. Never returns.
pub fn run_process(args: &Args, shared: &'static Shared, fds: &LoadFds, socket: OwnedFd) -> ! {
    waits::watch();
    process::spawn("disk", || {
        process::sharp_timers();
        process::realtime(12);
        let mut request = [0; 16];
        while let Ok(16) = sys::read_bytes(&inject::fds().ask.0, &mut request) {
            let mut ns = [0; 8];
            ns.copy_from_slice(&request[..8]);
            sys::sleep_ns(u64::from_ne_bytes(ns));
            let _ = sys::write_bytes(&inject::fds().answer.1, &[1]);
        }
    });
    if inject::uses(args, Kind::OffD) {
        process::spawn("client", || {
            process::pin(load::contested_cpu());
            process::realtime(30);
            while sys::read_u64(&inject::fds().client).is_ok() {
                if let Some((plan, _)) = take(&[Kind::OffD], false) {
                    timed(&plan, process::work);
                }
            }
        });
    }
    let offer = |kind| Offer { kind, stream: 0, target: 0, group: 0 }.encode();
    let _ = sys::send_fds(&socket, &offer(ENDLESS), &[fds.endless.as_raw_fd()]);
    if inject::uses(args, Kind::BusyPipe) {
        let _ = sys::send_fds(&socket, &offer(PIPE), &[inject::fds().pipe.1.as_raw_fd()]);
    }
    let hogs = Hogs::start();
    process::sharp_timers();
    if load::victim(args).is_some() {
        process::pin(load::contested_cpu());
    }
    process::realtime(15);
    hand(args, shared, fds, socket, &hogs)
}

/// Many threads of the fair class at the highest priority, on the contested CPU.
struct Hogs {
    until_ns: Arc<(Mutex<u64>, Condvar)>,
}

impl Hogs {
    const COUNT: usize = 10;

    fn start() -> Hogs {
        let until_ns = Arc::new((Mutex::new(0), Condvar::new()));
        for i in 0..Hogs::COUNT {
            let until_ns = until_ns.clone();
            process::spawn(&format!("hog {}", i), move || {
                process::pin(load::contested_cpu());
                process::nice(-20);
                let mut done_ns = 0;
                loop {
                    let mut end_ns = until_ns.0.lock().unwrap();
                    while *end_ns <= done_ns {
                        end_ns = until_ns.1.wait(end_ns).unwrap();
                    }
                    done_ns = *end_ns;
                    drop(end_ns);
                    while sys::now_ns() < done_ns {
                        process::work(50_000);
                    }
                }
            });
        }
        Hogs { until_ns }
    }

    fn run_until(&self, end_ns: u64) {
        *self.until_ns.0.lock().unwrap() = end_ns;
        self.until_ns.1.notify_all();
    }
}

fn hand(args: &Args, shared: &'static Shared, fds: &LoadFds, socket: OwnedFd, hogs: &Hogs) -> ! {
    const KINDS: &[Kind] = &[
        Kind::ControlQueueWake,
        Kind::FenceStateWake,
        Kind::IntcWake,
        Kind::ItemState,
        Kind::RearmGuest,
        Kind::RearmG,
        Kind::OffW,
        Kind::OffG,
        Kind::OffVcpu,
        Kind::OffHolder,
        Kind::OffGHolder,
        Kind::HogsW,
        Kind::HogsG,
        Kind::HogsVcpu,
        Kind::HostRead,
        Kind::BusyPipe,
        Kind::Serialised,
        Kind::Nested,
        Kind::NestedTwo,
    ];
    let lead = lead_ns(args.period_ns());
    let (mut alive, mut last) = (VecDeque::new(), 0);
    loop {
        let (plan, kind) = await_plan(args, shared, KINDS, &mut last);
        match kind {
            Kind::OffW | Kind::OffG | Kind::OffVcpu => {
                sys::sleep_until(plan.start_ns - 50_000);
                done(&plan, kind, process::work);
            }
            Kind::HogsW | Kind::HogsG | Kind::HogsVcpu => {
                sys::sleep_until(plan.start_ns - 50_000);
                done(&plan, kind, |ns| {
                    let end = sys::now_ns() + ns;
                    hogs.run_until(end);
                    sys::sleep_until(end);
                });
            }
            Kind::HostRead => {
                after_wake(&plan, shared);
                let _ = sys::write_u64(&inject::fds().client, 1); // D's other source
            }
            Kind::BusyPipe => {
                sys::sleep_until(plan.start_ns - lead / 4);
                done(&plan, kind, |ns| {
                    sys::sleep_ns(ns);
                    let _ = sys::read_bytes(&inject::fds().pipe.0, &mut [0; 4096]);
                });
                let _ = sys::read_bytes(&inject::fds().pipe.0, &mut [0; 4096]);
            }
            Kind::OffHolder => {
                after_wake(&plan, shared);
                let _ = sys::write_u64(&fds.endless, u64::MAX - 1);
                let _ = sys::write_u64(&fds.endless, 1); // sleeps until W reads it under item_state
                done(&plan, kind, process::work);
            }
            Kind::OffGHolder => {
                let allocator = &inject::fds().allocator;
                if process::readable_within(allocator, args.period_ns()) {
                    let _ = sys::read_u64(allocator);
                    done(&plan, kind, process::work);
                }
            }
            Kind::ItemState => {
                after_wake(&plan, shared);
                let _ = sys::write_u64(&fds.endless, 1);
            }
            Kind::Nested | Kind::NestedTwo => {
                after_wake(&plan, shared);
                alive.extend(open_stream(&socket).ok());
            }
            Kind::Serialised => {
                sys::sleep_until(plan.start_ns - lead / 4);
                let count = (plan.amount_ns / inject::turn_ns(args)).max(2);
                state().burst_begin_ns.store(sys::now_ns(), Ordering::Release);
                state().burst.store(count as i64, Ordering::Release);
                for _ in 0..count {
                    alive.extend(open_stream(&socket).ok());
                }
            }
            _ => {
                sys::sleep_until(plan.start_ns - lead * 3 / 4);
                let _ = sys::write_u64(&fds.endless, 1);
            }
        }
        sys::sleep_until(plan.start_ns + args.period_ns());
        while alive.len() > 300 {
            alive.pop_front();
        }
    }
}

/// Until D has woken its streams in the plan's cycle.
fn after_wake(plan: &Plan, shared: &'static Shared) {
    sys::sleep_until(plan.start_ns);
    while shared.next_start_ns.load(Ordering::Acquire) == plan.start_ns {
        sys::sleep_ns(20_000);
    }
}
