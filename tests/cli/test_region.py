"""Rows that are drawn again: whatever they were, the screen shows what would have been written at once."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.cli import region
from tests.cli.screen_model import Screen

COLUMNS, LINES = 20, 6
ROWS = st.lists(
    st.sampled_from(["", "one", "two words", "\x1b[1mbold\x1b[0m", "x" * (COLUMNS - 1)]), max_size=9
)
LONG = st.lists(st.sampled_from(["", "done", "y" * COLUMNS, "z" * (2 * COLUMNS + 3)]), max_size=4)


class Window:
    """Stands for the standard output, and for its size."""

    def __init__(self, monkeypatch, columns=COLUMNS, lines=LINES):
        self.screen = Screen(columns, lines)
        self.last = ""
        monkeypatch.setattr(region, "sys", SimpleNamespace(stdout=self))
        monkeypatch.setattr(
            region.shutil,
            "get_terminal_size",
            lambda: os.terminal_size((self.screen.columns, self.screen.lines)),
        )

    def write(self, text):
        self.last = text
        self.screen.feed(text.replace("\n", "\r\n"))

    def flush(self):
        pass


def plainly(rows):
    """Return the screen after rows that are just written."""
    screen = Screen(COLUMNS, LINES)
    screen.feed("\r\n".join(rows))
    return screen


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LONG, ROWS), max_size=6))
def test_the_screen_shows_what_is_finished_and_the_end_of_what_is_pending(frames):
    with pytest.MonkeyPatch.context() as patch:
        window, drawn = Window(patch), region.Region(lambda: 0.0)
        done = []
        for finished, pending in frames:
            drawn.show(lambda _, both=(finished, pending): both)
            done += finished
            visible = pending[-(LINES - 1) :]
            expected = plainly([*done, *visible] if visible else [*done, *[""] * bool(done)])
            assert window.screen.all[-len(visible) :] == expected.all[-len(visible) :]
            assert [row for row in window.screen.all if row] == [row for row in expected.all if row]
        drawn.show(lambda _: ([], []))
        assert [row for row in window.screen.all if row] == [row for row in plainly(done).all if row]


def test_only_rows_that_change_are_written_again(monkeypatch):
    window, drawn = Window(monkeypatch), region.Region(lambda: 0.0)
    drawn.show(lambda _: ([], ["first row", "second"]))
    drawn.show(lambda _: ([], ["first row", "second!"]))
    assert "second!" in window.last
    assert "first row" not in window.last
    drawn.show(lambda _: (["first row", "second!"], []))
    assert window.last == "\n"


def test_a_window_that_gets_narrower_has_wrapped_the_rows(monkeypatch):
    window, drawn = Window(monkeypatch), region.Region(lambda: 0.0)
    drawn.show(lambda _: (["above"], ["a row of 19 letters", "b"]))
    narrow = Screen(10, LINES)
    narrow.feed("above\r\na row of 19 letters\r\nb")  # what the terminal makes of it
    window.screen = narrow
    drawn.show(lambda width: ([], [f"a row of {width}"[:width], "b"]))
    assert narrow.all == ["above", "a row of", "b"]


def test_a_terminal_that_cannot_redraw_gets_finished_rows_only(monkeypatch):
    window, drawn = Window(monkeypatch), region.Region(redraw=False)
    assert not drawn.due
    drawn.show(lambda _: (["done"], ["pending"]))
    assert window.screen.all == ["done", ""]


def test_drawing_takes_at_most_a_fifth_of_the_time(monkeypatch):
    now = 0.0
    Window(monkeypatch)
    drawn = region.Region(lambda: now)

    def draw(_):
        nonlocal now
        now += 1.0
        return [], ["row"]

    drawn.show(draw)
    now = 4.9
    assert not drawn.due
    now = 5.0
    assert drawn.due
