"""Keep all experts in use while routers are adapted: an auxiliary loss on their choices.

    loss = sum_e f_e P_e    f_e: how often e is chosen, times the experts;  P_e: its mean probability

GPT-OSS and Qwen3 (Switch Transformer, arXiv 2101.03961, section 2.2): softmax over all experts, over all
tokens of a batch. DeepSeek-V3 (arXiv 2412.19437, equations 17 to 20): sigmoids rescaled to sum to one, f_e
divided by top_k, sequence by sequence. The mean over layers is taken. Checked against transformers'
load_balancing_loss_func, one layer at a time (all layers together it mixes before it multiplies).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.adapters.lora import RouterLora
from macmoe.models.deepseek_v3 import Router
from macmoe.nn.moe import Experts
from macmoe.nn.routing import router_logits
from macmoe.tuning.batch import PADDING


def balance_loss(probabilities: mx.array, chosen: mx.array, groups: mx.array) -> mx.array:
    """Return the loss of one layer, the mean over groups of tokens.

    Args:
        probabilities: Of every expert [tokens, experts].
        chosen: The experts of each token [tokens, top_k].
        groups: 1 where a token belongs to a group [groups, tokens]; a group may be empty.
    """
    experts = probabilities.shape[-1]
    uses = (chosen[..., None] == mx.arange(experts)).sum(axis=1).astype(mx.float32)  # [tokens, experts]
    sizes = groups.sum(axis=-1, keepdims=True)  # [groups, 1]
    shares = groups / mx.maximum(sizes, 1)
    of_groups = experts * ((shares @ uses) * (shares @ probabilities)).sum(axis=-1)
    return of_groups.sum() / mx.maximum((sizes > 0).sum(), 1)


def all_tokens(segments: mx.array) -> mx.array:
    """Return one group of all tokens [1, tokens]; padding, here and below, belongs to none."""
    return (segments.flatten() != PADDING).astype(mx.float32)[None]


def sequences(segments: mx.array, most: int) -> mx.array:
    """Return a group for every packed sequence [rows * most, tokens], `most` to a row."""
    rows = mx.arange(len(segments))[:, None]
    numbers = mx.where(segments == PADDING, PADDING, rows * most + segments).flatten()
    return (mx.arange(len(segments) * most)[:, None] == numbers).astype(mx.float32)


class Balanced(nn.Module):
    """A mixture of experts that measures how evenly its router chooses.

    Args:
        mlp: The layer.
        balance: Knows the groups of the tokens.
    """

    def __init__(self, mlp: nn.Module, balance: Balance) -> None:
        super().__init__()
        self.mlp: Any = mlp
        self._groups = lambda: balance.groups
        self._found: list[mx.array] = []

    def __call__(self, x: mx.array) -> mx.array:
        """Apply the layer; what was measured waits for `take`."""
        groups = self._groups()
        if groups is not None:
            self._found.append(self._measure(x.reshape(-1, x.shape[-1]), groups))
        return self.mlp(x)

    @property
    def measures(self) -> bool:
        """Whether anything is measured now."""
        return self._groups() is not None

    def _measure(self, tokens: mx.array, groups: mx.array) -> mx.array:
        router = self.mlp.gate if "gate" in self.mlp else self.mlp.router
        if isinstance(router, (Router, RouterLora)):
            affinities = mx.sigmoid(router_logits(tokens, router.score))
            chosen, _ = router(tokens)
            probabilities = affinities / affinities.sum(axis=-1, keepdims=True)
            return balance_loss(probabilities, chosen, groups) / chosen.shape[-1]
        logits = router_logits(tokens, router)
        top_k = self.mlp.top_k
        chosen = mx.argpartition(-mx.stop_gradient(logits), kth=top_k - 1, axis=-1)[..., :top_k]
        return balance_loss(mx.softmax(logits, axis=-1), chosen, groups)

    def take(self) -> mx.array:
        """Return what was measured."""
        return self._found.pop()

    def give(self, found: mx.array) -> None:
        """Hand over what was measured where layers are computed again."""
        self._found.append(found)


@dataclass(slots=True)
class Balance:
    """The routers of a model while it trains.

    Attributes:
        groups: The tokens of the batch, see `balance_loss`; None while nothing is to be measured.
        layers: The layers that have routers.
    """

    groups: mx.array | None = None
    layers: list[Balanced] = field(default_factory=list)

    @classmethod
    def of(cls, model: Any) -> Balance:
        """Watch the routers of a model, until `end`."""
        balance = cls()
        for layer in _sparse(model):
            layer.mlp = Balanced(layer.mlp, balance)
            balance.layers.append(layer.mlp)
        return balance

    def total(self) -> mx.array:
        """Return the mean over the layers of what was measured last."""
        return sum((layer.take() for layer in self.layers), mx.array(0.0)) / len(self.layers)

    def begin(self, segments: mx.array, most: int) -> None:
        """Say which sequences the tokens of the next batch belong to, `most` to a row."""
        router = self.layers[0].mlp.get("gate")
        by_sequence = isinstance(router, (Router, RouterLora))
        self.groups = sequences(segments, most) if by_sequence else all_tokens(segments)

    def pause(self) -> None:
        """Measure nothing until the next `begin`."""
        self.groups = None

    def end(self, model: Any) -> None:
        """Take the watch off again."""
        for layer in model.model.layers:
            if isinstance(layer.mlp, Balanced):
                layer.mlp = layer.mlp.mlp


def _sparse(model: Any) -> Iterator[Any]:
    return (layer for layer in model.model.layers if isinstance(layer.mlp.get("experts"), Experts))
