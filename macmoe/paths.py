"""Paths as people write them: `~` is a home folder, also where no shell reads it (options, TOML)."""

from __future__ import annotations

import os
from pathlib import Path

from macmoe.errors import UsageError


def expand_home(path: str | Path) -> Path:
    """Return a path in which a leading `~` or `~user` is that home folder.

    Raises:
        UsageError: There is no such user, and nothing here has that name; it would become a folder.
    """
    text = os.fspath(path)
    expanded = os.path.expanduser(text)  # noqa: PTH111 - pathlib's own fails with a RuntimeError
    user = text.partition("/")[0]
    if text.startswith("~") and expanded == text and not Path(user).exists():
        raise UsageError(f"{path}: there is no user {user[1:]!r}; write ./{path} for a name with a ~")
    return Path(expanded)
