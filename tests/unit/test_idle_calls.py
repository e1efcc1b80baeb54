# SPDX-License-Identifier: Apache-2.0
"""What G may be idle in: its queue, but no device that a command waits for."""

from __future__ import annotations

import pytest

from tracer.model.callkinds import is_idle
from tracer.model.spans import Call
from tracer.schema import Flag, Kind


def call(kind: Kind, number: int) -> Call:
    return Call(0, 1, int(kind), number, int(Flag.EVENTFD), 0, -1, -1, 0, *[0] * (len(Call._fields) - 9))


@pytest.mark.parametrize("number", [232, 281, 441, 22])
def test_g_may_idle_in_epoll_and_in_reads(number: int) -> None:
    assert is_idle(call(Kind.EPOLL_WAIT, number))
    assert is_idle(call(Kind.READ, 0))


@pytest.mark.parametrize("number", [7, 23, 270, 271, 72, 73])
def test_a_poll_or_select_of_g_is_the_work_of_a_command(number: int) -> None:
    assert not is_idle(call(Kind.EPOLL_WAIT, number))
