"""What the cache folder holds, and its removal: conversions, and if asked the hub's copies they came from."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from macmoe.checkpoint import MARKER, is_macmoe_folder
from macmoe.config import load_json
from macmoe.converted import note_of
from macmoe.errors import CheckpointError, UsageError
from macmoe.hub_cache import repo_folder
from macmoe.location import HUB_ID, cache_folder
from macmoe.names import published

UNFINISHED = re.compile(r"\.(.+)\.partial")
UNKNOWN = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A model in the cache folder.

    Attributes:
        name: Name of its folder.
        path: The folder.
        source: What it was converted from: a repository or a folder.
        recipe: How its matrices were packed.
        converted: When, in UTC; empty if unknown.
        nbytes: What it takes on the disk.
        finished: Whether it is complete; an unfinished one is continued at its next use.
    """

    name: str
    path: Path
    source: str
    recipe: str = UNKNOWN
    converted: str = ""
    nbytes: int
    finished: bool

    @property
    def from_hub(self) -> bool:
        """Whether the source is a repository of the hub."""
        return HUB_ID.fullmatch(self.source) is not None

    @property
    def source_folder(self) -> Path | None:
        """Where the source lies on this machine; None: unknown."""
        if self.source == UNKNOWN:
            return None
        return repo_folder(self.source) if self.from_hub else Path(self.source)

    @property
    def source_bytes(self) -> int:
        """What the source takes on the disk; 0: it is gone."""
        return size_of(self.source_folder) if self.source_folder else 0


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder, each counted once however many links lead to it."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


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
    nbytes = size_of(path)
    if unfinished:
        return Entry(name=unfinished[1], path=path, source=UNKNOWN, nbytes=nbytes, finished=False)
    note, marker = note_of(path), load_json(path / MARKER)
    return Entry(
        name=path.name,
        path=path,
        source=note.source if note else str(marker.get("source", UNKNOWN)).partition("@")[0],
        recipe=note.recipe if note else str(marker.get("recipe", UNKNOWN)),
        converted=note.converted if note else "",
        nbytes=nbytes,
        finished=True,
    )


def matching(name: str) -> list[Entry]:
    """Return the entries that a name means: a folder's name, the begin of one, or the source.

    Raises:
        UsageError: It means several models; the message lists them.
    """
    found = entries()
    known = published(name)
    wanted = (known.repo if known else name).lower()
    exact = [entry for entry in found if entry.name == name]
    of_source = [
        entry for entry in found if entry.source.lower() in (wanted, str(Path(name).resolve()).lower())
    ]
    begins = [entry for entry in found if entry.name.lower().startswith(name.lower())]
    chosen = exact or of_source or begins
    names = sorted({entry.name for entry in chosen})
    if len(names) > 1:
        raise UsageError(f"{name}: means several models, {', '.join(names)}; name one")
    return chosen


def remove(name: str, *, source: bool = False) -> int:
    """Remove a model from the cache folder; return the bytes that this frees.

    Args:
        name: The name of its folder, the begin of it, or its source.
        source: Remove the hub's copy of the source as well.

    Raises:
        UsageError: There is no such model, it means several, or the source is a folder of the user's.
    """
    root, found = cache_folder(), matching(name)
    repo = _removable_source(name, found) if source else None
    if not found and repo is None:
        raise UsageError(f"{name}: not in the cache folder; `macmoe cache list` shows what is")
    freed = sum(entry.nbytes for entry in found)
    for each in {entry.name for entry in found}:
        for path in (Path(str(root)) / each, Path(str(root)) / f".{each}.partial"):
            shutil.rmtree(path, ignore_errors=True)
    return freed + (_remove_repo(repo) if repo else 0)


def _removable_source(name: str, found: list[Entry]) -> str | None:
    """Return the repository to remove; None: its copy is gone already.

    Raises:
        UsageError: The source is a folder, which was not downloaded by macmoe.
    """
    known = published(name)
    sources = {entry.source for entry in found} - {UNKNOWN} or {known.repo if known else name}
    source = sources.pop()
    if not HUB_ID.fullmatch(source):
        raise UsageError(f"{source}: the source of {name} is a folder of yours; remove it yourself")
    return source if repo_folder(source).is_dir() else None


def _remove_repo(repo: str) -> int:
    """Remove the hub's copy of a repository through its own library.

    Raises:
        CheckpointError: It cannot be removed.
    """
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415 - half a second

    folder = repo_folder(repo)
    before = size_of(folder)
    scanned = scan_cache_dir(folder.parent)
    commits = [
        revision.commit_hash
        for each in scanned.repos
        if each.repo_type == "model" and each.repo_id == repo
        for revision in each.revisions
    ]
    scanned.delete_revisions(*commits).execute()
    left = size_of(folder) if folder.is_dir() else 0
    if before and left == before:
        raise CheckpointError(f"{folder}: the hub's library could not remove it; remove the folder yourself")
    return before - left
