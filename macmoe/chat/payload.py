"""The JSON of a tool call: what stands inside its strings, and what it says, however it is spelled."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

# What models and servers call the arguments of a call.
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")
# Keys beside name and arguments that say nothing a tool would have to know.
_CALL_BOOKKEEPING = {"name", "id", "type", "index", *ARGUMENT_KEYS}
_BEFORE_JSON = re.compile(r"[\w\s.:/`-]*")
_TO_KEY = re.compile(r'[\s,]*(?=")')
_TO_VALUE = re.compile(r"\s*:\s*")
# The type of the content, or a fence, where it stands in the text of the arguments.
_WRAPPED = re.compile(r"(?:\s|```|json|code)*(?P<arguments>\{.*\})[\s`]*", re.DOTALL)

Piece = tuple[str, bool]
"""A stretch of a payload, and whether it is a control token."""


def read_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, or None."""
    value = _read(text)
    return value if isinstance(value, dict) else None


def to_json(value: Any) -> str:
    """Return JSON as the chat templates of the hub write it."""
    return json.dumps(value, ensure_ascii=False)


def read_arguments(text: str) -> tuple[dict[str, Any] | None, str]:
    """Return the object that arguments say, or None, and its text; a JSON string may hold that text."""
    value = _read(text)
    if isinstance(value, str):
        arguments, inner = read_arguments(value)
        return (None, text) if arguments is None else (arguments, inner)
    return (value if isinstance(value, dict) else None), text


def read_payload(text: str) -> tuple[dict[str, Any] | None, str]:
    """Read arguments that may stand in a fence, or behind the word for their type."""
    arguments, raw = read_arguments(text)
    wrapped = _WRAPPED.fullmatch(text) if arguments is None else None
    if wrapped is not None:
        arguments, inner = read_arguments(wrapped["arguments"])
        raw = raw if arguments is None else inner
    return arguments, raw


def read_named_call(text: str) -> tuple[str, dict[str, Any], str] | None:
    """Return name, arguments and their text from `{"name": ..., "arguments": ...}`; None of what is no call.

    The arguments may be called `parameters` and may be a JSON string. Without any, it is a call only where
    nothing else is said: arguments under an unknown key would be lost, and the tool would run without them.
    """
    members = _members(text)
    if inner := _members(members.get("function", "")):
        members = {**members, **inner, "function": "null"}
    name = _read(members.get("name", ""))
    read = [read_arguments(members[key]) for key in ARGUMENT_KEYS if not _is_empty(members.get(key))]
    given = [(arguments, raw) for arguments, raw in read if arguments != {}]
    if not isinstance(name, str) or not name or any(arguments != given[0][0] for arguments, _ in given):
        return None
    if not given:
        others = (value for key, value in members.items() if key not in _CALL_BOOKKEEPING)
        return (name, {}, "{}") if all(map(_is_empty, others)) else None
    arguments, raw = given[0]
    return None if arguments is None else (name, arguments, raw)


class Payload:
    """The text of a call while it is written; in its JSON strings, tokens of the format are text.

    So an agent can write files that hold tags. What begins neither with `{` nor with a JSON string (code, a
    broken call) has no strings here.
    """

    def __init__(self, pieces: Sequence[Piece] = ()) -> None:
        self.pieces: list[Piece] = list(pieces)
        self._depth = 0
        self._begun = self._json = self._ended = self._escaped = False
        self.in_string = False

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(text for text, _ in self.pieces)

    @property
    def whole(self) -> bool:
        """Whether a JSON value was begun and is complete."""
        return self._json and self._ended

    def prose(self, dropped: Collection[str]) -> str:
        """Return the text without some of the tokens in it."""
        return "".join(text for text, is_token in self.pieces if not (is_token and text in dropped))

    def drop_last_tokens(self) -> None:
        """Forget the tokens that no text follows."""
        while self.pieces and self.pieces[-1][1]:
            self.pieces.pop()

    def add(self, text: str) -> None:
        """Take ordinary text."""
        if not text:
            return
        self.pieces.append((text, False))
        begin = 0
        if not self._begun:
            before = _BEFORE_JSON.match(text)
            begin = before.end() if before else 0
            self._begun = begin < len(text)
            self._json = self._begun and text[begin] in '{"'
            self._ended = self._begun and not self._json
        for character in text[begin:]:
            if self._ended:
                break
            self._step(character)

    def add_token(self, token: str) -> None:
        """Take a control token that is text here."""
        self.pieces.append((token, True))
        self._escaped = False

    def _step(self, character: str) -> None:
        if self.in_string:
            closed = character == '"' and not self._escaped
            self._escaped = character == "\\" and not self._escaped
            self.in_string = not closed
        elif character == '"':
            self.in_string = True
        else:
            self._depth += (character in "{[") - (character in "}]")
        self._ended = self._depth <= 0 and not self.in_string


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_empty(spelled: str | None) -> bool:
    return spelled is None or _read(spelled) in (None, "", [], {})


def _members(text: str) -> dict[str, str]:
    """Return the members of a JSON object as they are spelled; none where the text is no object."""
    members: dict[str, str] = {}
    if read_object(text) is None:
        return members
    decode, place = json.JSONDecoder().raw_decode, text.index("{") + 1
    while to_key := _TO_KEY.match(text, place):
        key, place = decode(text, to_key.end())
        to_value = _TO_VALUE.match(text, place)
        begin = to_value.end() if to_value else place
        _, place = decode(text, begin)
        members[key] = text[begin:place]
    return members
