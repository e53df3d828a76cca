"""`macmoe lora import`: an adapter of PEFT or mlx-lm in macmoe's form."""

from __future__ import annotations

from pathlib import Path

import click

from macmoe.adapters.files import save_adapter
from macmoe.adapters.opening import open_adapter
from macmoe.cli.loading import offline_option
from macmoe.cli.paths import UserPath
from macmoe.cli.terminal import note
from macmoe.cli.unknown_keys import allow_unknown_keys_option, unknown_keys_allowed
from macmoe.errors import UsageError
from macmoe.tuning.run import empty_model


@click.command()
@offline_option
@click.argument("adapter", type=UserPath())
@click.option(
    "--model", "model_name", required=True, help="Base model: folder, short name, hub id or tiny:..."
)
@allow_unknown_keys_option
@click.option("--out", type=UserPath(), required=True, help="Folder to create.")
def command(*, adapter: Path, model_name: str, out: Path) -> None:
    """Take over ADAPTER, a folder of PEFT or mlx-lm, exactly; what cannot be is refused by name."""
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another folder")
    family, model = empty_model(model_name, allow_unknown_keys=unknown_keys_allowed())
    found = open_adapter(adapter, model, family.name)
    save_adapter(found, out, family.name)
    note(f"{out}: {len(found.specs):,} adapted matrices")
