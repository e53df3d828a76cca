"""The chat format of GPT-OSS: Harmony, messages with a header that names role, channel and recipient.

Where the published template and OpenAI's harmony library differ, this follows the library, except in what
history keeps: reasoning is dropped once an answer follows, and a training sample keeps that of its answer.

| thinking | means |
|---|---|
| not set, on, medium | `Reasoning: medium` |
| low, high | `Reasoning: low`, `Reasoning: high` |
| off | `Reasoning: low`, and the header of the answer in the prompt; the model has no such mode of its own |

With `off` the model cannot call tools either, because a call is a message of its own; a prompt that declares
some is refused.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from macmoe.chat.format import ChatFormat, Conversation, Thinking, Tools
from macmoe.chat.harmony import (
    CALL,
    CHANNEL,
    CONSTRAIN,
    END,
    END_OF_TEXT,
    MESSAGE,
    RETURN,
    START,
    HarmonyParser,
)
from macmoe.chat.messages import Message, Segment, ToolCall, control, literal, with_neighbors
from macmoe.chat.parser import Parser, Vocabulary
from macmoe.chat.typescript import declare_functions
from macmoe.errors import ChatFormatError

_ASSISTANT = "<|start|>assistant"
_ANALYSIS, _COMMENTARY, _FINAL = (
    f"{_ASSISTANT}{CHANNEL}{channel}{MESSAGE}" for channel in ("analysis", "commentary", "final")
)
_EFFORTS = {None: "medium", "off": "low", "on": "medium", "low": "low", "medium": "medium", "high": "high"}
_OPENINGS = {setting: _FINAL if setting == "off" else _ASSISTANT for setting in _EFFORTS}


@dataclass(frozen=True, kw_only=True)
class HarmonyFormat(ChatFormat):
    """GPT-OSS.

    Attributes:
        date: What the system message gives as the current date; None leaves the line out. Fix it where
            renderings have to be reproducible.
    """

    date: str | None = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    required: ClassVar = (START, CHANNEL, MESSAGE, END, RETURN, CALL)
    stops: ClassVar = (RETURN, CALL, END_OF_TEXT)
    words_after: ClassVar = (CHANNEL, ("analysis", "commentary", "final"))
    starts: ClassVar = {_ASSISTANT: "header", f"{CHANNEL}final{MESSAGE}": "answer"}

    @property
    def model(self) -> str:
        """The name of the model."""
        return "GPT-OSS"

    @property
    def openings(self) -> Mapping[str | None, str]:
        """What the prompt ends with, by setting."""
        return _OPENINGS

    @property
    def closing(self) -> str:
        """The end of the analysis and the header of the answer."""
        return END + _FINAL

    def _refusal(self, conversation: Conversation) -> str | None:
        """Refuse a prompt for `off` that declares tools."""
        if conversation.tools and conversation.thinking == "off" and conversation.ending == "prompt":
            return (
                f"{self.model} cannot call tools with thinking='off', where its prompt begins the answer; "
                "take thinking='low', or declare no tools"
            )
        return None

    def parser(self, vocabulary: Vocabulary, start: str) -> Parser:
        """Return a parser that starts in the state header, thinking or answer."""
        return HarmonyParser(vocabulary, start)

    def _turns(self, conversation: Conversation) -> list[Segment]:
        messages, tools = conversation.messages, conversation.tools
        leading = list(itertools.takewhile(lambda message: message.instructs, messages))
        instructions = "\n\n".join(message.content for message in leading if message.content)
        segments = [*self._system(conversation.thinking, tools), *_developer(instructions, tools)]
        turns = messages[len(leading) :]
        answered = max((index for index, message in enumerate(turns) if _is_answer(message)), default=-1)
        calls: list[ToolCall] = []
        waiting: list[ToolCall] = []  # those of the last answer, without a result so far
        for index, (_, message, after) in enumerate(with_neighbors(turns)):
            if message.role == "assistant":
                final = not after and conversation.ending != "prompt"
                pending = bool(message.tool_calls) and index > answered
                stop = ("" if conversation.ending == "open" else RETURN) if final else END
                segments += _assistant(message, reasoning=final or pending, stop=stop)
                calls += message.tool_calls
                waiting = list(message.tool_calls)
            elif message.role == "tool":
                segments += _tool_result(message, calls, waiting)
            elif message.role == "user":
                segments += [control(f"{START}user{MESSAGE}"), literal(message.content), control(END)]
            else:
                segments += _developer(message.content, ())
        return segments

    def _system(self, thinking: Thinking | None, tools: Tools) -> list[Segment]:
        date = f"\nCurrent date: {self.date}" if self.date is not None else ""
        calls = "\nCalls to these tools must go to the commentary channel: 'functions'." if tools else ""
        return [
            control(
                f"{START}system{MESSAGE}You are ChatGPT, a large language model trained by OpenAI.\n"
                "Knowledge cutoff: 2024-06"
            ),
            literal(date),
            control(
                f"\n\nReasoning: {_EFFORTS[thinking]}\n\n# Valid channels: analysis, commentary, final. "
                f"Channel must be included for every message.{calls}{END}"
            ),
        ]

    def _target(self, answer: Message, opening: str) -> list[Segment]:
        return self._after(opening, _assistant(answer, reasoning=True, stop=RETURN))


def _is_answer(message: Message) -> bool:
    return message.role == "assistant" and not message.tool_calls


def _developer(instructions: str, tools: Tools) -> list[Segment]:
    """Write the message with the instructions of the user and the declarations of the tools."""
    sections = ["# Instructions", instructions] if instructions else []
    if tools:
        sections.append(declare_functions([tool["function"] for tool in tools]))
    if not sections:
        return []
    return [control(f"{START}developer{MESSAGE}"), literal("\n\n".join(sections)), control(END)]


def _assistant(message: Message, *, reasoning: bool, stop: str) -> list[Segment]:
    """Write the messages that make up a turn: analysis, then the answer, or a preamble and the calls."""
    segments = []
    if reasoning and message.reasoning:
        segments += [control(_ANALYSIS), literal(message.reasoning), control(END)]
    if not message.tool_calls:
        return [*segments, control(_FINAL), literal(message.content), control(stop)]
    if message.content:
        segments += [control(_COMMENTARY), literal(message.content), control(END)]
    for call in message.tool_calls:
        segments += [
            control(f"{_ASSISTANT} to=functions."),
            literal(call.name),
            control(f"{CHANNEL}commentary {CONSTRAIN}json{MESSAGE}"),
            literal(call.arguments_text),
            control(CALL),
        ]
    return segments


def _tool_result(message: Message, calls: Sequence[ToolCall], waiting: list[ToolCall]) -> list[Segment]:
    """Write the result of a call, which its id names; without id and name, results come in order."""
    call = next((call for call in calls if call.id and call.id == message.tool_call_id), None)
    if call is None and waiting and not message.tool_call_id:
        call = next((each for each in waiting if message.name in (None, each.name)), None)
    if call in waiting:
        waiting.remove(call)
    name = message.name or (call.name if call else None)
    if name is None:
        raise ChatFormatError(
            f"no tool call has the id {message.tool_call_id!r} of a tool message, and GPT-OSS has to be told "
            "which tool answered; give the message a name or the id of a call"
        )
    return [
        control(f"{START}functions."),
        literal(name),
        control(f" to=assistant{CHANNEL}commentary{MESSAGE}"),
        literal(message.content),
        control(END),
    ]
