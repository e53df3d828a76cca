"""The chat format of Qwen3: ChatML with `<think>` blocks and `<tool_call>` JSON.

Three kinds of models share one vocabulary: the hybrid models of April 2025 (arXiv:2505.09388, section 4.3),
and the 2507 models that always think (Thinking) or never (Instruct).

| thinking | hybrid | Thinking-2507 | Instruct-2507 |
|---|---|---|---|
| not set | the model thinks | always thinks | never thinks |
| off | an empty block in the prompt | error | as not set |
| on | as not set | as not set | error |
| low, medium, high | on, closed after a budget | on, closed after a budget | error |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from macmoe.chat.events import ToolCallEvent
from macmoe.chat.format import ChatFormat, Conversation, Tools
from macmoe.chat.messages import (
    Message,
    Segment,
    ToolCall,
    control,
    literal,
    to_json,
    with_neighbors,
)
from macmoe.chat.parser import BlockParser, BlockSyntax, Parser, Vocabulary
from macmoe.chat.payload import read_named_call

_OPEN, _CLOSE = "<think>", "</think>"
_EMPTY_BLOCK = "<think>\n\n</think>\n\n"
_ASSISTANT = "<|im_start|>assistant\n"
_OPENINGS: dict[str, dict[str | None, str]] = {
    "hybrid": {None: _ASSISTANT, "off": _ASSISTANT + _EMPTY_BLOCK, "on": _ASSISTANT},
    "thinking": {None: f"{_ASSISTANT}<think>\n", "on": f"{_ASSISTANT}<think>\n"},
    "instruct": {None: _ASSISTANT, "off": _ASSISTANT},
}
_MODELS = {"hybrid": "Qwen3", "thinking": "Qwen3 Thinking-2507", "instruct": "Qwen3 Instruct-2507"}
# Section 4.3 of the report, without the dot it prints after the tag; Qwen's documentation has none.
_CLOSING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking "
    "directly now.\n</think>\n\n"
)
_TOOLS_BEFORE = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_AFTER = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
_OPENS_BLOCK = re.compile(r"<\|im_start\|>assistant(\n|\\n)<think>")


@dataclass(frozen=True, kw_only=True)
class Qwen3Format(ChatFormat):
    """Qwen3: `variant` is "hybrid", "thinking" or "instruct"."""

    variant: str = "hybrid"

    required: ClassVar = ("<|im_start|>", "<|im_end|>")
    stops: ClassVar = ("<|im_end|>", "<|endoftext|>")
    starts: ClassVar = {_ASSISTANT: "auto", _OPEN: "thinking", _CLOSE: "answer"}

    @classmethod
    def for_model(cls, vocabulary: Vocabulary) -> Self:
        """Tell by the template: only hybrid ones have a switch, only Thinking ones open the block."""
        template = vocabulary.template
        if not template or "enable_thinking" in template:
            variant = "hybrid"
        else:
            variant = "thinking" if _OPENS_BLOCK.search(template) else "instruct"
        return replace(super().for_model(vocabulary), variant=variant)

    @property
    def model(self) -> str:
        """The name of the model."""
        return _MODELS[self.variant]

    @property
    def openings(self) -> Mapping[str | None, str]:
        """What the prompt ends with, by setting."""
        return _OPENINGS[self.variant]

    @property
    def closing(self) -> str:
        """The sentence of the technical report, then the closing tag."""
        return "" if self.variant == "instruct" else _CLOSING

    def parser(self, vocabulary: Vocabulary, start: str) -> Parser:
        """Return a parser that starts in the state thinking, answer or auto."""
        return BlockParser(vocabulary, _SYNTAX, start)

    def _turns(self, conversation: Conversation) -> list[Segment]:
        messages, segments = conversation.messages, []
        if conversation.tools:
            segments = _declaration(messages[0], conversation.tools)
            messages = messages[1:] if messages[0].instructs else messages
        last_query = _last_query(messages)
        for index, (before, message, after) in enumerate(with_neighbors(messages)):
            if message.role == "assistant":
                recent = index > last_query and (not after or _reasoning_and_content(message)[0])
                segments += self._assistant(message, block=bool(recent))
                segments.append(control("<|im_end|>\n" if after or conversation.ending != "open" else ""))
            elif message.role == "tool":
                segments += _tool_result(message, first=before != "tool", last=after != "tool")
            else:
                role = "system" if message.instructs else "user"
                segments += [
                    control(f"<|im_start|>{role}\n"),
                    literal(message.content),
                    control("<|im_end|>\n"),
                ]
        return segments

    def _target(self, answer: Message, opening: str) -> list[Segment]:
        return self._after(opening, [*self._assistant(answer, block=True), control("<|im_end|>")])

    def _apart(self, answer: Message) -> Message:
        if self.variant == "instruct":
            return answer
        reasoning, content = _reasoning_and_content(answer)
        return replace(answer, reasoning=reasoning, content=content)

    def _assistant(self, message: Message, *, block: bool) -> list[Segment]:
        """Write an assistant message up to its end token."""
        segments = [control(_ASSISTANT)]
        message = self._apart(message)
        content = message.content
        if block and self.variant != "instruct":
            content = content.lstrip("\n")
            reasoning = (message.reasoning or "").strip("\n")
            segments += [control("<think>\n"), literal(reasoning), control("\n</think>\n\n")]
        segments.append(literal(content))
        for index, call in enumerate(message.tool_calls):
            segments += _tool_call(call, newline=bool(content) or index > 0)
        return segments


def _declaration(first: Message, tools: Tools) -> list[Segment]:
    """Write the system turn that declares the tools; it holds a leading system message as well."""
    segments = [control("<|im_start|>system\n")]
    if first.instructs:
        segments += [literal(first.content), control("\n\n")]
    segments.append(control(_TOOLS_BEFORE))
    for tool in tools:
        segments += [control("\n"), literal(to_json(tool))]
    return [*segments, control(f"{_TOOLS_AFTER}<|im_end|>\n")]


def _tool_call(call: ToolCall, *, newline: bool) -> list[Segment]:
    before = "\n<tool_call>\n" if newline else "<tool_call>\n"
    return [
        control(f'{before}{{"name": "'),
        literal(call.name),
        control('", "arguments": '),
        literal(call.arguments_text),
        control("}\n</tool_call>"),
    ]


def _tool_result(message: Message, *, first: bool, last: bool) -> list[Segment]:
    """Write a result; consecutive ones share a user turn."""
    return [
        control("<|im_start|>user" if first else ""),
        control("\n<tool_response>\n"),
        literal(message.content),
        control("\n</tool_response>"),
        control("<|im_end|>\n" if last else ""),
    ]


def _last_query(messages: Sequence[Message]) -> int:
    """Return the index of the last user message that is not a tool result; without any, the last index."""
    for index in range(len(messages) - 1, -1, -1):
        content = messages[index].content
        is_result = content.startswith("<tool_response>") and content.endswith("</tool_response>")
        if messages[index].role == "user" and not is_result:
            return index
    return len(messages) - 1


def _reasoning_and_content(message: Message) -> tuple[str, str]:
    """Return the two parts of an answer; the reasoning may stand in the content, before `</think>`."""
    if message.reasoning is not None or _CLOSE not in message.content:
        return message.reasoning or "", message.content
    before, *_, content = message.content.split(_CLOSE)
    return before.rstrip("\n").split(_OPEN)[-1].lstrip("\n"), content.lstrip("\n")


def _read_call(text: str) -> ToolCallEvent | None:
    """Read `{"name": ..., "arguments": {...}}`, keeping the spelling of the arguments."""
    call = read_named_call(text)
    return None if call is None else ToolCallEvent(*call)


_SYNTAX = BlockSyntax(
    think=(_OPEN, _CLOSE),
    call=("<tool_call>", "</tool_call>"),
    inside_call=(),
    markup=(*Qwen3Format.stops, "<|im_start|>", "<tool_response>", "</tool_response>"),
    read_call=_read_call,
)
