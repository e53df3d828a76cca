"""Layouts other than macmoe's own, written with the rules that read them, backwards.

    hub      what transformers loads: a matrix per expert, MXFP4 blocks, FP8 blocks of 128 x 128
    mlx-lm   what mlx-lm loads: gate and up apart, MLX's packings with an entry per path

Packings that a layout has are taken over bit for bit; others are decoded to float32, which is exact.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from macmoe.config import Quantization
from macmoe.errors import ConversionError
from macmoe.shards import TensorInfo, first_five
from macmoe_converters import deepseek_v3
from macmoe_converters.packing import MXFP4, MXFP4_BLOCK_BYTES, MXFP8, Tensor, decode, e8m0_values
from macmoe_converters.plan import EXPERT, Matcher, Numbers, Step
from macmoe_converters.rows import Array, Rows
from macmoe_converters.rules import Rule, RuleTable
from macmoe_converters.sink import NOT_FINITE, Stored

BLOCKS, SCALES = "_blocks", "_scales"  # endings of the hub's MXFP4 tensors
SCALE_INV = "_scale_inv"  # after the name of an FP8 tensor
FP8_BLOCK = (128, 128)
WEIGHT = ".weight"
_PLACEHOLDER = re.compile(r"\{([^}]+)\}")

# What config.json of the hub says of packed weights, by family.
HUB_QUANTIZATION: dict[str, dict[str, Any]] = {
    "gpt_oss": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "deepseek_v3": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": list(FP8_BLOCK),
    },
}
HUB_QUANTIZATION["qwen3"] = HUB_QUANTIZATION["deepseek_v3"]
# Class names in transformers, by model type; OpenAI's own folder has none.
ARCHITECTURES = {
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

# Makes what a step stores, in another way; nothing if there is none.
Pack = Callable[[Step], list[Tensor]]
TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A weight in the target's layout.

    Attributes:
        name: Its name there.
        tensors: What is stored for it.
        weight: What it stands for.
        packing: How it is packed; None for a plain array.
        remark: Why it is not packed any more; mostly empty.
        parameters: The parameters that it is made of.
    """

    name: str
    tensors: Mapping[str, Stored]
    weight: Tensor
    packing: Quantization | None = None
    remark: str = ""
    parameters: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A layout to write, for one family.

    Attributes:
        family: Name of the family.
        layout: Name of the layout, a key of `table.written`.
        table: The family's rules.
        config: config.json of the model in macmoe's layout.
    """

    family: str
    layout: str
    table: RuleTable
    config: Mapping[str, Any]

    def weights(self, parameters: Mapping[str, Tensor], pack: Pack | None = None) -> list[Written]:
        """Return what the layout stores for a model's parameters.

        Args:
            parameters: The parameters, by name.
            pack: What packs a tensor that could not stay packed on its way, or None.

        Raises:
            ConversionError: Some of them have no place in the layout.
        """
        found = []
        for step in self._steps(parameters):
            assert step.rule.inverse is not None
            tensors = step.rule.inverse([parameters[name] for name in step.sources], len(step.targets))
            if pack and parameters[step.sources[0]].packing and any(not each.packing for each in tensors):
                tensors = pack(step) or tensors
            encode = ENCODERS[self.layout]
            found += [
                replace(encode(self.family, name, tensor), parameters=step.sources)
                for name, tensor in zip(step.targets, tensors, strict=True)
            ]
        return found

    def _steps(self, parameters: Mapping[str, Tensor]) -> list[Step]:
        """Read the rules backwards: parameters are the sources now."""
        matcher = Matcher(replace(self.table, rules=self._rules()), self.config)
        steps: dict[tuple[str, ...], Step] = {}
        unplaced = []
        for name, tensor in parameters.items():
            matches = matcher.find(name)
            in_blocks = tensor.packing == MXFP4 and any(_stores_blocks(rule) for rule, _ in matches)
            made = [
                self._step(rule, numbers, tensor.shape)
                for rule, found in matches
                if _stores_blocks(rule) == in_blocks
                for numbers in self._expanded(rule, found)
            ]
            if len([step for step in made if not step.rule.copy_of]) != 1 and not self.leaves_out(name):
                unplaced.append(name)
            steps |= {step.targets: step for step in made}
        if unplaced:
            raise ConversionError(f"the layout {self.layout} has no place for {first_five(unplaced)}")
        return list(steps.values())

    @property
    def why(self) -> str:
        """Why the layout does without some parameters."""
        return self.table.left_out.get(self.layout, ("", ""))[1]

    def _rules(self) -> tuple[Rule, ...]:
        return tuple(
            replace(rule, sources=rule.targets or (rule.copy_of,), targets=rule.sources)
            for rule in self.table.written[self.layout]
            if rule.targets or (rule.copy_of and rule.rewritten)
        )

    def leaves_out(self, name: str) -> bool:
        """Return whether the layout has no place for a parameter, and does without."""
        return self.layout in self.table.left_out and name.startswith(self.table.left_out[self.layout][0])

    def _expanded(self, rule: Rule, numbers: Numbers) -> Iterator[Numbers]:
        """Yield the numbers in a rule's targets: one that its sources do not have runs over all it can be."""
        names = {text.rpartition("+")[2] for target in rule.targets for text in _PLACEHOLDER.findall(target)}
        free = [name for name in names - numbers.keys() if name in self.table.counts]
        ranges = (range(self.config[self.table.counts[name]]) for name in free)
        return (numbers | dict(zip(free, values, strict=True)) for values in product(*ranges))

    def _step(self, rule: Rule, numbers: Numbers, shape: Sequence[int]) -> Step:
        each = any(f"{{{EXPERT}}}" in target for target in rule.targets)
        experts = range(shape[0]) if each else range(1)
        targets = (
            self._fill(target, numbers | {EXPERT: expert}) for expert in experts for target in rule.targets
        )
        sources = (self._fill(source, numbers) for source in rule.sources)
        return Step(rule=rule, sources=tuple(sources), targets=tuple(targets))

    def _fill(self, pattern: str, numbers: Numbers) -> str:
        def value(match: re.Match[str]) -> str:
            first, _, name = match[1].rpartition("+")
            return str(numbers[name] + (self.config[first] if first else 0))

        return _PLACEHOLDER.sub(value, pattern)

    def result_config(self, weights: Sequence[Written]) -> dict[str, Any]:
        """Return config.json of the written folder."""
        config = {"architectures": [ARCHITECTURES[self.config["model_type"]]], **hub_spelling(self.config)}
        if DTYPE in config:  # a reader may cast what it loads to that type
            config[DTYPE] = stored_type(weights) or config[DTYPE]
        packings = {each.name.removesuffix(WEIGHT): each.packing for each in weights if each.packing}
        if self.layout == "hub":
            return config | ({"quantization_config": HUB_QUANTIZATION[self.family]} if packings else {})
        absent = {key: 0 for name, key in self.table.counts.items() if name in self.table.optional}
        settings = quantization_entries(packings)
        return (
            config
            | absent
            | ({"quantization": settings, "quantization_config": settings} if settings else {})
        )


def stored_type(weights: Iterable[Written]) -> str | None:
    """Return the type of most weights that are not packed, in config.json's spelling; None if all are."""
    stored: Counter[str] = Counter()
    for weight in weights:
        if weight.packing is None:
            stored[weight.weight.weight.dtype] += weight.weight.weight.info.nbytes
    (most, _), *_ = stored.most_common(1) or [("", 0)]
    return TYPES.get(most)


def _stores_blocks(rule: Rule) -> bool:
    return rule.targets[0].endswith(BLOCKS)


def hub_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return config.json as the hub and mlx-lm spell it, whatever its own spelling, without packings."""
    result = {key: value for key, value in config.items() if key not in (*V5_KEYS, *OWN_KEYS)}
    if "dtype" in config:
        result.setdefault(DTYPE, config["dtype"])
    rope = dict(config.get("rope_parameters") or {})
    if rope:
        result["rope_theta"] = rope.pop("rope_theta", config.get("rope_theta"))
        stretched = rope.get("rope_type", rope.get("type", "default")) != "default"
        result["rope_scaling"] = rope if stretched else None
    if config["model_type"] == "qwen3_moe" and "num_local_experts" in config:
        result["num_experts"] = result.pop("num_local_experts")
    return result


DTYPE = "torch_dtype"
V5_KEYS = ("dtype", "rope_parameters", "quantization", "quantization_config")
OWN_KEYS = (deepseek_v3.OWN_EMBEDDING, deepseek_v3.OWN_HEAD)  # of macmoe's layout; tensors tell it to others


def quantization_entries(packings: Mapping[str, Quantization]) -> dict[str, Any]:
    """Return `quantization` of config.json, as MLX has it: the most frequent packing, then one per path."""
    if not packings:
        return {}
    hows = list(packings.values())
    top = max(set(hows), key=lambda how: (hows.count(how), how.mode, how.bits))
    top = replace(top, global_scale=False)
    return {**top.entry(), **{path: how.entry() for path, how in packings.items()}}


def _plain(name: str, tensor: Tensor, reason: str) -> Written:
    decoded = decode(tensor, reason)
    rows = decoded.weight
    stored = Stored(rows=rows, holds=rows.dtype if rows.dtype in NOT_FINITE else None)
    return Written(name=name, tensors={name: stored}, weight=decoded, remark=decoded.remark)


def _scales(rows: Rows, dtype: str) -> Stored:
    return Stored(rows=rows, holds=dtype, fatal=True)


def _for_hub(family: str, name: str, tensor: Tensor) -> Written:
    """Store MXFP4 as blocks, FP8 with a scale per block, and everything else as plain numbers."""
    if name.endswith(BLOCKS):
        blocks = tensor.weight.map(_bytes_of_blocks, "U8")
        scales = name.removesuffix(BLOCKS) + SCALES
        tensors = {name: Stored(rows=blocks), scales: _scales(tensor.parts["scales"], "F8_E8M0")}
        return Written(name=name, tensors=tensors, weight=tensor, packing=MXFP4)
    blocks = block_scales(tensor) if tensor.packing == MXFP8 and family != "gpt_oss" else None
    if blocks is None:
        return _plain(name, tensor, "the hub's layout has no such packing")
    codes = Stored(rows=tensor.weight.map(lambda array: array.view("u1"), "F8_E4M3"), holds="F8_E4M3")
    tensors = {name: codes, name + SCALE_INV: _scales(blocks, "F32")}
    return Written(name=name, tensors=tensors, weight=tensor, packing=MXFP8)


def _bytes_of_blocks(words: Array) -> Array:
    blocks = words.shape[-1] * words.itemsize // MXFP4_BLOCK_BYTES
    return words.view("u1").reshape(*words.shape[:-1], blocks, MXFP4_BLOCK_BYTES)


def block_scales(tensor: Tensor) -> Rows | None:
    """Return the float32 scales of FP8 blocks, [out / 128, in / 128]; None if a block has several."""
    rows, columns = FP8_BLOCK[0], FP8_BLOCK[1] // MXFP8.group_size
    scales = tensor.parts["scales"]

    def blocks() -> Array:
        return scales.all()[::rows, ::columns]

    if len(scales.shape) != 2:
        return None
    height, width = scales.shape
    spread = np.repeat(np.repeat(blocks(), rows, axis=0)[:height], columns, axis=1)[:, :width]
    if not np.array_equal(spread, scales.all()):
        return None
    info = TensorInfo(dtype="F32", shape=(-(-height // rows), -(-width // columns)))
    return Rows(info=info, read=lambda begin, end: e8m0_values(blocks()[begin:end]))


def _for_mlx_lm(_: str, name: str, tensor: Tensor) -> Written:
    """Store MLX's packings as they are; mlx-lm has global scales for experts only."""
    how = tensor.packing
    if how is None or (how.global_scale and not any(part in name for part in EXPERT_STACKS)):
        return _plain(name, tensor, "mlx-lm has no global scale for it")
    path = name.removesuffix(WEIGHT)
    tensors = {
        f"{path}.{part}": Stored(
            rows=rows,
            holds="F8_E8M0" if rows.dtype == "U8" else rows.dtype if rows.dtype in NOT_FINITE else None,
            fatal=part != "weight",
        )
        for part, rows in tensor.parts.items()
    }
    return Written(name=name, tensors=tensors, weight=tensor, packing=how)


EXPERT_STACKS = (".switch_mlp.", ".mlp.experts.")  # in mlx-lm's names
# mlx-lm reads global scales of NVFP4 for some modules, and MLX computes with them on a GPU only; what is
# packed on the way there gets none.
WITHOUT_GLOBAL_SCALES = {"mlx-lm"}
# Layout -> (family, name, tensor) -> what is stored.
ENCODERS: dict[str, Callable[[str, str, Tensor], Written]] = {"hub": _for_hub, "mlx-lm": _for_mlx_lm}
