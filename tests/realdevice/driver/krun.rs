// SPDX-License-Identifier: Apache-2.0
//! The device as libkrun's fork builds it (variant dup).

pub use krun_rutabaga_gfx::{
    ResourceCreateBlob, Rutabaga, RutabagaFence, RutabagaFenceHandler, RutabagaIovec,
};
use krun_rutabaga_gfx::{RutabagaBuilder, RutabagaChannel, RutabagaComponentType};

pub fn build(socket: &str, handler: RutabagaFenceHandler) -> Rutabaga {
    RutabagaBuilder::new(RutabagaComponentType::CrossDomain, 0, 1 << 5)
        .set_rutabaga_channels(Some(vec![RutabagaChannel {
            base_channel: socket.into(),
            channel_type: 0x10,
        }]))
        .build(handler, None)
        .expect("rutabaga")
}
