"""The one record that all data sets become: a conversation with what is to be learned of it, or a text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message, messages_in
from macmoe.chat.payload import read_object
from macmoe.errors import DatasetError
from macmoe.tuning.forms import pair_in, read_fields, spelled
from macmoe.tuning.rows import Place
from macmoe.tuning.spellings import MESSAGE_FIELDS, MODES, ROLES
from macmoe.tuning.turns import conversation, is_empty, list_of, text_of

# Where reasoning has no field of its own, it stands in the content.
_THOUGHT = re.compile(r"\s*<think>(?P<reasoning>.*?)</think>\s*(?P<content>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a model is asked; the fields are arguments of `ChatFormat.render`."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: Thinking | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What one row of a data set says.

    Attributes:
        place: Where it comes from.
        messages: The conversation; empty for a plain text.
        weights: The loss weight of each message; 0 for one that is not to be learned.
        tools: Declarations of the tools the model may call.
        thinking: The mode of the prompts; None: each answer is learned in the mode it was written in.
        text: A plain text, learned as a whole.
        instead: What a row without an answer holds, and what to do, for a message to the user.
    """

    place: Place
    messages: tuple[Message, ...] = ()
    weights: tuple[float, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: Thinking | None = None
    text: str | None = None
    instead: str = ""

    @property
    def thinks(self) -> bool:
        """Whether any answer that is to be learned has reasoning."""
        pairs = zip(self.messages, self.weights, strict=True)
        return any(weight and message.reasoning for message, weight in pairs)

    @property
    def question(self) -> tuple[Message, ...]:
        """The messages before the last answer; all of them where the record is a question without one."""
        return self.messages[:-1] if self.reference is not None else self.messages

    @property
    def reference(self) -> str | None:
        """The text of the last answer, for verifiers; None in a question without one."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else None

    def as_question(self, thinking: Thinking | None) -> Question:
        """Return what to ask a model, in a mode."""
        return Question(messages=self.question, tools=self.tools, thinking=thinking)


def read_record(
    data: Mapping[str, Any], place: Place, columns: Mapping[str, str] | None = None
) -> tuple[Record, list[str]]:
    """Return what a row says, and its columns that say nothing a record could hold.

    Args:
        data: The row.
        place: Where it comes from.
        columns: Which of its columns are which fields, where the names do not say it.

    Raises:
        DatasetError: The row has no known form, or a value of a wrong type.
        ChatFormatError: A message or a tool call makes no sense.
    """
    used, ignored = read_fields(data, columns)
    if "text" in used:
        return Record(place=place, text=text_of(used["text"], "text")), ignored
    left_out: set[str] = set()
    pairs = [pair for item in conversation(used) for pair in _messages(item, left_out)]
    if not pairs:
        raise DatasetError("has no messages")
    messages, weights = zip(*pairs, strict=True)
    record = Record(
        place=place,
        messages=messages,
        weights=weights,
        tools=tuple(map(_declared, list_of(used.get("tools", ()), "tools"))),
        thinking=_mode(used.get("thinking")),
        instead="" if any(weights) else pair_in(data),
    )
    return record, [*ignored, *(f"messages.{name}" for name in sorted(left_out))]


def to_row(record: Record) -> dict[str, Any]:
    """Return a record in macmoe's own spelling, which `read_record` reads again."""
    if record.text is not None:
        return {"text": record.text}
    pairs = zip(record.messages, record.weights, strict=True)
    row: dict[str, Any] = {"messages": [_to_dict(message, weight) for message, weight in pairs]}
    if record.tools:
        row["tools"] = list(record.tools)
    return row if record.thinking is None else {**row, "thinking": record.thinking}


def _to_dict(message: Message, weight: float) -> dict[str, Any]:
    usual = weight == (message.role == "assistant")
    return message.to_dict() if usual else {**message.to_dict(), "weight": weight}


def _messages(data: Any, left_out: set[str]) -> list[tuple[Message, float]]:
    """Return the messages that an item holds (one, but for results of tools) and their loss weights."""
    if not isinstance(data, Mapping):
        raise DatasetError(f"a message must be an object, not {type(data).__name__}")
    fields, others = spelled(data, MESSAGE_FIELDS)
    train, weight = fields.pop("train", None), fields.pop("weight", None)
    role = fields.get("role")
    fields["role"] = ROLES.get(role, role) if isinstance(role, str) else role
    if role == "function_call":  # ShareGPT's way to write calls
        fields = {"role": "assistant", "tool_calls": _calls(fields.get("content"))}
    rest = {key: data[key] for key in others}
    if isinstance(rest.get("tool_calls"), str) and not is_empty(rest["tool_calls"]):
        rest["tool_calls"] = list_of(rest["tool_calls"], "tool_calls")
    messages = messages_in({**fields, **rest}, left_out)
    return [(_with_thought_apart(message), _weight(message, train, weight)) for message in messages]


def _calls(value: Any) -> list[Any]:
    """Return the calls of a message that is nothing else: one, or a list, mostly as JSON."""
    call = read_object(value) if isinstance(value, str) else value
    return [call] if isinstance(call, Mapping) else list_of(value, "function_call")


def _with_thought_apart(message: Message) -> Message:
    """Move reasoning that stands in the content of an answer to its own field."""
    found = _THOUGHT.fullmatch(message.content) if message.role == "assistant" else None
    if found is None or message.reasoning:
        return message
    return replace(message, content=found["content"], reasoning=found["reasoning"].strip() or None)


def _weight(message: Message, train: Any, weight: Any) -> float:
    """Return the loss weight of a message; answers are learned unless the row says otherwise."""
    answer = message.role == "assistant"
    train = answer if is_empty(train) else train
    weight = 1.0 if is_empty(weight) else weight
    if not isinstance(train, bool):
        raise DatasetError(f"the train flag of a message must be true or false, not {train!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DatasetError(f"the weight of a message must be a number from 0 up, not {weight!r}")
    if train and not answer:
        raise DatasetError(f"a {message.role} message cannot be learned; only the assistant's can")
    return float(weight) if train else 0.0


def _declared(tool: Any) -> Any:
    """Return the declaration of a tool as OpenAI writes it; data sets also have the bare function or JSON."""
    tool = read_object(tool) if isinstance(tool, str) else tool
    if not isinstance(tool, Mapping) or "function" in tool or not isinstance(tool.get("name"), str):
        return tool
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _mode(value: Any) -> Thinking | None:
    if value is None:
        return None
    if not isinstance(value, str | bool) or value not in MODES:
        known = ", ".join(dict.fromkeys(MODES.values()))
        raise DatasetError(
            f"thinking must be one of {known}, true or false, not {str(value)[:60]!r}; "
            "`--columns thinking=reasoning` reads it as what the model thinks"
        )
    return cast("Thinking", MODES[value])
