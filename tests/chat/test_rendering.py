"""Renderings equal those of the official templates and libraries; targets are what inference would write."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import Message, ToolCall
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.typescript import declare_functions
from tests.chat.records import (
    VECTORS,
    arguments_of,
    ending_of,
    family_of,
    format_of,
    golden,
    golden_file,
    lines_of,
    vectors,
)
from tests.conftest import SHARED
from tests.vocabularies import real, small

# Golden training prompts have the spelling of the other renderer; these are all its differences.
RESPELLINGS = {
    "qwen3": [],
    "gpt_oss": [
        (r"(# Instructions\n\n.*?)\n\n<\|end\|>", r"\1<|end|>"),
        (r"(// default: .*),\n", r"\1\n"),
        (r"commentary json<\|message\|>", "commentary <|constrain|>json<|message|>"),
        (r'(to=assistant<\|channel\|>commentary<\|message\|>)(".*?")<\|end\|>', None),
    ],
    "deepseek_v31": [
        (r"\{\{additional_tool_calls\}\}", "{additional_tool_calls}"),
        (r"Where:\n\n", "Where:\n"),
        (r"(without separators or spaces)\n", r"\1"),
    ],
}


def text_of(segments) -> str:
    return "".join(segment.text for segment in segments)


def expected(record, kind):
    """Return what a record expects: Harmony's spelling, the card's tool block, ids of literal text."""
    chosen = next(
        key for suffix in ("_harmony", "_card", "") if (key := f"expected_{kind}{suffix}") in record
    )
    return record.get(f"{chosen}_literal", record[chosen])


def respelled(record, text):
    for pattern, replacement in RESPELLINGS[record["family"]]:
        unquoted = replacement or (lambda match: f"{match[1]}{json.loads(match[2])}<|end|>")
        text = re.sub(pattern, unquoted, text, flags=re.DOTALL if "Instructions" in pattern else 0)
    return text


@pytest.mark.parametrize("record", golden())
def test_rendering_has_the_official_text_and_ids(record):
    segments = format_of(record).render(**arguments_of(record), ending=ending_of(record))
    assert text_of(segments) == expected(record, "text")
    assert real(record["family"]).encode_segments(segments) == expected(record, "ids")


@pytest.mark.parametrize("record", golden_file("r1_qwen3"))
def test_rendering_of_r1_0528_has_the_official_text(record):
    fmt = DeepSeekFormat(variant="r1-0528")
    segments = fmt.render(**arguments_of(record), ending=ending_of(record))
    assert text_of(segments) == record["expected_text"]


@pytest.mark.parametrize("record", vectors())
def test_rendering_has_the_official_text(record):
    segments = format_of(record).render(**arguments_of(record), ending=ending_of(record))
    assert text_of(segments) == record["expected_text"]
    tokenizer = small(family_of(record))
    assert tokenizer.decode(tokenizer.encode_segments(segments)) == record["expected_text"]


@pytest.mark.parametrize("record", [param for param in golden() + vectors() if "train" in param.values[0]])
def test_target_is_what_the_model_has_to_write(record):
    segments = format_of(record).render_target(**arguments_of(record))
    learned = [segment.trainable for segment in segments]
    assert learned == sorted(learned), "the target comes last"
    assert text_of(segment for segment in segments if segment.trainable) == record["train"]["target"]
    prompt = respelled(record, record["train"]["prompt"])
    assert text_of(segment for segment in segments if not segment.trainable) == prompt


@pytest.mark.parametrize("record", [param for param in golden() if "train" in param.values[0]])
def test_spellings_of_the_golden_data_differ_as_listed(record):
    assert respelled(record, record["expected_text"]) == expected(record, "text")


@pytest.mark.parametrize("record", lines_of(VECTORS / "harmony_tools.jsonl"), ids=lambda record: record["id"])
def test_tools_are_declared_in_harmony_s_typescript(record):
    assert declare_functions([record["function"]]) == record["declaration"]


ROLES = st.lists(st.sampled_from(["system", "user", "user", "assistant"]), min_size=1, max_size=6)


@settings(deadline=None)
@given(roles=ROLES)
def test_deepseek_v3_follows_its_stock_template(roles):
    jinja2 = pytest.importorskip("jinja2")
    path = SHARED / "tokenizers" / "deepseek_v3" / "tokenizer_config.json"
    if not path.is_file():
        pytest.skip("the golden data folder ../shared is not on this machine")
    template = jinja2.Template(
        json.loads(path.read_bytes())["chat_template"], trim_blocks=True, lstrip_blocks=True
    )
    messages = [{"role": role, "content": f"{role} {index}"} for index, role in enumerate(roles)]
    official = template.render(
        {"messages": messages, "add_generation_prompt": True, "bos_token": "<｜begin▁of▁sentence｜>"}
    )
    rendered = DeepSeekFormat(variant="v3").render([Message.from_dict(message) for message in messages])
    assert text_of(rendered) == official


def test_deepseek_v3_closes_every_call_and_result():
    calls = (ToolCall("f", {"a": 1}), ToolCall("g", {}))
    messages = [
        Message("user", "Why?"),
        Message("assistant", "Wait.", tool_calls=calls),
        Message("tool", "1"),
        Message("tool", "2"),
    ]
    assert text_of(DeepSeekFormat(variant="v3").render(messages)) == (
        "<｜begin▁of▁sentence｜><｜User｜>Why?<｜Assistant｜>Wait.<｜tool▁calls▁begin｜>"
        '<｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜><｜end▁of▁sentence｜><｜tool▁outputs▁begin｜>"
        "<｜tool▁output▁begin｜>1<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>2<｜tool▁output▁end｜>"
        "<｜tool▁outputs▁end｜>"
    )
