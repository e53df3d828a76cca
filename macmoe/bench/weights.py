"""Models of published shapes with random weights, drawn packed: no matrix of an expert is ever held unpacked.

Products keep the size of their inputs, so that activations neither vanish nor overflow in 60 layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macmoe.checkpoint import parameters_of
from macmoe.config import Quantization
from macmoe.errors import UsageError
from macmoe.families import Model, family_of
from macmoe.nn.quantized import PACKED, ExpertLinear, StackedLinear, pack_modules

AFFINE = Quantization(group_size=64, bits=4, mode="affine")
MXFP4 = Quantization(group_size=32, bits=4, mode="mxfp4")
SMALLER_GROUPS = {"affine": (32,)}
ROUTER = ".mlp.gate"  # Qwen3's; GPT-OSS packs experts only, DeepSeek's is no matrix module
CORRECTION = "e_score_correction_bias"
# Root mean square of the numbers that random bits stand for, before their scale.
AFFINE_SIZE = math.sqrt((16**2 - 1) / 12)
MXFP4_SIZE = math.sqrt(sum(value**2 for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6)) / 8)
PIECE = 1 << 24  # numbers: half a second of a CPU, after which Ctrl-C is answered
E8M0_ONE = 127  # the scale byte that stands for 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """How a matrix is packed, and its number of inputs."""

    how: Quantization
    inputs: int


def shortened(config: Mapping[str, Any], layers: int | None) -> dict[str, Any]:
    """Return a configuration with the first `layers` layers (None: all), without multi-token prediction.

    Raises:
        UsageError: The model does not have so many.
    """
    there = config["num_hidden_layers"]
    count = there if layers is None else layers
    if not 1 <= count <= there:
        raise UsageError(f"this model has {there} layers; it cannot be measured with {count}")
    cut = {"layer_types": config["layer_types"][:count]} if config.get("layer_types") else {}
    cut |= {"num_nextn_predict_layers": 0} if "num_nextn_predict_layers" in config else {}
    return {**config, **cut, "num_hidden_layers": count}


def random_model(config: Mapping[str, Any], dtype: mx.Dtype = mx.bfloat16, seed: int = 0) -> Model:
    """Build a model with random weights: GPT-OSS's experts MXFP4, of others all but the routers 4 bits.

    Args:
        config: config.json; see `shortened`.
        dtype: Of whatever is not packed.
        seed: Makes the weights reproducible.
    """
    model = empty_model(config)
    drawn = []
    for name, array in _drawn(model, dtype, seed):
        mx.eval(array)  # one by one: what drawing needs beside the result is freed at once
        drawn.append((name, array))
    model.update(tree_unflatten(drawn))
    return model


def drawn_bytes(config: Mapping[str, Any], dtype: mx.Dtype = mx.bfloat16) -> int:
    """Return the bytes of all weights that `random_model` would draw."""
    weights = parameters_of(empty_model(config)).values()
    return sum(
        array.size * dtype.size if mx.issubdtype(array.dtype, mx.floating) else array.nbytes
        for array in weights
    )


def empty_model(config: Mapping[str, Any]) -> Model:
    """Build a model packed like `random_model`, its weights not computed."""
    model = family_of(config).build(config)
    kinds, how = ((ExpertLinear,), MXFP4) if config["model_type"] == "gpt_oss" else (tuple(PACKED), AFFINE)
    matrices = {path: module for path, module in model.named_modules() if type(module) in kinds}
    hows = {path: fitting(how, matrix["weight"].shape[-1]) for path, matrix in matrices.items()}
    pack_modules(model, {path: how for path, how in hows.items() if how and not path.endswith(ROUTER)})
    return model


def fitting(how: Quantization, inputs: int) -> Quantization | None:
    """Return a packing for rows of this length, in smaller groups if need be; None if there is none."""
    sizes = (how.group_size, *SMALLER_GROUPS.get(how.mode, ()))
    return next((replace(how, group_size=size) for size in sizes if inputs % size == 0), None)


def packings(model: nn.Module) -> dict[str, Packed]:
    """Return how each packed matrix of a model is packed, by path."""
    found = {}
    for path, module in model.named_modules():
        how = None
        if isinstance(module, StackedLinear):
            how = module.quantization
        elif isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            how = Quantization(group_size=module.group_size, bits=module.bits, mode=module.mode)
        if how is not None:
            found[path] = Packed(how=how, inputs=module["weight"].shape[-1] * 32 // how.bits)
    return found


def _drawn(model: nn.Module, dtype: mx.Dtype, seed: int) -> Iterator[tuple[str, mx.array]]:
    packed = packings(model)
    for number, (name, array) in enumerate(parameters_of(model).items()):
        path, _, part = name.rpartition(".")
        key = mx.random.key(seed * 1_000_003 + number)
        if path in packed and part != "bias":
            yield name, _packed_part(part, array.shape, packed[path], dtype, key)
        elif part == CORRECTION:
            yield name, mx.random.normal(array.shape, scale=0.01, key=key)
        elif path.endswith("norm"):
            yield name, mx.ones(array.shape, dtype=dtype)
        else:
            normal = partial(mx.random.normal, dtype=dtype, scale=array.shape[-1] ** -0.5)
            yield name, in_pieces(array.shape, key, lambda count, key, draw=normal: draw((count,), key=key))


def _packed_part(
    part: str, shape: tuple[int, ...], packed: Packed, dtype: mx.Dtype, key: mx.array
) -> mx.array:
    size = packed.inputs**-0.5
    if part == "weight":
        return in_pieces(shape, key, _random_words)
    if packed.how.mode == "mxfp4":
        middle = E8M0_ONE + round(math.log2(size / MXFP4_SIZE))
        near = partial(mx.random.randint, middle - 1, middle + 2, dtype=mx.uint8)
        return in_pieces(shape, key, lambda count, key: near((count,), key=key))
    scale = size / AFFINE_SIZE
    return mx.full(shape, scale if part == "scales" else -scale * 2 ** (packed.how.bits - 1), dtype=dtype)


def in_pieces(shape: tuple[int, ...], key: mx.array, draw: Callable[[int, mx.array], mx.array]) -> mx.array:
    """Draw an array piece by piece: Ctrl-C is answered in between, and kernels count bytes in 32 bits.

    Args:
        shape: Of the array.
        key: Makes it reproducible.
        draw: Returns so many numbers, given a key.
    """
    count = math.prod(shape)
    pieces = [min(PIECE, count - begin) for begin in range(0, count, PIECE)]
    drawn = []
    for size, each in zip(pieces, mx.random.split(key, len(pieces)), strict=True):
        drawn.append(draw(size, each))
        mx.eval(drawn[-1])
    return (mx.concatenate(drawn) if len(drawn) > 1 else drawn[0]).reshape(shape)


def _random_words(count: int, key: mx.array) -> mx.array:
    """Return an even number of random words."""
    # A new key is two words of random bits, the only ones that MLX gives out as they are.
    return mx.random.split(key, count // 2).flatten()
