# SPDX-License-Identifier: Apache-2.0

"""What attach, record and demo share: a session, an analysis, a view and perhaps a writer, wired.

Owns which part is made when (the heavy imports too). Computes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracer.cli.options import check_pids, check_seconds, parse_locks, parse_period
from tracer.cli.run import Ending, run
from tracer.errors import TargetError, UsageError

if TYPE_CHECKING:
    from tracer.model.summary import Summary
    from tracer.views.base import View


@dataclass(frozen=True)
class Plan:
    """A live run as the user asked for it, checked.

    Attributes:
        locks: (name, address) of lock words in the first target.
        output: absolute (bcc changes the working directory).
        audio: the audio server's PID, None: find it, False: none.
        everything: ``tgids`` are all that were found; one may be gone again.
    """

    tgids: tuple[int, ...]
    output: Path | None = None
    duration_s: float | None = None
    period: tuple[int, int] | None = None
    profile: str | None = None
    locks: tuple[tuple[str, int], ...] = ()
    audio: int | bool | None = None
    held_words: int = 4
    force: bool = False
    everything: bool = False


def choose(pids: list[int] | None, everything: bool) -> list[int]:
    """The processes to trace: those named, or with ``--all`` every VMM that is found.

    Raises:
        UsageError: both or neither.
        TargetError: there is no VMM here.
    """
    if everything and pids:
        raise UsageError("--all and a PID contradict each other", "leave one of them out")
    if pids:
        return pids
    if not everything:
        raise UsageError("no PID was given", "`xdtrace list` shows the VMMs here; --all takes all of them")
    from tracer.cli import listing

    if found := [vmm.tgid for vmm in listing.find()]:
        return found
    raise TargetError("no VMM was found here", "start one, or name a process that is one: give its PID")


def plan(
    pids: list[int] | None,
    *,
    everything: bool = False,
    output: Path | None,
    duration: float | None,
    period: str | None,
    profile: str | None,
    lock: list[str] | None,
    audio: int | None,
    no_audio: bool,
    held_words: int,
    force: bool,
) -> Plan:
    """Check the options of a live command. Raises UsageError."""
    tgids = check_pids(choose(pids, everything))
    check_seconds("--duration", duration)
    if audio is not None and no_audio:
        raise UsageError("--audio and --no-audio contradict each other", "leave one of them out")
    if audio is not None:
        check_pids([audio])
    if not 0 <= held_words <= 16:
        raise UsageError(f"--held-words {held_words} is out of range", "give 0 to 16")
    owner, locks = parse_locks(lock, tgids)
    if owner is not None:  # a session takes them to be the first target's
        tgids = (owner, *(tgid for tgid in tgids if tgid != owner))
    return Plan(
        tgids=tgids,
        output=output.absolute() if output is not None else None,
        duration_s=duration,
        period=parse_period(period),
        profile=_absolute(profile),
        locks=locks,
        audio=False if no_audio else audio,
        held_words=held_words,
        force=force,
        everything=everything,
    )


def _absolute(profile: str | None) -> str | None:
    """A path made absolute before bcc changes directory; a bare name stays one."""
    return str(Path(profile).absolute()) if profile is not None and Path(profile).is_file() else profile


def make_analysis(
    profile: str | None, period: tuple[int, int] | None, held_words: int = 4, brief: bool = False
) -> Any:
    """An Analysis with the profiles that apply, perhaps a brief one. Raises UsageError for a bad profile."""
    from tracer.model.analysis import Analysis
    from tracer.model.verdicts import BRIEF, WHOLE
    from tracer.profile import default_profiles, load

    profiles = default_profiles() if profile is None else (load(profile), *default_profiles())
    keep = BRIEF if brief else WHOLE
    return Analysis(profiles=tuple(profiles), period=period, held_words=held_words, keep=keep)


def open_session(todo: Plan) -> Any:
    """A capture session, not yet entered."""
    from tracer.capture.session import Session, Settings

    settings = Settings(
        audio=todo.audio,
        held_words=todo.held_words,
        lock_symbols=todo.locks,
        need_all=not todo.everything,
    )
    return Session(todo.tgids, settings)


def open_writer(path: Path, *, force: bool) -> Any:
    """A trace writer."""
    from tracer.trace import TraceWriter

    return TraceWriter(path, force=force)


def check_output(todo: Plan, *, shared: bool) -> None:
    """Refuse a place where no trace can be made. Raises OutputError."""
    if todo.output is not None:
        from tracer.trace import check_place

        check_place(todo.output, force=todo.force, shared=shared)


def make_view(*, as_json: bool, refresh_s: float | None, quiet: bool = False) -> View:
    """JSON lines, the live screen, or text blocks: what fits the terminal and the options."""
    check_seconds("--refresh", refresh_s, least=0.01)
    if as_json:
        from tracer.views.jsonl import JsonLines

        return JsonLines(sys.stdout, refresh_s or 1.0)
    if not quiet and sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        from tracer.views.live import LiveScreen, keyboard

        return LiveScreen(sys.stdout, keyboard(), refresh_s or 0.25)
    from tracer.views.text import TextBlocks

    return TextBlocks(sys.stdout, None if quiet else refresh_s or 2.0)


@dataclass(frozen=True)
class Hooks:
    """What a command adds to the loop."""

    started: Callable[[], object] = lambda: None
    may_end: Callable[[bool], bool] = bool
    extra: Callable[[], Mapping[str, object]] = field(default=dict)
    #: Makes what stands in a trace writer's place, from the analysis.
    writer: Callable[[Any], Any] | None = None
    #: Whether the analysis keeps little: who runs for weeks has what matters judged again from a dump.
    brief: bool = False


def go(todo: Plan, view: View, ending: Ending, hooks: Hooks | None = None) -> Summary:
    """Attach, run until something ends it, detach, show the last summary.

    The screen is taken only after the session stands, so that its errors appear on the normal
    screen; the last summary is shown after it is given back and everything is detached.
    """
    hooks = hooks or Hooks()
    check_output(todo, shared=hooks.writer is not None)  # before bcc compiles for seconds
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        # The folder is made before bcc changes directory, and only once the target is known to be there.
        session = open_session(todo)
        # The analysis is a quarter of a second of imports, during which bcc or the kernel is at work.
        making = pool.submit(make_analysis, todo.profile, todo.period, todo.held_words, hooks.brief)
        writer = None
        stack.enter_context(session)
        analysis = making.result()
        if todo.output is not None:
            made = hooks.writer(analysis) if hooks.writer else open_writer(todo.output, force=todo.force)
            writer = stack.enter_context(made)
        stack.enter_context(view)
        hooks.started()
        summary = run(
            session,
            analysis,
            view,
            ending=ending,
            writer=writer,
            watch=session.watch,
            join=session.join,
            stop=session.stop,
            duration_s=todo.duration_s,
            may_end=hooks.may_end,
        )
        extra = dict(hooks.extra())
    view.finish(summary, extra)
    return summary
