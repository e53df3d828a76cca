r"""Cuts an answer that comes in pieces into what can be shown for good and what is still being written.

A line of code or of a formula and a heading are shown as soon as they end; list items, paragraphs and tables
when the next one begins or an empty line follows.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from enum import Enum, auto

PEEK = 4000  # characters of an unfinished part that are looked at for each piece of an answer
FENCE = re.compile(r"(\s*)(`{3,}|~{3,})\s*([^`\s]*)[^`]*")
ITEM = re.compile(r"(\s*)([-*+•]|\d{1,9}[.)])(\s+|$)")
HEADING = re.compile(r"\s{0,3}#{1,6}(\s|$)")
RULE = re.compile(r"\s{0,3}([-*_])\s*(\1\s*){2,}")
# How a formula of several lines begins, and how it ends.
FORMULAS = {r"\[": r"\]", "$$": "$$"}
ENVIRONMENT = re.compile(r"\\begin\{([^}]*)\}")


class Kind(Enum):
    """What a part of an answer is."""

    TEXT = auto()
    ITEM = auto()
    HEADING = auto()
    FENCE = auto()
    CODE = auto()
    FORMULA = auto()


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an answer.

    Attributes:
        kind: What it is.
        text: Its lines as they were written; those of a TEXT or an ITEM without marker and indentation.
        indent: The column at which the text begins.
        marker: Of an ITEM, with the blanks before it.
        gap: Whether an empty line is before it.
    """

    kind: Kind
    text: str
    indent: int = 0
    marker: str = ""
    gap: bool = False


class Splitter:
    """Cuts a text into parts; each piece is looked at once, since a part may be as long as an answer."""

    def __init__(self) -> None:
        self._rest = ""  # the line being written
        self._open: Part | None = None  # whose lines are:
        self._lines: list[str] = []
        self._size = 0  # of the lines
        self._fence, self._formula = "", ""  # what ends the code or the formula
        self._nested = False  # whether indented lines belong to a list
        self._gap = self._begun = False

    def feed(self, text: str) -> list[Part]:
        """Take the next piece and return the parts that are finished now."""
        if "\n" not in text:
            self._rest += text
            return []
        *lines, self._rest = (self._rest + text).split("\n")
        return [part for line in lines for part in self._line(line)]

    def pending(self) -> list[Part]:
        """Return what is being written, as far as it is known; of something long, the end."""
        ahead = copy.copy(self)
        if self._size + len(self._rest) > PEEK:
            lines = [*self._lines[-PEEK // 2 :], self._rest[-PEEK:]]
            return [Part(Kind.CODE, line) for line in "\n".join(lines)[-PEEK:].split("\n")]
        ahead._lines = list(self._lines)
        return [*ahead._line(self._rest), *ahead._close()] if self._rest else ahead._close()

    def end(self) -> list[Part]:
        """Return what is left when nothing more comes."""
        rest, self._rest = self._rest, ""
        return [*(self._line(rest) if rest.strip() else []), *self._close()]

    def _line(self, line: str) -> list[Part]:
        """Take a whole line."""
        line = line.rstrip("\r")
        if self._fence:
            return self._in_code(line)
        if self._formula and line.strip():  # an empty line ends what was none, or was never closed
            return self._in_formula(line)
        if not line.strip():
            self._formula = ""
            finished = self._close()
            self._gap = self._begun
            return finished
        text = line.lstrip()
        return self._begin(line[: len(line) - len(text)].expandtabs(4) + text)

    def _in_code(self, line: str) -> list[Part]:
        mark = line.strip()
        if mark.startswith(self._fence) and not mark.strip(self._fence[0]):
            self._fence = ""
            return [Part(Kind.FENCE, line)]
        return [Part(Kind.CODE, line)]

    def _in_formula(self, line: str) -> list[Part]:
        if self._formula in line:
            self._formula = ""
        return [Part(Kind.FORMULA, line)]

    def _begin(self, line: str) -> list[Part]:
        """Take a line that may begin something."""
        if fence := FENCE.fullmatch(line):
            self._fence = fence[2]
            return self._whole(Kind.FENCE, line)
        item = None if RULE.fullmatch(line) or self._within_formula() else ITEM.match(line)
        if item is not None:
            return self._item(line, item)
        if (begin := _formula_of(line)) is not None:
            return self._display(line, *begin)
        if HEADING.match(line):
            self._nested = False
            return self._whole(Kind.HEADING, line)
        return self._text(line)

    def _within_formula(self) -> bool:
        """Return whether the last line of the open part began a formula and did not end it."""
        return bool(self._lines) and self._lines[-1].rfind(r"\(") > self._lines[-1].rfind(r"\)")

    def _text(self, line: str) -> list[Part]:
        """Take a line of a paragraph, a table, a quotation or an item."""
        indent = len(line) - len(line.lstrip())
        if RULE.fullmatch(line) and (self._open is None or self._open.kind is Kind.ITEM):
            return self._whole(Kind.TEXT, line)
        if self._open is None:
            self._nested = self._nested and indent > 0
            if indent >= 4 and not self._nested:
                return self._whole(Kind.CODE, line)
            self._open = Part(Kind.TEXT, "", indent if self._nested else 0, gap=self._take_gap())
        self._add(line.strip())
        return []

    def _item(self, line: str, item: re.Match[str]) -> list[Part]:
        finished = self._close()
        rest = line[item.end() :]
        self._open = Part(Kind.ITEM, "", item.end(2) + 1, item[1] + item[2], self._take_gap())
        self._nested = True
        if FENCE.fullmatch(rest) or _formula_of(rest) is not None:
            return [*finished, *self._begin(" " * (item.end(2) + 1) + rest)]
        self._add(rest.strip())
        return finished

    def _display(self, line: str, begin: int, end: str) -> list[Part]:
        """Take a formula of its own line or lines, and what stands before it."""
        if line[:begin].strip():
            before = self._begin(line[:begin])
            line = line[begin:]
        else:
            before = []
        finished = [*before, *self._whole(Kind.FORMULA, line)]
        opening = line.lstrip()
        self._formula = "" if end in opening[2:] else end
        return finished

    def _whole(self, kind: Kind, line: str) -> list[Part]:
        """Finish what is open, and a part of one line."""
        return [*self._close(), Part(kind, line, gap=self._take_gap())]

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self._size += len(line) + 1

    def _close(self) -> list[Part]:
        """Finish the open part."""
        part, lines = self._open, self._lines
        self._open, self._lines, self._size = None, [], 0
        if part is None:
            return []
        return [Part(part.kind, "\n".join(lines), part.indent, part.marker, part.gap)]

    def _take_gap(self) -> bool:
        gap, self._gap, self._begun = self._gap, False, True
        return gap


def _formula_of(line: str) -> tuple[int, str] | None:
    """Return where a formula begins that fills lines of its own, and what ends it; None where there is none.

    It begins the line, or does not end in it.
    """
    text = line.lstrip()
    for opening, end in FORMULAS.items():
        if text.startswith(opening):
            rest = text[2:].rstrip()
            closed = end in rest
            if not closed or rest.endswith(end):
                return len(line) - len(text), end
    environment = ENVIRONMENT.match(text)
    if environment:
        return len(line) - len(text), f"\\end{{{environment[1]}}}"
    return _unclosed(line)


def _unclosed(line: str) -> tuple[int, str] | None:
    """Return where a formula begins that the line does not end."""
    plain = re.sub(r"`[^`]*`", lambda code: " " * len(code[0]), line)
    if plain.count("$$") % 2:
        return plain.rfind("$$"), "$$"
    begin = plain.rfind(r"\[")
    if begin >= 0 and r"\]" not in plain[begin:] and (begin == 0 or plain[begin - 1] != "\\"):
        return begin, r"\]"
    return None
