"""Text that comes in pieces and goes to a terminal at once, with rows that end between words."""

from __future__ import annotations

import re

# Characters of two cells, between which a row may end: Hangul, CJK, kana, full-width forms, emoji.
WIDE = (
    "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6"
    "\U0001f300-\U0001faff\U00020000-\U0003fffd"
)
ATOM = re.compile(rf"\s+|[{WIDE}]|[^\s{WIDE}]+")


class WordWrap:
    """Puts line breaks between the words of a text; each piece is looked at once.

    The last word is held back until it is complete, and so are blanks and newlines until a word follows them.

    Attributes:
        begun: Whether anything was to be written yet.
    """

    def __init__(self) -> None:
        self._gap, self._word = "", ""
        self._column = 0
        self.begun = False

    def feed(self, text: str, width: int) -> str:
        """Take the next piece and return what can be written now, in rows of at most `width` cells."""
        rows = []
        for atom in ATOM.findall(text):
            if atom.isspace() or _is_wide(atom) or _is_wide(self._word):
                rows.append(self.end(width))
            if atom.isspace():
                self._gap += atom
            else:
                self._word += atom
            if len(self._word) >= width:
                rows.append(self.end(width))
        return "".join(rows)

    def end(self, width: int) -> str:
        """Return the word that was held back, behind the blanks or line breaks that it needs."""
        from rich.cells import cell_len  # noqa: PLC0415 - only what is shown on a terminal is wrapped

        gap, word = self._gap, self._word
        if not word:
            return ""
        self._gap, self._word = "", ""
        before = self._before(gap, cell_len(word), width)
        self.begun = True
        return before + self._place(word, cell_len(word), width)

    def _before(self, gap: str, cells: int, width: int) -> str:
        """Return what separates a word from the one before it."""
        newlines, blanks = gap.count("\n"), gap.rpartition("\n")[2].expandtabs(4)[: width // 2]
        if newlines or not self.begun:
            self._column = len(blanks)
            return "\n" * (newlines if self.begun else 0) + blanks
        if blanks and self._column + len(blanks) + cells > width:
            self._column = 0
            return "\n"
        self._column += len(blanks)
        return blanks

    def _place(self, word: str, cells: int, width: int) -> str:
        """Write a word, in several rows where it is longer than what is left of this one."""
        from rich.cells import cell_len  # noqa: PLC0415 - see above

        if self._column + cells <= width:
            self._column += cells
            return word
        written = []
        for character in word:
            size = cell_len(character)
            if self._column and self._column + size > width:
                written.append("\n")
                self._column = 0
            written.append(character)
            self._column += size
        return "".join(written)


def _is_wide(text: str) -> bool:
    return re.fullmatch(f"[{WIDE}]", text) is not None
