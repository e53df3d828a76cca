"""One answer in the making: tokens become events, and the thinking is closed when its budget is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.chat.events import AnswerText, Event
from macmoe.chat.parser import Parser
from macmoe.errors import UsageError
from macmoe.families import Model
from macmoe.generate import Progress, check_prompt, generate
from macmoe.prompt_cache import PromptCache
from macmoe.sampling import Sampler
from macmoe.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What an answer took; the last event of every answer.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        reused_tokens: How many of them were known from an earlier turn.
        thinking_tokens: Tokens generated inside the thinking, without tags.
        answer_tokens: Tokens generated inside the answer or a tool call, without tags and stop token.
        generated_tokens: All of them, tags, headers and stop token included.
        stop_reason: "stop" after a stop token, "length" at the limit of tokens or positions.
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
        tokens: At most this many generated tokens, thinking included.
        thinking: Close the thinking after this many tokens; None lets it end by itself.
        answer: At most this many tokens of answer; None: as many as `tokens` allows.
        stop_ids: Tokens that end the answer.
    """

    tokens: int
    answer: int | None = None
    thinking: int | None = None
    stop_ids: frozenset[int]

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
        self._stopped = self._cut = False
        self._last = 0  # the newest token, which the model has not processed yet
        self._first = 0.0  # when the first token came

    @property
    def _must_close(self) -> bool:
        budget = self._limits.thinking
        spent = budget is not None and self._parser.thinking and self._thought >= budget
        return spent and bool(self._closing)

    @property
    def _complete(self) -> bool:
        answered = self._limits.answer is not None and self._answered >= self._limits.answer
        return self._stopped or answered or self._generated >= self._limits.tokens

    def _feed(self, token_id: int) -> list[Event]:
        """Count a generated token and return what it makes certain."""
        was_thinking, was_answering = self._parser.thinking, self._parser.answering
        events = self._parser.feed(token_id)
        self._generated += 1
        self._thought += was_thinking and self._parser.thinking
        self._stopped = token_id in self._limits.stop_ids
        self._answered += was_answering and self._parser.answering and not self._stopped
        return events

    def _close(self) -> Iterator[Event]:
        self._cut = True
        for token_id in self._closing:
            yield from self._parser.feed(token_id)

    def _generate(
        self, held: PromptCache, pending: Sequence[int], sampler: Sampler, progress: Progress | None
    ) -> Iterator[Event]:
        """Generate until the answer is complete or its thinking must be closed; `held` is kept up to date."""
        ids = list(pending)
        tokens = generate(
            self._model,
            pending,
            sampler,
            max_tokens=self._limits.tokens - self._generated,
            stop_ids=self._limits.stop_ids,
            cache=held.cache,
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
            yield from self._generate(held, pending, sampler, None if self._generated else progress)
            pending = [self._last]
            if self._complete or not self._must_close:
                break
        yield from self._parser.finish()
        ended = time.perf_counter()
        yield Stats(
            prompt_tokens=len(prompt),
            reused_tokens=reused,
            thinking_tokens=self._thought,
            answer_tokens=self._answered,
            generated_tokens=self._generated,
            stop_reason="stop" if self._stopped else "length",
            thinking_cut=self._cut,
            seed=sampler.seed,
            prompt_seconds=self._first - began,
            seconds=ended - self._first,
            peak_memory=mx.get_peak_memory(),
        )
