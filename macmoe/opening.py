"""From a name to a folder that loads: found in the cache, on this machine or on the hub, and made ready.

What takes long is announced before, and what cannot fit is refused before: a download, a conversion, weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmoe.checkpoint import is_macmoe_folder
from macmoe.config import load_config
from macmoe.converted import KEEP, Progress, find, ready, source_of, stored_bytes
from macmoe.device import memory_limit, surely_fits
from macmoe.downloads import Announce, announce_download, download, gib, listing
from macmoe.errors import CheckpointError, UsageError
from macmoe.families import known_config
from macmoe.folders import check_links
from macmoe.hub_cache import is_offline
from macmoe.location import BUILT_IN, EVERYTHING, Place, find_model, locate
from macmoe.paths import expand_home
from macmoe.shards import Shards

if TYPE_CHECKING:
    from macmoe.memory import Need

logger = logging.getLogger(__name__)

CONFIG = "config.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a model is to be made ready.

    Attributes:
        recipe: How its matrices are packed, a name of `macmoe_converters.RECIPES`; None: as the name says, or
            as they are.
        force: Go on where memory or disk are too small.
        announce: Called with a line before something that takes long.
        converting: Called with the bytes converted so far and in all.
        allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.
    """

    recipe: str | None = None
    force: bool = False
    announce: Announce = logger.info
    converting: Progress | None = None
    allow_unknown_keys: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model on this machine.

    Attributes:
        folder: Where it lies.
        recipe: How its matrices are to be packed while it is loaded; "keep" where that is done.
    """

    folder: Path
    recipe: str = KEEP


def split_recipe(name: str, recipe: str | None = None) -> tuple[str, str]:
    """Return the name of a model and its recipe, which may stand behind a colon: "qwen3-30b-a3b:4bit".

    Raises:
        UsageError: There is no such recipe, or the name has another one.
    """
    if recipe is None and (":" not in name or name in BUILT_IN or expand_home(name).exists()):
        return name, KEEP
    from macmoe_converters.recipes import RECIPES  # noqa: PLC0415 - only where packing is asked for

    head, _, tail = name.rpartition(":")
    if head and tail in RECIPES and not expand_home(name).exists():
        if recipe not in (None, tail):
            raise UsageError(f"{name}: names the recipe {tail}, and --quantize {recipe}; give one of them")
        return head, tail
    if recipe is not None and recipe not in RECIPES:
        raise UsageError(f"no recipe '{recipe}' for a first use; there are {', '.join(RECIPES)}")
    return name, recipe or KEEP


def prepare(name: str, wish: Wish | None = None) -> Opened:
    """Return a model that loads: downloaded and converted, if it was not before.

    A conversion in the cache folder is used without its source; a copy in the hub's cache without the hub.

    Args:
        name: A folder, a built-in model, a short name or a hub id, with a recipe behind a colon if wanted.
        wish: How it is to be made ready.

    Raises:
        MemoryLimitError: It does not fit into this machine.
        MacmoeError: There is no such model, it is unsupported or damaged, or the disk is too small.
    """
    wish = wish or Wish()
    name, recipe = split_recipe(name, wish.recipe)
    place = locate(name)
    kept = find(_source(place), place.folder, recipe)
    if kept is not None:
        _check_folder(name, kept, KEEP, wish)
        return Opened(folder=kept)
    folder = place.folder
    if folder is None:
        folder = fetch(str(place.repo), recipe, wish)
    check_links(folder)
    if not any(folder.glob("*.safetensors")):
        Shards(folder)  # says what is there instead
    _check_folder(name, folder, recipe, wish)
    loads = ready(
        folder,
        wish.converting,
        recipe=recipe,
        announce=wish.announce,
        allow_unknown_keys=wish.allow_unknown_keys,
    )
    return Opened(folder=loads, recipe=recipe if loads == folder else KEEP)


def model_files(name: str, files: tuple[str, ...]) -> Path:
    """Return a folder with some files of a model, which are downloaded if they are nowhere on this machine.

    Args:
        name: As `prepare` takes it.
        files: Patterns of the files, for example all but the weights.

    Raises:
        CheckpointError: There is no such model, or the hub cannot be reached.
    """
    name, recipe = split_recipe(name)
    place = locate(name, files)
    kept = None if place.folder else find(_source(place), None, recipe)
    return kept or find_model(name, files)


def pull(name: str, wish: Wish) -> Opened:
    """Bring the hub's newest state of a model to this machine, and convert it.

    Raises:
        UsageError: The hub is not to be asked.
        MacmoeError: See `prepare`.
    """
    plain, recipe = split_recipe(name, wish.recipe)
    place = locate(plain)
    if place.repo is not None:
        if is_offline():
            raise UsageError(f"{name}: HF_HUB_OFFLINE is set (or --offline), so the hub cannot be asked")
        fetch(place.repo, recipe, wish)
    return prepare(name, wish)


def _source(place: Place) -> str:
    return place.repo or source_of(Path(str(place.folder)))


def fetch(repo: str, recipe: str, wish: Wish) -> Path:
    """Download what is missing of a hub model; what it takes is said before, and refused where it cannot fit.

    Raises:
        MemoryLimitError: The model does not fit into memory.
        CheckpointError: The disk is too small, there is no such model, or the hub cannot be reached.
    """
    found = listing(repo, EVERYTHING)
    if found is not None:
        weights = sum(size for file, size in found.sizes.items() if file.endswith(".safetensors"))
        if not weights:
            raise CheckpointError(f"{repo}: the hub's repository has no model*.safetensors in its top folder")
        about = ""
        if not (wish.force or surely_fits(weights)):
            need = _check(repo, _known(_config_of(repo), repo, wish), recipe, weights)
            about = f"; about {gib(need.total)} of {gib(memory_limit())} of memory"
        announce_download(repo, found, lambda line: wish.announce(line + about), force=wish.force)
    return download(repo, EVERYTHING)


def _config_of(repo: str) -> Mapping[str, Any]:
    from macmoe.inspection import published_config  # noqa: PLC0415 - only for what may be too large

    return published_config(repo) or load_config(download(repo, (CONFIG,)))


def _check_folder(name: str, folder: Path, recipe: str, wish: Wish) -> None:
    """Refuse weights on this machine that do not fit into its memory."""
    try:
        stored = stored_bytes(folder)
    except OSError:
        return  # said by whoever opens it
    if not (wish.force or surely_fits(stored, grows=not is_macmoe_folder(folder))):
        config = load_config(folder)
        if "model_type" in config:  # OpenAI's original folders have none
            _check(name, _known(config, name, wish), recipe, stored)


def _known(config: Mapping[str, Any], where: str, wish: Wish) -> Mapping[str, Any]:
    return known_config(config, where, allow_unknown_keys=wish.allow_unknown_keys)


def _check(name: str, config: Mapping[str, Any], recipe: str, stored: int) -> Need:
    """Return what a model takes, if it fits; what MLX has packed stays as large as it is stored.

    Raises:
        MemoryLimitError: It does not fit.
    """
    from macmoe.memory import check_memory  # noqa: PLC0415 - only for what may be too large

    packed = recipe == KEEP and bool(config.get("quantization"))
    return check_memory(name, config, recipe, loaded=stored if packed else None)
