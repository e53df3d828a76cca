"""What training did to the choice of experts: how far it drifted, and which experts nobody uses any more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from macmoe.adapters.attach import Adapter, apply, detach
from macmoe.nn.moe import Experts
from macmoe.tuning.batch import PADDING, Batch
from macmoe.tuning.loss import inputs_of, states

Choices = dict[int, np.ndarray]  # layer -> experts [tokens, top_k]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRouting:
    """One layer, without and with the adapter.

    Attributes:
        layer: Its number.
        agreement: The share of choices that are the same.
        dead: Experts that were used and are not any more.
        busiest: The largest share of choices that falls on one expert, with the adapter.
    """

    layer: int
    agreement: float
    dead: tuple[int, ...]
    busiest: float


class _Observed(nn.Module):
    """Experts that remember which of them were chosen."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.experts: Any = experts
        self._seen: list[mx.array] = []

    def __call__(self, x: mx.array, experts: mx.array, weights: mx.array) -> mx.array:
        """Apply the experts."""
        self._seen.append(experts)
        return self.experts(x, experts, weights)


@contextmanager
def _observed(model: Any) -> Iterator[dict[int, list[mx.array]]]:
    """Watch the experts of every layer that has some."""
    layers = {
        number: layer.mlp
        for number, layer in enumerate(model.model.layers)
        if isinstance(layer.mlp.get("experts"), Experts)
    }
    seen: dict[int, list[mx.array]] = {}
    for number, mlp in layers.items():
        mlp.experts = _Observed(mlp.experts)
        seen[number] = mlp.experts._seen
    try:
        yield seen
    finally:
        for mlp in layers.values():
            mlp.experts = mlp.experts.experts


def choices(model: Any, batches: Sequence[Batch]) -> Choices:
    """Return which experts the tokens of some batches use; padding is left out."""
    found: dict[int, list[np.ndarray]] = {}
    for batch in batches:
        real = np.array(batch.segments).flatten() != PADDING
        with _observed(model) as seen:
            mx.eval(states(model, inputs_of(batch)))
        for layer, (chosen,) in seen.items():
            found.setdefault(layer, []).append(np.array(chosen)[real])
    return {layer: np.concatenate(parts) for layer, parts in found.items()}


def compare_routing(before: Choices, after: Choices, experts: int) -> list[LayerRouting]:
    """Compare the choices of the same tokens."""
    compared = []
    for layer, old in before.items():
        new = after[layer]
        same = (old[:, :, None] == new[:, None, :]).any(axis=-1)
        uses = [np.bincount(chosen.flatten(), minlength=experts) for chosen in (old, new)]
        dead = np.flatnonzero((uses[0] > 0) & (uses[1] == 0))
        compared.append(
            LayerRouting(
                layer=layer,
                agreement=float(same.mean()),
                dead=tuple(dead.tolist()),
                busiest=float(uses[1].max() / uses[1].sum()),
            )
        )
    return compared


def routing_report(model: Any, adapter: Adapter, batches: Sequence[Batch]) -> list[LayerRouting]:
    """Return what an adapter does to the choice of experts; it is on the model afterwards.

    Args:
        model: The model.
        adapter: The adapter.
        batches: Packed samples to look at.
    """
    detach(model)
    before = choices(model, batches)
    apply(model, adapter)
    after = choices(model, batches)
    experts = 1 + max(
        (int(chosen.max()) for found in (before, after) for chosen in found.values()), default=0
    )
    return compare_routing(before, after, experts)


def describe_routing(report: Sequence[LayerRouting]) -> Mapping[str, Any]:
    """Return the report in three figures and the layers with dead experts."""
    return {
        "routing_agreement": float(np.mean([layer.agreement for layer in report])) if report else 1.0,
        "dead_experts": sum(len(layer.dead) for layer in report),
        "busiest_expert": max((layer.busiest for layer in report), default=0.0),
        "layers_with_dead_experts": [layer.layer for layer in report if layer.dead],
    }
