"""Conversion on first use: models in other layouts are converted once into a cache folder, and found there.

The folder is MACMOE_CACHE, by default ~/Library/Caches/macmoe on macOS and $XDG_CACHE_HOME/macmoe (or
~/.cache/macmoe) elsewhere; MACMOE_CACHE=off keeps nothing. Models below MACMOE_CACHE_FROM bytes, 1 GB by
default, are converted while they are loaded, which takes a moment, and are not kept.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from macmoe.checkpoint import MARKER, is_macmoe_folder
from macmoe.config import load_json
from macmoe.errors import UsageError
from macmoe.location import cache_folder

logger = logging.getLogger(__name__)

CONVERT_FROM = 1_000_000_000
UNFINISHED = re.compile(r"\.(.+)\.partial")

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model in the cache folder.

    Attributes:
        name: Name of its folder.
        source: What it was converted from.
        nbytes: What it takes on the disk.
        finished: Whether it is complete; an unfinished one is continued at its next use.
    """

    name: str
    source: str
    nbytes: int
    finished: bool


def _threshold() -> int:
    text = os.environ.get("MACMOE_CACHE_FROM", str(CONVERT_FROM))
    if not text.isdecimal():
        raise UsageError(f"MACMOE_CACHE_FROM is {text!r}; it has to be a number of bytes")
    return int(text)


def ready(folder: Path, progress: Progress | None = None, *, allow_unknown_keys: bool = False) -> Path:
    """Return a model folder that loads fast: the given one, or its conversion in the cache folder.

    A conversion is found again as long as the source's files, its place and macmoe's version are the same.

    Args:
        folder: A model folder in any layout.
        progress: Called, while a model is converted, with the bytes written so far and in all.
        allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

    Raises:
        ConfigError: The configuration is invalid or describes an unsupported model.
        CheckpointError: The weights are missing, damaged, or do not fit the model.
        UsageError: Another process is converting the model.
    """
    root = cache_folder()
    if root is None or is_macmoe_folder(folder):
        return folder
    if sum(path.stat().st_size for path in folder.glob("*.safetensors")) < _threshold():
        return folder
    from macmoe_converters import open_conversion  # noqa: PLC0415 - not needed for macmoe's own layout

    conversion = open_conversion(folder, allow_unknown_keys=allow_unknown_keys)
    out = root / _key(folder, conversion.identity)
    if not is_macmoe_folder(out):
        if not conversion.fits(out):
            logger.warning("%s: the disk of %s has no room for the converted model", folder, root)
            return folder
        conversion.write(out, resume=True, progress=progress)
    return out


def _key(folder: Path, identity: str) -> str:
    place = hashlib.sha256(f"{folder.resolve()} {identity}".encode()).hexdigest()
    parts = folder.resolve().parts
    name = parts[-3].removeprefix("models--") if "snapshots" in parts[-2:-1] else parts[-1]
    return f"{name}-{place[:12]}"


def entries() -> list[Entry]:
    """Return what is in the cache folder, by name."""
    root = cache_folder()
    if root is None or not root.is_dir():
        return []
    return [entry for path in sorted(root.iterdir()) if (entry := _entry(path))]


def _entry(path: Path) -> Entry | None:
    unfinished = UNFINISHED.fullmatch(path.name)
    if not path.is_dir() or not (unfinished or is_macmoe_folder(path)):
        return None
    nbytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if unfinished:
        return Entry(name=unfinished[1], source="-", nbytes=nbytes, finished=False)
    return Entry(
        name=path.name, source=str(load_json(path / MARKER).get("source", "-")), nbytes=nbytes, finished=True
    )


def remove(name: str) -> int:
    """Remove a model from the cache folder; return the bytes that this frees.

    Raises:
        UsageError: There is no such model.
    """
    root = cache_folder()
    found = [entry for entry in entries() if entry.name == name]
    if root is None or not found:
        raise UsageError(f"{name}: not in the cache folder; `macmoe cache list` shows what is")
    for path in (root / name, root / f".{name}.partial"):
        shutil.rmtree(path, ignore_errors=True)
    return sum(entry.nbytes for entry in found)
