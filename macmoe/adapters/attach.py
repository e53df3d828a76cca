"""Adapters put on a model and taken off: whole modules are exchanged, the base's arrays are never touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from macmoe.adapters.lora import DoraLinear, ExpertLora, HeadLora, LoraLinear, LoraSpec, LowRank, RouterLora
from macmoe.config import nearest
from macmoe.errors import UsageError
from macmoe.models.deepseek_v3 import Router
from macmoe.nn.quantized import ExpertLinear, HeadLinear, ScaledLinear
from macmoe.shards import first_five

# Names for the parts of a model, as patterns of module paths.
GROUPS = {
    "attention": ("*.self_attn.*",),
    "mlp": ("*.mlp.gate_proj", "*.mlp.up_proj", "*.mlp.down_proj"),
    "shared_experts": ("*.mlp.shared_experts.*",),
    "experts": ("*.mlp.experts.*",),
    "router": ("*.mlp.gate", "*.mlp.router"),
}
ROUTERS = GROUPS["router"]
KEYS, VALUES = "k_up_proj", "v_up_proj"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A low-rank adapter, apart from any model.

    Attributes:
        specs: How each adapted matrix is adapted, by module path.
        arrays: The factors, by module path and name ("model.layers.0.self_attn.q_proj.lora_a").
    """

    specs: Mapping[str, LoraSpec]
    arrays: Mapping[str, mx.array] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A matrix that gets an adapter, and the adapters made before."""

    path: str
    base: Any
    made: Mapping[str, LowRank]


def _linear(place: _Place, spec: LoraSpec) -> LowRank:
    return DoraLinear(place.base, spec) if spec.dora else LoraLinear(place.base, spec)


def _experts(place: _Place, spec: LoraSpec) -> LowRank:
    return ExpertLora(place.base, spec, outward=place.path.endswith("down_proj"))


def _heads(place: _Place, spec: LoraSpec) -> LowRank:
    keys = place.path.removesuffix(VALUES) + KEYS
    lender = place.made.get(keys) if place.path.endswith(VALUES) else None
    if lender is not None and lender.spec != spec:
        raise UsageError(f"{place.path} and {keys} share one factor; give them the same rank and alpha")
    return HeadLora(place.base, spec, lender if isinstance(lender, HeadLora) else None)


MAKERS: dict[type, Callable[[_Place, LoraSpec], LowRank]] = {
    nn.Linear: _linear,
    nn.QuantizedLinear: _linear,
    ScaledLinear: _linear,
    ExpertLinear: _experts,
    HeadLinear: _heads,
    Router: lambda place, spec: RouterLora(place.base, spec),
}
WITH_LENGTHS = (nn.Linear, nn.QuantizedLinear, ScaledLinear)


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Return every matrix that can be adapted, by path; layers that only draft tokens are left out.

    Of an adapted matrix it is the base, under the path of the whole.
    """
    return {
        path.removesuffix(".base"): module
        for path, module in model.named_modules()
        if type(module) in MAKERS and not path.startswith("mtp.")
    }


def select(
    model: nn.Module, targets: Sequence[str], spec: LoraSpec, overrides: Mapping[str, LoraSpec] | None = None
) -> dict[str, LoraSpec]:
    """Choose which matrices are adapted, and how.

    Args:
        model: The model.
        targets: Names of `GROUPS`, or patterns of module paths ("*.layers.1?.self_attn.[qv]_proj"). A group
            that a family does not have chooses nothing; all of them together must choose something.
        spec: How they are adapted.
        overrides: Other specs for some of them, by pattern; the first that matches holds.

    Raises:
        UsageError: A pattern matches no matrix, or lengths are asked for where they are not defined.
    """
    paths = list(adaptable(model))
    chosen: set[str] = set()
    for target in targets:
        found = _matching(paths, GROUPS.get(target, (target,)))
        if not found and target not in GROUPS:
            raise UsageError(
                f"target '{target}' matches no matrix of this model{nearest(target, [*GROUPS, *paths])}"
            )
        chosen.update(found)
    if not chosen:
        raise UsageError(f"the targets {', '.join(targets)} match no matrix of this model")
    specs = {path: _spec_for(path, spec, overrides or {}) for path in paths if path in chosen}
    for pattern in overrides or {}:
        if not _matching(chosen, [pattern]):
            raise UsageError(f"pattern '{pattern}' matches no adapted matrix{nearest(pattern, chosen)}")
    check_kinds(model, specs)
    return specs


def _matching(paths: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def _spec_for(path: str, spec: LoraSpec, overrides: Mapping[str, LoraSpec]) -> LoraSpec:
    return next((other for pattern, other in overrides.items() if fnmatchcase(path, pattern)), spec)


def check_kinds(model: nn.Module, specs: Mapping[str, LoraSpec]) -> None:
    """Check that all paths are adaptable matrices of the model, in the way asked for.

    Raises:
        UsageError: They are not.
    """
    modules = adaptable(model)
    unknown = [path for path in specs if path not in modules]
    if unknown:
        raise UsageError(
            f"the adapter is for another model: this one does not have {first_five(unknown)} of its matrices"
        )
    wrong = [path for path, spec in specs.items() if spec.dora and type(modules[path]) not in WITH_LENGTHS]
    if wrong:
        raise UsageError(f"DoRA is defined for plain linear layers only, not for {first_five(wrong)}")


def attach(model: nn.Module, specs: Mapping[str, LoraSpec], seed: int = 0) -> dict[str, LowRank]:
    """Freeze a model and put new adapters on it: A random, B zero. Only their factors can be trained.

    Returns:
        The adapters by path, in the order of the model's modules.

    Raises:
        UsageError: A path is not an adaptable matrix; the model has adapters already.
    """
    if attached(model):
        raise UsageError("the model has an adapter already; detach it first")
    check_kinds(model, specs)
    model.freeze()
    made: dict[str, LowRank] = {}
    modules = adaptable(model)
    keys = mx.random.split(mx.random.key(seed), max(len(specs), 1))
    for path, key in zip(sorted(specs), keys, strict=True):  # k_up_proj comes before v_up_proj
        base = modules[path]
        made[path] = MAKERS[type(base)](_Place(path=path, base=base, made=made), specs[path])
        made[path].initialize(key)
    exchanged: Any = list(made.items())
    model.update_modules(tree_unflatten(exchanged))
    return made


def attached(model: nn.Module) -> dict[str, LowRank]:
    """Return the adapters on a model, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LowRank)}


def detach(model: nn.Module) -> None:
    """Take all adapters off a model: it is what it was."""
    bases: Any = [(path, module.base) for path, module in attached(model).items()]
    model.update_modules(tree_unflatten(bases))


def arrays_of(adapters: Mapping[str, LowRank]) -> dict[str, mx.array]:
    """Return the factors by path and name."""
    return {
        f"{path}.{name}": array
        for path, adapter in adapters.items()
        for name, array in adapter.factors.items()
    }


def put(adapters: Mapping[str, LowRank], arrays: Mapping[str, mx.array]) -> None:
    """Set the factors of adapters on a model; names are those of `arrays_of`."""
    for path, adapter in adapters.items():
        for name in adapter.factors:
            adapter[name] = arrays[f"{path}.{name}"]


def apply(model: nn.Module, adapter: Adapter) -> dict[str, LowRank]:
    """Put an adapter on a model in place of the one that is there.

    Raises:
        UsageError: It is for another model, or of another shape; the model is as before then.
    """
    detach(model)
    made = attach(model, adapter.specs)
    expected = {name: array.shape for name, array in arrays_of(made).items()}
    given = {name: array.shape for name, array in adapter.arrays.items()}
    wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
    if wrong:
        detach(model)
        raise UsageError(
            f"the adapter does not fit this model: {first_five(wrong)} of its factors have another shape"
        )
    put(made, {name: array.astype(mx.float32) for name, array in adapter.arrays.items()})
    return made


def taken(adapters: Mapping[str, LowRank]) -> Adapter:
    """Return the adapter that is on a model."""
    return Adapter(
        specs={path: adapter.spec for path, adapter in adapters.items()}, arrays=arrays_of(adapters)
    )
