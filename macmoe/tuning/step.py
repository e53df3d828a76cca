"""One update as pure functions of factors and batches, compiled where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from macmoe.adapters.attach import put
from macmoe.adapters.lora import LowRank
from macmoe.tuning.balance import Balance
from macmoe.tuning.batch import Batch
from macmoe.tuning.checkpointing import checkpoint_layers, keep_activations
from macmoe.tuning.config import TrainOptions
from macmoe.tuning.loss import Inputs, inputs_of, loss_sums
from macmoe.tuning.unpacking import keep_packed, training_unpacks, unpack_products

Arrays = dict[str, mx.array]
# (share of the mean loss, sums of losses, of weights, balance loss), gradient of the first
Found = tuple[tuple[mx.array, mx.array, mx.array, mx.array], Arrays]


class Step:
    """The mathematics of an update.

    Args:
        model: The model.
        adapters: The adapters on it.
        optimizer: Whose state belongs to them.
        options: How to train.
    """

    def __init__(
        self, model: Any, adapters: Mapping[str, LowRank], optimizer: Any, options: TrainOptions
    ) -> None:
        self.model, self.adapters, self.optimizer, self.options = model, adapters, optimizer, options
        self._balance: Balance | None = None
        self._compiled: tuple[Callable[..., Found], Callable[..., tuple[Arrays, mx.array]]] | None = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Make the model as fast and small for training as the machine allows; undo it at the end."""
        self._begin()
        try:
            yield
        finally:
            self._end()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Use the model as it is meant for answers, in the middle of training."""
        self._end()
        try:
            yield
        finally:
            self._begin()

    def _begin(self) -> None:
        if self.options.balance:
            self._balance = Balance.of(self.model)
        if training_unpacks():
            unpack_products(self.model)
        if self.options.recompute:
            checkpoint_layers(self.model.model)

    def _end(self) -> None:
        keep_activations(self.model.model)
        keep_packed(self.model)
        if self._balance is not None:
            self._balance.end(self.model)

    def gradient(self, factors: Arrays, batch: Batch, weight: mx.array) -> Found:
        """Return a batch's share of the mean loss, its sums, its balance, and the gradient of the share.

        Args:
            factors: The factors.
            batch: The batch.
            weight: Of all batches of the update, on all machines.
        """
        if self._balance is None:
            return self._functions[0](factors, inputs_of(batch), weight)
        most = 1 << int(np.array(batch.segments).max(initial=0)).bit_length()
        inputs = inputs_of(replace(batch, alone=False)) | {"sequences": mx.arange(most)}
        return self._functions[0](factors, inputs, weight)

    def updated(self, factors: Arrays, gradients: Arrays) -> tuple[Arrays, mx.array]:
        """Return the factors after an update, and the norm of the gradient before it is clipped."""
        return self._functions[1](factors, gradients)

    @property
    def _functions(self) -> tuple[Callable[..., Found], Callable[..., tuple[Arrays, mx.array]]]:
        if not self.options.compiled:
            return self._gradient, self._updated
        if self._compiled is None:
            state = [self.optimizer.state]
            update = mx.compile(self._updated, inputs=state, outputs=state)
            self._compiled = (mx.compile(self._gradient), update)
        return self._compiled

    def _gradient(self, factors: Arrays, inputs: Inputs, weight: mx.array) -> Found:
        def loss(factors: Arrays) -> tuple[mx.array, ...]:
            put(self.adapters, factors)
            if self._balance is not None:
                self._balance.begin(inputs["segments"], len(inputs["sequences"]))
            sums = loss_sums(self.model, inputs, learn=True)
            balance = mx.array(0.0) if self._balance is None else self._balance.total()
            share = (sums.loss.sum() + self.options.balance * balance * sums.weight.sum()) / weight
            return share, sums.loss, sums.weight, balance

        found: Any = mx.value_and_grad(loss)(factors)
        if self._balance is not None:
            self._balance.pause()  # only here: layers that are computed again have measured once more
        return found

    def _updated(self, factors: Arrays, gradients: Arrays) -> tuple[Arrays, mx.array]:
        norm = mx.sqrt(sum((gradient.square().sum() for gradient in gradients.values()), mx.array(0.0)))
        if self.options.clip:
            shrink = mx.minimum(self.options.clip / mx.maximum(norm, 1e-30), 1.0)
            gradients = {name: gradient * shrink for name, gradient in gradients.items()}
        updated = self.optimizer.apply_gradients(slashed(gradients), slashed(factors))
        return {name: updated[name.replace(".", "/")] for name in factors}, norm


def slashed(arrays: Mapping[str, mx.array]) -> Arrays:
    """Name arrays so that MLX does not take the names for trees."""
    return {name.replace(".", "/"): array for name, array in arrays.items()}
