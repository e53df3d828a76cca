"""Downloads from the hub: what they take is said before they begin, and refused where it cannot fit."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from macmoe.errors import CheckpointError
from macmoe.hub_cache import hub_folder, is_offline, repo_folder

logger = logging.getLogger(__name__)

GIB = 2**30
Announce = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The files of a repository that are wanted.

    Attributes:
        sizes: Bytes, by name.
        missing: Bytes that are not on this machine.
    """

    sizes: Mapping[str, int]
    missing: int


def free_at(folder: Path) -> int:
    """Return the free bytes of the disk that a folder is on, or will be."""
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), Path.cwd())
    return shutil.disk_usage(there).free


def gib(count: float) -> str:
    """Write bytes as people compare memory and disks."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"


def listing(repo: str, files: tuple[str, ...]) -> Listing | None:
    """Ask the hub for the sizes of a repository's files, in one request; None where it gives no answer.

    Args:
        repo: Its id.
        files: Patterns of the wanted names, of the top folder.
    """
    if is_offline():
        return None
    from huggingface_hub import HfApi  # noqa: PLC0415 - half a second that local models need not pay

    try:
        info = HfApi().model_info(repo, revision="main", files_metadata=True)
    except Exception:  # noqa: BLE001 - whatever it is, the download itself says it better
        return None
    sizes = {
        each.rfilename: each.size or 0
        for each in info.siblings or []
        if "/" not in each.rfilename and any(fnmatch(each.rfilename, pattern) for pattern in files)
    }
    here = repo_folder(repo) / "snapshots" / str(info.sha)
    return Listing(
        sizes=sizes, missing=sum(size for name, size in sizes.items() if not (here / name).exists())
    )


def announce_download(repo: str, found: Listing, announce: Announce, *, force: bool = False) -> None:
    """Say how much will be downloaded, and where to.

    Raises:
        CheckpointError: The disk has too little room, and `force` is not given.
    """
    place = hub_folder()
    free = free_at(place)
    if found.missing > free and not force:
        raise CheckpointError(
            f"{repo}: {gib(found.missing)} to download into {place} and {gib(free)} free; make room, or set "
            "HF_HOME to a folder on a larger disk"
        )
    if found.missing:
        announce(f"{repo}: downloading {gib(found.missing)} into {place} ({gib(free)} free)")


def download(repo: str, files: tuple[str, ...], *, kind: str = "model") -> Path:
    """Return the local copy of a hub repository, after asking the hub for its newest state.

    Args:
        repo: Its id.
        files: Which files to download; of a model only those in the top folder (copies in other formats lie
            in folders below it).
        kind: "model" or "dataset".

    Raises:
        CheckpointError: There is no such repository, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - half a second that local models need not pay
    from huggingface_hub.utils import disable_progress_bars  # noqa: PLC0415

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        below = ["*/*"] if kind == "model" else None
        return Path(
            snapshot_download(
                repo,
                repo_type=kind,
                allow_patterns=list(files),
                ignore_patterns=below,
                local_files_only=is_offline(),
            )
        )
    except Exception as error:
        reason = _reason(error, kind)
        if reason is None:
            raise
        raise CheckpointError(f"{repo}: not a folder here, and {reason}") from None


def _reason(error: Exception, kind: str) -> str | None:
    """Say why a download failed, and what to do; None: for no reason that a network or a disk gives."""
    from huggingface_hub import errors  # noqa: PLC0415

    away = "HF_HUB_OFFLINE is set" if is_offline() else "the hub cannot be reached"
    reasons: dict[type[Exception], str] = {
        errors.GatedRepoError: "access must be asked for on its page, then log in with `hf auth login`",
        errors.RepositoryNotFoundError: f"the hub has no such {kind}, or it is private",
        errors.IncompleteSnapshotError: f"{away}, and the copy on this machine is not complete; with a "
        "network, the same command downloads the rest",
        errors.LocalEntryNotFoundError: f"{away} and no copy is on this machine",
        errors.HfHubHTTPError: f"the hub answered with an error ({type(error).__name__}); try again later",
        OSError: f"it cannot be downloaded ({error}); the same command continues it",
    }
    broken = errors.HfHubHTTPError.__mro__[1]  # of whatever client the library uses
    reasons[broken] = f"the download broke off ({type(error).__name__}); the same command continues it"
    return next((reason for kinds, reason in reasons.items() if isinstance(error, kinds)), None)
