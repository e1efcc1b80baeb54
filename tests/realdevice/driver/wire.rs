// SPDX-License-Identifier: Apache-2.0
//! What the audio server and the guest say to each other over the channel (fixed frames, because a stream
//! socket may glue messages together), and the device's commands as the guest writes them.

pub const FRAME: usize = 32;

/// Frames of the channel. Fds come with a frame in the order named here.
pub const GUARD: u32 = 1; // four eventfds that nobody uses: they use up the first item ids
pub const STREAM: u32 = 2; // a sustained stream: e_n, the target's completion eventfd
pub const CHURN: u32 = 3; // a short stream: two eventfds
pub const PIPE: u32 = 4; // a pipe's write end
pub const GONE: u32 = 5; // guest to server: the short stream was closed

#[derive(Clone, Copy)]
pub struct Frame {
    pub kind: u32,
    pub id: u32,
    pub fds: u32,
}

impl Frame {
    pub fn encode(&self) -> [u8; FRAME] {
        let mut b = [0; FRAME];
        b[0..4].copy_from_slice(&self.kind.to_le_bytes());
        b[4..8].copy_from_slice(&self.id.to_le_bytes());
        b[8..12].copy_from_slice(&self.fds.to_le_bytes());
        b
    }
    pub fn decode(b: &[u8]) -> Frame {
        Frame { kind: u32_at(b, 0), id: u32_at(b, 4), fds: u32_at(b, 8) }
    }
}

pub fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

pub const CMD_RECEIVE: u8 = 5;
pub const CMD_READ: u8 = 6;
/// RECEIVE in a ring: count at 8, length of the data at 12, ids at 16, the data here.
pub const RECEIVE_DATA: usize = 352;
const CHANNEL_TYPE_PW: u32 = 0x10;

fn command(cmd: u8, ring: u8, words: &[u32], size: usize) -> Vec<u8> {
    let mut b = vec![cmd, ring];
    b.extend((size as u16).to_le_bytes());
    b.extend(0u32.to_le_bytes());
    for w in words {
        b.extend(w.to_le_bytes());
    }
    b
}

pub fn init(query_res: u32, channel_res: u32) -> Vec<u8> {
    command(1, 0, &[query_res, channel_res, CHANNEL_TYPE_PW], 20)
}

pub fn poll() -> Vec<u8> {
    command(3, 1, &[], 8)
}

pub fn send(data: &[u8]) -> Vec<u8> {
    let mut b = command(4, 1, &[0, data.len() as u32], RECEIVE_DATA + data.len());
    b.resize(RECEIVE_DATA, 0);
    b.extend_from_slice(data);
    b
}

pub fn write(id: u32, hang_up: bool, data: &[u8]) -> Vec<u8> {
    let mut b = command(7, 0, &[id, hang_up as u32, data.len() as u32, 0], 24 + data.len());
    b.extend_from_slice(data);
    b
}

pub fn read_eventfd_new(id: u32) -> Vec<u8> {
    command(11, 0, &[id, 0], 16)
}
