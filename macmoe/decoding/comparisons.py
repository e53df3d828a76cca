"""Each kind of sublayer, computed with kernels, in the module, and in the module in float32."""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macmoe.decoding.matrices import Matrix
from macmoe.decoding.mlp import Sparse
from macmoe.decoding.step import DecodeStep, Layer, places_in
from macmoe.families import Model
from macmoe.kernels.add_norm import Joint, add_norm
from macmoe.nn.filling import random_states
from macmoe.nn.moe import Experts
from macmoe.nn.positions import Positions, left_padding_array
from macmoe.protocols import LayerCache

PAST = 40  # tokens in the cache of a check
LONG = 9_000  # in that of a long one: more than a threadgroup takes in one round, and than any window
TOKENS = 5  # compared per sublayer, and timed
SEVERAL = 24  # tokens of one sequence, for which experts are grouped
BUSY = 4  # experts that half of them are sent to: more than one round of an expert's tokens
# Of the sequences of a comparison, by the end of its name; so much that it is within any window.
PADDING = {"": (0,), ", 2 sequences": (PAST - 4, 0)}
AFTER_LONG = ", long cache"


@dataclass(slots=True)
class Run:
    """What some way to compute a sublayer gave for each token, and the seconds it took."""

    outputs: list[mx.array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def last(self) -> "Run":
        """The tokens that are compared."""
        return Run(self.outputs[-TOKENS:], self.seconds[-TOKENS:])

    def take(self, compute: Callable[[], mx.array]) -> None:
        """Compute one more token."""
        began = time.perf_counter()
        output = compute()
        mx.eval(output)
        self.seconds.append(time.perf_counter() - began)
        self.outputs.append(output)

    def error(self, exact: "Run") -> float:
        """Return the relative error in the median token.

        The median: a token whose experts are nearly tied may be sent to others by rounding.
        """
        return statistics.median(map(_difference, self.outputs, exact.outputs))


def _difference(got: mx.array, wanted: mx.array) -> float:
    got, wanted = got.astype(mx.float32).flatten(), wanted.astype(mx.float32).flatten()
    error: Any = (mx.linalg.norm(got - wanted) / mx.maximum(mx.linalg.norm(wanted), 1e-30)).item()
    return math.inf if math.isnan(error) else float(error)


Runs = tuple[Run, Run, Run]  # with kernels, in the module, in the module in float32


def comparisons(
    model: Model, step: DecodeStep, cache_bits: int | None
) -> Iterator[tuple[str, int, Callable[[], Runs]]]:
    """Give kind, rows and what compares each part of a model: layers of a kind are alike."""
    for index, layer in enumerate(step.layers):
        attention, feed = f"attention, window {layer.window}", type(layer.feed_forward).__name__.lower()
        for end, padding in PADDING.items():
            rows = len(padding)
            yield attention + end, rows, partial(_attention, model, index, layer, padding, cache_bits)
            yield feed + end, rows, partial(_feed_forward, model, index, layer, rows)
        yield attention + AFTER_LONG, 1, partial(_long_attention, model, index, layer, cache_bits)
        if isinstance(layer.feed_forward, Sparse):
            yield "several tokens", 2, partial(_several_tokens, model, index, layer.feed_forward)
    for end, padding in PADDING.items():
        rows = len(padding)
        yield "norm" + end, rows, partial(_norm, model, rows)
        if step.head is not None:
            yield "head" + end, rows, partial(_head, model, step.head, rows)


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


def dtype_of(model: Model) -> mx.Dtype:
    """Return the type that a model computes in."""
    return model.model.norm.weight.dtype


def _noise(model: Model, seed: int, sequences: int) -> mx.array:
    """Return numbers of the size of a normed stream, for one token of each sequence: [sequences, dim]."""
    weight = model.model.norm.weight
    return mx.random.normal((sequences, len(weight)), key=mx.random.key(seed)).astype(weight.dtype)


def _layer_cache(model: Model, index: int, cache_bits: int | None) -> LayerCache:
    return list(model.make_cache(bits=cache_bits))[index]


def _attention(
    model: Model, index: int, layer: Layer, padding: tuple[int, ...], cache_bits: int | None
) -> Runs:
    """Feed tokens one by one, so that no product needs another of MLX's kernels, and keep the last ones."""
    module = model.model.layers[index].self_attn
    tokens = [_noise(model, token, len(padding)) for token in range(PAST + TOKENS)]
    fresh_cache = partial(_layer_cache, model, index, cache_bits)
    attend = partial(_attend, module, layer.window, left_padding_array(padding))
    with in_float32(module):
        exact = attend([x.astype(mx.float32) for x in tokens], fresh_cache())
    cache = fresh_cache()
    attend(tokens[:PAST], cache)
    kernels = _attend_with_kernels(layer, tokens[PAST:], padding, cache)
    return kernels, attend(tokens, fresh_cache()).last, exact.last


def _long_attention(model: Model, index: int, layer: Layer, cache_bits: int | None) -> Runs:
    """Feed tokens after many that are random rows of the cache."""
    module, dtype = model.model.layers[index].self_attn, dtype_of(model)
    tokens = [_noise(model, token, 1) for token in range(TOKENS)]
    attend = partial(_attend, module, layer.window, None)
    rows = list(random_states(model, LONG))[index]

    def filled(dtype: mx.Dtype) -> LayerCache:
        cache = _layer_cache(model, index, cache_bits)
        cache.update(*[array.astype(dtype) for array in rows])
        return cache

    with in_float32(module):
        exact = attend([x.astype(mx.float32) for x in tokens], filled(mx.float32))
    kernels = _attend_with_kernels(layer, tokens, (0,), filled(dtype))
    return kernels, attend(tokens, filled(dtype)), exact


def _attend(
    module: nn.Module,
    window: int | None,
    padding: mx.array | None,
    tokens: list[mx.array],
    cache: LayerCache,
) -> Run:
    """Compute tokens one by one with the module, after what the cache holds."""
    run = Run()
    for x in tokens:
        place = cache.offset
        start = place if padding is None else place - padding
        here = Positions(offset=place, length=1, left_padding=padding, start=start)
        run.take(partial(module, x[:, None], here.mask(window), here, cache))
    return run


def _attend_with_kernels(
    layer: Layer, tokens: list[mx.array], padding: tuple[int, ...], cache: LayerCache
) -> Run:
    """Compute tokens one by one with the kernels, after what the cache holds."""
    run = Run()
    bias = layer.attention.output.bias
    for x in tokens:
        room = cache.open(1)
        places = places_in(room, cache.offset, padding)
        run.take(partial(layer.attention, x, room.buffers, places))
        cache.advance(1)
    if bias is not None:  # which the step adds with the residual stream
        run.outputs = [output + bias for output in run.outputs]
    return run


def _feed_forward(model: Model, index: int, layer: Layer, sequences: int) -> Runs:
    """Compare what is added to the stream, from where attention's output joins it."""
    module, bias = model.model.layers[index], layer.attention.output.bias

    def plain(x: mx.array, delta: mx.array) -> mx.array:
        joined = x + (delta if bias is None else delta + bias)
        return module.mlp(module.post_attention_layernorm(joined)[None])

    def with_kernels(x: mx.array, delta: mx.array) -> mx.array:
        return layer.feed_forward(x, delta)[1]

    return _compare(model, module, plain, with_kernels, sequences)


def _norm(model: Model, sequences: int) -> Runs:
    """Compare the residual sum at the end of a layer, and its norm."""
    norm = model.model.norm
    joint = Joint(norm=norm.weight, eps=norm.eps)

    def plain(x: mx.array, delta: mx.array) -> mx.array:
        return mx.concatenate([x + delta, norm(x + delta)])

    def with_kernels(x: mx.array, delta: mx.array) -> mx.array:
        return mx.concatenate([*add_norm(x, delta, joint)])

    return _compare(model, norm, plain, with_kernels, sequences)


def _head(model: Model, head: Matrix, sequences: int) -> Runs:
    """Compare the logits of normed streams."""

    def plain(x: mx.array, _: mx.array) -> mx.array:
        return model.logits(x[None])

    def with_kernels(x: mx.array, _: mx.array) -> mx.array:
        return head(x)

    return _compare(model, model.lm_head, plain, with_kernels, sequences)


def _compare(
    model: Model,
    module: nn.Module,
    plain: Callable[[mx.array, mx.array], mx.array],
    with_kernels: Callable[[mx.array, mx.array], mx.array],
    sequences: int,
) -> Runs:
    """Compute tokens from the stream and what is added to it; the plain way uses the module."""
    kernels, modules, exact = Run(), Run(), Run()
    noise = [_noise(model, seed, sequences) for seed in range(2 * TOKENS)]
    tokens = list(zip(noise[:TOKENS], noise[TOKENS:], strict=True))
    with in_float32(module):
        for x, delta in tokens:
            exact.take(partial(plain, x.astype(mx.float32), delta.astype(mx.float32)))
    for x, delta in tokens:
        modules.take(partial(plain, x, delta))
        kernels.take(partial(with_kernels, x, delta))
    return kernels, modules, exact


def _several_tokens(model: Model, index: int, layer: Sparse) -> Runs:
    """Compute tokens of one sequence, of which many meet in the same experts."""
    experts: Any = model.model.layers[index].mlp.experts
    count, shape = len(experts.gate_up_proj.weight), (SEVERAL // 2, layer.router.choice.top_k)
    weights = mx.ones((SEVERAL, shape[1]))
    stacks = experts.stacks(dtype_of(model))
    assert stacks is not None, "a model with a translation has stacks"
    kernels, modules, exact = Run(), Run(), Run()
    for number in range(TOKENS):
        x, key = _noise(model, number, SEVERAL), mx.random.key(number)
        drawn = [mx.random.randint(0, most, shape, key=key) for most in (min(BUSY, count), count)]
        chosen = mx.concatenate(drawn).astype(mx.uint32)
        with in_float32(experts):
            exact.take(partial(experts, x.astype(mx.float32), chosen, weights))
        modules.take(partial(experts, x, chosen, weights))
        kernels.take(partial(experts.few, x, chosen, weights, stacks))
    return kernels, modules, exact
