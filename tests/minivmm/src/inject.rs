// SPDX-License-Identifier: Apache-2.0
//! The injector: which cycle is delayed by what, and the log of what was really done.
//!
//! The data loop publishes one plan at a time in shared memory, a period ahead, after at least
//! eight on-time cycles. Whoever is to be late takes it at a hook, or a thread of actors.rs does.
//! Nothing here makes a system call at a hook but what the delay itself is made of.

use crate::args::Args;
use crate::process::{self, Rng};
use crate::shared::MAX_STREAMS;
use crate::sys;
use crate::waits::Waits;
use std::io::{BufWriter, Write};
use std::os::unix::io::OwnedFd;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// On-time cycles before a plan; up to as many again are added by chance.
const SPACING: u64 = 8;
const ENTRIES: usize = 8192;
const NONE: u32 = u32::MAX;
/// About what W's turn for a message takes where it need not wait for a CPU: its own and G's work, and half of
/// the guest's latency. Not measured as it goes, so that runs of the same seed have the same bursts.
pub fn turn_ns(args: &Args) -> u64 {
    100_000 + (args.guest_us.0 + args.guest_us.1) as u64 * 250
}

macro_rules! kinds {
    ($($name:ident = $text:literal, $cause:literal, $leg:literal, $locks:literal;)*) => {
        /// What is done to a cycle. Text, the cause it must be named by, the leg, the locks concerned.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Kind { $($name),* }
        pub const KINDS: &[(Kind, &str, &str, &str, &str)] =
            &[$((Kind::$name, $text, $cause, $leg, $locks)),*];
    };
}

kinds! {
    ControlQueue = "lock.control_queue", "lock", "completion", "control_queue";
    FenceState = "lock.fence_state", "lock", "completion", "fence_state,control_queue";
    Intc = "lock.intc", "lock", "completion", "intc,fence_state,control_queue";
    ControlQueueWake = "lock.control_queue.wake", "lock", "wake", "control_queue";
    FenceStateWake = "lock.fence_state.wake", "lock", "wake", "fence_state,control_queue";
    IntcWake = "lock.intc.wake", "lock", "wake", "intc,fence_state,control_queue";
    ItemState = "lock.item_state", "lock", "completion", "item_state";
    ItemStateWake = "lock.item_state.wake", "lock", "wake", "item_state";
    Nested = "lock.nested", "lock", "completion", "item_state,export_table";
    NestedTwo = "lock.nested.two", "lock", "completion", "item_state,export_table,gralloc";
    Barging = "lock.barging", "lock", "completion", "control_queue";
    OffW = "not_scheduled.w", "not_scheduled", "wake", "";
    OffG = "not_scheduled.g", "not_scheduled", "completion", "";
    OffVcpu = "not_scheduled.vcpu", "not_scheduled", "completion", "";
    OffD = "not_scheduled.d", "not_scheduled", "completion", "";
    HogsW = "not_scheduled.w.hogs", "not_scheduled", "wake", "";
    HogsG = "not_scheduled.g.hogs", "not_scheduled", "completion", "";
    HogsVcpu = "not_scheduled.vcpu.hogs", "not_scheduled", "completion", "";
    OffHolder = "not_scheduled.holder", "not_scheduled", "completion", "item_state";
    OffGHolder = "not_scheduled.g.holder", "not_scheduled", "wake", "item_state";
    BusySyscall = "head_of_line.syscall", "head_of_line", "completion", "";
    BusyCpu = "head_of_line.cpu", "head_of_line", "completion", "";
    BusyPipe = "head_of_line.pipe", "head_of_line", "completion", "";
    BusyBlob = "head_of_line.blob", "head_of_line", "wake", "";
    Serialised = "serialised", "serialised", "wake", "";
    RearmGuest = "not_rearmed.guest", "not_rearmed", "wake", "";
    RearmG = "not_rearmed.g", "not_rearmed", "wake", "";
    Guest = "guest_late", "guest_late", "completion", "";
    SlowWake = "slow_syscall.w.wake", "slow_syscall", "wake", "";
    SlowW = "slow_syscall.w", "slow_syscall", "completion", "";
    SlowG = "slow_syscall.g", "slow_syscall", "completion", "";
    CpuWake = "on_cpu.w.wake", "on_cpu", "wake", "";
    CpuW = "on_cpu.w", "on_cpu", "completion", "";
    CpuG = "on_cpu.g", "on_cpu", "completion", "";
    FaultWake = "blocked.w.wake", "blocked", "wake", "";
    FaultW = "blocked.w", "blocked", "completion", "";
    FaultG = "blocked.g", "blocked", "completion", "";
    Host = "host_late", "host_late", "completion", "";
    HostRead = "host_late.read", "host_late", "completion", "";
    Failed = "forward_failed", "forward_failed", "completion", "";
    NoWrite = "no_write", "unknown", "completion", "";
    Exit = "forward_failed.exit", "forward_failed", "wake", "";
}

/// Done in one stream's own turn, so that of several streams the chosen one is hit and no other.
const OF_A_STREAM: &[Kind] = &[
    Kind::Guest,
    Kind::SlowWake,
    Kind::SlowW,
    Kind::SlowG,
    Kind::CpuWake,
    Kind::CpuW,
    Kind::CpuG,
    Kind::FaultWake,
    Kind::FaultW,
    Kind::FaultG,
    Kind::Host,
    Kind::Failed,
    Kind::NoWrite,
    Kind::Exit,
];

/// Whether a run injects that kind.
pub fn uses(args: &Args, kind: Kind) -> bool {
    args.inject.iter().any(|w| w.kinds().any(|k| k == kind))
}

/// One entry of a SPEC: a kind, another one for the same cycle, least and most delay of each in periods.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    kind: usize,
    also: Option<usize>,
    low: f64,
    high: f64,
}

impl Wanted {
    pub fn kinds(self) -> impl Iterator<Item = Kind> {
        std::iter::once(self.kind).chain(self.also).map(|at| KINDS[at].0)
    }
}

/// KIND[&KIND][:MIN..MAX][+KIND…]; newlines separate as well as "+".
pub fn parse(spec: &str) -> Result<Vec<Wanted>, String> {
    let words = spec.split(|c| c == '+' || c == '\n').map(str::trim);
    words.filter(|w| !w.is_empty() && !w.starts_with('#')).map(parse_one).collect()
}

fn parse_one(word: &str) -> Result<Wanted, String> {
    let (name, range) = word.split_once(':').unwrap_or((word, ""));
    let find =
        |name: &str| KINDS.iter().position(|k| k.1 == name).ok_or_else(|| format!("no injection {:?}", name));
    let (at, also) = match name.split_once('&') {
        Some((one, other)) => (find(one)?, Some(find(other)?)),
        None => (find(name)?, None),
    };
    let wanted = |low, high| Ok(Wanted { kind: at, also, low, high });
    // What D itself delays has to end before its next start, or that one would be late too.
    let own = matches!(KINDS[at].0, Kind::Host | Kind::HostRead | Kind::OffD);
    let default = if own { (0.975, 0.997) } else { (1.15, 1.8) };
    let parsed = range.split_once("..").map(|(a, b)| (a.parse::<f64>(), b.parse::<f64>()));
    match parsed {
        None if range.is_empty() => wanted(default.0, default.1),
        Some((Ok(low), Ok(high))) if low >= 0.0 && high >= low => wanted(low, high),
        _ => Err(format!("{:?} is no MIN..MAX", range)),
    }
}

/// A delay that is due: its id (the cycle, plus one), whose cycle, its nominal start, how long.
#[derive(Clone, Copy)]
pub struct Plan {
    pub id: u64,
    pub stream: usize,
    kind: usize,
    slot: usize,
    pub start_ns: u64,
    pub amount_ns: u64,
}

impl Plan {
    /// The same, for as long.
    pub fn lasting(self, amount_ns: u64) -> Plan {
        Plan { amount_ns, ..self }
    }
}

#[repr(C)]
struct Entry {
    kind: AtomicU32,
    stream: AtomicU32,
    cycle: AtomicU64,
    begin_ns: AtomicU64,
    end_ns: AtomicU64,
    delay_ns: AtomicU64,
    asked_ns: AtomicU64,
    start_ns: AtomicU64,
}

#[repr(C)]
pub struct State {
    /// The plan in force; 0: none. Stored last, so that what follows is whole.
    id: AtomicU64,
    /// Its kind, and one more or NONE; each is taken for itself.
    kinds: [AtomicU32; 2],
    stream: AtomicU32,
    start_ns: AtomicU64,
    amount_ns: AtomicU64,
    taken: [AtomicU64; 2],
    on_time: AtomicU64,
    pub wait: AtomicU64,
    /// Where the injector's own eventfd is in the VMM: `place`. 0: not known yet.
    pub own_item: AtomicU64,
    pub burst: AtomicI64,
    pub burst_begin_ns: AtomicU64,
    /// Streams whose worker has ended, one bit each.
    pub exited: AtomicU64,
    /// Per stream, where its two items are: `place`. 0: not known yet.
    pub wake_item: [AtomicU64; MAX_STREAMS],
    pub completion_item: [AtomicU64; MAX_STREAMS],
    count: AtomicUsize,
    entries: [Entry; ENTRIES],
    /// How long threads waited for a CPU.
    pub waits: Waits,
}

static STATE: AtomicPtr<State> = AtomicPtr::new(std::ptr::null_mut());
/// Which VMM this process is.
static VMM: AtomicU64 = AtomicU64::new(0);
static FDS: AtomicPtr<Fds> = AtomicPtr::new(std::ptr::null_mut());

/// A slow device: requests to it, its replies; and what wakes the client beside D.
pub struct Fds {
    pub ask: (OwnedFd, OwnedFd),
    pub answer: (OwnedFd, OwnedFd),
    pub client: OwnedFd,
    /// Signalled by G where it asks for a blob's memory.
    pub allocator: OwnedFd,
    /// A guest application's pipe, and the end that is read late.
    pub pipe: (OwnedFd, OwnedFd),
}

pub fn set_vmm(index: usize) {
    VMM.store(index as u64, Ordering::Release);
}

/// One number for an item of a context of this VMM; never 0.
pub fn place(ctx_id: u32, item: u32) -> u64 {
    VMM.load(Ordering::Acquire) << 56 | u64::from(ctx_id) << 32 | u64::from(item)
}

/// The stream of whose items one is that of a context of this VMM.
pub fn stream_of(items: &[AtomicU64], ctx_id: u32, item: u32) -> Option<usize> {
    let place = place(ctx_id, item);
    items.iter().position(|known| known.load(Ordering::Acquire) == place)
}

/// Whether the worker of a stream has ended.
pub fn has_exited(stream: usize) -> bool {
    state().exited.load(Ordering::Acquire) >> stream & 1 == 1
}

pub fn state() -> &'static State {
    // SAFETY: zeroed shared pages that are never unmapped; only called once `prepare` has run.
    unsafe { &*STATE.load(Ordering::Acquire) }
}

pub fn fds() -> &'static Fds {
    // SAFETY: leaked by `prepare`.
    unsafe { &*FDS.load(Ordering::Acquire) }
}

/// Before any process parts.
pub fn prepare() -> std::io::Result<()> {
    STATE.store(sys::shared_pages(std::mem::size_of::<State>()).cast(), Ordering::Release);
    let (ask, answer, pipe) = (sys::pipe(4096)?, sys::pipe(4096)?, sys::pipe(4096)?);
    let made = Fds { ask, answer, client: sys::event(false)?, allocator: sys::event(false)?, pipe };
    FDS.store(Box::into_raw(Box::new(made)), Ordering::Release);
    state().wait.store(SPACING + 4, Ordering::Release);
    Ok(())
}

/// A blocking call that takes `ns`: the device answers no sooner.
pub fn slow_call(ns: u64) {
    let mut request = [0u8; 16];
    request[..8].copy_from_slice(&ns.to_ne_bytes());
    let _ = sys::write_bytes(&fds().ask.1, &request);
    let _ = sys::read_bytes(&fds().answer.0, &mut [0; 1]);
}

/// The plan in force if it is of that kind (its index in KINDS), without taking it.
pub fn peek(kinds: &[Kind]) -> Option<(Plan, Kind)> {
    let state = state();
    let id = state.id.load(Ordering::Acquire);
    if id == 0 {
        return None;
    }
    (0..2).find_map(|slot| {
        let kind = state.kinds[slot].load(Ordering::Acquire);
        let open = kind != NONE && state.taken[slot].load(Ordering::Acquire) != id;
        let plan = Plan {
            id,
            stream: state.stream.load(Ordering::Acquire) as usize,
            kind: kind as usize,
            slot,
            start_ns: state.start_ns.load(Ordering::Acquire),
            amount_ns: state.amount_ns.load(Ordering::Acquire),
        };
        let found = open.then(|| KINDS[kind as usize].0).filter(|kind| kinds.contains(kind))?;
        Some((plan, found))
    })
}

/// Takes a plan, once, and not before its cycle has begun (`early`: before as well).
pub fn take(kinds: &[Kind], early: bool) -> Option<(Plan, Kind)> {
    let found = peek(kinds)?;
    let Plan { id, slot, start_ns, .. } = found.0;
    let ready = early || sys::now_ns() >= start_ns;
    (ready && state().taken[slot].swap(id, Ordering::AcqRel) != id).then(|| found)
}

/// The same, only if the plan is for the stream that `is_hit` knows.
pub fn take_of(kinds: &[Kind], is_hit: impl Fn(usize) -> bool) -> Option<(Plan, Kind)> {
    peek(kinds).filter(|found| is_hit(found.0.stream)).and_then(|_| take(kinds, false))
}

/// Writes down what was done, all of the time from `begin_ns` to `end_ns`.
pub fn log(plan: &Plan, begin_ns: u64, end_ns: u64) {
    log_part(plan, begin_ns, end_ns, end_ns - begin_ns);
}

/// The same, where only `delay_ns` of that time was ours.
pub fn log_part(plan: &Plan, begin_ns: u64, end_ns: u64, delay_ns: u64) {
    let state = state();
    let at = state.count.fetch_add(1, Ordering::AcqRel);
    if let Some(entry) = state.entries.get(at) {
        entry.kind.store(plan.kind as u32, Ordering::Release);
        entry.stream.store(plan.stream as u32, Ordering::Release);
        entry.cycle.store(plan.id - 1, Ordering::Release);
        entry.start_ns.store(plan.start_ns, Ordering::Release);
        entry.begin_ns.store(begin_ns, Ordering::Release);
        entry.end_ns.store(end_ns, Ordering::Release);
        entry.delay_ns.store(delay_ns, Ordering::Release);
        entry.asked_ns.store(plan.amount_ns, Ordering::Release);
    }
}

/// Runs `delay` and logs how long it took.
pub fn timed(plan: &Plan, delay: impl FnOnce(u64)) {
    let begin = sys::now_ns();
    delay(plan.amount_ns);
    log(plan, begin, sys::now_ns());
}

/// Computes. What other threads took of the CPU meanwhile is not ours, so the delay is CPU time.
pub fn compute(plan: &Plan) {
    let (begin, cpu) = (sys::now_ns(), process::cpu_ns());
    process::work(plan.amount_ns);
    log_part(plan, begin, sys::now_ns(), process::cpu_ns() - cpu);
}

/// D at a cycle's start, before it wakes anybody: judges the one before, plans the next but one.
pub struct Director {
    wanted: Vec<Wanted>,
    rng: Rng,
    period_ns: u64,
    streams: usize,
}

impl Director {
    pub fn new(args: &Args) -> Director {
        Director {
            wanted: args.inject.clone(),
            rng: Rng::new(args.seed, 9),
            period_ns: args.period_ns(),
            streams: args.streams,
        }
    }

    /// `missed`: something was open at this start.
    pub fn cycle(&mut self, cycle: u64, nominal_ns: u64, missed: bool) {
        if self.wanted.is_empty() {
            return;
        }
        let state = state();
        let in_force = state.id.load(Ordering::Acquire);
        if missed || in_force + 2 > cycle + 1 && in_force != 0 {
            state.on_time.store(0, Ordering::Release);
            return;
        }
        if state.on_time.fetch_add(1, Ordering::AcqRel) + 1 < state.wait.load(Ordering::Acquire) {
            return;
        }
        state.on_time.store(0, Ordering::Release);
        let extra = self.rng.within(0.0, SPACING as f64 + 1.0) as u64;
        state.wait.store(SPACING + 1 + extra, Ordering::Release);
        let Wanted { kind, also, low, high } =
            self.wanted[self.rng.within(0.0, self.wanted.len() as f64) as usize];
        let amount = self.rng.within(low, high + 1e-9) * self.period_ns as f64;
        let alive: Vec<usize> = (0..self.streams).filter(|&stream| !has_exited(stream)).collect();
        let stream = match alive.get(self.rng.within(0.0, alive.len() as f64) as usize) {
            Some(&stream) => stream as u32,
            None => return,
        };
        state.id.store(0, Ordering::Release);
        state.stream.store(stream, Ordering::Release);
        state.kinds[0].store(kind as u32, Ordering::Release);
        state.kinds[1].store(also.map_or(NONE, |at| at as u32), Ordering::Release);
        state.start_ns.store(nominal_ns + self.period_ns, Ordering::Release);
        state.amount_ns.store(amount as u64, Ordering::Release);
        state.id.store(cycle + 2, Ordering::Release); // its cycle, plus one
    }
}

/// The truth as JSON lines. Stream -1: of several streams, whichever was in the way.
pub fn write_truth(path: &str, streams: usize) -> std::io::Result<()> {
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    for entry in state().entries.iter().take(state().count.load(Ordering::Acquire)) {
        let (which, kind, cause, leg, locks) = KINDS[entry.kind.load(Ordering::Acquire) as usize];
        let own = streams == 1 || OF_A_STREAM.contains(&which);
        let stream = if own { i64::from(entry.stream.load(Ordering::Acquire)) } else { -1 };
        let begin = entry.begin_ns.load(Ordering::Acquire);
        let end = entry.end_ns.load(Ordering::Acquire);
        writeln!(
            out,
            "{{\"stream\":{},\"cycle\":{},\"kind\":\"{}\",\"cause\":\"{}\",\"leg\":\"{}\",\"lock\":\"{}\",\"start_ns\":{},\"begin_ns\":{},\"end_ns\":{},\"delay_ns\":{},\"asked_ns\":{},\"clock\":\"monotonic\"}}",
            stream, entry.cycle.load(Ordering::Acquire), kind, cause, leg, locks,
            entry.start_ns.load(Ordering::Acquire), begin, end,
            entry.delay_ns.load(Ordering::Acquire),
            entry.asked_ns.load(Ordering::Acquire)
        )?;
    }
    for (ns, waited_ns) in state().waits.all() {
        writeln!(out, "{{\"type\":\"cpu_wait\",\"ns\":{},\"waited_ns\":{:?}}}", ns, waited_ns)?;
    }
    out.flush()
}
