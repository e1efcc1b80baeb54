// SPDX-License-Identifier: Apache-2.0
//! The audio server's two outputs in JSON: the line of truth, and the log of every cycle.

use crate::args::Args;
use crate::audio::Record;
use crate::truth::Leg;
use std::fs::File;
use std::io::{BufWriter, Result, Write};

/// eventfd-ids: per stream its wakeup, per target its completion.
pub struct Ids {
    pub wake: Vec<i64>,
    pub completion: Vec<i64>,
}

/// One JSON object: what was counted.
pub fn ground_truth(args: &Args, record: &Record, ids: &Ids, steal_ns: u64) -> String {
    let (wake, completion, episodes) = record.truth.totals();
    let count = |what: &str| record.events.iter().filter(|e| e.2 == what).count();
    let streams: Vec<String> = record.truth.streams.iter().enumerate().map(|(i, s)| {
        let target = args.target_of(i);
        format!(
            "{{\"stream\":{},\"context\":{},\"wake_eventfd\":{},\"completion_eventfd\":{},\"target\":{},\"cycles\":{},\"wake_misses\":{},\"completion_misses\":{},\"target_episodes\":{}}}",
            i, args.context_of(i) + 1, ids.wake[i], ids.completion[target], target, s.cycles, s.wake_misses,
            s.completion_misses, record.truth.targets[target].episodes
        )
    }).collect();
    let targets: Vec<String> = record.truth.targets.iter().enumerate().map(|(i, t)| {
        format!(
            "{{\"target\":{},\"completion_eventfd\":{},\"wake_misses\":{},\"completion_misses\":{},\"episodes\":{}}}",
            i, ids.completion[i], t.wake_misses, t.completion_misses, t.episodes
        )
    }).collect();
    format!(
        "{{\"type\":\"ground_truth\",\"cycles\":{},\"missed_cycles\":{},\"episodes\":{},\"wake_misses\":{},\"completion_misses\":{},\"driver_events\":{{\"late_start\":{},\"skipped\":{},\"catch_up\":{}}},\"streams\":[{}],\"targets\":[{}],\"period_ns\":{},\"realtime\":{},\"start_ns\":{},\"end_ns\":{},\"steal_ns\":{}}}",
        record.truth.cycles(), wake + completion, episodes, wake, completion,
        count("late_start"), count("skipped"), count("catch_up"),
        streams.join(","), targets.join(","), args.period_ns(), record.realtime, record.start_ns,
        record.end_ns, steal_ns
    )
}

/// JSON lines: every (stream, cycle), then the driver's events. Times in CLOCK_MONOTONIC ns.
pub fn write_log(path: &str, args: &Args, record: &Record, ids: &Ids) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    for row in &record.truth.rows {
        let target = args.target_of(row.stream);
        writeln!(
            out,
            "{{\"type\":\"cycle\",\"stream\":{},\"wake_eventfd\":{},\"completion_eventfd\":{},\"cycle\":{},\"start_ns\":{},\"signal_ns\":{},\"missed\":{},\"leg\":\"{}\",\"target_missed\":{},\"deadline_ns\":{},\"closing_ns\":{},\"closer\":\"{}\",\"at_work\":{},\"read_ns\":{},\"written_ns\":{}}}",
            row.stream, row.wake_id, ids.completion[target], row.cycle, row.start_ns, row.signal_ns,
            row.leg != Leg::None, row.leg.text(), row.target_missed, row.deadline_ns, row.closing_ns,
            row.closer.map_or("", |who| who.text()), row.at_work, row.read_ns, row.written_ns
        )?;
    }
    for (at, cycle, what) in &record.events {
        writeln!(
            out,
            "{{\"type\":\"timer\",\"start_ns\":{},\"cycle\":{},\"event\":\"{}\"}}",
            at, cycle, what
        )?;
    }
    out.flush()
}
