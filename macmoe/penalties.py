"""Penalties for what has been written before, on the device: one state for each sequence.

| penalty | of | what it does to the logit of a token |
|---|---|---|
| repetition | prompt and answer | divided by it if positive, multiplied if negative (arXiv 1909.05858) |
| presence | answer | less it, once it was written |
| frequency | answer | less it for each time that it was written |

The first is transformers' RepetitionPenaltyLogitsProcessor, against which the tests compare; the others are
OpenAI's definition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class PenaltyOptions:
    """The penalties; these values leave the logits as they are."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    @property
    def active(self) -> bool:
        """Whether any of them changes anything."""
        return self != PenaltyOptions()


class Penalties:
    """What sequences hold, and what that costs.

    Args:
        options: The penalties.
        prompts: Token ids of each sequence that count as prompt.
        answers: Token ids of each that count as answer.
        vocab: Number of columns of the logits.
    """

    def __init__(
        self,
        options: PenaltyOptions,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        vocab: int,
    ) -> None:
        self._options = options
        counts = np.zeros((len(prompts), vocab), dtype=np.float32)
        for row, answer in enumerate(answers):
            np.add.at(counts[row], np.array(answer, dtype=np.int64), 1)
        prompted = np.zeros((len(prompts), vocab), dtype=bool)
        for row, prompt in enumerate(prompts):
            prompted[row, list(prompt)] = True
        self._counts, self._prompted = mx.array(counts), mx.array(prompted)  # [rows, vocab]

    def apply(self, logits: mx.array) -> mx.array:
        """Return the penalized logits [rows, vocab], in float32."""
        options, logits = self._options, logits.astype(mx.float32)
        written = self._counts > 0
        if options.repetition != 1:
            scaled = mx.where(logits < 0, logits * options.repetition, logits / options.repetition)
            logits = mx.where(written | self._prompted, scaled, logits)
        return logits - options.presence * written - options.frequency * self._counts

    def advance(self, tokens: mx.array) -> None:
        """Take note of the chosen tokens [rows]."""
        rows = mx.arange(tokens.shape[0])
        self._counts = self._counts.at[rows, tokens].add(1.0)
