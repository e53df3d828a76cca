"""What was found of a model's kernels on this device, kept in the cache folder."""

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_flatten

from macmoe.families import Model
from macmoe.kernels import source
from macmoe.location import cache_folder
from macmoe.version import __version__

Found = TypeVar("Found")  # a dataclass


def remembered(
    name: str,
    find: Callable[[], Found],
    from_dict: Callable[[dict[str, Any]], Found],
    lasts: Callable[[Found], bool] = lambda _: True,
    *,
    fresh: bool = False,
) -> Found:
    """Return what was found before; where nothing was, find it, and keep it for the next time.

    Args:
        name: Of the file, see `form_of`.
        find: Finds it out, a dataclass.
        from_dict: Takes what `dataclasses.asdict` made of it.
        lasts: Whether what was found is worth keeping.
        fresh: Find it out again whatever is there.
    """
    folder = cache_folder()
    if folder is None:
        return find()
    path = folder / "kernels" / f"{name}.json"
    known = None if fresh else _read(path, from_dict)
    if known is not None:
        return known
    found: Any = find()
    if lasts(found):
        _keep(path, asdict(found))
    return found


def _read(path: Path, from_dict: Callable[[dict[str, Any]], Found]) -> Found | None:
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or not ours
        return None


def _keep(path: Path, found: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found), encoding="utf-8")
    except OSError:  # a read-only home is no reason to fail: the next run checks again
        pass


def form_of(model: Model, cache_bits: int | None) -> str:
    """Return a hash of everything that right and fast kernels hang on."""
    parameters: Any = tree_flatten(model.parameters())
    shapes = sorted({(str(array.shape), str(array.dtype)) for _, array in parameters})
    device = str(mx.device_info().get("device_name", mx.default_device()))
    system = platform.mac_ver()[0] or platform.release()  # compiler and driver come with it
    packages = [version("mlx"), __version__]
    asked = [str(source.backend()), repr(model.config), repr(shapes), repr(cache_bits)]
    digest = hashlib.sha256("\n".join([device, system, *packages, *asked]).encode())
    for folder in (Path(source.__file__).parent, Path(__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:24]
