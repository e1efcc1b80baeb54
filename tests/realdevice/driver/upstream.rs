// SPDX-License-Identifier: Apache-2.0
//! The device as upstream rutabaga_gfx builds it (variants locked and refcount).

pub use rutabaga_gfx::{ResourceCreateBlob, Rutabaga, RutabagaFence, RutabagaFenceHandler, RutabagaIovec};
use rutabaga_gfx::{RutabagaBuilder, RutabagaPath};

pub fn build(socket: &str, handler: RutabagaFenceHandler) -> Rutabaga {
    RutabagaBuilder::new(1 << 5, handler)
        .set_rutabaga_paths(Some(vec![RutabagaPath { path: socket.into(), path_type: 0x10 }]))
        .build()
        .expect("rutabaga")
}
