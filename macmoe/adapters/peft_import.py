"""Adapters from PEFT's form (peft 0.19 or later): exactly, or refused with the setting in the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from macmoe.adapters.attach import KEYS, VALUES, Adapter, adaptable, check_kinds
from macmoe.adapters.files import read_arrays
from macmoe.adapters.layout import Pair, deinterleave, join_rows, stack_experts
from macmoe.adapters.lora import LoraSpec, matrix_shape
from macmoe.adapters.peft_export import CONFIG, PREFIX, WEIGHTS
from macmoe.config import ConfigReader, load_json
from macmoe.config_keys import reason_to_ignore
from macmoe.errors import CheckpointError, UsageError
from macmoe.shards import first_five

# Settings that say nothing about the loaded adapter: where it came from, how it was trained or chosen.
IRRELEVANT = {
    "auto_mapping": "names classes of another library",
    "base_model_name_or_path": "the model is given",
    "corda_config": "only with the initialization of that name, which is refused",
    "ensure_weight_tying": "concerns modules_to_save, which is refused",
    "eva_config": "initialization of A only",
    "exclude_modules": "the tensors say what is adapted",
    "inference_mode": "a run-time choice",
    "layers_pattern": "the tensors say what is adapted",
    "layers_to_transform": "the tensors say what is adapted",
    "lora_dropout": "training only",
    "lora_ga_config": "only with the initialization of that name, which is refused",
    "megatron_core": "another runtime",
    "peft_version": "0.19 changed the arrangement of experts, which shows in their shapes",
    "qalora_group_size": "only with use_qalora, which is refused",
    "revision": "the model is given",
    "target_modules": "the tensors say what is adapted",
    "target_parameters": "the tensors say what is adapted",
    "task_type": "all models here are causal",
    "lorap_lr_ratio": "training only",
    "loftq_config": "only with the initialization of that name, which is refused",
    "megatron_config": "another runtime",
    "runtime_config": "a run-time choice",
}
# Initializations that leave the base as it was; the others also change its weights.
HARMLESS_INITIALIZATIONS = (True, False, "gaussian", "eva", "orthogonal")
SIDES = {"lora_A.weight": "a", "lora_B.weight": "b", "lora_magnitude_vector": "m"}
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class PeftConfig:
    """What adapter_config.json says about ranks and scales."""

    rank: int
    alpha: float
    rslora: bool
    dora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path) -> PeftConfig:
        """Read adapter_config.json.

        Raises:
            ConfigError: The file is missing or invalid.
            UsageError: It asks for something that cannot be taken over exactly; the setting is named.
        """
        data = load_json(folder / CONFIG)
        reader = ConfigReader(data, str(folder / CONFIG))
        if (kind := data.get("peft_type")) not in (None, "LORA"):
            raise UsageError(f"{reader.file}: peft_type is {kind!r}; of PEFT's methods only LORA can be read")
        config = cls(
            rank=reader.take("r", int),
            alpha=reader.take("lora_alpha", float),
            rslora=reader.take("use_rslora", bool, False),
            dora=reader.take("use_dora", bool, False),
            rank_pattern=reader.take("rank_pattern", dict, {}),
            alpha_pattern=reader.take("alpha_pattern", dict, {}),
        )
        used = {"r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"}
        _refuse({key: value for key, value in data.items() if key not in used}, reader.file)
        return config

    def spec(self, names: Sequence[str], rank: int, *, dora: bool = False) -> LoraSpec:
        """Return rank and scale of the matrix that PEFT knows under any of these names."""
        alpha = _by_pattern(self.alpha_pattern, names, self.alpha)
        said = _by_pattern(self.rank_pattern, names, self.rank)
        if said != rank:
            raise CheckpointError(
                f"{CONFIG} gives {names[0]} rank {said} and its tensors have rank {rank}; "
                "they do not belong together"
            )
        return LoraSpec(rank=rank, alpha=alpha, rslora=self.rslora, dora=dora)


def _by_pattern(patterns: Mapping[str, Any], names: Sequence[str], default: Any) -> Any:
    """Look a name up as PEFT does: the first pattern that is its end."""
    return next(
        (value for key, value in patterns.items() for name in names if re.match(rf"(.*\.)?({key})$", name)),
        default,
    )


def _refuse(settings: Mapping[str, Any], file: str) -> None:
    for name, value in settings.items():
        if name == "init_lora_weights":
            fine = value in HARMLESS_INITIALIZATIONS
        else:
            said = name in IRRELEVANT or (name, value) in (("bias", "none"), ("peft_type", "LORA"))
            fine = said or not value or reason_to_ignore(name, value)
        if not fine:
            raise UsageError(f"{file}: {name} = {value!r} cannot be taken over exactly, so it is refused")


Found = dict[str, mx.array]  # "a", "b", "m" of one of PEFT's modules


def _grouped(folder: Path) -> dict[str, Found]:
    """Read the tensors, by PEFT's module."""
    groups: dict[str, Found] = {}
    unknown = []
    for name, array in read_arrays(folder / WEIGHTS).items():
        module, side = next(
            ((name.removesuffix(f".{end}"), side) for end, side in SIDES.items() if name.endswith(f".{end}")),
            ("", ""),
        )
        if not module.startswith(PREFIX):
            unknown.append(name)
        groups.setdefault(module.removeprefix(PREFIX), {})[side] = array.astype(mx.float32)
    incomplete = [module for module, found in groups.items() if not {"a", "b"} <= found.keys()]
    if unknown or incomplete:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {first_five(unknown or incomplete)} are not pairs of LoRA factors"
        )
    return groups


class _Importer:
    """Finds macmoe's matrix for each of PEFT's modules, and arranges the factors as macmoe has them."""

    def __init__(
        self, model: nn.Module, groups: dict[str, Found], config: PeftConfig, interleaved: bool
    ) -> None:
        self.modules = adaptable(model)
        self.groups = groups
        self.config = config
        self.interleaved = interleaved
        self.specs: dict[str, LoraSpec] = {}
        self.arrays: dict[str, mx.array] = {}

    def run(self) -> Adapter:
        """Place everything."""
        one_by_one: dict[str, dict[str, dict[int, Found]]] = {}
        for name, found in self.groups.items():
            if match := _EXPERT.fullmatch(name):
                parent, expert, part = match.groups()
                one_by_one.setdefault(parent, {}).setdefault(part, {})[int(expert)] = found
            elif name.endswith((".mlp.experts", ".mlp.experts.base_layer")):
                self._fused(name, found)
            elif name.endswith(".kv_b_proj"):
                self._heads(name, found)
            else:
                self._matrix(name, found)
        for parent, parts in one_by_one.items():
            self._experts(parent, parts)
        return Adapter(specs=self.specs, arrays=self.arrays)

    def _module(self, path: str, name: str) -> nn.Module:
        if path not in self.modules:
            raise UsageError(f"the adapter has {name}, which this model does not have or cannot adapt")
        return self.modules[path]

    def _put(self, path: str, spec: LoraSpec, pair: Pair, name: str) -> None:
        outputs, inputs = matrix_shape(self._module(path, name))[-2:]
        a, b = pair
        if a.shape[-1] != inputs or b.shape[-2] != outputs:
            raise UsageError(
                f"{name}: factors of {a.shape[-1]} inputs and {b.shape[-2]} outputs do not fit a matrix with "
                f"{inputs} and {outputs}; the adapter is for another model, or written by peft before 0.19"
            )
        self.specs[path] = spec
        self.arrays |= {f"{path}.lora_a": a, f"{path}.lora_b": b}

    def _matrix(self, name: str, found: Found) -> None:
        spec = self.config.spec((name, f"{name}.weight"), len(found["a"]), dora="m" in found)
        self._put(name, spec, (found["a"], found["b"]), name)
        if spec.dora:
            self.arrays[f"{name}.magnitude"] = found["m"]

    def _heads(self, name: str, found: Found) -> None:
        """Cut kv_b_proj into keys and values, which share its A."""
        base = name.removesuffix("kv_b_proj")
        halves = [base + half for half in (KEYS, VALUES)]
        shapes = [matrix_shape(self._module(half, name)) for half in halves]
        heads, ends = shapes[0][0], [shapes[0][1], shapes[0][1] + shapes[1][1]]
        if len(found["b"]) != heads * ends[1]:
            raise UsageError(f"{name}: {len(found['b'])} outputs, and the model has {heads * ends[1]}")
        spec = self.config.spec((name,), len(found["a"]), dora="m" in found)
        rows = mx.split(found["b"].reshape(heads, ends[1], -1), [ends[0]], axis=1)
        for half, b in zip(halves, rows, strict=True):
            self._put(half, spec, (found["a"], b), name)
        del self.arrays[f"{halves[1]}.lora_a"]

    def _fused(self, name: str, found: Found) -> None:
        """Unpack a parameter of all experts; one adapted alone has the other's name, so shapes decide."""
        parent = name.removesuffix(".base_layer")
        shape = (found["b"].shape[0], found["a"].shape[-1])
        paths = [f"{parent}.{part}" for part in ("gate_up_proj", "down_proj")]
        paths = [p for p in paths if p not in self.specs]
        path = next((p for p in paths if matrix_shape(self._module(p, name))[-2:] == shape), paths[0])
        experts = matrix_shape(self._module(path, name))[0]
        if len(found["a"]) % experts or found["b"].shape[1] != len(found["a"]):
            raise UsageError(f"{name}: its factors are not those of {experts} experts")
        a, b = stack_experts(found["a"], found["b"], experts)
        if path.endswith("gate_up_proj") and self.interleaved:
            b = deinterleave(b)
        self._put(path, self.config.spec((path,), a.shape[1], dora="m" in found), (a, b), name)

    def _experts(self, parent: str, parts: Mapping[str, Mapping[int, Found]]) -> None:
        """Stack experts that come one by one; gate and up become one matrix."""
        pairs: dict[str, tuple[Pair, LoraSpec]] = {}
        for part, found in parts.items():
            path = f"{parent}.{'down_proj' if part == 'down' else 'gate_up_proj'}"
            experts = matrix_shape(self._module(path, f"{parent}.{part}_proj"))[0]
            if sorted(found) != list(range(experts)):
                raise UsageError(
                    f"{parent}: {part}_proj of {len(found)} of {experts} experts is adapted; all have to be"
                )
            a, b = (mx.stack([found[expert][side] for expert in range(experts)]) for side in "ab")
            names = [f"{parent}.{expert}.{part}_proj" for expert in range(experts)]
            dora = any("m" in each for each in found.values())
            pairs[part] = ((a, b), self.config.spec(names, a.shape[1], dora=dora))
        if "down" in pairs:
            pair, spec = pairs.pop("down")
            self._put(f"{parent}.down_proj", spec, pair, parent)
        if pairs:
            self._gate_up(parent, pairs)

    def _gate_up(self, parent: str, pairs: Mapping[str, tuple[Pair, LoraSpec]]) -> None:
        if len(pairs) < 2:
            raise UsageError(
                f"{parent}: {next(iter(pairs))}_proj is adapted without its twin; adapt gate and up"
            )
        (gate, spec), (up, other) = pairs["gate"], pairs["up"]
        if spec.scale != other.scale:
            raise UsageError(
                f"{parent}: gate_proj and up_proj have different scales; they become one matrix here"
            )
        joined = join_rows(gate, up)
        self._put(f"{parent}.gate_up_proj", rescaled(spec, joined[0].shape[1]), joined, parent)


def rescaled(spec: LoraSpec, rank: int) -> LoraSpec:
    """Return a spec of another rank with the same scale."""
    factor = math.sqrt(rank / spec.rank) if spec.rslora else rank / spec.rank
    return replace(spec, rank=rank, alpha=spec.alpha * factor)


def import_peft(folder: Path, model: nn.Module, family: str) -> Adapter:
    """Read an adapter that PEFT wrote.

    Args:
        folder: Holds adapter_config.json and adapter_model.safetensors.
        model: The model it is for; only its shapes are used.
        family: Name of the model's family.

    Raises:
        ConfigError: adapter_config.json is missing or invalid.
        CheckpointError: The tensors are missing or damaged.
        UsageError: The adapter is for another model, or cannot be taken over exactly.
    """
    config = PeftConfig.read(folder)
    adapter = _Importer(model, _grouped(folder), config, family == "gpt_oss").run()
    check_kinds(model, adapter.specs)
    return adapter
