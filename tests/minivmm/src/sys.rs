// SPDX-License-Identifier: Apache-2.0
//! The input and output calls that std does not offer, one thin wrapper each.
//!
//! process.rs has those about processes and threads. Descriptors are `OwnedFd`, so what
//! is dropped is closed; times are CLOCK_MONOTONIC nanoseconds.

use std::io::{Error, Result};
use std::os::raw::{c_int, c_long, c_ulong, c_void};
use std::os::unix::io::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::AtomicU32;

pub const EPOLLIN: u32 = 1;
pub const EPOLL_CTL_ADD: c_int = 1;
pub const EPOLL_CTL_DEL: c_int = 2;
const CLOCK_MONOTONIC: c_int = 1;
const EFD: c_int = 0o2000000;
const NONBLOCK: c_int = 0o4000;

#[repr(C)]
struct Timespec {
    sec: c_long,
    nsec: c_long,
}

#[cfg_attr(target_arch = "x86_64", repr(C, packed))]
#[cfg_attr(not(target_arch = "x86_64"), repr(C))]
#[derive(Clone, Copy, Default)]
pub struct EpollEvent {
    pub events: u32,
    pub data: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PollFd {
    pub fd: RawFd,
    pub events: i16,
    pub revents: i16,
}

#[repr(C)]
struct Iovec {
    base: *mut c_void,
    len: usize,
}

#[repr(C)]
struct Msghdr {
    name: *mut c_void,
    namelen: u32,
    iov: *mut Iovec,
    iovlen: usize,
    control: *mut c_void,
    controllen: usize,
    flags: c_int,
}

extern "C" {
    fn read(fd: c_int, buf: *mut c_void, len: usize) -> isize;
    fn write(fd: c_int, buf: *const c_void, len: usize) -> isize;
    fn eventfd(init: u32, flags: c_int) -> c_int;
    fn epoll_create1(flags: c_int) -> c_int;
    fn epoll_ctl(ep: c_int, op: c_int, fd: c_int, ev: *mut EpollEvent) -> c_int;
    fn epoll_wait(ep: c_int, ev: *mut EpollEvent, n: c_int, ms: c_int) -> c_int;
    fn epoll_pwait(ep: c_int, ev: *mut EpollEvent, n: c_int, ms: c_int, mask: *const c_void) -> c_int;
    fn timerfd_create(clock: c_int, flags: c_int) -> c_int;
    fn timerfd_settime(fd: c_int, flags: c_int, new: *const [Timespec; 2], old: *mut c_void) -> c_int;
    fn clock_gettime(clock: c_int, ts: *mut Timespec) -> c_int;
    fn clock_nanosleep(clock: c_int, flags: c_int, ts: *const Timespec, rem: *mut c_void) -> c_int;
    fn poll(fds: *mut PollFd, n: c_ulong, ms: c_int) -> c_int;
    fn socketpair(family: c_int, kind: c_int, proto: c_int, fds: *mut c_int) -> c_int;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fcntl(fd: c_int, cmd: c_int, arg: c_long) -> c_int;
    fn lseek(fd: c_int, off: i64, whence: c_int) -> i64;
    fn readlink(path: *const u8, buf: *mut u8, len: usize) -> isize;
    fn sendmsg(fd: c_int, msg: *const Msghdr, flags: c_int) -> isize;
    fn recvmsg(fd: c_int, msg: *mut Msghdr, flags: c_int) -> isize;
    fn mmap(a: *mut c_void, len: usize, prot: c_int, flags: c_int, fd: c_int, off: i64) -> *mut c_void;
}

fn check(ret: c_int) -> Result<c_int> {
    if ret < 0 {
        return Err(Error::last_os_error());
    }
    Ok(ret)
}

fn check_len(ret: isize) -> Result<usize> {
    usize::try_from(ret).map_err(|_| Error::last_os_error())
}

fn own(ret: c_int) -> Result<OwnedFd> {
    // SAFETY: a descriptor that the kernel has just handed out.
    check(ret).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One read(2) of at most `len` bytes to `buf`.
///
/// # Safety
/// `buf` must be valid for `len` bytes; nobody else may use them meanwhile.
pub unsafe fn read_raw(fd: &OwnedFd, buf: *mut u8, len: usize) -> Result<usize> {
    check_len(read(fd.as_raw_fd(), buf.cast(), len))
}

pub fn read_bytes(fd: &OwnedFd, buf: &mut [u8]) -> Result<usize> {
    // SAFETY: the slice is exclusively ours.
    unsafe { read_raw(fd, buf.as_mut_ptr(), buf.len()) }
}

pub fn write_bytes(fd: &OwnedFd, buf: &[u8]) -> Result<usize> {
    // SAFETY: the kernel only reads from the slice.
    check_len(unsafe { write(fd.as_raw_fd(), buf.as_ptr().cast(), buf.len()) })
}

/// Reads an eventfd or timerfd; the error is `WouldBlock` where nothing is pending.
pub fn read_u64(fd: &OwnedFd) -> Result<u64> {
    let mut buf = [0u8; 8];
    read_bytes(fd, &mut buf).map(|_| u64::from_ne_bytes(buf))
}

pub fn write_u64(fd: &OwnedFd, value: u64) -> Result<usize> {
    write_bytes(fd, &value.to_ne_bytes())
}

pub fn event(nonblocking: bool) -> Result<OwnedFd> {
    // SAFETY: plain system call.
    own(unsafe { eventfd(0, EFD | if nonblocking { NONBLOCK } else { 0 }) })
}

pub fn timer() -> Result<OwnedFd> {
    // SAFETY: plain system call.
    own(unsafe { timerfd_create(CLOCK_MONOTONIC, EFD | NONBLOCK) })
}

fn timespec(ns: u64) -> Timespec {
    Timespec { sec: (ns / 1_000_000_000) as c_long, nsec: (ns % 1_000_000_000) as c_long }
}

/// Arms a timerfd for the absolute time `at_ns` and every `interval_ns` (0: once).
pub fn arm(fd: &OwnedFd, at_ns: u64, interval_ns: u64) -> Result<()> {
    let spec = [timespec(interval_ns), timespec(at_ns)];
    // SAFETY: struct itimerspec is {interval, value}; 1 is TFD_TIMER_ABSTIME.
    check(unsafe { timerfd_settime(fd.as_raw_fd(), 1, &spec, std::ptr::null_mut()) }).map(drop)
}

#[cfg(target_arch = "x86_64")]
const FUTEX: c_long = 202;
#[cfg(not(target_arch = "x86_64"))]
const FUTEX: c_long = 98;

/// FUTEX_WAIT on a word that other processes share.
pub fn shared_futex_wait(word: &AtomicU32, expected: u32) {
    let no_limit = std::ptr::null::<Timespec>();
    // SAFETY: the kernel only reads the word.
    unsafe { syscall(FUTEX, word as *const AtomicU32, 0 as c_int, expected, no_limit) };
}

/// FUTEX_WAKE of everybody who waits on a shared word.
pub fn shared_futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel touches nothing of ours.
    unsafe { syscall(FUTEX, word as *const AtomicU32, 1 as c_int, c_int::MAX) };
}

pub fn now_ns() -> u64 {
    clock_ns(CLOCK_MONOTONIC)
}

pub fn clock_ns(clock: c_int) -> u64 {
    let mut ts = timespec(0);
    // SAFETY: fills the struct.
    unsafe { clock_gettime(clock, &mut ts) };
    ts.sec as u64 * 1_000_000_000 + ts.nsec as u64
}

pub fn sleep_until(at_ns: u64) {
    // SAFETY: 1 is TIMER_ABSTIME; a wake by a signal ends the sleep early, which is fine.
    unsafe { clock_nanosleep(CLOCK_MONOTONIC, 1, &timespec(at_ns), std::ptr::null_mut()) };
}

pub fn sleep_ns(ns: u64) {
    sleep_until(now_ns() + ns);
}

pub fn epoll() -> Result<OwnedFd> {
    // SAFETY: plain system call.
    own(unsafe { epoll_create1(EFD) })
}

pub fn epoll_change(ep: &OwnedFd, op: c_int, fd: &impl AsRawFd, data: u64) -> Result<()> {
    epoll_control(ep, op, fd, EPOLLIN, data)
}

/// `events` 0: only hang-ups and errors.
pub fn epoll_control(ep: &OwnedFd, op: c_int, fd: &impl AsRawFd, events: u32, data: u64) -> Result<()> {
    let mut ev = EpollEvent { events, data };
    // SAFETY: level-triggered registration of a live descriptor.
    check(unsafe { epoll_ctl(ep.as_raw_fd(), op, fd.as_raw_fd(), &mut ev) }).map(drop)
}

/// Waits without limit where `ms` is -1; `pwait` chooses the system call. Interrupted: 0 events.
pub fn epoll_events(ep: &OwnedFd, events: &mut [EpollEvent], ms: c_int, pwait: bool) -> usize {
    let (fd, ev, n) = (ep.as_raw_fd(), events.as_mut_ptr(), events.len() as c_int);
    // SAFETY: the kernel fills at most n events.
    let ret = unsafe {
        if pwait {
            epoll_pwait(fd, ev, n, ms, std::ptr::null())
        } else {
            epoll_wait(fd, ev, n, ms)
        }
    };
    usize::try_from(ret).unwrap_or(0)
}

/// poll(2) for input; true per descriptor that is readable or hung up.
pub fn readable(fds: &[RawFd], ms: c_int) -> Vec<bool> {
    let mut polled: Vec<PollFd> = fds.iter().map(|&fd| PollFd { fd, events: 1, revents: 0 }).collect();
    // SAFETY: the kernel writes revents only.
    unsafe { poll(polled.as_mut_ptr(), polled.len() as c_ulong, ms) };
    polled.iter().map(|p| p.revents != 0).collect()
}

/// Whether the other end of a pipe is gone.
pub fn hung_up(fd: RawFd) -> bool {
    let mut polled = PollFd { fd, events: 0, revents: 0 };
    // SAFETY: one entry, of which the kernel writes revents; 0x10 is POLLHUP.
    unsafe { poll(&mut polled, 1, 0) == 1 && polled.revents & 0x10 != 0 }
}

pub fn socket_pair() -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC.
    check(unsafe { socketpair(1, 1 | EFD, 0, fds.as_mut_ptr()) })?;
    Ok((own(fds[0])?, own(fds[1])?))
}

/// A pipe (read end, write end) that holds `bytes` (rounded up to pages).
pub fn pipe(bytes: usize) -> Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: two ints are written; 1031 is F_SETPIPE_SZ.
    unsafe {
        check(pipe2(fds.as_mut_ptr(), EFD))?;
        check(fcntl(fds[0], 1031, bytes as c_long))?;
    }
    Ok((own(fds[0])?, own(fds[1])?))
}

/// fcntl(F_DUPFD_CLOEXEC), as std's try_clone does.
pub fn dup(fd: &OwnedFd) -> Result<OwnedFd> {
    // SAFETY: 1030 is F_DUPFD_CLOEXEC.
    own(unsafe { fcntl(fd.as_raw_fd(), 1030, 3) })
}

/// What the device does to tell what it received: [lseek,] readlink of /proc/self/fd/N.
pub fn describe(fd: &OwnedFd, seek: bool) -> Vec<u8> {
    let path = format!("/proc/self/fd/{}\0", fd.as_raw_fd());
    let mut buf = vec![0u8; 256];
    // SAFETY: 2 is SEEK_END (it fails on what cannot seek, as in the device).
    let len = unsafe {
        if seek {
            lseek(fd.as_raw_fd(), 0, 2);
        }
        readlink(path.as_ptr(), buf.as_mut_ptr(), buf.len())
    };
    buf.truncate(usize::try_from(len).unwrap_or(0));
    buf
}

/// Room for one SCM_RIGHTS header (16 bytes) and up to 28 descriptors, aligned.
type Control = [u64; 16];

pub fn send_fds(socket: &OwnedFd, data: &[u8], fds: &[RawFd]) -> Result<usize> {
    let mut control: Control = [0; 16];
    let len = 16 + 4 * fds.len();
    control[0] = len as u64;
    control[1] = 1 | (1 << 32); // SOL_SOCKET, SCM_RIGHTS
    for (i, fd) in fds.iter().enumerate() {
        control[2 + i / 2] |= (*fd as u64) << (32 * (i % 2));
    }
    let mut iov = Iovec { base: data.as_ptr() as *mut c_void, len: data.len() };
    let msg = Msghdr {
        name: std::ptr::null_mut(),
        namelen: 0,
        iov: &mut iov,
        iovlen: 1,
        control: control.as_mut_ptr().cast(),
        controllen: (len + 7) & !7,
        flags: 0,
    };
    // SAFETY: all buffers outlive the call; 0x4000 is MSG_NOSIGNAL.
    check_len(unsafe { sendmsg(socket.as_raw_fd(), &msg, 0x4000) })
}

pub fn receive_fds(socket: &OwnedFd, data: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut control: Control = [0; 16];
    let mut iov = Iovec { base: data.as_mut_ptr().cast(), len: data.len() };
    let mut msg = Msghdr {
        name: std::ptr::null_mut(),
        namelen: 0,
        iov: &mut iov,
        iovlen: 1,
        control: control.as_mut_ptr().cast(),
        controllen: std::mem::size_of::<Control>(),
        flags: 0,
    };
    // SAFETY: all buffers outlive the call; 0x40000000 is MSG_CMSG_CLOEXEC.
    let len = check_len(unsafe { recvmsg(socket.as_raw_fd(), &mut msg, 0x4000_0000) })?;
    let mut fds = Vec::new();
    if msg.controllen >= 16 && control[1] == 1 | (1 << 32) {
        for i in 0..(control[0] as usize - 16) / 4 {
            fds.push(own((control[2 + i / 2] >> (32 * (i % 2))) as i32)?);
        }
    }
    Ok((len, fds))
}

/// Zeroed memory shared by all processes forked later.
pub fn shared_pages(bytes: usize) -> *mut u8 {
    // SAFETY: PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS.
    let p = unsafe { mmap(std::ptr::null_mut(), bytes, 3, 0x21, -1, 0) };
    assert!(p as isize != -1, "mmap: {}", Error::last_os_error());
    p.cast()
}

/// Pages whose first touch waits until somebody resolves it: userfaultfd(2).
pub struct LateMemory {
    pub base: *mut u8,
    fd: OwnedFd,
}

// SAFETY: the mapping belongs to the process; this thread only answers faults in it.
unsafe impl Send for LateMemory {}

#[cfg(target_arch = "x86_64")]
const USERFAULTFD: c_long = 323;
#[cfg(not(target_arch = "x86_64"))]
const USERFAULTFD: c_long = 282;
const UFFDIO_API: c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: c_ulong = 0xc020_aa00;
const UFFDIO_ZEROPAGE: c_ulong = 0xc020_aa04;
const MISSING: u64 = 1;
const PAGEFAULT: u64 = 0x12;

impl LateMemory {
    pub fn map(bytes: usize) -> Result<LateMemory> {
        // SAFETY: plain system calls; PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS.
        let (fd, base) = unsafe {
            let fd = own(syscall(USERFAULTFD, EFD as c_long) as c_int)?;
            (fd, mmap(std::ptr::null_mut(), bytes, 3, 0x22, -1, 0))
        };
        let mut api: [u64; 3] = [0xaa, 0, 0];
        let mut range: [u64; 4] = [base as u64, bytes as u64, MISSING, 0];
        // SAFETY: struct uffdio_api and uffdio_register, filled by the kernel.
        unsafe {
            check(ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()))?;
            check(ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()))?;
        }
        Ok(LateMemory { base: base.cast(), fd })
    }

    /// The address of the next fault.
    pub fn fault(&self) -> Option<usize> {
        let mut message = [0u64; 4]; // struct uffd_msg: event, …, address
                                     // SAFETY: 32 bytes that are ours.
        while let Ok(32) = unsafe { read_raw(&self.fd, message.as_mut_ptr().cast(), 32) } {
            if message[0] & 0xff == PAGEFAULT {
                return Some(message[2] as usize);
            }
        }
        None
    }

    /// The page is there, all zeros; who touched it goes on.
    pub fn resolve(&self, page: usize, bytes: usize) {
        let mut range: [u64; 4] = [page as u64, bytes as u64, 0, 0];
        // SAFETY: struct uffdio_zeropage.
        unsafe { ioctl(self.fd.as_raw_fd(), UFFDIO_ZEROPAGE, range.as_mut_ptr()) };
    }
}

/// One byte from stdin; 0 at its end.
pub fn read_stdin(byte: &mut [u8; 1]) -> usize {
    // SAFETY: one byte into an exclusive buffer.
    usize::try_from(unsafe { read(0, byte.as_mut_ptr().cast(), 1) }).unwrap_or(0)
}
