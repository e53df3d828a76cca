"""The type of options that are paths; `~` is expanded, which a shell does not do in `--out=~/x`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from macmoe.paths import expand_home


class UserPath(click.Path):
    """A path of the user's, as a `pathlib.Path`; the arguments are click's."""

    def __init__(self, *, exists: bool = False, dir_okay: bool = True, allow_dash: bool = False) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, allow_dash=allow_dash, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        return super().convert(os.fspath(expand_home(value)), param, ctx)
