// SPDX-License-Identifier: Apache-2.0
//! Where the injector hooks in: functions called at the points whose delay has a name.
//!
//! The default does nothing.

use crate::inject::{self, compute, peek, slow_call, state, take, timed, Kind};
use crate::sys;
use std::sync::atomic::Ordering;

#[derive(Clone, Copy)]
pub struct Hooks {
    /// D, before it writes a stream's eventfd: stream, cycle.
    pub before_wake: fn(u32, u64),
    /// W, after it chose an item and before it takes item_state: context, item.
    pub before_serve: fn(u32, u32),
    /// W, under item_state, before the fence: context, item.
    pub under_lock: fn(u32, u32),
    /// W has taken one message from the channel.
    pub received: fn(),
    /// The guest, before it re-arms W.
    pub before_poll: fn(u32),
    /// The guest, before it kicks the completion: context, item.
    pub before_kick: fn(u32, u32),
    /// G, before it executes a completion's WRITE; false: it has failed.
    pub before_write: fn() -> bool,
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks {
            before_wake: |_, _| {},
            before_serve: |_, _| {},
            under_lock: |_, _| {},
            received: || {},
            before_poll: |_| {},
            before_kick: |_, _| {},
            before_write: || true,
        }
    }
}

impl Hooks {
    pub fn injecting() -> Hooks {
        Hooks { before_wake, before_serve, under_lock, received, before_poll, before_kick, before_write }
    }
}

fn is_own(item: u32) -> bool {
    item == state().own_item.load(Ordering::Acquire)
}

fn before_wake(_stream: u32, _cycle: u64) {
    if let Some((plan, _)) = take(&[Kind::Host], false) {
        compute(&plan);
    }
    if peek(&[Kind::OffD]).is_some() {
        let _ = sys::write_u64(&inject::fds().client, 1); // a client that D wakes before ours
    }
}

fn before_serve(_context: u32, item: u32) {
    if is_own(item) {
        return;
    }
    match take(&[Kind::SlowWake, Kind::CpuWake], false) {
        Some((plan, Kind::SlowWake)) => timed(&plan, slow_call),
        Some((plan, _)) => compute(&plan),
        None => {}
    }
}

fn under_lock(_context: u32, item: u32) {
    let kinds: &[Kind] = if is_own(item) { &[Kind::ItemState] } else { &[Kind::SlowW, Kind::CpuW] };
    match take(kinds, false) {
        Some((plan, Kind::CpuW)) => compute(&plan),
        Some((plan, _)) => timed(&plan, slow_call),
        None => {}
    }
}

/// The last message of a burst ends the injection.
fn received() {
    let state = state();
    if state.burst.load(Ordering::Acquire) > 0 && state.burst.fetch_sub(1, Ordering::AcqRel) == 1 {
        if let Some((plan, _)) = take(&[Kind::Serialised], true) {
            inject::log(&plan, state.burst_begin_ns.load(Ordering::Acquire), sys::now_ns());
        }
    }
}

fn before_poll(item: u32) {
    if is_own(item) {
        if let Some((plan, _)) = take(&[Kind::RearmGuest], true) {
            compute(&plan);
        }
    }
}

fn before_kick(_context: u32, _item: u32) {
    if let Some((plan, _)) = take(&[Kind::Guest], false) {
        compute(&plan);
    }
}

fn before_write() -> bool {
    match take(&[Kind::SlowG, Kind::CpuG, Kind::Failed], false) {
        Some((plan, Kind::SlowG)) => timed(&plan, slow_call),
        Some((plan, Kind::CpuG)) => compute(&plan),
        Some((plan, _)) => {
            timed(&plan, |_| {
                let _ = crate::process::write_closed(&1u64.to_ne_bytes());
            });
            return false;
        }
        None => {}
    }
    true
}
