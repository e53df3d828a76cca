"""Run, convert and fine-tune GPT-OSS, Qwen3 and DeepSeek-V3 on Apple Silicon with MLX.

Everything but the errors loads on first use (PEP 562), so that importing macmoe costs next to nothing.
"""

from __future__ import annotations

import importlib
import os
import sys

from macmoe.errors import (
    ChatFormatError,
    CheckpointError,
    ConfigError,
    ContextError,
    ConversionError,
    DatasetError,
    MacmoeError,
    MemoryLimitError,
    UsageError,
)
from macmoe.version import __version__

# Before MLX starts: its CUDA back end gives back what a graph used when all of it has run, and lets a graph
# use a gigabyte (0.32.4). Decoding is as fast with less. Metal's own limit is lower; it is left alone.
if sys.platform == "linux":
    os.environ.setdefault("MLX_MAX_MB_PER_BUFFER", "400")

TYPE_CHECKING = False  # type checkers know better; `typing` alone would double the time of this import
if TYPE_CHECKING:
    from macmoe.answer import Stats
    from macmoe.chat.events import AnswerText, CommentaryText, ThinkingText, ToolCallEvent
    from macmoe.chat.messages import Message, ToolCall
    from macmoe.conversation import Conversation, Settings
    from macmoe.session import Session, load
    from macmoe.tools import Tool

__all__ = [
    "AnswerText",
    "ChatFormatError",
    "CheckpointError",
    "CommentaryText",
    "ConfigError",
    "ContextError",
    "Conversation",
    "ConversionError",
    "DatasetError",
    "MacmoeError",
    "MemoryLimitError",
    "Message",
    "Session",
    "Settings",
    "Stats",
    "ThinkingText",
    "Tool",
    "ToolCall",
    "ToolCallEvent",
    "UsageError",
    "__version__",
    "load",
]

_MODULE_OF = {
    "AnswerText": "macmoe.chat.events",
    "CommentaryText": "macmoe.chat.events",
    "Conversation": "macmoe.conversation",
    "Message": "macmoe.chat.messages",
    "Session": "macmoe.session",
    "Settings": "macmoe.conversation",
    "Stats": "macmoe.answer",
    "ThinkingText": "macmoe.chat.events",
    "Tool": "macmoe.tools",
    "ToolCall": "macmoe.chat.messages",
    "ToolCallEvent": "macmoe.chat.events",
    "load": "macmoe.session",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'macmoe' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
