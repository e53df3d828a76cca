"""Histories are read as clients, servers and data sets write them; nothing is lost without a word."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import FORMATS, Message, ToolCall
from macmoe.chat.messages import read_messages
from macmoe.errors import ChatFormatError
from tests.chat.records import lines_of
from tests.conftest import SHARED

USER = {"role": "user", "content": "Why?"}
NOTHING = [None, "", [], {}]
CALL = ToolCall("f", {"a": 1}, id="c1")
SPELLED = ToolCall("f", {"a": 1}, id="c1", raw='{"a": 1}')


def answer(**fields):
    return {"role": "assistant", "content": "So.", **fields}


def calling(**call):
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "name": "f", **call}]}


READ = {
    "text parts": (
        {"role": "user", "content": [{"type": "input_text", "text": "Wh"}, {"text": "y"}, "?"]},
        [Message("user", "Why?")],
    ),
    "one part": ({"role": "user", "content": {"type": "text", "text": "Why?"}}, [Message("user", "Why?")]),
    "output parts": (
        answer(content=[{"type": "output_text", "text": "So.", "annotations": [], "logprobs": []}]),
        [Message("assistant", "So.")],
    ),
    "a part with a column for every kind": (
        {"role": "user", "content": [{"type": "text", "text": "Why?", "image_url": None}]},
        [Message("user", "Why?")],
    ),
    "a refusal": (answer(content=None, refusal="No."), [Message("assistant", "No.")]),
    "a refusal as a part": (
        answer(content=[{"type": "refusal", "refusal": "No."}]),
        [Message("assistant", "No.")],
    ),
    "reasoning without content": (
        answer(content=None, reasoning_content="Hm."),
        [Message("assistant", "", reasoning="Hm.")],
    ),
    "reasoning under two names": (
        answer(reasoning="Hm.", reasoning_content="Hm.\n"),
        [Message("assistant", "So.", reasoning="Hm.")],
    ),
    "reasoning as a part": (
        answer(content=[{"type": "thinking", "thinking": "Hm.", "signature": "x"}, {"text": "So."}]),
        [Message("assistant", "So.", reasoning="Hm.")],
    ),
    "bookkeeping": (
        answer(id="m1", type="message", status="completed", index=0),
        [Message("assistant", "So.")],
    ),
    "a system message without text": ({"role": "system", "content": None}, [Message("system", "")]),
    "a call in a function": (
        calling(name=None, type="function", index=0, function={"name": "f", "arguments": {"a": 1}}),
        [Message("assistant", "", tool_calls=(CALL,))],
    ),
    "arguments as text": (
        calling(arguments='{"a": 1}'),
        [Message("assistant", "", tool_calls=(SPELLED,))],
    ),
    "arguments as text in text": (
        calling(arguments=json.dumps('{"a": 1}')),
        [Message("assistant", "", tool_calls=(SPELLED,))],
    ),
    "parameters": (calling(parameters={"a": 1}), [Message("assistant", "", tool_calls=(CALL,))]),
    "LangChain's call": (
        calling(args={"a": 1}, type="tool_call"),
        [Message("assistant", "", tool_calls=(CALL,))],
    ),
    "a call with two ids": (
        calling(id="fc1", call_id="c1", arguments={"a": 1}),
        [Message("assistant", "", tool_calls=(CALL,))],
    ),
    "no arguments": (
        calling(arguments=""),
        [Message("assistant", "", tool_calls=(ToolCall("f", {}, id="c1"),))],
    ),
    "a name with a namespace": (
        calling(name="functions.f", arguments={"a": 1}),
        [Message("assistant", "", tool_calls=(CALL,))],
    ),
    "the call of old": (
        answer(function_call={"name": "f", "arguments": '{"a": 1}'}),
        [Message("assistant", "So.", tool_calls=(ToolCall("f", {"a": 1}, raw='{"a": 1}'),))],
    ),
    "the result of old": (
        {"role": "function", "name": "functions.f", "content": "3"},
        [Message("tool", "3", name="f")],
    ),
    "a result without text": (
        {"role": "tool", "tool_call_id": "c1", "content": None},
        [Message("tool", "", tool_call_id="c1")],
    ),
    "a result that is an object": (
        {"role": "tool", "tool_call_id": 1, "content": {"type": "file", "é": [1]}},
        [Message("tool", '{"type": "file", "é": [1]}', tool_call_id="1")],
    ),
    "a result that is a list": ({"role": "tool", "content": ["a", "b"]}, [Message("tool", '["a", "b"]')]),
    "a result in parts": (
        {"role": "tool", "content": [{"type": "text", "text": "3"}]},
        [Message("tool", "3")],
    ),
    "Anthropic's call": (
        answer(
            content=[
                {"type": "thinking", "thinking": "Hm."},
                {"type": "text", "text": "So."},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
            ]
        ),
        [Message("assistant", "So.", reasoning="Hm.", tool_calls=(CALL,))],
    ),
    "Anthropic's results": (
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "3"}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": "no", "is_error": True},
                {"type": "text", "text": "Why?"},
            ],
        },
        [
            Message("tool", "3", tool_call_id="c1"),
            Message("tool", "error: no", tool_call_id="c2"),
            Message("user", "Why?"),
        ],
    ),
}


@pytest.mark.parametrize(("data", "messages"), READ.values(), ids=READ)
def test_message_is_read_as_it_is_written(data, messages):
    assert read_messages([data]) == messages
    if len(messages) == 1:
        assert Message.from_dict(data) == messages[0]


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}
REFUSED = {
    "an image": ({"role": "user", "content": [{"text": "Why?"}, IMAGE]}, "an image .'image_url'."),
    "an image beside a text": (
        {"role": "user", "content": [{"type": "text", "text": "Why?", "image": "x"}]},
        "an image .'image'.",
    ),
    "an image of a tool": ({"role": "tool", "content": [IMAGE]}, "an image .'image_url'."),
    "images": ({**USER, "images": ["x.png"]}, "images .'images'."),
    "a sound": (answer(content=None, audio={"id": "audio_1"}), "audio .'audio'."),
    "a file": ({**USER, "file_id": "file-1"}, "a file .'file_id'."),
    "an unknown part": ({"role": "user", "content": [{"type": "poem", "text": "x"}]}, "part that is no text"),
    "a part that is a number": ({"role": "user", "content": [1]}, "part that is no text"),
    "text that is a number": ({"role": "user", "content": [{"text": 1}]}, "part that is no text"),
    "two reasonings": (answer(reasoning="a", thinking="b"), "both give the reasoning, and differ"),
    "two sets of arguments": (calling(arguments={"a": 1}, input={"a": 2}), "both give the arguments"),
    "arguments that are a list": (calling(arguments=[1]), "needs a name and arguments"),
    "a name that is only a namespace": (calling(name="functions."), "needs a name and arguments"),
    "a question without text": ({"role": "user", "content": []}, "must be text"),
    "an answer without anything": (answer(content=None), "must be text, not None"),
    "a typing error": ({**USER, "contnet": "Why?"}, "unknown key 'contnet'"),
}


@pytest.mark.parametrize(("data", "words"), REFUSED.values(), ids=REFUSED)
def test_what_no_model_can_read_is_refused_by_name(data, words):
    with pytest.raises(ChatFormatError, match=f"^message 2: .*{words}") as failure:
        read_messages([USER, data])
    assert "\n" not in str(failure.value)


@settings(deadline=None, max_examples=50)
@given(key=st.text(min_size=1), nothing=st.sampled_from(NOTHING))
def test_a_key_with_nothing_in_it_passes(key, nothing):
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    message = {"role": "assistant", "content": "So.", "tool_calls": [{key: nothing, **call}]}
    expected = [Message("assistant", "So.", tool_calls=(CALL,))]
    assert read_messages([{key: nothing, **message}]) == expected
    assert (
        read_messages([{"audio": nothing, "refusal": nothing, "function_call": nothing, **message}])
        == expected
    )


def test_what_is_about_a_message_is_left_out_and_named_once(caplog):
    read_messages(
        [{**USER, "timestamp": 1, "parent_id": "x"}, answer(timestamp=2, id="y", usage={"tokens": 3})]
    )
    assert [record.getMessage() for record in caplog.records] == [
        "the messages hold what no model reads, and is left out: parent_id, timestamp, usage"
    ]


def test_results_without_a_name_or_id_come_in_the_order_of_their_calls():
    call = Message("assistant", "", tool_calls=(ToolCall("f", {}), ToolCall("g", {})))
    results = [Message("tool", "1"), Message("tool", "2")]
    segments = FORMATS["gpt_oss"]().render([Message("user", "Why?"), call, *results])
    text = "".join(segment.text for segment in segments)
    assert text.index("<|start|>functions.f to") < text.index("<|start|>functions.g to")
    with pytest.raises(ChatFormatError, match="no tool call has the id None"):
        FORMATS["gpt_oss"]().render([Message("user", "Why?"), call, *results, Message("tool", "3")])


def recorded_histories():
    """Return the histories that real clients sent, and the case that issue 17 names."""
    bodies = [
        (f"{path.stem}/{line['scenario']}/{line['step']}", line["body"]["messages"])
        for path in sorted((SHARED / "clients").glob("*.jsonl"))
        for line in lines_of(path)
        # A client that continues a thread of the server sends no history, only the results of tools.
        if isinstance(line["body"], dict)
        and line["body"].get("messages")
        and line["body"].get("thread", {}).get("type") != "continue"
    ]
    case = SHARED / "cases" / "openai_history" / "messages.json"
    return bodies + ([("openai_history", json.loads(case.read_bytes()))] if case.is_file() else [])


@pytest.mark.parametrize("family", FORMATS)
def test_histories_of_real_clients_are_read_and_rendered(family):
    histories = recorded_histories()
    if not histories:
        pytest.skip("the golden data folder ../shared is not on this machine")
    for name, history in histories:
        messages = read_messages(history)
        text = "".join(segment.text for segment in FORMATS[family]().render(messages))
        question = next(message.content for message in reversed(messages) if message.role == "user")
        assert question in text, name
