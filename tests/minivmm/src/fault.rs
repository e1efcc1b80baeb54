// SPDX-License-Identifier: Apache-2.0
//! Memory that arrives late, as in post-copy migration: a page fault that another thread resolves.
//!
//! Whoever touches such a page is off the CPU outside any system call.

use crate::inject::Kind;
use crate::{inject, process, sys};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

const PAGE: usize = 4096;
const PAGES: usize = 4096;

static BASE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static NEXT: AtomicUsize = AtomicUsize::new(0);
/// How long the fault that comes next is to last.
static DELAY_NS: AtomicU64 = AtomicU64::new(0);

pub const KINDS: &[Kind] = &[Kind::FaultWake, Kind::FaultW, Kind::FaultG];

/// The VMM's memory of that kind, and the thread that fetches it.
pub fn start() {
    let memory = match sys::LateMemory::map(PAGES * PAGE) {
        Ok(memory) => memory,
        Err(error) => {
            eprintln!("minivmm: no userfaultfd, so no blocked.* is made: {}", error);
            return;
        }
    };
    BASE.store(memory.base, Ordering::Release);
    process::spawn("postcopy", move || {
        process::sharp_timers();
        while let Some(page) = memory.fault() {
            sys::sleep_ns(DELAY_NS.swap(0, Ordering::AcqRel));
            memory.resolve(page & !(PAGE - 1), PAGE);
        }
    });
}

/// Touches a page that was never there.
pub fn touch(plan: &inject::Plan) {
    let (base, page) = (BASE.load(Ordering::Acquire), NEXT.fetch_add(1, Ordering::AcqRel));
    if base.is_null() || page >= PAGES {
        return;
    }
    inject::timed(plan, |ns| {
        DELAY_NS.store(ns, Ordering::Release);
        // SAFETY: a mapped page; the kernel fills it while we wait.
        unsafe { std::ptr::read_volatile(base.add(page * PAGE)) };
    });
}
