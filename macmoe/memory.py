"""Whether a model fits into memory, told from its configuration, before anything is downloaded or converted.

An estimate is the weights as a recipe packs them, the cache of a conversation of CONTEXT tokens, and RESERVE
for activations, MLX's buffers and the program. The limit is `macmoe.device.memory_limit`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from macmoe.config import read_quantization
from macmoe.device import memory_limit
from macmoe.downloads import gib
from macmoe.errors import MemoryLimitError
from macmoe.inspection import HUB_PACKING, NOTHING, describe, shapes_of

CONTEXT = 8192
RESERVE = 1 << 30
KEEP = "keep"
# What a source's weights can grow to where they cannot stay packed: FP8 that is decoded to float32.
MOST = 4
# Packings that every device computes with; a refusal names one of these.
COMMON = "affine"

Bits = Callable[[str, tuple[int, ...]], float]  # path, shape -> bits per weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Bytes that a model takes.

    Attributes:
        weights: As they are loaded.
        cache: Of CONTEXT tokens.
    """

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """All together, with the reserve."""
        return self.weights + self.cache + RESERVE


def _float_bits(config: Mapping[str, Any]) -> int:
    """Return the bits of a weight that is not packed: on a CPU everything is computed in float32."""
    if mx.default_device() == mx.Device(mx.cpu):
        return 32
    return 32 if config.get("dtype", config.get("torch_dtype")) == "float32" else 16


def _source_bits(config: Mapping[str, Any], packable: set[str]) -> Bits:
    """Return how many bits each weight of a source has once it is loaded, as far as its config.json tells."""
    plain = _float_bits(config)
    top = read_quantization(config)[0]
    settings = config.get("quantization_config") or {}
    packed, pattern = HUB_PACKING.get(str(settings.get("quant_method")), NOTHING)
    if settings.get("quant_method") == "fp8":  # MXFP8, where scales are powers of two; else float32
        packed = 8.25 if settings.get("scale_fmt") == "ue8m0" else 32

    def bits(path: str, shape: tuple[int, ...]) -> float:
        if top is not None and path in packable:
            return top.bits_per_weight
        return packed if len(shape) > 1 and re.search(pattern, f"{path}.weight") else plain

    return bits


def _with_recipe(recipe: str, layers: int, source: Bits, packable: set[str]) -> Bits:
    """Return the bits of each weight under a recipe; what is packed smaller already stays."""
    from macmoe_converters.recipes import RECIPES, Recipe, suitable  # noqa: PLC0415 - not for loading as it is

    choose = Recipe(name=recipe, table=RECIPES[recipe], paths={}, layers=layers)

    def bits(path: str, shape: tuple[int, ...]) -> float:
        how = choose(path) if path in packable else None
        fitting = suitable(how, shape[-1]) if how else None
        return min(source(path, shape), fitting.bits_per_weight) if fitting else source(path, shape)

    return bits


class Estimator:
    """What a model takes under this or that recipe; the configuration is read once.

    Args:
        config: Its config.json.
        where: What to call it in errors.

    Raises:
        ConfigError: The configuration is not one of a supported family.
    """

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._shapes, self._packable = shapes_of(config, where)
        self._source = _source_bits(config, self._packable)
        described = describe(where, config)
        self._layers = described.layers
        self._cache = described.cache_bytes(min(CONTEXT, described.max_positions)) * _float_bits(config) // 16

    def need(self, recipe: str = KEEP, *, loaded: int | None = None) -> Need:
        """Estimate what the model takes under a recipe, or with `loaded` bytes of weights."""
        if loaded is not None:
            return Need(weights=loaded, cache=self._cache)
        bits = self._source
        if recipe != KEEP:
            bits = _with_recipe(recipe, self._layers, self._source, self._packable)
        each = (
            math.prod(shape) * bits(name.removesuffix(".weight"), shape)
            for name, shape in self._shapes.items()
        )
        return Need(weights=round(sum(each) / 8), cache=self._cache)

    def fitting(self, limit: int) -> tuple[str, Need] | None:
        """Return the recipe that keeps the most bits and fits; None: none does."""
        from macmoe_converters.recipes import RECIPES  # noqa: PLC0415 - only for what does not fit

        tables = {name: table.values() for name, table in RECIPES.items() if name != KEEP}
        needs = {
            name: self.need(name)
            for name, packings in tables.items()
            if all(how.mode == COMMON for how in packings)
        }
        fits = [name for name, need in needs.items() if need.total <= limit]
        best = max(fits, key=lambda name: needs[name].total, default=None)
        return None if best is None else (best, needs[best])


def check_memory(
    name: str, config: Mapping[str, Any], recipe: str = KEEP, *, loaded: int | None = None
) -> Need:
    """Return what a model takes, if it fits into this machine.

    Args:
        name: What to call it.
        config: Its config.json.
        recipe: How its matrices are packed.
        loaded: Bytes of its weights, where they are known; otherwise they are computed.

    Raises:
        MemoryLimitError: It does not fit; the message names a recipe with which it would.
        ConfigError: The configuration is not one of a supported family.
    """
    estimator, limit = Estimator(config, name), memory_limit()
    need = estimator.need(recipe, loaded=loaded)
    if need.total <= limit:
        return need
    found = estimator.fitting(limit)
    way = (
        f"--quantize {found[0]} would ({gib(found[1].total)})" if found else "no recipe makes it small enough"
    )
    raise MemoryLimitError(
        f"{name}: does not fit: {gib(need.weights)} of weights, {gib(need.cache)} of cache for {CONTEXT:,} "
        f"tokens and {gib(RESERVE)} to work with are {gib(need.total)}, and {gib(limit)} of memory can be "
        f"used; {way}; --force tries all the same"
    )


def surely_fits(stored: int) -> bool:
    """Return whether weights of this size fit whatever becomes of them: nothing has to be estimated."""
    return 2 * MOST * (stored + RESERVE) < memory_limit()
