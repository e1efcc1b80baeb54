# SPDX-License-Identifier: Apache-2.0
"""docs/frames.md and an export's README, out of the one list of columns.

Owns their wording. ``python -m tracer.frames.docs`` prints docs/frames.md; a test compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tracer.frames.columns import TABLES, TYPES, Table

_HEAD: Final = """# Frames

<!-- SPDX-License-Identifier: Apache-2.0 -->

```python
import tracer

trace = tracer.open("x.xdt")  # a trace folder, or a packed one; no root, no bcc
trace  # in Jupyter: the verdict, streams, remedies, locks, newest misses
trace.df_misses().query("cause == 'lock'")
trace.summary  # what every other view shows (summary.md)
```

Frames are made when asked for; the trace is analysed once. `trace.seconds(times)` gives seconds since
`trace.start`, for axes. `df_records("READ", "WRITE")` gives records of these kinds.

In a kernel that runs as root, `tracer.attach` traces running VMMs and shows tables that update in place:

```python
with tracer.attach(pid) as session:
    session.watch(30)  # seconds; or compute for yourself, the tables go on updating
session.df_misses()  # the same frames, also while it runs, except df_records
```

`tracer.attach(pid, output="x.xdt")` records too; then `session.trace()` opens what was recorded. The
notebooks in notebooks/ use all of this.

Rows of two frames belong together where these agree (and `merge` finds at most one):

| from | to | on |
|---|---|---|
| `df_misses` | `df_periods` | `stream`, `cycle` |
| `df_segments` | `df_misses` | `miss` = `id`; `carried_from` = `id` too |
| `df_waits` | `df_acquisitions` | `tid`, `address`, `acquisition_ns` = `start_ns` |
| `df_periods`, `df_misses` | `df_streams` | `stream` = `id` |

Numbers of cycles, streams and misses are a trace's own: concatenate traces with a key
(`pd.concat({"a": …, "b": …})`). Where two traces have different categories pandas makes plain text of the
column; `.astype("category")` makes one again.

Names are those of the records (records.md) and of the summary (summary.md), with units as suffixes; what
ends in `_ns` has a resolution of 1 ns. This page is written by `python -m tracer.frames.docs`, from the list
that gives the frames their types.
"""


def types() -> list[str]:
    """The table of types."""
    lines = ["| type | pandas | what |", "|---|---|---|"]
    return [*lines, *(f"| {name} | `{dtype}` | {what} |" for name, (dtype, what) in TYPES.items())]


def columns(tables: Iterable[Table], heading: str = "## `df_{}()`") -> list[str]:
    """A section per table."""
    lines: list[str] = []
    for table in tables:
        lines += ["", heading.format(table.name), "", f"Rows: {table.rows}.", ""]
        lines += ["| column | type | unit | meaning |", "|---|---|---|---|"]
        lines += [f"| `{c.name}` | {c.type} | {c.unit} | {c.meaning} |" for c in table.columns]
    return lines


def page() -> str:
    """docs/frames.md."""
    return "\n".join([_HEAD, "## Types", "", *types(), *columns(TABLES.values())]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
