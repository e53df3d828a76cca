"""What the data side hands to the trainer: samples with a weight per token, and packed batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

# What a token is, for losses reported apart.
PROMPT, THINKING, ANSWER = 0, 1, 2
KINDS = ("prompt", "thinking", "answer")

# The segment number of padding.
PADDING = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sequence to learn from.

    Attributes:
        tokens: The token ids.
        weights: The loss weight of predicting each token; 0 is not supervised, and the first is always 0.
        kinds: What each token is: PROMPT, THINKING or ANSWER.
    """

    tokens: list[int]
    weights: list[float]
    kinds: bytes | list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples laid out in rows; several may share a row and never see each other. All are [rows, length].

    Attributes:
        tokens: Inputs.
        targets: The token after each input.
        weights: Loss weight of each target, float32; 0 at padding and at the last token of a sample.
        kinds: What each target is.
        segments: Which sample of its row a token belongs to, int32; PADDING for none.
        positions: Place of a token within its sample, int32, from 0.
        alone: Every row holds one sample.
    """

    tokens: mx.array
    targets: mx.array
    weights: mx.array
    kinds: mx.array
    segments: mx.array
    positions: mx.array
    alone: bool = False

    @classmethod
    def of(cls, rows: Sequence[Sequence[Sample]], length: int) -> Batch:
        """Lay out each row's samples one after the other, padded to `length`.

        A sample of n tokens takes n - 1 places: its last token is only a target.
        """
        columns = [_row(samples, length) for samples in rows]
        types = (mx.int32, mx.int32, mx.float32, mx.int32, mx.int32, mx.int32)
        arrays = [
            mx.array(list(part), dtype=kind)
            for part, kind in zip(zip(*columns, strict=True), types, strict=True)
        ]
        tokens, targets, weights, kinds, segments, positions = arrays
        return cls(
            tokens=tokens,
            targets=targets,
            weights=weights,
            kinds=kinds,
            segments=segments,
            positions=positions,
            alone=all(len(samples) == 1 for samples in rows),
        )


def _row(samples: Sequence[Sample], length: int) -> list[list]:
    """Return one row's tokens, targets, weights, kinds, segments and positions."""
    row: list[list] = [[], [], [], [], [], []]
    for number, sample in enumerate(samples):
        places = len(sample.tokens) - 1
        parts = (
            sample.tokens[:-1],
            sample.tokens[1:],
            sample.weights[1:],
            list(sample.kinds[1:]),
            [number] * places,
            range(places),
        )
        for column, part in zip(row, parts, strict=True):
            column.extend(part)
    padding = length - len(row[0])
    for column, value in zip(row, (0, 0, 0.0, PROMPT, PADDING, 0), strict=True):
        column.extend([value] * padding)
    return row
