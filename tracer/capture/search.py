# SPDX-License-Identifier: Apache-2.0
"""When to look for the audio servers of VMMs that have none.

Owns the times of the search and what they may cost. Who is a server is target.py's,
what becomes of one attached.py's.
"""

from __future__ import annotations

import time

from tracer.capture.attached import Attached
from tracer.capture.batches import ByKind
from tracer.schema import Kind

# Again soon after fds were passed to a VMM, else at growing intervals. A look at every process
# takes 5 to 50 ms; it may cost a tenth of a CPU at most.
_LEAST_NS, _MOST_NS = 100_000_000, 2_000_000_000
_SHARE = 10
# A server that has ended may come back: it is looked for this often.
_BACK_NS = 500_000_000


class AudioSearch:
    """The search for one session.

    Args:
        attached: what is traced so far.
        choice: a tgid, None or True: whoever drives the VMMs, False: none.
    """

    def __init__(self, attached: Attached, choice: int | bool | None) -> None:
        self._attached = attached
        self._choice = choice
        self._wait_ns = self._done_ns = self._soonest_ns = self._due_ns = 0

    def now(self, vmms: tuple[int, ...]) -> None:
        """Look now. Raises TargetError where the server that was asked for cannot be traced."""
        self._done_ns = time.monotonic_ns()
        self._attached.find_audio(self._choice, vmms)
        took_ns = time.monotonic_ns() - self._done_ns
        soonest_ns = max(_LEAST_NS, _SHARE * took_ns)
        self._wait_ns = max(soonest_ns, min(2 * self._wait_ns, _MOST_NS))
        self._soonest_ns = self._done_ns + soonest_ns
        self._due_ns = self._done_ns + self._wait_ns

    def step(self, by_kind: ByKind, now_ns: int) -> None:
        """Look if it is time to, given the records of a batch."""
        if self._choice not in (None, True):
            return
        unserved = self._attached.unserved()
        if any(unserved.values()):
            self._due_ns = min(self._due_ns, max(self._soonest_ns, self._done_ns + _BACK_NS))
        elif unserved and by_kind.count(Kind.RECVMSG) and by_kind.rows(Kind.RECVMSG)["nfds"].any():
            self._due_ns = self._soonest_ns
        if unserved and now_ns >= self._due_ns:
            self.now(tuple(unserved))
