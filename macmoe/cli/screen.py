"""How a chat looks: markdown on a terminal, plain text everywhere else.

What is finished, such as a line of code or a paragraph, is written once and never again. Below it stands what
is being written, drawn again when it changes.
"""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

import click

from macmoe.answer import Stats
from macmoe.chat.events import AnswerText, ThinkingText, ToolCallEvent
from macmoe.chat.messages import to_json
from macmoe.cli.events import WRITERS, Writers
from macmoe.cli.terminal import note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from macmoe.cli.region import Region

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
        thinking = {ThinkingText: self._count_thinking} if hide_thinking else {}
        self.writers: Writers = {
            **WRITERS,
            **thinking,
            AnswerText: write_markdown,
            ToolCallEvent: write_calls,
        }

    def progress(self, done: int, total: int) -> None:
        """Say how much of the prompt is read."""
        if done < total:
            show_live_line(f"reading {done:,} of {total:,} tokens")
        else:
            erase_live_line()

    def _count_thinking(self, pieces: Iterable[ThinkingText]) -> None:
        tokens = 0
        try:
            for piece in pieces:
                tokens += self._count(piece.text)
                show_live_line(f"thinking, {tokens:,} tokens")
        finally:
            erase_live_line()


def write_markdown(pieces: Iterable[AnswerText], region: Region | None = None) -> None:
    """Show an answer while it comes; however it ends, all that came of it stays on the screen."""
    from macmoe.cli.markdown import console  # noqa: PLC0415 - only answers on a terminal pay for the import
    from macmoe.cli.painting import Painter  # noqa: PLC0415
    from macmoe.cli.parts import Kind, Part, Splitter  # noqa: PLC0415
    from macmoe.cli.region import Region  # noqa: PLC0415

    splitter, painter = Splitter(), Painter()
    shown = Region(redraw=not console().is_dumb_terminal) if region is None else region
    try:
        for piece in pieces:
            finished = splitter.feed(piece.text)
            if finished or shown.due:
                shown.show(partial(painter.rows, finished, splitter.pending()))
    finally:
        shown.show(partial(painter.rows, [*splitter.end(), Part(Kind.TEXT, "")], []))


def show_live_line(text: str) -> None:
    """Show a line that the next thing written replaces."""
    width = shutil.get_terminal_size().columns - 1
    click.echo(ERASE_LINE + click.style(text[:width], dim=True), err=True, nl=False)


def erase_live_line() -> None:
    """Remove the live line."""
    click.echo(ERASE_LINE, err=True, nl=False)
