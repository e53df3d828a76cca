"""The model of a run before it is loaded, if need be before it is downloaded: shapes, packings, types."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from macmoe.checkpoint import packed_paths
from macmoe.config import load_config
from macmoe.converted import KEEP, find, source_of
from macmoe.downloads import download
from macmoe.families import Family, Model, family_of
from macmoe.folders import check_links
from macmoe.inspection import published_config
from macmoe.loading import open_weights
from macmoe.location import locate
from macmoe.memory import Estimator
from macmoe.nn.quantized import pack_modules
from macmoe.opening import split_recipe

FLOAT_TYPES = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A model whose weights are never computed.

    Attributes:
        family: Its family.
        model: The model, packed as it will be.
        floats: Types of its tensors that are not packed, in safetensors' spelling.
    """

    family: Family
    model: Model
    floats: frozenset[str]


def open_planned(name: str, *, allow_unknown_keys: bool = False) -> Planned:
    """Return a model with its shapes and packings; no weight is read, and none is downloaded.

    Args:
        name: As `macmoe.load` takes it, a recipe behind a colon included.
        allow_unknown_keys: Warn of unknown keys in config.json instead of refusing them.

    Raises:
        MacmoeError: There is no such model, or it is unsupported or damaged.
    """
    name, recipe = split_recipe(name)
    place = locate(name)
    kept = find(place.repo or source_of(Path(str(place.folder))), place.folder, recipe)
    folder = kept or place.folder
    if folder is None:
        return _not_here(str(place.repo), recipe)
    check_links(folder)
    opened = open_weights(folder, KEEP if kept else recipe, allow_unknown_keys=allow_unknown_keys)
    where = str(folder / "config.json")
    family = family_of(opened.config, where)
    model = family.build(opened.config, where)
    pack_modules(model, packed_paths(opened.config, where))
    return Planned(
        family=family,
        model=model,
        floats=frozenset(info.dtype for info in opened.infos.values() if info.dtype in FLOAT_TYPES),
    )


def _not_here(repo: str, recipe: str) -> Planned:
    """Describe a model of the hub by its configuration alone."""
    config = published_config(repo) or load_config(download(repo, ("config.json",)))
    family = family_of(config, repo)
    model = family.build(config, repo)
    pack_modules(model, Estimator(config, repo).packings(recipe))
    return Planned(family=family, model=model, floats=frozenset({"BF16"}))
