"""What all formats have in common: settings, states, stop tokens, and text that stays text."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmoe.chat import EFFORT_BUDGETS, FORMATS, Message, ToolCall
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.gpt_oss import HarmonyFormat
from macmoe.chat.qwen3 import Qwen3Format
from macmoe.errors import ChatFormatError
from macmoe.tokenizer import Tokenizer
from tests.chat.records import merged, run
from tests.conftest import ROOT
from tests.vocabularies import CONTROL_TOKENS, real, small

QUESTION = Message("user", "Why?")
ANSWER = Message("assistant", "So.")
TOOL = {"type": "function", "function": {"name": "f", "description": "", "parameters": {"type": "object"}}}
QWEN, DEEPSEEK, HARMONY = "<|im_start|>assistant\n", "<｜Assistant｜>", "<|start|>assistant"
FINAL = f"{HARMONY}<|channel|>final<|message|>"
# What each setting puts at the end of the prompt, and the state in which that leaves the model; None: error.
PROMPTS = {
    ("qwen3", "hybrid"): {
        None: (QWEN, "auto"),
        "off": (f"{QWEN}<think>\n\n</think>\n\n", "answer"),
        "on": (QWEN, "auto"),
        "low": (QWEN, "auto"),
    },
    ("qwen3", "thinking"): {
        None: (f"{QWEN}<think>\n", "thinking"),
        "off": None,
        "high": (f"{QWEN}<think>\n", "thinking"),
    },
    ("qwen3", "instruct"): {None: (QWEN, "auto"), "off": (QWEN, "auto"), "on": None, "low": None},
    ("gpt_oss", ""): {
        None: (HARMONY, "header"),
        "off": (FINAL, "answer"),
        "on": (HARMONY, "header"),
        "high": (HARMONY, "header"),
    },
    ("deepseek_v3", "v3.1"): {
        None: (f"{DEEPSEEK}</think>", "answer"),
        "off": (f"{DEEPSEEK}</think>", "answer"),
        "on": (f"{DEEPSEEK}<think>", "thinking"),
        "medium": (f"{DEEPSEEK}<think>", "thinking"),
    },
    ("deepseek_v3", "r1"): {
        None: (DEEPSEEK, "auto"),
        "off": None,
        "on": (f"{DEEPSEEK}<think>\n", "thinking"),
    },
    ("deepseek_v3", "r1-2025-02"): {
        None: (f"{DEEPSEEK}<think>\n", "thinking"),
        "off": None,
        "high": (f"{DEEPSEEK}<think>\n", "thinking"),
    },
    ("deepseek_v3", "r1-0528"): {
        None: (DEEPSEEK, "auto"),
        "off": None,
        "on": (DEEPSEEK, "auto"),
        "low": (DEEPSEEK, "auto"),
    },
    ("deepseek_v3", "v3"): {None: (DEEPSEEK, "auto"), "off": (DEEPSEEK, "auto"), "on": None},
}
MODELS = [pytest.param(*model, id="-".join(filter(None, model))) for model in PROMPTS]


def format_of(family, variant):
    return replace(FORMATS[family](), variant=variant)


def text_of(segments) -> str:
    return "".join(segment.text for segment in segments)


def read(fmt, segments, ids):
    """Parse what the model wrote after a rendering."""
    tokenizer = small(next(family for family, kind in FORMATS.items() if isinstance(fmt, kind)))
    return merged(run(fmt.parser(tokenizer, fmt.start_of(segments)), ids))


@pytest.mark.parametrize(("family", "variant"), MODELS)
def test_thinking_is_set_in_the_prompt_or_refused(family, variant):
    fmt = format_of(family, variant)
    for setting, prompt in PROMPTS[family, variant].items():
        if prompt is None:
            with pytest.raises(ChatFormatError, match=f"{fmt.model} has no thinking='{setting}'; it accepts"):
                fmt.render([QUESTION], thinking=setting)
            continue
        segments = fmt.render([QUESTION], thinking=setting)
        assert re.search(
            r"Why\?(<\|im_end\|>\n|<\|end\|>)?" + re.escape(prompt[0]) + r"\Z", text_of(segments)
        )
        assert fmt.start_of(segments) == prompt[1]


@pytest.mark.parametrize(("family", "variant"), MODELS)
def test_level_means_a_budget_where_the_model_has_no_levels(family, variant):
    fmt = format_of(family, variant)
    levels = {level: fmt.budget(level) for level in EFFORT_BUDGETS if level in fmt.settings}
    assert levels in ({}, EFFORT_BUDGETS, dict.fromkeys(EFFORT_BUDGETS))
    assert (levels == dict.fromkeys(EFFORT_BUDGETS)) == (family == "gpt_oss")
    assert fmt.budget(None) is fmt.budget("on") is None


def test_harmony_says_the_effort_and_the_date():
    rendered = {
        setting: text_of(HarmonyFormat(date="2025-08-05").render([QUESTION], thinking=setting))
        for setting in (None, "off", "on", "low", "medium", "high")
    }
    efforts = {setting: re.findall(r"Reasoning: (\w+)", text) for setting, text in rendered.items()}
    assert efforts == {None: ["medium"], "off": ["low"], "on": ["medium"], "low": ["low"],
                       "medium": ["medium"], "high": ["high"]}  # fmt: skip
    assert all("\nCurrent date: 2025-08-05\n" in text for text in rendered.values())
    assert f"Current date: {time.strftime('%Y-')}" in text_of(HarmonyFormat().render([QUESTION]))
    assert "Current date" not in text_of(HarmonyFormat(date=None).render([QUESTION]))


@pytest.mark.parametrize(("family", "variant"), MODELS)
def test_open_answer_is_continued_as_answer(family, variant):
    fmt = format_of(family, variant)
    segments = fmt.render([QUESTION, Message("assistant", "Because")], ending="open")
    assert text_of(segments).endswith("Because")
    assert read(fmt, segments, small(family).encode(" it is.")) == [{"channel": "answer", "text": " it is."}]


@pytest.mark.parametrize(("family", "variant"), MODELS)
def test_closing_ends_the_thinking(family, variant):
    fmt = format_of(family, variant)
    closing = fmt.close_thinking()
    if "on" not in fmt.settings:
        assert closing == []
        return
    tokenizer = small(family)
    prompt = fmt.render([QUESTION], thinking="on")
    begun = {"auto": "<think>", "thinking": "", "header": "<|channel|>analysis<|message|>"}[
        fmt.start_of(prompt)
    ]
    parser = fmt.parser(tokenizer, fmt.start_of(prompt))
    for token_id in tokenizer.encode(f"{begun}hm", control=True):
        parser.feed(token_id)
    assert parser.thinking
    for token_id in tokenizer.encode_segments(closing):
        parser.feed(token_id)
    assert not parser.thinking
    events = parser.feed(tokenizer.encode("x")[0])
    assert merged(events) == [{"channel": "answer", "text": "x"}]


def test_stop_tokens_are_those_of_the_published_vocabularies():
    ids = {name: FORMATS[name.removesuffix("1")]().stop_ids(real(name)) for name in ("qwen3", "gpt_oss")}
    ids |= {name: DeepSeekFormat().stop_ids(real(name)) for name in ("deepseek_v3", "deepseek_v31")}
    assert ids == {
        "qwen3": {151645, 151643},
        "gpt_oss": {200002, 200012, 199999},
        "deepseek_v3": {1},
        "deepseek_v31": {1},
    }


def test_stop_tokens_are_found_by_name_in_any_vocabulary():
    for family, kind in FORMATS.items():
        tokenizer = small(family)
        assert {tokenizer.decode([token_id]) for token_id in kind().stop_ids(tokenizer)} == set(kind.stops)


@dataclass
class Vocabulary:
    """A vocabulary that is only asked which tokens it has."""

    tokens: set[str]
    template: str = ""

    def token_id(self, token):
        return 0 if token in self.tokens else None

    def detokenizer(self):
        raise NotImplementedError


DEEPSEEK_V3 = set(CONTROL_TOKENS["deepseek_v3"]) - {"<think>", "</think>"} | {"<｜place▁holder▁no▁796｜>"}
THINKING_TEMPLATE = r"{{- '<|im_start|>assistant\n<think>\n' }}"


@pytest.mark.parametrize(
    ("family", "tokens", "template", "variant"),
    [
        ("qwen3", set(CONTROL_TOKENS["qwen3"]), "", "hybrid"),
        ("qwen3", set(CONTROL_TOKENS["qwen3"]), "<think> enable_thinking", "hybrid"),
        ("qwen3", set(CONTROL_TOKENS["qwen3"]), THINKING_TEMPLATE, "thinking"),
        ("qwen3", set(CONTROL_TOKENS["qwen3"]), r"{{- '<|im_start|>assistant\n' }}", "instruct"),
        ("gpt_oss", set(CONTROL_TOKENS["gpt_oss"]), "", ""),
        ("deepseek_v3", DEEPSEEK_V3, "", "v3"),
        ("deepseek_v3", DEEPSEEK_V3 | {"<think>"}, "", "r1"),
        ("deepseek_v3", set(CONTROL_TOKENS["deepseek_v3"]), "", "v3.1"),
    ],
)
def test_variant_is_told_by_vocabulary_and_template(family, tokens, template, variant):
    assert FORMATS[family].for_model(Vocabulary(tokens, template)).variant == variant


def test_variant_of_published_vocabularies():
    assert DeepSeekFormat.for_model(real("deepseek_v3")).variant == "v3"
    assert DeepSeekFormat.for_model(real("deepseek_v31")).variant == "v3.1"


@pytest.mark.parametrize(
    ("family", "variant"), [("qwen3", "hybrid"), ("gpt_oss", ""), ("deepseek_v3", "v3.1")]
)
def test_built_in_model_has_the_control_tokens_of_its_format(family, variant):
    tokenizer = Tokenizer.from_folder(ROOT / "macmoe" / "assets" / family)
    assert FORMATS[family].for_model(tokenizer).variant == variant
    assert all(tokenizer.token_id(token) is not None for token in CONTROL_TOKENS[family])


def test_vocabulary_of_another_family_is_refused():
    with pytest.raises(ChatFormatError, match=r"no token <\|im_start\|>"):
        Qwen3Format.for_model(small("gpt_oss"))


@pytest.mark.parametrize(("family", "variant"), MODELS)
@settings(deadline=None)
@given(data=st.data())
def test_text_from_outside_adds_no_control_token(family, variant, data):
    tokens = list(CONTROL_TOKENS[family])
    hostile = st.lists(st.sampled_from(tokens) | st.text(max_size=3), max_size=6).map(
        lambda parts: f".{''.join(parts)}".replace("</think>", "")
    )

    def conversation(text):
        call = ToolCall(text(), {"a": text()}, id="1")
        answer = Message("assistant", text(), reasoning=text(), tool_calls=(call,))
        messages = [Message("system", text()), Message("user", text()), answer]
        messages += [Message("tool", text(), tool_call_id="1"), Message("user", text())]
        tool = {
            "type": "function",
            "function": {"name": "f", "description": text(), "parameters": {"x": text()}},
        }
        return {"messages": messages, "tools": [tool]}

    fmt = replace(FORMATS[family](), variant=variant)
    tokenizer = small(family)
    controls = {tokenizer.token_id(token) for token in tokens}

    def control_ids(text):
        ids = tokenizer.encode_segments(fmt.render(**conversation(text)))
        return [token_id for token_id in ids if token_id in controls]

    assert control_ids(lambda: data.draw(hostile)) == control_ids(lambda: "x")


WORDS = st.lists(st.sampled_from(["so", "it", "is", "42", "é😀", "{", "\n\n"]), min_size=1, max_size=5).map(
    lambda words: f"a {' '.join(words)} z"
)
CALLS = st.lists(
    st.builds(ToolCall, st.sampled_from(["f", "get.x"]), st.dictionaries(st.sampled_from(["a", "b"]), WORDS)),
    max_size=2,
)


@pytest.mark.parametrize(("family", "variant"), MODELS)
@settings(deadline=None)
@given(reasoning=st.none() | WORDS, content=WORDS, calls=CALLS)
def test_parser_reads_from_a_target_what_was_rendered(family, variant, reasoning, content, calls):
    fmt = format_of(family, variant)
    if "on" not in fmt.settings:
        reasoning = None
    answer = Message("assistant", content, reasoning=reasoning, tool_calls=tuple(calls))
    segments = fmt.render_target([QUESTION, answer])
    prompt = [segment for segment in segments if not segment.trainable]
    ids = small(family).encode_segments([segment for segment in segments if segment.trainable])
    said = "commentary" if calls and family == "gpt_oss" else "answer"
    assert read(fmt, prompt, ids) == [
        *([{"channel": "thinking", "text": reasoning}] if reasoning else []),
        {"channel": said, "text": content},
        *({"channel": "tool_call", "name": call.name, "arguments": call.arguments} for call in calls),
    ]
    assert ids[-1] in fmt.stop_ids(small(family))


@pytest.mark.parametrize(("family", "variant"), [key for key in PROMPTS if key[0] != "gpt_oss"])
@pytest.mark.parametrize("content", ["<think>\nHm.\n</think>\n\nSo.", "Hm.</think>So."])
def test_target_takes_the_reasoning_from_the_content_where_the_model_has_tags(family, variant, content):
    fmt = format_of(family, variant)
    answer = Message("assistant", content)
    if "on" not in fmt.settings:
        assert fmt.render_target([QUESTION, answer])[-2].text == content
        return
    apart = replace(ANSWER, reasoning="Hm.")
    for thinking in (None, "on"):
        target = fmt.render_target([QUESTION, answer], thinking=thinking)
        assert target == fmt.render_target([QUESTION, apart], thinking=thinking)


def test_newlines_around_the_reasoning_of_r1_are_those_of_its_tags():
    """As Qwen3's template has it; the tags of V3.1 have none, and its golden targets keep what is there."""
    answer = Message("assistant", "\n\nSo.", reasoning="\nHm.\n")
    target = format_of("deepseek_v3", "r1").render_target([QUESTION, answer])
    assert text_of(segment for segment in target if segment.trainable) == (
        "<think>\nHm.\n</think>\n\nSo.<｜end▁of▁sentence｜>"
    )


def test_gpt_oss_has_no_tools_where_its_prompt_begins_the_answer():
    tool = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
    with pytest.raises(ChatFormatError, match=r"cannot call tools with thinking='off'.*thinking='low'"):
        HarmonyFormat().render([QUESTION], tools=[tool], thinking="off")
    assert "functions" in text_of(HarmonyFormat().render([QUESTION], tools=[tool], thinking="low"))


def test_target_follows_the_mode_that_is_asked_for():
    empty_block = Qwen3Format().render_target([QUESTION, ANSWER], thinking="on")
    assert [segment.text for segment in empty_block if segment.trainable] == [
        "<think>\n\n</think>\n\n",
        "So.",
        "<|im_end|>",
    ]
    without_header = HarmonyFormat().render_target([QUESTION, ANSWER], thinking="off")
    assert text_of(segment for segment in without_header if segment.trainable) == "So.<|return|>"


@pytest.mark.parametrize(
    ("family", "variant", "thinking"),
    [
        ("qwen3", "hybrid", "off"),
        ("gpt_oss", "", "off"),
        ("deepseek_v3", "v3.1", "off"),
        ("qwen3", "instruct", None),
        ("deepseek_v3", "v3", "off"),
    ],
)
def test_reasoning_that_the_mode_cannot_write_is_refused(family, variant, thinking):
    answer = Message("assistant", "So.", reasoning="Hm.")
    with pytest.raises(ChatFormatError, match=r"cannot follow|has no thinking='on'"):
        format_of(family, variant).render_target([QUESTION, answer], thinking=thinking)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"messages": []}, "no messages"),
        ({"messages": [QUESTION], "ending": "closed"}, "from the user"),
        ({"messages": [QUESTION], "ending": "open"}, "from the user"),
        (
            {"messages": [replace(ANSWER, tool_calls=(ToolCall("f", {}),))], "ending": "open"},
            "cannot be continued",
        ),
        ({"messages": [QUESTION], "thinking": "maximum"}, "has no thinking='maximum'"),
        ({"messages": [QUESTION], "tools": [{"name": "f"}]}, "a tool is declared as"),
        (
            {"messages": [QUESTION], "tools": [{**TOOL, "function": {"name": "f", "parameters": []}}]},
            "declared as",
        ),
        ({"messages": [QUESTION], "tools": [{**TOOL, "function": {"name": "a b"}}]}, "name of a tool"),
    ],
)
@pytest.mark.parametrize("family", FORMATS)
def test_what_no_format_can_render_is_refused(family, arguments, message):
    with pytest.raises(ChatFormatError, match=message) as failure:
        FORMATS[family]().render(**arguments)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("messages", [[], [QUESTION]])
def test_target_needs_an_answer(messages):
    with pytest.raises(ChatFormatError, match="assistant's answer"):
        Qwen3Format().render_target(messages)


def test_harmony_names_the_tool_of_a_result_or_refuses():
    call = Message("assistant", "", tool_calls=(ToolCall("f", {}, id="1"), ToolCall("g", {}, id="2")))
    by_id = HarmonyFormat().render([QUESTION, call, Message("tool", "ok", tool_call_id="2")])
    assert "<|start|>functions.g to=assistant<|channel|>commentary<|message|>ok<|end|>" in text_of(by_id)
    with pytest.raises(ChatFormatError, match="no tool call has the id '3'"):
        HarmonyFormat().render([QUESTION, call, Message("tool", "ok", tool_call_id="3")])


def test_deeply_nested_tool_parameters_are_refused():
    parameters = {"type": "object", "properties": {}}
    for _ in range(3000):
        parameters = {"type": "object", "properties": {"x": parameters}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    with pytest.raises(ChatFormatError, match="nested too deeply"):
        HarmonyFormat().render([QUESTION], tools=[tool])
