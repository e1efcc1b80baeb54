// SPDX-License-Identifier: Apache-2.0
#[path = "../../driver/upstream.rs"]
mod device;
#[path = "../../driver/main.rs"]
mod driver;

fn main() {
    driver::main("refcount", "rutabaga_gfx-0.1.85");
}
