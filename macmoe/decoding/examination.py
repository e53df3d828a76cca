"""Whether a model's kernels are right and faster: each kind of sublayer is compared, and a whole token timed.

Both the kernels and the modules round; the judge is the same module in float32. Kernels are right where their
error is no larger than rounding in that type explains: about as large as that of the modules.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macmoe.decoding.step import DecodeStep, Layer
from macmoe.families import Model
from macmoe.nn.cache import ModelCache
from macmoe.nn.moe import Experts
from macmoe.nn.positions import Positions
from macmoe.protocols import LayerCache

PAST = 40  # tokens in the cache of a check
TOKENS = 5  # checked per sublayer, and timed
MARGIN = 1.5  # how much larger than the modules' the kernels' error may be
# Relative errors that are nothing to worry about, whatever the modules' are.
FLOORS = {mx.float32: 1e-4, mx.float16: 2e-3, mx.bfloat16: 1e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an examination found.

    Attributes:
        errors: Of the kernels by kind of sublayer, relative to the module in float32.
        bounds: What they may be at most.
        seconds: Of one token with kernels.
        plain_seconds: Of one token without.
    """

    errors: dict[str, float]
    bounds: dict[str, float]
    seconds: float
    plain_seconds: float

    @property
    def right(self) -> bool:
        """Whether every sublayer is within its bound."""
        return not self.wrong

    @property
    def wrong(self) -> dict[str, float]:
        """The errors beyond their bounds."""
        return {kind: error for kind, error in self.errors.items() if not error <= self.bounds[kind]}

    @property
    def use(self) -> bool:
        """Whether to use the kernels."""
        return self.right and self.seconds < self.plain_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """A sublayer's outputs for some tokens, three times."""

    kernels: list[mx.array]
    modules: list[mx.array]
    exact: list[mx.array]

    def errors(self) -> tuple[float, float]:
        """Return the relative errors of kernels and modules in the median token.

        The median: a token whose experts are nearly tied may be sent to others by rounding.
        """
        return _error(self.kernels, self.exact), _error(self.modules, self.exact)


def _error(found: list[mx.array], exact: list[mx.array]) -> float:
    return statistics.median(_difference(got, wanted) for got, wanted in zip(found, exact, strict=True))


def _difference(got: mx.array, wanted: mx.array) -> float:
    got, wanted = got.astype(mx.float32).flatten(), wanted.astype(mx.float32).flatten()
    error: Any = (mx.linalg.norm(got - wanted) / mx.maximum(mx.linalg.norm(wanted), 1e-30)).item()
    return math.inf if math.isnan(error) else float(error)


def examine(model: Model, step: DecodeStep) -> Verdict:
    """Judge the kernels of a model, one sublayer of each kind, and time one token both ways."""
    for experts in mixtures(model):
        experts.use_kernels = False  # the modules are what the kernels are compared with
    outputs: dict[str, Outputs] = {}
    for index, layer in enumerate(step.layers):
        kinds = (f"attention, window {layer.window}", type(layer.feed_forward).__name__.lower())
        if kinds[0] not in outputs:
            outputs[kinds[0]] = _of_attention(model, index, layer)
        if kinds[1] not in outputs:
            outputs[kinds[1]] = _of_feed_forward(model, index, layer)
    for experts in mixtures(model)[:1]:
        outputs["several tokens"] = _of_several_tokens(experts, _dtype(model))
    found = {kind: each.errors() for kind, each in outputs.items()}
    floor = FLOORS[_dtype(model)]
    seconds, plain_seconds = _times(model, step)
    return Verdict(
        errors={kind: kernels for kind, (kernels, _) in found.items()},
        bounds={kind: max(floor, MARGIN * modules) for kind, (_, modules) in found.items()},
        seconds=seconds,
        plain_seconds=plain_seconds,
    )


def mixtures(model: Model) -> list[Experts]:
    """Return the mixtures of experts of a model, whose modules use kernels for a few tokens."""
    return [module for _, module in model.named_modules() if isinstance(module, Experts)]


@contextmanager
def in_float32(module: nn.Module) -> Iterator[None]:
    """Let a module compute in float32 for a while; packed numbers stay as they are."""
    kept = module.parameters()
    module.update(tree_map(_widened, kept))
    try:
        yield
    finally:
        module.update(kept)


def _widened(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def _dtype(model: Model) -> mx.Dtype:
    return model.model.norm.weight.dtype


def _noise(model: Model, seed: int) -> mx.array:
    """Return what a norm would hand to a sublayer for one token: [1, dim]."""
    weight = model.model.norm.weight
    return mx.random.normal((1, len(weight)), key=mx.random.key(seed)).astype(weight.dtype)


def _of_attention(model: Model, index: int, layer: Layer) -> Outputs:
    """Feed tokens one by one, so that no product needs another of MLX's kernels, and keep the last ones."""
    module = model.model.layers[index].self_attn
    tokens = [_noise(model, token) for token in range(PAST + TOKENS)]

    def fresh_cache() -> LayerCache:
        return list(model.make_cache())[index]

    with in_float32(module):
        exact = _attend(module, [x.astype(mx.float32) for x in tokens], layer.window, fresh_cache())
    cache = fresh_cache()
    _attend(module, tokens[:PAST], layer.window, cache)
    return Outputs(
        kernels=_attend_with_kernels(layer, tokens[PAST:], cache),
        modules=_attend(module, tokens, layer.window, fresh_cache())[PAST:],
        exact=exact[PAST:],
    )


def _attend(
    module: nn.Module, tokens: list[mx.array], window: int | None, cache: LayerCache
) -> list[mx.array]:
    """Return what the module makes of tokens one by one, from the start of a conversation."""
    outputs = []
    for place, x in enumerate(tokens):
        here = Positions(offset=place, length=1, left_padding=None, start=place)
        outputs.append(module(x[None], here.mask(window), here, cache))
        mx.eval(outputs[-1])
    return outputs


def _attend_with_kernels(layer: Layer, tokens: list[mx.array], cache: LayerCache) -> list[mx.array]:
    """Return what the kernels make of the tokens after the past."""
    outputs = []
    bias = layer.attention.output.bias
    for place, x in enumerate(tokens, PAST):
        room = cache.open(1)
        y = layer.attention(x, room.buffers, mx.array([place, room.row, room.first], dtype=mx.int32))
        outputs.append(y if bias is None else y + bias)
        mx.eval(outputs[-1])  # before the next token's row is written into the same buffers
        cache.advance(1)
    return outputs


def _of_feed_forward(model: Model, index: int, layer: Layer) -> Outputs:
    module = model.model.layers[index].mlp
    inputs = [_noise(model, token) for token in range(TOKENS)]
    with in_float32(module):
        exact = [module(x.astype(mx.float32)[None]) for x in inputs]
    return Outputs(
        kernels=[layer.feed_forward(x) for x in inputs],
        modules=[module(x[None]) for x in inputs],
        exact=exact,
    )


def _of_several_tokens(experts: Experts, dtype: mx.Dtype) -> Outputs:
    count, dim = experts.gate_up_proj.weight.shape[0], experts.down_proj.weight.shape[1]
    x, weights = mx.random.normal((TOKENS, dim), key=mx.random.key(0)).astype(dtype), mx.ones((TOKENS, 2))
    chosen = mx.random.randint(0, count, (TOKENS, 2), key=mx.random.key(1)).astype(mx.uint32)
    stacks = experts.stacks(dtype)
    assert stacks is not None, "a model with a translation has stacks"
    with in_float32(experts):
        exact = experts(x.astype(mx.float32), chosen, weights)
    return Outputs(
        kernels=list(experts.few(x, chosen, weights, stacks)),
        modules=list(experts(x, chosen, weights)),
        exact=list(exact),
    )


def _times(model: Model, step: DecodeStep) -> tuple[float, float]:
    cache: ModelCache = model.make_cache()
    mx.eval(model.hidden(mx.zeros((1, PAST), dtype=mx.uint32), cache))
    token = mx.zeros((1,), dtype=mx.uint32)

    def with_kernels() -> mx.array:
        return step(token, cache)

    def plain() -> mx.array:
        return model.logits(model.hidden(token[None], cache))

    return _median_seconds(with_kernels), _median_seconds(plain)


def _median_seconds(compute: Callable[[], mx.array]) -> float:
    mx.eval(compute())  # compiles
    seconds = []
    for _ in range(TOKENS):
        began = time.perf_counter()
        mx.eval(compute())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
