// SPDX-License-Identifier: Apache-2.0
//! The null sink's capture: what each cycle played, as a 16-bit mono WAV file.
//!
//! A stream that finished in time plays the next quantum of its sine (it goes
//! on where it stopped); one that did not plays zeros.

use crate::truth::{Leg, Row};
use std::fs::File;
use std::io::{BufWriter, Result, Write};

/// 997 Hz: not a divisor of 48 kHz, so that no gap of whole quanta is phase-continuous.
const TONE_HZ: f64 = 997.0;

/// Writes one quantum per cycle of `rows`, which are in order of cycles.
pub fn write(path: &str, rows: &[Row], streams: usize, quantum: u64, rate: u64) -> Result<()> {
    let cycles = rows.last().map_or(0, |row| row.cycle + 1);
    let bytes = (cycles * quantum * 2).min(u32::MAX as u64 - 44) as u32;
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(b"RIFF")?;
    out.write_all(&(bytes + 36).to_le_bytes())?;
    out.write_all(b"WAVEfmt \x10\0\0\0\x01\0\x01\0")?;
    out.write_all(&(rate as u32).to_le_bytes())?;
    out.write_all(&(rate as u32 * 2).to_le_bytes())?;
    out.write_all(b"\x02\0\x10\0data")?;
    out.write_all(&bytes.to_le_bytes())?;
    let step = TONE_HZ * std::f64::consts::TAU / rate as f64;
    let scale = 0.5 / streams as f64 * i16::MAX as f64;
    let mut phase = vec![0u64; streams];
    let mut mix = vec![0.0f64; quantum as usize];
    for cycle in rows.chunks(streams) {
        mix.iter_mut().for_each(|sample| *sample = 0.0);
        for row in cycle {
            if row.leg != Leg::None || row.target_missed {
                continue;
            }
            for (i, sample) in mix.iter_mut().enumerate() {
                *sample += scale * (step * (phase[row.stream] + i as u64) as f64).sin();
            }
            phase[row.stream] += quantum;
        }
        for sample in &mix {
            out.write_all(&(*sample as i16).to_le_bytes())?;
        }
    }
    out.flush()
}
