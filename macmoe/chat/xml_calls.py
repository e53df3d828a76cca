"""Read calls that are written as XML-like tags around plain values, as Qwen3-Coder writes them.

    <function=NAME>
    <parameter=KEY>
    VALUE
    </parameter>
    </function>

Nothing in a value is escaped, so a value may hold any of these tags. It ends at the first `</parameter>` that
leaves sound calls behind it. The schema of the called tool says what its text means.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from macmoe.chat.events import ToolCallEvent
from macmoe.chat.messages import to_json

CLOSE_PARAMETER, CLOSE_FUNCTION = "</parameter>", "</function>"
FUNCTION = re.compile(r"<function=[ \t]*([^<>\s]+)[ \t]*>")
_TAG = re.compile(
    rf"{FUNCTION.pattern}|<parameter=[ \t]*([^<>\n]+?)[ \t]*>|{CLOSE_PARAMETER}|{CLOSE_FUNCTION}"
)
_OWN_LINE = re.compile(r"(?m)^[ \t]*<parameter=([^<>\n]+)>$")
_TRIED = 100  # ends of functions, from the last, that could end the calls: keeps long nonsense cheap
_INTEGER = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NULLS = ("null", "none")
_BOOLEANS = {"true": True, "false": False}

Schemas = Mapping[str, Mapping[str, Any]]
# A call as it stands in the text: its name, and key and text of each value.
_Written = tuple[str, list[tuple[str, str]]]


def schemas_of(tools: Sequence[Mapping[str, Any]]) -> Schemas:
    """Return the schemas of the parameters of each declared tool, by name."""
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool["function"]
        properties = (function.get("parameters") or {}).get("properties")
        schemas[function["name"]] = properties if isinstance(properties, Mapping) else {}
    return schemas


def read_whole(text: str, schemas: Schemas) -> list[ToolCallEvent] | None:
    """Return the calls that a text consists of, or None where it is anything else."""
    tags = list(_TAG.finditer(text))
    ends = _ends_of_values(text, tags)
    if not tags or text[: tags[0].start()].strip() or ends[0] is None or not tags[0][1]:
        return None
    return [_event(written, schemas) for written in _walk(text, tags, ends)]


def read_beginning(text: str, schemas: Schemas) -> tuple[list[ToolCallEvent], str] | None:
    """Return the calls that a text begins with, as many as there are, and the rest; None without any."""
    ends = [place.end() for place in re.finditer(CLOSE_FUNCTION, text)]
    for end in reversed(ends[-_TRIED:]):
        calls = read_whole(text[:end], schemas)
        if calls:
            return calls, text[end:]
    return None


def read_unclosed(text: str, schemas: Schemas) -> tuple[list[ToolCallEvent], str] | None:
    """Return the calls of a text that lacks closing tags, and what follows them; None where it has none."""
    head, closed, rest = text.rpartition(CLOSE_FUNCTION)
    closings = [(head, rest)] if closed else []
    for body, after in [*closings, (text, "")]:
        for missing in (CLOSE_FUNCTION, CLOSE_PARAMETER + CLOSE_FUNCTION):
            calls = read_whole(body + missing, schemas)
            if calls:
                return calls, after
    return None


def _ends_of_values(text: str, tags: Sequence[re.Match[str]]) -> list[int | None]:
    """Return, from behind, what makes each tag part of sound calls.

    For `<parameter=...>` it is the number of the tag that closes its value: the first that can. Any other tag
    that calls can go on after has its own number; one that they cannot go on after has None.
    """
    ends: list[int | None] = [None] * len(tags)
    closing: int | None = None  # the first `</parameter>` after the tag that sound calls can go on after
    for number in range(len(tags) - 1, -1, -1):
        tag = tags[number]
        if tag[2]:
            ends[number] = closing
            continue
        following = tags[number + 1] if number + 1 < len(tags) else None
        gap = text[tag.end() : following.start() if following else len(text)]
        sound = not gap.strip() and _may_follow(tag, following)
        if sound and (following is None or ends[number + 1] is not None):
            ends[number] = number
            closing = number if tag[0] == CLOSE_PARAMETER else closing
    return ends


def _may_follow(tag: re.Match[str], following: re.Match[str] | None) -> bool:
    if tag[0] == CLOSE_FUNCTION:
        return following is None or bool(following[1])
    return following is not None and (bool(following[2]) or following[0] == CLOSE_FUNCTION)


def _walk(text: str, tags: Sequence[re.Match[str]], ends: Sequence[int | None]) -> list[_Written]:
    """Return the calls along the tags that count."""
    calls: list[_Written] = []
    number = 0
    while number < len(tags):
        tag, end = tags[number], ends[number]
        if tag[1]:
            calls.append((tag[1], []))
        elif tag[2] and end is not None:
            calls[-1][1].append((tag[2], text[tag.end() : tags[end].start()]))
            number = end
        number += 1
    return calls


def _event(written: _Written, schemas: Schemas) -> ToolCallEvent:
    name, values = written
    properties = schemas.get(name, {})
    given = {key for key, _ in values}
    arguments: dict[str, Any] = {}
    for key, text in values:
        for part, value in _parts(key, text, properties.keys() - given):
            arguments[part] = _convert(_without_newlines(value), properties.get(part))
    return ToolCallEvent(name, arguments, to_json(arguments))


def _parts(key: str, text: str, others: set[str]) -> list[tuple[str, str]]:
    """Divide a value where `</parameter>` was forgotten: a tag of another parameter has a line of its own."""
    parts, begin = [], 0
    for tag in _OWN_LINE.finditer(text) if others else ():
        if tag[1] in others and text[begin : tag.start()].strip():
            parts.append((key, text[begin : tag.start()]))
            key, begin = tag[1], tag.end()
            others = others - {key}
    return [*parts, (key, text[begin:])]


def _without_newlines(value: str) -> str:
    """Drop the one newline on either side that belongs to the tags."""
    value = value.removeprefix("\n")
    return value.removesuffix("\n")


def _convert(text: str, schema: Any) -> Any:
    """Return what a value means by its schema; what does not convert, and what has no type, stays text."""
    types = _types(schema)
    kind = next((each for each in types if each != "null"), "null" if types else "")
    read = _READERS.get(kind)
    word = text.strip().lower()
    if word in _NULLS and types and (read is not None or "null" in types):
        return None
    value = read(text) if read else None
    return text if value is None else value


def _types(schema: Any) -> list[str]:
    """Return the types that a schema names, in order; "null" among them where null is allowed."""
    if not isinstance(schema, Mapping):
        return []
    named = schema.get("type")
    types = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    choices = schema.get("anyOf", schema.get("oneOf"))
    if not types and isinstance(choices, list):
        types = [kind for choice in choices for kind in _types(choice)]
    return [kind for kind in types if isinstance(kind, str)] + ["null"] * (schema.get("nullable") is True)


def _read_integer(text: str) -> int | None:
    try:
        return int(text) if _INTEGER.fullmatch(text.strip()) else None
    except ValueError:  # more digits than Python reads
        return None


def _read_number(text: str) -> int | float | None:
    whole = _read_integer(text)
    if whole is not None or not _NUMBER.fullmatch(text.strip()):
        return whole
    number = float(text)
    return None if number in (float("inf"), float("-inf")) else number


def _read_boolean(text: str) -> bool | None:
    return _BOOLEANS.get(text.strip().lower())


def _read_container(text: str) -> Any:
    """Read a list or an object, as JSON or else as the Python literal that the template of 2025-07 shows."""
    for read in (json.loads, _read_literal):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | dict):
            return value
    return None


def _read_literal(text: str) -> Any:
    with warnings.catch_warnings(action="ignore"):
        value = ast.literal_eval(text.strip())
    return json.loads(json.dumps(value, allow_nan=False))


_READERS: dict[str, Callable[[str], Any]] = {
    "integer": _read_integer,
    "int": _read_integer,
    "number": _read_number,
    "float": _read_number,
    "boolean": _read_boolean,
    "bool": _read_boolean,
    "object": _read_container,
    "dict": _read_container,
    "array": _read_container,
    "list": _read_container,
    "null": lambda _: None,
}
