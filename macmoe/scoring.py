"""How probable a model finds a text, and how far two models differ on it. Everything in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import mlx.core as mx

from macmoe.errors import UsageError
from macmoe.generate import check_prompt
from macmoe.sampling import log_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from macmoe.protocols import LanguageModel

CHUNK = 256  # positions whose distributions are held at once: 256 x 200,000 float32 are 0.2 GB


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Log-probabilities (natural logarithm) of every token but the first, given all tokens before it."""

    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The log-probability of the text after its first token."""
        return math.fsum(self.logprobs)

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log-probability."""
        return math.exp(-self.total / len(self.logprobs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models on the same tokens.

    Attributes:
        score: Of the first model.
        other: Of the second model.
        divergences: KL(first || second) in nats at every position that predicts a token.
        agreements: Whether both models' most probable token is the same there.
    """

    score: Score
    other: Score
    divergences: tuple[float, ...]
    agreements: tuple[bool, ...]

    @property
    def mean_divergence(self) -> float:
        """The mean of the divergences."""
        return math.fsum(self.divergences) / len(self.divergences)

    @property
    def perplexity_ratio(self) -> float:
        """The first model's perplexity divided by the other's: above 1, the first predicts the text worse."""
        return self.score.perplexity / self.other.perplexity

    @property
    def agreement(self) -> float:
        """The share of positions with the same most probable token."""
        return sum(self.agreements) / len(self.agreements)


def score(model: LanguageModel, tokens: Sequence[int]) -> Score:
    """Return the log-probabilities of `tokens`.

    Raises:
        UsageError: There are fewer than two tokens, more than the model's positions, or unknown ids.
    """
    _check(model, tokens)
    logprobs: list[float] = []
    for begin, distributions in _distributions(model, tokens):
        logprobs += _of_next_tokens(distributions, tokens, begin)
    return Score(logprobs=tuple(logprobs))


def compare(model: LanguageModel, other: LanguageModel, tokens: Sequence[int]) -> Comparison:
    """Compare two models on `tokens`, chunk by chunk, so that no full table of distributions is kept.

    Raises:
        UsageError: As for `score`, or the vocabularies differ in size.
    """
    if model.config.vocab_size != other.config.vocab_size:
        raise UsageError(
            f"the vocabularies have {model.config.vocab_size} and {other.config.vocab_size} ids; "
            "only models that share a vocabulary can be compared"
        )
    _check(model, tokens)
    _check(other, tokens)
    scores: tuple[list[float], list[float]] = ([], [])
    divergences: list[float] = []
    agreements: list[bool] = []
    pairs = zip(_distributions(model, tokens), _distributions(other, tokens), strict=True)
    for (begin, first), (_, second) in pairs:
        scores[0].extend(_of_next_tokens(first, tokens, begin))
        scores[1].extend(_of_next_tokens(second, tokens, begin))
        divergences += cast("list[float]", divergence(first, second).tolist())
        agreements += cast("list[bool]", (first.argmax(axis=-1) == second.argmax(axis=-1)).tolist())
    return Comparison(
        score=Score(logprobs=tuple(scores[0])),
        other=Score(logprobs=tuple(scores[1])),
        divergences=tuple(divergences),
        agreements=tuple(agreements),
    )


def divergence(first: mx.array, second: mx.array) -> mx.array:
    """Return KL(first || second), in nats, of float32 log-probabilities [..., vocab].

    Summed as p (q / p - 1 - log(q / p)), whose terms add up to the same and are none of them negative: in the
    usual sum p log(p / q) large terms cancel, and rounding leaves 1e-7 of two distributions that agree.
    """
    ratio = second - first
    return mx.where(first == -mx.inf, 0, mx.exp(first) * (mx.expm1(ratio) - ratio)).sum(axis=-1)


def _check(model: LanguageModel, tokens: Sequence[int]) -> None:
    if len(tokens) < 2:
        raise UsageError("a text needs two tokens or more: the first is given, the others are predicted")
    check_prompt(model, tokens)


def _distributions(model: LanguageModel, tokens: Sequence[int]) -> Iterator[tuple[int, mx.array]]:
    """Yield (first position, log-probabilities [length, vocab]) of every position but the last, in chunks."""
    given = mx.array(list(tokens[:-1]))[None]
    cache = model.make_cache()
    for begin in range(0, given.shape[1], CHUNK):
        hidden = model.hidden(given[:, begin : begin + CHUNK], cache)
        distributions = log_probabilities(model.logits(hidden))[0]  # [length, vocab]
        mx.eval(distributions, cache.state)
        yield begin, distributions


def _of_next_tokens(distributions: mx.array, tokens: Sequence[int], begin: int) -> list[float]:
    """Pick from [length, vocab] the log-probability of the token that follows each position."""
    targets = mx.array(list(tokens[begin + 1 : begin + 1 + len(distributions)]))[:, None]
    return cast("list[float]", mx.take_along_axis(distributions, targets, axis=-1)[:, 0].tolist())
