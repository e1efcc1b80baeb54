# SPDX-License-Identifier: Apache-2.0
"""What the loop of a command asks of a view.

Owns the protocol, the actions a user may ask for, and what views without keys share. Draws nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from tracer.model.summary import Summary


class Action(enum.Enum):
    """What a key asks of the loop (all else a view does by itself)."""

    QUIT = "quit"
    RESET = "reset"


class View(Protocol):
    """Shows summaries: on a live screen, as text blocks, as JSON lines, or not at all."""

    #: Seconds from one ``show`` to the next.
    refresh_s: float

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def poll(self) -> Sequence[Action]:
        """What the user asked for since the last call; never blocks."""
        ...

    def show(self, summary: Summary) -> None:
        """Show a summary of the moment. Raises BrokenPipeError when nobody reads any more."""
        ...

    def finish(self, summary: Summary, extra: Mapping[str, object]) -> None:
        """Show the last summary, after ``__exit__``; ``extra``: e.g. the demo's ``ground_truth``."""
        ...


class Unattended:
    """What views share that nobody sits in front of: no keys, and a terminal that needs no restoring."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def poll(self) -> Sequence[Action]:
        """Nothing is ever asked for."""
        return ()
