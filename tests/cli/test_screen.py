"""What a user sees at several moments while an answer is written."""

from __future__ import annotations

import pytest

from macmoe.chat.events import AnswerText, ThinkingText
from macmoe.cli import painting, region, screen
from macmoe.cli.parts import Splitter
from tests.cli.test_region import Window

ANSWER = r"""To sort, **split** at a pivot \(p\):

1. Pick \(p\) with $a_1 * b_1$.
2. Split into
   - smaller ones
   - larger ones

```python
def f(x):
    '''Don't
    worry.'''
    return x
```

\[
T(n) = 2\,T(n/2)
- \{a, b\} \\
\]

Done."""
# After so many characters: what is on the screen.
MOMENTS = {
    "To sort, **sp": ["To sort, **sp"],
    "at a pivot": ["To sort, split at a pivot"],
    "   - small": [
        "To sort, split at a pivot \\(p\\):",
        "",
        "1. Pick \\(p\\) with $a_1 * b_1$.",
        "2. Split into",
        "   • small",
    ],
    "    '''Don": ["```python", "def f(x):", "    '''Don"],
    "ret": ["def f(x):", "    '''Don't", "    worry.'''", "    ret"],
    "- \\{a, b": ["", "\\[", "T(n) = 2\\,T(n/2)", "- \\{a, b"],
}


@pytest.fixture
def window(monkeypatch):
    return Window(monkeypatch, 60, 12)


def write(pieces):
    screen.write_markdown(iter(pieces), region.Region(lambda: 0.0))  # no time passes: all is drawn


def pieces(text, size=3):
    return [AnswerText(text[i : i + size]) for i in range(0, len(text), size)]


def test_an_answer_is_readable_at_every_moment(window):
    seen = {}

    def watched():
        for end in range(len(ANSWER)):
            yield AnswerText(ANSWER[end])
            for moment in MOMENTS:
                if ANSWER[: end + 1].endswith(moment):
                    seen.setdefault(moment, window.screen.seen)

    write(watched())
    for moment, rows in MOMENTS.items():
        assert seen[moment][-len(rows) :] == rows
    expected = ANSWER.replace("**", "").replace("   - ", "   • ").split("\n")
    assert window.screen.all == [*expected, "", ""]


@pytest.mark.parametrize("cut", [5, 100, 150, 200, 240, 290])
def test_a_stopped_answer_stays_on_the_screen(cut):
    def stopped():
        yield from pieces(ANSWER[:cut])
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        window = Window(patch, 60, 12)
        with pytest.raises(KeyboardInterrupt):
            write(stopped())
        part, whole = window.screen, Window(patch, 60, 12)
        write([AnswerText(ANSWER[:cut])])
    assert part.all == whole.screen.all


def test_what_is_written_in_all_grows_with_the_text_alone(window, monkeypatch):
    """A block may be as long as an answer: its lines are not looked at again and again."""
    looked_at = []
    shown = painting.printable
    monkeypatch.setattr(painting, "printable", lambda text: looked_at.append(len(text)) or shown(text))
    text = "```\n" + 500 * "x = 1\n"
    write(pieces(text))
    assert sum(looked_at) <= 6 * len(text)
    assert window.screen.all == [*text.rstrip().split("\n"), "", ""]


def test_a_block_taller_than_the_window_is_whole_in_the_end(window):
    text = "\n".join(f"line {number}" for number in range(40))
    heights = []

    def watched():
        for piece in pieces(text):
            yield piece
            heights.append(len(window.screen.all))

    write(watched())
    assert window.screen.all == [*text.split("\n"), "", ""]
    assert max(heights) < 12


def test_code_keeps_its_colors_over_lines():
    painter, splitter = painting.Painter(), Splitter()
    parts = splitter.feed("```python\ndef f():\n    '''Don't\n    def if.'''\n    return 1\n```\n")
    code = [painter._code.line(part.text, keep=True) if n else painter.finished(part, 80) for n, part in
            enumerate(parts[:-1])]  # fmt: skip
    styles = [{str(segment.style) for segment in line if segment.text.strip()} for line in code[1:]]
    assert styles[1] == styles[2]  # both are the string
    assert len(styles[0]) > 1


def test_an_unknown_language_and_a_very_long_line_have_no_colors():
    for language, line in (("nonsense", "x = 1"), ("python", "x" * 5000)):
        (segment,) = painting.Highlighter(language).line(line, keep=True)
        assert (segment.text, segment.style) == (line, None)


def test_hidden_thinking_is_counted(capsys):
    live = screen.LiveScreen(len, hide_thinking=True)
    live.writers[ThinkingText](iter([ThinkingText("abc"), ThinkingText("d" * 2000)]))
    err = capsys.readouterr().err
    assert "thinking, 3 tokens" in err
    assert "thinking, 2,003 tokens" in err
    assert "abc" not in err
    assert err.endswith("\r")
