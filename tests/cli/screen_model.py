"""What a user sees of the text and the control sequences that a program writes to a terminal."""

from __future__ import annotations

import re

from rich.cells import cell_len

TOKEN = re.compile(
    r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[=>78]|\r|\n|\x08|\t|[^\x1b]"
)
RESET = ("", "0")
MOVES = {"A": (-1, 0), "B": (1, 0), "C": (0, 1), "D": (0, -1)}  # rows and cells


class Screen:
    """A terminal: rows of cells, a cursor, and what scrolled out at the top.

    Knows what macmoe and prompt_toolkit write, and nothing else. A row that is full is left when the next
    character comes, as real terminals do it.
    """

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.columns, self.lines = columns, lines
        self.history: list[list[str]] = []
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0
        self._pen = ""
        self._rest = ""

    @property
    def seen(self) -> list[str]:
        """The rows on the screen, without colors and blanks at their ends."""
        return [_plain(row) for row in self._rows]

    @property
    def all(self) -> list[str]:
        """The rows on the screen, below those that scrolled out."""
        return [_plain(row) for row in [*self.history, *self._rows]]

    @property
    def colored(self) -> list[str]:
        """As `all`, with colors."""
        return ["".join(row) for row in [*self.history, *self._rows]]

    def feed(self, text: str) -> None:
        """Take what a program writes; a sequence may be cut."""
        text = self._rest + text
        self._rest = ""
        end = text.rfind("\x1b")
        if end >= 0 and not TOKEN.match(text, end):
            text, self._rest = text[:end], text[end:]
        for token in TOKEN.finditer(text):
            if token[2]:
                self._control(token[1], token[2])
            elif token[0][0] != "\x1b":
                self._write(token[0])

    def _write(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._down()
        elif character == "\x08":
            self._column = max(self._column - 1, 0)
        elif character == "\t":
            for _ in range(8 - self._column % 8):
                self._put(" ", 1)
        else:
            self._put(character, cell_len(character))

    def _put(self, character: str, cells: int) -> None:
        if self._column + cells > self.columns:
            self._column = 0
            self._down()
        row = self._rows[self._row]
        row.extend([" "] * (self._column + cells - len(row)))
        if not cells and self._column:
            row[self._column - 1] += character
            return
        row[self._column] = f"{self._pen}{character}\x1b[0m" if self._pen else character
        row[self._column + 1 : self._column + cells] = [""] * (cells - 1)
        self._column += cells

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._rows):
            self._rows.append([])
        if len(self._rows) > self.lines:
            self.history.append(self._rows.pop(0))
            self._row -= 1

    def _control(self, parameters: str, kind: str) -> None:
        if kind == "m":
            self._color(parameters)
        elif kind in MOVES:
            count = int(parameters or 1)
            rows, cells = (step * count for step in MOVES[kind])
            self._row = min(max(self._row + rows, 0), self.lines - 1)
            self._rows += [[] for _ in range(self._row + 1 - len(self._rows))]
            self._column = min(max(min(self._column, self.columns - 1) + cells, 0), self.columns - 1)
        elif kind in "JK" and parameters in RESET:
            del self._rows[self._row][self._column :]
            if kind == "J":
                del self._rows[self._row + 1 :]
        elif (parameters, kind) == ("2", "K"):
            self._rows[self._row].clear()
        else:
            assert kind in "hl", f"unknown sequence {parameters}{kind}"

    def _color(self, parameters: str) -> None:
        if parameters in RESET or parameters.startswith("0;"):
            self._pen, parameters = "", parameters[2:]
        self._pen += f"\x1b[{parameters}m" if parameters else ""


def _plain(row: list[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "".join(row)).rstrip()
