# SPDX-License-Identifier: Apache-2.0
"""What an analysis lets go of, offered once to whoever wants to keep it.

An Analysis has bounded memory: cycles, acquisitions and waits are counted and forgotten. A Tap is
given each of them on its way, so that frames keep what the one analysis saw instead of computing it again.
Owns the protocol only; keeps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from tracer.model.cycles import Cycle
from tracer.schema import Records

#: A piece of an acquisition with one holder. acq_ns: when the acquisition that it belongs to began;
#: holder: 0 unknown; holder_caller: where the holder had waited for the lock itself, 0 unknown;
#: signs: what both did, by number (operations.Sites).
PIECE: Final = np.dtype(
    [
        ("tgid", "<u4"),
        ("tid", "<u4"),
        ("word", "<u8"),
        ("caller", "<u8"),
        ("acq_ns", "<u8"),
        ("start_ns", "<u8"),
        ("end_ns", "<u8"),
        ("holder", "<u4"),
        ("holder_caller", "<u8"),
        ("sign", "<u4"),
        ("holder_sign", "<u4"),
    ]
)


class Tap:
    """Keeps nothing; override what is wanted. Arrays and cycles are the analysis's own: copy them."""

    def cycles(self, cycles: Sequence[Cycle]) -> None:
        """Cycles decided in one step, ordered by deadline."""

    def acquisitions(self, acquisitions: Records) -> None:
        """Contended acquisitions (n,) of dtype ``acquire.ACQ`` that are over, of any kind of word."""

    def pieces(self, pieces: Records, syscalls: Sequence[str]) -> None:
        """Waits cut by holder: dtype PIECE (n,), and the holder's longest syscall in each, "" unknown."""

    def reset(self) -> None:
        """The analysis starts anew."""
