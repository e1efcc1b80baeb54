// SPDX-License-Identifier: Apache-2.0
//! How long each write of a completion took, by the program's own clock, for benches.
//!
//! Off unless MINIVMM_WRITE_TIMES names a file: then nanoseconds as native u64, appended in blocks.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::Instant;

/// Samples kept before they are appended: one more syscall of G in so many writes.
const BLOCK: usize = 128;

pub struct WriteTimes {
    file: Option<File>,
    samples: Vec<u8>,
}

impl WriteTimes {
    pub fn new() -> WriteTimes {
        let file = std::env::var_os("MINIVMM_WRITE_TIMES")
            .and_then(|path| OpenOptions::new().append(true).create(true).open(path).ok());
        WriteTimes { file, samples: Vec::with_capacity(8 * BLOCK) }
    }

    pub fn begin(&self) -> Option<Instant> {
        self.file.as_ref().map(|_| Instant::now())
    }

    pub fn end(&mut self, began: Option<Instant>) {
        if let (Some(began), Some(file)) = (began, self.file.as_mut()) {
            self.samples.extend_from_slice(&(began.elapsed().as_nanos() as u64).to_ne_bytes());
            if self.samples.len() >= 8 * BLOCK {
                let _ = file.write_all(&self.samples);
                self.samples.clear();
            }
        }
    }
}
