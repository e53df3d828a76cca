"""The one message schema of all families, and the segments a rendering consists of."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, MutableSet, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from typing import Any, Self

from macmoe.chat.history import brief, read_call, read_message
from macmoe.chat.payload import to_json
from macmoe.errors import ChatFormatError

_LOG = logging.getLogger(__name__)
ROLES = ("system", "developer", "user", "assistant", "tool")
_ASSISTANT_ONLY = ("reasoning", "tool_calls")
_TOOL_NAME = re.compile(r"[^\s<>]+")


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the assistant wrote.

    `raw` is the argument text as the model wrote it, and what history shows again. `arguments` is None where
    that text is no JSON object.
    """

    name: str
    arguments: dict[str, Any] | None
    _: KW_ONLY
    id: str | None = None
    raw: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read `{"id", "name", "arguments"}`; name and arguments may stand in a "function" of their own."""
        return cls(**read_call(data, set()))

    @property
    def arguments_text(self) -> str:
        """The arguments as they stand in a rendering."""
        return to_json(self.arguments) if self.raw is None else self.raw


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; ChatFormatError where the fields do not fit the role."""

    role: str
    content: str
    _: KW_ONLY
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no format could render."""
        if self.role not in ROLES:
            raise ChatFormatError(f"{self.role!r} is no role; the roles are {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ChatFormatError(
                f"the content of a {self.role} message must be text, not {brief(self.content)}"
            )
        if self.reasoning is not None and not isinstance(self.reasoning, str):
            raise ChatFormatError(f"the reasoning of a message must be text, not {brief(self.reasoning)}")
        for field in _ASSISTANT_ONLY if self.role != "assistant" else ():
            if getattr(self, field):
                raise ChatFormatError(f"a {self.role} message cannot have {field}; only the assistant has")

    @property
    def instructs(self) -> bool:
        """Whether it holds instructions: a system or a developer message."""
        return self.role in ("system", "developer")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Message:
        """Read one message as clients, servers and data sets write it; `read_messages` reads a history.

        Content may be a list of text parts, and null where there are calls or reasoning. The reasoning may be
        called `reasoning`, `reasoning_content` or `thinking`. A key with nothing in it passes.
        """
        first, *others = read_messages([data])
        if others:
            raise ChatFormatError(
                "results of tools stand in one message with other text; read it as a history"
            )
        return first

    def to_dict(self) -> dict[str, Any]:
        """Return the message as `from_dict` reads it, without empty fields."""
        calls = [
            {"id": call.id, "name": call.name, "arguments": call.arguments_text} for call in self.tool_calls
        ]
        optional = {
            "reasoning": self.reasoning,
            "tool_calls": calls,
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        given = {key: value for key, value in optional.items() if value}
        return {"role": self.role, "content": self.content, **given}


def messages_in(data: Any, ignored: MutableSet[str]) -> list[Message]:
    """Read one item of a history; `ignored` takes the names of what no model reads.

    Raises:
        ChatFormatError: It is no message, or holds what cannot be read.
    """
    return [
        Message(**{**fields, "tool_calls": tuple(ToolCall(**call) for call in fields.get("tool_calls", ()))})
        for fields in read_message(data, ignored)
    ]


def read_messages(history: Iterable[Message | Mapping[str, Any]]) -> list[Message]:
    """Read a history as clients, servers and data sets write it; a warning names what no model reads.

    Raises:
        ChatFormatError: An item is no message, or holds what cannot be read.
    """
    ignored: set[str] = set()
    messages = []
    for number, item in enumerate(history, start=1):
        try:
            messages += [item] if isinstance(item, Message) else messages_in(item, ignored)
        except ChatFormatError as error:
            raise ChatFormatError(f"message {number}: {error}") from None
    if ignored:
        _LOG.warning("the messages hold what no model reads, and is left out: %s", ", ".join(sorted(ignored)))
    return messages


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a rendering.

    Attributes:
        text: The text.
        control: Whether the format wrote it, so that its token strings become control tokens.
        trainable: Whether it belongs to what the model has to write.
    """

    text: str
    control: bool
    trainable: bool = False


def with_neighbors(messages: Sequence[Message]) -> Iterator[tuple[str, Message, str]]:
    """Yield each message between the roles before and after it; at the ends these are empty."""
    roles = ["", *(message.role for message in messages), ""]
    return zip(roles, messages, roles[2:], strict=False)


def control(text: str) -> Segment:
    """Return text that the format writes."""
    return Segment(text, control=True)


def literal(text: str) -> Segment:
    """Return text that comes from outside."""
    return Segment(text, control=False)


def joined(segments: Iterable[Segment]) -> list[Segment]:
    """Join neighbors of one kind and drop empty ones."""
    filled = (segment for segment in segments if segment.text)
    kinds = groupby(filled, key=lambda segment: (segment.control, segment.trainable))
    return [Segment("".join(part.text for part in parts), *kind) for kind, parts in kinds]


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Refuse tool declarations that are not `{"type": "function", "function": {"name": ..., ...}}`."""
    for tool in tools:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        types = {"name": str, "description": str | None, "parameters": dict | None}
        if not isinstance(function, Mapping) or not all(
            isinstance(function.get(key), kind) for key, kind in types.items()
        ):
            raise ChatFormatError(
                'a tool is declared as {"type": "function", "function": {"name": text, "description": text, '
                f'"parameters": JSON schema}}}}, not as {brief(tool)}'
            )
        if not _TOOL_NAME.fullmatch(function["name"]):
            raise ChatFormatError(
                f"{function['name']!r} cannot be the name of a tool; use letters, digits, '.', '_' and '-'"
            )
