"""The conversation that the fields of a row make: what comes before, the question, the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from macmoe.errors import DatasetError
from macmoe.tuning.spellings import ANSWER, QUESTION, ROLES, TURNS


def conversation(fields: Mapping[str, Any]) -> list[Any]:
    """Return the messages of a record of any form but a text, still as dictionaries."""
    if "messages" in fields:
        return _with_system(fields, _turns(list_of(fields["messages"], "messages")))
    items = _history(fields.get("history", ()))
    items += _question([name for name in QUESTION if name in fields], fields)
    return _with_system(fields, items + _answer(fields, items))


def text_of(value: Any, name: str) -> str:
    """Return a text that is not empty; DatasetError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise DatasetError(f"{name} must be text that is not empty, not {str(value)[:60]!r}")
    return value


def list_of(value: Any, name: str) -> list[Any]:
    """Return a list that may be written as JSON, as data sets do where a column must be text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{name} is text but no JSON list ({error})") from None
        value = [] if value is None else value
    if not isinstance(value, list | tuple):
        raise DatasetError(f"{name} must be a list, not {type(value).__name__}")
    return list(value)


def is_empty(value: Any) -> bool:
    """Tell whether a value holds nothing, as columns do that other rows fill."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, Mapping | list | tuple) and not value)


def is_whole(value: Any) -> bool:
    """Tell whether an answer is a list of messages that begins with the question."""
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Mapping) and _role(first) not in ("assistant", None)


def _with_system(fields: Mapping[str, Any], messages: list[Any]) -> list[Any]:
    """Put the system text of a row before its messages, which may begin with the same one."""
    if "system" not in fields:
        return messages
    system = {"role": "system", "content": text_of(fields["system"], "system")}
    repeats = bool(messages) and (_role(messages[0]), _content(messages[0])) == ("system", _content(system))
    return messages if repeats else [system, *messages]


def _turns(items: Sequence[Any]) -> list[Any]:
    """Return messages; some data sets have a question and its answer as one item, in a list or an object."""
    messages: list[Any] = []
    for item in items:
        pair = _pair(item)
        roles = zip(("user", "assistant"), pair, strict=True) if pair else ()
        said = [{"role": role, "content": text} for role, text in roles if text is not None]
        messages += said if pair else [item]
    return messages


def _pair(item: Any) -> Sequence[Any]:
    """Return the question and the answer of an item that is both; empty for one message."""
    if isinstance(item, list | tuple):
        return item if len(item) == 2 else ()
    keys = {key for key, value in item.items() if not is_empty(value)} if isinstance(item, Mapping) else set()
    return next(([item[name] for name in pair] for pair in TURNS if keys == set(pair)), ())


def _history(value: Any) -> list[Any]:
    """Return earlier turns, which may be messages."""
    turns = _turns(list_of(value, "history"))
    other = next((turn for turn in turns if not isinstance(turn, Mapping)), None)
    if other is not None:
        raise DatasetError(f"history must hold pairs of question and answer, not {str(other)[:60]!r}")
    return turns


def _question(names: Sequence[str], fields: Mapping[str, Any]) -> list[Any]:
    if len(names) == 1 and not isinstance(fields[names[0]], str):
        return list_of(fields[names[0]], names[0])
    text = "\n\n".join(text_of(fields[name], name) for name in names)
    return [{"role": "user", "content": text}]


def _answer(fields: Mapping[str, Any], asked: Sequence[Any]) -> list[Any]:
    """Return the messages of the answer, without those of the question that it repeats."""
    completion = next((fields[name] for name in ANSWER if name in fields), None)
    if completion is None:
        return []
    if isinstance(completion, str):
        return [{"role": "assistant", "content": completion, "reasoning": fields.get("reasoning")}]
    if "reasoning" in fields:
        raise DatasetError("reasoning stands beside a completion that is a list; put it into its message")
    if isinstance(completion, Mapping):
        return [completion]
    messages = list_of(completion, "completion")
    return _without_question(messages, asked) if is_whole(messages) else messages


def _without_question(messages: list[Any], asked: Sequence[Any]) -> list[Any]:
    """Leave out what the question already says; preferred answers are often whole conversations."""
    said, again = ([(_role(m), _content(m)) for m in part] for part in (asked, messages))
    lengths = range(min(len(said), len(again)), 0, -1)
    same = next((length for length in lengths if said[-length:] == again[:length]), 0)
    if not same:
        raise DatasetError(
            "the prompt and the question in the completion differ; `--columns COLUMN=messages` takes the "
            "column of the completion alone, as the whole conversation"
        )
    return messages[same:]


def _role(message: Any) -> Any:
    role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    return ROLES.get(role, role) if isinstance(role, str) else None


def _content(message: Any) -> Any:
    content = message.get("content", message.get("value")) if isinstance(message, Mapping) else message
    return content.strip() if isinstance(content, str) else content
