"""How the parts of an answer look on a terminal: rows of text with colors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pygments.lexer import ExtendedRegexLexer, LexerContext, RegexLexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound
from rich.segment import Segment
from rich.style import Style
from rich.syntax import ANSI_DARK, ANSISyntaxTheme

from macmoe.cli import markdown
from macmoe.cli.parts import FENCE, Kind, Part
from macmoe.cli.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pygments.lexer import Lexer
    from pygments.token import _TokenType

DIM, FORMULA = Style(dim=True), Style(color="cyan")
BULLETS = str.maketrans("-*+", "•••")
HIGHLIGHTED = 2000  # characters of a line of code; longer ones are data
THEME = ANSISyntaxTheme(ANSI_DARK)


class Painter:
    """Turns parts into rows; remembers the language of the code it is in."""

    def __init__(self) -> None:
        self._code: Highlighter | None = None

    def rows(self, finished: list[Part], pending: list[Part], width: int) -> tuple[list[str], list[str]]:
        """Return the rows of parts that are shown for good, and of those that are still being written."""
        done = [row for part in finished for row in self.finished(part, width)]
        return done, [row for part in pending for row in self.pending(part, width)]

    def finished(self, part: Part, width: int) -> list[str]:
        """Return the rows of a part that is shown for good; lines of code and formulas are one row each.

        The terminal wraps these, so that they are whole where they are copied.
        """
        if part.kind is Kind.FENCE:
            fence = FENCE.fullmatch(part.text)
            self._code = None if self._code or fence is None else Highlighter(fence[3])
        if part.kind in (Kind.TEXT, Kind.ITEM, Kind.HEADING):
            rows = _markdown(part, width)
        else:
            rows = [markdown.colored(self._verbatim(part, part.text, keep=True))]
        return [""] * part.gap + rows

    def pending(self, part: Part, width: int) -> list[str]:
        """Return the rows of a part that is still being written, each of at most `width` cells."""
        if part.kind in (Kind.TEXT, Kind.ITEM, Kind.HEADING):
            rows = _markdown(part, width)
        else:
            segments = self._verbatim(part, part.text.expandtabs(), keep=False)
            cuts = range(width, Segment.get_line_length(segments) + width, width)
            rows = [markdown.colored(row) for row in Segment.divide(segments, cuts)] or [""]
        return [""] * part.gap + rows

    def _verbatim(self, part: Part, line: str, *, keep: bool) -> list[Segment]:
        line = printable(line)
        if part.kind is Kind.CODE:
            return [Segment(line)] if self._code is None else self._code.line(line, keep=keep)
        return [Segment(line, DIM if part.kind is Kind.FENCE else FORMULA)]


def _markdown(part: Part, width: int) -> list[str]:
    """Render markdown behind its indentation and marker."""
    indent = min(part.indent, width // 2)
    rows = markdown.rows(part.text, width - indent) or [""]
    marker = printable(part.marker.translate(BULLETS))[-max(indent - 1, 1) :]
    first = f"{marker} " if marker else " " * indent
    return [first + rows[0], *(" " * indent + row if row else "" for row in rows[1:])]


class Highlighter:
    """Colors code line by line; what a line leaves open, such as a string of many lines, goes on in the next.

    Args:
        language: As the fence names it; without a lexer for it the code has no colors.
    """

    def __init__(self, language: str) -> None:
        self._lexer = _lexer(language)
        self._stack = ["root"]

    def line(self, text: str, *, keep: bool) -> list[Segment]:
        """Return a line with its colors; `keep` says that it is complete."""
        if self._lexer is None or len(text) > HIGHLIGHTED:
            return [Segment(text)]
        stack = list(self._stack)
        try:
            segments = [
                Segment(piece.rstrip("\n"), THEME.get_style_for_token(token))
                for token, piece in self._tokens(self._lexer, f"{text}\n", stack)
            ]
        except (TypeError, AttributeError):  # a lexer with rules that know no context
            self._lexer = None
            return [Segment(text)]
        if keep:
            self._stack = stack
        return segments

    @staticmethod
    def _tokens(lexer: Lexer, text: str, stack: list[str]) -> Iterator[tuple[_TokenType, str]]:
        """Yield tokens from the state in `stack`, and leave the state after them there."""
        if not isinstance(lexer, RegexLexer):
            found = lexer.get_tokens_unprocessed(text)
            yield from ((token, piece) for _, token, piece in found)
            return
        context = LexerContext(text, 0, stack)
        found = ExtendedRegexLexer.get_tokens_unprocessed(lexer, context=context)  # type: ignore[arg-type]
        yield from ((token, piece) for _, token, piece in found)
        stack[:] = context.stack


def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language)
    except ClassNotFound:
        return None
