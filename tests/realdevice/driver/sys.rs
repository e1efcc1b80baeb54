// SPDX-License-Identifier: Apache-2.0
//! Thin wrappers of the system calls that std lacks, and small tools: clock, random numbers, CPU work.

use std::cell::UnsafeCell;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};

pub fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// Keeps the CPU for `ns` of this thread's own CPU time: being preempted does not shorten the work.
pub fn burn(ns: u64) {
    let cpu = || {
        let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
        t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
    };
    let end = cpu() + ns;
    while cpu() < end {
        for i in 0..200u32 {
            std::hint::black_box(i);
        }
    }
}

/// xorshift64*: small, seeded, good enough to spread bursts.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    /// Uniform in lo..=hi.
    pub fn range(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.next() % (hi - lo + 1)
    }
}

pub fn eventfd(nonblock: bool) -> RawFd {
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | if nonblock { libc::EFD_NONBLOCK } else { 0 }) };
    assert!(fd >= 0, "eventfd: {}", std::io::Error::last_os_error());
    fd
}

pub fn eventfd_write(fd: RawFd) {
    let one: u64 = 1;
    unsafe { libc::write(fd, (&one as *const u64).cast(), 8) };
}

/// None: nothing to read (a non-blocking eventfd or timerfd).
pub fn read_u64(fd: RawFd) -> Option<u64> {
    let mut v: u64 = 0;
    loop {
        let n = unsafe { libc::read(fd, (&mut v as *mut u64).cast(), 8) };
        if n == 8 {
            return Some(v);
        }
        if n < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) {
            continue;
        }
        return None;
    }
}

pub fn close(fd: RawFd) {
    unsafe { libc::close(fd) };
}

pub fn pipe() -> (RawFd, RawFd) {
    let mut p = [0; 2];
    assert_eq!(unsafe { libc::pipe2(p.as_mut_ptr(), libc::O_CLOEXEC) }, 0, "pipe2");
    (p[0], p[1])
}

/// The id that the kernel shows for an eventfd in fdinfo; -1 where it does not.
/// One page of shared memory without a name in the file system.
pub fn memfd() -> RawFd {
    let fd = unsafe { libc::memfd_create(c"stream".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0 && unsafe { libc::ftruncate(fd, 4096) } == 0, "memfd");
    fd
}

pub fn eventfd_id(fd: RawFd) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    text.lines().find_map(|l| l.strip_prefix("eventfd-id:")).and_then(|v| v.trim().parse().ok()).unwrap_or(-1)
}

pub fn set_name(name: &str) {
    let c = std::ffi::CString::new(name).unwrap();
    unsafe { libc::prctl(libc::PR_SET_NAME, c.as_ptr()) };
}

/// Asks the kernel to end this process when its parent's thread dies; the parent may be gone already.
pub fn die_with_parent(parent: i32) {
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        if libc::getppid() != parent {
            libc::_exit(1);
        }
    }
}

/// tid 0: the calling thread. False where it is not allowed.
pub fn set_fifo(tid: i32, priority: i32) -> bool {
    let p = libc::sched_param { sched_priority: priority };
    unsafe { libc::sched_setscheduler(tid, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &p) == 0 }
}

/// Blocks SIGTERM and SIGINT in this thread and all that it starts; they are read from the returned fd.
pub fn signal_fd() -> RawFd {
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC)
    }
}

/// Waits until one of the fds has an event; returns revents in order (0: none).
pub fn poll(fds: &[(RawFd, i16)], timeout_ms: i32) -> Vec<i16> {
    let mut p: Vec<libc::pollfd> =
        fds.iter().map(|&(fd, events)| libc::pollfd { fd, events, revents: 0 }).collect();
    unsafe { libc::poll(p.as_mut_ptr(), p.len() as libc::nfds_t, timeout_ms) };
    p.iter().map(|p| p.revents).collect()
}

/// Time that the hypervisor took from all CPUs since boot, in ns (10 ms steps); 0 on bare metal.
pub fn steal_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: u64 = text
        .lines()
        .next()
        .and_then(|l| l.split_whitespace().nth(8))
        .and_then(|v| v.parse().ok())
        .unwrap_or(0);
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
    ticks * (1_000_000_000 / hz)
}

/// Sends one message with fds (SCM_RIGHTS); false where the socket is full.
pub fn send_fds(sock: RawFd, data: &[u8], fds: &[RawFd]) -> std::io::Result<bool> {
    let mut space = [0u64; 32];
    let mut iov = libc::iovec { iov_base: data.as_ptr() as *mut _, iov_len: data.len() };
    unsafe {
        let mut msg: libc::msghdr = std::mem::zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        if !fds.is_empty() {
            let bytes = (fds.len() * 4) as u32;
            msg.msg_control = space.as_mut_ptr().cast();
            msg.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let c = libc::CMSG_FIRSTHDR(&msg);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(bytes) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(c).cast(), fds.len());
        }
        if libc::sendmsg(sock, &msg, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) >= 0 {
            return Ok(true);
        }
    }
    let e = std::io::Error::last_os_error();
    match e.raw_os_error() {
        // ETOOMANYREFS: too many fds in flight, without CAP_SYS_RESOURCE
        Some(libc::EAGAIN | libc::EINTR | libc::ETOOMANYREFS) => Ok(false),
        _ => Err(e),
    }
}

/// A lock of the guest's own: no system call shows it, as nothing of a real guest's locks does.
pub struct Spin<T> {
    taken: AtomicBool,
    value: UnsafeCell<T>,
}

unsafe impl<T: Send> Sync for Spin<T> {}

impl<T> Spin<T> {
    pub fn new(value: T) -> Spin<T> {
        Spin { taken: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    pub fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut tries = 0;
        while self.taken.swap(true, Ordering::Acquire) {
            tries += 1;
            if tries % 200 == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let r = f(unsafe { &mut *self.value.get() });
        self.taken.store(false, Ordering::Release);
        r
    }
}
