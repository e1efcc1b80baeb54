// SPDX-License-Identifier: Apache-2.0
//! Processes and threads: forking, signals, priorities, namespaces, CPU work.

use crate::sys;
use std::io::{Error, Result};
use std::os::raw::{c_int, c_ulong, c_void};
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

pub const SIGKILL: c_int = 9;
pub const SIGTERM: c_int = 15;
const SIGINT: c_int = 2;
const SIGCHLD: c_int = 17;

type SigSet = [c_ulong; 16];

extern "C" {
    fn fork() -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, flags: c_int) -> c_int;
    fn kill(pid: c_int, sig: c_int) -> c_int;
    fn getppid() -> c_int;
    fn getuid() -> u32;
    fn getgid() -> u32;
    fn prctl(op: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    fn unshare(flags: c_int) -> c_int;
    fn sched_setscheduler(pid: c_int, policy: c_int, prio: *const c_int) -> c_int;
    fn sched_getaffinity(pid: c_int, len: usize, mask: *mut SigSet) -> c_int;
    fn sched_setaffinity(pid: c_int, len: usize, mask: *const SigSet) -> c_int;
    fn setpriority(which: c_int, who: u32, prio: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SigSet, old: *mut c_void) -> c_int;
    fn ppoll(fds: *mut sys::PollFd, n: c_ulong, ts: *const [i64; 2], mask: *const c_void) -> c_int;
    fn write(fd: c_int, buf: *const c_void, len: usize) -> isize;
    fn signalfd(fd: c_int, set: *const SigSet, flags: c_int) -> c_int;
}

/// Forks before any thread exists; the child dies with its parent. None in the child.
pub fn spawn_process(comm: &str) -> Result<Option<i32>> {
    let parent = std::process::id() as c_int;
    // SAFETY: single-threaded here (main calls it first of all); 1 is PR_SET_PDEATHSIG.
    unsafe {
        match fork() {
            -1 => Err(Error::last_os_error()),
            0 => {
                prctl(1, SIGKILL as c_ulong, 0, 0, 0);
                let now = getppid();
                if now != parent && now != 0 {
                    std::process::exit(1); // the parent died before prctl
                }
                name_thread(comm);
                Ok(None)
            }
            pid => Ok(Some(pid)),
        }
    }
}

/// Sets the calling thread's comm (at most 15 bytes count).
pub fn name_thread(comm: &str) {
    let name = format!("{}\0", comm);
    // SAFETY: 15 is PR_SET_NAME with a terminated string.
    unsafe { prctl(15, name.as_ptr() as c_ulong, 0, 0, 0) };
}

/// A thread whose comm is `comm`.
pub fn spawn(comm: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::Builder::new().name(comm.to_string()).spawn(body).expect("thread")
}

/// Timer slack of the calling thread: 1 us, as a vCPU's or an audio thread's hrtimer has it.
pub fn sharp_timers() {
    // SAFETY: 29 is PR_SET_TIMERSLACK.
    unsafe { prctl(29, 1_000, 0, 0, 0) };
}

/// SCHED_FIFO for the calling thread; false where it is not allowed.
pub fn realtime(priority: i32) -> bool {
    // SAFETY: 1 is SCHED_FIFO; struct sched_param is one int.
    unsafe { sched_setscheduler(0, 1, &priority) == 0 }
}

pub fn nice(value: i32) {
    // SAFETY: PRIO_PROCESS of the calling thread.
    unsafe { setpriority(0, 0, value) };
}

/// CPUs the process may run on, in order.
pub fn cpus() -> Vec<usize> {
    let mut set: SigSet = [0; 16];
    // SAFETY: the kernel fills at most the array.
    unsafe { sched_getaffinity(0, 128, &mut set) };
    (0..1024).filter(|cpu| set[cpu / 64] >> (cpu % 64) & 1 == 1).collect()
}

/// Binds the calling thread to one CPU.
pub fn pin(cpu: usize) {
    let mut set: SigSet = [0; 16];
    set[cpu / 64] = 1 << (cpu % 64);
    // SAFETY: a mask of 1024 bits.
    unsafe { sched_setaffinity(0, 128, &set) };
}

/// Blocks SIGTERM, SIGINT and SIGCHLD in this and all later threads; reads tell of them.
pub fn signals() -> Result<OwnedFd> {
    let mut set: SigSet = [0; 16];
    set[0] = [SIGTERM, SIGINT, SIGCHLD].iter().fold(0, |bits, sig| bits | 1 << (sig - 1));
    // SAFETY: SIG_BLOCK is 0; 0o2004000 is SFD_CLOEXEC | SFD_NONBLOCK.
    unsafe {
        pthread_sigmask(0, &set, std::ptr::null_mut());
        match signalfd(-1, &set, 0o2004000) {
            -1 => Err(Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// True if a signal read from `signals()` asks to end (a child's death does not).
pub fn asked_to_end(fd: &OwnedFd) -> bool {
    let mut end = false;
    let mut info = [0u8; 128];
    while matches!(sys::read_bytes(fd, &mut info), Ok(128)) {
        let sig = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        end |= sig == SIGTERM || sig == SIGINT;
    }
    end
}

pub fn send_signal(pid: i32, sig: c_int) {
    // SAFETY: plain system call on a child of ours.
    unsafe { kill(pid, sig) };
}

/// Exit code of a child that has ended; None while it lives. `wait`: block for it.
pub fn reap(pid: i32, wait: bool) -> Option<i32> {
    let mut status = 0;
    // SAFETY: 1 is WNOHANG.
    let ret = unsafe { waitpid(pid, &mut status, if wait { 0 } else { 1 }) };
    if ret == 0 {
        return None;
    }
    Some(if status & 0x7f == 0 { status >> 8 & 0xff } else { 1 })
}

/// Enters a new user namespace (mapping only ourselves); children get a new pid namespace.
pub fn enter_namespaces() -> Result<()> {
    // SAFETY: plain system calls.
    let (uid, gid) = unsafe { (getuid(), getgid()) };
    // SAFETY: CLONE_NEWUSER | CLONE_NEWPID, single-threaded.
    if unsafe { unshare(0x1000_0000 | 0x2000_0000) } != 0 {
        return Err(Error::last_os_error());
    }
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", uid))?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", gid))
}

static ROUNDS_PER_MS: AtomicU64 = AtomicU64::new(200_000);

#[inline(never)]
fn rounds(n: u64) {
    let mut x = n | 1;
    for _ in 0..n {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        // SAFETY: a local; the volatile read keeps the loop.
        x = unsafe { std::ptr::read_volatile(&x) };
    }
}

/// Measures the machine once, so that `work` is CPU time and not wall time.
pub fn calibrate() {
    let best = (0..8).map(|_| {
        let start = sys::now_ns();
        rounds(100_000);
        sys::now_ns() - start
    });
    let ns = best.min().unwrap_or(1).max(1);
    ROUNDS_PER_MS.store(100_000 * 1_000_000 / ns, Ordering::Relaxed);
}

/// About `ns` of CPU work in user space.
pub fn work(ns: u64) {
    rounds(ROUNDS_PER_MS.load(Ordering::Relaxed) * ns / 1_000_000);
}

/// ppoll(2) for input on one descriptor, within nanoseconds.
pub fn readable_within(fd: &OwnedFd, ns: u64) -> bool {
    let mut polled = sys::PollFd { fd: fd.as_raw_fd(), events: 1, revents: 0 };
    let limit = [(ns / 1_000_000_000) as i64, (ns % 1_000_000_000) as i64];
    // SAFETY: the kernel writes revents only; no signal mask.
    unsafe { ppoll(&mut polled, 1, &limit, std::ptr::null()) > 0 }
}

/// A write to a descriptor that is not open: EBADF.
pub fn write_closed(buf: &[u8]) -> bool {
    // SAFETY: the kernel only reads from the slice, if at all.
    unsafe { write(c_int::MAX, buf.as_ptr().cast(), buf.len()) >= 0 }
}

/// CPU time of the calling thread.
pub fn cpu_ns() -> u64 {
    sys::clock_ns(3)
}

/// All CPUs' steal time since boot, ns (field 8 of /proc/stat's first line, in 10 ms ticks).
pub fn steal_ns() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = stat.split_whitespace().nth(8).and_then(|s| s.parse::<u64>().ok());
    ticks.unwrap_or(0) * 10_000_000
}

/// eventfd-id of a descriptor of ours, from /proc/self/fdinfo.
pub fn eventfd_id(fd: &OwnedFd) -> i64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    let id = info.lines().find_map(|line| line.strip_prefix("eventfd-id:"));
    id.and_then(|s| s.trim().parse().ok()).unwrap_or(-1)
}

/// xorshift64*: reproducible for a seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64, salt: u64) -> Rng {
        Rng((seed ^ salt.wrapping_mul(0x9E37_79B9_7F4A_7C15)) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Uniform in [low, high).
    pub fn within(&mut self, low: f64, high: f64) -> f64 {
        low + (self.next() >> 11) as f64 / (1u64 << 53) as f64 * (high - low)
    }

    /// Exponentially distributed.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.within(1e-9, 1.0).ln()
    }
}
