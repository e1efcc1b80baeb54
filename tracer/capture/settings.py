# SPDX-License-Identifier: Apache-2.0
"""How to trace: what the user can choose. Owns the defaults; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How to trace.

    Attributes:
        audio: tgid of the audio server, None: find it, False: none.
        interval_s: time between batches.
        wait_stack_ns: futex waits from this on carry their caller's address.
        min_other_ns: syscalls without a record of their own are recorded from this on.
        held_words: lock words watched per target, 0 to 16.
        ring_bytes: a power of two, of kernel memory. The drain looks twenty times a second: 16 MiB are five
            looks at 1 M records/s, room for when every CPU is taken.
        lock_symbols: lock words given by the user: (name, address), of the first target.
        debug_dirs: where separate debug files are.
        use_btf: False as if the kernel had no BTF.
        probe_form: cast, direct or plain; "": the cheapest that this kernel takes.
        kernel_headers: compile against these instead of our own header tree.
        need_all: False: processes that are gone by now are left out, as long as one is there.
        cache: whether compiled probes are kept and kept ones used; a folder, or True: the user's.
    """

    audio: int | bool | None = None
    interval_s: float = 0.1
    wait_stack_ns: int = 20_000
    min_other_ns: int = 10_000
    held_words: int = 4
    ring_bytes: int = 16 << 20
    lock_symbols: tuple[tuple[str, int], ...] = ()
    debug_dirs: tuple[str, ...] = ()
    use_btf: bool = True
    probe_form: str = ""
    kernel_headers: str = ""
    need_all: bool = True
    cache: bool | str = True
