// SPDX-License-Identifier: Apache-2.0
//! The command line, and what it means: which stream lives in which context.
//! Options, output and log are the mini-VMM's where both can do a thing.

use std::time::Duration;

pub const USAGE: &str = "usage: rd-VARIANT [options]
  --period Q/R           audio period (1024/48000)
  --streams N            sustained streams (1)
  --share-completion     the streams of a context share one completion eventfd: the last finisher writes it
  --churn N              N short streams at a time: about 5 N opens of two fds a second, in bursts (0)
  --topology T           shared: streams, churn and pipe share contexts; per-client: each has its own (shared)
  --contexts N           contexts that carry the churn (1)
  --load L               none | pipe | hogs | gpu (none)
  --reader R             slow | fast reader of the pipe (slow)
  --duration S           seconds; 0: until SIGTERM (0)
  --log FILE             one JSON line per stream and cycle
  --hold-start           wait for a line on stdin before audio and load start
  --linger               afterwards stay, idle, until stdin is closed
  --realtime             SCHED_FIFO for the worker threads
  --seed N               of everything random (1)
  --register PERCENT     of the short streams, how many get as far as READ_EVENTFD_NEW (5)
  --memory               each short stream brings a memfd too: a blob is made of it, attached, detached (short
                         streams of PipeWire do; takes item_state and context_resources on G)
  --leak                 short streams are never closed: what they brought stays open
  --no-id-guard          do not use up the first item ids (0.1.8x: they collide with event tokens)
  --hogs N --gpu-ms X --pipe-ms X --burst N   strength of the loads (2 per CPU, 3, 30, churn/5)
  --write-path P         checked against the variant that was built
  -v                     counters of the VMM on stderr at the end";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    None,
    Pipe,
    Hogs,
    Gpu,
}

#[derive(Clone, Debug)]
pub struct Opts {
    pub quantum: u64,
    pub rate: u64,
    pub streams: usize,
    pub share_completion: bool,
    pub churn: usize,
    pub per_client: bool,
    pub contexts: usize,
    pub load: Load,
    pub slow_reader: bool,
    pub duration: f64,
    pub log: Option<String>,
    pub hold_start: bool,
    pub linger: bool,
    pub realtime: bool,
    pub seed: u64,
    pub id_guard: bool,
    pub memory: bool,
    pub leak: bool,
    pub register: u64,
    pub hogs: usize,
    pub gpu_ms: f64,
    pub pipe_ms: f64,
    pub burst: usize,
    pub verbose: bool,
    /// Set only in children of our own: "audio" or "hog".
    pub role: String,
    pub socket: String,
    pub shm_fd: i32,
    pub status_fd: i32,
}

impl Opts {
    /// Parses the arguments; the error is one line for the user.
    pub fn parse(args: &[String], variant: &str) -> Result<Opts, String> {
        let cpus = std::thread::available_parallelism().map_or(2, |n| n.get());
        let mut o = Opts {
            quantum: 1024,
            rate: 48000,
            streams: 1,
            share_completion: false,
            churn: 0,
            per_client: false,
            contexts: 1,
            load: Load::None,
            slow_reader: true,
            duration: 0.0,
            log: None,
            hold_start: false,
            linger: false,
            realtime: false,
            seed: 1,
            id_guard: true,
            memory: false,
            leak: false,
            register: 5,
            hogs: 2 * cpus,
            gpu_ms: 3.0,
            pipe_ms: 30.0,
            burst: 0,
            verbose: false,
            role: String::new(),
            socket: String::new(),
            shm_fd: -1,
            status_fd: -1,
        };
        let mut it = args.iter();
        while let Some(a) = it.next() {
            let mut val = || it.next().cloned().ok_or(format!("{a} needs a value"));
            match a.as_str() {
                "--period" => {
                    let v = val()?;
                    let (q, r) = v.split_once('/').ok_or("--period is QUANTUM/RATE, as 256/48000")?;
                    o.quantum = num(q, a)?;
                    o.rate = num(r, a)?;
                    if o.quantum == 0 || o.rate == 0 {
                        return Err("--period must not be 0".into());
                    }
                }
                "--streams" => o.streams = num(&val()?, a)?,
                "--share-completion" => o.share_completion = true,
                "--churn" => o.churn = num(&val()?, a)?,
                "--topology" => o.per_client = one_of(&val()?, a, &["shared", "per-client"])? == 1,
                "--contexts" => o.contexts = num(&val()?, a)?,
                "--load" => {
                    o.load = match val()?.as_str() {
                        "none" => Load::None,
                        "pipe" => Load::Pipe,
                        "hogs" => Load::Hogs,
                        "gpu" => Load::Gpu,
                        l @ ("preempt-holder" | "nested") => {
                            return Err(format!(
                                "--load {l} needs code inside the device: only the mini-VMM has it"
                            ))
                        }
                        l => return Err(format!("--load {l}: none, pipe, hogs or gpu")),
                    }
                }
                "--reader" => o.slow_reader = one_of(&val()?, a, &["slow", "fast"])? == 0,
                "--duration" => o.duration = num(&val()?, a)?,
                "--log" => o.log = Some(val()?),
                "--hold-start" => o.hold_start = true,
                "--linger" => o.linger = true,
                "--realtime" => o.realtime = true,
                "--seed" => o.seed = num(&val()?, a)?,
                "--leak" => o.leak = true,
                "--memory" => o.memory = true,
                "--no-id-guard" => o.id_guard = false,
                "--register" => o.register = num(&val()?, a)?,
                "--hogs" => o.hogs = num(&val()?, a)?,
                "--gpu-ms" => o.gpu_ms = num(&val()?, a)?,
                "--pipe-ms" => o.pipe_ms = num(&val()?, a)?,
                "--burst" => o.burst = num(&val()?, a)?,
                "--write-path" => {
                    let v = val()?;
                    if v != variant {
                        return Err(format!("this binary is the variant {variant}, not {v}"));
                    }
                }
                "--worker" => {
                    if val()? != "first" {
                        return Err("the real worker serves events[0]: only --worker first".into());
                    }
                }
                "-v" => o.verbose = true,
                "--role" => o.role = val()?,
                "--socket" => o.socket = val()?,
                "--shm-fd" => o.shm_fd = num(&val()?, a)?,
                "--status-fd" => o.status_fd = num(&val()?, a)?,
                "-h" | "--help" => return Err(USAGE.into()),
                _ => return Err(format!("unknown option {a}\n{USAGE}")),
            }
        }
        if o.streams == 0 || o.contexts == 0 || o.streams > MAX_STREAMS || o.contexts > 32 {
            return Err(format!("--streams must be 1..{MAX_STREAMS}, --contexts 1..32"));
        }
        if o.burst == 0 {
            o.burst = (o.churn / 5).max(1);
        }
        Ok(o)
    }

    pub fn period(&self) -> Duration {
        Duration::from_nanos(self.quantum * 1_000_000_000 / self.rate)
    }
}

pub const MAX_STREAMS: usize = 64;

fn num<T: std::str::FromStr>(s: &str, option: &str) -> Result<T, String> {
    s.parse().map_err(|_| format!("{option}: not a number: {s}"))
}

fn one_of(s: &str, option: &str, words: &[&str]) -> Result<usize, String> {
    words.iter().position(|w| *w == s).ok_or(format!("{option} is one of {}", words.join(", ")))
}

/// Which context (by index from 0) carries what. A context is a client's
/// connection.
pub struct Layout {
    pub contexts: usize,
    pub stream_ctx: Vec<usize>,
    pub churn_ctx: Vec<usize>,
    pub pipe_ctx: usize,
}

impl Layout {
    pub fn new(o: &Opts) -> Layout {
        let extra = o.churn > 0 || o.load == Load::Pipe;
        if o.per_client {
            let contexts = o.streams + if extra { o.contexts } else { 0 };
            Layout {
                contexts,
                stream_ctx: (0..o.streams).collect(),
                churn_ctx: (o.streams..contexts).collect(),
                pipe_ctx: contexts - 1,
            }
        } else {
            Layout {
                contexts: o.contexts,
                stream_ctx: (0..o.streams).map(|i| i % o.contexts).collect(),
                churn_ctx: (0..o.contexts).collect(),
                pipe_ctx: 0,
            }
        }
    }
}
