"""What a chat shows while an answer is written: blocks of markdown, and the live line."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmoe.chat.events import AnswerText
from macmoe.cli import screen

MARKDOWN = "# Title\n\ntext\nmore\n\n- a\n\n  b\n- c\n\n```py\nx\n\n\ny\n```\nafter\n\nlast"


def blocks(pieces):
    """Return the blocks of a text that comes in pieces, the last one perhaps not complete."""
    cut = screen.Blocks()
    complete = [block for piece in pieces for block in cut.feed(piece)]
    return [*complete, cut.rest]


@given(
    st.lists(st.sampled_from(["\n", "\n\n", "```", "~~~", " a", "b", "- "])).map("".join), st.integers(0, 40)
)
def test_blocks_join_to_the_text_wherever_it_is_cut(text, cut):
    assert "".join(blocks([text])) == text
    assert blocks([text[:cut], text[cut:]]) == blocks(text) == blocks([text])


@pytest.mark.parametrize("pieces", [[MARKDOWN], MARKDOWN], ids=["at once", "by character"])
def test_blocks_keep_code_and_lists_together(pieces):
    assert blocks(pieces) == [
        "# Title\n\n",
        "text\nmore\n\n",
        "- a\n\n  b\n- c\n\n",
        "```py\nx\n\n\ny\n```\nafter\n\n",
        "last",
    ]


def test_a_long_block_is_looked_at_once(monkeypatch):
    cut, shown, written = [], [], []
    line = screen.LINE
    watched = SimpleNamespace(findall=lambda text: cut.append(text) or line.findall(text))
    monkeypatch.setattr(screen, "LINE", watched)
    monkeypatch.setattr(screen, "printable", lambda text: shown.append(text) or text)
    monkeypatch.setattr(screen, "write_markdown", written.append)
    text = "```\n" + 500 * "x = 1\n"
    pieces = [AnswerText(text[i : i + 3]) for i in range(0, len(text), 3)]
    screen.LiveScreen(len, hide_thinking=False).writers[AnswerText](iter(pieces))
    assert written == [text]
    assert "".join(cut) == text
    assert max(map(len, shown)) <= 4 * shutil.get_terminal_size().columns
