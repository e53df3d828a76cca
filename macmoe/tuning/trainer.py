"""The training loop: token-weighted updates of the factors, evaluations, savings; the base is never written.

A step takes its batches from the schedule by number, its learning rate from the step, and divides the summed
loss of all its batches, on all machines, by their summed weight. So a run is a function of its settings, and
a resumed one gives bit-equal factors. A run that is interrupted saves its last whole update.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import mlx.core as mx

from macmoe.adapters.attach import ROUTERS, arrays_of, put, taken
from macmoe.adapters.files import save_adapter
from macmoe.adapters.lora import LowRank
from macmoe.errors import DatasetError, UsageError
from macmoe.pacing import in_step
from macmoe.tuning.batch import Batch
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.interrupts import Interrupts
from macmoe.tuning.loss import LossSums, loss_sums
from macmoe.tuning.metrics import Metrics
from macmoe.tuning.optimizer import (
    OPTIMIZERS,
    learning_rate,
    optimizer_arrays,
    restore_optimizer,
)
from macmoe.tuning.packing import Plan
from macmoe.tuning.routing import describe_routing, routing_report
from macmoe.tuning.run_state import BEGUN_WITH, Progress, RunState, check_fresh
from macmoe.tuning.step import Step, slashed
from macmoe.tuning.train_data import TrainData

BEST = "best"
ROUTING_BATCHES = 16
AHEAD_BYTES = 2**30  # what a step may hold before it waits for a CUDA GPU
# Settings that may change when a run goes on; all others decide the result.
FREE = ("save_every", "log_every", "recompute", "sample_prompts", "sample_tokens", "trackers")
# And those that may where the learning rate does not depend on how long the run is.
LENGTH = ("epochs", "steps")


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
        origin: Hash of the adapter that the run began with; empty for a new one.

    Attributes:
        progress: How far the run is.
        saved: Updates at the last saving.
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
        origin: str = "",
    ) -> None:
        self.model, self.adapters, self.options = model, adapters, options
        self.train_data, self.valid_data, self.out = train, valid, out
        self.family, self.base, self.origin = family, base, origin
        self.group = mx.distributed.init()
        self.optimizer = OPTIMIZERS[options.optimizer](options)
        self.factors = arrays_of(adapters)
        self.optimizer.init(slashed(self.factors))
        self.math = Step(model, adapters, self.optimizer, options)
        self.progress = Progress()
        self.saved = 0
        self._interrupts = Interrupts()
        self._torn = False  # whether factors, optimizer and progress are of different updates
        self.schedule = train.schedule(options)
        self.steps = self._count_steps()
        self.answer = answer
        self.metrics = Metrics(out, watch, options.trackers, active=self.group.rank() == 0)

    @property
    def adapts_routers(self) -> bool:
        """Whether any router has an adapter."""
        return any(fnmatchcase(path, router) for path in self.adapters for router in ROUTERS)

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
            **({BEGUN_WITH: self.origin} if self.origin else {}),
        }

    def resume(self) -> None:
        """Go on where the run in the folder was.

        Raises:
            CheckpointError: There is none, or it is damaged.
            UsageError: It was another run, or it is further than this one would go.
        """
        state = RunState.load(self.out, self.identity, LENGTH if self.options.schedule == "constant" else ())
        if state.progress.step > self.steps:
            raise UsageError(
                f"{self.out}: this run has made {state.progress.step} updates already, more than {self.steps}"
            )
        put(self.adapters, state.factors)
        self.factors, self.progress = arrays_of(self.adapters), state.progress
        self.saved = self.progress.step
        restore_optimizer(self.optimizer, dict(state.optimizer))
        self.metrics.rewind(self.progress.step, looks=not self.progress.due)

    def run(self) -> Progress:
        """Train to the end, or until it no longer pays; return how far it went.

        Raises:
            DatasetError: The loss or the gradient of a step is not a number; what was saved before is kept.
            CheckpointError: The disk is full; what was saved before is kept.
            UsageError: The folder holds a run that would be overwritten.
            KeyboardInterrupt: It was interrupted; the last whole update is saved, unless it was twice.
        """
        if self.progress.step == 0:
            check_fresh(self.out)
            self.metrics.rewind(0)  # of a run that was killed before its first saving
        with self._interrupts.listening():
            try:
                with self.math.ready(), in_step(AHEAD_BYTES):
                    self._loop()
            except KeyboardInterrupt:
                self._save_what_is_whole()
                raise
            finally:
                put(self.adapters, self.factors)
                self.metrics.close()
        return self.progress

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to do: all updates are made, or evaluations got no better."""
        return self.progress.step >= self.steps or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether evaluations got no better for too long."""
        return 0 < self.options.patience <= self.progress.waited

    def _loop(self) -> None:
        batches = self.schedule.batches(self.progress.step * self.per_step)
        changed = self.ended  # then a kill may have come between the state and the adapter
        while True:
            if self.progress.due:
                self._look()
                changed = True
            if changed and (self.ended or self.progress.step % self.options.save_every == 0):
                self.save()
            if self.ended:
                return
            self._advance(list(itertools.islice(batches, self.per_step)))
            changed = True

    def _advance(self, batches: Sequence[tuple[int, Plan]]) -> None:
        """Make one update; an interruption comes before it or after it."""
        begin = time.perf_counter()
        mine, gradients, sums, balance = self._gradients_of(batches)
        with self._interrupts.held():
            self._torn = True
            update = self._apply(batches, mine, gradients, (sums, balance))
            self.progress = replace(self.progress, step=update.step, due=self._is_due(update.step))
            self._torn = False
            self.metrics.update(update, time.perf_counter() - begin)

    def _is_due(self, step: int) -> bool:
        every = self.options.evaluate_every
        return step == self.steps or bool(every and step % every == 0)

    def _look(self) -> None:
        """Evaluate, and answer the sample prompts; what is interrupted is done again from the beginning."""
        progress = self._compared()
        self._answer_samples()
        self.progress = replace(progress, due=False)

    def _save_what_is_whole(self) -> None:
        """Save the last update of an interrupted run."""
        put(self.adapters, self.factors)
        if self.progress.step > self.saved and not self._torn:
            self.save()

    def _gradients_of(self, batches: Sequence[tuple[int, Plan]]) -> tuple[Any, ...]:
        """Return this machine's batches of an update, the gradients of all, sums of losses, and balance."""
        mine = [plan for _, plan in batches[self.group.rank() :: self.group.size()]]
        laid_out = [self.train_data.batch(plan) for plan in mine]
        weight = self._over_machines(sum((batch.weights.sum() for batch in laid_out), mx.array(0.0)))
        gradients, sums, balance = self._gradients(laid_out, weight)
        gradients = {name: self._over_machines(gradient) for name, gradient in gradients.items()}
        sums = LossSums(loss=self._over_machines(sums.loss), weight=self._over_machines(sums.weight))
        return mine, gradients, sums, balance

    def _apply(
        self,
        batches: Sequence[tuple[int, Plan]],
        mine: Sequence[Plan],
        gradients: dict[str, mx.array],
        figures: tuple[LossSums, mx.array],
    ) -> Update:
        """Put one update into the factors."""
        sums, balance = figures
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

    def _compared(self) -> Progress:
        """Evaluate, keep the adapter if it is the best, and return the progress after that."""
        if self.valid_data is None:
            return self.progress
        sums = self.evaluate(self.valid_data)
        self.metrics.evaluation(self.progress.step, sums)
        best = self.progress.best
        if best is not None and sums.mean >= best:
            return replace(self.progress, waited=self.progress.waited + 1)
        if self.group.rank() == 0:
            save_adapter(taken(self.adapters), self.out / BEST, self.family)
        return replace(self.progress, best=sums.mean, waited=0)

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
        """Save the run: first its state, from which it goes on, then the adapter and the picture."""
        if self.group.rank() != 0:
            self.saved = self.progress.step
            return
        RunState(
            progress=self.progress,
            identity=self.identity,
            factors=self.factors,
            optimizer=optimizer_arrays(self.optimizer),
        ).save(self.out)
        self.saved = self.progress.step
        save_adapter(taken(self.adapters), self.out, self.family)
        self.metrics.draw()


def evaluate(model: Any, data: TrainData, options: TrainOptions) -> LossSums:
    """Return the summed losses of all samples of a split."""
    total = LossSums(loss=mx.zeros((3,)), weight=mx.zeros((3,)))
    for plan in data.schedule(options).epoch(0):
        total = total + loss_sums(model, data.batch(plan))
        mx.eval(total.loss, total.weight)
    return total
