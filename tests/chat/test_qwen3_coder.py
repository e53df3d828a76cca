"""Qwen3-Coder: what its official templates write, and what its parser makes of calls in XML-like lines."""

from __future__ import annotations

import functools
import json
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import Message, ToolCall, ToolCallEvent
from macmoe.chat.qwen3_coder import Qwen3CoderFormat
from macmoe.errors import ChatFormatError
from tests.chat.records import arguments_of, ending_of, golden_file, merged, run
from tests.chat.test_parsing import check_reading
from tests.conftest import SHARED
from tests.scripted import ScriptedModel
from tests.vocabularies import CONTROL_TOKENS, real, small

VERSIONS = ("2025-07", "2025-08")
QUESTION = Message("user", "?")
STRING = {"type": "string"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"a": STRING, "b": STRING, "c": {"type": "object"}},
            },
        },
    }
    for name in "fg"
]


def text_of(segments) -> str:
    return "".join(segment.text for segment in segments)


def parse(text, tools=(), *, end=True):
    """Return the events of a text, in which `<tool_call>` and its like are tokens."""
    parser = Qwen3CoderFormat().parser(small("qwen3"), "answer", tools)
    ids = small("qwen3").encode(text + "<|im_end|>" * end, control=True)
    return run(parser, ids)


def versions_of(record):
    return VERSIONS if record["template_version"] == "any" else (record["template_version"],)


@pytest.mark.parametrize("record", golden_file("qwen3_coder"))
def test_rendering_has_the_official_text_and_ids(record):
    for version in versions_of(record):
        fmt = Qwen3CoderFormat(variant=version)
        segments = fmt.render(**arguments_of(record), ending=ending_of(record))
        assert text_of(segments) == record["expected_text"]
        expected = record.get("expected_ids_literal", record["expected_ids"])
        assert real("qwen3").encode_segments(segments) == expected
        if "train" in record:
            target = fmt.render_target(**arguments_of(record))
            written = text_of(segment for segment in target if segment.trainable)
            given_text = text_of(segment for segment in target if not segment.trainable)
            assert {"prompt": given_text, "target": written} == record["train"]


@pytest.mark.parametrize("record", golden_file("parse_qwen3_coder"))
def test_output_of_a_model_is_read(record):
    parser = Qwen3CoderFormat().parser(real("qwen3"), record["start"], record["tools"] or ())
    check_reading(record, run(parser, record["ids"]))


KEYS = st.sampled_from(["type", "description", "enum", "required", "default", "a-b c", "$ref", "name"])
SCALARS = (
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | st.sampled_from(["é", " x ", "`"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2)
)
FIELDS = st.dictionaries(KEYS, VALUES, max_size=4)
PARAMETERS = st.fixed_dictionaries(
    {"properties": st.dictionaries(st.sampled_from(["x", "y-z"]), FIELDS, max_size=2)},
    optional={"type": st.just("object"), "required": st.lists(st.sampled_from(["x"])), "$defs": FIELDS},
)
FUNCTIONS = st.fixed_dictionaries(
    {"name": st.just("f"), "parameters": PARAMETERS},
    optional={"description": st.sampled_from(["", " D.\n"]), "return": VALUES, "strict": st.booleans()},
)


@pytest.mark.parametrize("version", VERSIONS)
@settings(deadline=None, max_examples=60)
@given(functions=st.lists(FUNCTIONS, max_size=2), arguments=st.dictionaries(KEYS, VALUES, max_size=2))
def test_declarations_and_calls_are_those_of_the_official_template(version, functions, arguments):
    tools = [{"type": "function", "function": function} for function in functions]
    call = {"name": "f", "arguments": arguments}
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    expected = official(version).render(messages=messages, tools=tools)
    rendered = Qwen3CoderFormat(variant=version).render(
        [Message.from_dict(message) for message in messages], tools=tools, ending="closed"
    )
    assert text_of(rendered) == expected


@functools.cache
def official(version):
    """Return an official template, ready to be run, or skip the test."""
    jinja2 = pytest.importorskip("jinja2")
    path = SHARED / "golden" / "templates" / f"qwen3_coder_{version}.jinja"
    if not path.is_file():
        pytest.skip("the golden data folder ../shared is not on this machine")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(path.read_text())


# What values are made of: all that could be taken for a tag, a token or a call.
PIECES = [
    *("<function=f>", "<function=h>", "</function>", "<parameter=a>", "<parameter=z>", "</parameter>"),
    *("<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "<|im_end|>"),
    *("\n", "\n\n", " ", "word", "null", '{"x": 1}', "é😀", '{"name": "f", "arguments": {"a": 1}}'),
    "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
]
# Where the format itself is ambiguous: what reads like the next parameter is the next parameter.
NEXT = re.compile(r"</parameter>\s*<parameter=|(?m:^ *<parameter=[ab]>$)")
HOSTILE = (
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join).filter(lambda text: not NEXT.search(text))
)
CALLS = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from("fg"),
        st.fixed_dictionaries({}, optional={"a": HOSTILE, "b": HOSTILE, "c": st.lists(HOSTILE, max_size=2)}),
    ),
    max_size=3,
)


@pytest.mark.parametrize("version", VERSIONS)
@settings(deadline=None)
@given(calls=CALLS, said=st.sampled_from(["", "So, <function=f> is it."]))
def test_calls_come_back_exactly_whatever_their_values_hold(version, calls, said):
    fmt = Qwen3CoderFormat(variant=version)
    answer = Message("assistant", said, tool_calls=tuple(calls))
    target = [part for part in fmt.render_target([QUESTION, answer], tools=TOOLS) if part.trainable]
    expected = [{"channel": "answer", "text": said}] if said else []
    expected += [{"channel": "tool_call", "name": call.name, "arguments": call.arguments} for call in calls]
    readings = [small("qwen3").encode_segments(target)]
    if text_of(target).count("<|im_end|>") == 1:  # as a token it would end the turn
        readings.append(small("qwen3").encode(text_of(target), control=True))
    for ids in readings:
        assert merged(run(fmt.parser(small("qwen3"), "answer", TOOLS), ids)) == expected


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_text_from_outside_adds_no_control_token(data):
    tokenizer = small("qwen3")
    controls = {tokenizer.token_id(token) for token in CONTROL_TOKENS["qwen3"]}

    def control_ids(text):
        call = ToolCall(text(), {text(): text(), "list": [text()]})
        function = {
            "name": "f",
            "description": text(),
            "parameters": {"properties": {text(): {text(): text()}}},
        }
        messages = [Message("system", text()), Message("user", text()), Message("assistant", text())]
        messages += [QUESTION, Message("assistant", text(), tool_calls=(call,)), Message("tool", text())]
        tools = [{"type": "function", "function": function}]
        ids = tokenizer.encode_segments(Qwen3CoderFormat().render(messages, tools=tools))
        return [token_id for token_id in ids if token_id in controls]

    assert control_ids(lambda: "." + data.draw(HOSTILE)) == control_ids(lambda: "x")


TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>", "<|im_end|>", "<tool_response>")


@pytest.mark.parametrize("tools", [(), TOOLS], ids=["undeclared", "declared"])
@settings(deadline=None)
@given(data=st.data())
def test_reading_does_not_depend_on_how_text_is_cut_into_tokens(tools, data):
    tokenizer = small("qwen3")
    whole, cut = [], []
    for piece in data.draw(
        st.lists(st.sampled_from([*PIECES, "</", "<fun", "<parameter=", "</tool"]), max_size=10)
    ):
        is_token = piece in TOKENS and data.draw(st.booleans())
        whole += tokenizer.encode(piece, control=is_token)
        ends = sorted({0, len(piece), *data.draw(st.lists(st.integers(0, len(piece)), max_size=3))})
        parts = [piece] if is_token else [piece[start:end] for start, end in pairwise(ends)]
        cut += [token_id for part in parts for token_id in tokenizer.encode(part, control=is_token)]
    one, other = (
        merged(run(Qwen3CoderFormat().parser(tokenizer, "answer", tools), ids)) for ids in (whole, cut)
    )
    assert one == other


def test_random_outputs_lose_no_word():
    tokenizer, generator = small("qwen3"), random.Random("coder")
    tags = ["<function=f>\n", "</function>", "\n</parameter>", "\n", '{"a": 1}']
    for _ in range(1500):
        ids, words = [], []
        for position in range(generator.randrange(12)):
            kind = generator.random()
            if kind < 0.3:
                ids += tokenizer.encode(generator.choice(TOKENS), control=True)
            elif kind < 0.7:
                ids += tokenizer.encode(generator.choice([*tags, f"<parameter=k{position}>"]))
            else:
                ids += tokenizer.encode(f" w{position} ")
                words.append(f"w{position}")
        events = run(Qwen3CoderFormat().parser(tokenizer, "answer", TOOLS), ids)
        texts = (f" {event.raw} " if isinstance(event, ToolCallEvent) else event.text for event in events)
        assert re.findall(r"w\d+", "".join(texts)) == words, tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, " 5 ", 5),
        ({"type": "integer"}, "5.5", "5.5"),
        ({"type": "integer"}, "9" * 5000, "9" * 5000),
        ({"type": "number"}, "2.5e-1", 0.25),
        ({"type": "number"}, "1e999", "1e999"),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "boolean"}, "TRUE", True),
        ({"type": "boolean"}, "yes", "yes"),
        ({"type": "array"}, "[1, ", "[1, "),
        ({"type": "array"}, "(1, 2)", [1, 2]),
        ({"type": "array"}, "[" * 9000, "[" * 9000),
        ({"type": "object"}, "{'a': {1, 2}}", "{'a': {1, 2}}"),
        ({"type": "object"}, "{'a': '\\d'}", {"a": "\\d"}),
        ({"type": "object"}, "5", "5"),
        ({"type": "string"}, "None", "None"),
        ({"type": "string", "nullable": True}, "None", None),
        ({"type": ["null", "integer"]}, "5", 5),
        ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, "null", None),
        ({"enum": [1, 2]}, "1", "1"),
        (True, "1", "1"),
    ],
)
def test_type_of_an_argument_is_that_of_the_declaration(schema, text, value):
    parameters = {"type": "object", "properties": {"x": schema}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    (call,) = parse(
        f"<tool_call>\n<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>", tools
    )
    assert call.arguments == {"x": value}
    assert type(call.arguments["x"]) is type(value)
    assert json.loads(call.raw) == call.arguments


BEGUN = "<tool_call>\n<function=f>\n<parameter=a>\nhalf a file"


def test_a_call_that_was_cut_is_text_but_a_model_may_leave_out_what_closes_it():
    assert merged(parse(BEGUN, TOOLS, end=False))[0]["channel"] == "answer"
    assert (
        merged(parse(f"{BEGUN}\n</parameter>\n</function>\n", TOOLS, end=False))[0]["channel"] == "tool_call"
    )
    assert merged(parse(BEGUN, TOOLS))[0]["arguments"] == {"a": "half a file"}


def test_prose_that_shows_the_format_is_no_call():
    undeclared = "Write this:\n<function=name>\n</function>\nand wait."
    assert merged(parse(undeclared, TOOLS)) == [{"channel": "answer", "text": undeclared}]
    unfinished = "Begin with\n<function=f>\nand go on."
    assert merged(parse(unfinished, TOOLS)) == [{"channel": "answer", "text": unfinished}]


def test_a_call_is_delivered_as_soon_as_it_is_sure():
    parser = Qwen3CoderFormat().parser(small("qwen3"), "answer", TOOLS)
    call = "<tool_call>\n<function=f>\n</function>\n</tool_call>"
    heard = [parser.feed(token_id) for token_id in small("qwen3").encode(f"{call}\n{call}\nSo", control=True)]
    delivered = [number for number, events in enumerate(heard) if events]
    assert [events[0] for events in heard if events][:2] == [ToolCallEvent("f", {}, "{}")] * 2
    assert delivered[0] < len(heard) // 2 + 20


def test_calls_without_arguments_that_can_be_read_stay_in_history_but_are_not_learned():
    broken = Message("assistant", "", tool_calls=(ToolCall("f", None, raw="{'a"),))
    fmt = Qwen3CoderFormat()
    assert "<function=f>\n{'a\n</function>" in text_of(
        fmt.render([QUESTION, broken, Message("tool", "error")])
    )
    with pytest.raises(ChatFormatError, match="a call of f has arguments that are no JSON object"):
        fmt.render_target([QUESTION, broken])


def test_it_never_thinks():
    fmt = Qwen3CoderFormat()
    assert fmt.settings == ("off",)
    assert fmt.close_thinking() == []
    with pytest.raises(ChatFormatError, match="Qwen3-Coder has no thinking='on'"):
        fmt.render([QUESTION], thinking="on")


def test_session_reads_arguments_by_the_tools_that_it_declares():
    tool = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}},
    }
    model = ScriptedModel("qwen3")
    model.chat = Qwen3CoderFormat()
    answer = Message("assistant", "", tool_calls=(ToolCall("f", {"n": 5}),))
    model.learn([QUESTION], answer, tools=[tool])
    session = model.session()
    session.__dict__["format"] = model.chat
    event, _ = session.generate([QUESTION], tools=[tool])
    assert event == ToolCallEvent("f", {"n": 5}, '{"n": 5}')
