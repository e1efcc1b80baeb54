// SPDX-License-Identifier: Apache-2.0
//! How long the run's threads waited for a CPU, by the kernel's own count of each.
//!
//! What an injection does to a cycle is one cause. Where the machine kept the same threads off their CPUs
//! for as long, it is not the only one, and the truth has to say so.

use crate::inject::state;
use crate::process;
use crate::sys;
use std::fs::{read_dir, read_to_string, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const SAMPLES: usize = 1 << 16;
const THREADS: usize = 16;
/// Between looks at the counts, and between looks for new threads.
const EVERY_NS: u64 = 1_000_000;
const FIND_NS: u64 = 500_000_000;
/// W, G, the vCPUs that play the guest, forwarding tasks, D: what a cycle's way leads through.
const ON_THE_WAY: [&str; 6] = ["cross domain", "gpu worker", "fc_vcpu 0", "fc_vcpu 1", "fwd", "data-loop"];

/// When, and what each thread had waited by then; as many as there is room for.
#[repr(C)]
pub struct Waits {
    count: AtomicUsize,
    samples: [[AtomicU64; 1 + THREADS]; SAMPLES],
}

impl Waits {
    fn push(&self, ns: u64, waited_ns: impl Iterator<Item = u64>) {
        let at = self.count.load(Ordering::Acquire);
        if let Some(sample) = self.samples.get(at) {
            for (place, value) in sample.iter().zip(std::iter::once(ns).chain(waited_ns)) {
                place.store(value, Ordering::Release);
            }
            self.count.store(at + 1, Ordering::Release);
        }
    }

    pub fn all(&self) -> impl Iterator<Item = (u64, Vec<u64>)> + '_ {
        let known = self.samples.iter().take(self.count.load(Ordering::Acquire));
        known.map(|sample| {
            let mut values = sample.iter().map(|value| value.load(Ordering::Acquire));
            (values.next().unwrap_or(0), values.collect())
        })
    }
}

/// The second number of a schedstat: ns that a thread was runnable and waited.
fn waited(text: &str) -> Option<u64> {
    text.split_whitespace().nth(1)?.parse().ok()
}

struct Thread {
    path: String,
    file: File,
    /// What was last read; it stays when the thread has ended.
    waited_ns: u64,
}

/// Threads of our parent and of its other children: of the VMMs and the audio server.
#[derive(Default)]
struct Threads(Vec<Thread>);

impl Threads {
    fn find(&mut self) {
        let (us, parent) = (std::process::id(), std::os::unix::process::parent_id());
        let children = read_to_string(format!("/proc/{0}/task/{0}/children", parent)).unwrap_or_default();
        let pids = children.split_whitespace().filter_map(|word| word.parse().ok());
        for pid in std::iter::once(parent).chain(pids).filter(|&pid: &u32| pid != us) {
            for task in read_dir(format!("/proc/{}/task", pid)).into_iter().flatten().flatten() {
                let path = task.path().display().to_string();
                let known = self.0.len() == THREADS || self.0.iter().any(|thread| thread.path == path);
                let comm = read_to_string(format!("{}/comm", path)).unwrap_or_default();
                if known || !ON_THE_WAY.iter().any(|name| comm.starts_with(name)) {
                    continue;
                }
                if let Ok(file) = File::open(format!("{}/schedstat", path)) {
                    self.0.push(Thread { path, file, waited_ns: 0 });
                }
            }
        }
    }

    fn look(&mut self) {
        let mut text = [0; 64];
        for thread in &mut self.0 {
            let n = thread.file.read_at(&mut text, 0).unwrap_or(0);
            let ns = std::str::from_utf8(&text[..n]).ok().and_then(waited);
            thread.waited_ns = ns.unwrap_or(thread.waited_ns);
        }
    }
}

/// Looks once a millisecond; a thread of the process outside.
pub fn watch() {
    process::spawn("waits", || {
        process::sharp_timers();
        process::realtime(5);
        let mut threads = Threads::default();
        let (mut now, mut found) = (sys::now_ns(), 0);
        loop {
            if now >= found + FIND_NS {
                threads.find();
                found = now;
            }
            threads.look();
            state().waits.push(sys::now_ns(), threads.0.iter().map(|thread| thread.waited_ns));
            sys::sleep_until(now + EVERY_NS);
            now = sys::now_ns();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_waited_is_the_second_number() {
        assert_eq!(waited("4700 129 12\n"), Some(129));
        assert_eq!(waited(""), None);
    }
}
