r"""An answer is cut into parts: what is finished, and what is still being written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.cli.parts import PEEK, Kind, Part, Splitter

LINES = [
    "", "text", "more **text**", "# Title", "- item", "  - inner", "3. third", "   and on", "---", "```py",
    "```", "~~~~", "    x = 1", r"\[", r"\]", "$$", r"so \[ x", r"y \] z", "| a | b |", "> said", r"or \( z",
    r"\begin{align}", r"\end{align}", "\tindented", "- ```sh", r"1. \[ a",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(LINES), max_size=12).map("\n".join)


def split(pieces, *, look=False):
    splitter, parts = Splitter(), []
    for piece in pieces:
        parts += splitter.feed(piece)
        if look:
            splitter.pending()
    return parts + splitter.end()


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.integers(0, 60))
def test_parts_do_not_depend_on_how_the_text_comes_or_on_who_looks(text, cut):
    assert split([text]) == split(text) == split([text[:cut], text[cut:]]) == split(text, look=True)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_no_character_is_lost(text):
    parts = "".join(part.marker + part.text for part in split([text]))
    assert re.sub(r"\s", "", parts) == re.sub(r"\s", "", text)


@settings(max_examples=60, deadline=None)
@given(TEXTS)
def test_what_is_pending_is_what_the_end_would_show(text):
    splitter = Splitter()
    finished = splitter.feed(text)
    assert finished + splitter.pending() == split([text]) or not text.split("\n")[-1].strip()


def test_lines_of_code_items_and_headings_are_finished_as_soon_as_they_can_be():
    splitter = Splitter()
    assert splitter.feed("# Title\n") == [Part(Kind.HEADING, "# Title")]
    assert splitter.feed("- one\n- two") == []
    assert splitter.pending() == [Part(Kind.ITEM, "one", 2, "-"), Part(Kind.ITEM, "two", 2, "-")]
    assert splitter.feed("\n\n```py\n") == [
        Part(Kind.ITEM, "one", 2, "-"),
        Part(Kind.ITEM, "two", 2, "-"),
        Part(Kind.FENCE, "```py", gap=True),
    ]
    assert splitter.feed("def f():\n\n    ret") == [Part(Kind.CODE, "def f():"), Part(Kind.CODE, "")]
    assert splitter.pending() == [Part(Kind.CODE, "    ret")]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("````md\n```py\nx\n```\n````\nafter", ["FENCE", "CODE", "CODE", "CODE", "FENCE", "TEXT"]),
        ("```py\n```js\nx\n```", ["FENCE", "CODE", "CODE", "FENCE"]),
        ("```one line```", ["TEXT"]),
        ("- ```sh\n  ls\n  ```\n- b", ["ITEM", "FENCE", "CODE", "FENCE", "ITEM"]),
        ("text\nmore\n- item\nlazy", ["TEXT", "ITEM"]),
        ("- a\n\n  b\n\nc", ["ITEM", "TEXT", "TEXT"]),
        ("- a\n---\nb", ["ITEM", "TEXT", "TEXT"]),
        ("* * *", ["TEXT"]),
        ("    code", ["CODE"]),
        ("\\[\na\n- b\n\\]\nc", ["FORMULA"] * 4 + ["TEXT"]),
        ("so \\[ a\n+ b \\]\nc", ["TEXT", "FORMULA", "FORMULA", "TEXT"]),
        (
            "- \\[\n  - b\n  \\]\n- so \\[ c\n- d \\]",
            ["ITEM"] + ["FORMULA"] * 3 + ["ITEM", "FORMULA", "FORMULA"],
        ),
        ("\\[ a \\]", ["FORMULA"]),
        ("\\[ a \\] and \\[ b \\] are", ["TEXT"]),
        ("with \\( a\n- b \\) in it\n- c", ["TEXT", "ITEM"]),
        ("$$\na\n$$", ["FORMULA"] * 3),
        ("$$a$$ is", ["TEXT"]),
        ("a `\\[` b\n\nc `$$`", ["TEXT", "TEXT"]),
        ("a \\[ that never ends\n\n# b", ["TEXT", "FORMULA", "HEADING"]),
        ("\\begin{align}\na \\\\\n\\end{align}\nb", ["FORMULA"] * 3 + ["TEXT"]),
        ("\\begin{pmatrix} 1 \\\\[2pt] 2 \\end{pmatrix}\nb", ["FORMULA", "TEXT"]),
    ],
)
def test_kinds(text, kinds):
    assert [part.kind.name for part in split([text])] == kinds


def test_little_of_something_long_is_looked_at():
    splitter = Splitter()
    for piece in [20 * "many words in a line " + "\n"] * 500:
        splitter.feed(piece)
        assert sum(len(part.text) for part in splitter.pending()) <= PEEK
    for piece in ["no end of the line "] * 500:
        splitter.feed(piece)
        assert sum(len(part.text) for part in splitter.pending()) <= PEEK
    (part,) = splitter.end()
    assert len(part.text) > 30 * PEEK
