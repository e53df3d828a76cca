"""The chat formats of DeepSeek-V3 (December 2024, 0324), R1 and V3.1.

They share a layout without newlines, and differ in the thinking and in the spelling of tool calls. V3's
published template never closes a single call; here every call is closed.

| thinking | V3.1 | R1 | V3 |
|---|---|---|---|
| not set | as off | always thinks | never thinks |
| off | `</think>` in the prompt | error | as not set |
| on | `<think>` in the prompt | `<think>` and a newline in the prompt | error |
| low, medium, high | on, closed after a budget | on, closed after a budget | error |

After a tool result no tag can open a block: V3.1 then answers without thinking, whatever is set.
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
from macmoe.chat.payload import read_payload

_BEGIN, _END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
_USER, _ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
_OPEN, _CLOSE = "<think>", "</think>"
_CALLS, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
_OUTPUTS, _OUTPUTS_END = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
_OUTPUT, _OUTPUT_END = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
# V3.1 gave this id to a search token; R1 and V3 still have the placeholder.
_PLACEHOLDER = "<｜place▁holder▁no▁796｜>"
_CHAINING = {"": "chain them directly without separators or spaces", "\n": "begin each one on a new line"}
# Name and fence of V3's calls; V3.1 models sometimes write the fence as well.
_TYPE = re.compile(r"\s*\w*\s*")
_FENCED = re.compile(r"(?P<name>[\w.-]*)\s*```(?:json)?\n(?P<arguments>.*?)(?:\n?```)?", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Style:
    """How one model of the family writes.

    Attributes:
        model: Its name.
        openings: What the prompt ends with, by setting of `thinking`.
        thought: What stands before and after the reasoning of an answer.
        cut: How many `</think>` cut off the content of an earlier answer before them (-1: all).
        call: What stands before, between and after name and arguments of a call.
        calls_apart: What stands between two calls.
        outputs: What stands before, between and after the results of a turn.
    """

    model: str
    openings: dict[str | None, str]
    thought: tuple[str, str]
    cut: int
    call: tuple[str, str, str]
    calls_apart: str
    outputs: tuple[str, str, str]


_V3 = _Style(
    model="DeepSeek-V3",
    openings={None: _ASSISTANT, "off": _ASSISTANT},
    thought=("", ""),
    cut=0,
    call=(f"{_CALL}function{_SEPARATOR}", "\n```json\n", f"\n```{_CALL_END}"),
    calls_apart="\n",
    outputs=(_OUTPUTS, "\n", _OUTPUTS_END),
)
_STYLES = {
    "v3": _V3,
    "r1": _Style(
        model="DeepSeek-R1",
        openings={None: _ASSISTANT, "on": f"{_ASSISTANT}{_OPEN}\n"},
        thought=(f"{_OPEN}\n", f"\n{_CLOSE}\n\n"),
        cut=-1,
        call=_V3.call,
        calls_apart=_V3.calls_apart,
        outputs=_V3.outputs,
    ),
    "v3.1": _Style(
        model="DeepSeek-V3.1",
        openings={None: _ASSISTANT + _CLOSE, "off": _ASSISTANT + _CLOSE, "on": _ASSISTANT + _OPEN},
        thought=(_OPEN, _CLOSE),
        cut=1,
        call=(_CALL, _SEPARATOR, _CALL_END),
        calls_apart="",
        outputs=("", "", ""),
    ),
}


@dataclass(frozen=True, kw_only=True)
class DeepSeekFormat(ChatFormat):
    """DeepSeek: `variant` is "v3", "r1" or "v3.1"."""

    variant: str = "v3.1"

    required: ClassVar = (_BEGIN, _END, _USER, _ASSISTANT)
    stops: ClassVar = (_END,)
    starts: ClassVar = {
        _ASSISTANT: "auto",
        _OPEN: "thinking",
        _CLOSE: "answer",
        _OUTPUT_END: "answer",
        _OUTPUTS_END: "answer",
    }

    @classmethod
    def for_model(cls, vocabulary: Vocabulary) -> Self:
        """Tell by the vocabulary: V3 has no `<think>`, V3.1 renamed a placeholder that R1 has."""
        if vocabulary.token_id(_OPEN) is None:
            variant = "v3"
        else:
            variant = "v3.1" if vocabulary.token_id(_PLACEHOLDER) is None else "r1"
        return replace(super().for_model(vocabulary), variant=variant)

    @property
    def _style(self) -> _Style:
        return _STYLES[self.variant]

    @property
    def model(self) -> str:
        """The name of the model."""
        return self._style.model

    @property
    def openings(self) -> Mapping[str | None, str]:
        """What the prompt ends with, by setting."""
        return self._style.openings

    @property
    def closing(self) -> str:
        """The closing tag."""
        return self._style.thought[1]

    def parser(self, vocabulary: Vocabulary, start: str) -> Parser:
        """Return a parser that starts in the state thinking, answer or auto."""
        return BlockParser(vocabulary, _SYNTAX, start)

    def _turns(self, conversation: Conversation) -> list[Segment]:
        messages = conversation.messages
        system = "\n\n".join(message.content for message in messages if message.instructs)
        segments = [control(_BEGIN), literal(system), *self._declaration(conversation.tools)]
        for before, message, after in with_neighbors([turn for turn in messages if not turn.instructs]):
            if message.role == "user":
                segments += [control(_USER), literal(message.content)]
            elif message.role == "tool":
                segments += self._tool_result(message, first=before != "tool", last=after != "tool")
            else:
                segments += self._past_answer(message, before)
                segments.append(control(_END if after or conversation.ending != "open" else ""))
        return segments

    def _past_answer(self, message: Message, before: str) -> list[Segment]:
        """Write an answer as history shows it, cutting off reasoning that stands in the content."""
        cut = 0 if before == "tool" else self._style.cut
        return [
            control(self.openings[None] if self._has_header(before) else ""),
            literal(message.content.split(_CLOSE, cut)[-1]),
            *self._calls(message.tool_calls),
        ]

    def _target(self, answer: Message, opening: str) -> list[Segment]:
        rest = [*self._calls(answer.tool_calls), control(_END)]
        if not opening:
            return [literal(answer.content), *rest]
        answer = self._apart(answer)
        reasoning, content = answer.reasoning or "", answer.content
        if not reasoning and "off" in self.openings:
            return self._after(opening, [control(self.openings["off"]), literal(content), *rest])
        before, after = self._style.thought
        if before.endswith("\n"):  # as the tags bring theirs, other newlines beside them are not text
            reasoning, content = reasoning.strip("\n"), content.lstrip("\n")
        thought = [control(_ASSISTANT + before), literal(reasoning), control(after)]
        return self._after(opening, [*thought, literal(content), *rest])

    def _apart(self, answer: Message) -> Message:
        if answer.reasoning or not self._style.cut or _CLOSE not in answer.content:
            return answer
        before, _, content = answer.content.partition(_CLOSE)
        reasoning = before.split(_OPEN)[-1].strip("\n")
        return replace(answer, reasoning=reasoning, content=content.lstrip("\n"))

    def _opening_after(self, conversation: Conversation) -> str:
        roles = [message.role for message in conversation.messages if not message.instructs]
        opening = self.opening(conversation.thinking)
        return opening if self._has_header(roles[-1] if roles else "") else ""

    def _has_header(self, before: str) -> bool:
        """Tell whether an answer after a message of this role begins with the assistant's token."""
        return before == "user" if self.variant == "v3.1" else before != "tool"

    def _calls(self, calls: Sequence[ToolCall]) -> list[Segment]:
        if not calls:
            return []
        before, between, after = self._style.call
        segments = []
        for call in calls:
            segments += [control(self._style.calls_apart if segments else _CALLS)]
            segments += [control(before), literal(call.name), control(between)]
            segments += [literal(call.arguments_text), control(after)]
        return [*segments, control(_CALLS_END)]

    def _tool_result(self, message: Message, *, first: bool, last: bool) -> list[Segment]:
        before, between, after = self._style.outputs
        return [
            control((before if first else between) + _OUTPUT),
            literal(message.content),
            control(_OUTPUT_END + (after if last else "")),
        ]

    def _declaration(self, tools: Tools) -> list[Segment]:
        """Declare tools in the words of V3.1's model card, with the call spelled as this model spells it."""
        if not tools:
            return []
        segments = [control("\n\n## Tools\nYou have access to the following tools:\n\n")]
        for function in (tool["function"] for tool in tools):
            description, parameters = (
                function.get("description") or "",
                to_json(function.get("parameters") or {}),
            )
            segments.append(
                literal(f"### {function['name']}\nDescription: {description}\n\nParameters: {parameters}\n\n")
            )
        before, between, after = self._style.call
        rules = (
            "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
            f"{_CALLS}{before}tool_call_name{between}tool_call_arguments{after}{{additional_tool_calls}}{_CALLS_END}"
            "\n\nWhere:\n- `tool_call_name` must be an exact match to one of the available tools\n"
            "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
            f"- For multiple tool calls, {_CHAINING[self._style.calls_apart]}"
        )
        return [*segments, control(rules)]


def _read_call(text: str) -> ToolCallEvent | None:
    """Read `NAME<sep>{...}`, or V3's `function<sep>NAME`, a newline and the arguments in a fence."""
    name, separator, arguments = text.partition(_SEPARATOR)
    fenced = _FENCED.fullmatch(arguments.strip())
    if fenced is not None and fenced["name"] and not _TYPE.fullmatch(name):
        return None  # more than the word `function`, which would be lost
    if fenced is not None:
        name, arguments = fenced["name"] or name, fenced["arguments"]
    name, arguments = name.strip(), arguments.strip()
    if not separator or not name:
        return None
    return ToolCallEvent(name, *read_payload(arguments))


_SYNTAX = BlockSyntax(
    think=(_OPEN, _CLOSE),
    call=(_CALL, _CALL_END),
    inside_call=(_SEPARATOR,),
    markup=(
        _BEGIN,
        _END,
        _USER,
        _ASSISTANT,
        _CALLS,
        _CALLS_END,
        _OUTPUTS,
        _OUTPUTS_END,
        _OUTPUT,
        _OUTPUT_END,
    ),
    read_call=_read_call,
)
