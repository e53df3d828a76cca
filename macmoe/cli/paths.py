"""Options that are paths: `~` is expanded, which a shell does not do in `--out=~/x`; folders are made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from macmoe.errors import UsageError
from macmoe.paths import expand_home


class UserPath(click.Path):
    """A path of the user's, as a `pathlib.Path`; the arguments are click's."""

    def __init__(self, *, exists: bool = False, dir_okay: bool = True, allow_dash: bool = False) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, allow_dash=allow_dash, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        return super().convert(os.fspath(expand_home(value)), param, ctx)


def check_file(_: click.Context, __: click.Parameter, path: Path | None) -> Path | None:
    """Refuse a file that cannot be made, before there is anything to write.

    Raises:
        UsageError: It is a folder, or what should be a folder around it is a file.
    """
    if path is None:
        return None
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of a file in it")
    around = next(folder for folder in path.absolute().parents if folder.exists())
    if not around.is_dir():
        raise UsageError(f"{path}: {around} is a file, so nothing can lie in it; choose another place")
    return path


def with_parents(path: Path) -> Path:
    """Make the folders that a file goes into, and return the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
