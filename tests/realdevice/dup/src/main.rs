// SPDX-License-Identifier: Apache-2.0
#[path = "../../driver/krun.rs"]
mod device;
#[path = "../../driver/main.rs"]
mod driver;

fn main() {
    driver::main("dup", "krun-rutabaga-gfx-0.1.0-1.19.7");
}
