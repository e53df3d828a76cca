"""What a user sees of a chat on a terminal, and how it is left."""

from __future__ import annotations

from tests.cli.screen_model import Screen
from tests.cli.scripted_chat import FORMULA


def test_a_second_ctrl_c_leaves(terminal):
    with terminal("add") as chat:
        for _ in range(2):  # what is entered between two makes the second one the first again
            chat.expect(">")
            chat.type("\x03")
            chat.expect("Ctrl-C again leaves")
            chat.expect(">")
            chat.type("/tokens\r")
            chat.expect("there is room for")
        chat.expect(">")
        chat.type("\x03")
        chat.expect("Ctrl-C again leaves")
        chat.expect(">")
        chat.type("\x03")
        assert chat.end() == 130
    assert "stopped" not in chat.output


def test_formulas_and_the_first_message_are_on_the_screen_as_they_were_written(terminal):
    with terminal("formula", "go") as chat:
        chat.expect("tokens/s")
        assert chat.leave() == 0
    screen = Screen()
    screen.feed(chat.output)
    shown = screen.all[screen.all.index("> go") + 1 :]
    assert shown[: shown.index("Done.")] == FORMULA.replace("- ", "•\n  ").split("\n")[:-1]
