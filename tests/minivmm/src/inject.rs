// SPDX-License-Identifier: Apache-2.0
//! Where an injector hooks in: functions called at the points whose delay has a name.
//!
//! The default does nothing. An injector replaces `Hooks::default()` in main.rs
//! with functions that delay chosen cycles and log what they did.

#[derive(Clone, Copy)]
pub struct Hooks {
    /// D, before it writes a stream's eventfd: stream, cycle.
    pub before_wake: fn(u32, u64),
    /// W, after it chose an item and before it takes item_state: context, item.
    pub before_serve: fn(u32, u32),
    /// W, under item_state, before the fence: context, item.
    pub under_lock: fn(u32, u32),
    /// The guest, before it kicks the completion: context, item.
    pub before_kick: fn(u32, u32),
    /// G, before it executes a command of a context: context.
    pub before_command: fn(u32),
    /// D, after a completion woke it and before it reads: target.
    pub before_close: fn(usize),
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks {
            before_wake: |_, _| {},
            before_serve: |_, _| {},
            under_lock: |_, _| {},
            before_kick: |_, _| {},
            before_command: |_| {},
            before_close: |_| {},
        }
    }
}
