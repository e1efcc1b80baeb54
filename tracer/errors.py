# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on.

Owns the exception tree and its exit codes. Never prints: cli/ does, in one place.
Every error says in one line what happened and in one line what to do.
"""

from __future__ import annotations


class XdtraceError(Exception):
    """A failure with a remedy.

    Args:
        message: what happened, one line.
        hint: what to do about it, one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback (IPython asks for it by this name)."""
        return [f"{type(self).__name__}: {self.message}", f"  {self.hint}"]


class FailOnMet(XdtraceError):
    """A ``--fail-on`` condition was met."""

    exit_code = 1


class UsageError(XdtraceError):
    """The command line, a profile or another input of the user's is wrong."""

    exit_code = 2


class ExpressionError(UsageError):
    """An expression does not parse; to blame are ``length`` characters of ``text`` from ``at``."""

    def __init__(self, message: str, hint: str, *, text: str, at: int, length: int) -> None:
        super().__init__(message, hint)
        self.text, self.at, self.length = text, at, length


class TargetError(XdtraceError):
    """The target was not found, has exited, or may not be traced."""

    exit_code = 3


class HostError(XdtraceError):
    """This host cannot trace: no BPF, no bcc, lockdown, no permission for BPF."""

    exit_code = 4


class TraceError(XdtraceError):
    """A trace folder is missing, corrupt, hostile or of a newer version."""

    exit_code = 5


class OutputError(TraceError):
    """A trace cannot be made where the user wants it: the name is taken, or nobody may write there."""

    exit_code = 2
