"""mlx-lm's model on the arrays of ours.

Both hold the same numbers; nothing but the experts is held twice: mlx-lm keeps gate and up apart, so it gets
contiguous copies of the two halves. One matrix differs: its `embed_q` of latent attention has the other
orientation, so the decoded weight is packed again along the other axis (the same size, other rounding).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.bench.weights import fitting, packings
from macmoe.checkpoint import parameters_of
from macmoe.config import Quantization
from macmoe.errors import UsageError
from macmoe.families import Model

GATE_UP = "gate_up_proj"
KEY_UP, EMBED_Q = "k_up_proj", "embed_q"
# Parts of our paths -> mlx-lm's, where they differ; GPT-OSS's are the same.
NAMES = {"mlp.experts": "mlp.switch_mlp", "v_up_proj": "unembed_out", KEY_UP: EMBED_Q}
LEFT_OUT = "mtp."


@dataclass(frozen=True, slots=True, kw_only=True)
class Theirs:
    """A module of mlx-lm: its path, its arrays, and how they are packed."""

    name: str
    parts: dict[str, mx.array]
    how: Quantization | None


def peer_model(model: Model, config: Mapping[str, Any]) -> nn.Module:
    """Build mlx-lm's model on the arrays of ours.

    Args:
        model: Ours, with weights.
        config: Its configuration as the hub spells it.

    Raises:
        UsageError: mlx-lm is not installed, or cannot hold such weights.
    """
    try:
        module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    except ImportError:
        raise UsageError("mlx-lm is not installed; install it beside macmoe to measure against it") from None
    peer = module.Model(module.ModelArgs.from_dict(dict(config)))
    packed = packings(model)
    hows: dict[str, dict[str, Any]] = {}
    arrays: dict[str, mx.array] = {}
    for path, parts in _by_module(model).items():
        if path.startswith(LEFT_OUT):
            continue
        name = path if config["model_type"] == "gpt_oss" else _renamed(path)
        how = packed[path].how if path in packed else None
        for theirs in _translated(name, parts, how):
            arrays |= {f"{theirs.name}.{part}": array for part, array in theirs.parts.items()}
            hows |= {theirs.name: theirs.how.entry()} if theirs.how else {}
    nn.quantize(peer, class_predicate=lambda path, _: hows.get(path, False))
    try:
        peer.load_weights(list(arrays.items()))
    except ValueError as error:
        raise UsageError(f"mlx-lm cannot take over these weights ({error})") from None
    for (
        module
    ) in peer.modules():  # not only parameters: the tables of rotations would wait for the first token
        mx.eval([value for value in module.values() if isinstance(value, mx.array)])
    return peer


def _by_module(model: Model) -> dict[str, dict[str, mx.array]]:
    modules: dict[str, dict[str, mx.array]] = {}
    for name, array in parameters_of(model).items():
        path, _, part = name.rpartition(".")
        modules.setdefault(path, {})[part] = array
    return modules


def _translated(name: str, parts: dict[str, mx.array], how: Quantization | None) -> Iterator[Theirs]:
    if name.endswith(GATE_UP):
        for index, half in enumerate(("gate_proj", "up_proj")):
            halves = {part: _half(array, index) for part, array in parts.items()}
            yield Theirs(name=name.replace(GATE_UP, half), parts=halves, how=how)
    elif name.endswith(EMBED_Q):
        yield _turned(name, parts, how)
    else:
        yield Theirs(name=name, parts=parts, how=how)


def _renamed(path: str) -> str:
    for ours, theirs in NAMES.items():
        path = path.replace(ours, theirs)
    return path


def _half(array: mx.array, index: int) -> mx.array:
    """Return the rows of gate (0) or up (1) of stacked experts."""
    half = mx.contiguous(mx.split(array, 2, axis=1)[index])
    mx.eval(half)
    return half


def _turned(name: str, parts: dict[str, mx.array], how: Quantization | None) -> Theirs:
    """Turn matrices [heads, nope_dim, latent] to [heads, latent, nope_dim]."""
    if how is None:
        turned = mx.contiguous(parts["weight"].swapaxes(-1, -2))
        return Theirs(name=name, parts={"weight": turned}, how=None)
    wide = mx.dequantize(
        parts["weight"],
        parts["scales"],
        parts.get("biases"),
        group_size=how.group_size,
        bits=how.bits,
        mode=how.mode,
    ).swapaxes(-1, -2)
    how = fitting(how, wide.shape[-1])
    assert how is not None, "rows of nope_dim values can be packed"
    packed = mx.quantize(wide, group_size=how.group_size, bits=how.bits, mode=how.mode)
    mx.eval(packed)
    return Theirs(name=name, parts=dict(zip(("weight", "scales", "biases"), packed, strict=False)), how=how)
