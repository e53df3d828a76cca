"""Where a model lies: in a folder, in this package, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from macmoe.config import nearest
from macmoe.downloads import announce_download, download, listing, logger
from macmoe.errors import CheckpointError
from macmoe.folders import check_links, model_folder, weights_folder
from macmoe.hub_cache import complete_snapshot, repo_of
from macmoe.names import known_names, published
from macmoe.paths import expand_home

ASSETS = Path(__file__).parent / "assets"

# The built-in models, and their folders in the assets.
BUILT_IN = {"tiny:gpt-oss": "gpt_oss", "tiny:qwen3": "qwen3", "tiny:deepseek-v3": "deepseek_v3"}

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
EVERYTHING = ("*.json", "model*.safetensors", "*.txt", "*.jinja", "LICENSE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a name means.

    Attributes:
        name: The name.
        folder: Where the model lies; None: nowhere on this machine.
        repo: The hub's repository; None: it is only a folder.
    """

    name: str
    folder: Path | None
    repo: str | None


def cache_folder() -> Path | None:
    """Return the cache folder, which need not exist; None if nothing is to be kept."""
    named = os.environ.get("MACMOE_CACHE")
    if named:
        return None if named == "off" else Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "macmoe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macmoe"


def locate(name: str, files: tuple[str, ...] = EVERYTHING) -> Place:
    """Find out what a name means, without asking the hub.

    Args:
        name: A folder, a built-in model such as "tiny:qwen3", a short name such as "gpt-oss-20b", or a hub id
            such as "Qwen/Qwen3-0.6B".
        files: Which files a copy of a hub repository must have.

    Raises:
        CheckpointError: It means no model.
    """
    if not name:
        raise CheckpointError("the model has an empty name; give a folder, a hub id or a built-in model")
    if name.startswith("tiny:"):
        if name not in BUILT_IN:
            raise CheckpointError(
                f"{name}: no such built-in model (there are {', '.join(BUILT_IN)}){nearest(name, BUILT_IN)}"
            )
        return Place(name=name, folder=ASSETS / BUILT_IN[name], repo=None)
    path = expand_home(name)
    if path.is_dir() or (path.exists() and published(name) is None):
        folder = model_folder(path) if path.is_dir() else weights_folder(path)
        return Place(name=name, folder=folder, repo=repo_of(folder.absolute()))
    repo = repo_named(name)
    return Place(name=name, folder=complete_snapshot(repo, files), repo=repo)


def repo_named(name: str) -> str:
    """Return the hub's repository of a short name or an id.

    Raises:
        CheckpointError: It is neither.
    """
    known = published(name)
    if known:
        return known.repo
    if name.endswith(".gguf"):
        weights_folder(Path(name))
    if not HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name}: not a model folder, and not a hub id of the form owner/name{suggestion(name)}"
        )
    return name


def suggestion(name: str) -> str:
    """Return "; did you mean 'x'?" for the nearest short name, one that goes on from `name` first."""
    longer = sorted((each for each in known_names() if each.startswith(name.lower())), key=len)
    return f"; did you mean '{longer[0]}'?" if longer and name else nearest(name.lower(), known_names())


def find_model(name: str, files: tuple[str, ...] = EVERYTHING) -> Path:
    """Return the folder of a model; one on the hub is downloaded first, unless it was before.

    Args:
        name: A folder, a built-in model such as "tiny:qwen3", a short name such as "gpt-oss-20b", or a hub id
            such as "Qwen/Qwen3-0.6B".
        files: Which files to download.

    Raises:
        CheckpointError: There is no such model, the disk is too small for it, or the hub cannot be reached.
    """
    place = locate(name, files)
    if place.folder is None:
        assert place.repo is not None
        found = listing(place.repo, files) if files == EVERYTHING else None
        if found:
            announce_download(place.repo, found, logger.info)
        return download(place.repo, files)
    check_links(place.folder)
    return place.folder
