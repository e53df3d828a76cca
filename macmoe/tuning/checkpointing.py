"""Gradient checkpointing (arXiv 1604.06174): layers keep their input only and compute twice."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.nn.decoder import Decoder
from macmoe.nn.positions import Mask, Positions
from macmoe.tuning.balance import Balanced


class Checkpointed(nn.Module):
    """A decoder layer whose activations are not kept for the gradient.

    Args:
        layer: The layer.
    """

    layer: Any

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __call__(self, x: mx.array, mask: Mask, positions: Positions, cache: None) -> mx.array:
        """Apply the layer; what it measures is handed on, because nothing else leaves a checkpoint."""
        mlp = self.layer.mlp
        balanced = mlp if isinstance(mlp, Balanced) and mlp.measures else None

        def run(parameters: dict[str, Any], x: mx.array) -> list[mx.array]:
            own = self.layer.trainable_parameters()
            self.layer.update(parameters)
            y = self.layer(x, mask, positions, cache)
            self.layer.update(own)
            return [y] if balanced is None else [y, balanced.take()]

        y, *measured = mx.checkpoint(run)(self.layer.trainable_parameters(), x)
        if balanced is not None:
            balanced.give(measured[0])
        return y


def checkpoint_layers(decoder: Decoder) -> None:
    """Wrap every layer of a model."""
    layers: Any = [Checkpointed(layer) for layer in decoder.layers]
    decoder.layers = layers


def keep_activations(decoder: Decoder) -> None:
    """Take the wrappers off again."""
    decoder.layers = [layer.layer if isinstance(layer, Checkpointed) else layer for layer in decoder.layers]
