"""The rows at the bottom of a terminal that are still being written, and drawn again when they change."""

from __future__ import annotations

import re
import shutil
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

COLORS = re.compile(r"\x1b\[[0-9;]*m")
ERASE_ROW, ERASE_BELOW = "\x1b[K", "\x1b[J"
SHARE = 4  # Drawing waits for so many times as long as it took: it takes at most a fifth of the time.


class Region:
    """Draws rows, and draws them again from the first one that changed.

    Rows are narrower than the window, and no more than fit into it: so the cursor can return to the first.
    It stays at the end of the last row or, without rows, at the beginning of an empty line.

    Args:
        clock: Tells the time in seconds.
        redraw: Whether the terminal can; otherwise only what is finished is written.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, *, redraw: bool = True) -> None:
        self._clock = clock
        self._redraw = redraw
        self._rows: list[str] = []
        self._columns = 0  # of the window when the rows were drawn
        self._next = float("-inf")  # when they may be drawn again

    @property
    def due(self) -> bool:
        """Whether it is time to draw what is not finished."""
        return self._redraw and self._clock() >= self._next

    def show(self, draw: Callable[[int], tuple[list[str], list[str]]]) -> None:
        """Write what a function makes of a width: rows that are finished, and rows that are pending."""
        begin = self._clock()
        columns, lines = shutil.get_terminal_size()
        finished, pending = draw(max(columns - 1, 1))
        pending = pending[-max(lines - 1, 1) :] if self._redraw else []
        window, narrower = (columns, lines), columns < self._columns
        text = _change(self._rows, finished, pending, window, narrower=narrower)
        self._rows, self._columns = pending, columns
        sys.stdout.write(text)
        sys.stdout.flush()
        self._next = self._clock() * (1 + SHARE) - SHARE * begin


def _change(
    old: list[str], finished: list[str], pending: list[str], window: tuple[int, int], *, narrower: bool
) -> str:
    """Return what turns the old rows on the screen into the new ones.

    Args:
        old: The rows; the cursor is where `Region` says.
        finished: Rows that take their place, and are never touched again; the terminal may have to wrap them.
        pending: Rows that follow, which the next change replaces.
        window: Its columns and lines.
        narrower: Whether the window had more columns when the old rows were drawn.
    """
    columns, lines = window
    rows = [*finished, *pending]
    same = 0 if narrower else _common(old, rows)
    if pending and same == len(rows) < len(old):
        same -= 1  # the last row is written again, since the cursor has to be at its end
    replaces = same < len(old)
    text = ""
    if replaces:
        below = sum(_height(row, columns) if narrower else 1 for row in old[same:]) - 1
        text = _up(min(below, lines - 1)) + "\r"
    elif 0 < same < len(rows):
        text = "\n"
    text += "\n".join(_erased(row, columns) + row if replaces else row for row in rows[same:])
    behind_a_row = same < len(rows) or same == len(old) > 0
    text += "\n" if behind_a_row and not pending else ""
    return text + ERASE_BELOW if replaces else text


def _common(old: list[str], new: list[str]) -> int:
    """Return how many rows at the beginning are the same."""
    pairs = enumerate(zip(old, new, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(old), len(new)))


def _height(row: str, columns: int) -> int:
    """Return how many rows of the window a row takes."""
    from rich.cells import cell_len  # noqa: PLC0415 - most rows are seen to fit without it

    return max(1, -(-cell_len(COLORS.sub("", row)) // columns))


def _erased(row: str, columns: int) -> str:
    """Return what removes the place of a row from the screen: little, so that nothing flickers."""
    return ERASE_BELOW if len(row) >= columns and _height(row, columns) > 1 else ERASE_ROW


def _up(rows: int) -> str:
    return f"\x1b[{rows}A" if rows else ""
