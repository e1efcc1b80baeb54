// SPDX-License-Identifier: Apache-2.0
//! PipeWire's native protocol, as far as a forwarder must understand it: where a message
//! ends, which descriptors are its own, and which of them wakes the client.
//!
//! A message is a header of four words (object, opcode and size, sequence number, number of
//! descriptors) and a POD. Descriptors never arrive later than the bytes that name them.
//! The event Transport of a client's node (opcode 0) begins with two descriptors, the first of
//! which the server writes and the client reads; every other eventfd is written by the client.

use crate::shared::word;
use std::collections::VecDeque;

const HEADER: usize = 16;
const TRANSPORT: u32 = 0;
/// Types of PODs.
const STRUCT: u32 = 14;
const FD: u32 = 18;

/// A descriptor on its way: its item in the device's table, and what it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Carried {
    pub id: u32,
    pub kind: u32,
}

#[derive(Debug)]
pub struct Message {
    /// Header and body.
    pub bytes: Vec<u8>,
    pub files: Vec<Carried>,
    /// Index in `files` of the eventfd by which the server wakes the client.
    pub wake: Option<usize>,
}

/// Cuts a stream of bytes and descriptors into messages.
#[derive(Default)]
pub struct Messages {
    bytes: Vec<u8>,
    files: VecDeque<Carried>,
}

impl Messages {
    pub fn feed(&mut self, bytes: &[u8], files: impl IntoIterator<Item = Carried>) {
        self.bytes.extend_from_slice(bytes);
        self.files.extend(files);
    }

    /// The next whole message.
    pub fn next(&mut self) -> Option<Message> {
        if self.bytes.len() < HEADER {
            return None;
        }
        let (opcode, size) = (self.bytes[7] as u32, word(&self.bytes, 4) & 0xff_ffff);
        let (len, n_files) = (HEADER + size as usize, word(&self.bytes, 12) as usize);
        if self.bytes.len() < len || self.files.len() < n_files {
            return None;
        }
        let rest = self.bytes.split_off(len);
        let bytes = std::mem::replace(&mut self.bytes, rest);
        let files: Vec<Carried> = self.files.drain(..n_files).collect();
        let wake = if opcode == TRANSPORT { first_fd(&bytes[HEADER..], files.len()) } else { None };
        Some(Message { bytes, files, wake })
    }
}

/// The descriptor that a struct begins with, if it begins with two.
fn first_fd(body: &[u8], n_files: usize) -> Option<usize> {
    let starts = body.len() >= 40 && word(body, 4) == STRUCT && word(body, 12) == FD && word(body, 28) == FD;
    let index = if starts { word(body, 16) as usize } else { n_files };
    (index < n_files).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{TYPE_BLOB, TYPE_EVENT};

    fn message(opcode: u8, body: &[u32], n_files: u32) -> Vec<u8> {
        let size = 4 * body.len() as u32;
        let header = [7, (opcode as u32) << 24 | size, 0, n_files];
        header.iter().chain(body).flat_map(|w| w.to_ne_bytes()).collect()
    }

    /// Struct(Fd second, Fd first, Int).
    const TRANSPORT_BODY: [u32; 14] = [48, STRUCT, 8, FD, 1, 0, 8, FD, 0, 0, 4, 4, 9, 0];

    fn event(id: u32) -> Carried {
        Carried { id, kind: TYPE_EVENT }
    }

    #[test]
    fn cut_anywhere_a_message_comes_out_whole_with_its_own_files() {
        let memory = message(6, &[16, STRUCT, 4, 4, 9, 0], 1);
        let bytes = [memory.clone(), message(0, &TRANSPORT_BODY, 2)].concat();
        for cut in 0..bytes.len() {
            let mut stream = Messages::default();
            stream.feed(&bytes[..cut], [Carried { id: 4, kind: TYPE_BLOB }, event(6), event(8)]);
            let mut found: Vec<Message> = std::iter::from_fn(|| stream.next()).collect();
            stream.feed(&bytes[cut..], []);
            found.extend(std::iter::from_fn(|| stream.next()));
            assert_eq!(found.len(), 2);
            assert_eq!(found[0].bytes, memory);
            assert_eq!((found[0].files[0].id, found[0].wake), (4, None));
            assert_eq!(found[1].files, [event(6), event(8)]);
            assert_eq!(found[1].wake, Some(1));
        }
    }

    #[test]
    fn a_set_activation_wakes_no_client() {
        let mut stream = Messages::default();
        stream.feed(&message(10, &TRANSPORT_BODY, 2), [event(6), event(8)]);
        assert_eq!(stream.next().unwrap().wake, None);
    }

    #[test]
    fn an_index_beyond_the_files_names_none() {
        let mut stream = Messages::default();
        stream.feed(&message(0, &TRANSPORT_BODY, 1), [event(6)]);
        assert_eq!(stream.next().unwrap().wake, None);
    }
}
