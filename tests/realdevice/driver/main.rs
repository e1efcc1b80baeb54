// SPDX-License-Identifier: Apache-2.0
//! A VMM and a guest around the real cross-domain device, and an audio server in another process.
//! This file starts the processes and threads and speaks the protocol on stdin and stdout.

mod audio;
mod dloop;
mod guest;
mod opts;
mod sys;
mod vmm;
mod wire;

use super::device;
use opts::{Load, Opts};
use std::io::{BufRead, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, m: &log::Metadata) -> bool {
        m.level() <= log::Level::Warn
    }
    fn log(&self, r: &log::Record) {
        if self.enabled(r.metadata()) {
            eprintln!("device: {}", r.args());
        }
    }
    fn flush(&self) {}
}

/// `variant` is the write path, `version` the crate that brings it.
pub fn main(variant: &str, version: &str) {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let o = Opts::parse(&args, variant).unwrap_or_else(|e| {
        eprintln!("{e}");
        std::process::exit(2);
    });
    match o.role.as_str() {
        "audio" => audio::main(&o, map_shared(o.shm_fd)),
        "hog" => {
            sys::set_name("hog");
            loop {
                sys::burn(1_000_000_000);
            }
        }
        _ => std::process::exit(run(o, args, variant, version)),
    }
}

/// The page that guest and audio server share, as PipeWire's activation memory: the current cycle's number.
fn map_shared(fd: i32) -> &'static AtomicU64 {
    let p = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED, fd, 0)
    };
    assert_ne!(p, libc::MAP_FAILED, "shared page");
    unsafe { &*(p as *const AtomicU64) }
}

/// A copy of this program in another role; it dies with us.
fn spawn(args: &[String], extra: &[String], stdin: Stdio) -> Child {
    let me = std::process::id() as i32;
    let mut c = Command::new("/proc/self/exe");
    c.args(args).args(extra).stdin(stdin);
    unsafe {
        c.pre_exec(move || {
            sys::die_with_parent(me);
            Ok(())
        })
    };
    c.spawn().unwrap_or_else(|e| {
        eprintln!("cannot start a child: {e}");
        std::process::exit(3);
    })
}

fn raise_fd_limit() {
    let mut r = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut r);
        r.rlim_cur = r.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &r);
    }
}

fn run(o: Opts, args: Vec<String>, variant: &str, version: &str) -> i32 {
    let _ = log::set_logger(&Stderr).map(|()| log::set_max_level(log::LevelFilter::Warn));
    let signals = sys::signal_fd();
    raise_fd_limit();
    let shm = unsafe { libc::memfd_create(c"cycle".as_ptr(), 0) };
    unsafe { libc::ftruncate(shm, 4096) };
    let cycle = map_shared(shm);
    let dir = std::env::temp_dir().join(format!("realdevice-{}", std::process::id()));
    let made = std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&dir);
    if let Err(e) = made {
        eprintln!("cannot make {}: {e}", dir.display());
        return 3;
    }
    let socket = dir.join("channel").to_string_lossy().into_owned();
    let (status_r, status_w) = sys::pipe();
    unsafe { libc::fcntl(status_w, libc::F_SETFD, 0) };
    let extra = ["--role", "audio", "--socket", &socket, "--shm-fd", &shm.to_string(), "--status-fd"];
    let mut extra: Vec<String> = extra.iter().map(|s| s.to_string()).collect();
    extra.push(status_w.to_string());
    let mut audio = spawn(&args, &extra, Stdio::piped());
    sys::close(status_w);
    let mut status = std::io::BufReader::new(unsafe { std::fs::File::from_raw_fd(status_r) });
    let mut line = String::new();
    let _ = status.read_line(&mut line); // "listening"

    let vmm = vmm::Vmm::new();
    let (g_done_tx, g_done) = mpsc::channel();
    let (ready_tx, ready) = mpsc::channel();
    let v = vmm.clone();
    std::thread::spawn(move || {
        v.gpu_worker(socket);
        let _ = g_done_tx.send(());
    });
    let (v, oo) = (vmm.clone(), o.clone());
    std::thread::spawn(move || guest::Guest::run(oo, v, cycle, ready_tx));
    let came_up = ready.recv_timeout(Duration::from_secs(10)).is_ok();
    line.clear();
    let _ = status.read_line(&mut line);
    let _ = std::fs::remove_dir_all(&dir);
    if !came_up {
        eprintln!("the device did not come up");
        let _ = audio.kill();
        let _ = audio.wait();
        return 3;
    }
    if o.realtime && !make_realtime() {
        eprintln!("--realtime: not permitted");
    }
    println!(
        "{{\"type\":\"ready\",\"vmm\":{},\"audio\":{},\"write_path\":\"{variant}\",\"device\":\"{version}\",\
         \"period_ns\":{},\"streams\":[{}]}}",
        std::process::id(),
        audio.id(),
        o.period().as_nanos(),
        line.trim()
    );
    let _ = std::io::stdout().flush();

    let mut ended = o.hold_start && !wait_line(signals);
    let mut hogs = Vec::new();
    if !ended {
        if o.load == Load::Hogs {
            let role = ["--role".to_string(), "hog".to_string()];
            hogs = (0..o.hogs).map(|_| spawn(&args, &role, Stdio::null())).collect();
        }
        vmm.load_on.store(true, Ordering::Relaxed);
        if o.load == Load::Gpu {
            vmm.interrupt(); // the guest's first frame
        }
        let _ = audio.stdin.as_mut().unwrap().write_all(b"g");
        // "done", or the audio server's end
        let done = (status.get_ref().as_raw_fd(), libc::POLLIN);
        let ready = sys::poll(&[done, (signals, libc::POLLIN)], -1);
        ended = ready[1] != 0;
        if ended {
            let _ = audio.stdin.as_mut().unwrap().write_all(b"s");
            sys::poll(&[done], 5000);
        }
    }
    vmm.load_on.store(false, Ordering::Relaxed);
    for h in &mut hogs {
        let _ = h.kill();
        let _ = h.wait();
    }
    if o.linger && !ended {
        wait_eof(signals);
    }
    vmm.stop.store(true, Ordering::Relaxed);
    sys::eventfd_write(vmm.irq); // the guest ends first: the channel is about to be closed
    drop(audio.stdin.take()); // the audio server prints its truth, if it has not, and ends
    finish(&mut audio, status);
    if o.verbose {
        eprintln!(
            "vmm: {} turns, {} of them with the fence before its registration, {} failed commands",
            vmm.turns.load(Ordering::Relaxed),
            vmm.early_fences.load(Ordering::Relaxed),
            vmm.errors.load(Ordering::Relaxed)
        );
    }
    sys::eventfd_write(vmm.kick);
    // G takes the contexts down. A worker that hangs (id collision) must not keep us.
    let _ = g_done.recv_timeout(Duration::from_secs(2));
    0
}

/// SCHED_FIFO for G and the workers, found by name as a user would.
fn make_realtime() -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let mut ok = true;
    for t in tasks {
        let comm = std::fs::read_to_string(t.path().join("comm")).unwrap_or_default();
        if matches!(comm.trim(), "gpu worker" | "cross domain") {
            ok &= sys::set_fifo(t.file_name().to_string_lossy().parse().unwrap_or(0), 70);
        }
    }
    ok
}

/// True: a line came (or stdin ended); false: a signal.
fn wait_line(signals: i32) -> bool {
    let ready = sys::poll(&[(0, libc::POLLIN), (signals, libc::POLLIN)], -1);
    if ready[1] != 0 {
        return false;
    }
    let mut b = [0u8; 1];
    while matches!(std::io::stdin().read(&mut b), Ok(1)) && b[0] != b'\n' {}
    true
}

fn wait_eof(signals: i32) {
    let mut b = [0u8; 64];
    loop {
        let ready = sys::poll(&[(0, libc::POLLIN), (signals, libc::POLLIN)], -1);
        if ready[1] != 0 || unsafe { libc::read(0, b.as_mut_ptr().cast(), b.len()) } <= 0 {
            return;
        }
    }
}

/// Waits for the audio server's end (it closes the status pipe), 5 s at most.
fn finish(audio: &mut Child, mut status: std::io::BufReader<std::fs::File>) {
    let (tx, rx) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = status.read_to_string(&mut String::new());
        let _ = tx.send(());
    });
    if rx.recv_timeout(Duration::from_secs(5)).is_err() {
        let _ = audio.kill();
    }
    let _ = audio.wait();
}
