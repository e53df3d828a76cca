"""An adapter written into the weights: in full precision, in 8 bits, or on the base's own grid, and measured.

A coarse grid can round the adapter away. So the fused model is compared with the adapted one:

    kept = 1 - KL(adapted || fused) / KL(adapted || base)

and touched matrices get a finer grid, or the fusion is refused, where too little is kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

import macmoe
from macmoe.adapters.attach import Adapter, apply, detach
from macmoe.adapters.files import write_json
from macmoe.adapters.lora import LowRank, decoded, matrix_shape, packing_of
from macmoe.checkpoint import DTYPES, FORMAT_VERSION, MARKER, WeightSource
from macmoe.config import Quantization
from macmoe.errors import CheckpointError, UsageError
from macmoe.models.deepseek_v3 import Router
from macmoe.nn.quantized import StackedLinear
from macmoe.sampling import log_probabilities
from macmoe.scoring import divergence
from macmoe.shards import INDEX
from macmoe.tokenizer_files import NAMED_TEMPLATES

Precision = Literal["base", "8bit", "full"]
# What is tried next where too little is kept.
FINER: dict[Precision, Precision] = {"base": "8bit", "8bit": "full"}
EIGHT_BITS = {size: Quantization(group_size=size, bits=8, mode="affine") for size in (64, 32)}
# Nats per token: log-probabilities move by a thousandth, less than rounding to bfloat16 moves logits. A share
# of less would be one of noise.
NOISE = 1e-6
NORM = "model.norm.weight"  # has the type of the activations
SHARD_BYTES = 4_000_000_000
NOT_COPIED = ("config.json", MARKER, INDEX)
COPIED = (".json", ".txt", ".jinja", "LICENSE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What fusing did to the adapter, on some tokens.

    Attributes:
        precision: Of the touched matrices.
        to_base: Mean KL(adapted || base), nats per token.
        to_fused: Mean KL(adapted || fused), nats per token.
    """

    precision: Precision
    to_base: float
    to_fused: float

    @property
    def kept(self) -> float | None:
        """The share of the adapter's effect that is still there; None where there is too little to judge."""
        return None if self.to_base <= NOISE else max(0.0, 1 - self.to_fused / self.to_base)


def _grid(adapter: LowRank, precision: Precision) -> Quantization | None:
    """Return how a fused matrix is packed."""
    base = packing_of(adapter.base)
    base = base and replace(base, global_scale=False)  # MLX packs without one
    if precision == "base" or (precision == "8bit" and base is None):
        return base
    columns = matrix_shape(adapter.base)[-1] if not isinstance(adapter.base, Router) else 1
    fitting = [how for size, how in EIGHT_BITS.items() if columns % size == 0]
    return fitting[0] if precision == "8bit" and fitting else None


def stored_types(source: WeightSource, paths: Iterable[str]) -> dict[str, mx.Dtype]:
    """Return the type of each matrix in its checkpoint; of a packed one that of the norms."""
    found = {path: DTYPES.get(source.infos[f"{path}.weight"].dtype, mx.uint32) for path in paths}
    norm = DTYPES[source.infos[NORM].dtype]
    return {path: dtype if mx.issubdtype(dtype, mx.floating) else norm for path, dtype in found.items()}


def _parts(weight: mx.array, how: Quantization | None, dtype: mx.Dtype) -> dict[str, mx.array]:
    if how is None:
        return {"weight": weight.astype(dtype)}
    source = weight.astype(dtype) if how.mode == "affine" else weight
    arrays = mx.quantize(source, group_size=how.group_size, bits=how.bits, mode=how.mode)
    return dict(zip(("weight", "scales", "biases"), arrays, strict=False))


def _twin(base: Any, how: Quantization | None) -> Any:
    """Return an empty module like the base, packed in that way."""
    if isinstance(base, Router):
        return Router(base.config)
    *stack, outputs, inputs = matrix_shape(base)
    if isinstance(base, StackedLinear):
        twin = type(base)(stack[0], inputs, outputs, bias="bias" in base)
        if how is not None:
            twin.pack(how)
        return twin
    if how is None:
        return nn.Linear(inputs, outputs, "bias" in base)
    return nn.QuantizedLinear(inputs, outputs, "bias" in base, how.group_size, how.bits, how.mode)


def fused_modules(
    adapters: Mapping[str, LowRank], precision: Precision, types: Mapping[str, mx.Dtype]
) -> dict[str, nn.Module]:
    """Return the matrices with their adapters in them, by path."""
    made: dict[str, nn.Module] = {}
    for path, adapter in adapters.items():
        how = _grid(adapter, precision)
        twin = _twin(adapter.base, how)
        for name, array in _parts(adapter.merged(decoded(adapter.base)), how, types[path]).items():
            twin[name] = array
        for name in ("bias", "e_score_correction_bias"):
            if name in adapter.base:
                twin[name] = adapter.base[name]
        mx.eval(twin.parameters())
        made[path] = twin
    return made


def _distributions(model: Any, texts: Sequence[Sequence[int]]) -> list[mx.array]:
    found = [log_probabilities(model(mx.array([list(tokens)])))[0] for tokens in texts]
    mx.eval(found)
    return found


def _divergence(first: Sequence[mx.array], second: Sequence[mx.array]) -> float:
    """Return the mean KL(first || second) per token."""
    total = sum(float(divergence(a, b).sum()) for a, b in zip(first, second, strict=True))
    return total / sum(len(a) for a in first)


def fuse(
    model: Any,
    adapter: Adapter,
    texts: Sequence[Sequence[int]],
    *,
    types: Mapping[str, mx.Dtype],
    precision: Precision = "full",
    keep: float = 0.9,
    raise_precision: bool = True,
) -> tuple[dict[str, nn.Module], list[Effect]]:
    """Put an adapter into a model's weights; the model is the fused one afterwards.

    Args:
        model: The model.
        adapter: The adapter.
        texts: Token ids to measure on.
        types: Of the matrices that are not packed, by path (`stored_types`).
        precision: Of the touched matrices: the base's, 8 bits where the base is packed, or `types`.
        keep: The least share of the adapter's effect that is good enough, where there is one to judge.
        raise_precision: Take the next finer grid where less is kept, instead of refusing.

    Returns:
        The fused matrices by path, and the effect measured with each precision that was tried.

    Raises:
        UsageError: Too little is kept, a text is empty, or the adapter is for another model.
    """
    if not texts or not all(texts):
        raise UsageError("a text to measure on is empty, so nobody could say what is kept; give some words")
    detach(model)
    base = _distributions(model, texts)
    adapters = apply(model, adapter)
    adapted = _distributions(model, texts)
    effects: list[Effect] = []
    while True:
        modules = fused_modules(adapters, precision, types)
        named: Any = list(modules.items())
        model.update_modules(tree_unflatten(named))
        to_fused = _divergence(adapted, _distributions(model, texts))
        effects.append(Effect(precision=precision, to_base=_divergence(adapted, base), to_fused=to_fused))
        kept = effects[-1].kept
        if kept is None or kept >= keep:
            return modules, effects
        if not raise_precision or precision not in FINER:
            remedy = "choose a finer precision" if precision in FINER else "ask for less"
            raise UsageError(
                f"fused in precision '{precision}', {kept:.1%} of the adapter's effect would be "
                f"left, and {keep:.0%} is asked for; keep the adapter apart, or {remedy}"
            )
        precision = FINER[precision]


def _fused_config(config: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return config.json with the packings of the fused matrices."""
    packings = dict(config.get("quantization") or {})
    for path, module in modules.items():
        packings.pop(path, None)
        how = packing_of(module)
        if how is not None:
            entry = {"group_size": how.group_size, "bits": how.bits, "mode": how.mode}
            packings = (packings or dict(entry)) | {path: entry}
    result = {key: value for key, value in config.items() if key != "quantization"}
    listed = any(isinstance(value, dict) for value in packings.values())
    return result | ({"quantization": packings} if listed else {})


def _tensors(source: WeightSource, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, mx.array]]:
    """Yield all tensors of the fused model; untouched ones are the source's, bit for bit."""
    for name, array in source.tensors():
        if name.rpartition(".")[0] not in modules:
            yield name, array
    for path, module in modules.items():
        flat: Any = tree_flatten(module.parameters())
        for name, array in flat:
            info = source.infos.get(f"{path}.{name}")
            plain = info is not None and info.dtype in DTYPES and name != "weight" and "scales" not in module
            yield f"{path}.{name}", array.astype(DTYPES[info.dtype]) if plain and info else array


def check_free(out: Path) -> None:
    """Refuse a folder that exists, as `write_fused` does; before the work, that is worth a call.

    Raises:
        UsageError: `out` exists.
    """
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another folder")


def write_fused(
    source: WeightSource, modules: Mapping[str, nn.Module], out: Path, facts: Mapping[str, Any]
) -> None:
    """Write the fused model as a macmoe checkpoint, complete or not at all.

    Args:
        source: The model without the adapter.
        modules: The fused matrices.
        out: The folder to make.
        facts: What macmoe.json says besides.

    Raises:
        UsageError: `out` exists.
        CheckpointError: The files cannot be written; nothing is left.
    """
    check_free(out)
    draft = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        draft.mkdir(parents=True)
        _write_shards(_tensors(source, modules), draft)
        write_json(draft / "config.json", _fused_config(source.config, modules))
        for path in _companions(source.folder):
            copy = draft / path.relative_to(source.folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        marker = {"format_version": FORMAT_VERSION, "macmoe_version": macmoe.__version__, **facts}
        write_json(draft / MARKER, marker)
        draft.rename(out)
    except (OSError, RuntimeError) as error:  # MLX reports failures to write as the latter
        raise CheckpointError(f"{out}: cannot be written ({error}); nothing was kept") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _companions(folder: Path) -> list[Path]:
    """Return the tokenizer and its like, and the templates that have a name."""
    named = [path for name in NAMED_TEMPLATES for path in folder.glob(f"{name}/*.jinja")]
    found = [path for path in folder.iterdir() if path.name.endswith(COPIED) and path.is_file()]
    return sorted([*named, *(path for path in found if path.name not in NOT_COPIED)])


def _write_shards(tensors: Iterator[tuple[str, mx.array]], folder: Path) -> None:
    where: dict[str, str] = {}
    shard: dict[str, mx.array] = {}
    total = 0

    def flush() -> None:
        name = f"model-{len(set(where.values())) + 1:05}.safetensors"
        mx.save_safetensors(str(folder / name), dict(shard), {"format": "mlx"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, array in tensors:
        if shard and sum(held.nbytes for held in shard.values()) + array.nbytes > SHARD_BYTES:
            flush()
        shard[name] = array
        total += array.nbytes
    flush()
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})


def record(effects: Sequence[Effect]) -> dict[str, Any]:
    """Return what macmoe.json says of a fusion."""
    return {"fused": [asdict(effect) | {"kept": effect.kept} for effect in effects]}
