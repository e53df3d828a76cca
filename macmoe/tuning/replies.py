"""Replies to many questions at once, as distillation and evaluation need them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from macmoe.chat.events import AnswerText, ThinkingText
from macmoe.chat.messages import Segment
from macmoe.families import Model
from macmoe.generate import check_prompt, following_logits, prefill
from macmoe.sampling import Sampler, SamplingOptions
from macmoe.session import Session
from macmoe.tuning.records import Question
from macmoe.tuning.unpacking import Unpacked, keep_packed, unpack_products

# Replies at once from which on a CPU unpacks the matrices for every token: its packed kernels take each row
# for itself. On other devices reading the packed weights is what a token costs.
UNPACKED_FROM = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model replied.

    Attributes:
        reasoning: The thinking, without tags.
        answer: The answer.
        complete: Whether the model ended it by itself, not the limit of tokens.
        thinking_tokens: Tokens of the thinking.
    """

    reasoning: str
    answer: str
    complete: bool
    thinking_tokens: int

    @property
    def thinks(self) -> bool:
        """Whether the model thought before it answered."""
        return bool(self.reasoning.strip())


def ask(
    session: Session, questions: Sequence[Question], sampling: SamplingOptions, max_tokens: int
) -> list[Reply]:
    """Return the replies to a batch of questions, which are answered together, in one batch.

    Thinking is closed where the budget of a question's level is spent; that counts as `max_tokens`, too.

    Raises:
        UsageError: A question is too long for the model.
        ChatFormatError: The format of the model cannot express a question.
    """
    chat, tokenizer = session.format, session.tokenizer
    prompts = [
        chat.render(question.messages, tools=question.tools, thinking=question.thinking)
        for question in questions
    ]
    budgets = [chat.budget(question.thinking) for question in questions]
    stop_ids = chat.stop_ids(tokenizer) | session.defaults.stop_ids
    with _fast_products(session.model, len(prompts)):
        written = generate_batch(
            session.model,
            [tokenizer.encode_segments(prompt) for prompt in prompts],
            session.sampler(sampling),
            max_tokens=max_tokens,
            stop_ids=stop_ids,
            rewrite=_Closing(session, prompts, budgets) if budgets.count(None) < len(budgets) else None,
        )
    return [
        _reply(session, prompt, ids, budget, complete=ids[-1] in stop_ids)
        for prompt, ids, budget in zip(prompts, written, budgets, strict=True)
    ]


class _Closing:
    """Closes the thinking of replies whose budget is spent, as `macmoe.answer` does for one.

    Args:
        session: The model.
        prompts: What it is asked.
        budgets: Tokens of thinking of each reply; None: any number.
    """

    def __init__(
        self, session: Session, prompts: Sequence[Sequence[Segment]], budgets: Sequence[int | None]
    ) -> None:
        chat = session.format
        self._parsers = [chat.parser(session.tokenizer, chat.start_of(prompt)) for prompt in prompts]
        self._closing = session.tokenizer.encode_segments(chat.close_thinking())
        self._left = [math.inf if budget is None else budget for budget in budgets]
        self._pending: list[list[int]] = [[] for _ in prompts]

    def __call__(self, row: int, token: int) -> int:
        """Take the token that was chosen for a reply, and return the one to write."""
        parser = self._parsers[row]
        if parser.thinking and self._left[row] <= 0 and not self._pending[row]:
            self._pending[row] = list(self._closing)
        written = self._pending[row].pop(0) if self._pending[row] else token
        thought = parser.thinking
        parser.feed(written)
        self._left[row] -= thought and parser.thinking
        return written


@contextmanager
def _fast_products(model: nn.Module, rows: int) -> Iterator[None]:
    """Let a model multiply so many rows by its packed matrices in the way that is fast here.

    A model in training may have it so already, and keeps it then.
    """
    slow = mx.default_device() == mx.Device(mx.cpu) and rows >= UNPACKED_FROM
    if not slow or any(isinstance(module, Unpacked) for module in model.modules()):
        yield
        return
    unpack_products(model)
    try:
        yield
    finally:
        keep_packed(model)


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    sampler: Sampler,
    *,
    max_tokens: int,
    stop_ids: Collection[int],
    rewrite: Callable[[int, int], int] | None = None,
) -> list[list[int]]:
    """Return what the model writes after each prompt: up to a stop id, which is included, or `max_tokens`.

    Shorter prompts are padded on the left, where nothing attends to them.

    Args:
        model: The model.
        prompts: Token ids.
        sampler: Chooses the tokens.
        max_tokens: At most this many for each prompt.
        stop_ids: End a reply.
        rewrite: (number of the prompt, token that was chosen) -> token to write; None: what was chosen.

    Raises:
        UsageError: See `check_prompt`.
    """
    for prompt in prompts:
        check_prompt(model, prompt)
    longest = max(map(len, prompts))
    max_tokens = min(max_tokens, model.config.max_position_embeddings - longest + 1)
    padding = [longest - len(prompt) for prompt in prompts]
    padded = mx.array([[0] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)])
    cache = model.make_cache(padding)
    cache.reserve(longest + max_tokens)
    sampler.begin_rows(prompts)
    written: list[list[int]] = [[] for _ in prompts]
    logits = prefill(model, padded, cache)
    following = following_logits(model, cache)
    chosen, _ = sampler(logits)
    for number in range(max_tokens):
        if number:
            chosen, _ = sampler(following(chosen))
        tokens = cast("list[int]", chosen.tolist())
        going = [row for row, ids in enumerate(written) if not ids or ids[-1] not in stop_ids]
        if rewrite is not None:
            tokens = [rewrite(row, token) if row in going else token for row, token in enumerate(tokens)]
            chosen = mx.array(tokens, dtype=chosen.dtype)
            sampler.wrote(chosen)
        for row in going:
            written[row].append(tokens[row])
        if all(ids[-1] in stop_ids for ids in written):
            break
    return written


def _reply(
    session: Session, prompt: Sequence[Segment], ids: Sequence[int], budget: int | None, *, complete: bool
) -> Reply:
    parser = session.format.parser(session.tokenizer, session.format.start_of(prompt))
    events, thinking_tokens = [], 0
    for token in ids:
        thought = parser.thinking
        events += parser.feed(token)
        thinking_tokens += thought and parser.thinking
    events += parser.finish()
    reasoning, answer = (
        "".join(event.text for event in events if isinstance(event, kind))
        for kind in (ThinkingText, AnswerText)
    )
    if budget is not None:
        thinking_tokens = min(thinking_tokens, budget)  # what closes the thinking does not count
    return Reply(reasoning=reasoning, answer=answer, complete=complete, thinking_tokens=thinking_tokens)
