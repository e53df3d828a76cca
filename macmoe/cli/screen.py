"""How a chat looks: markdown and a live line on a terminal, plain text everywhere else.

The live line is the last one on the terminal: it counts the tokens and shows the end of what is being
written. What is complete, a line of thinking or a block of the answer, is printed above it once and never
again, so that nothing depends on the size of the window.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import click

from macmoe.answer import Stats
from macmoe.chat.events import AnswerText, CommentaryText, ThinkingText, ToolCallEvent
from macmoe.chat.messages import to_json
from macmoe.cli.events import WRITERS, Writers
from macmoe.cli.terminal import note, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rich.console import Console, ConsoleOptions, RenderResult

LINE = re.compile(r"[^\n]*\n|[^\n]+")
FENCES = ("```", "~~~")
LIVE_WIDTHS = 4  # The live line is made of as many widths of the window, since blanks in a row become one.
ERASE_LINE = "\r\x1b[K"


def write_calls(calls: Iterable[ToolCallEvent]) -> None:
    """Note the calls of tools, with the arguments as they would be used: parsed, where they can be."""
    for call in calls:
        note(f"{call.name}({call.raw if call.arguments is None else to_json(call.arguments)})")


def ignore(events: Iterable[object]) -> None:
    """Write nothing."""
    for _ in events:
        pass


# In a pipe only answers go to stdout, and nobody asks what they took.
PLAIN_WRITERS: Writers = {**WRITERS, ToolCallEvent: write_calls, Stats: ignore}


class LiveScreen:
    """What writes the events of an answer on a terminal.

    Args:
        count: Returns the number of tokens of a text.
        hide_thinking: Whether the thinking is only counted.
    """

    def __init__(self, count: Callable[[str], int], *, hide_thinking: bool) -> None:
        self._count = count
        self._hide_thinking = hide_thinking
        self.writers: Writers = {
            **WRITERS,
            ThinkingText: self._write_thinking,
            CommentaryText: self._write_commentary,
            AnswerText: self._write_answer,
            ToolCallEvent: write_calls,
        }

    def progress(self, done: int, total: int) -> None:
        """Say how much of the prompt is read."""
        if done < total:
            show_live_line(f"reading {done:,} of {total:,} tokens")
        else:
            erase_live_line()

    def _write_thinking(self, pieces: Iterable[ThinkingText]) -> None:
        self._stream(pieces, "thinking", Lines(), ignore_text if self._hide_thinking else note)

    def _write_commentary(self, pieces: Iterable[CommentaryText]) -> None:
        self._stream(pieces, "commentary", Lines(), note)

    def _write_answer(self, pieces: Iterable[AnswerText]) -> None:
        self._stream(pieces, "answering", Blocks(), write_markdown)

    def _stream(
        self,
        pieces: Iterable[ThinkingText | CommentaryText | AnswerText],
        label: str,
        parts: Lines | Blocks,
        write: Callable[[str], None],
    ) -> None:
        """Write what is complete, and show the rest on the live line; at any end, write the rest as well."""
        tokens = 0
        try:
            for piece in pieces:
                tokens += self._count(piece.text)
                complete = parts.feed(piece.text)
                erase_live_line()
                for part in complete:
                    write(part)
                show_live_line(f"{label}, {tokens} tokens: ", "" if write is ignore_text else parts.rest)
        finally:
            erase_live_line()
            if parts.rest.strip():
                write(parts.rest)


def ignore_text(text: str) -> None:
    """Write nothing."""


class Lines:
    """Cuts a text that comes in pieces into its lines.

    Attributes:
        rest: The line being written.
    """

    def __init__(self) -> None:
        self.rest = ""

    def feed(self, text: str) -> list[str]:
        """Take the next piece and return the lines that are complete now, without their ends."""
        *complete, self.rest = (self.rest + text).split("\n")
        return complete


class Blocks:
    """Cuts markdown that comes in pieces where a block begins after an empty line.

    Code between fences stays together, and so do indented lines with what stands before them. Each piece is
    looked at once, because a block may be as long as an answer.

    Attributes:
        rest: The block being written.
    """

    def __init__(self) -> None:
        self.rest = ""
        self._line = ""  # the last line, as far as it is written
        self._fence, self._after_empty = "", False  # where that line begins

    def feed(self, text: str) -> list[str]:
        """Take the next piece and return the blocks that are complete now."""
        complete: list[str] = []
        for piece in LINE.findall(text):
            if not self._line and self._after_empty and not self._fence and not piece[0].isspace():
                complete.append(self.rest)
                self.rest = ""
            self.rest += piece
            self._line += piece
            if piece.endswith("\n"):
                self._end_line()
        return complete

    def _end_line(self) -> None:
        line, self._line = self._line.strip(), ""
        self._after_empty = not line
        mark = line[:3]
        if mark in FENCES and self._fence in ("", mark):
            self._fence = "" if self._fence else mark


class Markdown:
    """A piece of markdown that rich can print, and that cannot control the terminal.

    What is printed is made harmless after rendering, because entities such as `&#13;` become characters
    there. Links show their address: sequences that hide it would be written by the model.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the rendered segments."""
        from rich.markdown import Markdown as RichMarkdown  # noqa: PLC0415
        from rich.segment import Segment  # noqa: PLC0415

        for segment in console.render(RichMarkdown(self._text, hyperlinks=False), options):
            yield Segment(printable(segment.text), segment.style)


def write_markdown(text: str) -> None:
    """Print one block of an answer, and an empty line."""
    from rich.console import Console  # noqa: PLC0415 - only answers on a terminal pay for the import

    console = Console()
    console.print(Markdown(text))
    console.print()


def show_live_line(label: str, text: str = "") -> None:
    """Show a line, with as much of the end of a text as fits, that the next thing written replaces."""
    from rich.cells import cell_len  # noqa: PLC0415 - wide characters take two cells

    width = shutil.get_terminal_size().columns - 1
    line = label[:width]
    text = text[-LIVE_WIDTHS * width :]
    end = printable(" ".join(text.split()))[-max(width - len(line), 1) :]
    while end and len(line) + cell_len(end) > width:
        end = end[1:]
    click.echo(ERASE_LINE + click.style(line + end, dim=True), err=True, nl=False)


def erase_live_line() -> None:
    """Remove the live line."""
    click.echo(ERASE_LINE, err=True, nl=False)
