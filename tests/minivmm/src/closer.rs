// SPDX-License-Identifier: Apache-2.0
//! Who wrote the completion that D has read: the VMM, or the client outside it. Pure bookkeeping.
//!
//! An eventfd keeps no author. The guest counts what it has G write, the client outside what it begins
//! and ends to write; the value that D reads settles the rest, but where both write at that instant.

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Closer {
    Vmm,
    Other,
    /// Both were writing while D read.
    Either,
}

impl Closer {
    pub fn text(self) -> &'static str {
        match self {
            Closer::Vmm => "vmm",
            Closer::Other => "other",
            Closer::Either => "either",
        }
    }
}

/// What was counted when D read: `done` before it, the others after it.
pub struct Counted {
    pub asked: u64,
    pub begun: u64,
    pub done: u64,
}

/// Of one completion, whose writes have been read so far.
#[derive(Default)]
pub struct Authors {
    vmm: u64,
    other: u64,
}

impl Authors {
    /// Tells whose the writes of a read are. The VMM's closes the cycle where it is among them.
    pub fn read(&mut self, value: u64, counted: Counted) -> Closer {
        let unread = |count: u64, read: u64| count.saturating_sub(read);
        let most = unread(counted.begun, self.other).min(value);
        let of_vmm = unread(counted.asked, self.vmm);
        let least = unread(counted.done, self.other).max(value.saturating_sub(of_vmm)).min(most);
        self.other += most;
        self.vmm += value - most;
        match (least, most) {
            (_, most) if most < value => Closer::Vmm,
            (least, _) if least == value => Closer::Other,
            _ => Closer::Either,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(asked: u64, begun: u64, done: u64) -> Counted {
        Counted { asked, begun, done }
    }

    #[test]
    fn a_write_is_the_one_s_who_began_any() {
        let mut authors = Authors::default();
        assert_eq!(authors.read(1, counted(1, 0, 0)), Closer::Vmm);
        assert_eq!(authors.read(1, counted(1, 1, 1)), Closer::Other);
        assert_eq!(authors.read(1, counted(1, 2, 1)), Closer::Other); // the write itself woke D
    }

    #[test]
    fn of_two_in_one_read_the_vmm_s_closes() {
        let mut authors = Authors::default();
        assert_eq!(authors.read(2, counted(1, 1, 1)), Closer::Vmm);
    }

    #[test]
    fn a_write_that_was_asked_for_and_is_not_there_yet_is_not_the_one_read() {
        let mut authors = Authors::default();
        assert_eq!(authors.read(1, counted(1, 1, 1)), Closer::Other);
        assert_eq!(authors.read(1, counted(1, 1, 1)), Closer::Vmm);
    }

    #[test]
    fn where_both_write_at_that_instant_it_is_not_told() {
        let mut authors = Authors::default();
        assert_eq!(authors.read(1, counted(1, 1, 0)), Closer::Either);
        assert_eq!(authors.read(1, counted(1, 1, 1)), Closer::Vmm);
    }
}
