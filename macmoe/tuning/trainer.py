"""The training loop: token-weighted updates of the factors, evaluations, savings; the base is never written.

A step takes its batches from the schedule by number, its learning rate from the step, and divides the summed
loss of all its batches, on all machines, by their summed weight. So a run is a function of its settings, and
a resumed one gives bit-equal factors.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from macmoe.adapters.attach import arrays_of, put, taken
from macmoe.adapters.files import save_adapter
from macmoe.adapters.lora import LowRank
from macmoe.errors import DatasetError
from macmoe.pacing import in_step
from macmoe.tuning.batch import Batch, Sample
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.loss import LossSums, loss_sums
from macmoe.tuning.metrics import Metrics
from macmoe.tuning.optimizer import (
    OPTIMIZERS,
    learning_rate,
    optimizer_arrays,
    restore_optimizer,
)
from macmoe.tuning.packing import Plan, Schedule
from macmoe.tuning.routing import describe_routing, routing_report
from macmoe.tuning.run_state import Progress, RunState, check_fresh
from macmoe.tuning.step import Step, slashed

BEST = "best"
ROUTING_BATCHES = 16
AHEAD_BYTES = 2**30  # what a step may hold before it waits for a CUDA GPU
# Settings that may change when a run goes on; all others decide the result.
FREE = ("save_every", "recompute", "sample_prompts", "sample_tokens", "trackers")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One step's figures."""

    step: int
    steps: int
    epoch: int
    sums: LossSums
    learning_rate: float
    gradient_norm: float
    balance: float | None
    tokens: int


class Trainer:
    """Trains the adapters on one model.

    Args:
        model: The model, with adapters attached.
        adapters: Those adapters, by path.
        options: How to train.
        train: What to learn.
        valid: What to evaluate on, or None.
        out: Where adapter, state and metrics go.
        family: Name of the model's family.
        base: Fingerprint of the model without adapters; a run goes on with the same one only.
        watch: Called with every line of the metrics.
        answer: Answers the sample prompts of the options, if there are any.

    Attributes:
        progress: How far the run is.
        saved: Updates at the last saving; those since are lost where the run stops.
    """

    def __init__(
        self,
        model: Any,
        adapters: Mapping[str, LowRank],
        options: TrainOptions,
        *,
        train: TrainData,
        valid: TrainData | None,
        out: Path,
        family: str,
        base: str = "",
        watch: Callable[[Mapping[str, Any]], None] = lambda _: None,
        answer: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
    ) -> None:
        self.model, self.adapters, self.options = model, adapters, options
        self.train_data, self.valid_data, self.out = train, valid, out
        self.family, self.base = family, base
        self.group = mx.distributed.init()
        self.optimizer = OPTIMIZERS[options.optimizer](options)
        self.factors = arrays_of(adapters)
        self.optimizer.init(slashed(self.factors))
        self.math = Step(model, adapters, self.optimizer, options)
        self.progress = Progress()
        self.saved = 0
        self.schedule = train.schedule(options)
        self.steps = self._count_steps()
        self.answer = answer
        self.metrics = Metrics(out, watch, options.trackers, active=self.group.rank() == 0)

    @property
    def per_step(self) -> int:
        """Batches of one update, on all machines."""
        return self.options.accumulate * self.group.size()

    def _count_steps(self) -> int:
        if self.options.steps is not None:
            return self.options.steps
        batches = sum(len(self.schedule.epoch(epoch)) for epoch in range(self.options.epochs))
        return math.ceil(batches / self.per_step)

    @property
    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with this one."""
        settings = {name: value for name, value in asdict(self.options).items() if name not in FREE}
        specs = {path: asdict(adapter.spec) for path, adapter in self.adapters.items()}
        adapted = hashlib.sha256(repr(sorted(specs.items())).encode()).hexdigest()[:16]
        return settings | {
            "data": self.train_data.digest,
            "validation data": self.valid_data.digest if self.valid_data else None,
            "places of a row": self.train_data.row_length,
            "base model": self.base,
            "adapted matrices": adapted,
            "machines": self.group.size(),
        }

    def resume(self) -> None:
        """Go on where the run in the folder was.

        Raises:
            CheckpointError: There is none, or it is damaged.
            UsageError: It was another run.
        """
        state = RunState.load(self.out, self.identity)
        put(self.adapters, state.factors)
        self.factors, self.progress = arrays_of(self.adapters), state.progress
        self.saved = self.progress.step
        restore_optimizer(self.optimizer, dict(state.optimizer))
        self.metrics.rewind(self.progress.step)

    def run(self) -> Progress:
        """Train to the end, or until it no longer pays; return how far it went.

        Raises:
            DatasetError: The loss or the gradient of a step is not a number; what was saved before is kept.
            CheckpointError: The disk is full; what was saved before is kept.
            UsageError: The folder holds a run that would be overwritten.
        """
        if self.progress.step == 0:
            check_fresh(self.out)
            self.metrics.rewind(0)  # of a run that was killed before its first saving
        try:
            with self.math.ready(), in_step(AHEAD_BYTES):
                self._loop()
        finally:
            put(self.adapters, self.factors)
            self.metrics.close()
        return self.progress

    @property
    def _stopped(self) -> bool:
        """Whether evaluations got no better for too long."""
        return 0 < self.options.patience <= self.progress.waited

    def _loop(self) -> None:
        options = self.options
        batches = self.schedule.batches(self.progress.step * self.per_step)
        while self.progress.step < self.steps and not self._stopped:
            begin = time.perf_counter()
            update = self._step(list(itertools.islice(batches, self.per_step)))
            self.progress = replace(self.progress, step=self.progress.step + 1)
            self.metrics.update(update, time.perf_counter() - begin)
            last = self.progress.step == self.steps
            if last or (options.evaluate_every and self.progress.step % options.evaluate_every == 0):
                self._evaluate_and_compare()
                self._answer_samples()
            if last or self._stopped or self.progress.step % options.save_every == 0:
                self.save()
                self.saved = self.progress.step

    def _step(self, batches: Sequence[tuple[int, Plan]]) -> Update:
        """Compute and apply one update."""
        mine = [plan for _, plan in batches[self.group.rank() :: self.group.size()]]
        laid_out = [self.train_data.batch(plan) for plan in mine]
        weight = self._over_machines(sum((batch.weights.sum() for batch in laid_out), mx.array(0.0)))
        gradients, sums, balance = self._gradients(laid_out, weight)
        gradients = {name: self._over_machines(gradient) for name, gradient in gradients.items()}
        sums = LossSums(loss=self._over_machines(sums.loss), weight=self._over_machines(sums.weight))
        rate = learning_rate(self.options, self.progress.step, self.steps)
        self.optimizer.learning_rate = rate
        factors, norm = self.math.updated(self.factors, gradients)
        mx.eval(factors, self.optimizer.state, norm, balance, sums.loss, sums.weight)
        self._check(float(norm), sums, mine)
        self.factors = factors
        put(self.adapters, self.factors)
        return Update(
            step=self.progress.step + 1,
            steps=self.steps,
            epoch=batches[-1][0],
            sums=sums,
            learning_rate=rate,
            gradient_norm=float(norm),
            balance=float(balance) if self.options.balance else None,
            tokens=sum(
                len(self.train_data.samples[i].tokens) for _, p in batches for row in p.rows for i in row
            ),
        )

    def _check(self, norm: float, sums: LossSums, plans: Sequence[Plan]) -> None:
        if not (math.isfinite(norm) and math.isfinite(sums.mean)):
            names = "; ".join(self.train_data.names(plan) for plan in plans)
            raise DatasetError(
                f"step {self.progress.step + 1}: the loss is {sums.mean} and its gradient has norm {norm}; "
                f"the samples were {names}; a lower learning rate may help"
            )

    def _over_machines(self, array: mx.array) -> mx.array:
        return mx.distributed.all_sum(array, group=self.group) if self.group.size() > 1 else array

    def _gradients(
        self, batches: Sequence[Batch], weight: mx.array
    ) -> tuple[dict[str, mx.array], LossSums, mx.array]:
        """Return the gradient of the mean loss over all batches, the sums of the losses, and the balance."""
        gradients: dict[str, mx.array] = {}
        total = LossSums(loss=mx.zeros((3,)), weight=mx.zeros((3,)))
        balance = mx.array(0.0)
        for batch in batches:
            (_, *sums), found = self.math.gradient(self.factors, batch, weight)
            gradients = {
                name: gradients[name] + array if gradients else array for name, array in found.items()
            }
            total = total + LossSums(loss=sums[0], weight=sums[1])
            balance = balance + sums[2] / len(batches)
            if len(batches) > 1:
                mx.eval(gradients, total.loss, total.weight, balance)
        put(self.adapters, self.factors)
        return gradients, total, balance

    def evaluate(self, data: TrainData) -> LossSums:
        """Return the summed losses of all samples, without changing anything."""
        return evaluate(self.model, data, replace(self.options, seed=0))

    def _evaluate_and_compare(self) -> None:
        if self.valid_data is None:
            return
        sums = self.evaluate(self.valid_data)
        self.metrics.evaluation(self.progress.step, sums)
        best = self.progress.best
        if best is None or sums.mean < best:
            self.progress = replace(self.progress, best=sums.mean, waited=0)
            if self.group.rank() == 0:
                save_adapter(taken(self.adapters), self.out / BEST, self.family)
        else:
            self.progress = replace(self.progress, waited=self.progress.waited + 1)

    def _answer_samples(self) -> None:
        if self.answer is not None and self.group.rank() == 0:
            with self.math.paused():
                self.metrics.samples(self.progress.step, self.answer())

    def routing(self) -> Mapping[str, Any]:
        """Return what the adapter does to the choice of experts, on the first batches to learn."""
        plans = self.schedule.epoch(0)[:ROUTING_BATCHES]
        batches = [self.train_data.batch(plan) for plan in plans]
        return describe_routing(routing_report(self.model, taken(self.adapters), batches))

    def save(self) -> None:
        """Save the run: first its state, then the adapter and the picture."""
        if self.group.rank() != 0:
            return
        RunState(
            progress=self.progress,
            identity=self.identity,
            factors=self.factors,
            optimizer=optimizer_arrays(self.optimizer),
        ).save(self.out)
        save_adapter(taken(self.adapters), self.out, self.family)
        self.metrics.draw()


def evaluate(model: Any, data: TrainData, options: TrainOptions) -> LossSums:
    """Return the summed losses of all samples of a split."""
    total = LossSums(loss=mx.zeros((3,)), weight=mx.zeros((3,)))
    for plan in data.schedule(options).epoch(0):
        total = total + loss_sums(model, data.batch(plan))
        mx.eval(total.loss, total.weight)
    return total
