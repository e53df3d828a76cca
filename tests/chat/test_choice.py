"""Which chat format a checkpoint gets, and when it is told that its template is none that is known."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass

import pytest

from macmoe.chat import Message, format_for
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.gpt_oss import HarmonyFormat
from macmoe.chat.qwen3 import Qwen3Format
from macmoe.chat.qwen3_coder import Qwen3CoderFormat
from macmoe.chat.templates import without_comments
from macmoe.errors import ChatFormatError
from macmoe.tokenizer import Tokenizer
from tests.conftest import ROOT, SHARED
from tests.vocabularies import CONTROL_TOKENS

QWEN, GPT, DEEPSEEK = (set(CONTROL_TOKENS[family]) for family in ("qwen3", "gpt_oss", "deepseek_v3"))
R1 = DEEPSEEK | {"<｜place▁holder▁no▁796｜>"}
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"
SWITCH = "{% if enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
CODER = r"{{- '\n<tool_call>\n<function=' + tool_call.name + '>\n' }}"
HARMONY = (
    "{{- '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\\n' }}"
    "{{- '# Valid channels: analysis, commentary, final.<|end|>' }}"
    "{{- raise_exception('There is no such thing as a role of that kind') }}"
    "{{- '<|start|>assistant<|channel|>' }}"
)
R1_TURNS = (
    "{{bos_token}}{{'<｜User｜>' + message['content']}}{% set content = content.split('</think>')[-1] %}"
    "{{'<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}"
)
R1_0528 = "{{'<｜User｜>' + content + '<｜Assistant｜>'}}{% set content = content.split('</think>')[-1] %}"
V31 = (
    "{{'<｜User｜>' + message['content']}}"
    "{% if thinking %}{{'<｜Assistant｜><think>'}}{% else %}{{'<｜Assistant｜></think>'}}{% endif %}"
)


@dataclass
class Vocabulary:
    """A vocabulary that is only asked which tokens it has."""

    tokens: set[str]
    template: str = ""

    def token_id(self, token):
        return 0 if token in self.tokens else None

    def detokenizer(self):
        raise NotImplementedError


KNOWN = {
    "no template": ("qwen3", QWEN, "", Qwen3Format(variant="hybrid")),
    "hybrid": ("qwen3", QWEN, TURNS + PROMPT + SWITCH, Qwen3Format(variant="hybrid")),
    "edited": (
        "qwen3",
        QWEN,
        "{# of Foo & Co. #}" + (TURNS + PROMPT).replace("\n", "  \n"),
        Qwen3Format(variant="instruct"),
    ),
    "opens the block": (
        "qwen3",
        QWEN,
        TURNS + PROMPT.replace("assistant\\n", "assistant\\n<think>\\n"),
        Qwen3Format(variant="thinking"),
    ),
    "opens the block apart": (
        "qwen3",
        QWEN,
        "{{- '</think>' }}" + TURNS + PROMPT + "{{- '<think>\\n' }}",
        Qwen3Format(variant="thinking"),
    ),
    "harmony": ("gpt_oss", GPT, HARMONY, HarmonyFormat()),
    "r1 of January": ("deepseek_v3", R1, R1_TURNS + "{{'<｜Assistant｜>'}}", DeepSeekFormat(variant="r1")),
    "r1 of February": (
        "deepseek_v3",
        R1,
        R1_TURNS + "{{'<｜Assistant｜><think>\\n'}}",
        DeepSeekFormat(variant="r1-2025-02"),
    ),
    "r1 of May": ("deepseek_v3", R1, R1_0528, DeepSeekFormat(variant="r1-0528")),
    "v3.1": ("deepseek_v3", DEEPSEEK, V31, DeepSeekFormat(variant="v3.1")),
    "r1 in a Qwen3": ("qwen3", DEEPSEEK, R1_0528, DeepSeekFormat(variant="r1-0528")),
    "r1 in a Qwen3 with ChatML, too": ("qwen3", QWEN | DEEPSEEK, R1_0528, DeepSeekFormat(variant="r1-0528")),
    "r1 in a Qwen3 without a template": ("qwen3", DEEPSEEK, "", DeepSeekFormat(variant="r1-0528")),
    "ChatML in a GPT-OSS": ("gpt_oss", GPT | QWEN, TURNS + PROMPT, Qwen3Format(variant="instruct")),
}


@pytest.mark.parametrize(("family", "tokens", "template", "expected"), KNOWN.values(), ids=KNOWN)
def test_format_follows_tokenizer_and_template(family, tokens, template, expected, caplog):
    assert format_for(family, Vocabulary(tokens, template)) == expected
    assert not caplog.records


UNKNOWN = {
    "a system text of its own": (
        "qwen3",
        QWEN,
        TURNS + "{{- '<|im_start|>system\\nYou are Foo, made by Bar.' }}" + PROMPT + SWITCH,
        "Qwen3 (hybrid)",
    ),
    "one in Chinese": (
        "qwen3",
        QWEN,
        TURNS + "<|im_start|>system\n你是一个助手" + PROMPT,
        "Qwen3 Instruct-2507 (instruct)",
    ),
    "other tags": ("qwen3", QWEN, TURNS + "<reasoning>" + PROMPT, "Qwen3 Instruct-2507 (instruct)"),
    "no ChatML": ("qwen3", QWEN, "[INST] {{ messages }} [/INST]", "Qwen3 Instruct-2507 (instruct)"),
    "calls as XML": ("qwen3", QWEN, TURNS + "<function=NAME>" + PROMPT, "Qwen3-Coder (2025-08)"),
    "another identity": ("gpt_oss", GPT, HARMONY.replace("ChatGPT", "FooGPT"), "GPT-OSS"),
    "tags of others": ("deepseek_v3", DEEPSEEK, V31 + "<|im_start|>", "DeepSeek-V3.1 (v3.1)"),
    "sentences": ("deepseek_v3", DEEPSEEK, V31 + "{{ 'Answer as a pirate.' }}", "DeepSeek-V3.1 (v3.1)"),
}


@pytest.mark.parametrize(("family", "tokens", "template", "taken"), UNKNOWN.values(), ids=UNKNOWN)
def test_unknown_template_is_said_once_with_the_variant_taken(family, tokens, template, taken, caplog):
    format_for(family, Vocabulary(tokens, template))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"prompts are written as for {taken}, which may differ" in record.getMessage()


def published(path, key=None):
    """Return a template of the golden data, or skip the test."""
    if not (SHARED / path).is_file():
        pytest.skip("the golden data folder ../shared is not on this machine")
    text = (SHARED / path).read_text(encoding="utf-8")
    return json.loads(text)[key] if key else text


PUBLISHED = {
    "tokenizers/qwen3/tokenizer_config.json": ("qwen3", QWEN, Qwen3Format()),
    "real_configs/20_qwen3_1_7b_tf457/tokenizer_config.json": ("qwen3", QWEN, Qwen3Format()),
    "real_configs/28_rtp_qwen3_coder_tok/tokenizer_config.json": (
        "qwen3",
        QWEN,
        Qwen3CoderFormat(variant="2025-07"),
    ),
    "golden/templates/qwen3_coder_2025-07.jinja": ("qwen3", QWEN, Qwen3CoderFormat(variant="2025-07")),
    "golden/templates/qwen3_coder_2025-08.jinja": ("qwen3", QWEN, Qwen3CoderFormat(variant="2025-08")),
    "golden/templates/r1_qwen3_0528.jinja": ("qwen3", DEEPSEEK, DeepSeekFormat(variant="r1-0528")),
    "tokenizers/deepseek_v3/tokenizer_config.json": (
        "deepseek_v3",
        DEEPSEEK - {"<think>", "</think>"},
        DeepSeekFormat(variant="v3"),
    ),
}


@pytest.mark.parametrize("path", PUBLISHED)
def test_published_template_is_known_also_with_edits_that_write_the_same(path, caplog):
    family, tokens, expected = PUBLISHED[path]
    template = published(path, "chat_template" if path.endswith(".json") else None)
    guarded = template.replace("message.content", "(message.content if message.content else '')")
    spaced = re.sub(r"\n[ ]+", "\n\n", template)
    commented = "{# Copyright of somebody who mended it. #}" + template + "{#- enable_thinking <function= -#}"
    for text in (template, guarded, spaced, commented):
        assert format_for(family, Vocabulary(tokens, text)) == expected
    assert not caplog.records
    format_for(family, Vocabulary(tokens, template + "{{ 'You are a helpful assistant.' }}"))
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests" / "assets" / "hub").iterdir()), ids=lambda path: path.name
)
def test_checkpoints_of_the_tests_are_known(path, caplog):
    format_for(path.name, Tokenizer.from_folder(path))
    assert not caplog.records


def test_vocabulary_of_no_format_is_refused_in_the_name_of_the_family():
    with pytest.raises(ChatFormatError, match=r"no token <\|im_start\|>"):
        format_for("qwen3", Vocabulary({"<s>"}))


@pytest.mark.parametrize("text", ["{{ '" * 999, '{% "' + "a'" * 999, "{#" * 999, "{{" * 999, "<" * 9999])
def test_broken_template_is_read_without_an_error(text):
    assert format_for("qwen3", Vocabulary(QWEN, text)).variant == "instruct"
    assert without_comments(text) == text


def test_a_user_turn_of_r1_0528_ends_with_the_header_of_an_answer_that_may_be_missing():
    turns = [Message("user", "A"), Message("user", "B"), Message("assistant", "C"), Message("assistant", "D")]
    rendered = "".join(segment.text for segment in DeepSeekFormat(variant="r1-0528").render(turns))
    assert rendered == (
        "<｜begin▁of▁sentence｜><｜User｜>A<｜Assistant｜><｜User｜>B<｜Assistant｜>C<｜end▁of▁sentence｜>"
        "D<｜end▁of▁sentence｜><｜Assistant｜>"
    )
