"""Chat formats, written by hand for each family: messages to text, tokens to events.

No template is ever run. What a format writes and what users write is told apart down to the token ids.
"""

from __future__ import annotations

from macmoe.chat.choice import FORMATS, format_for
from macmoe.chat.events import AnswerText, CommentaryText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.format import EFFORT_BUDGETS, ChatFormat, Ending, Thinking
from macmoe.chat.messages import Message, Segment, ToolCall
from macmoe.chat.parser import Parser

__all__ = [
    "EFFORT_BUDGETS",
    "FORMATS",
    "AnswerText",
    "ChatFormat",
    "CommentaryText",
    "Ending",
    "Event",
    "Message",
    "Parser",
    "Segment",
    "Thinking",
    "ThinkingText",
    "ToolCall",
    "ToolCallEvent",
    "format_for",
]
