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
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from macmoe.chat.events import AnswerText, CommentaryText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.format import ChatFormat, Conversation, Thinking, Tools
from macmoe.chat.messages import Message, Segment, ToolCall, control, literal, read_object, with_neighbors
from macmoe.chat.parser import Parser, Vocabulary
from macmoe.chat.templates import Wording
from macmoe.chat.typescript import declare_functions
from macmoe.errors import ChatFormatError

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_END, _RETURN, _CALL, _END_OF_TEXT = "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>"
_ASSISTANT = "<|start|>assistant"
_ANALYSIS, _COMMENTARY, _FINAL = (
    f"{_ASSISTANT}{_CHANNEL}{channel}{_MESSAGE}" for channel in ("analysis", "commentary", "final")
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

    required: ClassVar = (_START, _CHANNEL, _MESSAGE, _END, _RETURN, _CALL)
    stops: ClassVar = (_RETURN, _CALL, _END_OF_TEXT)
    wording: ClassVar = Wording(
        needed=(
            _START,
            _CHANNEL,
            _MESSAGE,
            "You are ChatGPT, a large language model trained by OpenAI",
            "Valid channels: analysis, commentary, final",
        )
    )
    words_after: ClassVar = (_CHANNEL, ("analysis", "commentary", "final"))
    starts: ClassVar = {_ASSISTANT: "header", f"{_CHANNEL}final{_MESSAGE}": "answer"}

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
        return _END + _FINAL

    def _refusal(self, conversation: Conversation) -> str | None:
        """Refuse a prompt for `off` that declares tools."""
        if conversation.tools and conversation.thinking == "off" and conversation.ending == "prompt":
            return (
                f"{self.model} cannot call tools with thinking='off', where its prompt begins the answer; "
                "take thinking='low', or declare no tools"
            )
        return None

    def parser(self, vocabulary: Vocabulary, start: str, tools: Tools = ()) -> Parser:  # noqa: ARG002
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
        for index, (_, message, after) in enumerate(with_neighbors(turns)):
            if message.role == "assistant":
                final = not after and conversation.ending != "prompt"
                pending = bool(message.tool_calls) and index > answered
                stop = ("" if conversation.ending == "open" else _RETURN) if final else _END
                segments += _assistant(message, reasoning=final or pending, stop=stop)
                calls += message.tool_calls
            elif message.role == "tool":
                segments += _tool_result(message, calls)
            elif message.role == "user":
                segments += [control(f"{_START}user{_MESSAGE}"), literal(message.content), control(_END)]
            else:
                segments += _developer(message.content, ())
        return segments

    def _system(self, thinking: Thinking | None, tools: Tools) -> list[Segment]:
        date = f"\nCurrent date: {self.date}" if self.date is not None else ""
        calls = "\nCalls to these tools must go to the commentary channel: 'functions'." if tools else ""
        return [
            control(
                f"{_START}system{_MESSAGE}You are ChatGPT, a large language model trained by OpenAI.\n"
                "Knowledge cutoff: 2024-06"
            ),
            literal(date),
            control(
                f"\n\nReasoning: {_EFFORTS[thinking]}\n\n# Valid channels: analysis, commentary, final. "
                f"Channel must be included for every message.{calls}{_END}"
            ),
        ]

    def _target(self, answer: Message, opening: str) -> list[Segment]:
        return self._after(opening, _assistant(answer, reasoning=True, stop=_RETURN))


def _is_answer(message: Message) -> bool:
    return message.role == "assistant" and not message.tool_calls


def _developer(instructions: str, tools: Tools) -> list[Segment]:
    """Write the message with the instructions of the user and the declarations of the tools."""
    sections = ["# Instructions", instructions] if instructions else []
    if tools:
        sections.append(declare_functions([tool["function"] for tool in tools]))
    if not sections:
        return []
    return [control(f"{_START}developer{_MESSAGE}"), literal("\n\n".join(sections)), control(_END)]


def _assistant(message: Message, *, reasoning: bool, stop: str) -> list[Segment]:
    """Write the messages that make up a turn: analysis, then the answer, or a preamble and the calls."""
    segments = []
    if reasoning and message.reasoning:
        segments += [control(_ANALYSIS), literal(message.reasoning), control(_END)]
    if not message.tool_calls:
        return [*segments, control(_FINAL), literal(message.content), control(stop)]
    if message.content:
        segments += [control(_COMMENTARY), literal(message.content), control(_END)]
    for call in message.tool_calls:
        segments += [
            control(f"{_ASSISTANT} to=functions."),
            literal(call.name),
            control(f"{_CHANNEL}commentary {_CONSTRAIN}json{_MESSAGE}"),
            literal(call.arguments_text),
            control(_CALL),
        ]
    return segments


def _tool_result(message: Message, calls: Sequence[ToolCall]) -> list[Segment]:
    name = message.name or next(
        (call.name for call in calls if call.id and call.id == message.tool_call_id), None
    )
    if name is None:
        raise ChatFormatError(
            f"no tool call has the id {message.tool_call_id!r} of a tool message, and GPT-OSS has to be told "
            "which tool answered; give the message a name or the id of a call"
        )
    return [
        control(f"{_START}functions."),
        literal(name),
        control(f" to=assistant{_CHANNEL}commentary{_MESSAGE}"),
        literal(message.content),
        control(_END),
    ]


_CHANNELS: dict[str, type[ThinkingText | CommentaryText | AnswerText]] = {
    "analysis": ThinkingText,
    "commentary": CommentaryText,
    "final": AnswerText,
}
_TURN_ENDS = (_START, _END, _RETURN, _CALL, _END_OF_TEXT)
_RECIPIENT = re.compile(r"\s*\bto=(\S*)")
_NOT_TOOLS = ("", "user", "assistant", "all")
# The word that each part of a header begins with. The preface is what stands before the first control token
# of a header whose role is known: a recipient, or text that should not be there.
_FIRST_WORD = {
    "preface": re.compile(""),
    "role": re.compile(r"\s*(?:(?:assistant|user|system|developer|tool|functions\.\S*)(?!\w))?"),
    "channel": re.compile(r"\s*(?!to=)(\w*)"),
    "type": re.compile(r"\s*(?!to=)\w*"),
}


class HarmonyParser(Parser):
    """The parser of GPT-OSS: a header, then the text of a message, and so on.

    How it reads what breaks the format:

    - The recipient may stand before or after the channel, with or without `functions.`; other words of a
      header are dropped. Without a channel, or with an unknown one, a message is answer, whoever it is from.
    - A message ends at an end token or where a new header begins. Without `<|message|>`, what a header holds
      beyond its own words is the text. Text where a header should begin is answer.
    - A header cut by the end of the output is no text.
    """

    def __init__(self, vocabulary: Vocabulary, start: str) -> None:
        super().__init__(vocabulary, (*_TURN_ENDS, _CHANNEL, _CONSTRAIN, _MESSAGE))
        # The parts of the header so far, the last one being written; None inside a message.
        self._header: dict[str, str] | None = {"preface": ""} if start == "header" else None
        self._kind = ThinkingText if start == "thinking" else AnswerText
        self._tool = ""  # whom the message calls
        self._call = ""  # the text of that call

    @property
    def thinking(self) -> bool:
        """Whether the model is inside its thinking now."""
        return self._header is None and self._kind is ThinkingText and not self._tool

    @property
    def answering(self) -> bool:
        """Whether the model is inside an answer, a call or a commentary now, not in a header."""
        return self._header is None and not self.thinking

    def _text(self, text: str) -> list[Event]:
        if self._header is not None:
            self._header[next(reversed(self._header))] += text
        elif self._tool:
            self._call += text
        elif text:
            return [self._kind(text)]
        return []

    def _control(self, token: str) -> list[Event]:
        if self._header is None and token in (_MESSAGE, _CONSTRAIN):
            return []
        events, header = [], self._header
        if (
            header is None
            or token in _TURN_ENDS
            or (token == _CHANNEL and "channel" in header)
            or _has_prose(header)
        ):
            events = self._end_message(cut=False)
            header = {"role" if token == _START else "preface": ""}
        self._header = header
        if token == _CHANNEL:
            header["channel"] = ""
        elif token == _CONSTRAIN:
            header.setdefault("type", "")
        elif token == _MESSAGE:
            self._begin_message(header)
        return events

    def _end(self) -> list[Event]:
        return self._end_message(cut=True)

    def _begin_message(self, header: dict[str, str]) -> None:
        """Take channel and recipient from a header."""
        channel = _FIRST_WORD["channel"].match(header.get("channel", ""))
        self._kind = _CHANNELS.get(channel[1].lower() if channel else "", AnswerText)
        recipient = _RECIPIENT.search(" ".join(header.values()))
        name = recipient[1].removeprefix("functions.") if recipient else ""
        self._tool = "" if name in _NOT_TOOLS else name
        self._call = ""
        self._header = None

    def _end_message(self, *, cut: bool) -> list[Event]:
        """Deliver what the message, or a header that no message followed, holds back."""
        events: list[Event] = []
        if self._header is not None:
            text = "".join(_beyond_header(part, written, cut) for part, written in self._header.items())
            self._begin_message(self._header)
            if not text:
                return []
            events = self._text(text)
        if self._tool:
            events.append(ToolCallEvent(self._tool, read_object(self._call), self._call))
            self._tool = ""
        return events


def _has_prose(header: dict[str, str]) -> bool:
    preface = header.get("preface", "")
    return bool(preface.strip()) and not _RECIPIENT.search(preface)


def _beyond_header(part: str, written: str, cut: bool) -> str:
    """Return what a part of a header holds beyond its own word and the recipient."""
    word = _FIRST_WORD[part].match(written)
    rest = _RECIPIENT.sub("", written[word.end() if word else 0 :], count=1)
    # At the end of the output a single word is a role, a recipient or a content type that was being written.
    unfinished = " to=".startswith(rest) or (part != "preface" and len(rest.split()) < 2)
    return "" if cut and unfinished else rest
