"""Conversion on first use: models in other layouts are converted once into a cache folder, and found there.

The folder is MACMOE_CACHE, by default ~/Library/Caches/macmoe on macOS and $XDG_CACHE_HOME/macmoe (or
~/.cache/macmoe) elsewhere; MACMOE_CACHE=off keeps nothing. Models below MACMOE_CACHE_FROM bytes, 1 GB by
default, are converted while they are loaded, which takes a moment, and are not kept; nor are folders that
need no repacking.

A conversion is found without opening its source: its name is a hash of what the system says of the source's
files. Where the source is gone, what was noted beside the conversion (`Note`) tells whose it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmoe.checkpoint import is_macmoe_folder
from macmoe.config import load_config, load_json
from macmoe.downloads import Announce, free_at, gib
from macmoe.errors import ConversionError, MacmoeError, UsageError
from macmoe.hub_cache import INDEX, repo_of
from macmoe.location import cache_folder
from macmoe.shards import read_header
from macmoe.version import __version__

if TYPE_CHECKING:
    from macmoe_converters import Conversion

logger = logging.getLogger(__name__)

CONVERT_FROM = 1_000_000_000
KEEP = "keep"  # the recipe that packs nothing anew
NOTE = "source.json"
WEIGHTS = ".safetensors"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is written beside a conversion of the cache folder.

    Attributes:
        source: The repository of the hub, or the folder, that it was converted from.
        recipe: How its matrices were packed.
        converted: When, in UTC.
    """

    source: str
    recipe: str
    converted: str


def _threshold() -> int:
    text = os.environ.get("MACMOE_CACHE_FROM", str(CONVERT_FROM))
    if not text.isdecimal():
        raise UsageError(f"MACMOE_CACHE_FROM is {text!r}; it has to be a number of bytes")
    return int(text)


def source_of(folder: Path) -> str:
    """Return what a folder is called in notes: its repository, if it is a copy of the hub's, or its path."""
    return repo_of(folder.absolute()) or str(folder.resolve())


def stored_bytes(folder: Path) -> int:
    """Return the size of a folder's files of weights."""
    return sum(size for _, size, _ in _files(folder))


def _files(folder: Path) -> Iterator[tuple[str, int, str | int]]:
    """Yield name and size of each file of weights, and what changes with its content: blob or time.

    Raises:
        OSError: The folder or a file is gone, as what a link of the hub's cache led to.
    """
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.endswith(WEIGHTS) or entry.name == INDEX:
            about = entry.stat()
            blob = Path(entry.path).readlink().name if entry.is_symlink() else about.st_mtime_ns
            yield entry.name, about.st_size, blob


def key_of(folder: Path, recipe: str) -> str | None:
    """Return the name of a folder's conversion, or None where the weights, or some of them, are gone."""
    try:
        files = list(_files(folder))
        config = (folder / "config.json").read_bytes()
    except OSError:
        return None
    if not any(name.endswith(WEIGHTS) for name, _, _ in files):
        return None
    source = source_of(folder)
    facts = [source, hashlib.sha256(config).hexdigest(), files, recipe, __version__]
    label = source.replace("/", "--") if repo_of(folder.absolute()) else folder.resolve().name
    return f"{label}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"


def find(source: str, folder: Path | None, recipe: str = KEEP) -> Path | None:
    """Return the conversion of a model, without opening the model; None: there is none.

    Args:
        source: What notes call the model, see `source_of`.
        folder: Where the model lies; None: it is not, or no more, on this machine.
        recipe: How its matrices were packed.
    """
    root = cache_folder()
    if root is None:
        return None
    key = key_of(folder, recipe) if folder else None
    if key is not None:
        return root / key if is_macmoe_folder(root / key) else None
    return _of_lost_source(root, source, recipe)


def _of_lost_source(root: Path, source: str, recipe: str) -> Path | None:
    """Return the newest conversion of a source that is gone."""
    if not root.is_dir():
        return None
    noted = [(note, path) for path in root.iterdir() if (note := note_of(path))]
    fitting = [
        (note.converted, path)
        for note, path in noted
        if note.source.lower() == source.lower() and note.recipe == recipe and is_macmoe_folder(path)
    ]
    return max(fitting)[1] if fitting else None


def note_of(folder: Path) -> Note | None:
    """Return what was noted beside a conversion; None: nothing that can be read."""
    try:
        data = load_json(folder / NOTE)
        return Note(**{key: str(data[key]) for key in ("source", "recipe", "converted")})
    except (OSError, KeyError, MacmoeError):
        return None


def ready(
    folder: Path,
    progress: Progress | None = None,
    *,
    recipe: str = KEEP,
    announce: Announce = logger.info,
    allow_unknown_keys: bool = False,
) -> Path:
    """Return a model folder that loads fast: the given one, or its conversion in the cache folder.

    A conversion is found again as long as the source's config.json, the names, sizes and times of its
    weights, the recipe and macmoe's version are the same. If it cannot be kept, a warning says why, and the
    source is returned: it is converted while it is loaded.

    Args:
        folder: A model folder in any layout.
        progress: Called, while a model is converted, with the bytes written so far and in all.
        recipe: How matrices are packed, a name of `macmoe_converters.RECIPES`.
        announce: Called with a line before a model is converted.
        allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

    Raises:
        ConfigError: The configuration is invalid or describes an unsupported model.
        CheckpointError: The weights are missing, damaged, or do not fit the model.
        UsageError: Another process is converting the model.
    """
    root = cache_folder()
    if root is None or (is_macmoe_folder(folder) and recipe == KEEP):
        return folder
    found = find(source_of(folder), folder, recipe)
    if found is not None:
        return found
    key = key_of(folder, recipe)
    if key is None or stored_bytes(folder) < _threshold() or _lies_ready(folder, recipe):
        return folder
    problem = _unwritable(root)
    if problem:
        _warn(root, f"cannot be written ({problem})")
        return folder
    from macmoe_converters import open_conversion  # noqa: PLC0415 - not needed for macmoe's own layout

    conversion = open_conversion(folder, recipe=recipe, allow_unknown_keys=allow_unknown_keys)
    return _keep(conversion, folder, root / key, recipe, progress, announce)


def _lies_ready(folder: Path, recipe: str) -> bool:
    """Return whether a folder loads as fast as its conversion would."""
    if recipe != KEEP:
        return False
    from macmoe_converters.repacking import needs_repacking  # noqa: PLC0415 - not for what was converted

    config = load_config(folder)
    return not needs_repacking(config, _names(folder), str(folder / "config.json"))


def _names(folder: Path) -> list[str]:
    """Return the names of a folder's tensors: of its index, or of its files where it has none."""
    if (folder / INDEX).is_file():
        where = load_json(folder / INDEX).get("weight_map")
        if isinstance(where, dict):
            return list(where)
    return [name for path in folder.glob(f"model*{WEIGHTS}") for name in read_header(path)]


def _keep(
    conversion: Conversion,
    folder: Path,
    out: Path,
    recipe: str,
    progress: Progress | None,
    announce: Announce,
) -> Path:
    """Write a conversion into the cache folder; return it, or the source if it cannot be kept."""
    if not conversion.fits(out):
        _warn(out.parent, f"its disk has no room for {gib(conversion.output().nbytes)}")
        return folder
    announce(
        f"{source_of(folder)}: converting it once, into {out} ({gib(conversion.output().nbytes)}, "
        f"{gib(free_at(out))} free; `macmoe cache` manages it)"
    )
    try:
        _write(conversion, out, folder, recipe, progress)
    except ConversionError as error:  # the disk, as the source was checked when it was opened
        _warn(out.parent, str(error))
        return folder
    return out


def _write(conversion: Conversion, out: Path, folder: Path, recipe: str, progress: Progress | None) -> None:
    conversion.write(out, resume=True, progress=progress)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_note(out, Note(source=source_of(folder), recipe=recipe, converted=now))


def write_note(folder: Path, note: Note) -> None:
    """Note whose conversion a folder is."""
    data: dict[str, Any] = asdict(note)
    (folder / NOTE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _unwritable(root: Path) -> str | None:
    """Return why nothing can be written into a folder, which is made if need be; None: something can."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=root):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _warn(root: Path, problem: str) -> None:
    logger.warning(
        "the cache folder %s: %s; the model is converted while it is loaded, at every start. MACMOE_CACHE "
        "names another folder, MACMOE_CACHE=off none",
        root,
        problem,
    )
