"""Checkpoints as they are published -> macmoe checkpoints, bit for bit where the packing allows it.

`open_conversion(folder)` is the single entry point. It reads headers only; its result has the config and the
tensors of the macmoe checkpoint, and writes them if asked to.
"""

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx

from macmoe.config import Quantization
from macmoe_converters.conversion import Conversion
from macmoe_converters.recipes import KEEP, LEARNED, RECIPES

__all__ = ["KEEP", "LEARNED", "RECIPES", "Conversion", "open_conversion"]


def open_conversion(
    folder: Path | str,
    *,
    recipe: str = KEEP,
    packings: Mapping[str, Quantization] | None = None,
    learned: Mapping[str, mx.array] | None = None,
    allow_unknown_keys: bool = False,
) -> Conversion:
    """Open a model folder in any known layout as a macmoe checkpoint.

    Args:
        folder: A folder in hub, original GPT-OSS, MLX or macmoe layout.
        recipe: How matrices are packed with loss, a name of `RECIPES`; "keep" leaves them as they are.
        packings: How they are packed, by path, instead of a recipe; `recipe` is what macmoe.json calls that.
        learned: Scales and biases by name, for a recipe of `LEARNED`.
        allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

    Raises:
        UsageError: There is no such recipe.
        ConfigError: config.json is missing, invalid or describes an unsupported model.
        CheckpointError: The weights are missing, damaged, or do not fit the model.
    """
    return Conversion(Path(folder), recipe, packings, learned, allow_unknown_keys=allow_unknown_keys)
