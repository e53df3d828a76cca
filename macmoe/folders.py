"""What a folder that is named as a model really is: a model, what is taken for one, or a place of models.

A folder of the hub's cache means its snapshot. Folders above models are answered with the models below them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from macmoe.errors import CheckpointError
from macmoe.hub_cache import INDEX, PREFIX, repo_of, snapshot

logger = logging.getLogger(__name__)

# The file that only the folder of an adapter has -> what such a folder is.
ADAPTERS = {
    "adapter_config.json": "a LoRA adapter of PEFT or mlx-lm",
    "adapter.json": "a LoRA adapter of macmoe",
}
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
READ = (".json", ".safetensors", ".jinja", ".txt")  # of a model's files, those that are read
DEPTH = 3  # how far below a folder models are looked for
LOOKED_AT = 2000  # folders, so that a whole disk is not searched
NAMED = 8
CONFIG = "config.json"


def model_folder(path: Path) -> Path:
    """Return the model that a folder means: itself, or the snapshot of a folder of the hub's cache.

    Raises:
        CheckpointError: It holds no model; the message says what it is, and names the models below it.
    """
    names = {entry.name for entry in path.iterdir()}
    _refuse_gguf(path, names)
    _refuse_adapter(path, names)
    if CONFIG in names or _has_weights(names):
        return path
    inside = path.parent if path.name == "snapshots" else path
    if inside.name.startswith(PREFIX):
        found = snapshot(inside)
        if found is None:
            raise CheckpointError(
                f"{path}: a folder of the hub's cache without a snapshot to use; "
                f"`macmoe pull {repo_of(inside)}` downloads the model"
            )
        return found
    raise CheckpointError(f"{path}: {_what_it_is(path, names)}")


def weights_folder(path: Path) -> Path:
    """Return the folder of one file of weights.

    Raises:
        CheckpointError: The file is no safetensors file of a model.
    """
    _refuse_gguf(path, {path.name})
    if path.name.endswith(ARCHIVES):
        raise CheckpointError(f"{path}: an archive; unpack it, and name the folder with config.json in it")
    if path.name.endswith(PICKLES):
        raise CheckpointError(
            f"{path}: a pickle, which can run code when it is opened; get the safetensors form of this model"
        )
    if path.suffix != ".safetensors" or not (path.parent / CONFIG).is_file():
        raise CheckpointError(f"{path}: a file, not a model folder, and no file of weights beside a {CONFIG}")
    return path.parent


def check_links(folder: Path) -> None:
    """Refuse a folder with links to files that are gone, as the hub's cache has them after a cleaning.

    Raises:
        CheckpointError: There is such a link; the message says how to repair it.
    """
    links = (entry for entry in folder.iterdir() if entry.is_symlink() and entry.suffix in READ)
    broken = sorted(entry.name for entry in links if not entry.exists())
    if broken:
        repo = repo_of(folder)
        repair = f"`macmoe pull {repo}` downloads it again" if repo else "put the file back"
        others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
        raise CheckpointError(f"{folder / broken[0]}{others}: a link to a file that is gone; {repair}")


def _has_weights(names: set[str]) -> bool:
    return INDEX in names or any(name.startswith("model") and name.endswith(".safetensors") for name in names)


def _refuse_gguf(path: Path, names: set[str]) -> None:
    if any(name.endswith(".gguf") for name in names) and CONFIG not in names:
        raise CheckpointError(
            f"{path}: GGUF, the format of llama.cpp; its packings have no exact counterpart in MLX, so "
            "convert the safetensors model that it was made from"
        )


def _refuse_adapter(path: Path, names: set[str]) -> None:
    """Refuse an adapter; a whole model beside one wins, and that is said."""
    adapter = next((name for name in ADAPTERS if name in names), None)
    if adapter is None:
        return
    if CONFIG in names and _has_weights(names):
        logger.info("%s: the model is used without the adapter beside it (%s)", path, adapter)
        return
    raise CheckpointError(
        f"{path}: {ADAPTERS[adapter]}, which changes a model and is none; name the model, and this "
        "folder as its `--adapter`"
    )


def _what_it_is(path: Path, names: set[str]) -> str:
    """Say what a folder without a configuration is, and what to name instead."""
    found = list(islice(_models_below(path, DEPTH), NAMED + 1))
    if found:
        more = ", ..." if len(found) > NAMED else ""
        return f"not a model folder, but models lie below it: {', '.join(found[:NAMED])}{more}; name one"
    if not names:
        return "an empty folder"
    archive = next((name for name in sorted(names) if name.endswith(ARCHIVES)), None)
    if archive:
        return f"not a model folder, but it holds an archive; unpack {archive} first"
    pickle = next((name for name in sorted(names) if name.endswith(PICKLES)), None)
    if pickle:
        return (
            f"not a model folder: no {CONFIG}, and {pickle} is a pickle, which can run code when it is "
            "opened; get the safetensors form of this model"
        )
    return f"not a model folder: it has no {CONFIG} and no model*.safetensors file"


def _models_below(path: Path, depth: int) -> Iterator[str]:
    """Yield what to name instead: folders with a configuration, and repositories of the hub's cache."""
    for folder, left in islice(_folders(path, depth), LOOKED_AT):
        if folder.name.startswith(PREFIX):
            yield repo_of(folder) or str(folder)
        elif left < depth and (folder / CONFIG).is_file():
            yield str(folder)


def _folders(path: Path, depth: int) -> Iterator[tuple[Path, int]]:
    """Yield a folder and those below it, with the levels that are left; never those of a repository."""
    yield path, depth
    if depth == 0 or path.name.startswith(PREFIX):
        return
    try:
        below = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError:
        return
    for each in below:
        yield from _folders(each, depth - 1)
