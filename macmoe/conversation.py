"""A conversation: messages, settings, tools and one prompt cache that all turns share.

`send` asks and yields the events of the answer. Where the model called tools, the calls are `pending`: none
runs before `run` is called with it, and the results go back with `reply`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from macmoe.answer import Stats
from macmoe.chat.events import AnswerText, CommentaryText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.format import Thinking
from macmoe.chat.messages import Message, ToolCall
from macmoe.errors import ChatFormatError, UsageError
from macmoe.generate import Progress
from macmoe.prompt_cache import PromptCache
from macmoe.tools import ToolLike, as_tools, declarations, run_call

MAX_TOKENS = 4096
FORMAT_VERSION = 1
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
    max_tokens: int = MAX_TOKENS
    max_answer_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None


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

    def save(self, path: Path) -> None:
        """Write the system message and the messages as JSON, complete or not at all.

        Raises:
            ChatFormatError: The file exists and is no saved conversation, which alone may be replaced.
            UsageError: Its folder does not exist.
            OSError: The file cannot be written.
        """
        if not path.parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}; create it first")
        if path.exists():
            _saved(path)
        data = {
            "macmoe_conversation": FORMAT_VERSION,
            "system": self.settings.system,
            "messages": [message.to_dict() for message in self.messages],
        }
        temporary = path.with_name(f".{path.name}.partial")
        try:
            temporary.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path) -> None:
        """Replace the system message and the messages by those of a file; settings, tools and cache stay.

        The file is a saved conversation, or messages as servers take them: a JSON list, or an object with
        `messages`. A system message at their beginning becomes that of the settings.

        Raises:
            ChatFormatError: The file is neither; nothing is changed then.
            OSError: The file cannot be read.
        """
        system, messages = _messages(path)
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


def _read(path: Path) -> object:
    """Read the JSON of a file that should hold a conversation."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ChatFormatError(f"{path}: not a saved conversation ({error})") from None


def _saved(path: Path) -> tuple[str | None, list[Message]]:
    """Read the system message and the messages that `Conversation.save` wrote."""
    data = _read(path)
    version = data.get("macmoe_conversation") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or version is None:
        raise ChatFormatError(f"{path}: not a saved conversation; choose another file")
    if version != FORMAT_VERSION:
        raise ChatFormatError(
            f"{path}: saved in version {version} of the format; this macmoe reads version {FORMAT_VERSION}"
        )
    system, items = data.get("system"), data.get("messages")
    if not isinstance(system, str | None) or not isinstance(items, list):
        raise ChatFormatError(f"{path}: `system` must be text or null, and `messages` a list")
    return system, _parsed(path, items)


def _messages(path: Path) -> tuple[str | None, list[Message]]:
    """Read the system message and the messages of a saved conversation, or of a request to a server."""
    data = _read(path)
    if isinstance(data, Mapping) and "macmoe_conversation" not in data:
        data = data.get("messages")
    if not isinstance(data, list) or not data:
        return _saved(path)
    messages = _parsed(path, data)
    if messages[0].role == "system":
        return messages[0].content, messages[1:]
    return None, messages


def _parsed(path: Path, items: Sequence[Any]) -> list[Message]:
    messages = []
    for number, item in enumerate(items, start=1):
        try:
            messages.append(Message.from_dict(item))
        except ChatFormatError as error:
            raise ChatFormatError(f"{path}: message {number}: {error}") from None
    return messages
