"""The one message schema of all families, and the segments a rendering consists of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import groupby
from typing import Any, Self

from macmoe.chat.payload import read_object
from macmoe.errors import ChatFormatError

ROLES = ("system", "developer", "user", "assistant", "tool")
# Data sets and servers name the same field in three ways.
_REASONING_KEYS = ("reasoning", "reasoning_content", "thinking")
_MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id", "name", *_REASONING_KEYS}
_CALL_KEYS = {"id", "type", "function", "name", "arguments"}
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
        _refuse_unknown_keys(data, _CALL_KEYS, "a tool call")
        function = data.get("function", data)
        if not isinstance(function, Mapping):
            function = {}
        name, arguments = function.get("name"), function.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict | str):
            raise ChatFormatError(
                f"a tool call needs a name and arguments (an object or its JSON text), not {_brief(data)}"
            )
        if isinstance(arguments, str):
            return cls(name, read_object(arguments), id=data.get("id"), raw=arguments)
        return cls(name, arguments, id=data.get("id"))

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
                f"the content of a {self.role} message must be text, not {_brief(self.content)}"
            )
        if self.reasoning is not None and not isinstance(self.reasoning, str):
            raise ChatFormatError(f"the reasoning of a message must be text, not {_brief(self.reasoning)}")
        for field in _ASSISTANT_ONLY if self.role != "assistant" else ():
            if getattr(self, field):
                raise ChatFormatError(f"a {self.role} message cannot have {field}; only the assistant has")

    @property
    def instructs(self) -> bool:
        """Whether it holds instructions: a system or a developer message."""
        return self.role in ("system", "developer")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read a message as data sets and servers write it; unknown keys are errors.

        The reasoning may be called `reasoning`, `reasoning_content` or `thinking`. Content may be null where
        there are tool calls.
        """
        _refuse_unknown_keys(data, _MESSAGE_KEYS, "a message")
        written = data.get("tool_calls") or ()
        if not isinstance(written, list | tuple):
            raise ChatFormatError(f"tool_calls must be a list, not {_brief(written)}")
        calls = tuple(ToolCall.from_dict(call) for call in written)
        content = data.get("content")
        return cls(
            data.get("role", ""),
            "" if content is None and calls else content,  # type: ignore[arg-type]  checked on construction
            reasoning=next((data[key] for key in _REASONING_KEYS if data.get(key)), None),
            tool_calls=calls,
            tool_call_id=data.get("tool_call_id"),
            name=data.get("name"),
        )

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
                f'"parameters": JSON schema}}}}, not as {_brief(tool)}'
            )
        if not _TOOL_NAME.fullmatch(function["name"]):
            raise ChatFormatError(
                f"{function['name']!r} cannot be the name of a tool; use letters, digits, '.', '_' and '-'"
            )


def to_json(value: Any) -> str:
    """Return JSON as the chat templates of the hub write it."""
    return json.dumps(value, ensure_ascii=False)


def _refuse_unknown_keys(data: Any, known: set[str], what: str) -> None:
    if not isinstance(data, Mapping):
        raise ChatFormatError(f"{what} must be an object, not {_brief(data)}")
    unknown = sorted(map(str, data.keys() - known))
    if unknown:
        raise ChatFormatError(
            f"{what} has the unknown key {unknown[0]!r}, which would be ignored; "
            f"known are {', '.join(sorted(known))}"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
