"""The one record that all data sets become: a conversation with what is to be learned of it, or a text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message, messages_in
from macmoe.chat.payload import read_object
from macmoe.errors import DatasetError
from macmoe.tuning.rows import Place
from macmoe.tuning.spellings import FORMS, MESSAGE_FIELDS, MODES, RECORD_FIELDS, ROLES

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
    """

    place: Place
    messages: tuple[Message, ...] = ()
    weights: tuple[float, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    thinking: Thinking | None = None
    text: str | None = None

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


def read_record(data: Mapping[str, Any], place: Place) -> tuple[Record, list[str]]:
    """Return what a row says, and its columns that say nothing a record could hold.

    Raises:
        DatasetError: The row has no known form, or a value of a wrong type.
        ChatFormatError: A message or a tool call makes no sense.
    """
    given = {
        name
        for name, spellings in RECORD_FIELDS.items()
        if any(data.get(spelling) is not None for spelling in spellings)
    }
    form = next((form for form in FORMS if given.issuperset(form[0])), None)
    if form is None:
        known = ", ".join(" + ".join(needed) for needed, _ in FORMS)
        raise DatasetError(f"has none of the forms {known}, but {', '.join(map(repr, data)) or 'nothing'}")
    used, ignored = _fields(data, {name: RECORD_FIELDS[name] for names in form for name in names})
    if "text" in used:
        return Record(place=place, text=_text(used["text"], "text")), ignored
    left_out: set[str] = set()
    pairs = [pair for item in _conversation(used) for pair in _messages(item, left_out)]
    if not pairs:
        raise DatasetError("has no messages")
    messages, weights = zip(*pairs, strict=True)
    record = Record(
        place=place,
        messages=messages,
        weights=weights,
        tools=tuple(_list(used.get("tools", ()), "tools")),
        thinking=_mode(used.get("thinking")),
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


def _fields(data: Mapping[str, Any], table: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a table under macmoe's names, and the other keys; null means absent."""
    fields: dict[str, Any] = {}
    others = {key: value for key, value in data.items() if value is not None}
    for name, spellings in table.items():
        given = [spelling for spelling in spellings if spelling in others]
        values = [others.pop(spelling) for spelling in given]
        if any(value != values[0] for value in values):
            raise DatasetError(f"{' and '.join(map(repr, given))} both give the {name}, and differ")
        if values:
            fields[name] = values[0]
    return fields, [str(key) for key in others]


def _conversation(fields: Mapping[str, Any]) -> list[Any]:
    """Return the messages of a record of any form, still as dictionaries."""
    items = [{"role": "system", "content": _text(fields["system"], "system")}] if "system" in fields else []
    if "messages" in fields:
        return items + _list(fields["messages"], "messages")
    prompt, completion = fields["prompt"], fields.get("completion")
    if isinstance(prompt, str):
        items.append({"role": "user", "content": _text(prompt, "prompt")})
    else:
        items += _list(prompt, "prompt")
    if isinstance(completion, str):
        return [*items, {"role": "assistant", "content": completion, "reasoning": fields.get("reasoning")}]
    if "reasoning" in fields:
        raise DatasetError("reasoning stands beside a completion that is a list; put it into its message")
    return items if completion is None else items + _list(completion, "completion")


def _messages(data: Any, left_out: set[str]) -> list[tuple[Message, float]]:
    """Return the messages that an item holds (one, but for results of tools) and their loss weights."""
    if not isinstance(data, Mapping):
        raise DatasetError(f"a message must be an object, not {type(data).__name__}")
    fields, others = _fields(data, MESSAGE_FIELDS)
    train, weight = fields.pop("train", None), fields.pop("weight", None)
    role = fields.get("role")
    fields["role"] = ROLES.get(role, role) if isinstance(role, str) else role
    if role == "function_call":  # ShareGPT's way to write calls
        fields = {"role": "assistant", "tool_calls": _calls(fields.get("content"))}
    messages = messages_in({**fields, **{key: data[key] for key in others}}, left_out)
    return [(_with_thought_apart(message), _weight(message, train, weight)) for message in messages]


def _calls(value: Any) -> list[Any]:
    """Return the calls of a message that is nothing else: one, or a list, mostly as JSON."""
    call = read_object(value) if isinstance(value, str) else value
    return [call] if isinstance(call, Mapping) else _list(value, "function_call")


def _with_thought_apart(message: Message) -> Message:
    """Move reasoning that stands in the content of an answer to its own field."""
    found = _THOUGHT.fullmatch(message.content) if message.role == "assistant" else None
    if found is None or message.reasoning:
        return message
    return replace(message, content=found["content"], reasoning=found["reasoning"].strip() or None)


def _weight(message: Message, train: Any, weight: Any) -> float:
    """Return the loss weight of a message; answers are learned unless the row says otherwise."""
    answer = message.role == "assistant"
    if train is None:
        train = answer
    if weight is None:
        weight = 1.0
    if not isinstance(train, bool):
        raise DatasetError(f"the train flag of a message must be true or false, not {train!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise DatasetError(f"the weight of a message must be a number from 0 up, not {weight!r}")
    if train and not answer:
        raise DatasetError(f"a {message.role} message cannot be learned; only the assistant's can")
    return float(weight) if train else 0.0


def _mode(value: Any) -> Thinking | None:
    if value is None:
        return None
    if not isinstance(value, str | bool) or value not in MODES:
        known = ", ".join(dict.fromkeys(MODES.values()))
        raise DatasetError(f"thinking must be one of {known}, true or false, not {value!r}")
    return cast("Thinking", MODES[value])


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{name} must be text that is not empty, not {str(value)[:60]!r}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    """Return a list that may be written as JSON, as data sets do where a column must be text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{name} is text but no JSON list ({error})") from None
    if not isinstance(value, list | tuple):
        raise DatasetError(f"{name} must be a list, not {type(value).__name__}")
    return list(value)
