"""`macmoe lora import`: an adapter of PEFT or mlx-lm in macmoe's form."""

from __future__ import annotations

from pathlib import Path

import click

from macmoe.adapters.files import save_adapter
from macmoe.adapters.opening import open_adapter
from macmoe.cli.loading import offline_option
from macmoe.cli.terminal import note
from macmoe.errors import UsageError
from macmoe.tuning.run import empty_model

EXAMPLE = """\b
macmoe lora import chats-peft --model Qwen/Qwen3-30B-A3B --out adapters/chats
"""


@click.command(epilog=EXAMPLE)
@offline_option
@click.argument("adapter", type=click.Path(path_type=Path))
@click.option("--model", "model_name", required=True, help="The adapted model: folder, hub id or tiny:...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to make.")
def command(*, adapter: Path, model_name: str, out: Path) -> None:
    """Take over ADAPTER, a folder of PEFT or mlx-lm, exactly; what cannot be is refused by name."""
    if out.exists():
        raise UsageError(f"{out}: exists already; choose another folder")
    family, model = empty_model(model_name)
    found = open_adapter(adapter, model, family.name)
    save_adapter(found, out, family.name)
    note(f"{out}: {len(found.specs):,} adapted matrices")
