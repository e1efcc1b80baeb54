# SPDX-License-Identifier: Apache-2.0
"""Tiny programs for the tests of symbols: built once, they print addresses of theirs and wait.

Owns compiling and running them. A program prints "ready ADDRESS" (hex), a return
address inside an inlined function, and ends when its standard input closes.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

RUST = """
use std::io::Read;
extern "C" { fn backtrace(buffer: *mut usize, size: i32) -> i32; }
#[no_mangle] #[inline(never)]
pub extern "C" fn here() -> usize {
    let mut buffer = [0usize; 4];
    unsafe { backtrace(buffer.as_mut_ptr(), 4) };
    buffer[1]
}
/// std::hint::black_box, which came with 1.66: nothing is known of what it returns, so no tail call.
#[inline(always)]
fn opaque(value: usize) -> usize { unsafe { std::ptr::read_volatile(&value) } }
pub struct Context<T>(T);
impl<T: Copy> Context<T> {
    #[inline(always)]
    fn write(&self) -> usize {
        opaque(here()) // the inlined line
    }
    #[inline(never)]
    pub fn submit_cmd(&self) -> usize {
        opaque(self.write()) // the outer line
    }
}
fn main() {
    println!("ready {:x}", Context(7u64).submit_cmd());
    let _ = std::io::stdin().read(&mut [0u8; 1]);
}
"""

C = """
#include <pthread.h>
#include <stdio.h>
pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
int no_lock_at_all;
const char *source = "/registry/rutabaga_gfx-0.1.80/src/cross_domain/context.rs";
__attribute__((noinline)) void *here(void) { return __builtin_return_address(0); }
static inline __attribute__((always_inline)) void *write_item(void) {
    void *at = here(); /* the inlined line */
    __asm__ volatile("" : "+r"(at));
    return at;
}
__attribute__((noinline)) void *submit_cmd(void) {
    void *at = write_item(); /* the outer line */
    __asm__ volatile("" : "+r"(at));
    return at;
}
int main(void) {
    printf("ready %lx %lx %s\\n", (long)submit_cmd(), (long)&table_lock, source);
    fflush(stdout);
    pthread_mutex_lock(&table_lock);
    getchar();
    return 0;
}
"""

CXX = (
    C.replace(
        "#include <stdio.h>",
        "#include <stdio.h>\nnamespace guest { struct Queue { static void *pop(int); }; }",
    )
    .replace("void *submit_cmd(void) {", "void *guest::Queue::pop(int) {")
    .replace("submit_cmd()", "guest::Queue::pop(1)")
)


def line_of(source: str, words: str) -> int:
    """The line (from 1) that holds ``words``."""
    return source[: source.index(words)].count("\n") + 1


def run(*command: str | Path) -> None:
    """Run a tool; its error output is the test's failure."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def build(source: str, output: Path, compiler: str, *flags: str) -> Path:
    """Compile a source text beside ``output``."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    suffix = {"rustc": ".rs", "cc": ".c", "c++": ".cc"}[compiler]
    path = output.with_suffix(suffix)
    path.write_text(source)
    run(compiler, *flags, "-o", output, path)
    return output


@dataclass(frozen=True)
class Running:
    """A running program: its pid and what it printed after "ready"."""

    tgid: int
    words: tuple[str, ...]

    @property
    def address(self) -> int:
        """The return address it printed."""
        return int(self.words[0], 16)


@contextmanager
def running(path: Path, *arguments: str) -> Iterator[Running]:
    """Run a program until the block ends."""
    with subprocess.Popen(
        [str(path), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as p:
        assert p.stdin is not None and p.stdout is not None
        words = p.stdout.readline().split()
        assert words[0] == "ready"
        try:
            yield Running(p.pid, tuple(words[1:]))
        finally:
            p.stdin.close()
