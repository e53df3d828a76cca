"""From records to samples: exactly what the model has to write after the prompt of inference is supervised.

No text is searched for tags. The chat format says which segments the model writes (`render_target`), so the
mask is right by construction, for every family, mode and turn. Formats drop the reasoning of earlier answers,
so a conversation with K answers to learn becomes K samples, each as inference would see it.

Which prompt an answer is learned after:

| the record's `thinking` | the answer has reasoning | it has none |
|---|---|---|
| not set | the mode that thinks | the mode that does not, where the model has one |
| not set, `/no_think` counts (Qwen3) | refused | the mode that thinks: the model writes an empty block |
| on, low, medium, high | that mode | refused, unless `/no_think` counts or the answer is a tool call |
| off | refused | that mode |

Refused are samples that would teach the model to ignore its mode. `empty_thinking="train"` allows an answer
without reasoning in a mode that thinks; models that always think then learn to close their block at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from macmoe.chat.format import ChatFormat, Thinking
from macmoe.chat.messages import Message, Segment
from macmoe.errors import DatasetError
from macmoe.tokenizer import Tokenizer
from macmoe.tuning.batch import ANSWER, PROMPT, THINKING, Sample
from macmoe.tuning.flags import FLAGGED_MODELS, NO_THINK, last_flag
from macmoe.tuning.records import Record
from macmoe.tuning.rows import Place, Rejections

EmptyThinking = Literal["refuse", "train"]
Mode = Literal["thinking", "direct", "text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """A sample, and what is worth knowing about it.

    Attributes:
        sample: What the trainer sees.
        place: Where the record comes from.
        mode: Whether the answer thinks first, comes directly, or is a plain text.
        dropped: How many of the oldest messages were left out so that the sample fits.
    """

    sample: Sample
    place: Place
    mode: Mode
    dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """The samples of a data set, and what did not become one.

    Attributes:
        lessons: In the order of the records.
        too_long: The records of answers that do not fit, even without any earlier turn.
        rejected: A line for each record, or answer, that was bad and left out.
    """

    lessons: tuple[Lesson, ...]
    too_long: tuple[Place, ...]
    rejected: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """Makes lessons of records.

    Attributes:
        chat: The chat format of the model.
        tokenizer: Its tokenizer.
        max_length: The most tokens of a sample.
        empty_thinking: Whether an answer without reasoning may be learned in a mode that thinks.
    """

    chat: ChatFormat
    tokenizer: Tokenizer
    max_length: int
    empty_thinking: EmptyThinking = "refuse"

    def teach(self, records: Iterable[Record], *, skip_bad: bool = False) -> Lessons:
        """Return the samples of all records: one for each answer to learn, or the pieces of a text.

        Raises:
            DatasetError: A record has nothing to learn, contradicts its mode or cannot be expressed; or no
                sample is left.
        """
        rejections = Rejections(skip=skip_bad)
        lessons: list[Lesson] = []
        too_long: list[Place] = []
        for record in records:
            for index in [number for number, weight in enumerate(record.weights) if weight] or [None]:
                with rejections.at(record.place):
                    made = self._text(record) if record.text is not None else self._answer(record, index)
                    lessons += made
                    too_long += [] if made else [record.place]
        if not lessons:
            raise DatasetError(
                f"no sample is left: {len(rejections.reasons)} are bad, and {len(too_long)} are longer than "
                f"{self.max_length} tokens"
            )
        return Lessons(lessons=tuple(lessons), too_long=tuple(too_long), rejected=tuple(rejections.reasons))

    def _text(self, record: Record) -> list[Lesson]:
        """Cut a text into pieces that overlap by one token: all tokens but the first are learned once."""
        tokens = self.tokenizer.encode(record.text or "")
        end = self.tokenizer.token_id(self.chat.stops[-1])  # of all stops the one that ends a document
        tokens += [] if end is None else [end]
        pieces = [
            tokens[start : start + self.max_length]
            for start in range(0, len(tokens) - 1, max(1, self.max_length - 1))
        ]
        samples = [_sample(piece[:1], piece[1:], [ANSWER] * (len(piece) - 1), 1.0) for piece in pieces]
        return [Lesson(sample=sample, place=record.place, mode="text") for sample in samples]

    def _answer(self, record: Record, index: int | None) -> list[Lesson]:
        """Return the lesson of one answer, without the oldest turns if need be; none where it cannot fit."""
        if index is None:
            reason = record.instead or "it has no answer with a weight"
            raise DatasetError(f"nothing in it is to be learned: {reason}")
        answer = record.messages[index]
        for dropped, history in _shortened(record.messages[:index]):
            mode = self._mode(record.thinking, history, answer)
            segments = self.chat.render_target([*history, answer], tools=record.tools, thinking=mode)
            _check_complete(answer, segments)
            sample = self._sample(segments, record.weights[index])
            if len(sample.tokens) <= self.max_length:
                kind: Mode = "thinking" if answer.reasoning else "direct"
                return [Lesson(sample=sample, place=record.place, mode=kind, dropped=dropped)]
        return []

    def _mode(
        self, thinking: Thinking | None, history: Sequence[Message], answer: Message
    ) -> Thinking | None:
        """Return the mode of the prompt that an answer is learned after (the table of this module)."""
        silenced = thinking != "off" and self.chat.model in FLAGGED_MODELS and last_flag(history) == NO_THINK
        if answer.reasoning and (silenced or thinking == "off"):
            asked = NO_THINK if silenced else "thinking off"
            raise DatasetError(f"an answer has reasoning although {asked} was asked for")
        if answer.reasoning or thinking == "off":
            return thinking
        if silenced:
            return thinking or "on"
        if thinking is None and "off" in self.chat.settings and not answer.tool_calls:
            return "off"
        if "on" in self.chat.settings and not answer.tool_calls and self.empty_thinking == "refuse":
            raise DatasetError(
                f"an answer has no reasoning although {self.chat.model} is asked to think; leave thinking "
                "unset, or allow it with empty_thinking = train"
            )
        return thinking

    def _sample(self, segments: Sequence[Segment], weight: float) -> Sample:
        prompt = list(takewhile(lambda segment: not segment.trainable, segments))
        given = self.tokenizer.encode_segments(prompt)
        learned = self.tokenizer.encode_segments(segments[len(prompt) :])
        return _sample(given, learned, self._kinds(prompt, learned), weight)

    def _kinds(self, prompt: Sequence[Segment], learned: Sequence[int]) -> list[int]:
        """Tell thinking from answer as the streaming parser does; a header belongs to what follows it."""
        parser = self.chat.parser(self.tokenizer, self.chat.start_of(prompt))
        kinds: list[int] = []
        pending = 0  # tokens of a header, up to the current one
        for token in learned:
            thought = parser.thinking
            parser.feed(token)
            pending += 1
            if thought or parser.thinking or parser.answering:
                kinds += [THINKING if thought or parser.thinking else ANSWER] * pending
                pending = 0
        return kinds + [ANSWER] * pending


def _sample(given: list[int], learned: list[int], kinds: list[int], weight: float) -> Sample:
    return Sample(
        tokens=given + learned,
        weights=[0.0] * len(given) + [weight] * len(learned),
        kinds=bytes([PROMPT] * len(given) + kinds),
    )


def _shortened(messages: Sequence[Message]) -> Iterator[tuple[int, list[Message]]]:
    """Yield the messages, then without the first turn, and so on; a flag that counts is never dropped."""
    leading = list(takewhile(lambda message: message.instructs, messages))
    yield 0, list(messages)
    for start in range(len(leading) + 1, len(messages)):
        rest = [*leading, *messages[start:]]
        if messages[start].role == "user" and last_flag(rest) == last_flag(messages):
            yield start - len(leading), rest


def _check_complete(answer: Message, segments: Sequence[Segment]) -> None:
    """Refuse an answer that is empty or of which the format would lose a part."""
    written = "".join(segment.text for segment in segments if segment.trainable)
    if not answer.content.strip() and not answer.tool_calls:
        raise DatasetError("an answer to learn is empty")
    if (answer.reasoning or "").strip() not in written:
        raise DatasetError("an answer has reasoning where the model cannot think, after a tool result")
    if answer.content.strip() not in written:
        raise DatasetError("an answer has content that the model cannot write there")
