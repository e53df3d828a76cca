"""Records of renderings and parses: where they are, and how an output is compared with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from macmoe.chat import (
    AnswerText,
    ChatFormat,
    CommentaryText,
    Event,
    Message,
    Parser,
    ThinkingText,
    ToolCallEvent,
)
from macmoe.chat.deepseek_v3 import DeepSeekFormat
from macmoe.chat.gpt_oss import HarmonyFormat
from macmoe.chat.qwen3 import Qwen3Format
from tests.conftest import SHARED

VECTORS = Path(__file__).parents[1] / "vectors" / "chat"
FAMILIES = ("qwen3", "gpt_oss", "deepseek_v31")
CHANNELS = {ThinkingText: "thinking", AnswerText: "answer", CommentaryText: "commentary"}
THINKING = {True: "on", False: "off", None: None}
TAGS = re.compile(
    r"<｜[^｜<>]+｜>|</?think>|</?tool_call>|</?tool_response>|"
    r"<\|(?:im_start|im_end|endoftext|start|end|message|channel|constrain|return|call)\|>"
)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file, whose texts may hold U+2028; none where the file is absent."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def golden(prefix: str = "") -> list[Any]:
    """Return pytest parameters for all golden records of one kind, or one parameter that is skipped."""
    return golden_file(*(f"{prefix}{family}" for family in FAMILIES))


def golden_file(*names: str) -> list[Any]:
    """Return pytest parameters for the golden records of some files, or one parameter that is skipped."""
    records = [record for name in names for record in lines_of(SHARED / "golden" / f"{name}.jsonl")]
    if not records:
        reason = "the golden data folder ../shared is not on this machine"
        return [pytest.param({}, id="golden", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(record, id=record["id"]) for record in records]


def vectors(prefix: str = "") -> list[Any]:
    """Return pytest parameters for the records of one kind that the repository holds."""
    records = [record for family in FAMILIES for record in lines_of(VECTORS / f"{prefix}{family}.jsonl")]
    return [pytest.param(record, id=record["id"]) for record in records]


def family_of(record: dict[str, Any]) -> str:
    return record["family"].removesuffix("1")


def format_of(record: dict[str, Any]) -> ChatFormat:
    formats = {"qwen3": Qwen3Format, "deepseek_v31": DeepSeekFormat}
    if record["family"] in formats:
        return formats[record["family"]]()
    return HarmonyFormat(date=record.get("date"))


def arguments_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `render_target`."""
    return {
        "messages": [Message.from_dict(message) for message in record["messages"]],
        "tools": record["tools"] or (),
        "thinking": record["effort"] or THINKING[record["thinking"]],
    }


def ending_of(record: dict[str, Any]) -> str:
    if record["add_generation_prompt"]:
        return "prompt"
    return "open" if record["continue_final_message"] else "closed"


def run(parser: Parser, ids: list[int]) -> list[Event]:
    events = [event for token_id in ids for event in parser.feed(token_id)]
    return events + parser.finish()


def merged(events: list[Event]) -> list[dict[str, Any]]:
    """Return events in the form of the records, neighboring text of one channel joined."""
    result: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, ToolCallEvent):
            call = {"channel": "tool_call", "name": event.name, "arguments": event.arguments}
            result.append(call if event.arguments is not None else {**call, "raw": event.raw})
        elif result and result[-1]["channel"] == CHANNELS[type(event)]:
            result[-1]["text"] += event.text
        else:
            result.append({"channel": CHANNELS[type(event)], "text": event.text})
    return result


def comparable(events: list[dict[str, Any]], *, malformed: bool) -> list[dict[str, Any]]:
    """Return events so that equal readings are equal; in broken outputs white space and tags do not count."""
    result: list[dict[str, Any]] = []
    for event in events:
        if result and "text" in event and result[-1]["channel"] == event["channel"]:
            result[-1]["text"] += event["text"]
        else:
            result.append(dict(event))
    for event in result:
        for key in event.keys() & {"text", "raw"}:
            text = event[key]
            event[key] = re.sub(r"\s+", "", TAGS.sub("", text)) if malformed else text.strip()
    return [event for event in result if event.get("text") != ""]
