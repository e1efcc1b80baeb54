# SPDX-License-Identifier: Apache-2.0
"""A live session for notebooks: a thread that feeds the analysis, a display that updates in place.

Owns that thread, its lock, and when the display is drawn. The engine is the one of ``xdtrace attach``.
Outside IPython nothing is displayed and everything else works.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from tracer.errors import UsageError
from tracer.frames import Frames, Seen, Trace
from tracer.frames.collect import Collector
from tracer.frames.html import summary_html
from tracer.model.analysis import Analysis
from tracer.profile import default_profiles, load

if TYPE_CHECKING:
    import pandas as pd

    from tracer.capture.session import Session
    from tracer.model.summary import Summary
    from tracer.schema import Batch

#: Rows of each table that are kept beside the analysis, the newest.
KEEP_ROWS: Final = 200_000
#: Misses listed while it runs, as on the live screen; the last summary lists all that were kept.
SHOWN_MISSES: Final = 200
#: At most this share of the time goes into drawing.
_DRAW_SHARE: Final = 0.25


class LiveSession(Frames):
    """Traces VMMs between ``with tracer.attach(pid) as session:`` and the end of that block.

    In IPython the tables appear when the block is entered and update in place until it is left, while
    the block computes, sleeps or calls ``watch``. Afterwards frames and summary stay.

    Args: see ``tracer.attach``.
    """

    def __init__(
        self,
        pids: Iterable[int],
        *,
        output: Path | None,
        period: tuple[int, int] | None,
        profile: str | None,
        audio: int | bool | None,
        held_words: int,
        refresh_s: float,
        force: bool,
    ) -> None:
        self._pids = tuple(dict.fromkeys(pids))
        if not self._pids or any(not isinstance(pid, int) or pid <= 0 for pid in self._pids):
            raise UsageError("attach needs the PIDs of VMMs", "`xdtrace list` shows those found")
        if not 0 <= held_words <= 16:
            raise UsageError(f"held_words {held_words} is out of range", "give 0 to 16")
        if not 0.05 <= refresh_s < 1e6:
            raise UsageError(f"refresh_s {refresh_s:g} is out of range", "give seconds, at least 0.05")
        self.title = f"VMM {', '.join(map(str, self._pids))}"
        self.output = None if output is None else output.absolute()
        self._force, self._audio, self._held_words = force, audio, held_words
        self._refresh_s = refresh_s
        profiles = default_profiles() if profile is None else (load(profile), *default_profiles())
        self._kept = Collector(KEEP_ROWS)
        self._analysis = Analysis(tuple(profiles), period, held_words, tap=self._kept)
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._last: Summary | None = None
        self._error: BaseException | None = None
        self._stack = ExitStack()
        self._thread: threading.Thread | None = None
        self._show: Callable[[str], object] = _nowhere

    # --- its life ------------------------------------------------------------------

    def __enter__(self) -> Self:
        from tracer.capture.session import Session, Settings
        from tracer.trace import TraceWriter, check_place

        if self._thread is not None:
            raise UsageError("this session was entered before", "call tracer.attach again")
        if self.output is not None:
            check_place(self.output, force=self._force)
        try:
            settings = Settings(audio=self._audio, held_words=self._held_words)
            session = self._stack.enter_context(Session(self._pids, settings))
            writer = None
            if self.output is not None:
                writer = self._stack.enter_context(TraceWriter(self.output, force=self._force))
        except BaseException:
            self._stack.close()
            raise
        self._session = session
        self._show = _display(self._html("attaching …"))
        self._thread = threading.Thread(target=self._run, args=(session, writer), name="xdtrace", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.stop()
        assert self._thread is not None
        self._thread.join()
        self._stack.close()
        self._show(self._html("ended"))
        if self._error is not None and error is None:
            raise self._error

    def _run(self, session: Session, writer: Any) -> None:
        """The thread: every batch into the folder and the analysis, the tables when they are due."""
        watched: Mapping[int, tuple[int, ...]] = {}
        due = time.monotonic()
        try:
            for batch in session:
                if writer is not None:
                    writer.append(batch)
                with self._lock:
                    self._analysis.feed(batch)
                    wanted = self._analysis.words_to_watch()
                    guests = self._analysis.guests_to_join()
                for tgid in {**watched, **wanted}:
                    if wanted.get(tgid, ()) != watched.get(tgid, ()):
                        session.watch(tgid, wanted.get(tgid, ()))
                watched = wanted
                for vmm, process in guests:
                    session.join(vmm, process)
                now = time.monotonic()
                if now >= due:
                    before = time.thread_time()
                    self._show(self._html("live"))
                    spent = time.thread_time() - before
                    due = max(now + self._refresh_s, time.monotonic() + spent / _DRAW_SHARE)
        except BaseException as error:
            self._error = error
        finally:
            with self._lock:
                self._analysis.finish()
                self._last = self._analysis.summary()
            self._over.set()

    def watch(self, seconds: float | None = None) -> None:
        """Wait, while the tables update: so long, or until the VMMs exit or the kernel is interrupted."""
        try:
            self._over.wait(seconds)
        except KeyboardInterrupt:
            return

    @property
    def running(self) -> bool:
        """Whether it still traces."""
        return self._thread is not None and not self._over.is_set()

    def trace(self) -> Trace:
        """What was recorded, opened. Raises UsageError if nothing was."""
        if self.output is None:
            raise UsageError("nothing was recorded", "give tracer.attach an output='NAME.xdt'")
        return Trace(self.output)

    # --- frames ----------------------------------------------------------------------

    def _seen(self) -> Seen:
        with self._lock:
            summary = self._last or self._analysis.summary(SHOWN_MISSES)
            return Seen(self._analysis, self._kept, summary)

    def _frame(self, name: str, make: Callable[[Seen], pd.DataFrame]) -> pd.DataFrame:
        with self._lock:
            return super()._frame(name, make)

    def _batches(self) -> Iterable[Batch]:
        raise UsageError(
            "records are not kept in memory while a session is live",
            "give tracer.attach an output='NAME.xdt', and use session.trace().df_records()",
        )

    def _html(self, state: str) -> str:
        summary = self.summary
        own = f"xdtrace's own CPU {summary.self.cpu_percent:.1f} % of one core"
        return summary_html(summary, title=self.title, note=f"{state} · {own}")

    def _repr_html_(self) -> str:
        return self._html("live" if self.running else "ended")

    def __repr__(self) -> str:
        return f"<tracer.attach({', '.join(map(str, self._pids))}) {'live' if self.running else 'not live'}>"


def _nowhere(html: str) -> None:
    """Shows nothing."""


def _display(html: str) -> Callable[[str], object]:
    """Show a page in the running notebook; returns what replaces it, in place."""
    if "IPython" not in sys.modules:
        return _nowhere
    from IPython import get_ipython
    from IPython.display import HTML, display

    if get_ipython() is None:
        return _nowhere
    handle = display(HTML(html), display_id=True)
    return _nowhere if handle is None else lambda page: handle.update(HTML(page))
