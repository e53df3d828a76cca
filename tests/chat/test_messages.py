"""Messages are read from the forms in use, and refused where no format could render them."""

from __future__ import annotations

import pytest

from macmoe.chat import Message, Segment, ToolCall
from macmoe.chat.messages import joined
from macmoe.errors import ChatFormatError

CALL = {"id": "1", "name": "f", "arguments": {"a": 1}}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_has_three_names(key):
    message = Message.from_dict({"role": "assistant", "content": "Yes.", key: "Hm."})
    assert message == Message("assistant", "Yes.", reasoning="Hm.")


@pytest.mark.parametrize(
    ("data", "call"),
    [
        (CALL, ToolCall("f", {"a": 1}, id="1")),
        ({"name": "f"}, ToolCall("f", {})),
        (
            {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            ToolCall("f", {"a": 1}, raw='{"a":1}'),
        ),
        ({"name": "f", "arguments": "1 +"}, ToolCall("f", None, raw="1 +")),
    ],
)
def test_tool_call_is_read_in_both_forms(data, call):
    message = Message.from_dict({"role": "assistant", "content": None, "tool_calls": [data]})
    assert message == Message("assistant", "", tool_calls=(call,))


def test_arguments_are_shown_as_they_were_written():
    assert ToolCall("f", {"a": "é"}).arguments_text == '{"a": "é"}'
    assert ToolCall("f", {"a": 1}, raw='{"a":1}').arguments_text == '{"a":1}'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("Hi", "a message must be an object, not 'Hi'"),
        ({"role": "user", "content": "Hi", "contents": 1}, "unknown key 'contents'"),
        ({"role": "bot", "content": "Hi"}, "'bot' is no role; the roles are system, developer"),
        ({"content": "Hi"}, "'' is no role"),
        ({"role": "user", "content": None}, "content of a user message must be text, not None"),
        ({"role": "user", "content": 3}, "must be text, not 3"),
        ({"role": "assistant", "content": "Hi", "reasoning": 1}, "reasoning of a message must be text"),
        ({"role": "user", "content": "Hi", "reasoning": "Hm."}, "a user message cannot have reasoning"),
        ({"role": "tool", "content": "Hi", "tool_calls": [CALL]}, "a tool message cannot have tool_calls"),
        ({"role": "assistant", "content": "", "tool_calls": CALL}, "tool_calls must be a list"),
        ({"role": "assistant", "content": "", "tool_calls": ["f"]}, "a tool call must be an object"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"arguments": {}}]},
            "needs a name and arguments",
        ),
        ({"role": "assistant", "content": "", "tool_calls": [{"function": 1}]}, "needs a name and arguments"),
        ({"role": "assistant", "content": "", "tool_calls": [{**CALL, "x": 1}]}, "unknown key 'x'"),
    ],
)
def test_message_that_fits_no_schema_is_refused_in_one_line(data, message):
    with pytest.raises(ChatFormatError, match=message) as failure:
        Message.from_dict(data)
    assert "\n" not in str(failure.value)


def test_joined_keeps_apart_what_differs():
    parts = [("a", True), ("", False), ("b", True), ("c", False), ("d", False)]
    segments = [Segment(text, control) for text, control in parts]
    assert joined([*segments, Segment("e", control=False, trainable=True)]) == [
        Segment("ab", control=True),
        Segment("cd", control=False),
        Segment("e", control=False, trainable=True),
    ]
