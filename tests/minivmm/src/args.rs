// SPDX-License-Identifier: Apache-2.0
//! The command line: one struct, and how streams map to contexts and targets.

use crate::inject::{self, Wanted};
use std::str::FromStr;

pub const USAGE: &str = "minivmm: a small VMM with a cross-domain device, and an audio server
  --write-path locked|dup|refcount|task   how G writes eventfds (locked)
  --worker first|fair                     which ready event W serves (first)
  --topology shared|per-client            do streams share the churn's context (shared)
  --period QUANTUM/RATE                   1024/48000
  --timer rearm|periodic                  how the driver's timerfd runs (rearm)
  --streams N                             sustained streams, 1 to 16 (1)
  --async                                 no stream ever completes a cycle, and nobody waits for it
  --share-completion                      one completion eventfd for all, written by the last finisher
  --churn N                               short streams cycling, each about 5 opens/s (0)
  --load none|pipe|preempt-holder|nested|hogs|gpu   (none)
  --guest-us MIN,MAX                      the guest's latency per wakeup (100,300)
  --guest-waits-us MIN,MAX                a client waits so long before it completes (0,0)
  --vcpus N                               at least 2 (4)
  --duration S                            seconds; 0: until a signal (0)
  --seed N                                (1)
  --wav FILE  --log FILE                  what was played; JSON lines, one per stream and cycle
  --hold-start                            wait for a line on stdin before audio and load start
  --linger                                stay, idle, after the run until stdin is closed, which ends a run too
  --negative KIND[,KIND]                  what is no miss: pause suspend reuse quantum async condvar idle
                                          shared-futex driver follower (README)
  --vmms N                                VMMs on one audio server, streams in turn (1)
  --inject SPEC  --inject-file FILE       delay chosen cycles: KIND[&KIND][:MIN..MAX in periods][+KIND...] (README)
  --truth FILE                            JSON lines, one per delay that was made
  --userns                                run the VMM in a user and a pid namespace";

macro_rules! choice {
    ($name:ident { $($variant:ident = $text:literal),* }) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($variant),* }
        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<$name, String> {
                match s {
                    $($text => Ok($name::$variant),)*
                    _ => Err(format!("{:?} is none of{}", s, concat!($(" ", $text),*))),
                }
            }
        }
        impl $name {
            #[allow(dead_code)] // not every choice is said again
            pub fn text(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    };
}

choice!(WritePath { Locked = "locked", Dup = "dup", Refcount = "refcount", Task = "task" });
choice!(WorkerOrder { First = "first", Fair = "fair" });
choice!(Topology { Shared = "shared", PerClient = "per-client" });
choice!(Timer { Rearm = "rearm", Periodic = "periodic" });
choice!(Load {
    None = "none", Pipe = "pipe", PreemptHolder = "preempt-holder", Nested = "nested", Hogs = "hogs", Gpu = "gpu"
});

choice!(Negative {
    Pause = "pause", Suspend = "suspend", Reuse = "reuse", Quantum = "quantum", Async = "async",
    Condvar = "condvar", Idle = "idle", SharedFutex = "shared-futex", Driver = "driver", Follower = "follower"
});

#[derive(Clone, Debug)]
pub struct Args {
    pub write_path: WritePath,
    pub worker: WorkerOrder,
    pub topology: Topology,
    pub timer: Timer,
    pub load: Load,
    pub quantum: u64,
    pub rate: u64,
    pub streams: usize,
    pub share_completion: bool,
    pub asynchronous: bool,
    pub churn: usize,
    pub guest_us: (f64, f64),
    pub guest_waits_us: (f64, f64),
    pub vcpus: usize,
    pub duration_s: f64,
    pub seed: u64,
    pub wav: Option<String>,
    pub log: Option<String>,
    pub hold_start: bool,
    pub linger: bool,
    pub userns: bool,
    pub inject: Vec<Wanted>,
    pub truth: Option<String>,
    pub negative: Vec<Negative>,
    pub vmms: usize,
}

fn parsed<T: FromStr>(text: &str) -> Result<T, String>
where
    T::Err: ToString,
{
    text.parse::<T>().map_err(|e| format!("{:?}: {}", text, e.to_string()))
}

fn pair<T: FromStr>(text: &str, by: char) -> Result<(T, T), String>
where
    T::Err: ToString,
{
    let (a, b) = text.split_once(by).ok_or_else(|| format!("{:?} has no {:?}", text, by))?;
    Ok((parsed(a)?, parsed(b)?))
}

impl Args {
    pub fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
        let mut a = Args {
            write_path: WritePath::Locked,
            worker: WorkerOrder::First,
            topology: Topology::Shared,
            timer: Timer::Rearm,
            load: Load::None,
            quantum: 1024,
            rate: 48000,
            streams: 1,
            share_completion: false,
            asynchronous: false,
            churn: 0,
            guest_us: (100.0, 300.0),
            guest_waits_us: (0.0, 0.0),
            vcpus: 4,
            duration_s: 0.0,
            seed: 1,
            wav: None,
            log: None,
            hold_start: false,
            linger: false,
            userns: false,
            inject: Vec::new(),
            truth: None,
            negative: Vec::new(),
            vmms: 1,
        };
        while let Some(word) = words.next() {
            let (key, inline) = match word.split_once('=') {
                Some((k, v)) => (k.to_string(), Some(v.to_string())),
                None => (word, None),
            };
            let mut value =
                || inline.clone().or_else(|| words.next()).ok_or(format!("{} needs a value", key));
            match key.as_str() {
                "--write-path" => a.write_path = parsed(&value()?)?,
                "--worker" => a.worker = parsed(&value()?)?,
                "--topology" => a.topology = parsed(&value()?)?,
                "--timer" => a.timer = parsed(&value()?)?,
                "--load" => a.load = parsed(&value()?)?,
                "--period" => {
                    let (quantum, rate) = pair(&value()?, '/')?;
                    a.quantum = quantum;
                    a.rate = rate;
                }
                "--streams" => a.streams = parsed(&value()?)?,
                "--async" => a.asynchronous = true,
                "--share-completion" => a.share_completion = true,
                "--churn" => a.churn = parsed(&value()?)?,
                "--guest-us" => a.guest_us = pair(&value()?, ',')?,
                "--guest-waits-us" => a.guest_waits_us = pair(&value()?, ',')?,
                "--vcpus" => a.vcpus = parsed(&value()?)?,
                "--duration" => a.duration_s = parsed(&value()?)?,
                "--seed" => a.seed = parsed(&value()?)?,
                "--wav" => a.wav = Some(value()?),
                "--log" => a.log = Some(value()?),
                "--hold-start" => a.hold_start = true,
                "--linger" => a.linger = true,
                "--userns" => a.userns = true,
                "--inject" => a.inject.extend(inject::parse(&value()?)?),
                "--inject-file" => {
                    let path = value()?;
                    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {}", path, e))?;
                    a.inject.extend(inject::parse(&text)?);
                }
                "--negative" => {
                    a.negative = value()?.split(',').map(parsed).collect::<Result<_, _>>()?;
                }
                "--vmms" => a.vmms = parsed(&value()?)?,
                "--truth" => a.truth = Some(value()?),
                _ => return Err(format!("unknown option {}", key)),
            }
        }
        let sane = (1..=16).contains(&a.streams) && a.vcpus >= 2 && a.quantum > 0 && a.rate > 0;
        let sane = sane && (1..=4).contains(&a.vmms) && a.vmms <= a.streams;
        let whole = a.wav.is_none() && a.inject.is_empty() && !a.share_completion;
        if !(a.negative.is_empty() || whole) {
            return Err("--negative goes without --inject, --wav and --share-completion".to_string());
        }
        let sane = sane && a.guest_us.0 >= 0.0 && a.guest_us.1 >= a.guest_us.0 && a.duration_s >= 0.0;
        if !sane {
            return Err("a number is out of range".to_string());
        }
        Ok(a)
    }

    pub fn period_ns(&self) -> u64 {
        self.quantum * 1_000_000_000 / self.rate
    }

    pub fn negates(&self, kind: Negative) -> bool {
        self.negative.contains(&kind)
    }

    /// Which VMM plays a stream.
    pub fn vmm_of(&self, stream: usize) -> usize {
        stream % self.vmms
    }

    /// Where the socket of a stream's context is among those of all VMMs.
    pub fn socket_of(&self, stream: usize) -> usize {
        self.vmm_of(stream) * self.contexts() + self.context_of(stream)
    }

    /// Per VMM. Contexts are numbered from 0 here; on the wire ctx_id is one more.
    pub fn contexts(&self) -> usize {
        self.other_context() + 1
    }

    pub fn context_of(&self, stream: usize) -> usize {
        match self.topology {
            Topology::PerClient if !self.share_completion => stream,
            _ => 0,
        }
    }

    /// The context of the churn and of the loads' own items.
    pub fn other_context(&self) -> usize {
        match self.topology {
            Topology::Shared => 0,
            Topology::PerClient => self.context_of(self.streams - 1) + 1,
        }
    }

    /// How many finish a stream's cycle; 0: it is async, nobody waits for it.
    pub fn group_of(&self, stream: usize) -> usize {
        if self.asynchronous || self.negates(Negative::Async) && stream % 2 == 1 {
            return 0;
        }
        self.streams / self.targets() + usize::from(stream == 0 && self.negates(Negative::Follower))
    }

    /// Completion targets: each stream's own, or one for all.
    pub fn targets(&self) -> usize {
        if self.share_completion {
            1
        } else {
            self.streams
        }
    }

    pub fn target_of(&self, stream: usize) -> usize {
        if self.share_completion {
            0
        } else {
            stream
        }
    }
}
