# SPDX-License-Identifier: Apache-2.0
"""How much memory a command that reads a trace may take, whatever stands in it.

Owns the limit and the error. Reading a trace is bounded by itself (trace/format.py); what its analysis
keeps of threads, locks and eventfds grows with their number, and that is the trace's to say.
"""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Callable
from typing import Final, ParamSpec

from tracer.errors import TraceError

#: Half of the machine's memory, at least this. A report on 10 million records takes 0.5 GiB.
LEAST_BYTES: Final = 2 << 30

P = ParamSpec("P")


def limit_bytes() -> int:
    """What a command may take here."""
    return max(LEAST_BYTES, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)


def bounded(command: Callable[P, None]) -> Callable[P, None]:
    """The command, refused memory beyond the limit (RLIMIT_DATA: what it allocates, no files, no code).

    A lower limit of the user's own stays.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        ours = min(n for n in (limit_bytes(), soft, hard) if n != resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_DATA, (ours, hard))
        try:
            command(*args, **kwargs)
        except MemoryError:
            raise TraceError(
                f"what stands in the trace takes more than {ours / (1 << 30):.3g} GiB to analyse",
                "if it is no hostile one, open it on a larger machine, or record for a shorter time",
            ) from None
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    return run
