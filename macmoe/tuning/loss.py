"""Token-weighted cross entropy that never holds the logits of more than a few tokens.

    loss = sum_t w_t * (logsumexp(z_t) - z_t[target_t]),    z_t = W h_t, in float32

Only supervised tokens reach the output matrix, in chunks. Of a chunk no logits are kept: either they are
computed once more for the gradient, or, where the output matrix is not trained, the gradient of the states is
taken at once (arXiv 2410.10989, section 3.2). The sum is not divided here: accumulation and data-parallel
training divide by the weight of the whole step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from macmoe.nn.pieces import after, cut
from macmoe.nn.positions import Positions
from macmoe.tuning.batch import KINDS, Batch

CHUNK = 512  # tokens; 512 x 200,000 logits are 0.2 GB in bfloat16
ROUNDED = 32  # numbers of supervised tokens are padded to multiples, so that few shapes are compiled

Inputs = dict[str, mx.array]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums over supervised tokens, by kind of token (prompt, thinking, answer).

    Attributes:
        loss: Weighted negative log-probabilities [kinds].
        weight: Weights [kinds].
    """

    loss: mx.array
    weight: mx.array

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(loss=self.loss + other.loss, weight=self.weight + other.weight)

    @property
    def mean(self) -> float:
        """The loss per unit of weight."""
        return float(self.loss.sum()) / max(float(self.weight.sum()), 1e-9)

    def by_kind(self) -> dict[str, float]:
        """Return the loss per unit of weight of each kind that is there."""
        sums = zip(KINDS, np.array(self.loss).tolist(), np.array(self.weight).tolist(), strict=True)
        return {kind: loss / weight for kind, loss, weight in sums if weight}


def inputs_of(batch: Batch) -> Inputs:
    """Return a batch as a pure function takes it: arrays only, and only those that matter.

    Places [supervised] of the flattened rows come with their targets, weights and kinds; they are padded with
    weights of 0. Rows of one sample each need neither positions nor segments: what follows a sample is
    padding, which it does not see.
    """
    weights = np.array(batch.weights).flatten()
    places = np.flatnonzero(weights)
    step = CHUNK if len(places) > CHUNK else ROUNDED
    spare = -len(places) % step
    places = mx.array(np.pad(places, (0, spare)).astype(np.int32))
    inputs = {name: getattr(batch, name).flatten()[places] for name in ("targets", "kinds")}
    real = mx.arange(places.size) < places.size - spare
    inputs["weights"] = mx.where(real, batch.weights.flatten()[places], 0.0)
    inputs |= {"tokens": batch.tokens, "places": places}
    return inputs if batch.alone else inputs | {"positions": batch.positions, "segments": batch.segments}


def states(model: Any, inputs: Inputs) -> mx.array:
    """Return the final states [rows, length, dim]; packed samples do not see each other."""
    packed = "segments" in inputs
    positions = Positions.packed(inputs["positions"], inputs["segments"]) if packed else None
    return model.hidden(inputs["tokens"], None, positions)


def token_losses(logits: mx.array, targets: mx.array) -> mx.array:
    """Return the negative log-probabilities [tokens] of targets, in float32."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)  # which would sum in the type of the logits
    return mx.fast.cross_entropy(logits.astype(mx.float32) if on_cpu else logits, targets)


def _recomputed(model: Any, hidden: mx.array, targets: mx.array) -> mx.array:
    """Return the loss of each token from its state; an adapted output matrix is trained."""
    head: nn.Module = model.lm_head if "lm_head" in model else nn.Identity()

    def run(wanted: mx.array, parameters: dict[str, Any], part: mx.array) -> mx.array:
        own = head.trainable_parameters()
        head.update(parameters)
        losses = token_losses(model.logits(part[None])[0], wanted)
        head.update(own)
        return losses

    parts = [
        mx.checkpoint(partial(run, wanted))(head.trainable_parameters(), part)
        for part, wanted in _chunks(hidden, targets)
    ]
    return mx.concatenate(parts)


def _at_once(model: Any, hidden: mx.array, targets: mx.array) -> mx.array:
    """Return the loss of each token; its gradient is computed with it, while the logits are there."""

    def run(hidden: mx.array) -> tuple[mx.array, mx.array]:
        found: list[tuple[mx.array, mx.array]] = []
        for part, wanted in _chunks(hidden, targets):
            # One chunk after the other, so that the logits of one are there at a time.
            piece = after(part, found[-1] if found else ())
            (loss,), (gradient,) = mx.vjp(
                lambda states, wanted=wanted: token_losses(model.logits(states[None])[0], wanted),
                [piece],
                [mx.ones(wanted.shape)],
            )
            found.append((loss, gradient))
        loss, gradient = (mx.concatenate(list(parts)) for parts in zip(*found, strict=True))
        return loss, gradient

    losses: Any = mx.custom_function(run)

    @losses.vjp
    def _scaled(_: mx.array, cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]) -> mx.array:
        return (cotangents[0][:, None] * outputs[1]).astype(outputs[1].dtype)

    return losses(hidden)[0]


def _chunks(hidden: mx.array, targets: mx.array) -> list[tuple[mx.array, mx.array]]:
    return [(hidden[some], targets[some]) for some in cut(len(targets), CHUNK)]


def loss_sums(model: Any, batch: Batch | Inputs, *, learn: bool = False) -> LossSums:
    """Return the sums of one batch.

    Args:
        model: A macmoe model.
        batch: Packed samples, or what `inputs_of` made of them.
        learn: The gradient will be asked for: compute it on the way where that is possible.
    """
    inputs = inputs_of(batch) if isinstance(batch, Batch) else batch
    hidden = states(model, inputs)
    hidden = hidden.reshape(-1, hidden.shape[-1])[inputs["places"]]  # [supervised, dim]
    if not inputs["places"].size:
        return LossSums(loss=mx.zeros((len(KINDS),)), weight=mx.zeros((len(KINDS),)))
    # Flattened: a frozen module inside the head leaves an empty branch.
    head_learns = "lm_head" in model and bool(tree_flatten(model.lm_head.trainable_parameters()))
    losses = (_at_once if learn and not head_learns else _recomputed)(model, hidden, inputs["targets"])
    of_kind = mx.arange(len(KINDS))[:, None] == inputs["kinds"]  # [kinds, supervised]
    weight = mx.where(of_kind, inputs["weights"], 0.0)
    return LossSums(loss=(weight * losses).sum(axis=-1), weight=weight.sum(axis=-1))
