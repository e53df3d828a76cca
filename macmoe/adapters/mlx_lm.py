"""Adapters from MLX's form: adapters.safetensors and adapter_config.json of `mlx_lm.lora`.

Its factors are transposed (lora_a [in, rank], lora_b [rank, out]) except those of experts, which are macmoe's
with gate and up apart; `scale` is what B A is multiplied by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.adapters.attach import Adapter, adaptable
from macmoe.adapters.files import read_arrays
from macmoe.adapters.layout import Pair, join_rows
from macmoe.adapters.lora import LoraSpec, matrix_shape
from macmoe.config import ConfigReader, load_json
from macmoe.errors import CheckpointError, UsageError
from macmoe.shards import first_five

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
SIDES = {"lora_a": "a", "lora_b": "b", "m": "m"}
_EXPERTS = re.compile(r"(.*\.mlp)\.(?:switch_mlp|experts)\.(gate|up|down)_proj")


def _settings(folder: Path) -> tuple[float, bool]:
    """Return the scale, and whether it is DoRA."""
    data = load_json(folder / CONFIG)
    kind = data.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise UsageError(f"{folder / CONFIG}: fine_tune_type {kind!r} is no adapter; only lora and dora are")
    parameters = ConfigReader(data, str(folder / CONFIG)).take("lora_parameters", dict, {})
    reader = ConfigReader(parameters, f"{folder / CONFIG}: lora_parameters")
    return reader.take("scale", float), kind == "dora"


def _grouped(path: Path) -> dict[str, dict[str, mx.array]]:
    groups: dict[str, dict[str, mx.array]] = {}
    for name, array in read_arrays(path).items():
        module, _, end = name.rpartition(".")
        groups.setdefault(module, {})[SIDES.get(end, end)] = array.astype(mx.float32)
    wrong = [module for module, found in groups.items() if not {"a", "b"} <= found.keys() <= {"a", "b", "m"}]
    if wrong:
        raise CheckpointError(f"{path}: {first_five(wrong)} are not pairs of LoRA factors")
    return groups


def import_mlx_lm(folder: Path, model: nn.Module) -> Adapter:
    """Read an adapter that mlx-lm wrote.

    Args:
        folder: Holds adapter_config.json and adapters.safetensors.
        model: The model it is for; only its shapes are used.

    Raises:
        ConfigError: adapter_config.json is missing or invalid.
        CheckpointError: The tensors are missing or damaged.
        UsageError: The adapter is for another model, or adapts what macmoe does not (embeddings).
    """
    scale, dora = _settings(folder)
    pairs: dict[str, Pair] = {}
    halves: dict[str, dict[str, Pair]] = {}
    arrays: dict[str, mx.array] = {}
    for name, found in _grouped(folder / WEIGHTS).items():
        if match := _EXPERTS.fullmatch(name):
            parent, part = match.groups()
            halves.setdefault(f"{parent}.experts", {})[part] = (found["a"], found["b"])
        else:
            pairs[name] = (found["a"].T, found["b"].T)
            arrays |= {f"{name}.magnitude": found["m"]} if "m" in found else {}
    for parent, parts in halves.items():
        pairs |= _experts(parent, parts)
    specs = {
        path: LoraSpec(rank=b.shape[-1], alpha=scale * b.shape[-1], dora=dora)
        for path, (_, b) in pairs.items()
    }
    arrays |= {
        f"{path}.lora_{side}": array
        for path, pair in pairs.items()
        for side, array in zip("ab", pair, strict=True)
    }
    _check(folder, model, pairs)
    return Adapter(specs=specs, arrays=arrays)


def _experts(parent: str, parts: Mapping[str, Pair]) -> dict[str, Pair]:
    """Put gate and up together."""
    made = {f"{parent}.down_proj": parts["down"]} if "down" in parts else {}
    if ("gate" in parts) != ("up" in parts):
        raise UsageError(
            f"{parent}: only one of gate_proj and up_proj is adapted; macmoe keeps them as one matrix"
        )
    if "gate" in parts:
        made[f"{parent}.gate_up_proj"] = join_rows(parts["gate"], parts["up"])
    return made


def _check(folder: Path, model: nn.Module, pairs: Mapping[str, Pair]) -> None:
    modules: Any = adaptable(model)
    unknown = [path for path in pairs if path not in modules]
    if unknown:
        raise UsageError(
            f"{folder}: {first_five(unknown)} of its matrices are not in this model or cannot be adapted"
        )
    for path, (a, b) in pairs.items():
        if (b.shape[-2], a.shape[-1]) != matrix_shape(modules[path])[-2:]:
            raise UsageError(f"{folder}: the factors of {path} have another shape; it is for another model")
