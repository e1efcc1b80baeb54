// SPDX-License-Identifier: Apache-2.0
//! What the audio server knows for itself: cycles, misses, episodes. Pure bookkeeping.
//!
//! A cycle is missed if no completion was read between its wakeup and the next
//! cycle's start. An episode lasts from the first miss to the next completion,
//! because a completion closes all cycles signalled so far. What another client's completion closed
//! is no completion miss: that client finished last.

use crate::closer::Closer;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leg {
    None,
    Wake,
    Completion,
}

impl Leg {
    pub fn text(self) -> &'static str {
        match self {
            Leg::None => "none",
            Leg::Wake => "wake",
            Leg::Completion => "completion",
        }
    }
}

/// A wakeup of a stream.
pub struct Signal {
    pub stream: usize,
    pub wake_id: i64,
    pub cycle: u64,
    pub start_ns: u64,
    pub ns: u64,
}

/// One (stream, cycle).
#[derive(Clone, Debug)]
pub struct Row {
    pub stream: usize,
    /// Its eventfd at that time.
    pub wake_id: i64,
    pub cycle: u64,
    pub start_ns: u64,
    pub signal_ns: u64,
    /// When its eventfd had been written.
    pub signalled_ns: u64,
    /// 0: never closed.
    pub closing_ns: u64,
    /// S of the next cycle, 0 while it is not known.
    pub deadline_ns: u64,
    /// A miss of this stream: a wake miss, or the completion miss of a target of its own.
    pub leg: Leg,
    /// The target's cycle was late, by whichever stream.
    pub target_missed: bool,
    /// Who wrote the completion that closed it; None: nobody.
    pub closer: Option<Closer>,
    /// Its client had not finished at the deadline.
    pub at_work: bool,
    /// When W began to read its wakeup; 0: not by its closing.
    pub read_ns: u64,
    /// When the completion of ours that closed it had been written; 0: not ours, or just being written.
    pub written_ns: u64,
}

/// A stream at a deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// Its wakeup is still unread.
    Unread,
    AtWork,
    Finished,
}

#[derive(Clone, Default)]
pub struct StreamCounts {
    pub cycles: u64,
    pub wake_misses: u64,
    pub completion_misses: u64,
}

#[derive(Clone, Default)]
pub struct TargetCounts {
    pub episodes: u64,
    pub wake_misses: u64,
    pub completion_misses: u64,
}

struct TargetState {
    streams: Vec<usize>,
    in_episode: bool,
    /// Misses of the episode, by leg.
    missed: [u64; 2],
    open_rows: Vec<usize>,
}

pub struct Truth {
    pub rows: Vec<Row>,
    pub streams: Vec<StreamCounts>,
    pub targets: Vec<TargetCounts>,
    state: Vec<TargetState>,
    /// Rows of the last cycle that nobody will complete.
    unanswered: Vec<usize>,
    /// Of those, what was unread at its deadline and still is.
    unread: Vec<usize>,
}

impl Truth {
    /// `target_of` gives each stream's target.
    pub fn new(target_of: &[usize]) -> Truth {
        let targets = target_of.iter().max().map_or(0, |t| t + 1);
        let of = |t: usize| (0..target_of.len()).filter(|&s| target_of[s] == t).collect();
        Truth {
            rows: Vec::with_capacity(1 << 20),
            streams: vec![StreamCounts::default(); target_of.len()],
            targets: vec![TargetCounts::default(); targets],
            state: (0..targets)
                .map(|t| TargetState {
                    streams: of(t),
                    in_episode: false,
                    missed: [0; 2],
                    open_rows: Vec::with_capacity(256),
                })
                .collect(),
            unanswered: Vec::new(),
            unread: Vec::new(),
        }
    }

    pub fn streams_of(&self, target: usize) -> &[usize] {
        &self.state[target].streams
    }

    pub fn is_open(&self, target: usize) -> bool {
        !self.state[target].open_rows.is_empty()
    }

    /// A stream was woken; without a target nobody waits for it.
    pub fn signalled(&mut self, target: Option<usize>, at: Signal) {
        self.streams[at.stream].cycles += 1;
        match target {
            Some(target) => self.state[target].open_rows.push(self.rows.len()),
            None => self.unanswered.push(self.rows.len()),
        }
        let (leg, target_missed) = (Leg::None, false);
        self.rows.push(Row {
            stream: at.stream,
            wake_id: at.wake_id,
            cycle: at.cycle,
            start_ns: at.start_ns,
            signal_ns: at.ns,
            signalled_ns: u64::MAX,
            closing_ns: 0,
            deadline_ns: 0,
            leg,
            target_missed,
            closer: None,
            at_work: false,
            read_ns: 0,
            written_ns: 0,
        });
    }

    /// The wakeup has been written.
    pub fn woken(&mut self, now_ns: u64) {
        if let Some(row) = self.rows.last_mut() {
            row.signalled_ns = now_ns;
        }
    }

    /// Rows of the last cycle that nobody completes, to be judged by `unread`.
    pub fn unanswered(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.unanswered)
    }

    /// Whether it was unread at the next cycle's start; None: W was just reading, nobody can say.
    pub fn unread(&mut self, row: usize, now_ns: u64, unread: Option<bool>) {
        if unread.is_none() {
            self.rows[row].deadline_ns = now_ns;
            self.rows[row].closer = Some(Closer::Either);
        } else if unread == Some(true) {
            self.rows[row].deadline_ns = now_ns;
            self.rows[row].leg = Leg::Wake;
            self.streams[self.rows[row].stream].wake_misses += 1;
            self.unread.push(row);
        }
    }

    /// Notes of the open cycles of a target when W began to read: `begun_ns`, by stream, when that was last.
    pub fn reads(&mut self, target: usize, begun_ns: impl Fn(usize) -> u64) {
        for &row in &self.state[target].open_rows {
            let row = &mut self.rows[row];
            let ns = begun_ns(row.stream);
            if row.read_ns == 0 && ns > row.signal_ns {
                row.read_ns = ns;
            }
        }
    }

    pub fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// Closes what nobody completes and what was unread, where it was read since: `read_ns`, by stream,
    /// when that was last, u64::MAX if it is being read.
    pub fn read_late(&mut self, read_ns: impl Fn(usize) -> u64) {
        let rows = &mut self.rows;
        self.unread.retain(|&row| {
            let row = &mut rows[row];
            let ns = read_ns(row.stream);
            let is_read = ns > row.signal_ns && ns != u64::MAX;
            row.closing_ns = if is_read { ns } else { 0 };
            row.read_ns = row.closing_ns;
            !is_read
        });
    }

    /// A completion of the target was read. One of ours that was `written` (begun, ended) before a
    /// stream was woken is not the answer to that.
    pub fn completed(&mut self, target: usize, now_ns: u64, closer: Closer, written: (u64, u64)) {
        let state = &mut self.state[target];
        let others = closer == Closer::Other;
        let rows = &mut self.rows;
        let (closed, open): (Vec<_>, Vec<_>) =
            state.open_rows.drain(..).partition(|&row| others || rows[row].signal_ns < written.1);
        if others {
            let counts = &mut self.targets[target];
            counts.completion_misses -= state.missed[1];
            counts.episodes -= u64::from(state.in_episode && state.missed[0] == 0);
        }
        if !closed.is_empty() {
            state.missed = [0; 2];
        }
        // Something that is pending all the time is one episode.
        state.in_episode &= !open.is_empty();
        state.open_rows.extend(open);
        for row in closed {
            let row = &mut rows[row];
            row.closing_ns = now_ns;
            row.written_ns = if others || written.1 == u64::MAX { 0 } else { written.1 };
            let at_once = !others && written.0 < row.signalled_ns;
            row.closer = Some(if at_once { Closer::Either } else { closer });
            if others && row.leg == Leg::Completion {
                row.leg = Leg::None;
                self.streams[row.stream].completion_misses -= 1;
            }
        }
    }

    /// The next cycle starts: judges `cycle`, by what each stream of the target is at. Only called
    /// while the target is open.
    pub fn deadline(&mut self, target: usize, cycle: u64, now_ns: u64, clients: &[Client]) {
        let state = &mut self.state[target];
        let counts = &mut self.targets[target];
        if !state.in_episode {
            state.in_episode = true;
            counts.episodes += 1;
        }
        let wake = clients.contains(&Client::Unread);
        if !wake {
            counts.completion_misses += 1;
            state.missed[1] += 1;
        }
        for &row in &state.open_rows {
            let row = &mut self.rows[row];
            if row.cycle != cycle {
                continue;
            }
            row.deadline_ns = now_ns;
            row.target_missed = true;
            let place = state.streams.iter().position(|&s| s == row.stream);
            let client = place.map_or(Client::Finished, |p| clients[p]);
            row.at_work = client != Client::Finished;
            if client == Client::Unread {
                row.leg = Leg::Wake;
                counts.wake_misses += 1;
                state.missed[0] += 1;
                self.streams[row.stream].wake_misses += 1;
            } else if !wake && state.streams.len() == 1 {
                row.leg = Leg::Completion;
                self.streams[row.stream].completion_misses += 1;
            }
        }
    }

    pub fn cycles(&self) -> u64 {
        self.streams.iter().map(|s| s.cycles).sum()
    }

    /// (wake misses, completion misses, episodes) of all targets.
    pub fn totals(&self) -> (u64, u64, u64) {
        self.targets.iter().fold((0, 0, 0), |sum, t| {
            (sum.0 + t.wake_misses, sum.1 + t.completion_misses, sum.2 + t.episodes)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written at some time after all that was signalled.
    const DURING: (u64, u64) = (u64::MAX, u64::MAX);

    fn signal(truth: &mut Truth, stream: usize, cycle: u64, start_ns: u64, ns: u64) {
        truth.signalled(Some(0), Signal { stream, wake_id: 7, cycle, start_ns, ns });
    }

    #[test]
    fn one_starvation_is_one_episode_of_several_misses() {
        let mut truth = Truth::new(&[0]);
        for cycle in 0..3 {
            signal(&mut truth, 0, cycle, cycle * 10, cycle * 10 + 1);
            truth.deadline(0, cycle, cycle * 10 + 10, &[Client::Unread]);
        }
        truth.completed(0, 31, Closer::Vmm, DURING);
        signal(&mut truth, 0, 3, 30, 32);
        truth.completed(0, 33, Closer::Vmm, DURING);
        assert_eq!(truth.totals(), (3, 0, 1));
        assert_eq!(truth.cycles(), 4);
        assert!(truth.rows[..3].iter().all(|r| r.closing_ns == 31 && r.leg == Leg::Wake));
        assert_eq!((truth.rows[3].leg, truth.rows[3].closing_ns), (Leg::None, 33));
    }

    #[test]
    fn a_completion_written_before_a_wakeup_is_no_answer_to_it() {
        let mut truth = Truth::new(&[0]);
        signal(&mut truth, 0, 0, 0, 1);
        truth.woken(2);
        truth.deadline(0, 0, 10, &[Client::AtWork]);
        signal(&mut truth, 0, 1, 10, 14);
        truth.woken(16);
        truth.completed(0, 17, Closer::Vmm, (11, 13));
        assert_eq!((truth.rows[0].closing_ns, truth.rows[1].closing_ns), (17, 0));
        truth.deadline(0, 1, 20, &[Client::AtWork]);
        assert_eq!(truth.totals(), (0, 2, 1)); // something was pending all the time
        truth.completed(0, 23, Closer::Vmm, (15, 22)); // begun while it was woken: nobody can say
        assert_eq!((truth.rows[1].closing_ns, truth.rows[1].closer), (23, Some(Closer::Either)));
    }

    #[test]
    fn a_late_completion_between_two_misses_makes_two_episodes() {
        let mut truth = Truth::new(&[0]);
        for cycle in 0..2 {
            signal(&mut truth, 0, cycle, cycle * 10, cycle * 10);
            truth.deadline(0, cycle, cycle * 10 + 10, &[Client::AtWork]);
            truth.completed(0, cycle * 10 + 11, Closer::Vmm, DURING);
        }
        assert_eq!(truth.totals(), (0, 2, 2));
    }

    #[test]
    fn of_a_shared_completion_the_unread_streams_miss_or_else_the_target_once() {
        let mut truth = Truth::new(&[0, 0, 0]);
        for stream in 0..3 {
            signal(&mut truth, stream, 0, 0, 1);
        }
        truth.deadline(0, 0, 10, &[Client::AtWork, Client::Unread, Client::AtWork]);
        for stream in 0..3 {
            signal(&mut truth, stream, 1, 10, 11);
        }
        truth.deadline(0, 1, 20, &[Client::AtWork; 3]);
        assert_eq!(truth.totals(), (1, 1, 1));
        assert_eq!(truth.streams[1].wake_misses, 1);
        assert_eq!(truth.rows.iter().filter(|r| r.leg != Leg::None).count(), 1);
        assert!(truth.rows.iter().all(|r| r.target_missed));
    }

    #[test]
    fn a_wakeup_that_is_being_read_at_the_next_start_may_be_either() {
        let mut truth = Truth::new(&[0]);
        truth.signalled(None, Signal { stream: 0, wake_id: 7, cycle: 0, start_ns: 0, ns: 1 });
        let rows = truth.unanswered();
        truth.unread(rows[0], 10, None);
        assert_eq!((truth.rows[0].leg, truth.rows[0].closer), (Leg::None, Some(Closer::Either)));
        assert_eq!((truth.rows[0].deadline_ns, truth.streams[0].wake_misses), (10, 0));
    }

    #[test]
    fn the_first_read_after_a_wakeup_is_the_one_of_its_cycle() {
        let mut truth = Truth::new(&[0]);
        signal(&mut truth, 0, 0, 0, 1);
        truth.reads(0, |_| 1); // of the one before
        assert_eq!(truth.rows[0].read_ns, 0);
        truth.reads(0, |_| 5);
        truth.deadline(0, 0, 10, &[Client::AtWork]);
        signal(&mut truth, 0, 1, 10, 11);
        truth.reads(0, |_| 12);
        assert_eq!((truth.rows[0].read_ns, truth.rows[1].read_ns), (5, 12));
    }

    #[test]
    fn what_another_client_s_completion_closed_is_no_completion_miss() {
        let mut truth = Truth::new(&[0]);
        let clients = [Client::Finished, Client::AtWork, Client::Unread];
        for (cycle, client) in (0..).zip(clients) {
            signal(&mut truth, 0, cycle, cycle * 10, cycle * 10 + 1);
            truth.deadline(0, cycle, cycle * 10 + 10, &[client]);
            truth.completed(0, cycle * 10 + 12, Closer::Other, DURING);
        }
        assert_eq!(truth.totals(), (1, 0, 1));
        assert_eq!((truth.streams[0].wake_misses, truth.streams[0].completion_misses), (1, 0));
        let told: Vec<_> = truth.rows.iter().map(|r| (r.leg, r.at_work, r.target_missed)).collect();
        assert_eq!(told, [(Leg::None, false, true), (Leg::None, true, true), (Leg::Wake, true, true)]);
    }

    #[test]
    fn what_our_completion_closed_late_is_a_miss_whoever_else_was_late() {
        let mut truth = Truth::new(&[0]);
        signal(&mut truth, 0, 0, 0, 1);
        truth.deadline(0, 0, 10, &[Client::Finished]);
        truth.completed(0, 11, Closer::Vmm, DURING);
        assert_eq!((truth.totals(), truth.rows[0].leg), ((0, 1, 1), Leg::Completion));
    }

    #[test]
    fn of_a_stream_that_nobody_waits_for_only_the_wakeup_can_be_missed() {
        let mut truth = Truth::new(&[0]);
        for cycle in 0..2 {
            let at = Signal { stream: 0, wake_id: 7, cycle, start_ns: cycle * 10, ns: cycle * 10 };
            truth.signalled(None, at);
            let rows = truth.unanswered();
            truth.unread(rows[0], cycle * 10 + 10, Some(cycle == 1));
        }
        assert_eq!((truth.streams[0].wake_misses, truth.totals()), (1, (0, 0, 0)));
        assert_eq!((truth.rows[0].leg, truth.rows[1].leg), (Leg::None, Leg::Wake));
        truth.read_late(|_| 10);
        assert_eq!(truth.rows[1].closing_ns, 0); // that was the one before
        truth.read_late(|_| 23);
        assert_eq!((truth.rows[0].closing_ns, truth.rows[1].closing_ns), (0, 23));
    }
}
