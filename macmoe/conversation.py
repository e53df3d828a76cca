"""A conversation: messages, settings, tools and one prompt cache that all turns share.

`send` asks and yields the events of the answer. Where the model called tools, the calls are `pending`: none
runs before `run` is called with it, and the results go back with `reply`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from macmoe.answer import Stats
from macmoe.chat.events import AnswerText, CommentaryText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message, ToolCall, read_messages
from macmoe.errors import ChatFormatError, UsageError
from macmoe.generate import Progress
from macmoe.paths import expand_home
from macmoe.prompt_cache import PromptCache
from macmoe.tools import ToolLike, as_tools, declarations, run_call

_LOG = logging.getLogger(__name__)
FORMAT_VERSION = 1
_VERSION = "macmoe_conversation"
NO_RESULT = "error: no result, the user stopped this call"

Events = Generator[Event | Stats, None, None]
# What `Session.generate` is: (messages, **arguments) -> events and, last, Stats.
Generate = Callable[..., Iterator[Event | Stats]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to answer. The fields are arguments of `Session.generate`, which describes them."""

    system: str | None = None
    thinking: Thinking | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    max_answer_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


class Conversation:
    """Messages that grow by questions and answers.

    An answer that is stopped (by closing the iterator, or by an exception in the loop over it) keeps what was
    written. One that fails, or is stopped, before its first event leaves the conversation as it was.

    Args:
        generate: Answers messages, as `Session.generate` does.
        settings: How to answer; may be replaced between turns.
        messages: What was said before.
        tools: What the model may call: functions, tools, or declarations (which cannot be run here).
        cache: Of the earlier turns.

    Attributes:
        declarations: Of the tools, as the model reads them.
        messages: What was said, without the system message, which is `settings.system`.
        stats: What each complete answer took, in the order of generation.
    """

    def __init__(
        self,
        generate: Generate,
        settings: Settings,
        *,
        messages: Sequence[Message] = (),
        tools: Sequence[ToolLike] = (),
        cache: PromptCache | None = None,
    ) -> None:
        self._generate = generate
        self._tools = as_tools(tools)
        self.declarations = declarations(tools)
        self.settings = settings
        self.messages = list(messages)
        self.cache = cache
        self.stats: list[Stats] = []

    @property
    def pending(self) -> tuple[ToolCall, ...]:
        """The tool calls of the last answer, which wait for `reply`."""
        return self.messages[-1].tool_calls if self.messages else ()

    def send(self, text: str, *, progress: Progress | None = None) -> Events:
        """Ask something and yield the events of the answer; calls still pending get no result.

        Raises:
            MacmoeError: See `Session.generate`.
        """
        if not text.strip():
            raise UsageError("the message is empty: there is nothing to answer")
        skipped = self._results([NO_RESULT] * len(self.pending))
        yield from self._answer([*self.messages, *skipped, Message("user", text)], progress)

    def reply(self, results: Sequence[str], *, progress: Progress | None = None) -> Events:
        """Give the model the results of its pending calls, in order, and yield the events of what it answers.

        Raises:
            UsageError: The numbers of calls and results differ.
        """
        if not self.pending or len(results) != len(self.pending):
            raise UsageError(f"{len(results)} results for {len(self.pending)} pending tool calls")
        yield from self._answer([*self.messages, *self._results(results)], progress)

    def forget(self) -> None:
        """Read everything again for the next answer, because the model answers otherwise from now on."""
        if self.cache is not None:
            self.cache.forget()

    def move(self, generate: Generate, cache: PromptCache | None) -> None:
        """Let another model answer from now on; it reads all that was said anew.

        Args:
            generate: Answers messages, as `Session.generate` of that model does.
            cache: An empty one of that model.
        """
        self._generate, self.cache = generate, cache

    def clear(self) -> None:
        """Begin a new conversation; settings and tools stay."""
        self.messages, self.stats = [], []
        self.forget()

    def run(self, call: ToolCall) -> str:
        """Run one call and return its result, or what is wrong with it, as text for the model."""
        return run_call(self._tools, call)

    def retry(self, *, progress: Progress | None = None) -> Events:
        """Answer the last question once more, in place of the answer it got.

        Raises:
            UsageError: There is no question.
        """
        yield from self._answer(self.messages[: self._last_question() + 1], progress)

    def undo(self) -> str:
        """Take back the last question with all that followed, and return it.

        Raises:
            UsageError: There is no question.
        """
        index = self._last_question()
        question = self.messages[index].content
        del self.messages[index:]
        return question

    def save(self, path: str | Path) -> None:
        """Write the system message and the messages as JSON, complete or not at all.

        Raises:
            ChatFormatError: The file exists and is no saved conversation, which alone may be replaced.
            UsageError: Its folder does not exist.
            OSError: The file cannot be written.
        """
        path = expand_home(path)
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}; create it first")
        if path.exists():
            _saved(path)
        data = {
            _VERSION: FORMAT_VERSION,
            "system": self.settings.system,
            "messages": [message.to_dict() for message in self.messages],
        }
        temporary = path.with_name(f".{path.name}.partial")
        try:
            temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: str | Path) -> None:
        """Replace the system message and the messages by those of a file; settings, tools and cache stay.

        The file is a saved conversation, or messages as servers take them: a JSON list, or an object with
        `messages`. A system message at their beginning becomes that of the settings.

        Raises:
            ChatFormatError: The file is neither; nothing is changed then.
            OSError: The file cannot be read.
        """
        system, messages = _messages(expand_home(path))
        self.settings, self.messages = replace(self.settings, system=system), messages

    def _answer(self, messages: list[Message], progress: Progress | None) -> Events:
        received: list[Event | Stats] = []
        events = self._generate(
            messages, tools=self.declarations, cache=self.cache, progress=progress, **asdict(self.settings)
        )
        try:
            for event in events:
                received.append(event)
                yield event
        finally:
            if received:
                written = sum(len(message.tool_calls) for message in messages)
                self.messages = [*messages, _message(received, written)]
                self.stats += [event for event in received if isinstance(event, Stats)]

    def _results(self, texts: Sequence[str]) -> list[Message]:
        return [
            Message("tool", text, tool_call_id=call.id, name=call.name)
            for call, text in zip(self.pending, texts, strict=True)
        ]

    def _last_question(self) -> int:
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                return index
        raise UsageError("there is no question yet")


def _message(events: Sequence[Event | Stats], earlier_calls: int) -> Message:
    """Make the assistant's message of the events of an answer, complete or not."""
    called = (event for event in events if isinstance(event, ToolCallEvent))
    calls = tuple(
        ToolCall(event.name, event.arguments, id=f"call_{number}", raw=event.raw)
        for number, event in enumerate(called, start=earlier_calls)
    )
    thinking, commentary, answer = (
        "".join(event.text for event in events if isinstance(event, kind))
        for kind in (ThinkingText, CommentaryText, AnswerText)
    )
    content = "\n\n".join(filter(None, (commentary, answer)))
    return Message("assistant", content, reasoning=thinking or None, tool_calls=calls)


def _messages(path: Path) -> tuple[str | None, list[Message]]:
    """Read the system message and the messages of a file, saved here or written by another program."""
    data = _read(path)
    history = data.get("messages") if isinstance(data, Mapping) else data
    if (isinstance(data, Mapping) and _VERSION in data) or not history or not isinstance(history, list):
        return _saved(path)
    try:
        messages = read_messages(history)
    except ChatFormatError as error:
        raise ChatFormatError(f"{path}: not a saved conversation or list of messages ({error})") from None
    unused = sorted(map(str, data.keys() - {"messages"})) if isinstance(data, Mapping) else []
    if unused:
        _LOG.warning("%s: only its messages are read, not %s", path, ", ".join(unused))
    first = messages[0]
    return (first.content, messages[1:]) if first.role == "system" else (None, messages)


def _saved(path: Path) -> tuple[str | None, list[Message]]:
    """Read the system message and the messages of a saved conversation."""
    data = _read(path)
    version = data.get(_VERSION) if isinstance(data, Mapping) else None
    if version is None:
        raise ChatFormatError(f"{path}: not a saved conversation; choose another file")
    if version != FORMAT_VERSION:
        raise ChatFormatError(
            f"{path}: saved in version {version} of the format; this macmoe reads version {FORMAT_VERSION}"
        )
    system, items = data.get("system"), data.get("messages")
    if not isinstance(system, str | None) or not isinstance(items, list):
        raise ChatFormatError(f"{path}: `system` must be text or null, and `messages` a list")
    try:
        return system, read_messages(items)
    except ChatFormatError as error:
        raise ChatFormatError(f"{path}: {error}") from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ChatFormatError(f"{path}: not a saved conversation ({error})") from None
