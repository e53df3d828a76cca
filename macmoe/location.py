"""Where a model lies: in a folder, in this package, or on the Hugging Face hub."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from macmoe.config import nearest
from macmoe.errors import CheckpointError

ASSETS = Path(__file__).parent / "assets"

# The built-in models, and their folders in the assets.
BUILT_IN = {"tiny:gpt-oss": "gpt_oss", "tiny:qwen3": "qwen3", "tiny:deepseek-v3": "deepseek_v3"}

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# The file that only the folder of an adapter has -> what such a folder is.
ADAPTERS = {
    "adapter_config.json": "a LoRA adapter of PEFT or mlx-lm",
    "adapter.json": "a LoRA adapter of macmoe",
}
EVERYTHING = ("*.json", "model*.safetensors", "*.txt", "*.jinja", "LICENSE")


def cache_folder() -> Path | None:
    """Return the cache folder, which need not exist; None if nothing is to be kept."""
    named = os.environ.get("MACMOE_CACHE")
    if named:
        return None if named == "off" else Path(named).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "macmoe"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "macmoe"


def find_model(name: str, files: tuple[str, ...] = EVERYTHING) -> Path:
    """Return the folder of a model; one on the hub is downloaded first, unless it was before.

    Args:
        name: A folder, a built-in model such as "tiny:qwen3", or a hub id such as "Qwen/Qwen3-0.6B".
        files: Which files to download.

    Raises:
        CheckpointError: There is no such model, or the hub cannot be reached.
    """
    if not name:
        raise CheckpointError("the model has an empty name; give a folder, a hub id or a built-in model")
    if name.startswith("tiny:"):
        if name not in BUILT_IN:
            raise CheckpointError(
                f"{name}: no such built-in model (there are {', '.join(BUILT_IN)}){nearest(name, BUILT_IN)}"
            )
        return ASSETS / BUILT_IN[name]
    refuse_what_is_no_model(Path(name))
    if Path(name).is_dir():
        return Path(name)
    if Path(name).exists() or not HUB_ID.fullmatch(name):
        raise CheckpointError(f"{name}: not a model folder, and not a hub id of the form owner/name")
    return download(name, files)


def refuse_what_is_no_model(path: Path) -> None:
    """Say what a file or folder is that is often taken for a model, and what to do with it.

    Raises:
        CheckpointError: It is a GGUF file, a folder of them, or an adapter.
    """
    names = {entry.name for entry in path.iterdir()} if path.is_dir() else {path.name}
    if any(name.endswith(".gguf") for name in names) and "config.json" not in names:
        raise CheckpointError(
            f"{path}: GGUF, the format of llama.cpp; its packings have no exact counterpart in MLX, so "
            "convert the safetensors model that it was made from"
        )
    adapter = next((name for name in ADAPTERS if name in names and path.is_dir()), None)
    if adapter:
        raise CheckpointError(
            f"{path}: {ADAPTERS[adapter]}, which changes a model and is none; name the model, and this "
            "folder as its `--adapter`"
        )


def download(repo: str, files: tuple[str, ...], *, kind: str = "model") -> Path:
    """Return the local copy of a hub repository.

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
            snapshot_download(repo, repo_type=kind, allow_patterns=list(files), ignore_patterns=below)
        )
    except Exception as error:
        reason = _reason(error, kind)
        if reason is None:
            raise
        raise CheckpointError(f"{repo}: not a folder here, and {reason}") from None


def _reason(error: Exception, kind: str) -> str | None:
    """Say why a download failed, and what to do; None: for no reason that a network or a disk gives."""
    from huggingface_hub import errors  # noqa: PLC0415
    from huggingface_hub.constants import HF_HUB_OFFLINE  # noqa: PLC0415

    away = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else "the hub cannot be reached"
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
