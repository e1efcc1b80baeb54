# SPDX-License-Identifier: Apache-2.0

"""``xdtrace bundle``: one file to attach to a bug report. Wiring only."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracer.cli import options as o
from tracer.cli.live import Hooks, go, make_analysis, plan
from tracer.cli.report import check_output, open_trace, write
from tracer.cli.run import ending_by_signal, replay
from tracer.errors import UsageError, XdtraceError

if TYPE_CHECKING:
    from tracer.schema import Batch
    from tracer.trace.redact import Redactor

NAME = "trace.xdt"
#: Seconds recorded of a PID unless told otherwise.
SECONDS = 10.0


def bundle(
    what: Annotated[
        str, typer.Argument(metavar="DIR|PID", help="A trace, or a VMM to record first.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to make.")],
    redact: Annotated[
        bool, typer.Option("--redact", help="Replace names of threads and programs, and paths, everywhere.")
    ] = False,
    duration: o.Duration = None,
    period: o.Period = None,
    profile: o.ProfileFile = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Put a trace, its report, doctor's answer and versions into one file, and list the private data in it.

    `xdtrace report FILE` opens it like the trace itself.
    """
    from tracer.trace import pack
    from tracer.trace.redact import Redactor
    from tracer.views.bundle import in_short, readme

    pid = int(what) if what.isascii() and what.isdecimal() and not os.path.exists(what) else None
    if pid is None and duration is not None:
        raise UsageError("--duration is for a PID: a trace is as long as it is", "leave it away")
    o.check_seconds("--duration", duration)
    output = output.absolute()
    check_file(output, Path(what), force)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xdtrace-")))
        path = (
            Path(what) if pid is None else recorded(pid, work / "recorded.xdt", duration or SECONDS, profile)
        )
        private = Redactor(profiles(), machine_words())
        analysis = make_analysis(profile, o.parse_period(period))
        trace = stack.enter_context(open_trace(path))
        writer = stack.enter_context(anew(work / NAME, trace.incomplete)) if redact else None
        summary = replay(_through(trace, private, writer), analysis)
        if writer is not None:
            writer.close()
        notes = [trace.incomplete] if trace.incomplete else []
        title = NAME if redact else path.resolve().name
        texts = {}
        for form, name in (("text", "report.txt"), ("html", "report.html")):
            out = io.StringIO()
            write(summary, form, out, title=title, notes=notes)
            texts[name] = out.getvalue()
        checks = doctor_says(pid)
        without = private.text(checks)  # looked at in any case: the list below is of all that is private
        texts["doctor.txt"] = without if redact else checks
        texts["versions.txt"] = versions()
        texts = {"README.txt": readme(private.found, redacted=redact, notes=notes), **texts}
        if force and output.is_file():
            output.unlink()
        beside = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
        pack(work / NAME if redact else path, output, beside=beside, name=NAME)
    print(f"wrote {output}: {output.stat().st_size / 1e6:.1f} MB")
    print("\n".join(in_short(private.found, redacted=redact)))


def check_file(output: Path, trace: Path, force: bool) -> None:
    """As for a report, and refuse a file that exists, unless forced. Raises UsageError."""
    check_output(output, trace)
    if os.path.exists(output) and not force:
        raise UsageError(f"{output} exists", "choose another name, or add --force")


def recorded(pid: int, path: Path, seconds: float, profile: str | None) -> Path:
    """Record a VMM for so many seconds."""
    from tracer.views.text import TextBlocks

    todo = plan(
        [pid], output=path, duration=seconds, period=None, profile=profile, lock=None, audio=None,
        no_audio=False, held_words=4, force=False,
    )  # fmt: skip
    hooks = Hooks(started=lambda: print(f"recording {pid} for {seconds:g} s", file=sys.stderr, flush=True))
    with ending_by_signal() as ending:
        go(todo, TextBlocks(io.StringIO(), None), ending, hooks)
    return path


def anew(path: Path, incomplete: str | None) -> Any:
    """A writer for the same trace anew, which says what the first one lacks."""
    from tracer.trace import TraceWriter

    return TraceWriter(path, settings={"incomplete": incomplete} if incomplete else None)


def _through(trace: Any, private: Redactor, writer: Any) -> Iterator[Batch]:
    """The trace's batches: looked at for what is private, and with a writer given without it."""
    for batch in trace:
        clean = private.batch(batch)
        if writer is None:
            yield batch
        else:
            writer.append(clean)
            yield clean


def profiles() -> Any:
    """The bundled profiles: what they name is public."""
    from tracer.profile import default_profiles

    return default_profiles()


def machine_words() -> dict[str, str]:
    """Names of this machine and its user, as they may occur in what doctor says."""
    import getpass
    import socket

    words = {socket.gethostname(): "host", str(Path.home()): "/home"}
    with suppress(KeyError, OSError):
        words[getpass.getuser()] = "user"
    return {old: new for old, new in words.items() if len(old) > 2 and old not in ("/root", "root")}


def doctor_says(pid: int | None) -> str:
    """What ``xdtrace doctor`` prints here, or why it cannot."""
    from tracer.cli.doctor import run_checks
    from tracer.views.fmt import ENDLESS
    from tracer.views.vmms import render_checks

    try:
        here, target = run_checks(pid)
        return render_checks([*here, *target]).plain(ENDLESS)
    except XdtraceError as error:
        return f"{error.message}\n  {error.hint}\n"


def versions() -> str:
    """Versions of what is at work here, a line each."""
    import platform
    from importlib import metadata

    names = ("xdtrace", "numpy", "pandas", "pyarrow", "rich", "symbolic", "jinja2")
    lines = [f"python {platform.python_version()}", f"linux {platform.release()} {platform.machine()}"]
    for name in names:
        try:
            lines.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name} (a checkout, or not installed)")
    return "\n".join(lines) + "\n"
