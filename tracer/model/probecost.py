# SPDX-License-Identifier: Apache-2.0
"""How much of a write's measured cost is the probes' own.

Owns the arithmetic on what a session calibrated (host facts ``probe_*_ns``). Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

#: What a session measured of itself (capture/calibrate.py), by (kind of write, all words watched).
_FACTS = {
    ("write", False): "probe_write_ns",
    ("write", True): "probe_write_words_ns",
    ("dup", False): "probe_dup_ns",
    ("dup", True): "probe_dup_words_ns",
}


def correction_ns(host: Mapping[str, str | int | float], dup_share: float, words: float) -> int | None:
    """What the probes add to the further syscalls of a write, ns; None where it was not calibrated.

    A span begins behind the probes' entry part and ends before their exit part. From the first
    entry to the last exit of dup, write and close lie two whole probe costs more than in a write
    alone; what is left at the two edges is the same in both, and goes when they are compared.

    Args:
        host: facts of the run; dup_share: share of writes that go to a fresh dup (0 to 1).
        words: how many lock words were watched at a write, on average; the cost is linear in them.
    """
    known: dict[tuple[str, bool], float] = {}
    for key, name in _FACTS.items():
        value = host.get(name)
        if isinstance(value, str) or value is None:
            return None
        known[key] = value
    most = host.get("held_words", 0)
    part = min(1.0, words / most) if isinstance(most, int | float) and most > 0 else 0.0
    cost = {
        kind: known[kind, False] + part * (known[kind, True] - known[kind, False])
        for kind in ("write", "dup")
    }
    return round(dup_share * max(0.0, cost["dup"] - cost["write"]))
