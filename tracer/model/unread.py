# SPDX-License-Identifier: Apache-2.0
"""Streams that were dead before we came: signalled in every cycle, read by nobody.

Owns their finding among the eventfds that a VMM holds. They are no streams (whose context they are, and since
when they miss, is not known), but a screen without a word on them would say that all is well.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from tracer.model.filing import Filing
from tracer.model.registry import Registry

#: So many signals must be seen in all and of late: an eventfd that a worker has yet to register gets a few.
_MANY: Final = 32
_LATELY: Final = 8
#: No gap between them may be longer than so many usual ones.
_EVEN: Final = 3


class Unread(NamedTuple):
    """An eventfd that a VMM holds and does not read; ``signals``: how often it was signalled."""

    eventfd: int
    tgid: int
    signals: int
    period_ns: int


def unread(filing: Filing, registry: Registry) -> list[Unread]:
    """All of them, by id."""
    signalled = {
        number: (total, ends)
        for number, (total, ends) in filing.only_signalled(_MANY).items()
        if len(ends) >= _LATELY
    }
    if not signalled:
        return []
    holders = {
        fd.eventfd_id: fd.tgid
        for fd in registry.fds.values()
        if fd.eventfd_id in signalled and registry.is_vmm(fd.tgid)
    }
    found = []
    for number, (total, ends) in sorted(signalled.items()):
        if number not in holders:
            continue
        gaps = np.diff(np.array(sorted(ends), dtype=np.int64))
        usual = int(np.median(gaps))
        if gaps.max() <= _EVEN * usual:
            found.append(Unread(number, holders[number], total, usual))
    return found
