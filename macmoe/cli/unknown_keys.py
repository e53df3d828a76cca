"""`--allow-unknown-keys`: the user says that unknown keys of config.json are harmless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from macmoe import inspection

if TYPE_CHECKING:
    from pathlib import Path

    from macmoe_converters import Conversion

_KEY = "macmoe.allow_unknown_keys"


def _remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    ctx.meta[_KEY] = value


allow_unknown_keys_option = click.option(
    "--allow-unknown-keys",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Ignore keys of config.json that macmoe does not know, with a warning that names them.",
)


def unknown_keys_allowed() -> bool:
    """Return whether the running command was given --allow-unknown-keys."""
    ctx = click.get_current_context(silent=True)
    return ctx is not None and bool(ctx.meta.get(_KEY))


def find_config(name: str) -> tuple[dict[str, Any], int | None]:
    """Find the configuration of a model, with the keys that the user allows.

    Raises:
        MacmoeError: See `macmoe.inspection.find_config`.
    """
    return inspection.find_config(name, allow_unknown_keys=unknown_keys_allowed())


def open_conversion(folder: Path, **how: Any) -> Conversion:
    """Open a model folder to convert it, with the keys that the user allows.

    Raises:
        MacmoeError: See `macmoe_converters.open_conversion`.
    """
    from macmoe_converters import open_conversion  # noqa: PLC0415 - half of the commands convert nothing

    return open_conversion(folder, allow_unknown_keys=unknown_keys_allowed(), **how)
