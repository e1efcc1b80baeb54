# SPDX-License-Identifier: Apache-2.0
"""What stands in a bundle's README.txt: what is in it, and what of that is private.

Owns the words. Reads no trace and redacts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tracer.views.fmt import clean, count

#: Names listed of each kind.
LISTED = 200

_WHAT = {
    "report.txt": "what xdtrace makes of the trace: read this first",
    "report.html": "the same as a page with pictures; it needs no network",
    "doctor.txt": "`xdtrace doctor` on the machine that made this bundle",
    "versions.txt": "versions of xdtrace and of what it stands on, there",
    "trace.xdt/": "the trace; `xdtrace report` opens this whole file as it is",
}
_KEPT = (
    "kernel release, CPU count, process and thread ids, times, addresses, fd numbers",
    "names of threads and programs that xdtrace's own profiles look for (cross domain, muvm, pipewire ...)",
    "crate and version of the device, build ids, names of functions, sources of published crates",
)


def readme(found: Mapping[str, Sequence[str]], *, redacted: bool, notes: Sequence[str] = ()) -> str:
    """The text of README.txt.

    Args:
        found: private texts by kind; of a redacted bundle their numbers only are told.
        notes: what is missing of the trace.
    """
    lines = ["A bundle of xdtrace: one recording and what belongs to it, to attach to a bug report.", ""]
    lines += [f"  {name:13} {what}" for name, what in _WHAT.items()]
    lines += [f"\nThe trace is not whole: {clean(note)}" for note in notes]
    if redacted:
        lines += ["", "REDACTED: replaced by made-up names, each by the same one everywhere:"]
        lines += [f"  {kind}: {count(len(names))}" for kind, names in found.items() if names]
        lines += ["Kept:", *(f"  {what}" for what in _KEPT)]
    else:
        lines += ["", "PRIVATE DATA IN IT (made with --redact it has made-up names instead):"]
        for kind, names in found.items():
            if names:
                lines.append(f"  {kind}: {count(len(names))}")
                lines += [f"    {clean(name)}" for name in names[:LISTED]]
                if len(names) > LISTED:
                    lines.append(f"    ... and {count(len(names) - LISTED)} more")
        lines += ["Also in it, seldom private:", *(f"  {what}" for what in _KEPT)]
    return "\n".join(lines) + "\n"


def in_short(found: Mapping[str, Sequence[str]], *, redacted: bool) -> list[str]:
    """The same in a few lines, for who made it."""
    kinds = [(kind, names) for kind, names in found.items() if names]
    if redacted:
        told = "; ".join(f"{kind}: {count(len(names))}" for kind, names in kinds)
        return [f"replaced in it: {told or 'nothing, there was nothing private'}"]
    lines = ["private data in it (README.txt lists all; --redact replaces them):"]
    for kind, names in kinds:
        some = ", ".join(clean(name) for name in names[:3])
        lines.append(f"  {kind}: {count(len(names))}: {some}{' ...' if len(names) > 3 else ''}")
    return lines
