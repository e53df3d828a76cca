"""How the events of an answer look: as text while they come, or as one JSON object."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from macmoe.answer import Stats
from macmoe.chat.events import AnswerText, CommentaryText, ThinkingText, ToolCallEvent
from macmoe.cli.terminal import is_terminal, note, size, write_answer
from macmoe.cli.wrapping import WordWrap

if TYPE_CHECKING:
    from macmoe.chat.events import Event

Writers = dict[type, Callable[[Any], None]]
TEXTS = {"thinking": ThinkingText, "answer": AnswerText, "commentary": CommentaryText}


def show(events: Iterable[Event | Stats], writers: Writers, *, hide_thinking: bool = False) -> None:
    """Write events as they come, each run of one kind by the writer of that kind."""
    for kind, run in groupby(events, key=type):
        if not (kind is ThinkingText and hide_thinking):
            writers[kind](run)


def _write_notes(pieces: Iterable[ThinkingText | CommentaryText]) -> None:
    """Write what is no answer; a terminal shows it in rows of whole words, and an empty line after it."""
    if is_terminal(sys.stderr):
        _write_wrapped(piece.text for piece in pieces)
        return
    for piece in pieces:
        note(piece.text, newline=False)
    note("")


def _write_wrapped(texts: Iterable[str]) -> None:
    words = WordWrap()
    try:
        for text in texts:
            note(words.feed(text, _width()), newline=False)
    finally:
        note(words.end(_width()), newline=False)
        if words.begun:
            note("\n")


def _width() -> int:
    return max(shutil.get_terminal_size().columns - 1, 1)


def _write_answer(pieces: Iterable[AnswerText]) -> None:
    for piece in pieces:
        write_answer(piece.text)
    click.echo()


def _write_calls(calls: Iterable[ToolCallEvent]) -> None:
    for call in calls:
        write_answer(f"{call.name}({call.raw})")
        click.echo()


def _write_stats(stats: Iterable[Stats]) -> None:
    for figures in stats:
        for line in (summary(figures), *endings(figures)):
            note(line)


# Answers and tool calls go to stdout, everything else to stderr.
WRITERS: Writers = {
    ThinkingText: _write_notes,
    CommentaryText: _write_notes,
    AnswerText: _write_answer,
    ToolCallEvent: _write_calls,
    Stats: _write_stats,
}


def summary(stats: Stats) -> str:
    """Say in a line that fits into 80 columns how much an answer was, and how fast."""
    known = f" ({stats.reused_tokens} known)" if stats.reused_tokens else ""
    thought = f" ({stats.thinking_tokens} of thinking)" if stats.thinking_tokens else ""
    return (
        f"{stats.prompt_tokens} tokens in{known}, {stats.generated_tokens} out{thought}, "
        f"{stats.tokens_per_second:.0f} tokens/s"
    )


def details(stats: Stats) -> str:
    """Say what else an answer took, and what repeats it."""
    return f"first after {stats.prompt_seconds:.2f} s, peak {size(stats.peak_memory)}, seed {stats.seed}"


def endings(stats: Stats) -> list[str]:
    """Return what ended the thinking or the answer before its time."""
    cut = {
        "thinking closed at its budget": stats.thinking_cut,
        "cut at the limit of tokens": stats.stop_reason == "length",
    }
    return [text for text, happened in cut.items() if happened]


def collect(events: Iterable[Event | Stats]) -> dict[str, Any]:
    """Return all events of an answer as one JSON object."""
    received = list(events)
    pieces = [event for event in received if isinstance(event, ThinkingText | AnswerText | CommentaryText)]
    texts = {
        name: "".join(piece.text for piece in pieces if isinstance(piece, kind))
        for name, kind in TEXTS.items()
    }
    calls = [asdict(event) for event in received if isinstance(event, ToolCallEvent)]
    (stats,) = (event for event in received if isinstance(event, Stats))
    figures = asdict(stats) | {"tokens_per_second": stats.tokens_per_second}
    return {**texts, "tool_calls": calls, "stats": figures}
