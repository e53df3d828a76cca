"""Random answers made of what parsers could mistake: tags, control tokens, JSON; and ways to break them.

All choices come from one `random.Random`, so that hypothesis and `tests.bench.fuzz_parsers` share them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from macmoe.chat import ChatFormat, Message, ToolCall
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.gpt_oss import HarmonyFormat
from macmoe.chat.qwen3 import Qwen3Format
from macmoe.chat.qwen3_coder import Qwen3CoderFormat
from macmoe.tokenizer import Tokenizer
from tests.chat.records import comparable, merged, run
from tests.vocabularies import CONTROL_TOKENS, small

QUESTION = Message("user", "Why?")


@dataclass(frozen=True, kw_only=True)
class Writer:
    """A format with a vocabulary, and what has no exact form in it.

    Attributes:
        format: The format.
        vocabulary: Makes the tokenizer.
        trims: Whether newlines beside its tags are no text.
        before_calls: Channel of the text before a call.
        json_calls: Whether its calls are JSON, in whose strings tokens are text; without, answers have none.
    """

    format: ChatFormat
    vocabulary: Callable[[], Tokenizer]
    trims: bool = True
    before_calls: str = "answer"
    json_calls: bool = True

    @property
    def thinks(self) -> bool:
        """Whether an answer may have reasoning."""
        return "on" in self.format.settings


WRITERS = {
    **{
        f"qwen3-{variant}": Writer(format=Qwen3Format(variant=variant), vocabulary=lambda: small("qwen3"))
        for variant in ("hybrid", "thinking", "instruct")
    },
    "gpt_oss": Writer(
        format=HarmonyFormat(date=None),
        vocabulary=lambda: small("gpt_oss"),
        trims=False,
        before_calls="commentary",
    ),
    **{
        f"deepseek-{variant}": Writer(
            format=DeepSeekFormat(variant=variant), vocabulary=lambda: small("deepseek_v3")
        )
        for variant in ("v3", "r1", "v3.1")
    },
    "qwen3-coder": Writer(format=Qwen3CoderFormat(), vocabulary=lambda: small("qwen3"), json_calls=False),
    "deepseek-r1-0528": Writer(
        format=DeepSeekFormat(variant="r1-0528"), vocabulary=lambda: small("deepseek_v3")
    ),
}
TOKENS = [token for tokens in CONTROL_TOKENS.values() for token in tokens]
PIECES = [
    *TOKENS,
    *TOKENS,
    *("</thi", "<tool", "<function=f>", "</function>", "<parameter=a>", "</parameter>", "<|im_", "｜>"),
    *("\n", "\n\n", " ", "\t", "é😀", "\\", '"', "'", "{", "}", "[", "]", "```", "```json\n", ":", ","),
    *('{"name": "g", "arguments": {"b": 2}}', '<tool_call>\n{"name": "g"}\n</tool_call>', "\\n", "\\u00e9"),
    *("final", "analysis", "json", "functions.", "So it is.", "\u2028", "\x00", "\x7f"),
]


@dataclass(frozen=True)
class Sample:
    """What a model writes: ids of prompt and answer apart, and the events that they are."""

    prompt: list[Any]
    ids: list[int]
    events: list[dict[str, Any]]


def random_text(random: Random, *, trims: bool = False) -> str:
    """Return a text of tags, tokens and JSON with words that can be counted; never empty."""
    pieces = [
        f"w{random.randrange(1000)}" if random.random() < 0.25 else random.choice(PIECES)
        for _ in range(random.randrange(1, 9))
    ]
    text = "".join(pieces)
    return (text.strip("\n") if trims else text) or "w0"


def random_arguments(random: Random) -> dict[str, Any]:
    """Return the arguments of a call."""
    return {random_text(random): _random_value(random, 2) for _ in range(random.randrange(4))}


def _random_value(random: Random, depth: int) -> Any:
    kind = random.randrange(7 if depth else 5)
    if kind < 3:
        return random_text(random) if kind else ""
    if kind < 5:
        return random.choice([None, True, False, 0, -1, 2.5, 1e-7, 10**20])
    count = random.randrange(3)
    if kind == 5:
        return [_random_value(random, depth - 1) for _ in range(count)]
    return {random_text(random): _random_value(random, depth - 1) for _ in range(count)}


def random_call(random: Random) -> ToolCall:
    """Return a call whose arguments are spelled in one of the ways of models."""
    arguments = random_arguments(random)
    raw = random.choice(
        [
            None,
            json.dumps(arguments),
            json.dumps(arguments, ensure_ascii=False, separators=(",", ":")),
            json.dumps(arguments, ensure_ascii=False, indent=2),
        ]
    )
    return ToolCall(random.choice(["f", "get_weather", "mail.send", "a-b"]), arguments, raw=raw)


def random_answer(random: Random, writer: Writer) -> Message:
    """Return an answer that has an exact form in a format."""
    thinks = writer.thinks and random.random() < 0.6
    count = random.choice([0, 0, 1, 1, 2, 3]) if writer.json_calls else 0
    calls = tuple(random_call(random) for _ in range(count))
    content = "" if calls and random.random() < 0.5 else random_text(random, trims=writer.trims)
    if writer.trims and not thinks:
        # Templates find the reasoning by `</think>`, and a spelled-out `<think>` may open an answer.
        content = content.replace("</think>", "").strip("\n")
        content = f".{content}" if content.startswith("<") else content
    content = content or ("" if calls else "w0")
    reasoning = random_text(random, trims=writer.trims) if thinks else None
    return Message("assistant", content, reasoning=reasoning, tool_calls=calls)


def random_sample(random: Random, writer: Writer) -> Sample:
    """Return what a model writes in a format; tokens in the strings of its calls are real ones at times."""
    answer = random_answer(random, writer)
    segments = writer.format.render_target([QUESTION, answer])
    target = [segment for segment in segments if segment.trainable]
    if random.random() < 0.5:
        payloads = {call.arguments_text for call in answer.tool_calls}
        target = [replace(segment, control=segment.control or segment.text in payloads) for segment in target]
    said = writer.before_calls if answer.tool_calls else "answer"
    texts = [("thinking", answer.reasoning), (said, answer.content)]
    return Sample(
        prompt=[segment for segment in segments if not segment.trainable],
        ids=writer.vocabulary().encode_segments(target),
        events=[
            *({"channel": channel, "text": text} for channel, text in texts if text),
            *(
                {"channel": "tool_call", "name": call.name, "arguments": call.arguments}
                for call in answer.tool_calls
            ),
        ],
    )


def read(writer: Writer, prompt: Sequence[Any], ids: Sequence[int]) -> list[Any]:
    """Return the events that a parser makes of ids after a prompt."""
    fmt = writer.format
    return run(fmt.parser(writer.vocabulary(), fmt.start_of(prompt)), list(ids))


def check_exact(random: Random, writer: Writer) -> None:
    """Fail where a well-formed answer does not come back as it was."""
    sample = random_sample(random, writer)
    assert merged(read(writer, sample.prompt, sample.ids)) == sample.events


# Headers of GPT-OSS with words, tokens or spaces missing, by what they should be.
JOINED_TEXTS = {
    "thinking": (
        "<|channel|>analysis{}",
        "<|channel|>Analysis {}",
        "<|channel|>analysis{}<|message|>",
        "analysis<|message|>{}",
        "assistant<|channel|>analysis<|message|>{}",
        "<|start|>assistantanalysis<|message|>{}",
        "<|start|>assistantanalysis{}",
    ),
    "answer": (
        "<|channel|>final{}",
        "<|channel|>final {}",
        "<|channel|>final{}<|message|>",
        "<|channel|>final<|constrain|>json<|message|>{}",
        "<|start|>assistantfinal<|message|>{}",
        "<|start|>assistant{}",
    ),
}
JOINED_CALLS = (
    "<|channel|>commentary to=functions.f{}",
    "<|channel|>commentary to=functions.f json{}",
    "<|channel|>commentaryto=functions.f<|constrain|>json<|message|>{}",
    "<|channel|>commentary to=functions.f <|constrain|>json{}",
    "<|channel|>commentary to=functions.f<|message|>json{}",
    "<|channel|>commentary to=functions.f{}<|message|>",
    "<|channel|>analysis to=f{}",
    " to=functions.f{}",
    "to=functions.f<|channel|>commentary{}",
    "<|start|>assistantto=functions.f<|channel|>commentary{}",
)


def check_joined(random: Random, writer: Writer) -> None:
    """Fail where a header of GPT-OSS lacks a space or a token, and a word is lost or in the wrong place."""
    if not isinstance(writer.format, HarmonyFormat):
        return
    tokenizer, ids, events = writer.vocabulary(), [], []
    for _ in range(random.randrange(1, 4)):
        channel = random.choice([*JOINED_TEXTS, "tool_call"])
        if channel == "tool_call":
            arguments = random_arguments(random)
            form, text, stop = random.choice(JOINED_CALLS), json.dumps(arguments), "<|call|>"
            events.append({"channel": channel, "name": "f", "arguments": arguments})
        else:
            text = f"W{random_text(random)}."
            form, stop = random.choice(JOINED_TEXTS[channel]), random.choice(["<|end|>", "<|return|>"])
            events.append({"channel": channel, "text": text})
        before, after = form.split("{}")
        ids += tokenizer.encode(before, control=True) + tokenizer.encode(text)
        ids += tokenizer.encode(after + stop, control=True)
    prompt = writer.format.render([QUESTION])
    assert comparable(merged(read(writer, prompt, ids)), malformed=False) == comparable(
        events, malformed=False
    )
