"""The hub's cache folder on this machine, read without asking the hub: which copies of models are complete.

The folder of a repository has the commits in snapshots/, whose files are links into blobs/, and in refs/main
the commit that was last downloaded. Reading it needs no network and none of the hub's library.
"""

from __future__ import annotations

import json
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
NEEDED = ("config.json", "tokenizer.json")
PART = re.compile(r"model-\d+-of-(\d+)\.safetensors")
PREFIX = "models--"


def hub_folder() -> Path:
    """Return the hub's cache folder, which need not exist."""
    named = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    if named:
        return Path(os.path.expandvars(named)).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def is_offline() -> bool:
    """Return whether the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def repo_folder(repo: str) -> Path:
    """Return where the hub keeps a repository."""
    return hub_folder() / f"{PREFIX}{repo.replace('/', '--')}"


def repo_of(folder: Path) -> str | None:
    """Return the repository that a folder of the hub's cache, or of a snapshot in it, belongs to."""
    for place in (folder, *folder.parents[:2]):
        if place.name.startswith(PREFIX):
            return place.name.removeprefix(PREFIX).replace("--", "/", 1)
    return None


def snapshot(folder: Path) -> Path | None:
    """Return the snapshot that a repository's folder means: that of refs/main, else the only one."""
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = ""
    if commit and "/" not in commit and (folder / "snapshots" / commit).is_dir():
        return folder / "snapshots" / commit
    try:
        found = [path for path in (folder / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return None
    return found[0] if len(found) == 1 else None


def complete_snapshot(repo: str, files: tuple[str, ...]) -> Path | None:
    """Return the copy of a repository if it has all files that match these patterns, else None."""
    folder = snapshot(repo_folder(repo))
    if folder is None:
        return None
    listed = _listed(folder)
    if listed is None:
        return folder if _seems_complete(folder, files) else None
    wanted = [name for name in listed if "/" not in name and any(fnmatch(name, each) for each in files)]
    return folder if wanted and all((folder / name).exists() for name in wanted) else None


def _listed(folder: Path) -> list[str] | None:
    """Return the repository's files as the hub's library has noted them; older ones note nothing."""
    data = _json(folder.parent.parent / "trees" / f"{folder.name}.json")
    files = data.get("files") if isinstance(data, dict) else None
    return list(files) if isinstance(files, dict) else None


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _seems_complete(folder: Path, files: tuple[str, ...]) -> bool:
    """Judge by what every model needs: two small files, and all weights that index or names tell of."""
    needed = [name for name in NEEDED if any(fnmatch(name, each) for each in files)]
    if any(fnmatch("model.safetensors", each) for each in files):
        needed += _weight_files(folder)
    return all((folder / name).exists() for name in needed)


def _weight_files(folder: Path) -> list[str]:
    """Return the files of weights that have to be there."""
    index = _json(folder / INDEX)
    where = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(where, dict) and where:
        return sorted({str(name) for name in where.values()})
    parts = [
        int(found[1]) for path in folder.glob("model*.safetensors") if (found := PART.fullmatch(path.name))
    ]
    return (
        [f"model-{i + 1:05}-of-{parts[0]:05}.safetensors" for i in range(parts[0])]
        if parts
        else ["model.safetensors"]
    )
