"""Opening models for the commands: a conversion on first use is announced, with a bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import macmoe
from macmoe.cli.model import introduce_default
from macmoe.cli.terminal import note, progress_bar
from macmoe.cli.unknown_keys import unknown_keys_allowed
from macmoe.location import cache_folder

if TYPE_CHECKING:
    from macmoe.session import Session


def open_session(name: str, adapter: str | Path | None = None) -> Session:
    """Load a model; say so if it has to be converted first.

    Raises:
        MacmoeError: The model or the adapter does not exist, is unsupported or damaged.
    """
    introduce_default()
    with progress_bar("converting", in_bytes=True) as bar:
        announced = False

        def progress(done: int, total: int) -> None:
            nonlocal announced
            if not announced:
                note(f"{name}: converting it once, into {cache_folder()} (`macmoe cache` manages it)")
                announced = True
            bar(done, total)

        return macmoe.load(
            name, adapter=adapter, progress=progress, allow_unknown_keys=unknown_keys_allowed()
        )
