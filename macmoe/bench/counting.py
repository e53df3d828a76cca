"""How many kernels a token costs: operations in its graph that launch work, views left out.

Counted from the graph as MLX is about to run it, elementwise operations already fused where compiled.
An operation counts once even where a back end needs several launches for it (sorting, say), and reshaping
never counts although it copies at times: so what is counted is the least that runs.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macmoe.decoding.step import DecodeStep
from macmoe.families import Model
from macmoe.nn.cache import ModelCache
from macmoe.sampling import Sampler, SamplingOptions

# What only looks at memory in another way, or orders other operations.
VIEWS = frozenset(
    {
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Copy",
        "Depends",
        "ExpandDims",
        "Flatten",
        "NumberOfElements",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    }
)
_NODE = re.compile(r'\{ \d+ \[label ="([^"]*)"')
TOKEN = 0  # any token will do


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """Kernels of one token.

    Attributes:
        token: All of them, the choice of the next token included.
        layer: Per layer, on average; without what stands before and after the layers.
    """

    token: int
    layer: float


def operations(*outputs: mx.array) -> Counter[str]:
    """Return the operations in the graph of arrays that are not yet evaluated, by name."""
    text = io.StringIO()
    mx.export_to_dot(text, *outputs)
    return Counter(_NODE.findall(text.getvalue()))


def launches(*outputs: mx.array, views: Collection[str] = VIEWS) -> int:
    """Return how many operations in the graph of arrays launch work."""
    return sum(count for name, count in operations(*outputs).items() if name not in views)


def _kernels(token: mx.array, frame: mx.array, layers: int, views: Collection[str]) -> Kernels:
    whole, outside = launches(token, views=views), launches(frame, views=views)
    return Kernels(token=whole, layer=(whole - outside) / layers)


def _greedy(logits: mx.array) -> mx.array:
    return Sampler(SamplingOptions())(logits)[0]


def _frame(model: Model, token: mx.array) -> mx.array:
    """Return what a token costs in a model without layers."""
    embedded = model.model.embed_tokens(token[None])
    return model.logits(model.model.norm(embedded))[:, -1]


def step_kernels(
    model: Model, step: DecodeStep, cache: ModelCache, views: Collection[str] = VIEWS
) -> Kernels:
    """Count the kernels of a step.

    Args:
        model: The model.
        step: Its translation.
        cache: Holds at least a token, evaluated; it is spoiled.
        views: Operations that do not count.
    """
    token = mx.array([TOKEN], dtype=mx.uint32)
    frame = mx.compile(lambda token: _frame(model, token))(token)
    logits = step(token, cache)
    return _kernels(_greedy(logits), _greedy(frame), len(step.layers), views)


def plain_kernels(model: Model, cache: ModelCache, views: Collection[str] = VIEWS) -> Kernels:
    """Count the kernels of the model's modules; `cache` as in `step_kernels`."""
    token = mx.array([TOKEN], dtype=mx.uint32)
    logits = model.logits(model.hidden(token[None], cache))[:, -1]
    return _kernels(_greedy(logits), _greedy(_frame(model, token)), len(model.model.layers), views)


def peer_kernels(peer: Any, cache: list[Any], views: Collection[str] = VIEWS) -> Kernels:
    """Count the kernels of mlx-lm's model and of its greedy choice (generate_step)."""
    token = mx.array([[TOKEN]], dtype=mx.uint32)

    def chosen(logits: mx.array) -> mx.array:
        logits = logits[:, -1, :]
        return mx.argmax(logits - mx.logsumexp(logits, keepdims=True), axis=-1)

    frame = peer.lm_head if "lm_head" in peer else peer.model.embed_tokens.as_linear
    empty = frame(peer.model.norm(peer.model.embed_tokens(token)))
    return _kernels(chosen(peer(token, cache=cache)), chosen(empty), len(peer.layers), views)
