r"""What markdown looks like on a terminal, and what is left as it was written."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.cli import markdown

WIDE = 10_000


def shown(text, width=WIDE):
    return "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", row) for row in markdown.rows(text, width))


@pytest.mark.parametrize(
    "text",
    [
        r"\[ x = \frac{-b \pm \sqrt{b^2 - 4\,a\,c}}{2a}, \quad \{a, b\} \]",
        r"and \(\le 1\) and \( a_1 * b_1 * c_1 \).",
        r"$x_1 * y_1 * z$, $$a_b * c_d * e$$ and $\{\,\$\}$",
        r"without delimiters: \frac{1}{2}, \{a\}, \, \; \\ \quad \(",
        "\\( a \\\\\nb \\)",
        "$a\n+ b_1 * c * d_1$",
        "costs $5 and $6, or $HOME and $PATH",
        "<b>tags</b> and <think>this</think>, &lt;",
        "[1]: https://example.com/ is a note",
        "one line\nanother line",
        "x < y, a > b, 2 * 3 * 4, snake_case_name",
    ],
)
def test_what_is_no_markdown_stays_as_it_was_written(text):
    assert shown(text) == text.replace("&lt;", "<")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("**bold**, *soft*, ~~gone~~ and `code`", "bold, soft, gone and code"),
        (r"snake\_case, 2 \* 3, 1\. and \`", "snake_case, 2 * 3, 1. and `"),
        (r"`\[a\_b\]` and ``\(``", r"\[a\_b\] and \("),
        ("**$a*b$** and *see $x_1$*", "$a*b$ and see $x_1$"),
        ("**$5** and **$6**", "$5 and $6"),
        ("[name](http://a.test/b)", "name (http://a.test/b)"),
        ("# Title", "Title"),
        ("> said\n> more", "▌ said\n▌ more"),
        ("a\\\nb", "a\nb"),
    ],
)
def test_markdown_is_shown_as_what_it_means(text, words):
    assert shown(text) == words


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.sampled_from("abx_*{}\\,;!^ +-=&|~`#<>")), st.sampled_from([("\\(", "\\)"), ("\\[", "\\]")])
)
def test_formulas_are_shown_character_by_character(content, delimiters):
    begin, end = delimiters
    content = f"a{content}b".replace(end, "").replace("`", "")
    assert shown(f"so {begin}{content}{end} is") == f"so {begin}{content}{end} is"


def test_a_table_is_aligned():
    rows = shown("| name | n |\n|---|--:|\n| a | 1 |\n| **b** | 22 |", 40).split("\n")
    assert [row.split() for row in rows if "─" not in row] == [["name", "n"], ["a", "1"], ["b", "22"]]
    assert rows[2].rindex("1") == rows[3].rindex("2")


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=60), st.integers(1, 30))
def test_no_row_is_wider_than_it_may_be_or_controls_the_terminal(text, width):
    from rich.cells import cell_len

    for row in markdown.rows(text, width):
        plain = re.sub(r"\x1b\[[0-9;]*m", "", row)
        assert cell_len(plain) <= max(width, 2)
        assert "\x1b" not in plain


def test_formulas_that_never_end_are_looked_for_once_each(monkeypatch):
    tried = []
    search = markdown.FORMULA
    monkeypatch.setattr(
        markdown, "FORMULA", type("", (), {"match": lambda _, *a: tried.append(a[1]) or search.match(*a)})()
    )
    text = r"\( " * 3000
    assert shown(text).count("\\(") == 3000
    assert len(tried) <= 6000
