"""The streaming parser of Qwen3-Coder: an answer, and calls as XML-like tags around plain values."""

from __future__ import annotations

import re

from macmoe.chat.events import AnswerText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.format import Tools
from macmoe.chat.parser import Parser, Vocabulary
from macmoe.chat.xml_calls import (
    CLOSE_FUNCTION,
    CLOSE_PARAMETER,
    FUNCTION,
    read_beginning,
    read_unclosed,
    read_whole,
    schemas_of,
)

_CALL, _CALL_END = "<tool_call>", "</tool_call>"
_THINK, _THINK_END = "<think>", "</think>"
_ENDS = ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
_RESULT = ("<tool_response>", "</tool_response>")
_FUNCTION = "<function="
_CLOSINGS = (CLOSE_PARAMETER, CLOSE_FUNCTION, _CALL_END)


def _beginnings(tag: str) -> str:
    return "|".join(re.escape(tag[:size]) for size in range(len(tag), 0, -1))


# A call without its token: at the beginning of a line, perhaps after the tag spelled with ordinary tokens.
_BARE = re.compile(rf"(?m)^[ \t]*(?:{_CALL}\s*)?({FUNCTION.pattern})")
_BARE_BEGINS = re.compile(
    rf"(?m)^[ \t]*(?:(?:{_CALL}\s*)?(?:{_FUNCTION}[^<>\n]*|{_beginnings(_FUNCTION)})?"
    rf"|{_beginnings(_CALL)})\Z"
)


_BEGUN = re.compile(rf"\A\s*{_CALL}\s*")
_MORE_ENDS = re.compile(rf"\A(?:\s*{_CALL_END})+")


class CoderParser(Parser):
    """The parser of Qwen3-Coder.

    How it reads what is ambiguous or breaks the format:

    - A value ends where sound calls follow, so tags in it are text. So is a call in it, if one can be told:
      a call that closing tags follow was part of a value.
    - `<function=NAME>` at the beginning of a line begins a call without `<tool_call>`, too, if the tool is
      declared or none is.
    - Missing end tags do not matter where the model stopped by itself. A call that was cut is text: half a
      file must not be written.
    - What is no call is text. Newlines next to a call are none.
    """

    def __init__(self, vocabulary: Vocabulary, start: str, tools: Tools = ()) -> None:
        super().__init__(vocabulary, (_CALL, _CALL_END, _THINK, _THINK_END, *_RESULT, *_ENDS))
        self._schemas = schemas_of(tools)
        self._thinking = start == "thinking"
        self._begins = True  # nothing was said since the last tag, so a line begins here
        self._after_tag = False
        self._held = ""  # what the next text decides about: white space, the beginning of a tag
        self._block: str | None = None  # the text of the calls being written
        self._in_tag = False  # whether `<tool_call>` opened the block
        self._gap = ""  # what stood before a block that nothing opened, if it was no call
        self._calls: list[ToolCallEvent] = []  # of a block that is closed, if nothing shows it was a value
        self._closed = 0  # the length of the block with which it was closed

    @property
    def thinking(self) -> bool:
        """Whether the model is inside its thinking now."""
        return self._thinking and self._block is None

    def _text(self, text: str) -> list[Event]:
        if self._block is None:
            return self._prose(text)
        self._block += text
        return self._look_ahead(self._block[self._closed :]) if self._calls else []

    def _control(self, token: str) -> list[Event]:
        if self._block is not None:
            return self._control_in_block(token)
        if token in _ENDS:
            return []
        if token == _CALL:
            events = self._before_tag()
            self._block, self._in_tag = "", True
            return events
        if token != (_THINK_END if self._thinking else _THINK) and token in (_THINK, _THINK_END):
            return []
        events = self._before_tag()
        self._thinking ^= token in (_THINK, _THINK_END)
        return events

    def _end(self) -> list[Event]:
        events = self._end_block(stopped=False) if self._block is not None else []
        held, self._held = self._held, ""
        return events + self._say("" if self._after_tag and not held.strip() else held)

    def _control_in_block(self, token: str) -> list[Event]:
        block = self._block or ""
        if token in _ENDS:
            return self._end_block(stopped=True)
        if token == _CALL_END:
            return self._close(block)
        if token == _CALL and not self._calls:
            self._calls, self._closed = self._complete(block), len(block)
        if self._calls and token != _CALL:
            return self._deliver() + self._prose(block[self._closed :]) + self._control(token)
        return self._text(token)

    def _complete(self, block: str) -> list[ToolCallEvent]:
        """Return the calls of a block after which another one begins."""
        body = block.rstrip().removesuffix(_CALL_END)
        whole = read_whole(body, self._schemas)
        if whole or len(body) == len(block.rstrip()) or not body.rstrip().endswith(CLOSE_FUNCTION):
            return whole or []
        unclosed = read_unclosed(body, self._schemas)
        return unclosed[0] if unclosed else []

    def _close(self, block: str) -> list[Event]:
        """Take `</tool_call>`: it ends the calls, or is text of a value."""
        if not FUNCTION.match(block.lstrip()):
            self._block = None
            events = self._prose(block)
            return events + (self._before_tag() if self._block is None else self._close(self._block))
        self._calls = read_whole(block, self._schemas) or []
        self._block = block + _CALL_END
        self._closed = len(self._block)
        return []

    def _look_ahead(self, after: str) -> list[Event]:
        """Deliver the calls of a closed block, unless what follows shows that it goes on."""
        found = after.lstrip()
        call = found.removeprefix(_CALL).lstrip()
        if any(tag.startswith(found) for tag in (*_CLOSINGS, _CALL)) or (
            found.startswith(_CALL) and _FUNCTION.startswith(call)
        ):
            return []
        if found.startswith(_CALL) and call.startswith(_FUNCTION):
            events = self._deliver()
            self._block, self._in_tag = call, True
            return events
        if found.startswith((*_CLOSINGS, _CALL)):
            self._calls = []
            return []
        return self._deliver() + self._prose(after)

    def _deliver(self) -> list[Event]:
        calls, self._calls, self._block = self._calls, [], None
        self._after_tag = self._begins = True
        return [*calls]

    def _end_block(self, *, stopped: bool) -> list[Event]:
        """Read a block that the end of the output, or of the turn, cut."""
        block = self._block or ""
        if self._calls:
            return self._deliver() + self._prose(_BEGUN.sub("", block[self._closed :]))
        found = read_beginning(block, self._schemas)
        rest = found[1].strip() if found else ""
        if self._in_tag and not stopped and not (rest.startswith(_CALL_END) or _CALL_END.startswith(rest)):
            found = None  # cut inside a value that holds calls
        plain = not self._in_tag and CLOSE_PARAMETER not in block  # a mere tag, as prose may show it
        if found is None and not plain and (stopped or block.rstrip().endswith(_CALL_END)):
            found = read_unclosed(block, self._schemas)
        if found is None:
            self._block = None
            return self._say(self._unread(block))
        self._calls = found[0]
        events = self._deliver()
        events += self._prose(_MORE_ENDS.sub("", found[1]))
        return events + (self._end_block(stopped=stopped) if self._block is not None else [])

    def _unread(self, block: str) -> str:
        """Return the text that a block is which is no call."""
        if self._in_tag:
            return block.strip("\n").removesuffix(_CALL_END).rstrip("\n")
        return self._gap + block

    def _prose(self, text: str) -> list[Event]:
        """Take text outside of calls."""
        held = self._held + text
        if self._after_tag:
            held = held.lstrip("\n")
        found = None if self._thinking else self._bare_call(held)
        if found is not None:
            self._held = held[: found.start()]
            self._gap = held[len(self._held.rstrip()) : found.start(1)]
            events = self._before_tag()
            self._block, self._in_tag = held[found.start(1) :], False
            return events
        certain = held.rstrip()
        unsure = None if self._thinking else _BARE_BEGINS.search(held)
        if unsure is not None and (unsure.start() or self._begins):
            certain = held[: unsure.start()].rstrip()
        self._held = held[len(certain) :]
        return self._say(certain)

    def _bare_call(self, text: str) -> re.Match[str] | None:
        for found in _BARE.finditer(text):
            declared = not self._schemas or found[2] in self._schemas
            if declared and (found.start() or self._begins):
                return found
        return None

    def _before_tag(self) -> list[Event]:
        """Deliver the text before a tag, without white space next to the tag."""
        held, self._held = self._held, ""
        events = self._say(held.rstrip())
        self._after_tag = self._begins = True
        return events

    def _say(self, text: str) -> list[Event]:
        if not text:
            return []
        self._after_tag = self._begins = False
        return [ThinkingText(text) if self._thinking else AnswerText(text)]
