"""Folders of adapters in macmoe's own form, and the one way in which files are replaced: whole or not at all.

adapter.json          what is adapted, and how
adapter.safetensors   the factors, float32, by module path and name
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from macmoe.adapters.attach import Adapter
from macmoe.adapters.lora import LoraSpec
from macmoe.config import ConfigReader, load_json
from macmoe.errors import CheckpointError, UsageError
from macmoe.shards import read_header

MARKER, WEIGHTS = "adapter.json", "adapter.safetensors"
FORMAT_VERSION = 1


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, then give it that name; whatever fails leaves the old one as it was.

    Args:
        path: The file.
        write: Writes it under another name, which ends like its own.

    Raises:
        CheckpointError: The file cannot be written.
    """
    draft = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(draft)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, RuntimeError) as error:  # MLX reports failures to write as the latter
        raise CheckpointError(
            f"{path}: cannot be written ({error}); what stood there before is unharmed"
        ) from None
    finally:
        draft.unlink(missing_ok=True)


def write_arrays(
    path: Path, arrays: Mapping[str, mx.array], metadata: Mapping[str, str] | None = None
) -> None:
    """Replace a safetensors file; the arrays are written as they lie in memory.

    Raises:
        CheckpointError: The file cannot be written.
    """
    facts = {"format": "mlx", **(metadata or {})}
    replace_file(path, lambda draft: mx.save_safetensors(str(draft), dict(arrays), facts))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Replace a JSON file."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def read_arrays(path: Path) -> dict[str, mx.array]:
    """Read a safetensors file after a look at its header.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: not found; the adapter is incomplete, get its folder again")
    read_header(path)
    loaded = mx.load(str(path), format="safetensors")
    assert isinstance(loaded, dict)
    return loaded


def save_adapter(adapter: Adapter, folder: Path, family: str) -> None:
    """Write an adapter; one that stands there already is replaced.

    Args:
        adapter: The adapter.
        folder: Where to; made if it does not exist.
        family: Name of the model's family.

    Raises:
        CheckpointError: The files cannot be written.
    """
    matrices = {path: dataclasses.asdict(spec) for path, spec in adapter.specs.items()}
    description = {"format_version": FORMAT_VERSION, "family": family, "matrices": matrices}
    write_arrays(folder / WEIGHTS, adapter.arrays)
    write_json(folder / MARKER, description)


def read_adapter(folder: Path, family: str) -> Adapter:
    """Read an adapter that macmoe wrote.

    Raises:
        ConfigError: adapter.json is missing or invalid.
        CheckpointError: It is of a later format, or the factors are missing or damaged.
        UsageError: It is for a model of another family.
    """
    reader = ConfigReader(load_json(folder / MARKER), str(folder / MARKER))
    version = reader.take("format_version", int)
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{reader.file}: format version {version}; this macmoe reads {FORMAT_VERSION}")
    check_family(reader.take("family", str), family, folder)
    matrices = reader.take("matrices", dict)
    reader.finish()
    specs = {path: _spec(data, f"{reader.file}: {path}") for path, data in matrices.items()}
    return Adapter(specs=specs, arrays=read_arrays(folder / WEIGHTS))


def check_family(found: str, wanted: str, folder: Path) -> None:
    """Refuse an adapter for another family."""
    if found != wanted:
        raise UsageError(f"{folder}: the adapter is for {found} and the model is {wanted}")


def _spec(data: Any, where: str) -> LoraSpec:
    reader = ConfigReader(data if isinstance(data, dict) else {}, where)
    spec = LoraSpec(
        rank=reader.take("rank", int),
        alpha=reader.take("alpha", float),
        rslora=reader.take("rslora", bool),
        dora=reader.take("dora", bool),
        shared=reader.take("shared", bool),
    )
    reader.finish()
    return spec
