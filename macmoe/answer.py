"""One answer in the making: tokens become events, and the thinking is closed when its budget is spent."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.chat.events import AnswerText, Event, ThinkingText
from macmoe.chat.parser import Parser
from macmoe.errors import UsageError
from macmoe.families import Model
from macmoe.generate import Progress, check_prompt, generate
from macmoe.prompt_cache import PromptCache
from macmoe.sampling import Sampler
from macmoe.stopping import StopTexts
from macmoe.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# What thinking leaves to the answer: a quarter of all tokens, and no more than this.
RESERVED_SHARE, MOST_RESERVED = 4, 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What an answer took; the last event of every answer.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        reused_tokens: How many of them were known from an earlier turn.
        thinking_tokens: Tokens generated inside the thinking, without tags.
        answer_tokens: Tokens generated inside the answer or a tool call, without tags and stop token.
        generated_tokens: All of them, tags, headers and stop token included.
        stop_reason: "stop" after a stop token or text, "length" at the limit of tokens or positions.
        thinking_cut: Whether the thinking reached its budget and was closed.
        seed: Reproduces the answer.
        prompt_seconds: From the call to the first token.
        seconds: From the first token to the last.
        peak_memory: Bytes, since the process began.
    """

    prompt_tokens: int
    reused_tokens: int
    thinking_tokens: int
    answer_tokens: int
    generated_tokens: int
    stop_reason: str
    thinking_cut: bool
    seed: int
    prompt_seconds: float
    seconds: float
    peak_memory: int

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token."""
        following = self.generated_tokens - 1
        return following / self.seconds if following > 0 and self.seconds else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where an answer ends.

    Attributes:
        tokens: At most this many generated tokens, thinking included; None: what the context has room for.
        thinking: Close the thinking after this many tokens; None lets it end by itself.
        reserve: Also close it where a quarter of all tokens is left, or 4,096, so that an answer fits.
        answer: At most this many tokens of answer; None: as many as `tokens` allows.
        stop_ids: Tokens that end the answer.
        stop: Texts that end it, without being shown.
    """

    tokens: int | None
    answer: int | None = None
    thinking: int | None = None
    reserve: bool = False
    stop_ids: frozenset[int]
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse limits that leave nothing."""
        for name, limit, least in (
            ("max_tokens", self.tokens, 1),
            ("max_answer_tokens", self.answer, 1),
            ("thinking_budget", self.thinking, 0),
        ):
            if limit is not None and limit < least:
                raise UsageError(f"{name} is {limit}; it has to be at least {least}")


class PlainText:
    """The parser of output without a chat format: everything is answer."""

    thinking = False
    answering = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._stream = tokenizer.detokenizer()

    def feed(self, token_id: int) -> list[Event]:
        """Take the next token."""
        return _answer_text(self._stream.add(token_id))

    def finish(self) -> list[Event]:
        """Deliver what was held back."""
        return _answer_text(self._stream.finish())


def _answer_text(text: str) -> list[Event]:
    return [AnswerText(text)] if text else []


class Answer:
    """One answer to one prompt.

    Args:
        model: The model.
        parser: Makes events of token ids.
        limits: Where the answer ends.
        closing: Token ids that make the model end its thinking; none: no budget can.
    """

    def __init__(
        self, model: Model, parser: Parser | PlainText, limits: Limits, closing: Sequence[int] = ()
    ) -> None:
        self._model = model
        self._parser = parser
        self._limits = limits
        self._closing = closing
        self._positions = model.config.max_position_embeddings
        self._generated = self._thought = self._answered = 0
        self._stopped = self._cut = self._spoke = False
        self._stop = StopTexts(limits.stop)
        self._tokens = self._latest = 0  # the most tokens in all, and those after which thinking is closed
        self._last = 0  # the newest token, which the model has not processed yet
        self._first = 0.0  # when the first token came

    @property
    def _must_close(self) -> bool:
        budget = self._limits.thinking
        spent = budget is not None and self._thought >= budget
        late = self._limits.reserve and self._latest <= self._generated < self._tokens
        return self._parser.thinking and (spent or late) and bool(self._closing)

    @property
    def _complete(self) -> bool:
        answered = self._limits.answer is not None and self._answered >= self._limits.answer
        ended = self._stopped or self._stop.found
        return ended or answered or self._generated >= self._tokens

    def _settle(self, prompt: int) -> None:
        """Say how many tokens there can be after a prompt of so many."""
        room = max(1, self._positions - prompt + 1)
        self._tokens = room if self._limits.tokens is None else min(room, self._limits.tokens)
        thinkable = min(self._tokens, room - len(self._closing))
        reserved = min(MOST_RESERVED, thinkable // RESERVED_SHARE)
        self._latest = thinkable - reserved if thinkable > 0 else self._tokens  # no room to close it

    def _feed(self, token_id: int) -> list[Event]:
        """Count a generated token and return what it makes certain."""
        was_thinking, was_answering = self._parser.thinking, self._parser.answering
        events = self._parser.feed(token_id)
        self._generated += 1
        self._thought += was_thinking and self._parser.thinking
        self._stopped = token_id in self._limits.stop_ids
        self._answered += was_answering and self._parser.answering and not self._stopped
        return self._certain(events)

    def _certain(self, events: Iterable[Event]) -> list[Event]:
        certain = list(self._stop.filter(events))
        self._spoke |= any(not isinstance(event, ThinkingText) for event in certain)
        return certain

    def _close(self) -> Iterator[Event]:
        self._cut = True
        for token_id in self._closing:
            yield from self._certain(self._parser.feed(token_id))

    def _finish(self) -> Iterator[Event]:
        yield from self._certain(self._parser.finish())
        rest = list(self._stop.rest())
        self._spoke |= bool(rest)
        yield from rest

    def _remark(self) -> None:
        """Say, once all is shown, why there is no answer."""
        if self._parser.thinking and not (self._spoke or self._stopped):
            logger.warning(
                "no answer: the thinking took all %s tokens; raise --max-tokens (max_tokens), or close the "
                "thinking earlier with --thinking-budget (thinking_budget)",
                f"{self._generated:,}",
            )

    def _generate(
        self,
        held: PromptCache,
        pending: Sequence[int],
        sampler: Sampler,
        prompt: int,
        progress: Progress | None,
    ) -> Iterator[Event]:
        """Generate until the answer is complete or its thinking must be closed; `held` is kept up to date."""
        ids = list(pending)
        tokens = generate(
            self._model,
            pending,
            sampler,
            max_tokens=self._tokens - self._generated,
            stop_ids=self._limits.stop_ids,
            cache=held.cache,
            known=held.tokens,
            answer_from=prompt,
            progress=progress,
        )
        try:
            for token in tokens:
                if not self._generated:
                    self._first = time.perf_counter()
                    held.mark(len(held.tokens) + len(pending))
                ids.append(token.id)
                yield from self._feed(token.id)
                if self._must_close or self._complete:
                    break
        finally:
            tokens.close()
            held.processed(ids[:-1])
            self._last = ids[-1]

    def events(
        self,
        prompt: Sequence[int],
        sampler: Sampler,
        *,
        held: PromptCache | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Event | Stats]:
        """Yield the events of the answer as they become certain, then its Stats.

        Args:
            prompt: Token ids.
            sampler: Chooses the tokens.
            held: What the model has processed before; what the prompt shares with it is not done again.
            progress: Called with (tokens done, tokens in all) while the prompt is processed.

        Raises:
            UsageError: The prompt is empty or too long, or has ids outside the vocabulary.
        """
        check_prompt(self._model, prompt)
        self._settle(len(prompt))
        began = self._first = time.perf_counter()
        held = PromptCache(self._model) if held is None else held
        pending = held.resume(prompt)
        reused = len(held.tokens)
        while True:
            if self._must_close:
                if len(held.tokens) + len(pending) + len(self._closing) > self._positions:
                    break  # no answer could follow
                yield from self._close()
                pending += self._closing
            seen = None if self._generated else progress
            yield from self._generate(held, pending, sampler, len(prompt), seen)
            pending = [self._last]
            if self._complete or not self._must_close:
                break
        yield from self._finish()
        ended = time.perf_counter()
        yield Stats(
            prompt_tokens=len(prompt),
            reused_tokens=reused,
            thinking_tokens=self._thought,
            answer_tokens=self._answered,
            generated_tokens=self._generated,
            stop_reason="stop" if self._stopped or self._stop.found else "length",
            thinking_cut=self._cut,
            seed=sampler.seed,
            prompt_seconds=self._first - began,
            seconds=ended - self._first,
            peak_memory=mx.get_peak_memory(),
        )
        self._remark()
