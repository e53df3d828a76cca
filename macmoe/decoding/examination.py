"""Whether a model's kernels are right and faster: each kind of sublayer is compared, and a whole token timed.

One sequence takes other kernels than several, so each kind is compared for one and for two, of which one is
padded, and kernels that are wrong for several only are used for one. Attention is also compared after a long
cache, which is cut into more parts. The time that decides is that of one sequence.
Both the kernels and the modules round; the judge is the same module in float32. Kernels are right where their
error is no larger than rounding in that type explains: about as large as that of the modules. A kernel that
the device does not compile or launch is wrong.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from macmoe.decoding.launches import Judged
from macmoe.decoding.matrices import Matrix
from macmoe.decoding.step import DecodeStep, Layer, places_in
from macmoe.families import Model
from macmoe.kernels.add_norm import Joint, add_norm
from macmoe.kernels.source import product_type
from macmoe.nn.cache import ModelCache
from macmoe.nn.filling import random_states
from macmoe.nn.moe import Experts
from macmoe.nn.positions import Positions, left_padding_array
from macmoe.protocols import LayerCache

PAST = 40  # tokens in the cache of a check
LONG = 9_000  # in that of a long one: more than a threadgroup takes in one round, and than any window
TOKENS = 5  # checked per sublayer, and timed
# Of the sequences of a check, by the end of its name; so much that it is within any window.
PADDING = {"": (0,), ", 2 sequences": (PAST - 4, 0)}
AFTER_LONG = ", long cache"
MOST_OF_A_FAILURE = 300  # characters of what MLX says: a compiler's list of complaints has no end
MARGIN = 1.5  # how much larger than the modules' the kernels' error may be
# Relative errors that are nothing to worry about, whatever the modules' are.
FLOORS = {mx.float32: 1e-4, mx.float16: 2e-3, mx.bfloat16: 1e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check(Judged):
    """What was found of one kind of sublayer; its error is relative to the module in float32 (median token).

    Attributes:
        rows: Tokens that were computed at once.
        seconds: Of them with kernels, waiting for the device included.
        plain_seconds: Of them in the module.
        failure: What MLX said where a kernel did not run, in one line.
    """

    rows: int
    seconds: float
    plain_seconds: float
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an examination found.

    Attributes:
        checks: By kind of sublayer.
        seconds: Of one token through the whole model with kernels.
        plain_seconds: Of one token without.
    """

    checks: dict[str, Check]
    seconds: float
    plain_seconds: float

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Take what `dataclasses.asdict` made of a verdict."""
        checks = {kind: Check(**check) for kind, check in data["checks"].items()}
        return cls(**{**data, "checks": checks})

    @property
    def wrong(self) -> dict[str, Check]:
        """The checks that failed."""
        return {kind: check for kind, check in self.checks.items() if not check.right}

    def use(self, rows: int) -> bool:
        """Return whether to use the kernels for so many tokens at once."""
        right = all(check.rows > rows for check in self.wrong.values())
        return right and self.seconds < self.plain_seconds


@dataclass(slots=True)
class Run:
    """What some way to compute a sublayer gave for each token, and the seconds it took, or why it failed."""

    outputs: list[mx.array] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    failure: str = ""

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

    def attempt(self, compute: Callable[[], mx.array]) -> None:
        """Compute one more token with kernels; where the device refuses one, it is NaN and takes forever."""
        try:
            self.take(compute)
        except (RuntimeError, ValueError) as error:  # does not compile; or more threads than there may be
            self.failure = " ".join(str(error).split())[:MOST_OF_A_FAILURE]
            self.outputs.append(mx.array(math.nan))
            self.seconds.append(math.inf)

    def error(self, exact: "Run") -> float:
        """Return the relative error in the median token.

        The median: a token whose experts are nearly tied may be sent to others by rounding.
        """
        return statistics.median(map(_difference, self.outputs, exact.outputs))


def _difference(got: mx.array, wanted: mx.array) -> float:
    got, wanted = got.astype(mx.float32).flatten(), wanted.astype(mx.float32).flatten()
    error: Any = (mx.linalg.norm(got - wanted) / mx.maximum(mx.linalg.norm(wanted), 1e-30)).item()
    return math.inf if math.isnan(error) else float(error)


def _judge(kernels: Run, modules: Run, exact: Run, dtype: mx.Dtype, *, rows: int) -> Check:
    return Check(
        rows=rows,
        error=kernels.error(exact),
        bound=max(FLOORS[product_type(dtype)], MARGIN * modules.error(exact)),
        seconds=statistics.median(kernels.seconds),
        plain_seconds=statistics.median(modules.seconds),
        failure=kernels.failure,
    )


def examine(model: Model, step: DecodeStep, cache_bits: int | None = None) -> Verdict:
    """Judge the kernels of a model, one sublayer of each kind, and time one token both ways.

    All that is compared has a cache of `cache_bits`, see `LanguageModel.make_cache`.
    """
    for experts in mixtures(model):
        experts.use_kernels = False  # the modules are what the kernels are compared with
    checks: dict[str, Check] = {}
    for kind, compare in _comparisons(model, step, cache_bits):
        if kind not in checks:
            checks[kind] = compare()
    seconds, plain_seconds = _times(model, step, cache_bits)
    return Verdict(checks=checks, seconds=seconds, plain_seconds=plain_seconds)


def _comparisons(
    model: Model, step: DecodeStep, cache_bits: int | None
) -> Iterator[tuple[str, Callable[[], Check]]]:
    """Give what compares each part of a model, by its kind: layers of a kind are alike."""
    for index, layer in enumerate(step.layers):
        attention, feed = f"attention, window {layer.window}", type(layer.feed_forward).__name__.lower()
        for end, padding in PADDING.items():
            yield attention + end, partial(_check_attention, model, index, layer, padding, cache_bits)
            yield feed + end, partial(_check_feed_forward, model, index, layer, len(padding))
        yield attention + AFTER_LONG, partial(_check_long_attention, model, index, layer, cache_bits)
    for end, padding in PADDING.items():
        yield "norm" + end, partial(_check_norm, model, len(padding))
        if step.head is not None:
            yield "head" + end, partial(_check_head, model, step.head, len(padding))
    for experts in mixtures(model):
        yield "several tokens", partial(_check_several_tokens, experts, _dtype(model))


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


def _noise(model: Model, seed: int, sequences: int) -> mx.array:
    """Return numbers of the size of a normed stream, for one token of each sequence: [sequences, dim]."""
    weight = model.model.norm.weight
    return mx.random.normal((sequences, len(weight)), key=mx.random.key(seed)).astype(weight.dtype)


def _layer_cache(model: Model, index: int, cache_bits: int | None) -> LayerCache:
    return list(model.make_cache(bits=cache_bits))[index]


def _check_attention(
    model: Model, index: int, layer: Layer, padding: tuple[int, ...], cache_bits: int | None
) -> Check:
    """Feed tokens one by one, so that no product needs another of MLX's kernels, and keep the last ones."""
    module = model.model.layers[index].self_attn
    tokens = [_noise(model, token, len(padding)) for token in range(PAST + TOKENS)]
    fresh_cache = partial(_layer_cache, model, index, cache_bits)
    attend = partial(_attend, module, layer.window, left_padding_array(padding))
    with in_float32(module):
        exact = attend([x.astype(mx.float32) for x in tokens], fresh_cache())
    cache = fresh_cache()
    attend(tokens[:PAST], cache)
    return _judge(
        _attend_with_kernels(layer, tokens[PAST:], padding, cache),
        attend(tokens, fresh_cache()).last,
        exact.last,
        _dtype(model),
        rows=len(padding),
    )


def _check_long_attention(model: Model, index: int, layer: Layer, cache_bits: int | None) -> Check:
    """Feed tokens after many that are random rows of the cache."""
    module, dtype = model.model.layers[index].self_attn, _dtype(model)
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
    return _judge(kernels, attend(tokens, filled(dtype)), exact, dtype, rows=1)


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
        run.attempt(partial(layer.attention, x, room.buffers, places))
        cache.advance(1)
    if bias is not None:  # which the step adds with the residual stream
        run.outputs = [output + bias for output in run.outputs]
    return run


def _check_feed_forward(model: Model, index: int, layer: Layer, sequences: int) -> Check:
    """Compare what is added to the stream, from where attention's output joins it."""
    module, bias = model.model.layers[index], layer.attention.output.bias

    def plain(x: mx.array, delta: mx.array) -> mx.array:
        joined = x + (delta if bias is None else delta + bias)
        return module.mlp(module.post_attention_layernorm(joined)[None])

    def with_kernels(x: mx.array, delta: mx.array) -> mx.array:
        return layer.feed_forward(x, delta)[1]

    return _compare(model, module, plain, with_kernels, sequences)


def _check_norm(model: Model, sequences: int) -> Check:
    """Compare the residual sum at the end of a layer, and its norm."""
    norm = model.model.norm
    joint = Joint(norm=norm.weight, eps=norm.eps)

    def plain(x: mx.array, delta: mx.array) -> mx.array:
        return mx.concatenate([x + delta, norm(x + delta)])

    def with_kernels(x: mx.array, delta: mx.array) -> mx.array:
        return mx.concatenate([*add_norm(x, delta, joint)])

    return _compare(model, norm, plain, with_kernels, sequences)


def _check_head(model: Model, head: Matrix, sequences: int) -> Check:
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
) -> Check:
    """Compare two ways to map stream and what is added to it, of which the plain one uses the module."""
    kernels, modules, exact = Run(), Run(), Run()
    noise = [_noise(model, seed, sequences) for seed in range(2 * TOKENS)]
    tokens = list(zip(noise[:TOKENS], noise[TOKENS:], strict=True))
    with in_float32(module):
        for x, delta in tokens:
            exact.take(partial(plain, x.astype(mx.float32), delta.astype(mx.float32)))
    for x, delta in tokens:
        modules.take(partial(plain, x, delta))
        kernels.attempt(partial(with_kernels, x, delta))
    return _judge(kernels, modules, exact, _dtype(model), rows=sequences)


def _check_several_tokens(experts: Experts, dtype: mx.Dtype) -> Check:
    count, dim = experts.gate_up_proj.weight.shape[0], experts.down_proj.weight.shape[1]
    weights = mx.ones((TOKENS, 2))
    stacks = experts.stacks(dtype)
    assert stacks is not None, "a model with a translation has stacks"
    kernels, modules, exact = Run(), Run(), Run()
    for number in range(TOKENS):
        x = mx.random.normal((TOKENS, dim), key=mx.random.key(number)).astype(dtype)
        chosen = mx.random.randint(0, count, (TOKENS, 2), key=mx.random.key(number)).astype(mx.uint32)
        with in_float32(experts):
            exact.take(partial(experts, x.astype(mx.float32), chosen, weights))
        modules.take(partial(experts, x, chosen, weights))
        kernels.attempt(partial(experts.few, x, chosen, weights, stacks))
    return _judge(kernels, modules, exact, dtype, rows=TOKENS)


def with_past(model: Model, cache_bits: int | None = None) -> ModelCache:
    """Return a cache that holds some tokens."""
    cache: ModelCache = model.make_cache(bits=cache_bits)
    mx.eval(model.hidden(mx.zeros((1, PAST), dtype=mx.uint32), cache))
    return cache


def _times(model: Model, step: DecodeStep, cache_bits: int | None) -> tuple[float, float]:
    cache = with_past(model, cache_bits)
    token = mx.zeros((1,), dtype=mx.uint32)

    def with_kernels() -> mx.array:
        return step(token, cache)

    def plain() -> mx.array:
        return model.logits(model.hidden(token[None], cache))

    kernels, modules = Run(), Run()
    for _ in range(1 + TOKENS):  # the first one compiles
        kernels.attempt(with_kernels)
    for _ in range(1 + TOKENS):
        modules.take(plain)
    return statistics.median(kernels.last.seconds), statistics.median(modules.last.seconds)
