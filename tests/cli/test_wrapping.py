"""Rows that end between words, while the words come in pieces."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from macmoe.cli.wrapping import WordWrap

TEXTS = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\n\n", "\n  ", "a", "word", "words,", "supercalifragilistic", "文", "字符"]
    )
).map("".join)


def wrap(pieces, width):
    words = WordWrap()
    return "".join([*(words.feed(piece, width) for piece in pieces), words.end(width)])


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.integers(4, 12), st.integers(0, 30))
def test_rows_fit_and_lose_nothing_wherever_the_text_is_cut(text, width, cut):
    shown = wrap([text], width)
    assert shown == wrap(text, width) == wrap([text[:cut], text[cut:]], width)
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", text)
    assert all(cell_len(row) <= width for row in shown.split("\n"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["a", "bcd", "efghi", "jklmnopq"]), min_size=1), st.integers(8, 20))
def test_words_stay_whole_and_rows_are_full(words, width):
    rows = wrap([" ".join(words)], width).split("\n")
    assert " ".join(rows) == " ".join(words)
    for row, following in pairwise(rows):
        assert len(row) + 1 + len(following.split(" ")[0]) > width


def test_lines_stay_lines_and_blanks_around_a_text_are_nothing():
    assert wrap(["\n\n one\n\n  - two  \n", "three\n\n"], 40) == " one\n\n  - two\nthree"


def test_a_word_is_held_back_until_it_is_complete():
    words = WordWrap()
    assert words.feed("how to expl", 12) == "how to"
    assert words.feed("ain this", 12) == "\nexplain"
    assert words.end(12) == " this"


def test_wide_characters_need_no_blanks_between_them():
    assert wrap("一二三四五 ab", 6) == "一二三\n四五\nab"
