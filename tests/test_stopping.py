"""Stop texts: what comes before one is shown, whole and at once, and nothing of what comes after."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmoe.chat.events import AnswerText, ThinkingText
from macmoe.errors import UsageError
from macmoe.stopping import StopTexts, stop_texts

LETTERS = st.text(alphabet="abc", max_size=12)
STOPS = st.lists(LETTERS.filter(len), min_size=1, max_size=3)


def pieces(text, cuts):
    edges = [0, *sorted({cut % (len(text) + 1) for cut in cuts}), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


def first_complete(text, stops):
    """Return what a reader of single characters shows: all before the stop text that is complete first."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)], True
    return text, False


@given(
    LETTERS, st.lists(LETTERS.filter(len), min_size=1, max_size=3), st.lists(st.integers(0, 12), max_size=6)
)
def test_pieces_do_not_matter(text, stops, cuts):
    stop = StopTexts(stops)
    shown = "".join(stop.add(piece) for piece in pieces(text, cuts)) + stop.finish()
    assert (shown, stop.found) == first_complete(text, stops)


@given(LETTERS, STOPS)
def test_only_what_may_begin_a_stop_text_is_withheld(text, stops):
    stop, shown = StopTexts(stops), ""
    for index, letter in enumerate(text):
        shown += stop.add(letter)
        if stop.found:
            return
        withheld = text[len(shown) : index + 1]
        assert not withheld or any(each.startswith(withheld) for each in stops)


def test_thinking_may_hold_a_stop_text():
    stop = StopTexts(["END"])
    events = [ThinkingText("an END "), AnswerText("The E"), AnswerText("NDing is here"), AnswerText("never")]
    assert list(stop.filter(events)) == [ThinkingText("an END "), AnswerText("The ")]
    assert stop.found


def test_what_is_withheld_comes_before_another_kind_of_event():
    stop = StopTexts(["END"])
    events = [AnswerText("The EN"), ThinkingText("more"), AnswerText("D")]
    assert list(stop.filter(events)) == [
        AnswerText("The "),
        AnswerText("EN"),
        ThinkingText("more"),
        AnswerText("D"),
    ]
    assert not stop.found


def test_one_text_may_stand_by_itself():
    assert stop_texts("END") == ("END",)
    assert stop_texts(["a", "b"]) == ("a", "b")
    assert stop_texts(None) == stop_texts(()) == ()


@pytest.mark.parametrize("stop", ["", ["a", ""], [1]])
def test_empty_stop_texts_are_refused(stop):
    with pytest.raises(UsageError, match="none of them empty"):
        stop_texts(stop)
