# SPDX-License-Identifier: Apache-2.0
"""``--fail-on``: a small language of conditions on a Summary.

Owns the grammar (docs/fail-on.md). Which names there are is measures.py's, whether a condition holds is
outcomes.py's. Prints nothing and exits nowhere.

    condition  := all ("or" all)*
    all        := one ("and" one)*
    one        := "not" one | "(" condition ")" | comparison
    comparison := measure (">" | ">=" | "<" | "<=" | "==" | "!=") number unit?
    measure    := name ("(" argument ")")? ("." field)? ("/" ("min" | "cycles"))?
    argument   := name | "text" | 'text'
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NoReturn

from tracer.errors import ExpressionError
from tracer.model import measures
from tracer.model.measures import PLAIN_NAME, Measure, Unsuitable

#: Conditions deeper or longer than that are no conditions.
MAX_CHARS: Final = 4096
MAX_DEPTH: Final = 64

_TOKEN: Final = re.compile(
    rf"""(?P<space>\s+)
      | (?P<number>\d+(?:\.\d+)?)(?P<unit>[A-Za-zµμ%]*)
      | (?P<name>{PLAIN_NAME.pattern})
      | (?P<text>"[^"]*"|'[^']*')
      | (?P<sign>>=|<=|==|!=|[><().,/])
      """,
    re.VERBOSE | re.ASCII,
)
#: What may stand between a measure and a number.
OPERATORS: Final[Mapping[str, Callable[[Fraction, Fraction], bool]]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """``measure operator number``; ``value`` in the measure's own unit (ns, a count, a share)."""

    measure: Measure
    operator: str
    value: Fraction
    written: str

    def __str__(self) -> str:
        return f"{self.measure} {self.operator} {self.written}"


@dataclass(frozen=True, slots=True)
class Not:
    """Holds where the inner one does not."""

    inner: Condition

    def __str__(self) -> str:
        return f"not {_in_brackets(self.inner)}"


@dataclass(frozen=True, slots=True)
class Joined:
    """Several joined by ``and``, or by ``or``."""

    word: str
    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return f" {self.word} ".join(map(_in_brackets, self.parts))


Condition = Comparison | Not | Joined


def _in_brackets(condition: Condition) -> str:
    return f"({condition})" if isinstance(condition, Joined) else str(condition)


def parse(text: str) -> Condition:
    """A condition.

    Raises:
        ExpressionError: it is none; says where and why.
    """
    return _Parser(text).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int
    unit: str = ""


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        if len(text) > MAX_CHARS:
            self._fail(f"it is longer than {MAX_CHARS} characters", "make it shorter", MAX_CHARS, 1)
        self._tokens = self._split()
        self._next = 0
        self._depth = 0

    def whole(self) -> Condition:
        condition = self._joined()
        token = self._peek()
        if token.kind != "end":
            self._expected("'and', 'or' or the end", token)
        return condition

    # --- tokens ---

    def _split(self) -> list[_Token]:
        tokens, at = [], 0
        while at < len(self._text):
            match = _TOKEN.match(self._text, at)
            if match is None:
                closed = self._text[at] not in "\"'"
                what = f"{self._text[at]!r} means nothing here" if closed else "the quote is not closed"
                self._fail(what, "see docs/fail-on.md for what may be written", at, 1)
            kind = match.lastgroup if match.lastgroup != "unit" else "number"
            if kind != "space":
                tokens.append(_Token(kind or "", match[kind or 0], at, match["unit"] or ""))
            at = match.end()
        return [*tokens, _Token("end", "", len(self._text))]

    def _peek(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._tokens[self._next]
        self._next = min(self._next + 1, len(self._tokens) - 1)
        return token

    def _sign(self, sign: str) -> bool:
        token = self._peek()
        if token.kind == "sign" and token.text == sign:
            self._take()
            return True
        return False

    def _word(self, word: str) -> bool:
        token = self._peek()
        if token.kind == "name" and token.text == word:
            self._take()
            return True
        return False

    # --- grammar ---

    def _joined(self) -> Condition:
        return self._list("or", lambda: self._list("and", self._one))

    def _list(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._word(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _one(self) -> Condition:
        token = self._peek()
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail("it is nested too deeply", f"use at most {MAX_DEPTH} levels", token.at, 1)
        try:
            if self._word("not"):
                return Not(self._one())
            if self._sign("("):
                inner = self._joined()
                if not self._sign(")"):
                    self._expected("')'", self._peek())
                return inner
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Condition:
        measure = self._measure()
        sign = self._take()
        if sign.kind != "sign" or sign.text not in OPERATORS:
            self._expected(f"a comparison ({', '.join(OPERATORS)})", sign)
        number = self._take()
        if number.kind != "number":
            self._expected("a number", number)
        written = number.text + number.unit
        try:
            value = measures.value_of(measure, Fraction(number.text), number.unit)
        except Unsuitable as error:
            self._fail(error.what, error.do, number.at, len(written))
        return Comparison(measure, sign.text, value, written)

    def _measure(self) -> Measure:
        name = self._take()
        if name.kind != "name" or name.text in ("and", "or", "not"):
            self._expected("a measure, such as misses", name)
        argument, argument_at = None, name
        if self._sign("("):
            argument_at = self._take()
            if argument_at.kind not in ("name", "text"):
                self._expected(f"a name, as in {name.text}(item_state)", argument_at)
            argument = argument_at.text.strip("\"'") if argument_at.kind == "text" else argument_at.text
            if not self._sign(")"):
                self._expected("')'", self._peek())
        field, field_at = "", name
        if self._sign("."):
            field_at = self._take()
            if field_at.kind != "name":
                self._expected("a field, as in lock(item_state).wait_p99", field_at)
            field = field_at.text
        per, per_at = "", name
        if self._sign("/"):
            per_at = self._take()
            if per_at.kind != "name":
                self._expected("'min' or 'cycles'", per_at)
            per = per_at.text
        try:
            return measures.measure(name.text, argument, field, per)
        except Unsuitable as error:
            place = {"name": name, "argument": argument_at, "field": field_at, "per": per_at}[error.where]
            self._fail(error.what, error.do, place.at, len(place.text))

    # --- errors ---

    def _expected(self, what: str, token: _Token) -> NoReturn:
        got = "the end" if token.kind == "end" else repr(token.text + token.unit)
        self._fail(
            f"here {what} is expected, not {got}",
            "such as: misses > 0 and lock(item_state).wait_p99 > 2ms (docs/fail-on.md)",
            token.at,
            max(len(token.text + token.unit), 1),
        )

    def _fail(self, what: str, do: str, at: int, length: int) -> NoReturn:
        raise ExpressionError(what, do, text=self._text, at=at, length=length)
