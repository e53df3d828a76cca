"""`macmoe lora export`: an adapter in PEFT's form."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from macmoe.adapters.opening import open_adapter
from macmoe.adapters.peft_export import ExpertLayout, export_peft
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
@click.option("--out", type=UserPath(), required=True, help="Folder to create.")
@click.option(
    "--experts",
    "layout",
    type=click.Choice(get_args(ExpertLayout)),
    default="fused",
    show_default=True,
    help="PEFT's fused parameters, or one adapter for each expert.",
)
@allow_unknown_keys_option
def command(*, adapter: Path, model_name: str, out: Path, layout: ExpertLayout) -> None:
    """Write ADAPTER, a folder of macmoe or mlx-lm, in PEFT's form, exactly."""
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another folder")
    family, model = empty_model(model_name, allow_unknown_keys=unknown_keys_allowed())
    found = open_adapter(adapter, model, family.name)
    export_peft(model, found, out, family=family.name, layout=layout, base_model=model_name)
    note(f"{out}: {len(found.specs):,} adapted matrices")
