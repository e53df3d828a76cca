"""Read messages as clients, servers and data sets spell them: one normal form for all that takes a history.

What holds nothing (null, an empty text, list or object) passes under any key. What is about a message rather
than part of it is left out, and named to the caller. What a model cannot read is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableSet, Sequence
from dataclasses import dataclass, field
from typing import Any

from macmoe.chat.payload import ARGUMENT_KEYS, read_arguments, to_json
from macmoe.errors import ChatFormatError

_MESSAGE = {
    "role": ("role",),
    "content": ("content",),
    "reasoning": ("reasoning", "reasoning_content", "thinking"),
    "tool_calls": ("tool_calls",),
    "function_call": ("function_call",),
    "refusal": ("refusal",),
    "tool_call_id": ("tool_call_id", "tool_use_id", "call_id", "toolCallId"),
    "name": ("name", "tool_name", "toolName"),
}
_CALL = {"id": ("call_id", "id"), "name": ("name",), "arguments": ARGUMENT_KEYS}
# The parts of a content that is a list: which field they belong to, and the keys of their text.
_PARTS = {
    "text": ("content", ("text",)),
    "input_text": ("content", ("text",)),
    "output_text": ("content", ("text",)),
    "refusal": ("content", ("refusal", "text")),
    "thinking": ("reasoning", ("thinking", "text")),
    "reasoning": ("reasoning", ("reasoning", "text")),
    "reasoning_text": ("reasoning", ("text",)),
}
_MAY_BE_SILENT = ("tool", "system", "developer")
_RESULT = {"id": ("tool_use_id", "tool_call_id"), "content": ("content",), "is_error": ("is_error",)}
_BLOCKS = ("tool_use", "tool_result", "redacted_thinking")
# What the interfaces themselves write into every message, call and part.
_BOOKKEEPING = {
    *("id", "type", "index", "status", "object", "phase"),
    *("signature", "cache_control", "encrypted_content"),
}
# What programs note about a message.
_METADATA = {
    *("annotations", "citations", "logprobs", "metadata", "usage", "usage_metadata", "response_metadata"),
    *("additional_kwargs", "provider_specific_fields", "provider_options", "providerOptions"),
    *("providerMetadata", "provider", "extra_content", "example"),
    *(
        "encrypted_content",
        "reasoning_details",
        "reasoning_signature",
        "thinking_blocks",
        "thought_signature",
    ),
    *("model", "model_name", "created", "timestamp", "date", "time", "finish_reason", "stop_reason"),
    *("stop_sequence", "service_tier", "system_fingerprint", "uuid", "version", "hash", "source", "lang"),
    *("language", "tokens", "token_count", "cost", "latency", "duration", "score", "rating", "feedback"),
}
_METADATA_ENDS = ("_id", "_at", "_time", "_ms", "_tokens", "_metadata", "Id", "At")
_MEDIA = {
    **dict.fromkeys(("image", "picture", "photo"), "an image"),
    **dict.fromkeys(("images", "pictures", "photos"), "images"),
    **dict.fromkeys(("video", "videos"), "video"),
    "audio": "audio",
    **dict.fromkeys(("file", "files", "attachment", "attachments", "document", "documents"), "a file"),
}
# The parts that interfaces have for them; a tool may return objects of any other type.
_MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "input_file", "video_url")
_WORDS = re.compile(r"[A-Z]?[a-z]+")


@dataclass(slots=True)
class _Content:
    """What the parts of a content hold."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)


def read_message(data: Any, ignored: MutableSet[str]) -> list[dict[str, Any]]:
    """Return the fields of a message; several where it also holds results of tools, as Anthropic writes them.

    Args:
        data: The message.
        ignored: Takes the names of what is left out because no model reads it.

    Raises:
        ChatFormatError: It is no message, or holds what cannot be read.
    """
    given, others = spelled(data, _MESSAGE, "a message")
    _leave_out(others, "a message", _MESSAGE, ignored)
    role = given.get("role", "")
    found = _read_content(given.get("content"), role, ignored)
    if isinstance(given.get("refusal"), str):
        found.content.append(given["refusal"])
    calls = [*_list_of_calls(given.get("tool_calls", ())), *found.calls]
    calls += [given["function_call"]] if "function_call" in given else []
    fields = {
        "role": "tool" if role == "function" else role,
        "reasoning": _reasoning(given.get("reasoning"), found.reasoning),
        "tool_calls": [read_call(call, ignored) for call in calls],
        "tool_call_id": _as_id(given.get("tool_call_id")),
        "name": _without_namespace(given.get("name")),
    }
    if found.results and not (found.content or calls):
        return found.results
    speaks = found.content or fields["reasoning"] or calls or fields["role"] in _MAY_BE_SILENT
    content = "".join(found.content) if speaks else data.get("content")
    return [*found.results, {**fields, "content": content}]


def read_call(data: Any, ignored: MutableSet[str]) -> dict[str, Any]:
    """Return name, arguments (None where they are no object), text of the arguments, and id of a call.

    Raises:
        ChatFormatError: It is no call.
    """
    if isinstance(data, Mapping) and isinstance(data.get("function"), Mapping):
        data = {**data, **_filled(data["function"]), "function": None}
    if isinstance(data, Mapping) and data.get("call_id"):
        data = {**data, "id": None}  # where both stand, results name `call_id`
    given, others = spelled(data, _CALL, "a tool call")
    _leave_out({key: others[key] for key in others if key != "function"}, "a tool call", _CALL, ignored)
    name, arguments = _without_namespace(given.get("name")), given.get("arguments", {})
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping | str):
        raise ChatFormatError(
            f"a tool call needs a name and arguments (an object or its JSON text), not {brief(data)}"
        )
    arguments, raw = read_arguments(arguments) if isinstance(arguments, str) else (dict(arguments), None)
    return {"name": name, "arguments": arguments, "raw": raw, "id": _as_id(given.get("id"))}


def spelled(
    data: Any, table: Mapping[str, Sequence[str]], what: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the fields of a table under their own names, and what else an object holds."""
    if not isinstance(data, Mapping):
        raise ChatFormatError(f"{what} must be an object, not {brief(data)}")
    fields, others = {}, _filled(data)
    for name, spellings in table.items():
        given = [spelling for spelling in spellings if spelling in others]
        values = [others.pop(spelling) for spelling in given]
        if any(_bare(value) != _bare(values[0]) for value in values):
            raise ChatFormatError(
                f"{' and '.join(map(repr, given))} of {what} both give the {name}, and differ; keep one"
            )
        if values:
            fields[name] = values[0]
    return fields, others


def brief(value: Any) -> str:
    """Return the beginning of a value, for a message to the user."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_content(content: Any, role: Any, ignored: MutableSet[str]) -> _Content:
    """Read a content of any form; one that has none of them stays for `Message` to refuse."""
    found = _Content()
    parts = [content] if isinstance(content, Mapping) else content
    if isinstance(content, str):
        found.content.append(content)
    elif role in ("tool", "function") and content is not None and not _are_parts(content):
        found.content.append(to_json(content))
    elif isinstance(parts, list | tuple):
        for part in parts:
            _read_part(part, found, ignored)
    elif content is not None:
        raise ChatFormatError(f"the content of a {role} message must be text, not {brief(content)}")
    return found


def _read_part(part: Any, found: _Content, ignored: MutableSet[str]) -> None:
    """Add what one part of a content holds."""
    data = {"text": part} if isinstance(part, str) else part
    kind = data.get("type", "text") if isinstance(data, Mapping) else None
    if kind not in (*_PARTS, *_BLOCKS):
        medium = medium_of(kind)
        held = f" but {medium} ({kind!r}); these models read text only" if medium else f": {brief(part)}"
        raise ChatFormatError(f"the content of a message has a part that is no text{held}")
    if kind == "tool_use":
        found.calls.append(data)
    elif kind == "tool_result":
        found.results.append(_read_result(data, ignored))
    elif kind == "redacted_thinking":
        ignored.add(kind)
    else:
        name, keys = _PARTS[kind]
        given, others = spelled(data, {"text": keys}, "a part of a message")
        _leave_out(others, "a part of a message", {"text": keys}, ignored)
        text = given.get("text", "")
        if not isinstance(text, str):
            raise ChatFormatError(f"the content of a message has a part that is no text: {brief(part)}")
        getattr(found, name).append(text)


def _read_result(data: Mapping[str, Any], ignored: MutableSet[str]) -> dict[str, Any]:
    """Return the result of a tool as a message of its own."""
    given, others = spelled(data, _RESULT, "a tool result")
    _leave_out(others, "a tool result", _RESULT, ignored)
    text = "".join(_read_content(given.get("content"), "tool", ignored).content)
    prefix = "error: " if given.get("is_error") is True else ""
    return {"role": "tool", "content": prefix + text, "tool_call_id": _as_id(given.get("id"))}


def _are_parts(items: Any) -> bool:
    """Tell whether the content of a tool message is a list of parts, and not what the tool returned."""
    if not isinstance(items, list | tuple):
        return False
    kinds = [item.get("type") if isinstance(item, Mapping) else None for item in items]
    return all(kind in _PARTS or kind in _MEDIA_PARTS for kind in kinds)


def _list_of_calls(calls: Any) -> list[Any]:
    if not isinstance(calls, list | tuple):
        raise ChatFormatError(f"tool_calls must be a list, not {brief(calls)}")
    return list(calls)


def _reasoning(given: Any, parts: Sequence[str]) -> Any:
    """Return the reasoning, which may stand in its field, in parts of the content, or in both."""
    if given is not None and not isinstance(given, str):
        return given
    texts = dict.fromkeys(text for text in (given, "".join(parts)) if text)
    return "\n\n".join(texts) or None


def _leave_out(
    others: Mapping[str, Any], what: str, table: Mapping[str, Sequence[str]], ignored: MutableSet[str]
) -> None:
    """Note what is about a message, and refuse what could be part of it."""
    for key in map(str, others):
        if key in _METADATA or (key.endswith(_METADATA_ENDS) and not medium_of(key)):
            ignored.add(key)
        elif medium := medium_of(key):
            raise ChatFormatError(
                f"{what} holds {medium} ({key!r}), and these models read text only; leave it out"
            )
        elif key not in _BOOKKEEPING:
            known = sorted(spelling for spellings in table.values() for spelling in spellings)
            raise ChatFormatError(
                f"{what} has the unknown key {key!r}, which would be ignored; known are {', '.join(known)}"
            )


def medium_of(key: Any) -> str | None:
    """Return what a key of this name holds that is no text, in words; None: nothing of the kind."""
    words = (word.lower() for word in _WORDS.findall(key)) if isinstance(key, str) else ()
    return next((_MEDIA[word] for word in words if word in _MEDIA), None)


def _filled(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what holds something."""
    return {key: value for key, value in data.items() if value is not None and value not in ("", [], {}, ())}


def _bare(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def _as_id(value: Any) -> str | None:
    return None if value is None else str(value)


def _without_namespace(name: Any) -> Any:
    """Return the name of a tool; GPT-OSS and its servers put `functions.` before it."""
    return name.removeprefix("functions.") if isinstance(name, str) else name
