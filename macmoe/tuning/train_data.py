"""The samples of one split as the trainer takes them: in an order, in batches, with a hash of all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from macmoe.errors import DatasetError
from macmoe.tuning.batch import Batch, Sample
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.packing import Plan, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainData:
    """Samples of one split, and where each comes from.

    Attributes:
        samples: The samples.
        places: A name for each, for messages.
        row_length: Places of a row.
    """

    samples: Sequence[Sample]
    places: Sequence[str]
    row_length: int

    def __post_init__(self) -> None:
        if not any(any(sample.weights) for sample in self.samples):
            raise DatasetError("no token of the data is supervised: there is nothing to learn from it")

    def schedule(self, options: TrainOptions) -> Schedule:
        """Return the order of the samples."""
        return Schedule(
            lengths=[len(sample.tokens) for sample in self.samples],
            row_length=self.row_length,
            rows=options.rows,
            packed=options.packed,
            seed=options.seed,
        )

    def batch(self, plan: Plan) -> Batch:
        """Lay out one batch."""
        rows = [[self.samples[index] for index in row] for row in plan.rows]
        return Batch.of(rows, plan.length)

    def names(self, plan: Plan) -> str:
        """Say which samples a batch holds."""
        return ", ".join(self.places[index] for row in plan.rows for index in row)

    @property
    def digest(self) -> str:
        """A hash of all tokens and weights."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(np.array(sample.tokens, np.int64).tobytes())
            digest.update(np.array(sample.weights, np.float64).tobytes())
        return digest.hexdigest()[:16]
