"""`macmoe lora fuse`: a model with the adapter in its weights, and how much of the adapter is left in it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

import macmoe
from macmoe.adapters.opening import open_adapter
from macmoe.cli.loading import offline_option
from macmoe.cli.options import Finite
from macmoe.cli.paths import UserPath
from macmoe.cli.terminal import note, read_text, table
from macmoe.cli.unknown_keys import allow_unknown_keys_option, unknown_keys_allowed
from macmoe.loading import open_weights
from macmoe.opening import Wish, prepare
from macmoe.tuning.fuse import Precision, check_free, fuse, record, stored_types, write_fused

TEXT = "The quick brown fox jumps over the lazy dog. What is 17 + 25? Think, then answer in one sentence."
LONGEST = 256  # tokens whose distributions are held at once


@click.command()
@offline_option
@click.argument("adapter", type=UserPath())
@click.option(
    "--model", "model_name", required=True, help="Base model: folder, short name, hub id or tiny:..."
)
@click.option("--out", type=UserPath(), required=True, help="Folder to create.")
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="full",
    show_default=True,
    help="Precision of the fused matrices: as the base model, 8 bits where it is quantized, or full.",
)
@click.option(
    "--keep", type=Finite(0, 1), default=0.9, show_default=True, help="Share of the adapter's effect to keep."
)
@click.option("--strict", is_flag=True, help="Fail if less is kept, instead of raising the precision.")
@click.option("--text", default=TEXT, help="Measure on this text; `-` reads standard input.")
@allow_unknown_keys_option
def command(
    *, adapter: Path, model_name: str, out: Path, precision: Precision, keep: float, strict: bool, text: str
) -> None:
    """Write the model with ADAPTER in its weights, and measure what is left of the adapter's effect."""
    check_free(out)
    allowed = unknown_keys_allowed()
    opened = prepare(model_name, Wish(allow_unknown_keys=allowed))
    session = macmoe.load(model_name, allow_unknown_keys=allowed)
    source = open_weights(opened.folder, opened.recipe, allow_unknown_keys=allowed)
    found = open_adapter(adapter, session.model, session.family.name)
    tokens = session.tokenizer.encode(read_text(text))[:LONGEST]
    modules, effects = fuse(
        session.model,
        found,
        [tokens],
        types=stored_types(source, found.specs),
        precision=precision,
        keep=keep,
        raise_precision=not strict,
    )
    rows = [("precision", "KL(adapted||base)", "KL(adapted||fused)", "kept")]
    rows += [(e.precision, f"{e.to_base:.3g}", f"{e.to_fused:.3g}", _share(e.kept)) for e in effects]
    click.echo(table(rows))
    write_fused(source, modules, out, record(effects))
    note(f"{out}: {len(modules):,} matrices fused")


def _share(kept: float | None) -> str:
    return "not judged: too small an effect" if kept is None else f"{kept:.1%}"
