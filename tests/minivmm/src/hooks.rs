// SPDX-License-Identifier: Apache-2.0
//! Where the injector hooks in: functions called at the points whose delay has a name.
//!
//! The default does nothing.

use crate::fault;
use crate::inject::{self, compute, peek, place, slow_call, state, take, take_of, timed, Kind};
use crate::sys;
use std::sync::atomic::Ordering;

#[derive(Clone, Copy)]
pub struct Hooks {
    /// D, before it writes a stream's eventfd: stream, cycle.
    pub before_wake: fn(u32, u64),
    /// W, after it chose an item and before it takes item_state: context, item; false: W ends.
    pub before_serve: fn(u32, u32) -> bool,
    /// W, under item_state, before the fence: context, item.
    pub under_lock: fn(u32, u32),
    /// W has taken one message from the channel.
    pub received: fn(),
    /// The guest, before it re-arms W after the read of an item: context, item.
    pub before_poll: fn(u32, u32),
    /// The guest, before it kicks the completion: context, item.
    pub before_kick: fn(u32, u32),
    /// G, before it executes a completion's WRITE: context, item; false: nothing is written.
    pub before_write: fn(u32, u32) -> bool,
    /// G, under item_state, in the creation of a blob.
    pub allocating: fn(),
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks {
            before_wake: |_, _| {},
            before_serve: |_, _| true,
            under_lock: |_, _| {},
            received: || {},
            before_poll: |_, _| {},
            before_kick: |_, _| {},
            before_write: |_, _| true,
            allocating: || {},
        }
    }
}

impl Hooks {
    pub fn injecting() -> Hooks {
        Hooks {
            before_wake,
            before_serve,
            under_lock,
            received,
            before_poll,
            before_kick,
            before_write,
            allocating,
        }
    }
}

fn is_own(context: u32, item: u32) -> bool {
    place(context, item) == state().own_item.load(Ordering::Acquire)
}

fn wakes(context: u32, item: u32) -> impl Fn(usize) -> bool {
    move |stream| state().wake_item[stream].load(Ordering::Acquire) == place(context, item)
}

fn completes(context: u32, item: u32) -> impl Fn(usize) -> bool {
    move |stream| state().completion_item[stream].load(Ordering::Acquire) == place(context, item)
}

fn before_wake(stream: u32, _cycle: u64) {
    let is_it = |hit| hit == stream as usize;
    if let Some((plan, _)) = take_of(&[Kind::Host], is_it) {
        compute(&plan);
    }
    if peek(&[Kind::OffD]).map_or(false, |found| is_it(found.0.stream)) {
        let _ = sys::write_u64(&inject::fds().client, 1); // a client that D wakes before ours
    }
}

fn before_serve(context: u32, item: u32) -> bool {
    let kinds = &[Kind::SlowWake, Kind::CpuWake, Kind::FaultWake, Kind::Exit];
    match take_of(kinds, wakes(context, item)) {
        Some((plan, Kind::SlowWake)) => timed(&plan, slow_call),
        Some((plan, Kind::CpuWake)) => compute(&plan),
        Some((plan, Kind::FaultWake)) => fault::touch(&plan),
        Some((plan, _)) => {
            timed(&plan, |_| {});
            state().exited.fetch_or(1 << plan.stream, Ordering::AcqRel);
            return false;
        }
        None => {}
    }
    true
}

fn under_lock(context: u32, item: u32) {
    let found = match is_own(context, item) {
        true => take(&[Kind::ItemState], false),
        false => take_of(&[Kind::SlowW, Kind::CpuW, Kind::FaultW], wakes(context, item)),
    };
    match found {
        Some((plan, Kind::CpuW)) => compute(&plan),
        Some((plan, Kind::FaultW)) => fault::touch(&plan),
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

fn before_poll(context: u32, item: u32) {
    if is_own(context, item) {
        if let Some((plan, _)) = take(&[Kind::RearmGuest], true) {
            compute(&plan);
        }
    }
}

fn before_kick(context: u32, item: u32) {
    if let Some((plan, _)) = take_of(&[Kind::Guest], completes(context, item)) {
        compute(&plan);
    }
}

fn before_write(context: u32, item: u32) -> bool {
    let kinds = &[Kind::SlowG, Kind::CpuG, Kind::FaultG, Kind::Failed, Kind::NoWrite];
    match take_of(kinds, completes(context, item)) {
        Some((plan, Kind::SlowG)) => timed(&plan, slow_call),
        Some((plan, Kind::CpuG)) => compute(&plan),
        Some((plan, Kind::FaultG)) => fault::touch(&plan),
        Some((plan, Kind::NoWrite)) => {
            timed(&plan, |_| {}); // as for an item that is gone
            return false;
        }
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

fn allocating() {
    if peek(&[Kind::OffGHolder]).is_some() {
        let _ = sys::write_u64(&inject::fds().allocator, 1); // wakes one that shares G's CPU
    } else if let Some((plan, _)) = take(&[Kind::ItemStateWake, Kind::BusyBlob], true) {
        timed(&plan, slow_call);
    }
}
