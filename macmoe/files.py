"""What a file is where it is not what its name says: the pointers that a clone without Git LFS leaves."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from macmoe.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from macmoe.errors import MacmoeError

# How a pointer begins (git-lfs.com, docs/spec.md); the version behind it may change.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, error: type[MacmoeError] = CheckpointError) -> None:
    """Say that a file is a pointer of Git LFS, before a reader calls it damaged; other files pass.

    Args:
        path: The file, which need not exist.
        error: What a reader of such files raises.

    Raises:
        MacmoeError: It is a pointer.
    """
    head = b""
    with suppress(OSError), path.open("rb") as file:  # what cannot be opened is its reader's to report
        head = file.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise error(
            f"{path}: a pointer of Git LFS, not the file itself, which was never downloaded; run "
            "`git lfs pull` in its folder (after `git lfs install`)"
        )
