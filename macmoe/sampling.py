"""From logits to the next token: penalties, temperature, then top-k, top-p, min-p, on the device.

The order is that of transformers' logits warpers, against which the tests compare.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from macmoe.constraint import WordConstraint
from macmoe.errors import UsageError
from macmoe.penalties import Penalties, PenaltyOptions

SEEDS = 2**64  # how many MLX has


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to choose a token.

    Attributes:
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Keep this many most probable tokens; 0 keeps all.
        top_p: Keep the most probable tokens that together reach this probability; 1 keeps all.
        min_p: Drop tokens less probable than this share of the most probable one; 0 drops none.
        repetition_penalty: Divides or multiplies the logits of what prompt and answer hold; 1 changes none.
        presence_penalty: Taken from the logits of what the answer holds; 0 changes none.
        frequency_penalty: The same, for each time that the answer holds it.
        seed: Makes the choice reproducible, at least 0 and below `SEEDS`; None draws a seed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0 (0 keeps every token)"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "repetition_penalty": (0 < self.repetition_penalty < math.inf, "above 0 (1 changes nothing)"),
            "presence_penalty": (math.isfinite(self.presence_penalty), "a finite number"),
            "frequency_penalty": (math.isfinite(self.frequency_penalty), "a finite number"),
            "seed": (self.seed is None or 0 <= self.seed < SEEDS, "from 0 to 2**64 - 1"),
        }
        for name, (valid, range_) in limits.items():
            if not valid:
                raise UsageError(f"{name} is {getattr(self, name)}; it has to be {range_}")

    @property
    def penalties(self) -> PenaltyOptions:
        """The penalties among them."""
        return PenaltyOptions(
            repetition=self.repetition_penalty,
            presence=self.presence_penalty,
            frequency=self.frequency_penalty,
        )


def log_probabilities(logits: mx.array) -> mx.array:
    """Return the float32 log-softmax over the last axis."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def keep_top_k(logprobs: mx.array, top_k: int) -> mx.array:
    """Set all but the `top_k` largest entries of [batch, vocab] to -inf; ties with the last one stay."""
    if not 0 < top_k < logprobs.shape[-1]:
        return logprobs
    smallest = mx.topk(logprobs, top_k, axis=-1).min(axis=-1, keepdims=True)
    return mx.where(logprobs < smallest, -mx.inf, logprobs)


def keep_top_p(logprobs: mx.array, top_p: float) -> mx.array:
    """Keep the fewest entries of [batch, vocab] whose probabilities sum to `top_p` (arXiv 1904.09751).

    Ties with the last one stay, as in `keep_top_k`: the order of the vocabulary need not be restored.
    """
    if top_p >= 1:
        return logprobs
    ascending = mx.sort(logprobs, axis=-1)
    dropped = mx.cumsum(mx.softmax(ascending, axis=-1), axis=-1) <= 1 - top_p
    dropped[..., -1] = False
    smallest = mx.where(dropped, mx.inf, ascending).min(axis=-1, keepdims=True)
    return mx.where(logprobs < smallest, -mx.inf, logprobs)


def keep_min_p(logprobs: mx.array, min_p: float) -> mx.array:
    """Drop entries of [batch, vocab] below `min_p` times the largest probability (arXiv 2407.01082)."""
    if min_p <= 0:
        return logprobs
    floor = logprobs.max(axis=-1, keepdims=True) + mx.log(mx.array(min_p))
    return mx.where(logprobs < floor, -mx.inf, logprobs)


class Sampler:
    """Chooses tokens; successive calls use successive random keys that follow from the seed.

    Args:
        options: How to choose.
        constraint: Which tokens may be chosen where; None: all.
    """

    def __init__(self, options: SamplingOptions, constraint: WordConstraint | None = None) -> None:
        self.options = options
        self._constraint = constraint
        self.seed = secrets.randbits(32) if options.seed is None else options.seed
        self._key = mx.random.key(self.seed)
        self._sequences: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] = ((), ())
        self._penalties: Penalties | None = None
        self._last: mx.array | None = None

    def _choose(self, logprobs: mx.array) -> mx.array:
        options = self.options
        if options.temperature == 0:
            return mx.argmax(logprobs, axis=-1)
        scaled = keep_top_k(logprobs / options.temperature, options.top_k)
        scaled = keep_min_p(keep_top_p(scaled, options.top_p), options.min_p)
        self._key, key = mx.random.split(self._key)
        return mx.random.categorical(scaled, key=key)

    def begin(self, prompt: Sequence[int], answer: Sequence[int] = ()) -> None:
        """Take note of the tokens after which the next choice is made.

        Args:
            prompt: All before the answer.
            answer: What there is of the answer; penalties tell it from the prompt.
        """
        self.begin_rows([prompt], [answer])

    def begin_rows(
        self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]] | None = None
    ) -> None:
        """Do the same for several sequences."""
        answers = [()] * len(prompts) if answers is None else answers
        self._last = None
        if self._constraint is not None:
            tokens = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
            self._constraint.begin_rows(tokens)
        if self.options.penalties.active:
            self._sequences, self._penalties = (prompts, answers), None

    def wrote(self, tokens: mx.array) -> None:
        """Take note that these tokens [batch] were written instead of the chosen ones."""
        self._last = tokens

    def _penalized(self, logits: mx.array) -> mx.array:
        """Return the log-probabilities under the penalties, whose state is made when it is needed."""
        if self._penalties is None:
            prompts, answers = self._sequences
            rows = prompts or [()] * logits.shape[0]
            self._penalties = Penalties(self.options.penalties, rows, answers, logits.shape[-1])
        return log_probabilities(self._penalties.apply(logits))

    def _advance(self) -> None:
        """Count the tokens of the last step, which are certain only now."""
        if self._last is None:
            return
        if self._constraint is not None:
            self._constraint.advance(self._last)
        if self._penalties is not None:
            self._penalties.advance(self._last)

    def __call__(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Return token ids [batch] and their float32 log-probabilities under the model [batch]."""
        self._advance()
        logprobs = log_probabilities(logits)
        choices = self._penalized(logits) if self.options.penalties.active else logprobs
        if self._constraint is not None:
            choices = self._constraint.mask(choices)
        tokens = self._last = self._choose(choices)
        return tokens, mx.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
