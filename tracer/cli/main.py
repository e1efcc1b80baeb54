# SPDX-License-Identifier: Apache-2.0

"""The ``xdtrace`` command: its subcommands, and the one place where errors are printed.

Owns exit codes and the form of errors: one line what happened, one line what to do.
Imports no heavy module: each command imports what it needs when it runs.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, NoReturn

import typer

from tracer.cli.attach import attach
from tracer.cli.bounded import bounded
from tracer.cli.bundle import bundle
from tracer.cli.compare import Sides, compare
from tracer.cli.demo import demo
from tracer.cli.doctor import doctor
from tracer.cli.export import export
from tracer.cli.glitches import glitches
from tracer.cli.listing import list_vmms
from tracer.cli.record import record
from tracer.cli.report import report
from tracer.cli.whatif import whatif
from tracer.errors import ExpressionError, XdtraceError

#: A fault of xdtrace itself; the codes 1 to 5 mean something else (tracer/errors.py).
EXIT_FAULT = 70
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="xdtrace",
    help="Why did the audio of a VM miss its period, and would it have, without that lock?",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("attach", short_help="live tables: why audio misses its period")(attach)
app.command("demo", short_help="run the bundled mini-VMM and attach to it")(demo)
app.command("list", short_help="VMMs found on this host, their audio streams")(list_vmms)
app.command("doctor", short_help="what is missing here, and how to get it")(doctor)
app.command("record", short_help="the same as attach, into a folder, headless")(record)
app.command("report", short_help="what a recorded trace says")(bounded(report))
app.command("bundle", short_help="one file to attach to a bug report")(bounded(bundle))
app.command("compare", cls=Sides, short_help="runs before and after a change")(bounded(compare))
app.command("export", short_help="a trace as tables, as one file, or for Perfetto")(bounded(export))
app.command("glitches", short_help="what is heard in a capture, and which misses explain it")(
    bounded(glitches)
)
app.command("whatif", short_help="which misses a remedy would have avoided")(bounded(whatif))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"xdtrace {version('xdtrace')}")
        except PackageNotFoundError:
            print("xdtrace (from a checkout)")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _one_line(text: str) -> str:
    """An error's text as one printable line: names of targets may be in it."""
    from tracer.views.fmt import clean

    return clean(" ".join(text.split()))


def _complain(what: str, do: str, place: str = "") -> None:
    print(f"xdtrace: {_one_line(what)}\n{place}  {_one_line(do)}", file=sys.stderr)


def _place(error: XdtraceError) -> str:
    """Where an expression went wrong: it, and a caret below; "" for any other error, and if there is none."""
    if not isinstance(error, ExpressionError) or not error.text.strip():
        return ""
    from tracer.views.fmt import pointed_at

    return "".join(f"    {line}\n" for line in pointed_at(error.text, error.at, error.length))


def _forget_stdout() -> None:
    """Nobody reads stdout any more: let the interpreter's last flush go nowhere."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass


def _usage(error: BaseException) -> int | None:
    """Exit code of an error that typer raises, after printing it; None if it is none of its.

    Told by what such errors carry, because typer may bring a click of its own.
    """
    show, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if show is None or not isinstance(code, int):
        return None
    if type(error).__name__ == "NoArgsIsHelpError":
        print(show())
        return code
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "xdtrace"
    _complain(show(), f"see `{command} --help`")
    return code


def run_command(arguments: list[str]) -> int:
    """Run one command line; returns the exit code and prints any error, never a traceback.

    With ``XDTRACE_DEBUG=1`` errors are raised instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    debug = os.environ.get("XDTRACE_DEBUG", "") not in ("", "0")
    try:
        # Not app(): it would turn a closed pipe into exit code 1 before it gets here.
        command = typer.main.get_command(app)
        with command.make_context("xdtrace", list(arguments)) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except XdtraceError as error:
        if debug:
            raise
        _complain(error.message, error.hint, _place(error))
        return error.exit_code
    except BrokenPipeError:
        _forget_stdout()
        return 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception as error:
        usage = _usage(error)
        if usage is not None:
            return usage
        if type(error).__name__ == "Abort":
            return EXIT_INTERRUPTED
        if debug:
            raise
        _complain(
            f"a fault of xdtrace itself: {type(error).__name__}: {error}",
            "run it again with XDTRACE_DEBUG=1 and report what it prints",
        )
        return EXIT_FAULT


def write_whole() -> None:
    """Let nothing be lost of a line of which a signal cuts off a write.

    With PYTHONUNBUFFERED stdout has no buffer below its text, and what a short write leaves is dropped.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(raw), sys.stdout.encoding, "backslashreplace", line_buffering=True
        )


def main() -> NoReturn:
    """The console script."""
    write_whole()
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
