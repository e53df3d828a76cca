"""A run that begins with an adapter: what is adapted, and how, is what the adapter says."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from macmoe.adapters.attach import Adapter, select
from macmoe.adapters.opening import open_adapter
from macmoe.errors import UsageError
from macmoe.tuning.config import LoraOptions, RunOptions


def begin_with(options: RunOptions, model: Any, family: str) -> tuple[RunOptions, Adapter | None]:
    """Open the adapter that a run is to begin with, and take the settings of `lora` from it.

    Args:
        options: The run.
        model: The model without adapters; only its shapes are used.
        family: Name of its family.

    Returns:
        The run with those settings, and the adapter; None where there is none to begin with.

    Raises:
        UsageError: The settings of `lora` ask for something else than the adapter is.
        MacmoeError: It is no adapter, damaged, or for another model.
    """
    if options.adapter is None:
        return options, None
    adapter = open_adapter(options.adapter, model, family)
    found = lora_of(adapter)
    for name in _differing(options.lora, found, adapter, model):
        value, given = getattr(found, name), getattr(options.lora, name)
        facts = f" = {given!r}, and this adapter has {value!r}" if name in _SPEC else ""
        raise UsageError(
            f"{options.adapter}: the settings ask for {'other ' * (not facts)}{name}{facts}; leave it out, "
            "as a run that begins with an adapter trains what is adapted there"
        )
    return replace(options, lora=found, adapter=None), adapter


def lora_of(adapter: Adapter) -> LoraOptions:
    """Return the settings that adapt the same matrices in the same way."""
    usual = Counter(adapter.specs.values()).most_common(1)[0][0]
    others = {path: dataclasses.asdict(spec) for path, spec in adapter.specs.items() if spec != usual}
    return LoraOptions(targets=tuple(adapter.specs), patterns=others, **dataclasses.asdict(usual))


def digest_of(adapter: Adapter) -> str:
    """Return a hash of an adapter's factors."""
    digest = hashlib.sha256()
    for name, array in sorted(adapter.arrays.items()):
        digest.update(name.encode())
        digest.update(np.array(array.astype(mx.float32)).tobytes())
    return digest.hexdigest()[:16]


_SPEC = ("rank", "alpha", "rslora", "dora", "shared")


def _differing(asked: LoraOptions, found: LoraOptions, adapter: Adapter, model: Any) -> list[str]:
    """Name the settings that were chosen and that the adapter does not have."""
    usual = LoraOptions()
    chosen = [name for name in _SPEC if getattr(asked, name) != getattr(usual, name)]
    names = [name for name in chosen if getattr(asked, name) != getattr(found, name)]
    if asked.targets != usual.targets and set(select(model, asked.targets, asked.spec)) != set(adapter.specs):
        names.append("targets")
    if asked.patterns and asked.patterns != found.patterns:
        names.append("patterns")
    return names
