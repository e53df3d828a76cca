"""How the events of an answer look on a terminal, and the line of statistics."""

from __future__ import annotations

import os

import pytest

from macmoe.answer import Stats
from macmoe.chat.events import CommentaryText, ThinkingText
from macmoe.cli import events

LARGE = Stats(
    prompt_tokens=131072,
    reused_tokens=130000,
    thinking_tokens=30000,
    answer_tokens=2000,
    generated_tokens=32768,
    stop_reason="length",
    thinking_cut=True,
    seed=1841028717,
    prompt_seconds=123.456,
    seconds=32.0,
    peak_memory=500 * 2**30,
)


@pytest.fixture
def narrow(monkeypatch):
    """Let the standard error be a terminal of 20 columns."""
    monkeypatch.setattr(events, "is_terminal", lambda _: True)
    monkeypatch.setattr(events.shutil, "get_terminal_size", lambda: os.terminal_size((21, 10)))


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("kind", [ThinkingText, CommentaryText])
def test_a_terminal_shows_thinking_in_whole_words_and_an_empty_line_after_it(capsys, kind):
    events.WRITERS[kind](kind(text) for text in ("\nI have to exp", "lain how quick", "sort works.\n\n"))
    assert capsys.readouterr().err == "I have to explain\nhow quicksort works.\n\n"


@pytest.mark.usefixtures("narrow")
def test_thinking_of_nothing_shows_nothing(capsys):
    events.WRITERS[ThinkingText](iter([ThinkingText("\n\n")]))
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("narrow")
def test_stopped_thinking_stays_on_the_screen(capsys):
    def stopped():
        yield ThinkingText("I have to exp")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        events.WRITERS[ThinkingText](stopped())
    assert capsys.readouterr().err == "I have to exp\n\n"


def test_each_line_of_the_statistics_fits_into_80_columns():
    lines = [events.summary(LARGE), events.details(LARGE), *events.endings(LARGE)]
    assert max(map(len, lines)) < 80
    assert "1024 tokens/s" in lines[0]
    assert "seed 1841028717" in lines[1]
