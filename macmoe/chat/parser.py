"""Streaming parsers: token ids in, events out, whatever the model writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from macmoe.chat.events import AnswerText, Event, ThinkingText, ToolCallEvent
from macmoe.chat.payload import Payload, Piece


class TextStream(Protocol):
    """Turns ids into text without cutting characters."""

    def add(self, token_id: int) -> str:
        """Return the text that is certain now."""
        ...

    def finish(self) -> str:
        """Return the rest, and start afresh."""
        ...


class Vocabulary(Protocol):
    """What a chat format needs of a tokenizer."""

    @property
    def template(self) -> str:
        """The chat template of the checkpoint, as text."""
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, or None."""
        ...

    def detokenizer(self) -> TextStream:
        """Return a decoder for a stream of ids."""
        ...


class Parser(ABC):
    """A state machine over tokens: control tokens change the state, all other tokens are text.

    It never raises and never loses text; what a broken output most likely meant is decided in the families.
    """

    def __init__(self, vocabulary: Vocabulary, tokens: Iterable[str]) -> None:
        known = {vocabulary.token_id(token): token for token in tokens}
        self._control_tokens = {token_id: token for token_id, token in known.items() if token_id is not None}
        self._stream = vocabulary.detokenizer()

    @property
    @abstractmethod
    def thinking(self) -> bool:
        """Whether the model is inside its thinking now."""

    @property
    def answering(self) -> bool:
        """Whether the model is inside an answer, a call or a commentary now, not in a header."""
        return not self.thinking

    @abstractmethod
    def _text(self, text: str) -> list[Event]:
        """Take ordinary text."""

    @abstractmethod
    def _control(self, token: str) -> list[Event]:
        """Take a control token of the format."""

    @abstractmethod
    def _end(self) -> list[Event]:
        """Deliver what was held back."""

    def feed(self, token_id: int) -> list[Event]:
        """Take the next token and return what is certain now."""
        token = self._control_tokens.get(token_id)
        if token is None:
            return self._text(self._stream.add(token_id))
        return self._text(self._stream.finish()) + self._control(token)

    def finish(self) -> list[Event]:
        """Take the end of the output, wherever it was cut, and return the rest."""
        return self._text(self._stream.finish()) + self._end()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSyntax:
    """The control tokens of a family that marks thinking and calls as blocks in one message.

    Attributes:
        think: The tokens that open and close the thinking.
        call: The tokens that open and close a call.
        inside_call: Tokens that belong to the text of a call, and mean nothing elsewhere.
        markup: Other tokens of the format, stop tokens among them; they are not text, and they end a call.
        read_call: Makes a call of the text between its tokens, or None of a text that is none.
    """

    think: tuple[str, str]
    call: tuple[str, str]
    inside_call: tuple[str, ...]
    markup: tuple[str, ...]
    read_call: Callable[[str], ToolCallEvent | None]

    @property
    def tokens(self) -> tuple[str, ...]:
        """All tokens of the format."""
        return (*self.think, *self.call, *self.inside_call, *self.markup)


class BlockParser(Parser):
    """The parser of Qwen3 and DeepSeek: thinking, answer and calls as blocks in one message.

    How it reads what breaks the format:

    - Thinking that is never closed stays thinking. A tag that changes nothing is dropped. A second block is
      thinking again, wherever it stands.
    - `<think>` spelled with ordinary tokens counts at the very beginning, `</think>` where the model has no
      token for it or spelled the other. Elsewhere such a tag is text.
    - Newlines next to a tag are not text.
    - A call may stand in the thinking and may lack its end. A call that cannot be read is text.
    - Inside a JSON string of a call, all tokens are text: the call ends at the closing tag that leaves valid
      JSON. Where none does, it ends at the last one, or before the next call that can be read.
    """

    def __init__(self, vocabulary: Vocabulary, syntax: BlockSyntax, start: str) -> None:
        super().__init__(vocabulary, syntax.tokens)
        self._syntax = syntax
        self._thinking = start == "thinking"
        self._may_open = start == "auto"  # no text so far: a spelled-out tag would open the block
        self._spells = vocabulary.token_id(syntax.think[1]) is None  # whether tags are ordinary tokens here
        self._after_tag = self._thinking
        self._held = ""  # what the next text decides about: newlines, the beginning of a tag
        self._call: Payload | None = None  # the call being written

    @property
    def thinking(self) -> bool:
        """Whether the model is inside its thinking now."""
        return self._thinking and self._call is None

    def _text(self, text: str) -> list[Event]:
        if self._call is not None:
            self._call.add(text)
            return []
        held = self._held + text
        if self._after_tag:
            held = held.lstrip("\n")
        tag = self._due_tag()
        before, found, after = held.partition(tag) if tag else (held, "", "")
        if found and (self._thinking or not before.strip("\n")):
            self._held, self._spells = before, True
            return self._control(tag) + self._text(after)
        certain = _without_beginning_of(tag, held).rstrip("\n")
        self._held = held[len(certain) :]
        return self._say(certain)

    def _control(self, token: str) -> list[Event]:
        events: list[Event] = []
        if self._call is not None:
            if self._call.in_string or token in self._inside_call(self._call):
                self._call.add_token(token)
                return []
            events = self._end_call()
        opened, closed = self._syntax.think
        if token == (closed if self._thinking else opened):
            events += self._before_tag()
            self._thinking = not self._thinking
        elif token == self._syntax.call[0]:
            events += self._before_tag()
            self._call = Payload()
        return events

    def _end(self) -> list[Event]:
        if self._call is not None:
            return self._end_cut_call(self._call)
        held, self._held = self._held, ""
        return self._say(held)

    def _end_cut_call(self, call: Payload) -> list[Event]:
        """Deliver a call that the output ends in; a string that is still open may have swallowed its end."""
        end = self._end_of(call.pieces) if call.in_string else None
        if end is None:
            call.drop_last_tokens()  # what ended the output is no text
            return self._end_call()
        self._call = Payload(call.pieces[:end])
        events = self._end_call()
        for text, is_token in call.pieces[end:]:
            events += self._control(text) if is_token else self._text(text)
        return events + self._end()

    def _end_of(self, pieces: Sequence[Piece]) -> int | None:
        """Return where a payload whose string never ends is over, None where no tag closes it."""
        opened, closed = ((tag, True) for tag in self._syntax.call)
        end = None
        for place, piece in enumerate(pieces):
            if piece == closed:
                end = place
            elif piece == opened and end is not None and self._is_call(pieces[place + 1 :]):
                break
        return end

    def _is_call(self, pieces: Sequence[Piece]) -> bool:
        """Tell whether a call that can be read begins here."""
        within = takewhile(lambda piece: piece != (self._syntax.call[1], True), pieces)
        call = self._syntax.read_call("".join(text for text, _ in within))
        return call is not None and call.arguments is not None

    def _before_tag(self) -> list[Event]:
        """Deliver the text before a tag."""
        held, self._held = self._held, ""
        events = self._say(held.rstrip("\n"))
        self._after_tag, self._may_open = True, False
        return events

    def _inside_call(self, call: Payload) -> tuple[str, ...]:
        """Return the tokens that do not end a call; a tag of the thinking does once its JSON is whole."""
        return self._syntax.inside_call if call.whole else (*self._syntax.inside_call, *self._syntax.think)

    def _end_call(self) -> list[Event]:
        written, self._call = self._call or Payload(), None
        call = self._syntax.read_call(written.text)
        events: list[Event] = (
            [call] if call else self._say(written.prose(self._syntax.inside_call).strip("\n"))
        )
        self._after_tag = True
        return events

    def _say(self, text: str) -> list[Event]:
        if not text:
            return []
        self._after_tag = self._may_open = False
        return [ThinkingText(text) if self._thinking else AnswerText(text)]

    def _due_tag(self) -> str:
        """Return the tag that counts here even if spelled with ordinary tokens."""
        opened, closed = self._syntax.think
        if self._thinking:
            return closed if self._spells else ""
        return opened if self._may_open else ""


def _without_beginning_of(tag: str, text: str) -> str:
    """Cut off the longest end of a text with which the tag could begin."""
    for size in range(min(len(tag), len(text)), 0, -1):
        if text.endswith(tag[:size]):
            return text[:-size]
    return text
