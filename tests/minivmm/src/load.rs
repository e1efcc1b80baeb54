// SPDX-License-Identifier: Apache-2.0
//! The loads that live outside the audio server: other processes' CPU use, and the VMM's
//! file system worker.

use crate::args::{Args, Load};
use crate::churn::LoadFds;
use crate::inject::Kind;
use crate::process::{self, Rng};
use crate::shared::Shared;
use crate::sys;
use crate::table::ExportTable;
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// The CPU that the load preempt-holder keeps busy and W is bound to; the rest run elsewhere.
pub fn contested_cpu() -> usize {
    *process::cpus().last().unwrap_or(&0)
}

/// Whose thread an injection keeps off the CPU: 'w', 'g', 'v' or 'd'; of one run, one.
pub fn victim(args: &Args) -> Option<char> {
    let of = |kind| match kind {
        Kind::OffW | Kind::OffHolder | Kind::HogsW => Some('w'),
        Kind::OffG | Kind::OffGHolder | Kind::HogsG => Some('g'),
        Kind::OffVcpu | Kind::HogsVcpu => Some('v'),
        Kind::OffD => Some('d'),
        _ => None,
    };
    args.inject.iter().flat_map(|w| w.kinds()).find_map(of)
}

/// Binds a thread of that role: the victim to the contested CPU, the VMM's others to the first.
/// Under preempt-holder W is the victim, so that everybody else could go on.
pub fn place(args: &Args, role: Option<char>) {
    let victim = if args.load == Load::PreemptHolder { Some('w') } else { victim(args) };
    if victim.is_none() || process::cpus().len() < 2 {
        return;
    }
    if role == victim {
        process::pin(contested_cpu());
    } else if role != Some('d') {
        process::pin(process::cpus()[0]);
    }
}

/// True if the load needs a process of its own.
pub fn has_process(args: &Args) -> bool {
    matches!(args.load, Load::Hogs | Load::PreemptHolder)
}

/// The load's process; never returns.
pub fn run_process(args: &Args, shared: &'static Shared, fds: &LoadFds) -> ! {
    process::sharp_timers();
    match args.load {
        Load::Hogs => hogs(args, shared),
        _ => endless_client(args, shared, fds),
    }
}

/// Bursts of many more runnable threads than CPUs.
fn hogs(args: &Args, shared: &'static Shared) -> ! {
    let count = 12 * process::cpus().len();
    let mut rng = Rng::new(args.seed, 5);
    let until = Arc::new(std::sync::atomic::AtomicU64::new(0));
    for i in 0..count {
        let until = until.clone();
        process::spawn(&format!("hog {}", i), move || {
            process::nice(-5);
            loop {
                while sys::now_ns() < until.load(Ordering::Acquire) {
                    process::work(100_000);
                }
                sys::sleep_ns(1_000_000);
            }
        });
    }
    loop {
        shared.cycle_ahead(0, args.period_ns());
        sys::sleep_ns(rng.within(4e8, 8e8) as u64);
        let burst = rng.within(5e7, 1.5e8) as u64;
        until.store(sys::now_ns() + burst, Ordering::Release);
        sys::sleep_ns(burst);
    }
}

/// A real-time client that shares a CPU with W. Its eventfd is full, so its second write sleeps
/// until W reads it: that wakes it inside W's read, under item_state, and it then computes for
/// more than a period. G could go on, were it not for the lock.
fn endless_client(args: &Args, shared: &'static Shared, fds: &LoadFds) -> ! {
    let period = args.period_ns() as f64;
    let mut rng = Rng::new(args.seed, 6);
    process::pin(contested_cpu());
    process::realtime(10);
    loop {
        sys::sleep_ns(rng.within(3e8, 6e8) as u64);
        let start = shared.cycle_ahead(500_000, args.period_ns());
        sys::sleep_until(start);
        while shared.next_start_ns.load(Ordering::Acquire) == start {
            sys::sleep_ns(20_000); // until the driver has woken its streams
        }
        let _ = sys::write_u64(&fds.endless, u64::MAX - 1);
        let _ = sys::write_u64(&fds.endless, 1);
        process::work((rng.within(1.15, 1.6) * period) as u64);
    }
}

/// The file system device's worker (load nested): holds `export_table` while it reads a slow disk.
pub fn fs_worker(exports: ExportTable, fds: Arc<LoadFds>) {
    let mut byte = [0; 1];
    while sys::read_bytes(&fds.fs.0, &mut byte).is_ok() {
        let mut table = exports.lock().unwrap();
        let _ = sys::read_bytes(&fds.fs.0, &mut byte);
        table.insert(0, byte[0] as u64);
    }
}
