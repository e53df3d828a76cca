"""Weights of a folder into a model, in whatever layout they lie there."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from macmoe.checkpoint import Checkpoint, WeightSource, is_macmoe_folder, load_weights
from macmoe.converted import KEEP, Progress
from macmoe.errors import UsageError
from macmoe.families import Family, Model, family_of

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def _dtype(name: str | None) -> mx.Dtype | None:
    """Return the wanted type; by default the checkpoint's, on a CPU float32 (it sums bfloat16 badly)."""
    if name is None:
        return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else None
    if name not in DTYPES:
        raise UsageError(f"dtype is {name!r}; it has to be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def open_weights(folder: Path, recipe: str = KEEP, *, allow_unknown_keys: bool = False) -> WeightSource:
    """Open a model folder in any known layout, as a recipe of `macmoe_converters.RECIPES` packs it."""
    if is_macmoe_folder(folder) and recipe == KEEP:
        return Checkpoint(folder, allow_unknown_keys=allow_unknown_keys)
    from macmoe_converters import open_conversion  # noqa: PLC0415 - not needed for macmoe's own layout

    return open_conversion(folder, recipe=recipe, allow_unknown_keys=allow_unknown_keys)


def load_model(
    folder: Path,
    dtype: str | None = None,
    recipe: str = KEEP,
    progress: Progress | None = None,
    *,
    allow_unknown_keys: bool = False,
) -> tuple[Family, Model]:
    """Load the weights of a folder; layouts other than macmoe's are converted on the way.

    Args:
        folder: The folder.
        dtype: See `macmoe.load`.
        recipe: How matrices are packed on the way.
        progress: Called with the bytes of weights loaded so far and in all.
        allow_unknown_keys: See `macmoe.load`.

    Raises:
        ConfigError: The configuration is invalid or describes an unsupported model.
        CheckpointError: The weights are missing, damaged, or do not fit the model.
    """
    wanted = _dtype(dtype)
    source = open_weights(folder, recipe, allow_unknown_keys=allow_unknown_keys)
    family = family_of(source.config, str(folder / "config.json"))
    model = family.build(source.config, str(folder / "config.json"))
    load_weights(model, source, dtype=wanted, progress=progress)
    return family, model
