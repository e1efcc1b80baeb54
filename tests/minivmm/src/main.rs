// SPDX-License-Identifier: Apache-2.0
//! minivmm: a VMM with a cross-domain device, and an audio server, as a target to trace.
//!
//! All processes are forked here, before any thread exists.

mod actors;
mod args;
mod audio;
mod bridge;
mod churn;
mod closer;
mod fault;
mod fence;
mod gpu;
mod guest;
mod hooks;
mod inject;
mod load;
mod negative;
mod pipewire;
mod process;
mod protocol;
mod queue;
mod report;
mod server;
mod shared;
mod sys;
mod table;
mod times;
mod truth;
mod vmm;
mod waits;
mod wav;
mod worker;

use args::Args;
use churn::LoadFds;
use hooks::Hooks;
use shared::Shared;
use std::os::unix::io::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|w| w == "--help" || w == "-h") {
        println!("{}", args::USAGE);
        return;
    }
    if words.first().map(String::as_str) == Some(pipewire::COMMAND) {
        std::process::exit(pipewire::main(&words[1..]));
    }
    let args = match Args::parse(words.into_iter()) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("minivmm: {}\n{}", message, args::USAGE);
            std::process::exit(2);
        }
    };
    let code = run(args).unwrap_or_else(|error| {
        eprintln!("minivmm: {}", error);
        1
    });
    std::process::exit(code);
}

fn run(args: Args) -> std::io::Result<i32> {
    process::calibrate();
    let shared = Shared::map();
    shared.period_ns.store(args.period_ns(), Ordering::Release);
    let fds = Arc::new(LoadFds::new()?);
    let injecting = !args.inject.is_empty();
    let hooks = if injecting { Hooks::injecting() } else { Hooks::default() };
    inject::prepare()?;
    let (control, server_control) = sys::socket_pair()?;
    let pairs =
        (0..args.vmms * args.contexts()).map(|_| sys::socket_pair()).collect::<Result<Vec<_>, _>>()?;
    let (mut channels, sockets): (Vec<OwnedFd>, Vec<OwnedFd>) = pairs.into_iter().unzip();

    let audio = match process::spawn_process("minipipewire")? {
        Some(pid) => pid,
        None => {
            drop((control, channels));
            return server::run(server::Server {
                args,
                control: server_control,
                sockets,
                shared,
                fds,
                hooks,
            });
        }
    };
    let mut children = vec![audio];
    let outside = sys::dup(&sockets[args.other_context()])?;
    if injecting {
        match process::spawn_process("inject")? {
            Some(pid) => children.push(pid),
            None => {
                drop((control, server_control, channels, sockets));
                actors::run_process(&args, shared, &fds, outside)
            }
        }
    }
    drop((server_control, sockets, outside));
    if load::has_process(&args) {
        match process::spawn_process("load")? {
            Some(pid) => children.push(pid),
            None => load::run_process(&args, shared, &fds),
        }
    }
    let mut others = Vec::new();
    for index in 1..args.vmms {
        let channels = channels.drain(args.contexts()..2 * args.contexts()).collect::<Vec<_>>();
        let (args, fds) = (args.clone(), fds.clone());
        match process::spawn_process("minivmm")? {
            Some(pid) => others.push(pid),
            None => {
                inject::set_vmm(index);
                drop(control);
                let control = sys::event(false)?;
                vmm::run_beside(
                    Run { args, shared, fds, hooks, audio }.vmm(control, channels, index, None)?,
                )?;
                std::process::exit(0);
            }
        }
    }
    children.extend(&others);
    let run = Run { args, shared, fds, hooks, audio };
    let code = if run.args.userns {
        run_in_namespaces(run, control, channels)
    } else {
        run.vmm(control, channels, 0, None).and_then(|mut vmm| {
            vmm.others = others;
            vmm::run(vmm)
        })
    };
    end_children(&children);
    code
}

/// What all VMMs of a run have in common.
struct Run {
    args: Args,
    shared: &'static Shared,
    fds: Arc<LoadFds>,
    hooks: Hooks,
    audio: i32,
}

impl Run {
    /// This process's VMM; `pid`: as seen from outside, where that is another.
    fn vmm(
        self,
        control: OwnedFd,
        channels: Vec<OwnedFd>,
        index: usize,
        pid: Option<i32>,
    ) -> std::io::Result<vmm::Vmm> {
        let Run { args, shared, fds, hooks, audio } = self;
        let signals = process::signals()?;
        let (pid, others) = (pid.unwrap_or(std::process::id() as i32), Vec::new());
        Ok(vmm::Vmm { args, control, channels, shared, fds, hooks, signals, index, others, pid, audio })
    }
}

/// The VMM as first process of a pid namespace; this process only relays signals.
fn run_in_namespaces(run: Run, control: OwnedFd, channels: Vec<OwnedFd>) -> std::io::Result<i32> {
    let signals = process::signals()?;
    process::enter_namespaces()?;
    let (told, tell) = sys::pipe(4096)?;
    let child = match process::spawn_process("minivmm")? {
        Some(pid) => pid,
        None => {
            let mut pid = [0; 4];
            sys::read_bytes(&told, &mut pid)?;
            let vmm = run.vmm(control, channels, 0, Some(i32::from_ne_bytes(pid)));
            let code = vmm.and_then(vmm::run);
            std::process::exit(code.unwrap_or(1));
        }
    };
    drop((control, channels));
    sys::write_bytes(&tell, &child.to_ne_bytes())?;
    loop {
        sys::readable(&[signals.as_raw_fd()], 500);
        if process::asked_to_end(&signals) {
            process::send_signal(child, process::SIGTERM);
        }
        if let Some(code) = process::reap(child, false) {
            return Ok(code);
        }
    }
}

/// No orphans: whoever still runs is killed and reaped.
fn end_children(children: &[i32]) {
    for &pid in children {
        process::send_signal(pid, process::SIGKILL);
        process::reap(pid, true);
    }
}
