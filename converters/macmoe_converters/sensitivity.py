"""Bits per matrix within a budget: few where a coarse packing changes little of what the model predicts.

The effect of every matrix is measured through the model itself: packed to one of PROBES alone, all others as
they are, it moves the predictions on a calibration text by a divergence KL(model || changed model). To second
order that is proportional to the squared error of the weights, weighted with the energy of the activations
and gradients that they meet. So few runs per matrix tell the effect of every other packing from its error:

    effect(packing) = mean over probes of KL(probe) * |W - packing(W)|^2 / |W - probe(W)|^2

Which packings to take is a knapsack: minimize the sum of effects within so many bits. It is solved greedily
along the lower convex hulls of the matrices' (bits, effect) points, as its Lagrangian would be. Why the
effect is measured and not estimated from activations: docs/decisions/0009.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macmoe.checkpoint import DTYPES, WeightSource, packed_paths, parameters_of
from macmoe.config import Quantization
from macmoe.errors import UsageError
from macmoe.families import Model, family_of
from macmoe.nn.quantized import PACKED, PARTS
from macmoe.scoring import divergence
from macmoe.shards import TensorInfo
from macmoe_converters.quantizing import NORM, pack, scale_dtype, unpack
from macmoe_converters.recipes import EMBEDDING, MXFP4, NVFP4, affine, allows, roles, suitable

LARGE_GROUP = 128
# Larger groups lie between: at 4 bits they take 4.25 instead of 4.5, and lose little more.
CANDIDATES = (
    *(affine(bits) for bits in (2, 3, 4, 5, 6, 8)),
    *(replace(affine(bits), group_size=LARGE_GROUP) for bits in (3, 4, 5, 6)),
    MXFP4,
    NVFP4,
)
PROBES = (affine(3), affine(4), affine(5))  # several, because a router's choices change in jumps
# Layers that only draft tokens cannot change what the model writes.
PREDICTION, PREDICTION_PACKING = "mtp.", affine(4)
TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A way to store a matrix.

    Attributes:
        how: Its packing; None: as it is.
        bits: What it takes in all.
        effect: Expected divergence of the model's predictions, in nats.
    """

    how: Quantization | None
    bits: float
    effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A calibration text.

    Attributes:
        tokens: Its token ids.
        begin: The first position whose prediction counts: what the model will not write need not be kept.
    """

    tokens: Sequence[int]
    begin: int = 0


Options = Mapping[str, Sequence[Option]]  # by path


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model that runs, the same with plain modules to put in, and how matrices are stored."""

    model: Model
    used: Mapping[str, nn.Module]
    plain: Mapping[str, nn.Module]
    packings: Mapping[str, Quantization]
    infos: Mapping[str, TensorInfo]

    @classmethod
    def of(cls, model: Model, source: WeightSource) -> "Loaded":
        """Take a model with the weights of a source."""
        where = str(source.folder / "config.json")
        twin = family_of(source.config, where).build(source.config, where)
        plain = {
            path: module for path, module in twin.named_modules() if type(module) in PACKED and allows(path)
        }
        modules = dict(model.named_modules())
        return cls(
            model=model,
            used={path: modules[path] for path in plain},
            plain=plain,
            packings=packed_paths(source.config, where),
            infos=source.infos,
        )

    @property
    def scale_type(self) -> mx.Dtype:
        """The type that affine scales will have."""
        return DTYPES[scale_dtype(self.infos[NORM].dtype)]

    def bits(self, path: str) -> int:
        """Return what a matrix takes as it is stored."""
        names = (f"{path}.{part}" for part in PARTS)
        return 8 * sum(self.infos[name].nbytes for name in names if name in self.infos)

    def values(self, path: str) -> mx.array:
        """Return a matrix in float32."""
        module, how = self.used[path], self.packings.get(path)
        if how is None:
            return module["weight"].astype(mx.float32)
        return unpack({part: module[part] for part in PARTS if module.get(part) is not None}, how)

    def predictions(self, passages: Sequence[Passage]) -> mx.array:
        """Return the log-probabilities [positions, vocab] that count."""
        longest = max(len(each.tokens) for each in passages)
        rows = [[*each.tokens, *[0] * (longest - len(each.tokens))] for each in passages]
        hidden = self.model.hidden(mx.array(rows))  # what is filled up stands behind what counts
        counting = [row[each.begin : len(each.tokens)] for row, each in zip(hidden, passages, strict=True)]
        logits = self.model.logits(mx.concatenate(counting)[None])[0].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def predictions_with(self, path: str, values: mx.array, passages: Sequence[Passage]) -> mx.array:
        """Return the predictions with other values for one matrix."""
        self.exchange(path, values)
        found = self.predictions(passages)
        mx.eval(found)
        self.restore([path])
        return found

    def exchange(self, path: str, values: mx.array) -> None:
        """Give a matrix other values, in the type of the activations."""
        used, other = self.used[path], self.plain[path]
        other["weight"] = values.astype(self.model.model.norm.weight.dtype)
        if "bias" in used:
            other["bias"] = used["bias"]
        mx.eval(other["weight"])
        self.model.update_modules(tree_unflatten([(path, other)]))

    def restore(self, paths: Iterable[str]) -> None:
        """Give matrices their own values back."""
        self.model.update_modules(tree_unflatten([(path, self.used[path]) for path in paths]))


def _divergence(first: mx.array, second: mx.array) -> float:
    """Return the mean KL(first || second) of log-probabilities [length, vocab]."""
    return cast("float", divergence(first, second).mean().item())


def _packed(values: mx.array, how: Quantization, scale_type: mx.Dtype) -> tuple[float, mx.array]:
    """Return what packing does to a matrix: its squared error, and the values that are left."""
    found = unpack(pack(values, how, scale_type=scale_type), how)
    return cast("float", ((found - values) ** 2).sum().item()), found


def candidates(path: str, width: int) -> Iterator[Quantization]:
    """Yield the packings to choose from for a matrix with rows of this width; none if none fits."""
    if path.startswith(PREDICTION):
        yield from _for_prediction(width)
        return
    for how in CANDIDATES:
        fitting = suitable(how, width)
        if how.group_size == LARGE_GROUP and fitting != how:
            continue
        if fitting and (how.mode == "affine" or EMBEDDING not in roles(path, 0)):
            yield fitting


def _probes(width: int) -> list[Quantization]:
    return [how for probe in PROBES if (how := suitable(probe, width))]


def _for_prediction(width: int) -> list[Quantization]:
    return [how for how in (suitable(PREDICTION_PACKING, width),) if how]


def measure(
    loaded: Loaded,
    passages: Sequence[Passage],
    step: Callable[[], None] = lambda: None,
) -> Options:
    """Measure what packing each matrix of a model would change.

    Args:
        loaded: The model, as it is.
        passages: A calibration text, best one as the model will write.
        step: Called after each matrix.
    """
    expected = loaded.predictions(passages)
    options = {}
    for path in loaded.plain:
        options[path] = list(_options(loaded, path, passages, expected))
        step()
    return {path: some for path, some in options.items() if some}


def _options(loaded: Loaded, path: str, passages: Sequence[Passage], expected: mx.array) -> Iterator[Option]:
    """Yield the ways to store a matrix, as it is first; none if it cannot be packed."""
    values, bits = loaded.values(path), loaded.bits(path)
    probes = _probes(values.shape[-1])
    if not probes:
        return
    yield Option(how=None, bits=bits, effect=0.0)
    if path.startswith(PREDICTION):
        for how in _for_prediction(values.shape[-1]):
            yield Option(how=how, bits=how.bits_per_weight * values.size, effect=0.0)
        return
    sensitivities = []
    for probe in probes:
        squared, left = _packed(values, probe, loaded.scale_type)
        moved = _divergence(expected, loaded.predictions_with(path, left, passages))
        sensitivities.append(moved / max(squared, TINY))
    for how in candidates(path, values.shape[-1]):
        if how.bits_per_weight * values.size < bits:
            error, _ = _packed(values, how, loaded.scale_type)
            yield Option(how=how, bits=how.bits_per_weight * values.size, effect=error * fmean(sensitivities))


def hull(options: Iterable[Option]) -> list[Option]:
    """Return the options on the lower convex hull of (bits, effect), fewest bits first."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bits, option.effect)):
        if kept and option.effect >= kept[-1].effect:
            continue
        while len(kept) > 1 and _gain(kept[-1], option) >= _gain(kept[-2], kept[-1]):
            kept.pop()
        kept.append(option)
    return kept


def _gain(before: Option, after: Option) -> float:
    """Return by how much a step lowers the effect, per bit."""
    return (before.effect - after.effect) / (after.bits - before.bits)


def allocate(options: Options, budget: float) -> dict[str, Option]:
    """Choose an option for every matrix, so that together they take at most `budget` bits.

    Raises:
        UsageError: Even the smallest options take more.
    """
    hulls = {path: hull(some) for path, some in options.items()}
    chosen = {path: steps[0] for path, steps in hulls.items()}
    spent = math.fsum(option.bits for option in chosen.values())
    if spent > budget:
        raise UsageError(
            f"these matrices take {spent:,.0f} bits at least, and {budget:,.0f} are left for them"
        )
    steps = [(path, pair) for path, points in hulls.items() for pair in pairwise(points)]
    for path, (before, after) in sorted(steps, key=lambda step: -_gain(*step[1])):
        if chosen[path] is before and spent + after.bits - before.bits <= budget:
            chosen[path] = after
            spent += after.bits - before.bits
    return chosen


def limits(source: WeightSource, options: Options, bits_per_weight: float) -> tuple[Options, float]:
    """Return what to choose from, and the bits that the choice may take, everything that is stored counted.

    What was published in a packing stays as it is, exact, if the budget can be met without packing it again.
    """
    where = str(source.folder / "config.json")
    weights = sum(
        array.size for array in parameters_of(family_of(source.config, where).build(source.config)).values()
    )
    stored = 8 * sum(info.nbytes for info in source.infos.values())
    fixed = stored - math.fsum(some[0].bits for some in options.values())
    budget = bits_per_weight * weights - fixed
    packed = packed_paths(source.config, where)
    kept = {path: some[:1] if path in packed else some for path, some in options.items()}
    least = math.fsum(min(option.bits for option in some) for some in kept.values())
    return (kept if least <= budget else options), budget
