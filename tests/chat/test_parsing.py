"""Parsers read what models write, sound or broken: never an exception, never a lost word."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import FORMATS, ToolCallEvent
from macmoe.chat.gpt_oss import HarmonyFormat
from tests.chat.records import CHANNELS, TAGS, comparable, family_of, format_of, golden, merged, run, vectors
from tests.vocabularies import CONTROL_TOKENS, real, small

STARTS = {"qwen3": ("auto", "thinking", "answer"), "gpt_oss": ("header", "thinking", "answer")}
STARTS["deepseek_v3"] = STARTS["qwen3"]
STATES = [(family, start) for family, starts in STARTS.items() for start in starts]
# After these, GPT-OSS has no text before the next `<|message|>`: the words of a header may be dropped.
HEADER_BEGINS = ("<|channel|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")
# What models write between control tokens, and what could be taken for something else.
SNIPPETS = [
    "<think>",
    "</think>",
    "</thi",
    "\n",
    "\n\n",
    " ",
    "é😀",
    '{"name": "f", "arguments": {"a": 1}}',
    '{"name": "f", "arguments": [1]}',
    '{"b": 2}',
    "function",
    "g\n```json\n{}\n```",
    "final",
    "analysis",
    "commentary to=functions.h ",
    "assistant",
    "json",
    "So it is.",
]


def parser_of(family, start, tokenizer=None):
    return FORMATS[family]().parser(tokenizer or small(family), start)


def check_reading(record, events):
    malformed = record["malformed"]
    readings = [record["events"], *record.get("also_ok", [])]
    accepted = [comparable(reading, malformed=malformed) for reading in readings]
    assert comparable(merged(events), malformed=malformed) in accepted
    delivered = " ".join(str(value) for event in merged(events) for value in event.values())
    kept = [re.sub(r"\s+", "", text.replace('"', "'")) for text in record.get("must_keep", ())]
    assert all(text in re.sub(r"\s+", "", delivered.replace('"', "'")) for text in kept)


@pytest.mark.parametrize("record", golden("parse_"))
def test_output_of_a_model_is_read(record):
    parser = format_of(record).parser(real(record["family"]), record["start"])
    check_reading(record, run(parser, record["ids"]))


@pytest.mark.parametrize("record", vectors("parse_"))
def test_output_is_read_in_any_vocabulary(record):
    tokenizer = small(family_of(record))
    parser = format_of(record).parser(tokenizer, record["start"])
    check_reading(record, run(parser, tokenizer.encode(record["text"], control=True)))


@pytest.mark.parametrize(("family", "start"), STATES)
@settings(deadline=None)
@given(data=st.data())
def test_reading_does_not_depend_on_how_text_is_cut_into_tokens(family, start, data):
    tokenizer = small(family)
    pieces = data.draw(st.lists(st.sampled_from([*CONTROL_TOKENS[family], *SNIPPETS]), max_size=10))
    whole, cut = [], []
    for piece in pieces:
        is_token = piece in CONTROL_TOKENS[family] and data.draw(st.booleans())
        whole += tokenizer.encode(piece, control=is_token)
        ends = sorted({0, len(piece), *data.draw(st.lists(st.integers(0, len(piece)), max_size=3))})
        parts = [piece] if is_token else [piece[start:end] for start, end in pairwise(ends)]
        cut += [token_id for part in parts for token_id in tokenizer.encode(part, control=is_token)]
    readings = [merged(run(parser_of(family, start), ids)) for ids in (whole, cut)]
    assert readings[0] == readings[1]


def words_of(events):
    """Return the numbered words that events deliver, in order."""
    texts = (
        f"{event.name} {event.raw}" if isinstance(event, ToolCallEvent) else event.text for event in events
    )
    return re.findall(r"w\d+", "".join(texts))


@pytest.mark.parametrize(("family", "start"), STATES)
def test_ten_thousand_random_outputs_lose_no_word(family, start):
    tokenizer, generator = small(family), random.Random(f"{family} {start}")
    for _ in range(10_000 // len(STARTS[family])):
        ids, words, in_header = [], [], start == "header"
        for position in range(generator.randrange(12)):
            if generator.random() < 0.5:
                control = generator.choice(list(CONTROL_TOKENS[family]))
                ids += tokenizer.encode(control, control=True)
                in_header = control in HEADER_BEGINS or (in_header and control != "<|message|>")
            else:
                ids += tokenizer.encode(f" w{position} ")
                words += [] if in_header else [f"w{position}"]
        delivered = words_of(run(parser_of(family, start), ids))
        assert [word for word in delivered if word in words] == words, tokenizer.decode(ids)
        assert len(set(delivered)) == len(delivered), tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["qwen3", "gpt_oss", "deepseek_v31"])
def test_random_tokens_of_a_published_vocabulary_lose_no_letter(name):
    tokenizer, family, generator = real(name), name.removesuffix("1"), random.Random(name)
    control_ids = {token: tokenizer.token_id(token) for token in CONTROL_TOKENS[family]}
    # Those of GPT-OSS that begin no header, whose words may be dropped.
    strewn = [token_id for token, token_id in control_ids.items() if token not in HEADER_BEGINS]
    for _ in range(1000):
        ids = [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(15))]
        ids = [token_id for token_id in ids if token_id not in control_ids.values()]
        places = sorted(generator.randrange(len(ids) + 1) for _ in range(generator.randrange(4)))
        runs = [ids[start:end] for start, end in pairwise([0, *places, len(ids)])]
        mixed = [token_id for part in runs for token_id in [*part, generator.choice(strewn)]]
        events = run(parser_of(family, "answer", tokenizer), mixed)
        delivered = "".join(
            event.name + event.raw if isinstance(event, ToolCallEvent) else event.text for event in events
        )
        expected = "".join(tokenizer.decode(part) for part in runs)
        assert letters_of(delivered) == letters_of(expected)


def letters_of(text):
    return re.sub(r"\s", "", TAGS.sub("", text))


@pytest.mark.parametrize(("family", "start"), STATES)
@settings(deadline=None)
@given(data=st.data())
def test_thinking_says_where_the_next_text_goes(family, start, data):
    tokenizer, parser = small(family), parser_of(family, start)
    for piece in data.draw(st.lists(st.sampled_from([*CONTROL_TOKENS[family], "word"]), max_size=8)):
        before = parser.thinking
        ids = tokenizer.encode(piece, control=True)
        events = [event for token_id in ids for event in parser.feed(token_id)]
        if piece == "word" and events:
            assert {CHANNELS.get(type(event)) == "thinking" for event in events} == {before}


def test_text_arrives_as_it_is_written():
    tokenizer, parser = small("qwen3"), parser_of("qwen3", "auto")
    text = "<think>\nFirst.\n</think>\n\nSecond."
    heard = [merged(parser.feed(token_id)) for token_id in tokenizer.encode(text, control=True)]
    assert sum(bool(events) for events in heard) > 8
    assert heard[-1] == [{"channel": "answer", "text": "."}]


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("I would say", "answer"),
        (" to=functions.wea", None),
        ("<|channel|>analy", None),
        ("<|channel|>analysis<|end|><|start|>assis", None),
        ("<|channel|>analysis We think", "thinking"),
        ("<|channel|>commentary to=functions.f <|constrain|>js", None),
    ],
)
def test_cut_harmony_header_is_text_only_where_it_cannot_be_a_header(text, channel):
    events = run(
        HarmonyFormat().parser(small("gpt_oss"), "header"), small("gpt_oss").encode(text, control=True)
    )
    assert [event["channel"] for event in merged(events)] == ([channel] if channel else [])


@pytest.mark.parametrize(
    ("call", "name", "raw"),
    [
        ('{"name": "f", "arguments": {"x":1.0}}', "f", '{"x":1.0}'),
        ('{"arguments" : {"x": 1e2}, "name": "f"}', "f", '{"x": 1e2}'),
        ('{"name": "f"}', "f", "{}"),
    ],
)
def test_arguments_keep_the_model_s_spelling(call, name, raw):
    tokenizer = small("qwen3")
    ids = tokenizer.encode(f"<tool_call>\n{call}\n</tool_call>", control=True)
    (event,) = run(parser_of("qwen3", "answer"), ids)
    assert (event.name, event.raw) == (name, raw)


def reading(family, start, text):
    """Return what a parser makes of a text, whose token strings are tokens."""
    return merged(run(parser_of(family, start), small(family).encode(text, control=True)))


def call_of(name, arguments):
    return {"channel": "tool_call", "name": name, "arguments": arguments}


HARD = "</tool_call><tool_call><|im_end|><think></think>\\"
HARD_DEEPSEEK = "<｜tool▁call▁end｜><｜tool▁sep｜><｜end▁of▁sentence｜>```"
DEEPSEEK_CALL = "<｜tool▁call▁begin｜>{}<｜tool▁call▁end｜>"


@pytest.mark.parametrize(
    ("family", "form", "hard"),
    [
        ("qwen3", '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call><|im_end|>', HARD),
        ("deepseek_v3", DEEPSEEK_CALL.format("f<｜tool▁sep｜>{}"), HARD_DEEPSEEK),
        ("deepseek_v3", DEEPSEEK_CALL.format("function<｜tool▁sep｜>f\n```json\n{}\n```"), HARD_DEEPSEEK),
        ("gpt_oss", "<|channel|>commentary to=functions.f<|message|>{}<|call|>", "<|end|><|call|><|start|>"),
    ],
)
def test_tokens_in_a_string_of_a_call_are_text(family, form, hard):
    arguments = {"text": f'Write "{hard}".', hard: [hard]}
    start = "header" if family == "gpt_oss" else "answer"
    assert reading(family, start, form.format(json.dumps(arguments))) == [call_of("f", arguments)]


@pytest.mark.parametrize(
    ("text", "events"),
    [
        # The string never ends, so the payload does at the last closing tag,
        ('{"a": "b</tool_call>c</tool_call>d', [{"channel": "answer", "text": '{"a": "b</tool_call>cd'}]),
        # or before the next call that can be read,
        (
            '{"a": "b}</tool_call>\n<tool_call>{"name": "g", "arguments": {"b": 2}}</tool_call>',
            [{"channel": "answer", "text": '{"a": "b}'}, call_of("g", {"b": 2})],
        ),
        # and what ended the output is no text.
        (
            '{"name": "f", "arguments": {"a": "b<|im_end|>',
            [{"channel": "answer", "text": '{"name": "f", "arguments": {"a": "b'}],
        ),
        ('{"name": "f"} </think>So.', [call_of("f", {}), {"channel": "answer", "text": "So."}]),
    ],
)
def test_call_without_a_sound_end_is_over_where_the_model_meant_it(text, events):
    assert reading("qwen3", "answer", f"<tool_call>{text}") == events


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        ({"name": "f", "arguments": '{"a": 1}'}, {"a": 1}),
        ({"name": "f", "arguments": json.dumps('{"a": 1}')}, {"a": 1}),
        ({"name": "f", "parameters": {"a": 1}}, {"a": 1}),
        ({"name": "f", "arguments": {}, "parameters": {"a": 1}}, {"a": 1}),
        ({"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}, {"a": 1}),
        ({"name": "f", "arguments": None}, {}),
        ({"name": "f", "id": "1"}, {}),
        # What the tool was to be given is not known, so it does not run.
        ({"name": "f", "a": 1}, None),
        ({"name": "f", "arguments": {}, "a": 1}, None),
        ({"name": "f", "arguments": {"a": 1}, "parameters": {"a": 2}}, None),
        ({"name": "f", "arguments": "a = 1"}, None),
        ({"name": "", "arguments": {"a": 1}}, None),
    ],
)
def test_call_never_runs_without_the_arguments_it_was_given(call, arguments):
    text = json.dumps(call)
    expected = {"channel": "answer", "text": text} if arguments is None else call_of("f", arguments)
    assert reading("qwen3", "answer", f"<tool_call>\n{text}\n</tool_call>") == [expected]


@pytest.mark.parametrize("form", ['"{}"', "json{}", "```json\n{}\n```"])
@pytest.mark.parametrize(
    ("family", "start", "around"),
    [
        ("deepseek_v3", "answer", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
        ("gpt_oss", "header", "<|channel|>commentary to=functions.f<|message|>{}<|call|>"),
    ],
)
def test_arguments_are_found_in_what_surrounds_them(family, start, around, form):
    arguments = '{"a": 1}'
    written = json.dumps(arguments) if form == '"{}"' else form.format(arguments)
    assert reading(family, start, around.format(written)) == [call_of("f", {"a": 1})]


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"])
def test_newline_at_the_beginning_of_the_thinking_is_no_text(family):
    events = reading(family, "thinking", "\n\nHm.\n</think>\n\nSo.")
    assert events == [{"channel": "thinking", "text": "Hm."}, {"channel": "answer", "text": "So."}]


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3"])
def test_tags_spelled_out_in_thinking_that_a_token_opened_are_text(family):
    tokenizer = small(family)
    thought = "Write <think> and </think> here."
    ids = [*tokenizer.encode(thought), *tokenizer.encode("</think>So.", control=True)]
    assert merged(run(parser_of(family, "thinking"), ids)) == [
        {"channel": "thinking", "text": thought},
        {"channel": "answer", "text": "So."},
    ]
