"""Read what a checkpoint's small files say beside its vocabulary: chat templates, and the roles of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from macmoe.errors import CheckpointError
from macmoe.files import refuse_pointer

# Where transformers writes the templates that have a name; older files call the folder otherwise.
NAMED_TEMPLATES = ("additional_chat_templates", "chat_templates")
# The templates that are looked at: what a chat gets without and with tools.
_USED = ("default", "tool_use")


def read_template(folder: Path) -> str:
    """Return the text of the chat templates that a checkpoint folder carries, or nothing.

    Templates stand in `chat_template.jinja` and the folders beside it, or in `tokenizer_config.json`, or in
    `chat_template.json`: as one text, or several with names.

    Raises:
        CheckpointError: A file cannot be read.
    """
    templates = (
        _templates(read_object(folder / "chat_template.json"))
        | _templates(read_object(folder / "tokenizer_config.json"))
        | _separate(folder)
    )
    used = [templates[name] for name in _USED if name in templates] or list(templates.values())
    return "\n".join(dict.fromkeys(used))


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, an empty one where there is no file.

    Raises:
        CheckpointError: The file holds something else.
    """
    if not path.is_file():
        return {}
    refuse_pointer(path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not a JSON object ({error}); fetch the file again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: not a JSON object but a {type(value).__name__}; fetch the file again")
    return value


def tokens_with_a_role(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the tokens that a `tokenizer_config.json` gives a role, such as the end of a text."""
    return frozenset(_contents(value for key, value in config.items() if key.endswith("_token")))


def tokens_called_special(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the tokens without a role that a `tokenizer_config.json` calls special all the same."""
    listed: list[Any] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        value = config.get(key)
        listed += value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return frozenset(_contents(listed))


def _contents(tokens: Iterable[Any]) -> Iterable[str]:
    """Yield tokens that are written as a text, or as an object with its content."""
    for token in tokens:
        content = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(content, str) and content:
            yield content


def _templates(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the templates of a JSON file by name, those with text."""
    written = config.get("chat_template")
    if isinstance(written, str):
        written = {"default": written}
    elif isinstance(written, list):
        entries = [entry for entry in written if isinstance(entry, Mapping)]
        written = {str(entry.get("name")): entry.get("template") for entry in entries}
    found = written if isinstance(written, Mapping) else {}
    return {str(name): text for name, text in found.items() if isinstance(text, str) and text.strip()}


def _separate(folder: Path) -> dict[str, str]:
    """Return the templates that have files of their own."""
    files = {path.stem: path for name in NAMED_TEMPLATES for path in sorted(folder.glob(f"{name}/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    texts = {name: _read_text(path) for name, path in files.items()}
    return {name: text for name, text in texts.items() if text.strip()}


def _read_text(path: Path) -> str:
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not a text ({error}); fetch the file again") from None
