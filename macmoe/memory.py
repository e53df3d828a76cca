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

from macmoe.config import Quantization, read_quantization
from macmoe.device import RESERVE, memory_limit
from macmoe.downloads import gib
from macmoe.errors import MemoryLimitError
from macmoe.inspection import HUB_PACKING, NOTHING, describe, shapes_of

CONTEXT = 8192
KEEP = "keep"
# Packings that every device computes with; a refusal names one of these.
COMMON = "affine"

# How MLX keeps what the hub has packed: method -> packing, where it is kept packed.
MXFP4 = Quantization(group_size=32, bits=4, mode="mxfp4")
MXFP8 = Quantization(group_size=32, bits=8, mode="mxfp8")
POWERS_OF_TWO = "ue8m0"  # the FP8 scales that MXFP8 has


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


def _kept_packing(config: Mapping[str, Any]) -> tuple[Quantization | None, str]:
    """Return how MLX keeps what the hub has packed, and the pattern of those parameters; None: decoded."""
    settings = config.get("quantization_config") or {}
    method = str(settings.get("quant_method"))
    _, pattern = HUB_PACKING.get(method, NOTHING)
    if method == "fp8":
        return (MXFP8 if settings.get("scale_fmt") == POWERS_OF_TWO else None), pattern
    return MXFP4, pattern


def _recipe(name: str, layers: int) -> Callable[[str, int], Quantization | None]:
    """Return how a recipe packs the matrix at a path, with rows of a width."""
    if name == KEEP:
        return lambda _, __: None
    from macmoe_converters.recipes import RECIPES, Recipe, suitable  # noqa: PLC0415 - not for loading as it is

    recipe = Recipe(name=name, table=RECIPES[name], paths={}, layers=layers)

    def choose(path: str, width: int) -> Quantization | None:
        how = recipe(path)
        return suitable(how, width) if how else None

    return choose


class Estimator:
    """What a model takes under this or that recipe; the configuration is read once.

    Args:
        config: Its config.json.
        where: What to call it in errors.
        float_bits: Of a weight that is not packed; None: as this machine computes with it.

    Raises:
        ConfigError: The configuration is not one of a supported family.
    """

    def __init__(self, config: Mapping[str, Any], where: str, float_bits: int | None = None) -> None:
        self._config = config
        self._float_bits = float_bits or _float_bits(config)
        self._shapes, self._packable = shapes_of(config, where)
        described = describe(where, config)
        self._layers = described.layers
        self._cache = described.cache_bytes(min(CONTEXT, described.max_positions)) * self._float_bits // 16

    def packings(self, recipe: str = KEEP) -> dict[str, Quantization]:
        """Return how each matrix is packed once it is loaded, by path."""
        top = read_quantization(self._config)[0]
        kept, pattern = _kept_packing(self._config)
        choose = _recipe(recipe, self._layers)
        found: dict[str, Quantization] = {}
        for path in self._packable:
            source = kept if re.search(pattern, f"{path}.weight") else top
            how = choose(path, self._shapes[f"{path}.weight"][-1])
            smallest = min(filter(None, (source, how)), key=lambda each: each.bits_per_weight, default=None)
            if smallest is not None:
                found[path] = smallest
        return found

    def need(self, recipe: str = KEEP, *, loaded: int | None = None) -> Need:
        """Estimate what the model takes under a recipe, or with `loaded` bytes of weights."""
        if loaded is None:
            packings = self.packings(recipe)
            loaded = round(sum(self._bits(name, packings) for name in self._shapes) / 8)
        return Need(weights=loaded, cache=self._cache)

    def _bits(self, name: str, packings: Mapping[str, Quantization]) -> float:
        shape, how = self._shapes[name], packings.get(name.removesuffix(".weight"))
        if how is not None and name.endswith(".weight"):
            return math.prod(shape) * how.bits_per_weight
        kept, pattern = _kept_packing(self._config)
        decoded = kept is None and len(shape) > 1 and re.search(pattern, name)
        return math.prod(shape) * (32 if decoded else self._float_bits)

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
